"""UNets in the layouts of distilled models, and what diffusers computes with them: data/layouts/."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
)

from checkpoints import make_unet, normal, save_config, save_weights, write_tensors
from shapes import CHECKPOINTS, unet

# One for each image of a batch; the first is no guidance.
GUIDANCE_SCALES = [1.0, 8.5]
PROMPT = "a photo of a red fox in the snow"
# What fits the text encoders of the tiny checkpoints, so that pictures can be drawn in these layouts, too.
SMALL = {"sample_size": 8, "norm_num_groups": 4, "cross_attention_dim": 32}
XL = CHECKPOINTS["sdxl"]["unet"]
ADDED = {
    key: XL[key]
    for key in (
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "cross_attention_dim",
    )
}

LAYOUTS = {
    # As SSD-1B: each attention has its own number of layers, and the way up others than the way down.
    "nested": unet(
        [8, 8, 16],
        [False, True, True],
        **{**SMALL, **ADDED},
        layers_per_block=2,
        attention_head_dim=[1, 2, 4],
        use_linear_projection=True,
        transformer_layers_per_block=[1, [2, 1], [3, 1]],
        reverse_transformer_layers_per_block=[[1, 2, 1], [2, 1, 3], 1],
    ),
    # As small models have it: one residual block in the middle, and other numbers of blocks at each level.
    "plain_middle": unet(
        [8, 16],
        [True, True],
        **SMALL,
        layers_per_block=[1, 2],
        attention_head_dim=[2, 4],
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[2, 1],
        time_embedding_dim=24,
    ),
    # As tiny-sd; a switch that is null is off.
    "no_middle": unet(
        [8, 8, 16],
        [True, True, False],
        **SMALL,
        layers_per_block=[2, 1, 1],
        attention_head_dim=[1, 4, 2],
        mid_block_type=None,
        flip_sin_to_cos=None,
    ),
    # Options that published checkpoints leave alone; the first level halves odd sizes rounding down.
    "options": unet(
        [8, 16],
        [True, True],
        **SMALL,
        layers_per_block=1,
        attention_head_dim=[2, 4],
        center_input_sample=True,
        mid_block_scale_factor=1.6,
        downsample_padding=0,
        only_cross_attention=[True, False],
        resnet_time_scale_shift="scale_shift",
        conv_in_kernel=1,
        conv_out_kernel=1,
    ),
    # As latent consistency models: told the guidance scale.
    "told_guidance": unet(
        [8, 16],
        [True, True],
        **SMALL,
        layers_per_block=1,
        attention_head_dim=[2, 4],
        only_cross_attention=True,
        mid_block_type="UNetMidBlock2D",
        mid_block_scale_factor=0.7,
        time_cond_proj_dim=12,
    ),
}


@torch.no_grad()
def write(folder):
    for number, (name, config) in enumerate(LAYOUTS.items()):
        rng = np.random.default_rng(80 + number)
        network = make_unet(config, rng)
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
        model = folder / name / "model" / "unet"
        save_config(network, model)
        save_weights(network, model, "diffusion_pytorch_model.safetensors", torch.float16)
        given = {
            "sample": normal(rng, 2, 4, 6, 10),
            "encoder_hidden_states": normal(rng, 2, 5, config["cross_attention_dim"]),
        }
        added = {}
        if config.get("addition_embed_type"):
            added = {"text_embeds": normal(rng, 2, 32), "time_ids": torch.full((2, 6), 64.0)}
        told = None
        if config.get("time_cond_proj_dim"):
            scales = torch.tensor(GUIDANCE_SCALES) - 1
            told = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales, config["time_cond_proj_dim"])

        def output(sample):
            return network(
                sample, torch.tensor(321.0), given["encoder_hidden_states"], timestep_cond=told, added_cond_kwargs=added
            ).sample

        wanted = {"output": output(given["sample"])}
        if name == "options":
            given["odd_sample"] = normal(rng, 2, 4, 7, 9)
            wanted["odd_output"] = output(given["odd_sample"])
        write_tensors(folder / name / "unet.safetensors", {**given, **added, **wanted})
        if told is not None:
            write_pictures(network, folder / name)


def write_pictures(network, folder):
    """Pictures of sd15's other components with a network that is told the guidance scale."""
    pipe = StableDiffusionPipeline.from_pretrained(
        Path(__file__).resolve().parent / "data" / "sd15" / "model", unet=network, dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pictures = {}
    for scale in GUIDANCE_SCALES:
        generator = torch.Generator("cpu").manual_seed(42)
        drawn = pipe(
            PROMPT, num_inference_steps=4, guidance_scale=scale, height=64, width=64, generator=generator, output_type="np"
        ).images[0]
        pictures[f"ddim.{scale}"] = torch.from_numpy((drawn * 255).round().astype(np.uint8))
    pictures["lcm"] = consistent_picture(pipe)
    write_tensors(folder / "pictures.safetensors", pictures)


def consistent_picture(pipe):
    """What diffusers' pipeline for latent consistency models draws, with a published model's scheduler."""
    published = Path(__file__).resolve().parent.parent / "published" / "lcm-dreamshaper-v7.json"
    scheduler = LCMScheduler.from_config(json.loads(published.read_text())["scheduler/scheduler_config.json"])
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    drawer = LatentConsistencyModelPipeline(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    drawer.set_progress_bar_config(disable=True)
    drawn = drawer(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=8.5,
        height=64,
        width=64,
        generator=torch.Generator("cpu").manual_seed(42),
        output_type="np",
    ).images[0]
    return torch.from_numpy((drawn * 255).round().astype(np.uint8))
