"""darkroom's times with one model: load, pictures in batches, stages, and memory: speed.py NAME FOLDER."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from cells import DARKROOM, tell, tell_missing
from daemon import Daemon, Failed, environment
from memory import Peak

PROMPT = "a red fox in the snow"
RUNS = {1: 3}  # counted drawings by batch; one of the larger
WARM_UP_STEPS = 2
# What a scheduler of the published checkpoints asks of the network beyond one pass a step.
MORE_CALLS = {"PNDMScheduler": 1}


def calls(folder, steps):
    """Passes of the UNet in a drawing."""
    with open(os.path.join(folder, "scheduler", "scheduler_config.json"), encoding="utf-8") as file:
        return steps + MORE_CALLS.get(json.load(file)["_class_name"], 0)


def draw(daemon, size, batch, steps):
    """(seconds from the request to the last picture's bytes, the job's own timings)."""
    request = {"prompt": PROMPT, "width": size, "height": size, "n": batch, "steps": steps, "guidance_scale": 7.5, "seed": 1}
    began = time.perf_counter()
    job, pictures = daemon.job(request)
    seconds = time.perf_counter() - began
    if len(pictures) != batch:
        raise Failed(f"{len(pictures)} pictures of {batch}")
    return seconds, job["timings"]


def batch_rows(daemon, args, batch):
    draw(daemon, args.size, batch, WARM_UP_STEPS)
    drawings = [draw(daemon, args.size, batch, args.steps) for _ in range(RUNS.get(batch, 1))]
    middle = statistics.median
    passes = calls(args.folder, args.steps)
    name = f"{args.name}.b{batch}"
    tell(f"{name}.image", DARKROOM, value=middle(seconds for seconds, _ in drawings), unit="s")
    tell(f"{name}.unet", DARKROOM, value=middle(found["denoise_ms"] for _, found in drawings) / 1000 / passes, unit="s")
    tell(f"{name}.decode", DARKROOM, value=middle(found["decode_ms"] for _, found in drawings) / 1000, unit="s")


def larger_batch_rows(daemon, args, batch):
    """As `batch_rows`; what is refused, for its memory say, leaves its reason."""
    try:
        batch_rows(daemon, args, batch)
    except Failed as error:
        for kind in ("image", "unet", "decode"):
            tell_missing(f"{args.name}.b{batch}.{kind}", DARKROOM, error)


def stages(args, device, dtype):
    """The stages alone, for batch 1."""
    command = [os.environ["DARKROOM"], "bench", "--model", args.folder, "--device", device, "--dtype", dtype, "--json"]
    command += ["--size", str(args.size), "--runs", "5", "--stages", "unet_pair", "vae_decode"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    if ran.returncode:
        raise Failed(f"darkroom bench ended with {ran.returncode}: {ran.stderr[-300:]}")
    rows = {row["stage"]: row["seconds"] for row in map(json.loads, ran.stdout.splitlines())}
    tell(f"{args.name}.b1.unet", DARKROOM, value=rows["unet_pair"], unit="s")
    tell(f"{args.name}.b1.decode", DARKROOM, value=rows["vae_decode"], unit="s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    args = parser.parse_args()
    device, dtype = os.environ["DEVICE"], os.environ["SPEED_DTYPE"]
    with Daemon(args.folder, device, dtype) as daemon:
        first = daemon.seconds_to_ready
        daemon.end()
    peak = Peak(device)
    with Daemon(args.folder, device, dtype) as daemon:
        tell(f"{args.name}.ready", DARKROOM, value=daemon.seconds_to_ready, unit="s", first=first)
        batch_rows(daemon, args, 1)
        tell(f"{args.name}.memory", DARKROOM, value=peak.mib(daemon.process.pid), unit="MiB")
        stages(args, device, dtype)
        for batch in args.batches:
            if batch != 1:
                larger_batch_rows(daemon, args, batch)


if __name__ == "__main__":
    try:
        main()
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{error}")
