"""UNets in the layouts of distilled models, and what diffusers computes with them: data/layouts/."""

import numpy as np
import torch

from checkpoints import make_unet, normal, save_config, save_weights, write_tensors
from shapes import CHECKPOINTS, unet

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
        output = network(
            given["sample"], torch.tensor(321.0), given["encoder_hidden_states"], added_cond_kwargs=added
        ).sample
        write_tensors(folder / name / "unet.safetensors", {**given, **added, "output": output})
