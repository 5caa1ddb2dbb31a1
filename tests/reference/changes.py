"""Image to image and inpainting: diffusers' own pipelines on the tiny checkpoints.

Inputs are pictures made up from a seed. They and what is drawn are written as small PNG files and safetensors.
"""

import numpy as np
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from checkpoints import write_compact, write_tensors
from expected import PROMPTS, is_xl
from pictures import NEGATIVE, OWN, USUAL, decode
from samplers import FIRST, IGNORE_ZERO_SNR, scheduler

# Larger than what is drawn, so that the filter that shrinks it counts; neither side is a multiple of 8.
INPUT_SIZE = (90, 101)


def input_picture(seed):
    """Smooth colours with fine detail on top: (width, height) of INPUT_SIZE, RGB."""
    width, height = INPUT_SIZE
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize(INPUT_SIZE, Image.BICUBIC)
    fine = rng.integers(-24, 25, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + fine, 0, 255).astype(np.uint8))


def input_mask():
    """White is drawn anew: a disc off the centre, with a hard edge."""
    width, height = INPUT_SIZE
    y, x = np.mgrid[:height, :width]
    inside = (x - 0.4 * width) ** 2 + (y - 0.55 * height) ** 2 < (0.3 * height) ** 2
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8), "L")


def cases(config, latent_channels):
    """[(name, case)]."""
    own = OWN[config["_class_name"]]
    usual = {**USUAL, "strength": 0.6, "mask": False, "padding": None}
    zero_snr = config.get("rescale_betas_zero_snr", False)
    samplers = [name for name in FIRST if not (zero_snr and name in IGNORE_ZERO_SNR)]
    found = [(f"image.{sampler}", {"sampler": sampler}) for sampler in samplers]
    found += [
        ("image.karras", {"sampler": "dpmpp_2m", "schedule": "karras", "strength": 0.75}),
        ("image.whole", {"sampler": own, "strength": 1.0, "steps": 4}),
        ("image.all_but_one", {"sampler": own, "strength": 0.9, "steps": 6, "negative_prompt": NEGATIVE}),
        ("image.last_step", {"sampler": own, "strength": 0.2}),
        ("image.last_two", {"sampler": "dpmpp_2m", "strength": 0.1, "steps": 20}),
        ("image.tall", {"sampler": "euler", "height": 96, "width": 64, "guidance_scale": 1.0}),
    ]
    if not zero_snr:
        found.append(("image.pndm_all_but_one", {"sampler": "pndm", "strength": 0.9}))
        found.append(("image.heun_karras", {"sampler": "heun", "schedule": "karras", "strength": 0.5}))
    if latent_channels != 4:
        return [(name, {**usual, **case}) for name, case in found]  # diffusers inpaints with 4 or 9 channels alone
    found += [(f"mask.{sampler}", {"sampler": sampler, "mask": True}) for sampler in samplers]
    found += [
        ("mask.whole", {"sampler": own, "mask": True, "strength": 1.0}),
        ("mask.region", {"sampler": own, "mask": True, "padding": 4}),
        ("mask.wide_region", {"sampler": own, "mask": True, "padding": 40, "width": 96}),
        ("mask.karras", {"sampler": "dpmpp_2m", "schedule": "karras", "mask": True, "strength": 1.0}),
    ]
    return [(name, {**usual, **case}) for name, case in found]


