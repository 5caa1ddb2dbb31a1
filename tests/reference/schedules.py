"""The timesteps and noise levels of diffusers' schedulers, over their options."""

import itertools

from checkpoints import write_compact
from samplers import FIRST, HAVE_KARRAS, IGNORE_ZERO_SNR, scheduler

BETAS = {"scaled_linear": (0.00085, 0.012), "linear": (0.0001, 0.02), "squaredcos_cap_v2": (0.00085, 0.012)}
SPACINGS = ("leading", "linspace", "trailing")
STEPS = (1, 2, 7, 20, 30)
FEW_STEPS = (2, 7)
TRAIN_STEPS = 1000
DIGITS = 9


def number(value):
    """A float with DIGITS significant digits; None for infinity."""
    value = float(value)
    return None if value in (float("inf"), float("-inf")) or value != value else float(f"{value:.{DIGITS}g}")


def level(alpha):
    """σ of a cumulated alpha, in f64."""
    alpha = float(alpha)
    return number(((1 - alpha) / alpha) ** 0.5) if alpha > 0 else None


def alpha_levels(made, steps):
    """σ at each timestep and at the previous one as DDIM and PNDM find it: by subtraction."""
    alphas = made.alphas_cumprod
    found = {"sigmas": [], "previous_sigmas": []}
    for t in made.timesteps.tolist():
        previous = t - TRAIN_STEPS // steps
        found["sigmas"].append(level(alphas[t]))
        found["previous_sigmas"].append(level(alphas[previous] if previous >= 0 else made.final_alpha_cumprod))
    return found


def row(name, betas, spacing, zero_snr, karras, steps, offset, alpha_one):
    """What one scheduler uses for one set of options."""
    options = {
        "beta_schedule": betas,
        "beta_start": BETAS[betas][0],
        "beta_end": BETAS[betas][1],
        "timestep_spacing": spacing,
        "rescale_betas_zero_snr": zero_snr,
        "steps_offset": offset,
    }
    if name in ("ddim", "pndm"):
        options["set_alpha_to_one"] = alpha_one
    made = scheduler(name, options, karras)
    made.set_timesteps(steps)
    if name in ("ddim", "pndm"):
        levels = alpha_levels(made, steps)
    else:
        levels = {"sigmas": [number(sigma) for sigma in made.sigmas]}
    return {
        "sampler": name,
        "karras": karras,
        "steps": steps,
        **options,
        "timesteps": [number(t) for t in made.timesteps],
        **levels,
        "init_noise_sigma": number(made.init_noise_sigma),
    }


def combinations():
    """All options for the betas of Stable Diffusion, fewer numbers of steps for the others."""
    for name, betas, spacing, zero_snr, karras in itertools.product(
        FIRST, BETAS, SPACINGS, (False, True), (False, True)
    ):
        usual = betas == "scaled_linear"
        if (karras and name not in HAVE_KARRAS) or (zero_snr and (name in IGNORE_ZERO_SNR or betas == "linear")):
            continue
        for steps in STEPS if usual and not zero_snr else FEW_STEPS:
            yield name, betas, spacing, zero_snr, karras, steps, 1, False
    for name in ("ddim", "pndm"):
        yield name, "scaled_linear", "leading", False, False, 7, 0, True
        yield name, "scaled_linear", "trailing", False, False, 7, 0, True
    for name in ("euler", "euler_ancestral", "heun", "dpmpp_2m"):
        yield name, "scaled_linear", "leading", False, False, 7, 0, False


def write_schedules(path):
    write_compact(path, [row(*options) for options in combinations()])
