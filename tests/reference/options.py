"""What diffusers' schedulers do with every key of a file, also where the file is another class's.

Each row is a whole drawing of a few numbers with a toy in place of the network.
"""

import warnings

import torch

from checkpoints import write_compact
from samplers import CLASSES, FIRST
from schedules import level, number

STEPS = (1, 2, 4, 9, 20)
FEW_STEPS = (2, 9)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
KARRAS = {"use_karras_sigmas": True}
V = {"prediction_type": "v_prediction"}
# Files of classes other than the one that draws, as diffusers writes them.
PNDM_FILE = {**SD, "_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
EULER_FILE = {
    **SD,
    "_class_name": "EulerDiscreteScheduler",
    "final_sigmas_type": "zero",
    "interpolation_type": "linear",
    "rescale_betas_zero_snr": False,
    "sigma_max": 9.0,
    "sigma_min": 0.1,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": True,
}

NEW = [name for name in CLASSES if name not in FIRST]


def cases():
    """(class, file, numbers of steps)."""
    # The defaults of each class alone. PNDM's own start is by Runge-Kutta, which darkroom does not draw.
    for name in CLASSES:
        yield name, {"skip_prk_steps": True} if name == "pndm" else {}, STEPS
        yield name, PNDM_FILE, STEPS
    for name in ("ddim", "euler", "heun", "dpmpp_2m", *NEW):
        yield name, EULER_FILE, STEPS
    for name in NEW:
        yield name, {**SD, **V}, STEPS
        if name not in ("dpm_2", "dpm_2_ancestral"):  # which have no rule for it in diffusers
            yield name, {**SD, "prediction_type": "sample"}, STEPS
        yield name, {**SD, **V, "timestep_spacing": "trailing", "use_karras_sigmas": name != "ddpm"}, FEW_STEPS
        yield name, {**COSINE, "timestep_spacing": "leading", "steps_offset": 1}, FEW_STEPS
    for name in ("euler", "heun", "dpmpp_2m", *NEW):
        for key in ("use_exponential_sigmas", "use_beta_sigmas"):
            ends = {"sigma_min": 0.05, "sigma_max": 8.0}
            if name != "ddpm":
                yield name, {**SD, key: True}, FEW_STEPS
                yield name, {**SD, **V, **ends, key: True, "timestep_spacing": "trailing"}, (1, 9)
    for name in ("uni_pc", "deis"):
        yield name, {**SD, "lower_order_final": False, "final_sigmas_type": "sigma_min"}, FEW_STEPS
        yield name, {**SD, **KARRAS, "final_sigmas_type": "sigma_min", "sigma_min": 0.05}, FEW_STEPS
    yield "uni_pc", {**SD, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, STEPS  # NaN at σ = 0 in diffusers
    for name in ("uni_pc", "ddpm"):
        yield name, {**SD, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, STEPS
    yield "deis", {**SD, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"}, FEW_STEPS
    yield "ddpm", {**SD, "clip_sample": True, "clip_sample_range": 0.5}, FEW_STEPS
    yield "euler", {**PNDM_FILE, "_use_default_values": ["steps_offset", "beta_end"]}, FEW_STEPS
    for name in ("euler", "heun", "dpmpp_2m"):
        for sigmas in ({"sigma_min": 0.05}, {"sigma_max": 8.0}, {"sigma_min": 0.05, "sigma_max": 8.0}):
            yield name, {**SD, **KARRAS, **sigmas}, STEPS if len(sigmas) == 2 else FEW_STEPS
        yield name, {**SD, "sigma_min": 0.05, "sigma_max": 8.0}, FEW_STEPS
    edm = {**SD, **KARRAS, **V, "sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading"}
    yield "euler", {**edm, "timestep_type": "continuous"}, STEPS
    yield "euler", {**SD, **V, "timestep_type": "continuous"}, STEPS
    yield "euler", {**SD, "timestep_type": "continuous"}, FEW_STEPS
    yield "heun", {**SD, **V, "timestep_type": "continuous"}, FEW_STEPS
    log_linear = {**SD, "interpolation_type": "log_linear"}
    for more in ({}, KARRAS, {"final_sigmas_type": "sigma_min"}, {**V, "timestep_type": "continuous"}):
        yield "euler", {**log_linear, **more}, STEPS if not more else FEW_STEPS
    yield "euler", {**log_linear, "timestep_spacing": "trailing"}, FEW_STEPS
    yield "euler_ancestral", log_linear, FEW_STEPS
    for name in ("euler", "dpmpp_2m", "heun"):
        yield name, {**SD, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}, STEPS
    yield "dpmpp_2m", {**SD, **KARRAS, "final_sigmas_type": "sigma_min", "lower_order_final": False}, FEW_STEPS
    for spacing in ("linspace", "leading", "trailing"):
        yield "dpmpp_2m", {**COSINE, "lambda_min_clipped": -5.1, "timestep_spacing": spacing}, STEPS
        yield "dpmpp_2m", {**SD, "lambda_min_clipped": -1.5, "timestep_spacing": spacing}, FEW_STEPS
    yield "dpmpp_2m", {**SD, **KARRAS, "lambda_min_clipped": -1.5}, FEW_STEPS
    yield "dpmpp_2m", {**SD, "euler_at_final": True, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}, STEPS
    yield "dpmpp_2m", {**SD, "lower_order_final": False, "final_sigmas_type": "sigma_min"}, FEW_STEPS
    yield "dpmpp_2m", {**SD, "solver_type": "logrho"}, FEW_STEPS
    for name in ("ddim", "heun"):
        yield name, {**SD, "clip_sample": True, "clip_sample_range": 0.5}, STEPS
    yield "heun", {"beta_schedule": "exp"}, FEW_STEPS
    for name in CLASSES:
        betas = [round(0.002 * (step + 1), 3) for step in range(30)]
        pndm = {"skip_prk_steps": True} if name == "pndm" else {}
        yield name, {**pndm, "num_train_timesteps": 30, "trained_betas": betas}, FEW_STEPS
    yield "euler", {**SD, "prediction_type": "original_sample"}, FEW_STEPS
    # What has no effect here.
    idle = {"dynamic_thresholding_ratio": 0.5, "sample_max_value": 2.0, "clip_sample": False}
    yield "ddim", {**SD, **idle}, FEW_STEPS
    yield "dpmpp_2m", {**SD, **idle, "flow_shift": 3.0, "use_dynamic_shifting": True, "time_shift_type": "linear"}, FEW_STEPS
    yield "pndm", {**PNDM_FILE, "thresholding": True, "clip_sample": True, "rho": 3.0, "sigma_data": 1.0}, FEW_STEPS


def toy(x, t):
    """What stands in for the network: it depends on the latents as it sees them, and on the timestep."""
    return torch.sin(2 * x) + 0.3 * torch.cos(torch.as_tensor(float(t)) / 300)


def draw(made, steps):
    """The latents of four numbers after a drawing, and the first of them."""
    made.set_timesteps(steps)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)  # by timestep diffusers finds the wrong σ where two timesteps are the same
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.tensor([[[[1.5, -0.7, 0.3, -2.0]]]]) * made.init_noise_sigma
    draws_noise = [CLASSES[name] for name in ("euler_ancestral", "dpm_2_ancestral", "ddpm")]
    noisy = {"generator": generator} if type(made) in draws_noise else {}
    for t in made.timesteps:
        x = made.step(toy(made.scale_model_input(x, t), t), t, x, **noisy).prev_sample
    return [number(value) for value in x.flatten()]


def row(name, file, steps):
    made = CLASSES[name].from_config(file)
    made.set_timesteps(steps)
    if name in ("ddim", "pndm", "ddpm"):
        sigmas = [level(made.alphas_cumprod[t]) for t in made.timesteps.tolist()]
    elif name in ("dpm_2", "dpm_2_ancestral"):
        between = made.sigmas_interpol[1:] if name == "dpm_2" else made.sigmas_interpol
        sigmas = [made.sigmas[call] if call % 2 == 0 else between[call - 1] for call in range(len(made.timesteps))]
        sigmas = [number(sigma) for sigma in sigmas]
    else:
        sigmas = [number(sigma) for sigma in made.sigmas]
    timesteps = [number(t) for t in made.timesteps]
    initial = number(made.init_noise_sigma)
    found = {"class": CLASSES[name].__name__, "file": file, "steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    return {**found, "init_noise_sigma": initial, "latents": draw(made, steps)}


def write_options(path):
    warnings.simplefilter("ignore")
    write_compact(path, [row(name, file, count) for name, file, steps in cases() for count in steps])
