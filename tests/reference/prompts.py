"""Weighted prompts and prompts of any length: text states by AUTOMATIC1111's rules around transformers' CLIP, and the
pictures that diffusers draws from them; SDXL's second prompt and sizes by diffusers' own arguments.

A prompt is written twice: as a request has it, and as what it means. The second is all that is computed with, so that
darkroom's reading of the first is tested, too.
"""

import torch

from checkpoints import write_compact, write_tensors
from expected import PROMPTS, is_xl
from pictures import NEGATIVE, OWN, USUAL, decode
from samplers import scheduler

BREAK = None
MOST_CHUNKS = 10
# A comma among this many last tokens of a full chunk ends it.
BACKTRACK = 20
MORE, LESS = 1.1, 1 / 1.1

LONG = PROMPTS[4]
# (what a request says, what it means: pieces of a weight each)
WEIGHTED = (
    r"a (red:1.4) fox, [snow] ((castle)) \(1987\)",
    [("a ", 1), ("red", 1.4), (" fox, ", 1), ("snow", LESS), (" ", 1), ("castle", MORE * MORE), (" (1987)", 1)],
)
BLURRY = ("(blurry:1.5), (ugly:-0.5)", [("blurry", 1.5), (", ", 1), ("ugly", -0.5)])
LONG_WEIGHTED = (
    f"(((a photo)) of a fox:0.8), {LONG}, [watercolour]",
    [
        ("a photo", MORE * MORE * 0.8),
        (" of a fox", 0.8),
        (f", {LONG}, ", 1),
        ("watercolour", LESS),
    ],
)
BROKEN = (
    "a castle on a (green hill BREAK under a blue sky:1.3), BREAK in the snow",
    [("a castle on a ", 1), ("green hill", 1.3), BREAK, ("under a blue sky", 1.3), (",", 1), BREAK, ("in the snow", 1)],
)
# Brackets that are never closed: each weighs all that follows, up to the most that a weight can be.
TOO_LONG = (
    "an old (man, " * 60,
    [("an old ", 1), *(("man, an old ", min(MORE**number, 10)) for number in range(1, 60)), ("man, ", 10)],
)


def plain(text):
    return (text, [(text, 1)])


def chunks_of(tokenizer, pieces):
    """[[(id, weight)]]: what each window has of a prompt."""
    room = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done, now, comma_at = [], [], None
    for piece in pieces:
        if piece is BREAK:
            done.append(now)
            now, comma_at = [], None
            continue
        for token in tokenizer(piece[0], add_special_tokens=False).input_ids:
            if len(now) == room:
                near = token != comma and comma_at is not None and room - comma_at <= BACKTRACK
                end = comma_at + 1 if near else room
                done.append(now[:end])
                now, comma_at = now[end:], None
            elif token == comma:
                comma_at = len(now)
            now.append((token, piece[1]))
    if now or not done:
        done.append(now)
    return done[:MOST_CHUNKS]


@torch.no_grad()
def states_of(encoder, tokenizer, chunks, xl, clip_skip):
    """(states of all chunks side by side, pooled state of the first or None)."""
    states, pooled = [], None
    for chunk in chunks:
        ids = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))
        weights = torch.ones(len(ids), dtype=torch.float64)
        weights[1 : len(chunk) + 1] = torch.tensor([weight for _, weight in chunk], dtype=torch.float64)
        found = encoder(torch.tensor([ids]), output_hidden_states=True)
        if xl:
            state = found.hidden_states[-2 - clip_skip]
        else:
            state = encoder.final_layer_norm(found.hidden_states[-1 - clip_skip])
        if pooled is None and hasattr(found, "text_embeds"):
            pooled = found.text_embeds
        state = state.double()
        weighted = state * weights[None, :, None]
        # The mean is over the window's tokens and channels.
        states.append((weighted * (state.mean() / weighted.mean())).float())
    return torch.cat(states, 1), pooled


def encode(pipe, texts, most, clip_skip):
    """(states, pooled) of a prompt, given what it means to each encoder, in `most` chunks."""
    kinds = [(pipe.tokenizer, pipe.text_encoder)]
    if is_xl(pipe):
        kinds.append((pipe.tokenizer_2, pipe.text_encoder_2))
    states, pooled = [], None
    for (tokenizer, encoder), pieces in zip(kinds, texts):
        chunks = chunks_of(tokenizer, pieces)
        chunks += [[]] * (most - len(chunks))
        state, pooled = states_of(encoder, tokenizer, chunks, is_xl(pipe), clip_skip)
        states.append(state)
    return torch.cat(states, 2), pooled


