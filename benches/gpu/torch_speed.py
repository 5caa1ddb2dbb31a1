"""diffusers' times with one model, for the same cells as speed.py: torch_speed.py NAME FOLDER [--compile]."""

import argparse
import io
import os
import statistics
import time

import torch
from diffusers import DiffusionPipeline

from cells import COMPILED, DIFFUSERS, tell, tell_missing
from memory import Peak
from speed import PROMPT, RUNS, WARM_UP_STEPS

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
MODE = "max-autotune-no-cudagraphs"
STAGE_RUNS = {1: 5}  # by batch; two of the larger


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


class Calls:
    """The calls of UNet and decoder in a drawing, kept to be made again: a compiled network is not compiled anew for them."""

    def __init__(self, pipe, args, batch):
        self.pipe, decode = pipe, pipe.vae.decode

        def keep_unet(_, given, named):
            self.of_unet = given, named

        def keep_decode(*given, **named):
            self.of_decode = given, named
            return decode(*given, **named)

        hook = pipe.unet.register_forward_pre_hook(keep_unet, with_kwargs=True)
        pipe.vae.decode = keep_decode
        image(pipe, args, batch, WARM_UP_STEPS)
        pipe.vae.decode = decode
        hook.remove()

    def unet(self):
        given, named = self.of_unet
        self.pipe.unet(*given, **named)

    def decode(self):
        given, named = self.of_decode
        self.pipe.vae.decode(*given, **named)

    def decode_seconds(self, clock, runs):
        """Of the decoder in the type that the pipeline decodes in, which may be f32 where all else is f16."""
        own, used = self.pipe.vae.dtype, self.of_decode[0][0].dtype
        self.pipe.vae.to(used)
        seconds = clock.seconds(self.decode, runs)
        self.pipe.vae.to(own)
        return seconds


def tell_image(pipe, args, clock, batch, column):
    image(pipe, args, batch, WARM_UP_STEPS)
    seconds = clock.seconds(lambda: image(pipe, args, batch, args.steps), RUNS.get(batch, 1), warm_ups=0)
    tell(f"{args.name}.b{batch}.image", column, value=seconds, unit="s")


def tell_unet(calls, args, clock, batch, column):
    tell(f"{args.name}.b{batch}.unet", column, value=clock.seconds(calls.unet, STAGE_RUNS.get(batch, 2)), unit="s")


def tell_decode(calls, args, clock, batch, column):
    tell(f"{args.name}.b{batch}.decode", column, value=calls.decode_seconds(clock, STAGE_RUNS.get(batch, 2)), unit="s")


def eager_rows(pipe, args, clock, batch):
    tell_image(pipe, args, clock, batch, DIFFUSERS)
    calls = Calls(pipe, args, batch)
    tell_unet(calls, args, clock, batch, DIFFUSERS)
    tell_decode(calls, args, clock, batch, DIFFUSERS)


def eager(args, device, dtype, clock):
    peak = Peak(device)
    pipe = load(args, device, dtype)
    tell_image(pipe, args, clock, 1, DIFFUSERS)
    tell(f"{args.name}.memory", DIFFUSERS, value=peak.mib(os.getpid()), unit="MiB")
    for batch in args.batches:
        try:
            eager_rows(pipe, args, clock, batch)
        except torch.OutOfMemoryError:
            for kind in ("image", "unet", "decode"):
                tell_missing(f"{args.name}.b{batch}.{kind}", DIFFUSERS, "out of memory")
            torch.cuda.empty_cache()


def compiled(args, device, dtype, clock):
    """The UNet first: a picture with it alone compiled is told before the decoder's turn, which tells it again."""
    pipe = load(args, device, dtype)
    pipe.unet.to(memory_format=torch.channels_last)
    unet, decode = pipe.unet, pipe.vae.decode
    for batch in args.batches:
        pipe.unet, pipe.vae.decode = unet, decode
        calls = Calls(pipe, args, batch)
        pipe.unet = torch.compile(unet, mode=MODE, dynamic=False)
        tell_image(pipe, args, clock, batch, COMPILED)
        tell_unet(calls, args, clock, batch, COMPILED)
        pipe.vae.decode = torch.compile(decode, mode=MODE, dynamic=False)
        tell_image(pipe, args, clock, batch, COMPILED)
        tell_decode(calls, args, clock, batch, COMPILED)


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
