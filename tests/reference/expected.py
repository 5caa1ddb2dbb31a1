"""What diffusers computes from a tiny checkpoint, stage by stage, in f32."""

import numpy as np
import torch
from diffusers import DiffusionPipeline

from checkpoints import normal, write_compact, write_tensors
from shapes import CHECKPOINTS

PROMPTS = [
    "a photo of a red fox in the snow",
    "",
    "It's the café's 3 dogs, they're   drinking coffee!! (1987)",
    "a cat 🐈 and a naïve Ångström",
    "an oil painting of the sea at sunset, golden light, highly detailed, sharp focus, 8k, by a famous painter,"
    " trending on artstation",
    "low quality, blurry, watermark",
]
# More prompts for the tokenizer alone.
ODD_PROMPTS = [
    "  leading and trailing\tspaces \n",
    "E\u0301cole E\u0301te\u0301 ÉCOLE",
    "日本語 の 絵",
    "a<|endoftext|>b",
    "we've I'm he'll she'd don't IT'S 'tis 'S",
    "x²½ 10,000.50 $5 #1 @home https://example.org/?q=1&r=2",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈!",
    "…—“quoted”‘it’s’",
    "İstanbul ΑΣ ß ﬁ",
    "snow_fox-2 [fox] {fox} \\ / ~^`|",
    "\u200bzero\u00a0width\u3000space",
    "wow!! really ! (!)",
    "fox " * 40,
]
TIMESTEPS = [981.0, 1.0, 499.25]
SAMPLE = (8, 16)
ODD_SAMPLE = (9, 11)  # not divisible by the UNet's reduction: the way up has to meet odd sizes
ODD_IMAGE = (37, 51)  # not divisible by the VAE's reduction: what is left over is dropped on the way in


def load(name, folder):
    """diffusers' own pipeline, in f32 whatever the files' type is."""
    variant = CHECKPOINTS[name]["variant"].removeprefix(".") or None
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, variant=variant, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def is_xl(pipe):
    return hasattr(pipe, "text_encoder_2")


def token_ids(tokenizer, prompt):
    """The ids of the encoder's whole window: cut to it, or padded."""
    return tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids


def write_tokens(pipe, folder):
    names = ["tokenizer", "tokenizer_2"] if is_xl(pipe) else ["tokenizer"]
    rows = []
    for prompt in PROMPTS + ODD_PROMPTS:
        row = {"prompt": prompt}
        for name in names:
            tokenizer = getattr(pipe, name)
            whole = tokenizer(prompt).input_ids
            cut = len(whole) > tokenizer.model_max_length
            row[name] = {"ids": token_ids(tokenizer, prompt), "cut": cut, "whole": whole}
        rows.append(row)
    write_compact(folder / "tokens.json", rows)


@torch.no_grad()
def encode(pipe, prompt, clip_skip=None):
    """(embeddings, pooled or None) of one prompt as the positive one.

    Pipelines of this version ask a text encoder for `text_model`, which newer transformers have
    dissolved: where clip_skip needs it, the same line is written here.
    """
    if is_xl(pipe):
        embeddings, _, pooled, _ = pipe.encode_prompt(
            prompt, device="cpu", do_classifier_free_guidance=False, clip_skip=clip_skip
        )
        return embeddings, pooled
    if clip_skip is None:
        return pipe.encode_prompt(prompt, "cpu", 1, False)[0], None
    ids = torch.tensor([token_ids(pipe.tokenizer, prompt)])
    states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
    return pipe.text_encoder.final_layer_norm(states[-(clip_skip + 1)]), None


def write_text(pipe, folder):
    tensors = {}
    for key, clip_skip in (("embeddings", None), ("embeddings_clip_skip_1", 1)):
        found = [encode(pipe, prompt, clip_skip) for prompt in PROMPTS]
        tensors[key] = torch.cat([embeddings for embeddings, _ in found])
    if is_xl(pipe):
        tensors["pooled"] = torch.cat([pooled for _, pooled in found])
        size = (96, 64)
        ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, found[0][1].shape[-1])
        tensors["time_ids_96_high_64_wide"] = ids
    write_tensors(folder / "text.safetensors", tensors)


@torch.no_grad()
def write_unet(pipe, folder):
    rng = np.random.default_rng(1)
    channels = pipe.unet.config.in_channels
    found = [encode(pipe, PROMPTS[index]) for index in (0, 1)]
    given = {
        "sample": normal(rng, 2, channels, *SAMPLE),
        "odd_sample": normal(rng, 2, channels, *ODD_SAMPLE),
        "timesteps": torch.tensor(TIMESTEPS),
        "encoder_hidden_states": torch.cat([embeddings for embeddings, _ in found]),
    }
    added = {}
    if is_xl(pipe):
        added["text_embeds"] = torch.cat([pooled for _, pooled in found])
        added["time_ids"] = torch.tensor([[64.0, 96.0, 0.0, 0.0, 64.0, 96.0], [80.0, 72.0, 8.0, 4.0, 64.0, 96.0]])

    def run(sample, t):
        return pipe.unet(sample, t, given["encoder_hidden_states"], added_cond_kwargs=added).sample

    outputs = torch.stack([run(given["sample"], t) for t in given["timesteps"]])
    odd_output = run(given["odd_sample"], given["timesteps"][0])
    write_tensors(folder / "unet.safetensors", {**given, **added, "outputs": outputs, "odd_output": odd_output})


@torch.no_grad()
def write_vae(pipe, folder):
    rng = np.random.default_rng(2)
    factor = pipe.vae_scale_factor
    latents = normal(rng, 1, pipe.vae.config.latent_channels, 32 // factor, 48 // factor)
    latents = latents / pipe.vae.config.scaling_factor
    image = normal(rng, 1, 3, 32, 48).mul(0.5).clamp(-1, 1)
    moments = pipe.vae.encode(image).latent_dist
    odd_image = normal(rng, 1, 3, *ODD_IMAGE).mul(0.5).clamp(-1, 1)
    odd_moments = pipe.vae.encode(odd_image).latent_dist
    write_tensors(
        folder / "vae.safetensors",
        {
            "latents": latents,
            "decoded": pipe.vae.decode(latents).sample,
            "image": image,
            "encoded_mean": moments.mean,
            "encoded_logvar": moments.logvar,
            "odd_image": odd_image,
            "odd_encoded_mean": odd_moments.mean,
            "odd_encoded_logvar": odd_moments.logvar,
        },
    )


def write_stages(pipe, folder):
    """Everything but the pictures."""
    write_tokens(pipe, folder)
    write_text(pipe, folder)
    write_unet(pipe, folder)
    write_vae(pipe, folder)
