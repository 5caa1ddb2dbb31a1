"""Runs the parts of benches/gpu.sh, each in a process of its own with its own time limit, and writes the one table.

A part that fails, or runs out of time, leaves what it has told so far and the reason in the cells that it owes. Parts that
measure no times run side by side, first; the others run one after another; torch.compile gets what time is left.
"""

import atexit
import concurrent.futures
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from cells import COMPILED, DARKROOM, DIFFUSERS
from table import COLUMNS, Plan, markdown, verdicts

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "tests" / "reference" / "data"
PARTS = ("networks", "pictures", "seed", "serving", "sd15", "sdxl", "torch", "compile")
DTYPES = ("f32", "f16", "bf16")
# Seconds that a part is given at most.
SIDE_BY_SIDE_S, SERVING_S, SPEED_S, MODELS_S = 150, 90, 75, 120
LEAST_S = 3
MESSAGE = 200  # characters of a failure in a cell


@dataclass
class Model:
    name: str
    title: str
    folder: str
    size: int
    steps: int
    batches: list
    variant: str | None = None

    def arguments(self, batches=None):
        found = [self.name, self.folder, "--size", str(self.size), "--steps", str(self.steps)]
        return [*found, "--batches", *map(str, batches or self.batches)]


@dataclass
class Part:
    name: str
    command: list
    limit_s: float
    owes: list = field(default_factory=list)  # (row, column)
    needs_torch: bool = False


def models(sizes, scratch):
    """The models that are timed. The most wanted batches come first."""
    if sizes == "tiny":
        folder = lambda name: str(DATA / name / "model")
        return [
            Model("sd15", "tiny SD 1.5 at 64", folder("sd15"), 64, 4, [1, 2]),
            Model("sdxl", "tiny SDXL at 64", folder("sdxl"), 64, 4, [1, 2], "fp16"),
        ]
    return [
        Model("sd15", "SD 1.5 at 512", str(scratch / "models" / "sd15"), 512, 20, [1, 8, 4]),
        Model("sdxl", "SDXL at 1024", str(scratch / "models" / "sdxl"), 1024, 20, [1, 4, 8]),
    ]


def script(name, *arguments):
    return [sys.executable, str(HERE / name), *arguments]


def image_rows(model, column, batches=None):
    kinds = ("image", "unet", "decode")
    return [(f"{model.name}.b{batch}.{kind}", column) for batch in batches or model.batches for kind in kinds]


def likeness_parts(wanted, dtypes):
    """Those whose times do not count."""
    parts = []
    for what in ("networks", "pictures"):
        for dtype in dtypes if what in wanted else ():
            owes = [(f"{what}.{dtype}", DARKROOM)]
            parts.append(Part(f"{what} {dtype}", script("likeness.py", what, dtype), SIDE_BY_SIDE_S, owes))
    halves = [dtype for dtype in dtypes if dtype != "f32"]
    if "torch" in wanted and halves and {"networks", "pictures"} & wanted:
        for dtype in halves:
            owes = [(f"{what}.{dtype}", DIFFUSERS) for what in ("networks", "pictures")]
            parts.append(Part(f"torch's own {dtype}", script("torch_likeness.py", dtype), SIDE_BY_SIDE_S, owes, True))
    if "seed" in wanted:
        parts.append(Part("seed", script("likeness.py", "seed", "f32"), SIDE_BY_SIDE_S, [("seed", DARKROOM)]))
    return parts


def timed_parts(wanted, timed):
    parts = []
    if "serving" in wanted:
        owes = [(row, DARKROOM) for row in ("jobs", "cancel", "sigterm", "oom", "again")]
        parts.append(Part("serving", script("serving.py"), SERVING_S, owes))
    for model in timed:
        variant = ["--variant", model.variant] if model.variant else []
        if model.name in wanted:
            owes = [(f"{model.name}.ready", DARKROOM), (f"{model.name}.memory", DARKROOM), *image_rows(model, DARKROOM)]
            parts.append(Part(f"darkroom {model.name}", script("speed.py", *model.arguments()), SPEED_S, owes))
        if "torch" in wanted and model.name in wanted:
            owes = [(f"{model.name}.memory", DIFFUSERS), *image_rows(model, DIFFUSERS)]
            command = script("torch_speed.py", *model.arguments(), *variant)
            parts.append(Part(f"diffusers {model.name}", command, SPEED_S, owes, True))
    for model in timed:
        batches = model.batches[:2] if model.name == "sd15" else model.batches[:1]
        if "compile" in wanted and model.name in wanted:
            variant = ["--variant", model.variant] if model.variant else []
            command = script("torch_speed.py", *model.arguments(batches), *variant, "--compile")
            owes = image_rows(model, COMPILED, batches)
            parts.append(Part(f"torch.compile {model.name}", command, float("inf"), owes, True))
    return parts


