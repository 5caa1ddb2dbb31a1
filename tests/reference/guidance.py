"""Guidance beyond its scale, and pictures that are edited by instruction: diffusers on the tiny checkpoints."""

import numpy as np
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

import loops
from changes import input_picture
from checkpoints import write_compact, write_tensors
from expected import is_xl
from pictures import NEGATIVE, OWN, USUAL, decode, draw_by_pipeline, embeddings
from samplers import scheduler

# Step i of n is guided where start <= i / n < end.
WHOLE = {"guidance_rescale": 0.0, "guidance_start": 0.0, "guidance_end": 1.0}


def guidance_cases(config):
    own = OWN[config["_class_name"]]
    found = [
        ("rescale", {"sampler": own, "guidance_rescale": 0.7}),
        ("rescale_whole", {"sampler": "dpmpp_2m", "guidance_rescale": 1.0, "negative_prompt": NEGATIVE}),
    ]
    if not config.get("rescale_betas_zero_snr"):
        found += [
            ("late", {"sampler": "euler", "guidance_start": 0.5}),
            ("middle", {"sampler": "heun", "guidance_start": 0.2, "guidance_end": 0.7, "negative_prompt": NEGATIVE}),
            ("early_rescaled", {"sampler": "euler_ancestral", "guidance_end": 0.34, "guidance_rescale": 0.5}),
        ]
    return [(name, {**USUAL, **WHOLE, **case}) for name, case in found]


def write_guidance(pipe, folder):
    config = pipe.scheduler.config
    rows, tensors = [], {}
    for name, case in guidance_cases(config):
        if case["guidance_start"] == 0 and case["guidance_end"] == 1:
            latents = draw_by_pipeline(pipe, config, case, guidance_rescale=case["guidance_rescale"])
        else:
            levels = loops.euler_levels(config, False, case["steps"])
            latents = loops.draw(pipe, case, embeddings(pipe, case), *levels)
        tensors[name] = decode(pipe, latents)
        rows.append({"name": name, **case})
    write_compact(folder / "guidance.json", rows)
    write_tensors(folder / "guidance.safetensors", tensors)


def editing_unet(unet):
    """The UNet with as many input channels more: the latents of the picture to edit."""
    channels = unet.config.in_channels
    made = UNet2DConditionModel.from_config(unet.config, in_channels=2 * channels)
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    more = torch.from_numpy(np.random.default_rng(19).standard_normal((first.shape[0], channels, 3, 3)))
    # Latents that are not scaled are several times as large as others; exact in half precision.
    more = (0.3 * more.float() * first.std()).half().float()
    weights["conv_in.weight"] = torch.cat([first, more], 1)
    made.load_state_dict(weights)
    return made.eval()


def editing_cases(config):
    own = OWN[config["_class_name"]]
    usual = {**USUAL, "image_guidance_scale": 1.5}
    found = [
        ("own", {"sampler": own}),
        ("negative", {"sampler": "euler", "negative_prompt": NEGATIVE, "image_guidance_scale": 2.25}),
        ("ancestral", {"sampler": "euler_ancestral", "guidance_scale": 4.0, "image_guidance_scale": 1.0}),
        ("unguided", {"sampler": "dpmpp_2m", "guidance_scale": 1.0}),
        ("tall", {"sampler": "dpmpp_2m", "height": 96, "width": 64}),
    ]
    return [(name, {**usual, **case}) for name, case in found]


def draw_edited(pipe, config, case, picture):
    components = {**pipe.components, "scheduler": scheduler(case["sampler"], config, False)}
    editing = StableDiffusionInstructPix2PixPipeline(**components, requires_safety_checker=False)
    editing.set_progress_bar_config(disable=True)
    return editing(
        prompt=case["prompt"],
        negative_prompt=case["negative_prompt"],
        # This pipeline draws at its picture's size.
        image=editing.image_processor.resize(picture, case["height"], case["width"]),
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance_scale"],
        image_guidance_scale=case["image_guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        output_type="latent",
    ).images


def write_editing(pipe, folder):
    """Pictures that a checkpoint made for that has edited, and the weights that are its own."""
    assert not is_xl(pipe)
    config = pipe.scheduler.config
    pipe.unet = editing_unet(pipe.unet)
    picture = input_picture(3)
    rows, tensors = [], {"conv_in.weight": pipe.unet.state_dict()["conv_in.weight"]}
    for name, case in editing_cases(config):
        tensors[name] = decode(pipe, draw_edited(pipe, config, case, picture))
        rows.append({"name": name, **case})
    write_compact(folder / "editing.json", rows)
    write_tensors(folder / "editing.safetensors", tensors)
