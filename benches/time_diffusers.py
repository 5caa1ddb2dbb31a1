"""Times diffusers on the CPU, stage by stage as `darkroom bench` does: python3 benches/time_diffusers.py CHECKPOINT.

CHECKPOINT is a directory in diffusers layout. Needs the packages of tests/reference/requirements.txt. Prints for each
stage the median seconds of its runs, after one that does not count; with --json one object a line.
"""

import argparse
import io
import json
import statistics
import time

import torch
from diffusers import DiffusionPipeline

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
PROMPT = "a red fox in the snow"
STEPS = 20
TIMESTEP = 500


def stages(pipe, size):
    """Each stage's name and call, on inputs made up once."""
    side, dtype = size // pipe.vae_scale_factor, pipe.unet.dtype
    channels, window = pipe.unet.config.in_channels, pipe.tokenizer.model_max_length
    pair = torch.randn(2, channels, side, side, dtype=dtype)
    pixels = torch.randn(1, 3, size, size, dtype=dtype)
    ids = torch.randint(0, pipe.text_encoder.config.vocab_size, (2, window))
    context = torch.randn(2, window, pipe.unet.config.cross_attention_dim, dtype=dtype)
    encoders = [encoder for encoder in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if encoder]
    added = {}
    if len(encoders) > 1:
        added = {
            "text_embeds": torch.randn(2, encoders[1].config.projection_dim, dtype=dtype),
            "time_ids": torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=dtype),
        }

    def text_pair():
        for encoder in encoders:
            encoder(ids)

    def unet_pair():
        pipe.unet(pair, TIMESTEP, encoder_hidden_states=context, added_cond_kwargs=added)

    def image():
        drawn = pipe(PROMPT, width=size, height=size, num_inference_steps=STEPS, guidance_scale=7.5)
        drawn.images[0].save(io.BytesIO(), format="PNG")

    yield "text_pair", text_pair
    yield "unet_pair", unet_pair
    yield "vae_decode", lambda: pipe.vae.decode(pair[:1])
    yield "vae_encode", lambda: pipe.vae.encode(pixels)
    yield "image", image


def median_seconds(call, runs):
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--variant", help="of the weight files, such as fp16")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--size", type=int, default=256, help="side in pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stages", nargs="*", help="all by default")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype, variant = DTYPES[args.dtype], args.variant
    pipe = DiffusionPipeline.from_pretrained(args.checkpoint, dtype=dtype, variant=variant, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        for name, call in stages(pipe, args.size):
            if args.stages and name not in args.stages:
                continue
            seconds = median_seconds(call, args.runs)
            row = {"stage": name, "seconds": seconds, "dtype": args.dtype, "size": args.size, "threads": args.threads}
            print(json.dumps(row) if args.json else f"{name:<10} {seconds:9.4f} s", flush=True)


if __name__ == "__main__":
    main()
