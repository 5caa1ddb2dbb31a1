"""Draws with the exported model through diffusers' own pipeline: draw.py "a frog" frog.png"""

import argparse
import json

import torch
from diffusers import StableDiffusionPipeline

from export import MODEL


def pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def defaults():
    return json.loads((MODEL / "darkroom.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=defaults()["default_steps"])
    parser.add_argument("--guidance", type=float, default=defaults()["default_guidance_scale"])
    asked = parser.parse_args()
    image = pipeline()(
        asked.prompt,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        generator=torch.Generator().manual_seed(asked.seed),
    ).images[0]
    image.save(asked.file)


if __name__ == "__main__":
    main()
