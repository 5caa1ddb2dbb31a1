"""The samplers by darkroom's names, and the diffusers classes that they are compared with."""

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

CLASSES = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
# What diffusers itself can space as Karras et al. do, eq. 5 of arXiv:2206.00364.
HAVE_KARRAS = ("euler", "heun", "dpmpp_2m")
# These have no zero-SNR option in diffusers and silently ignore it.
IGNORE_ZERO_SNR = ("pndm", "heun")


def scheduler(name, config, karras=False, **changes):
    """diffusers' scheduler `name` made from a checkpoint's configuration, as its pipelines make it."""
    if name == "pndm":
        changes["skip_prk_steps"] = True
    if karras:
        changes["use_karras_sigmas"] = True
    return CLASSES[name].from_config(config, **changes)