def draw(pipe, config, case, picture, mask):
    """The final latents."""
    kinds = {
        (False, False): StableDiffusionImg2ImgPipeline,
        (False, True): StableDiffusionInpaintPipeline,
        (True, False): StableDiffusionXLImg2ImgPipeline,
        (True, True): StableDiffusionXLInpaintPipeline,
    }
    components = {**pipe.components, "scheduler": scheduler(case["sampler"], config, case["schedule"] == "karras")}
    changed = kinds[is_xl(pipe), case["mask"]](**components)
    changed.set_progress_bar_config(disable=True)
    size = (case["width"], case["height"])
    inputs = {"image": picture}
    if case["mask"]:
        inputs |= {"mask_image": mask, "height": case["height"], "width": case["width"]}
        inputs["padding_mask_crop"] = case["padding"]
    else:
        # This pipeline draws at its picture's size: resized as its own preprocessing would, by the same filter.
        inputs["image"] = changed.image_processor.resize(picture, size[1], size[0])
    return changed(
        prompt=case["prompt"],
        negative_prompt=case["negative_prompt"],
        num_inference_steps=case["steps"],
        strength=case["strength"],
        guidance_scale=case["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        output_type="latent" if case["padding"] is None else "pil",
        **inputs,
    ).images


def write_changes(pipe, folder):
    config = pipe.scheduler.config
    picture, mask = input_picture(3), input_mask()
    rows, tensors = [], {}
    for name, case in cases(config, pipe.vae.config.latent_channels):
        drawn = draw(pipe, config, case, picture, mask)
        whole = case["padding"] is None
        tensors[name] = decode(pipe, drawn) if whole else torch.from_numpy(np.array(drawn[0]))
        rows.append({"name": name, **case})
    write_compact(folder / "changes.json", rows)
    write_tensors(folder / "changes.safetensors", tensors)


def inpainting_unet(unet):
    """The UNet with five more input channels, as one that was made for inpainting: a mask and what is kept."""
    channels = unet.config.in_channels
    made = UNet2DConditionModel.from_config(unet.config, in_channels=2 * channels + 1)
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    more = torch.from_numpy(np.random.default_rng(9).standard_normal((first.shape[0], channels + 1, 3, 3)))
    # Loud enough to be seen, and exact in half precision.
    more = (more.float() * first.std()).half().float()
    weights["conv_in.weight"] = torch.cat([first, more], 1)
    made.load_state_dict(weights)
    return made.eval()


def inpainting_cases(pipe, config):
    own = OWN[config["_class_name"]]
    usual = {**USUAL, "strength": 1.0, "mask": True, "padding": None, "text_alone": False}
    found = [
        ("whole", {"sampler": own}),
        ("part", {"sampler": own, "strength": 0.6, "negative_prompt": NEGATIVE}),
        ("ancestral", {"sampler": "euler_ancestral", "strength": 0.75}),
        ("heun", {"sampler": "heun", "strength": 0.5}),
        ("unguided", {"sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 1.0}),
        ("region", {"sampler": own, "padding": 4, "strength": 0.8}),
    ]
    if is_xl(pipe):
        # A white mask: nothing of the picture is seen. The other tiny autoencoder gives grey deviations in the
        # thousands, so that rounding alone decides its picture: one millionth on its weights is 43 dB.
        found.append(("text_alone", {"sampler": own, "text_alone": True}))
    return [(name, {**usual, **case}) for name, case in found]


def write_inpainting(pipe, folder):
    """Pictures by a checkpoint that was made for inpainting, and the weights that are its own."""
    config = pipe.scheduler.config
    pipe.unet = inpainting_unet(pipe.unet)
    picture, mask = input_picture(3), input_mask()
    white = Image.new("L", INPUT_SIZE, 255)
    rows, tensors = [], {"conv_in.weight": pipe.unet.state_dict()["conv_in.weight"]}
    for name, case in inpainting_cases(pipe, config):
        drawn = draw(pipe, config, case, picture, white if case["text_alone"] else mask)
        whole = case["padding"] is None
        tensors[name] = decode(pipe, drawn) if whole else torch.from_numpy(np.array(drawn[0]))
        rows.append({"name": name, **case})
    write_compact(folder / "inpainting.json", rows)
    write_tensors(folder / "inpainting.safetensors", tensors)


def write_inputs(folder):
    """What all checkpoints' drawings begin with, and the picture at some sizes by diffusers' filter."""
    folder.mkdir(exist_ok=True)
    picture, mask = input_picture(3), input_mask()
    picture.save(folder / "picture.png", optimize=True)
    mask.save(folder / "mask.png", optimize=True)
    sizes = [(64, 64), (64, 96), (120, 128), (90, 64), (8, 8)]
    tensors = {
        f"{width}x{height}": torch.from_numpy(np.array(picture.resize((width, height), Image.LANCZOS)))
        for width, height in sizes
    }
    write_tensors(folder / "resized.safetensors", tensors)
