"""The tiny checkpoints: what each is made of, and how it is written in diffusers' layout.

Weights are random, from numpy's generator, scaled so that signals keep their size through the
networks and the pictures have contrast. The files are what published checkpoints look like,
old names and shards included.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from shapes import CHECKPOINTS
from vocabulary import END, START, vocabulary

UNET_STD = 0.9  # of the UNet's output for standard normal latents
PICTURE_STD = 0.5  # of the VAE's output, which is shown from -1 to 1
LATENT_STD = 1.0  # of the VAE's encoding of a random picture, after its scaling factor
CROSS_ATTENTION_GAIN = 1.5  # enough for a prompt to show without guidance
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_json(path: Path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_compact(path: Path, rows):
    """Write a list as JSON, one element a line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def write_tensors(path: Path, tensors):
    """Write a safetensors file that everyone may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def fill(network, rng):
    """Give every parameter a random value: weights by their fan-in, norms about one."""
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
            if parameter.ndim >= 2:
                spread = 1.0 if "embedding.weight" in name else 1 / math.sqrt(parameter[0].numel())
                spread *= CROSS_ATTENTION_GAIN if "attn2.to_out" in name else 1
                parameter.copy_(noise * spread)
            else:
                parameter.copy_(noise * 0.1 + float(name.endswith("weight")))
    return network.eval()


def rescale(layer, factor):
    """Scale a layer's output; the factor is rounded so that it is the same on every machine."""
    factor = float(f"{float(factor):.2g}")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@torch.no_grad()
def make_unet(config, rng):
    unet = fill(UNet2DConditionModel(**config), rng)
    size = config["sample_size"]
    added = {}
    if config.get("addition_embed_type"):
        times = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - times
        added = {"text_embeds": normal(rng, 2, pooled), "time_ids": torch.full((2, 6), 64.0)}
    output = unet(
        normal(rng, 2, config["in_channels"], size, size),
        torch.tensor(500.0),
        normal(rng, 2, 16, config["cross_attention_dim"]),
        added_cond_kwargs=added,
    ).sample
    rescale(unet.conv_out, UNET_STD / output.std())
    return unet


@torch.no_grad()
def make_vae(config, rng):
    vae = fill(AutoencoderKL(**config), rng)
    latents = normal(rng, 2, config["latent_channels"], 8, 8) / config["scaling_factor"]
    rescale(vae.decoder.conv_out, PICTURE_STD / vae.decode(latents).sample.std())
    mean = vae.encode(normal(rng, 1, 3, 32, 32).clamp(-1, 1)).latent_dist.mean
    rescale(vae.quant_conv, LATENT_STD / config["scaling_factor"] / mean.std())
    return vae


def save_weights(network, folder: Path, file: str, dtype, rename=lambda name: name, extra=None):
    """Write a network's tensors as `dtype` under the names of published files."""
    tensors = {rename(name): t.detach().to(dtype) for name, t in network.state_dict().items()}
    tensors.update(extra or {})
    write_tensors(folder / file, tensors)
    return tensors


def shard(folder: Path, file: str, tensors, count=2):
    """Replace `file` by `count` files and their index."""
    (folder / file).unlink()
    stem, names = file.removesuffix(".safetensors"), sorted(tensors)
    weight_map = {}
    for number in range(count):
        part = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[len(names) * number // count : len(names) * (number + 1) // count]
        write_tensors(folder / part, {name: tensors[name] for name in mine})
        weight_map.update(dict.fromkeys(mine, part))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def text_name(name):
    """Published text encoders keep a prefix that newer versions of transformers drop."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def old_vae_name(name):
    for new, old in OLD_VAE_NAMES.items():
        if "attentions" in name:
            name = name.replace(f".{new}.", f".{old}.")
    return name


def save_config(network, folder: Path):
    config = {key: value for key, value in network.config.items() if key != "_use_default_values"}
    write_json(folder / "config.json", {"_class_name": type(network).__name__, "_diffusers_version": "0.42.1", **config})


def save_text_encoder(shape, number, folder: Path, rng, vocab):
    config = {
        "vocab_size": len(vocab),
        "max_position_embeddings": shape["window"],
        "bos_token_id": vocab[START],
        "eos_token_id": vocab[END],
        "pad_token_id": 1,
        **shape["text"][number],
    }
    kind = CLIPTextModelWithProjection if number else CLIPTextModel
    encoder = fill(kind(CLIPTextConfig(**config)), rng)
    extra = {}
    if shape["position_ids"]:
        extra["text_model.embeddings.position_ids"] = torch.arange(shape["window"])[None]
    save_weights(encoder, folder, f"model{shape['variant']}.safetensors", DTYPES[shape["dtype"]], text_name, extra)
    write_json(folder / "config.json", {"architectures": [kind.__name__], "model_type": "clip_text_model", **config})


def save_tokenizer(shape, pad, folder: Path, vocab, merges):
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {"model_max_length": shape["window"], "tokenizer_class": "CLIPTokenizer", **special}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)
    if shape["tokenizer_json"]:
        tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, **special)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        return
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_index(shape, folder: Path):
    xl = len(shape["text"]) > 1
    index = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", shape["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if xl:
        index["force_zeros_for_empty_prompt"] = True
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        index["requires_safety_checker"] = False
        index["safety_checker"] = [None, None]
    write_json(folder / "model_index.json", index)


def write_checkpoint(name, folder: Path):
    """Write one of `CHECKPOINTS` to `folder`, in place of what is there."""
    shape = CHECKPOINTS[name]
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(shape["seed"])
    vocab, merges = vocabulary(shape["merges"])
    save_index(shape, folder)
    write_json(folder / "scheduler" / "scheduler_config.json", shape["scheduler"])
    for number, pad in enumerate(shape["pad"]):
        suffix = "_2" if number else ""
        save_tokenizer(shape, pad, folder / f"tokenizer{suffix}", vocab, merges)
        save_text_encoder(shape, number, folder / f"text_encoder{suffix}", rng, vocab)
    dtype, file = DTYPES[shape["dtype"]], f"diffusion_pytorch_model{shape['variant']}.safetensors"
    unet, vae = make_unet(shape["unet"], rng), make_vae(shape["vae"], rng)
    for network, part in ((unet, "unet"), (vae, "vae")):
        save_config(network, folder / part)
        old = shape["old_vae_names"] and part == "vae"
        tensors = save_weights(network, folder / part, file, dtype, old_vae_name if old else str)
        if shape["shards"] and part == "unet":
            shard(folder / part, file, tensors)