class Run:
    def __init__(self, out, scratch, plan, deadline):
        self.out, self.scratch, self.plan, self.deadline = out, scratch, plan, deadline
        self.cells, self.ended, self.processes = {}, [], set()
        self.lock = threading.Lock()
        self.facts = {}
        self.stopped = False

    def put(self, row, column, cell):
        with self.lock:
            self.cells.setdefault(row, {})[column] = cell

    def without(self, part, reason):
        """Writes a part's reason where it owes a figure."""
        with self.lock:
            for row, column in part.owes:
                self.cells.setdefault(row, {}).setdefault(column, {"missing": reason[:MESSAGE]})
            self.ended.append({"part": part.name, "seconds": 0.0, "failure": reason})

    def part(self, part):
        limit_s = min(part.limit_s, self.deadline - time.monotonic())
        if self.stopped or limit_s < LEAST_S:
            return self.without(part, "no time left")
        began = time.monotonic()
        log = (self.scratch / f"part-{part.name.replace(' ', '-').replace(chr(39), '')}.log").open("w+b")
        process = subprocess.Popen(
            part.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
        with self.lock:
            self.processes.add(process)
        timer = threading.Timer(limit_s, kill_group, [process])
        timer.start()
        for line in process.stdout:
            try:
                told = json.loads(line)
                self.put(told["row"], told["column"], told["cell"])
            except (ValueError, KeyError, TypeError):
                log.write(line)
        code = process.wait()
        timer.cancel()
        kill_group(process)  # what it has left behind
        seconds = time.monotonic() - began
        failure = None
        if code:
            in_time = seconds < limit_s
            failure = last_line(log) if in_time else f"out of time after {seconds:.0f} s"
        with self.lock:
            self.processes.discard(process)
            self.ended.append({"part": part.name, "seconds": round(seconds, 1), "failure": failure})
            for row, column in part.owes:
                self.cells.setdefault(row, {}).setdefault(column, {"missing": (failure or "not told")[:MESSAGE]})
        log.close()
        print(f"  {part.name}: {seconds:.0f} s{', ' + failure[:300] if failure else ''}", file=sys.stderr, flush=True)
        self.write()

    def write(self):
        """The table and the JSON as far as they go, each replaced whole."""
        with self.lock:
            found = verdicts(self.plan, self.cells)
            rows = [
                {"row": row, "title": title, "goal": found[row][0], "met": found[row][1], "cells": self.cells.get(row, {})}
                for row, title in self.plan.rows.items()
                if row in self.cells
            ]
            text = self.heading() + "\n\n" + markdown(self.shown(), self.cells) + "\n"
            whole = {**self.facts, "parts": self.ended, "rows": rows}
            for name, content in (("gpu.md", text), ("gpu.json", json.dumps(whole, indent=1, ensure_ascii=False))):
                replacement = self.out / f"{name}.new"
                replacement.write_text(content, encoding="utf-8")
                replacement.replace(self.out / name)
        return text

    def shown(self):
        """The plan without the rows of parts that nobody asked for."""
        shown = Plan.__new__(Plan)
        shown.times_count = self.plan.times_count
        shown.rows = {row: title for row, title in self.plan.rows.items() if row in self.cells}
        return shown

    def heading(self):
        facts = self.facts
        return f"{facts['date']}, {facts['device_name']}, darkroom {facts['darkroom']}, torch {facts['torch']}"

    def stop(self, *_):
        """Ends what runs; the parts' threads then write what there is."""
        self.stopped = True
        for process in list(self.processes):
            kill_group(process)


def kill_group(process):
    """A part, its servers and its compilers: they are in a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def last_line(log):
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


def said_by(*command, timeout=60):
    """The output of a command, or None."""
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        return ran.stdout.strip() if ran.returncode == 0 else None
    except (OSError, subprocess.SubprocessError):
        return None


# Says how far the comparison gets, a line each.
TRY_TORCH = """
import sys, torch
print(torch.__version__, flush=True)
import transformers, safetensors.torch, numpy
from diffusers import DiffusionPipeline
print("diffusers", flush=True)
torch.zeros(1, device=sys.argv[1])
print("device", flush=True)
"""
TRY_TORCH_S = 120


def missing_for_torch(device):
    """Why the comparison cannot run, or None; and torch's version."""
    try:
        command = [sys.executable, "-c", TRY_TORCH, device]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRY_TORCH_S)
    except subprocess.TimeoutExpired:
        return "torch is not imported in time", "unknown"
    lines = ran.stdout.split("\n")[:-1]
    why = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
    reasons = ("no torch here", f"no diffusers here: {why}", f"torch does not use {device}: {why}", None)
    reason = reasons[min(len(lines), 3)]
    return reason and reason[:MESSAGE], lines[0] if lines else "none"


