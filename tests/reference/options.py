"""What diffusers' schedulers do with every key of a file, also where the file is another class's.

Each row is a whole drawing of a few numbers with a toy in place of the network.
"""

import inspect
import warnings

import torch

import kdiffusion
from checkpoints import write_compact
from samplers import CLASSES, FIRST
from schedules import level, number

STEPS = (1, 2, 4, 9, 20)
FEW_STEPS = (2, 9)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
KARRAS = {"use_karras_sigmas": True}
V = {"prediction_type": "v_prediction"}
# What a drawing starts from, where noise has the deviation 1.
START = torch.tensor([[[[1.5, -0.7, 0.3, -2.0]]]])
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
EDM = ("edm_euler", "edm_dpmpp_2m")
# Without `use_karras_sigmas` and the like.
UNSPACED = ("ddpm", "lcm", "tcd", *EDM)
SMALL_END = {"final_sigmas_type": "sigma_min"}


def cases():
    """(class, file, numbers of steps)."""
    # The defaults of each class alone. PNDM's own start, by Runge-Kutta, has fewer than four steps here alone.
    for name in CLASSES:
        yield name, {}, STEPS[2:] if name == "pndm" else STEPS
        yield name, PNDM_FILE, STEPS
    yield "pndm", {"skip_prk_steps": True}, STEPS
    for name in ("ddim", "euler", "heun", "dpmpp_2m", *NEW):
        if name not in EDM:
            yield name, EULER_FILE, STEPS
    for name in NEW:
        yield name, {**SD, **V}, STEPS
        if name not in ("dpm_2", "dpm_2_ancestral", "dpmpp_sde", *EDM):  # which have no rule for it in diffusers
            yield name, {**SD, "prediction_type": "sample"}, STEPS
        if name not in EDM:
            yield name, {**SD, **V, "timestep_spacing": "trailing", "use_karras_sigmas": name not in UNSPACED}, FEW_STEPS
            yield name, {**COSINE, "timestep_spacing": "leading", "steps_offset": 1}, FEW_STEPS
    for name in ("euler", "heun", "dpmpp_2m", *NEW):
        for key in ("use_exponential_sigmas", "use_beta_sigmas"):
            ends = {"sigma_min": 0.05, "sigma_max": 8.0}
            if name not in UNSPACED:
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
        more = {"pndm": {"skip_prk_steps": True}, "lcm": {"original_inference_steps": 10}}
        more["tcd"] = more["lcm"]
        yield name, {**more.get(name, {}), "num_train_timesteps": 30, "trained_betas": betas}, FEW_STEPS
    yield "euler", {**SD, "prediction_type": "original_sample"}, FEW_STEPS
    # What has no effect here.
    idle = {"dynamic_thresholding_ratio": 0.5, "sample_max_value": 2.0, "clip_sample": False}
    yield "ddim", {**SD, **idle}, FEW_STEPS
    yield "dpmpp_2m", {**SD, **idle, "flow_shift": 3.0, "use_dynamic_shifting": True, "time_shift_type": "linear"}, FEW_STEPS
    yield "pndm", {**PNDM_FILE, "thresholding": True, "clip_sample": True, "rho": 3.0, "sigma_data": 1.0}, FEW_STEPS


