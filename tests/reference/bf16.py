"""How much the pictures that torch draws in bf16 are like those it draws in f32: python bf16.py [--products].

With --products it draws in f32, but rounds weights and inputs of convolutions and linear layers to bf16, but for the
UNet's first and last: what is lost with products in bf16 however exact all else is.

Every case of pictures.json that diffusers' own pipeline draws, but for Karras' levels. `tests/reference/pictures.rs`
asks the same of darkroom. Prints dB of each, and for each checkpoint and for all the mean and the least.
"""

import argparse
import logging
import warnings

import torch

import expected
import loops
import pictures
from make import DATA
from shapes import CHECKPOINTS


def likeness(one, other):
    """Peak signal to noise in dB; 100 for the same bytes."""
    error = (one.double() - other.double()).square().mean().item()
    return 100.0 if error == 0 else 10 * torch.log10(torch.tensor(255.0**2 / error)).item()


EDGES = {"conv_in", "conv_out", "time_embedding", "add_embedding"}


def rounded(x):
    return x.to(torch.bfloat16).to(x.dtype)


def round_products(pipe):
    """Has a pipeline's products take weights and inputs that are rounded to bf16."""
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for name, layer in getattr(getattr(pipe, part, None), "named_modules", list)():
            edge = part == "unet" and name.split(".")[0] in EDGES
            if edge or not isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                continue
            layer.weight.data = rounded(layer.weight.data)
            layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]), *inputs[1:]))
    return pipe


def of_checkpoint(name, products):
    wide = expected.load(name, DATA / name / "model")
    narrow = expected.load(name, DATA / name / "model")
    narrow = round_products(narrow) if products else narrow.to(dtype=torch.bfloat16)
    config = wide.scheduler.config
    for case_name, case in pictures.cases(wide, config):
        if case["schedule"] == "karras" or loops.has_loop(case["sampler"], config, False):
            continue
        drawn = [pictures.decode(pipe, pictures.draw_by_pipeline(pipe, config, case)) for pipe in (wide, narrow)]
        yield case_name, likeness(*drawn)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--products", action="store_true")
    products = parser.parse_args().products
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    found = []
    for name in CHECKPOINTS:
        rows = list(of_checkpoint(name, products))
        found += [row[1] for row in rows]
        print(name, ", ".join(f"{case} {decibels:.1f}" for case, decibels in rows))
    print(f"all: mean {sum(found) / len(found):.1f} dB, least {min(found):.1f} dB of {len(found)}")


if __name__ == "__main__":
    main()
