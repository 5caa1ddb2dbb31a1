"""Writes data/: tiny checkpoints and what diffusers computes from them. See README.md.

Run it with the versions of requirements.txt: `python make.py [part ...]`.
"""

import argparse
import logging
import warnings
from pathlib import Path

import torch

import changes
import checkpoints
import expected
import guidance
import keys
import layouts
import noise
import options
import pictures
import pocket
import prompts
import rules
import scheduler_keys
import schedules
import spacings
import tokenizing
from shapes import CHECKPOINTS

DATA = Path(__file__).resolve().parent / "data"


def checkpoint(name):
    """One checkpoint and all that is expected of it."""
    folder = DATA / name
    checkpoints.write_checkpoint(name, folder / "model")
    pipe = expected.load(name, folder / "model")
    expected.write_stages(pipe, folder)
    pictures.write_pictures(pipe, folder)
    changes.write_changes(pipe, folder)
    prompts.write_prompts(pipe, folder)


def write_all_prompts():
    """What is drawn from weighted and long prompts on the checkpoints that are there already."""
    for name in CHECKPOINTS:
        prompts.write_prompts(expected.load(name, DATA / name / "model"), DATA / name)


def changed(name):
    """What is drawn from pictures on one checkpoint that is there already."""
    changes.write_changes(expected.load(name, DATA / name / "model"), DATA / name)


def write_all_changes():
    changes.write_inputs(DATA / "inputs")
    for name in CHECKPOINTS:
        changed(name)
    for name in ("sd15", "sdxl"):
        changes.write_inpainting(expected.load(name, DATA / name / "model"), DATA / name)


def write_all_spacings():
    spacings.write_spacings(DATA / "spacings.json")
    for name in ("sd15", "sdxl"):
        spacings.write_pictures(expected.load(name, DATA / name / "model"), DATA / name)


def write_all_guidance():
    for name in CHECKPOINTS:
        guidance.write_guidance(expected.load(name, DATA / name / "model"), DATA / name)
    guidance.write_editing(expected.load("sd15", DATA / "sd15" / "model"), DATA / "sd15")


def main():
    parts = {name: lambda name=name: checkpoint(name) for name in CHECKPOINTS}
    parts["schedules"] = lambda: schedules.write_schedules(DATA / "schedules.json")
    parts["spacings"] = write_all_spacings
    parts["tokenizers"] = lambda: tokenizing.write_tokenizers(DATA)
    parts["keys_of_schedulers"] = lambda: scheduler_keys.write_keys(DATA / "scheduler_keys.json")
    parts["options"] = lambda: options.write_options(DATA / "scheduler_options.json")
    parts["keys"] = lambda: keys.write(DATA)
    parts["layouts"] = lambda: layouts.write(DATA / "layouts")
    parts["noise"] = lambda: noise.write_noise(DATA / "noise.safetensors")
    parts["changes"] = write_all_changes
    parts["prompts"] = write_all_prompts
    parts["guidance"] = write_all_guidance
    parts["rules"] = lambda: rules.write_rules(expected.load("sd15", DATA / "sd15" / "model"), DATA / "sd15")
    parts["pocket"] = lambda: pocket.write_pocket(DATA / "pocket")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=f"what to write, everything by default: {', '.join(parts)}")
    asked = parser.parse_args().part or parts
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for part in asked:
        print(part, flush=True)
        parts[part]()


if __name__ == "__main__":
    main()