def solver_cases():
    """(class, file, numbers of steps, η): options that change no level."""
    orders = [(order, kind) for order in (1, 2, 3) for kind in ("midpoint", "heun")]
    for order, kind in orders:
        own = {**SD, "solver_order": order, "solver_type": kind}
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"):
            file = {**own, "algorithm_type": algorithm, **SMALL_END}
            if (order, algorithm) != (3, "sde-dpmsolver"):
                yield "dpmpp_2m", file, STEPS, None
            if algorithm != "sde-dpmsolver":
                # diffusers' sign of a half makes some drawings of many steps so large that f32 does not tell them.
                wild = (order, kind, algorithm) == (3, "heun", "sde-dpmsolver++")
                steps = STEPS[:4] if wild else STEPS
                yield "dpm_single", file, steps, None
                yield "dpm_single", {**file, "lower_order_final": True}, steps, None
        for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
            ends = {"algorithm_type": algorithm, "use_karras_sigmas": True}
            yield "dpmpp_2m", {**own, **ends, **V}, STEPS, None
            few = STEPS[:4] if order == 3 and "sde" in algorithm else STEPS
            yield "dpm_single", {**own, **ends, "prediction_type": "sample"}, few, None
            if (order, algorithm) != (3, "sde-dpmsolver++"):  # which has no formula in diffusers
                yield "edm_dpmpp_2m", {"solver_order": order, "solver_type": kind, "algorithm_type": algorithm}, STEPS, None
    for order in (1, 2, 3):
        yield "deis", {**SD, "solver_order": order}, STEPS, None
        yield "deis", {**SD, **V, "solver_order": order, "lower_order_final": False}, FEW_STEPS, None
        for bh in ("bh1", "bh2"):
            own = {**SD, "solver_order": order, "solver_type": bh}
            yield "uni_pc", {**own, **SMALL_END}, STEPS, None
            yield "uni_pc", {**own, **SMALL_END, "predict_x0": False}, STEPS, None
            yield "uni_pc", {**own, **SMALL_END, "lower_order_final": False, **V, "predict_x0": False}, FEW_STEPS, None
        yield "uni_pc", {**SD, "solver_order": order, "disable_corrector": [0, 2, 3]}, STEPS, None
    for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"):
        for more in ({"lower_order_final": False}, {"prediction_type": "sample"}, V, {"euler_at_final": True}):
            yield "dpmpp_2m", {**SD, "algorithm_type": algorithm, **SMALL_END, **more}, (9, 20), None
    for variance in ("fixed_small", "fixed_small_log", "fixed_large"):
        yield "ddpm", {**SD, "clip_sample": False, "variance_type": variance}, STEPS, None
        yield "ddpm", {**SD, **V, "clip_sample": False, "variance_type": variance, "steps_offset": 1}, FEW_STEPS, None
    bound = {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1.5}
    for name in ("ddim", "dpmpp_2m", "uni_pc", "deis", "ddpm", "dpm_single", "lcm", "tcd", "edm_dpmpp_2m"):
        yield name, {**({} if name in EDM else SD), **bound}, (4, 9), None
    yield "dpmpp_2m", {**SD, **bound, "algorithm_type": "dpmsolver", **SMALL_END}, (4, 9), None
    yield "uni_pc", {**SD, **bound, "predict_x0": False, **SMALL_END}, (4, 9), None
    yield "lcm", {**SD, "clip_sample": True, "clip_sample_range": 0.5, "timestep_scaling": 0.01}, STEPS, None
    for name in ("lcm", "tcd"):
        yield name, {**SD, **V, "rescale_betas_zero_snr": True, "original_inference_steps": 40}, STEPS, None
    for eta in (0.0, 0.5, 1.0):
        yield "tcd", {**SD, "original_inference_steps": 25}, STEPS, eta
        yield "tcd", {**SD, **V}, FEW_STEPS, eta
        yield "tcd", {**SD, "prediction_type": "sample"}, FEW_STEPS, eta
        for more in ({}, V, {"prediction_type": "sample"}):
            yield "ddim", {**SD, **more, "clip_sample": False, "steps_offset": 1}, STEPS, eta
    yield "ddim", {**SD, "clip_sample": True, "clip_sample_range": 0.5, "set_alpha_to_one": False}, STEPS, 0.7
    yield "ddim", {**SD, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, STEPS[:4], 1.0  # NaN at 20
    # PNDM's start by Runge and Kutta's method.
    for more in ({}, V, {"steps_offset": 1}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}):
        yield "pndm", {**SD, **more}, STEPS[2:], None
    own = {"sigma_data": 1.0, "sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0, **V}
    for name in EDM:
        for more in ({}, SMALL_END, {"sigma_schedule": "exponential"}):
            yield name, {**own, **more}, STEPS if not more else FEW_STEPS, None
    yield "edm_dpmpp_2m", {**own, **SMALL_END, "lower_order_final": False}, FEW_STEPS, None
    yield "edm_dpmpp_2m", {**own, **SMALL_END, "euler_at_final": True}, (20,), None


def toy(x, t):
    """What stands in for the network: it depends on the latents as it sees them, and on the timestep."""
    return torch.sin(2 * x) + 0.3 * torch.cos(torch.as_tensor(float(t)) / 300)


def draw(made, steps, eta):
    """The latents of four numbers after a drawing."""
    made.set_timesteps(steps)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)  # by timestep diffusers finds the wrong σ where two timesteps are the same
    generator = torch.Generator("cpu").manual_seed(0)
    x = START * made.init_noise_sigma
    if isinstance(made, CLASSES["dpmpp_sde"]):
        # In place of increments of a Brownian path by torchsde.
        made.noise_sampler = lambda *_: torch.randn(x.shape, generator=generator)
    options = {} if eta is None else {"eta": eta}
    if "generator" in inspect.signature(made.step).parameters:
        options["generator"] = generator
    for t in made.timesteps:
        x = made.step(toy(made.scale_model_input(x, t), t), t, x, **options).prev_sample
    return [number(value) for value in x.flatten()]


