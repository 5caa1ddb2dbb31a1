"""The samplers by darkroom's names, and the diffusers classes that they are compared with."""

import sys
import types

import torch

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

# DPMSolverSDEScheduler draws its noise by torchsde, which the comparison replaces: see `options.py`.
sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler  # noqa: E402

CLASSES = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "dpm_2": KDPM2DiscreteScheduler,
    "dpm_2_ancestral": KDPM2AncestralDiscreteScheduler,
    "lms": LMSDiscreteScheduler,
    "uni_pc": UniPCMultistepScheduler,
    "deis": DEISMultistepScheduler,
    "ddpm": DDPMScheduler,
    "dpmpp_sde": DPMSolverSDEScheduler,
    "dpm_single": DPMSolverSinglestepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
    "edm_euler": EDMEulerScheduler,
    "edm_dpmpp_2m": EDMDPMSolverMultistepScheduler,
}
# Those that whole pictures of every checkpoint are compared of, besides the first.
PICTURED = ("dpm_2", "dpm_2_ancestral", "lms", "uni_pc", "deis", "ddpm")
# Those that schedules, changed pictures and Karras' pictures are compared of; `options.py` has whole drawings of all.
FIRST = ("ddim", "pndm", "euler", "euler_ancestral", "heun", "dpmpp_2m")
# What diffusers itself can space as Karras et al. do, eq. 5 of arXiv:2206.00364.
HAVE_KARRAS = ("euler", "heun", "dpmpp_2m")
# These have no zero-SNR option in diffusers and silently ignore it.
IGNORE_ZERO_SNR = ("pndm", "heun", "dpm_2", "dpm_2_ancestral", "lms", "deis")


def scheduler(name, config, karras=False, **changes):
    """diffusers' scheduler `name` made from a checkpoint's configuration, as its pipelines make it."""
    if name == "pndm":
        changes["skip_prk_steps"] = True
    if karras:
        changes["use_karras_sigmas"] = True
    if name == "ddpm":
        changes["clip_sample"] = False
    made = CLASSES[name].from_config(config, **changes)
    if name in ("lms", "deis") and config.get("rescale_betas_zero_snr"):
        made.alphas_cumprod = CLASSES["euler"].from_config(config).alphas_cumprod
    if name == "pndm" and config.get("rescale_betas_zero_snr"):
        # The levels that the checkpoint was trained on, which this class would ignore.
        made.alphas_cumprod = CLASSES["euler"].from_config(config).alphas_cumprod
        made.final_alpha_cumprod = 1.0 if made.config.set_alpha_to_one else made.alphas_cumprod[0]
        made.final_alpha_cumprod = torch.as_tensor(made.final_alpha_cumprod)
    return made
