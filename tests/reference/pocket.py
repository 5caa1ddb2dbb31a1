"""Pictures that diffusers draws with the bundled model, and the hashes of the weights it used."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from checkpoints import normal, write_json, write_tensors
from samplers import scheduler

MODEL = Path(__file__).resolve().parents[2] / "models" / "pocket"
FROG = "a frog on a green background"
CASES = [
    (FROG, 0, "ddim"),
    ("a red apple, 3d style, on a white background", 1, "ddim"),
    ("an owl emoji on a purple background", 42, "ddim"),
    ("a rocket on a black background", 7, "ddim"),
    ("a slice of pizza, 3d render on a yellow background", 2**32 + 5, "ddim"),
    ("a sailboat on a blue background", 2**53 - 1, "ddim"),
    ("a tiger, flat style, on a yellow background", 3, "ddim"),
    ("a cactus on a pink background, noto style", 5, "ddim"),
    (FROG, 0, "euler"),
    (FROG, 0, "euler_ancestral"),
    (FROG, 0, "dpmpp_2m"),
]


@torch.no_grad()
def write_encodings(vae, path):
    rng, tensors = np.random.default_rng(3), {}
    for name, size in (("image", (32, 48)), ("odd_image", (37, 51))):
        image = normal(rng, 1, 3, *size).mul(0.5).clamp(-1, 1)
        moments = vae.encode(image).latent_dist
        prefix = name.removesuffix("image")
        tensors |= {name: image, f"{prefix}encoded_mean": moments.mean, f"{prefix}encoded_logvar": moments.logvar}
    write_tensors(path, tensors)


def write_pocket(folder):
    defaults = json.loads((MODEL / "darkroom.json").read_text(encoding="utf-8"))
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    config, rows = pipe.scheduler.config, []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (prompt, seed, sampler) in enumerate(CASES):
        pipe.scheduler = scheduler(sampler, config)
        image = pipe(
            prompt,
            num_inference_steps=defaults["default_steps"],
            guidance_scale=defaults["default_guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        file = f"{number}.png"
        image.save(folder / file, optimize=True)
        rows.append(
            {
                "file": file,
                "prompt": prompt,
                "seed": seed,
                "sampler": sampler,
                "steps": defaults["default_steps"],
                "guidance_scale": defaults["default_guidance_scale"],
            }
        )
    write_encodings(pipe.vae, folder / "vae.safetensors")
    weights = sorted(MODEL.glob("*/*.safetensors"))
    hashes = {str(w.relative_to(MODEL)): hashlib.sha256(w.read_bytes()).hexdigest() for w in weights}
    write_json(folder / "pocket.json", {"weights_sha256": hashes, "pictures": rows})
