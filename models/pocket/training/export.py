"""Writes the model's folder as diffusers publishes one, in f16, in one step."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import nets
from catalogue import COLOURS, DEFAULT_COLOUR, DEFAULT_STYLE, STYLES
from text import write_json
from PIL import Image

MODEL = Path(__file__).resolve().parent.parent
PARTS = ("tokenizer", "scheduler", "text_encoder", "unet", "vae")
DEFAULT_STEPS = 10
DEFAULT_GUIDANCE = 1.5
THUMBNAIL = 32


def _save(network, folder: Path, file: str, prefix=""):
    """Save a network's configuration and its weights as f16, under published names."""
    folder.mkdir(parents=True)
    if hasattr(network, "save_config"):
        network.save_config(folder)
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("position_ids"):
            continue
        if prefix and not name.startswith(prefix):
            name = prefix + name
        tensors[name] = tensor.detach().cpu().to(torch.float16).contiguous()
    save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / file).chmod(0o644)


def load_weights(network, file: Path, prefix=""):
    """Load what _save wrote, whether the library's own names carry the prefix or not."""
    own = network.state_dict()
    tensors = {}
    for name, tensor in load_file(file).items():
        tensors[name if name in own else name.removeprefix(prefix)] = tensor.float()
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or unexpected:
        raise ValueError(f"{file}: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return network


def export(vae, text_encoder, unet, tokenizer: Path, things, pictures):
    """Write everything beside the model's folder, then put it in the place of the old parts."""
    new = MODEL / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    shutil.copytree(tokenizer, new / "tokenizer")
    nets.scheduler().save_config(new / "scheduler")
    _save(text_encoder, new / "text_encoder", "model.safetensors", "text_model.")
    _save(unet, new / "unet", "diffusion_pytorch_model.safetensors")
    _save(vae, new / "vae", "diffusion_pytorch_model.safetensors")
    write_json(
        new / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": unet.config.get("_diffusers_version", "0.42.1"),
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    write_json(
        new / "darkroom.json",
        {"default_steps": DEFAULT_STEPS, "default_guidance_scale": DEFAULT_GUIDANCE},
    )
    write_objects(new / "objects.json", things)
    thumbnails(pictures).save(new / "thumbnails.png", optimize=True)
    size = sum(f.stat().st_size for f in new.rglob("*") if f.is_file())
    for path in new.iterdir():
        old = MODEL / path.name
        if old.is_dir():
            os.rename(old, MODEL / ".old")
            os.rename(path, old)
            shutil.rmtree(MODEL / ".old")
        else:
            os.replace(path, old)
    new.rmdir()
    print(f"exported {size / 1e6:.1f} MB to {MODEL}", flush=True)


def write_objects(path: Path, things):
    objects = [
        {"name": o.name, "head": o.head, "code": o.code, "group": o.group, "names": o.names}
        for o in things
    ]
    lines = ",\n".join("    " + json.dumps(o, ensure_ascii=False) for o in objects)
    colours = ",\n".join(f'    "{name}": {list(rgb)}' for name, rgb in COLOURS.items())
    styles = ",\n".join(
        "    " + json.dumps({"name": name, "words": words}) for name, words in STYLES.items()
    )
    path.write_text(
        "{\n"
        f'  "default_style": "{DEFAULT_STYLE}",\n'
        f'  "default_colour": "{DEFAULT_COLOUR}",\n'
        f'  "thumbnail_size": {THUMBNAIL},\n'
        f'  "thumbnail_columns": {COLUMNS},\n'
        f'  "styles": [\n{styles}\n  ],\n'
        f'  "colours": {{\n{colours}\n  }},\n'
        f'  "objects": [\n{lines}\n  ]\n'
        "}\n",
        encoding="utf-8",
    )


COLUMNS = 16


def thumbnails(pictures) -> Image.Image:
    """Pictures [style, object, 4, h, w] with alpha, THUMBNAIL pixels each, COLUMNS a row.

    All objects in the first style come first, in their order, and the next style goes on where it
    ends.
    """
    pictures = pictures.reshape(-1, *pictures.shape[2:])
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * THUMBNAIL, rows * THUMBNAIL))
    for index, picture in enumerate(pictures):
        image = Image.fromarray((picture.transpose(1, 2, 0) * 255).round().astype("uint8"), "RGBA")
        image = image.convert("RGBa").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        place = (index % COLUMNS * THUMBNAIL, index // COLUMNS * THUMBNAIL)
        sheet.paste(image.convert("RGBA"), place)
    # Sixteen levels a channel tell the pictures apart as well, in half the bytes.
    return sheet.point(lambda value: (value + 8) // 17 * 17)
