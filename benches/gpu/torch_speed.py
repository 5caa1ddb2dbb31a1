"""diffusers' times with one model, for the same cells as speed.py: torch_speed.py NAME FOLDER [--compile]."""

import argparse
import io
import os
import statistics
import time

import torch
from diffusers import DiffusionPipeline

from cells import COMPILED, DIFFUSERS, tell
from memory import Peak
from speed import PROMPT, RUNS, WARM_UP_STEPS

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
MODE = "max-autotune-no-cudagraphs"
STAGE_RUNS = 5
TIMESTEP = 500


class Clock:
    def __init__(self, device):
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def seconds(self, call, runs, warm_ups=1):
        """The median of the runs."""
        found = []
        for _ in range(runs + warm_ups):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - began)
        return statistics.median(found[warm_ups:])


def load(args, device, dtype):
    pipe = DiffusionPipeline.from_pretrained(args.folder, dtype=DTYPES[dtype], variant=args.variant, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def image(pipe, args, batch, steps):
    """A drawing to the bytes of its PNGs."""
    size = args.size
    drawn = pipe(
        PROMPT, width=size, height=size, num_inference_steps=steps, guidance_scale=7.5, num_images_per_prompt=batch
    )
    for picture in drawn.images:
        picture.save(io.BytesIO(), format="PNG")


def stages(pipe, args, batch):
    """The UNet on the guidance pairs of a batch and the decoder on its latents, as calls."""
    side, dtype, device = args.size // pipe.vae_scale_factor, pipe.unet.dtype, pipe.device
    random = lambda *shape: torch.randn(*shape, dtype=dtype, device=device)
    pairs = random(2 * batch, pipe.unet.config.in_channels, side, side)
    context = random(2 * batch, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim)
    added = {}
    if getattr(pipe, "text_encoder_2", None) is not None:
        ids = torch.tensor([[args.size, args.size, 0, 0, args.size, args.size]] * (2 * batch), dtype=dtype, device=device)
        added = {"text_embeds": random(2 * batch, pipe.text_encoder_2.config.projection_dim), "time_ids": ids}
    # diffusers decodes with a VAE in f32 where its configuration asks for it.
    upcast = dtype == torch.float16 and pipe.vae.config.force_upcast
    latents = random(batch, pipe.vae.config.latent_channels, side, side)

    def unet():
        pipe.unet(pairs, TIMESTEP, encoder_hidden_states=context, added_cond_kwargs=added)

    def decode():
        if upcast:
            pipe.upcast_vae() if hasattr(pipe, "upcast_vae") else pipe.vae.to(torch.float32)
        pipe.vae.decode(latents.to(next(iter(pipe.vae.post_quant_conv.parameters())).dtype))
        if upcast:
            pipe.vae.to(dtype)

    return unet, decode


def tell_images(pipe, args, clock, batch, column):
    image(pipe, args, batch, WARM_UP_STEPS)
    seconds = clock.seconds(lambda: image(pipe, args, batch, args.steps), RUNS.get(batch, 1), warm_ups=0)
    tell(f"{args.name}.b{batch}.image", column, value=seconds, unit="s")


def tell_stages(pipe, args, clock, batch, column):
    unet, decode = stages(pipe, args, batch)
    tell(f"{args.name}.b{batch}.unet", column, value=clock.seconds(unet, STAGE_RUNS), unit="s")
    tell(f"{args.name}.b{batch}.decode", column, value=clock.seconds(decode, STAGE_RUNS if batch == 1 else 2), unit="s")


def eager(args, device, dtype, clock):
    peak = Peak(device)
    pipe = load(args, device, dtype)
    tell_images(pipe, args, clock, 1, DIFFUSERS)
    tell(f"{args.name}.memory", DIFFUSERS, value=peak.mib(os.getpid()), unit="MiB")
    tell_stages(pipe, args, clock, 1, DIFFUSERS)
    for batch in args.batches:
        if batch != 1:
            tell_images(pipe, args, clock, batch, DIFFUSERS)
            tell_stages(pipe, args, clock, batch, DIFFUSERS)


def compiled(args, device, dtype, clock):
    """The UNet first: a picture with it alone compiled is told before the decoder's turn, which tells it again."""
    pipe = load(args, device, dtype)
    pipe.unet.to(memory_format=torch.channels_last)
    eager_decode = pipe.vae.decode
    pipe.unet = torch.compile(pipe.unet, mode=MODE, dynamic=False)
    for batch in args.batches:
        tell_images(pipe, args, clock, batch, COMPILED)
        pipe.vae.decode = torch.compile(eager_decode, mode=MODE, dynamic=False)
        tell_images(pipe, args, clock, batch, COMPILED)
        tell_stages(pipe, args, clock, batch, COMPILED)
        pipe.vae.decode = eager_decode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--variant", help="of the weight files, such as fp16")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device, dtype = os.environ["DEVICE"], os.environ["SPEED_DTYPE"]
    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    with torch.inference_mode():
        (compiled if args.compile else eager)(args, device, dtype, Clock(device))


if __name__ == "__main__":
    main()