def levels(name, made):
    """Of each network call: timesteps, σ, and what unit noise is multiplied by."""
    if name in ("ddim", "pndm", "ddpm", "lcm", "tcd"):
        sigmas = [level(made.alphas_cumprod[t]) for t in made.timesteps.tolist()]
    elif name in ("dpm_2", "dpm_2_ancestral"):
        between = made.sigmas_interpol[1:] if name == "dpm_2" else made.sigmas_interpol
        sigmas = [made.sigmas[call] if call % 2 == 0 else between[call - 1] for call in range(len(made.timesteps))]
        sigmas = [number(sigma) for sigma in sigmas]
    elif name == "dpmpp_sde":
        own = [made.sigmas[0], *made.sigmas[1:-1:2]]
        between = [(a * b) ** 0.5 for a, b in zip(own, own[1:])]
        sigmas = [number(sigma) for pair in zip(own, [*between, 0]) for sigma in pair][:-1]
    else:
        sigmas = [number(sigma) for sigma in made.sigmas]
    timesteps = [number(t) for t in made.timesteps]
    return {"timesteps": timesteps, "sigmas": sigmas, "init_noise_sigma": number(made.init_noise_sigma)}


def row(name, file, steps):
    made = CLASSES[name].from_config(file)
    made.set_timesteps(steps)
    found = {"class": CLASSES[name].__name__, "file": file, "steps": steps, **levels(name, made)}
    return {**found, "latents": draw(made, steps, None)}


def solver_row(name, file, steps, eta):
    made = CLASSES[name].from_config(file)
    made.set_timesteps(steps)
    found = {"class": CLASSES[name].__name__, "file": file, "steps": steps}
    return {**found, **({} if eta is None else {"eta": eta}), "latents": draw(made, steps, eta)}


def loop_rows():
    """What diffusers has no class for."""
    for name in kdiffusion.LOOPS:
        kind = CLASSES[kdiffusion.LEVELS[name]]
        for more in ({}, V, {"prediction_type": "sample"}, {**KARRAS, **V}, {"timestep_spacing": "trailing"}):
            file = {**SD, **more}
            for steps in STEPS if "use_karras_sigmas" not in more else FEW_STEPS:
                made = kind.from_config(file)
                made.set_timesteps(steps)
                latents = [number(value) for value in kdiffusion.draw(name, made, START, toy).flatten()]
                yield {"sampler": name, "class": kind.__name__, "file": file, "steps": steps, "latents": latents}


def write_options(path):
    warnings.simplefilter("ignore")
    rows = [row(name, file, count) for name, file, steps in cases() for count in steps]
    rows += [solver_row(name, file, count, eta) for name, file, steps, eta in solver_cases() for count in steps]
    write_compact(path, [*rows, *loop_rows()])
