"""Whole pictures by update rules that a request names or a checkpoint's scheduler file asks for, on one tiny checkpoint.

Each is drawn by diffusers' own pipeline and class. `scheduler` is a file of the class that a checkpoint names; without one the
checkpoint's own file is read by the sampler's class.
"""

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

import changes
from checkpoints import write_compact, write_tensors
from pictures import USUAL, decode
from samplers import CLASSES, scheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 0.5}
CASES = {
    "dpm_single": {"sampler": "dpm_single"},
    "dpmpp_2m_sde": {"sampler": "dpmpp_2m_sde"},
    "lcm": {"sampler": "lcm", "steps": 4},
    "tcd": {"sampler": "tcd", "steps": 4, "eta": 0.3},
    "ddim.eta": {"sampler": "ddim", "eta": 0.5},
    "dpm_single.third_order": {
        "scheduler": {**SD, "_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3, "use_karras_sigmas": True}
    },
    "pndm.runge_kutta": {"scheduler": {**SD, "_class_name": "PNDMScheduler", "steps_offset": 1}},
    "edm_euler": {"scheduler": {**EDM, "_class_name": "EDMEulerScheduler"}},
    "edm_dpmpp_2m": {"scheduler": EDM},
}
# Samplers that begin with a picture.
BEGUN = ("dpm_single", "dpmpp_2m_sde", "lcm", "tcd", "edm_dpmpp_2m")


def cases():
    """[(name, case)]."""
    usual = {**USUAL, "eta": None, "strength": None, "scheduler": None, "sampler": None}
    found = list(CASES.items())
    found += [(f"image.{name}", {**CASES[name], "steps": 6, "strength": 0.6}) for name in BEGUN]
    return [(name, {**usual, **case}) for name, case in found]


def made(case, config):
    """The scheduler of a case."""
    if case["scheduler"] is not None:
        kind = {kind.__name__: kind for kind in CLASSES.values()}[case["scheduler"]["_class_name"]]
        return kind.from_config(case["scheduler"])
    if case["sampler"] == "dpmpp_2m_sde":
        return scheduler("dpmpp_2m", config, algorithm_type="sde-dpmsolver++")
    return scheduler(case["sampler"], config, **({"clip_sample": False} if case["sampler"] == "ddim" else {}))


def draw(pipe, config, case, picture):
    """The final latents."""
    begins = case["strength"] is not None
    kind = StableDiffusionImg2ImgPipeline if begins else StableDiffusionPipeline
    drawer = kind(**pipe.components)
    # Not through the constructor, which changes files that it takes for outdated ones.
    drawer.scheduler = made(case, config)
    drawer.set_progress_bar_config(disable=True)
    size = {"height": case["height"], "width": case["width"]}
    if begins:
        size = {"strength": case["strength"]}
        size["image"] = drawer.image_processor.resize(picture, case["height"], case["width"])
    return drawer(
        prompt=case["prompt"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance_scale"],
        eta=0.0 if case["eta"] is None else case["eta"],
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        output_type="latent",
        **size,
    ).images


@torch.no_grad()
def write_rules(pipe, folder):
    config = pipe.scheduler.config
    picture = changes.input_picture(3)
    rows, tensors = [], {}
    for name, case in cases():
        tensors[name] = decode(pipe, draw(pipe, config, case, picture))
        rows.append({"name": name, **case})
    write_compact(folder / "rules.json", rows)
    write_tensors(folder / "rules.safetensors", tensors)