def device_name(device):
    if device.startswith("cpu"):
        return f"CPU of {os.cpu_count()} threads, {platform.machine()}"
    found = said_by("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return f"{found.splitlines()[0]}" if found else f"{device} (no nvidia-smi)"


def settings():
    """From the environment, which gpu.sh has filled in."""
    wanted = set((os.environ.get("PARTS") or " ".join(PARTS)).replace(",", " ").split())
    dtypes = (os.environ.get("DTYPES") or " ".join(DTYPES)).replace(",", " ").split()
    for given, allowed, name in ((wanted, PARTS, "PARTS"), (dtypes, DTYPES, "DTYPES")):
        if unknown := sorted(set(given) - set(allowed)):
            sys.exit(f"{name}: {unknown[0]!r} is none of {', '.join(allowed)}")
    if os.environ["SIZES"] not in ("full", "tiny"):
        sys.exit(f"SIZES: {os.environ['SIZES']!r} is none of full, tiny")
    return wanted, dtypes


def main():
    began = time.monotonic()
    out, scratch = Path(os.environ["OUT_DIR"]), Path(os.environ["SCRATCH_DIR"])
    device, sizes = os.environ["DEVICE"], os.environ["SIZES"]
    wanted, dtypes = settings()
    timed = [model for model in models(sizes, scratch) if model.name in wanted]
    plan = Plan(device, sizes, dtypes, timed, os.environ["SPEED_DTYPE"])
    run = Run(out, scratch, plan, began + float(os.environ["TIME_LIMIT"]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, run.stop)
    atexit.register(run.stop)
    lacks, torch_version = missing_for_torch(device) if {"torch", "compile"} & wanted else (None, "not asked for")
    run.facts = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "device": device,
        "device_name": device_name(device),
        "sizes": sizes,
        "darkroom": (said_by(os.environ["DARKROOM"], "--version") or "that does not start").removeprefix("darkroom "),
        "torch": torch_version + (f" ({lacks})" if lacks else ""),
    }
    if sizes == "full":
        os.environ["FULL_SD15"] = str(scratch / "models" / "sd15")
    side_by_side = likeness_parts(wanted, dtypes)
    if sizes == "full" and (timed or {"seed", "serving"} & wanted):
        names = sorted({model.name for model in timed} | {"sd15"})
        side_by_side.insert(0, Part("models", script("make_models.py", str(scratch / "models"), *names), MODELS_S))
    one_by_one = timed_parts(wanted, timed)

    def start(part):
        run.without(part, lacks) if part.needs_torch and lacks else run.part(part)

    with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        list(pool.map(start, side_by_side))
    for part in one_by_one:
        start(part)
    run.facts["seconds"] = round(time.monotonic() - began, 1)
    print(run.write())
    failed = [row for row, (_, met) in verdicts(plan, run.cells).items() if met is False]
    broken = [ended["part"] for ended in run.ended if ended["failure"] and not broken_by_lack(ended["failure"])]
    print(f"{run.facts['seconds']:.0f} s; goals missed: {', '.join(failed) or 'none'}; parts failed: {', '.join(broken) or 'none'}")
    sys.exit(1 if failed or broken else 0)


def broken_by_lack(failure):
    """A comparison that cannot run here, or had no time left, is no failure of darkroom's."""
    return failure.startswith(("no torch", "no diffusers", "torch ", "no time", "out of time", "no test binary"))


if __name__ == "__main__":
    main()
