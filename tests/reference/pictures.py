"""Whole pictures: every sampler with each spacing, and the options of a request one by one."""

import numpy as np
import torch

import loops
from checkpoints import write_compact, write_tensors
from expected import PROMPTS, encode, is_xl
from samplers import FIRST, PICTURED, scheduler

OWN = {"PNDMScheduler": "pndm", "DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler"}
USUAL = {
    "schedule": "checkpoint",
    "steps": 6,
    "guidance_scale": 7.5,
    "seed": 42,
    "prompt": PROMPTS[0],
    "negative_prompt": None,
    "clip_skip": None,
    "height": 64,
    "width": 64,
}
NEGATIVE = PROMPTS[5]


def cases(pipe, config):
    """[(name, case)]: what is drawn from a checkpoint."""
    own = OWN[config["_class_name"]]
    found = [
        (f"{sampler}.{schedule}", {"sampler": sampler, "schedule": schedule})
        for sampler in FIRST
        for schedule in ("checkpoint", "karras")
    ]
    found += [
        ("unguided", {"sampler": own, "guidance_scale": 1.0, "seed": 2**32 + 5}),
        ("negative", {"sampler": own, "negative_prompt": NEGATIVE, "steps": 7, "seed": 0}),
        ("empty_negative", {"sampler": own, "negative_prompt": "", "steps": 3}),
        ("clip_skip", {"sampler": own, "clip_skip": 1, "negative_prompt": NEGATIVE, "steps": 3}),
        ("cut_prompt", {"sampler": own, "prompt": PROMPTS[4], "steps": 3, "seed": 2**53 - 1}),
        ("odd_size", {"sampler": own, "height": 72, "width": 88, "prompt": PROMPTS[3], "steps": 3}),
        ("twenty_steps", {"sampler": "dpmpp_2m", "steps": 20}),
        ("one_step", {"sampler": own, "steps": 1}),
        ("two_steps", {"sampler": "pndm", "steps": 2}),
    ]
    for sampler in PICTURED:
        # diffusers' own DPM-Solver-2 would look half way from an almost infinite σ, where darkroom looks once.
        plain = config.get("rescale_betas_zero_snr") and sampler.startswith("dpm_2")
        if not plain:
            found.append((f"{sampler}.checkpoint", {"sampler": sampler}))
    return [(name, {**USUAL, **case}) for name, case in found]


def embeddings(pipe, case):
    """(text, added conditions) as the UNet of a pipeline is given them: negative first."""
    text, pooled = encode(pipe, case["prompt"], case["clip_skip"])
    if not is_xl(pipe):
        negative, _ = encode(pipe, case["negative_prompt"] or "")
        return torch.cat([negative, text] if case["guidance_scale"] > 1 else [text]), {}
    size = (case["height"], case["width"])
    ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, pooled.shape[-1])
    if case["guidance_scale"] <= 1:
        return text, {"text_embeds": pooled, "time_ids": ids}
    if case["negative_prompt"] is None:
        negative, negative_pooled = torch.zeros_like(text), torch.zeros_like(pooled)
    else:
        negative, negative_pooled = encode(pipe, case["negative_prompt"])
    added = {"text_embeds": torch.cat([negative_pooled, pooled]), "time_ids": torch.cat([ids, ids])}
    return torch.cat([negative, text]), added


def draw_by_pipeline(pipe, config, case, **more):
    """The final latents of diffusers' own pipeline and scheduler."""
    pipe.scheduler = scheduler(case["sampler"], config, case["schedule"] == "karras")
    text = {"prompt": case["prompt"], "clip_skip": case["clip_skip"]}
    if case["clip_skip"] is not None and not is_xl(pipe):
        text = {"prompt_embeds": encode(pipe, case["prompt"], case["clip_skip"])[0]}
    return pipe(
        **text,
        negative_prompt=case["negative_prompt"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        height=case["height"],
        width=case["width"],
        output_type="latent",
        **more,
    ).images


@torch.no_grad()
def decode(pipe, latents):
    """What a pipeline does after its loop: (height, width, 3), uint8."""
    picture = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return torch.from_numpy(np.array(pipe.image_processor.postprocess(picture)[0]))


def write_pictures(pipe, folder):
    config = pipe.scheduler.config
    rows, tensors = [], {}
    for name, case in cases(pipe, config):
        karras = case["schedule"] == "karras"
        by_loop = loops.has_loop(case["sampler"], config, karras)
        if not by_loop:
            latents = draw_by_pipeline(pipe, config, case)
        else:
            levels = loops.euler_levels(config, karras, case["steps"])
            latents = loops.draw(pipe, case, embeddings(pipe, case), *levels)
        tensors[name] = decode(pipe, latents)
        if latents.nbytes < tensors[name].nbytes:
            tensors[f"{name}.latents"] = latents
        rows.append({"name": name, "drawn_by": "loop" if by_loop else "diffusers", **case})
    write_compact(folder / "pictures.json", rows)
    write_tensors(folder / "pictures.safetensors", tensors)
