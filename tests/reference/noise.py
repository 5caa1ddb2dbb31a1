"""Seeded noise as torch draws it on the CPU: two draws in a row from each generator."""

import torch

from checkpoints import write_tensors

SEEDS = (0, 1, 42, 2**32 - 1, 2**32 + 5, 2**53 - 1)
SIZES = (5, 16, 17, 64, 100, 4 * 8 * 8)


def write_noise(path):
    tensors = {}
    for seed in SEEDS:
        for size in SIZES:
            generator = torch.Generator("cpu").manual_seed(seed)
            tensors[f"{seed}.{size}.first"] = torch.randn(size, generator=generator)
            tensors[f"{seed}.{size}.second"] = torch.randn(size, generator=generator)
    write_tensors(path, tensors)
