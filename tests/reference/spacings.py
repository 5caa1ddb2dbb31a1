"""Noise levels by name: diffusers' where it has them, else their definitions in f64; and pictures drawn on some of them."""

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules

from checkpoints import write_compact, write_tensors
from pictures import USUAL, decode
from samplers import CLASSES
from schedules import number

STEPS = (1, 2, 4, 9, 20)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PUBLISHED = {"stable-diffusion-1": "StableDiffusionSigmas", "stable-diffusion-xl": "StableDiffusionXLSigmas"}
# Where the authors' lists end, for other numbers of steps than ten.
LAST_ALIGNED = 0.029
PICTURE_SIGMAS = [11.0, 5.5, 2.25, 0.9, 0.3, 0.0]


def training():
    """σ of Stable Diffusion's training, growing."""
    betas = np.linspace(SD["beta_start"] ** 0.5, SD["beta_end"] ** 0.5, 1000) ** 2
    product = np.cumprod(1 - betas)
    return ((1 - product) / product) ** 0.5


def timestep(sigmas, sigma):
    """Where a σ stands among those of training, linearly in its logarithm."""
    return np.interp(np.log(sigma), np.log(sigmas), np.arange(len(sigmas)))


def sgm_uniform(s, n):
    """Evenly in timesteps from the last to the first, which is left out; between timesteps σ is linear in its logarithm."""
    t = np.linspace(len(s) - 1, 0, n + 1)[:-1]
    return np.exp(np.interp(t, np.arange(len(s)), np.log(s)))


def simple(s, n):
    """Counted from the last timestep in steps of N/n, each rounded down."""
    return np.array([s[-1 - int(i * len(s) / n)] for i in range(n)])


def ddim_uniform(s, n):
    """From the second timestep up by N/n, rounded down once, as far as timesteps go."""
    return s[1 :: max(len(s) // n, 1)][::-1]


def kl_optimal(s, n):
    """Evenly in the arc tangent of σ; of one step, the most."""
    return np.tan(np.linspace(np.arctan(s[-1]), np.arctan(s[0]), n)) if n > 1 else s[-1:]


DEFINED = {"sgm_uniform": sgm_uniform, "simple": simple, "ddim_uniform": ddim_uniform, "kl_optimal": kl_optimal}


def aligned(levels, n):
    """The published levels for other numbers of steps."""
    place = np.linspace(0, len(levels) - 1, n + 1)
    return np.exp(np.interp(place, np.arange(len(levels)), np.log(levels)))[:-1]


def row(name, sampler, steps, sigmas, timesteps, **more):
    numbers = {"timesteps": [number(t) for t in timesteps], "sigmas": [number(sigma) for sigma in sigmas]}
    return {"scheduler": name, "sampler": sampler, "steps": steps, **more, **numbers}


def diffusers_rows():
    for steps in STEPS:
        solver = DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True)
        solver.set_timesteps(steps)
        yield row("lu", "dpmpp_2m", steps, solver.sigmas, solver.timesteps)
        given = [round(float(sigma), 4) for sigma in np.geomspace(13.0, 0.05, steps)] + [0.0]
        euler = EulerDiscreteScheduler(**SD)
        euler.set_timesteps(sigmas=given)
        yield row("sigmas", "euler", steps, euler.sigmas, euler.timesteps, given=given)
    for family, published in PUBLISHED.items():
        euler = EulerDiscreteScheduler(**SD)
        euler.set_timesteps(sigmas=AysSchedules[published])
        yield row("ays", "euler", 10, euler.sigmas, euler.timesteps, family=family)


def defined_rows():
    s = training()
    for steps in STEPS:
        for name, levels in DEFINED.items():
            sigmas = levels(s, steps)
            yield row(name, "euler", steps, [*sigmas, 0.0], timestep(s, sigmas))
        for family, published in PUBLISHED.items():
            sigmas = aligned([*AysSchedules[published][:-1], LAST_ALIGNED], steps)
            yield row("ays", "euler", steps, [*sigmas, 0.0], timestep(s, sigmas), family=family)


def write_spacings(path):
    write_compact(path, [*diffusers_rows(), *defined_rows()])


def picture_cases(pipe):
    """[(name, case, options of the scheduler, sigmas)]"""
    for sampler in ("euler", "dpmpp_2m"):
        for schedule in ("exponential", "beta"):
            yield f"{sampler}.{schedule}", sampler, schedule, {f"use_{schedule}_sigmas": True}, None
    yield "dpmpp_2m.lu", "dpmpp_2m", "lu", {"use_lu_lambdas": True}, None
    yield "euler.sigmas", "euler", "sigmas", {}, PICTURE_SIGMAS
    published = AysSchedules["StableDiffusionXLSigmas" if "XL" in type(pipe).__name__ else "StableDiffusionSigmas"]
    yield "euler.ays", "euler", "ays", {}, published


def write_pictures(pipe, folder):
    config = pipe.scheduler.config
    rows, tensors = [], {}
    for name, sampler, schedule, options, sigmas in picture_cases(pipe):
        steps = len(sigmas) - 1 if sigmas else USUAL["steps"]
        case = {**USUAL, "sampler": sampler, "schedule": schedule, "steps": steps}
        pipe.scheduler = CLASSES[sampler].from_config(config, **options)
        latents = pipe(
            prompt=case["prompt"],
            guidance_scale=case["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(case["seed"]),
            height=case["height"],
            width=case["width"],
            output_type="latent",
            **({"sigmas": sigmas} if sigmas else {"num_inference_steps": steps}),
        ).images
        tensors[name] = decode(pipe, latents)
        listed = {"sigmas": sigmas} if schedule == "sigmas" else {}
        rows.append({"name": name, "drawn_by": "diffusers", **case, **listed})
    write_compact(folder / "spaced.json", rows)
    write_tensors(folder / "spaced.safetensors", tensors)