def longest(pipe, sides):
    tokenizers = [pipe.tokenizer, pipe.tokenizer_2] if is_xl(pipe) else [pipe.tokenizer]
    return max(len(chunks_of(t, pieces)) for side in sides for t, pieces in zip(tokenizers, side))


def conditioning(pipe, case):
    """(prompt_embeds, pooled, negative_prompt_embeds, negative_pooled)"""

    def both(first, second):
        return [first[1], (second or first)[1]]

    positive = both(case["prompt"], case["prompt_2"])
    zeros = case["negative_prompt"] is None and is_xl(pipe)
    negative = both(case["negative_prompt"] or plain(""), case["negative_prompt_2"])
    most = longest(pipe, [positive] if zeros else [positive, negative])
    states, pooled = encode(pipe, positive, most, case["clip_skip"] or 0)
    if zeros:
        return states, pooled, torch.zeros_like(states), torch.zeros_like(pooled)
    return states, pooled, *encode(pipe, negative, most, 0)


def cases(pipe):
    """[(name, case)]: prompts as pairs of what is said and what is meant."""
    found = [
        ("weighted", {"prompt": WEIGHTED, "negative_prompt": BLURRY}),
        ("long", {"prompt": plain(LONG), "negative_prompt": plain(NEGATIVE)}),
        ("long_negative", {"prompt": WEIGHTED, "negative_prompt": LONG_WEIGHTED, "clip_skip": 1}),
    ]
    if pipe.vae.config.latent_channels == 4:
        found.append(("broken", {"prompt": BROKEN}))
    if pipe.tokenizer.model_max_length == 16 and not is_xl(pipe):
        # Many numbers, so by the smallest checkpoint alone.
        found.append(("too_long", {"prompt": TOO_LONG, "steps": 2}))
    if is_xl(pipe):
        found.append(
            (
                "two_prompts",
                {
                    "prompt": WEIGHTED,
                    "prompt_2": LONG_WEIGHTED,
                    "negative_prompt": plain(NEGATIVE),
                    "negative_prompt_2": BROKEN,
                },
            )
        )
    usual = {"prompt_2": None, "negative_prompt": None, "negative_prompt_2": None, "clip_skip": None, "steps": 3}
    return [(name, {**usual, **case}) for name, case in found]


# diffusers' own arguments, which cut prompts and weigh nothing.
XL_CASES = {
    "second": {"prompt_2": PROMPTS[2], "negative_prompt": NEGATIVE, "negative_prompt_2": "a (cat)"},
    "second_alone": {"prompt_2": LONG},
    "sizes": {"original_size": (512, 96), "crops_coords_top_left": (8, 200), "target_size": (1024, 640)},
    "original": {"original_size": (32, 32), "negative_prompt": ""},
}


def draw(pipe, **arguments):
    return pipe(
        num_inference_steps=arguments.pop("steps"),
        guidance_scale=USUAL["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(USUAL["seed"]),
        height=USUAL["height"],
        width=USUAL["width"],
        output_type="latent",
        **arguments,
    ).images


def wire_sizes(case):
    """diffusers has height before width, and top before left."""
    names = {"original_size": "original_size", "crops_coords_top_left": "crop", "target_size": "target_size"}
    return {names[key]: list(reversed(case[key])) for key in names if key in case}


def write_prompts(pipe, folder):
    pipe.scheduler = scheduler(OWN[pipe.scheduler.config["_class_name"]], pipe.scheduler.config, False)
    rows, tensors = [], {}
    said = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
    for name, case in cases(pipe):
        states, pooled, negative, negative_pooled = conditioning(pipe, case)
        given = {"prompt_embeds": states, "negative_prompt_embeds": negative}
        tensors[f"{name}.text"] = torch.cat([negative, states])
        if is_xl(pipe):
            given |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
            tensors[f"{name}.pooled"] = torch.cat([negative_pooled, pooled])
        tensors[name] = decode(pipe, draw(pipe, steps=case["steps"], **given))
        texts = {key: case[key] and case[key][0] for key in said}
        rows.append({"name": name, "plain": False, **case, **texts})
    for name, case in XL_CASES.items() if is_xl(pipe) else ():
        tensors[name] = decode(pipe, draw(pipe, prompt=PROMPTS[0], steps=3, **case))
        texts = {key: case.get(key) for key in said}
        rows.append({"name": name, "plain": True, **texts, "prompt": PROMPTS[0], "clip_skip": None, "steps": 3})
        rows[-1] |= wire_sizes(case)
    usual = {key: USUAL[key] for key in ("guidance_scale", "seed", "height", "width")}
    write_compact(folder / "prompts.json", [{**row, **usual} for row in rows])
    write_tensors(folder / "prompts.safetensors", tensors)
