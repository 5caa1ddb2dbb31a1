"""The shapes of the tiny checkpoints: each a row of data, as unlike the others as possible."""

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def unet(channels, attends, **other):
    """A UNet's configuration: its channels by level and which levels attend to the text."""
    return {
        "block_out_channels": channels,
        "down_block_types": [CROSS_DOWN if a else DOWN for a in attends],
        "up_block_types": [CROSS_UP if a else UP for a in reversed(attends)],
        "in_channels": 4,
        "out_channels": 4,
        **other,
    }


def vae(channels, **other):
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "latent_channels": 4,
        **other,
    }


# What a published file may or may not have; each checkpoint names what it has.
PLAIN = {
    "dtype": "f32",
    "variant": "",
    "shards": False,
    "position_ids": False,
    "old_vae_names": False,
    "tokenizer_json": False,
    "pad": ["<|endoftext|>"],
}

CHECKPOINTS = {
    "sd15": {
        **PLAIN,
        "seed": 15,
        "dtype": "f16",
        "position_ids": True,
        "window": 16,
        "merges": 200,
        "text": [
            {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "hidden_act": "quick_gelu",
                "projection_dim": 32,
                # The eos_token_id that CLIP's published configurations have, which is not the tokenizer's.
                "eos_token_id": 2,
            }
        ],
        # The file of stable-diffusion-v1-5, to the letter: it has no timestep_spacing.
        "scheduler": {
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.6.0",
            **BETAS,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
            "clip_sample": False,
        },
        "unet": unet(
            [8, 16, 32],
            [True, True, False],
            sample_size=8,
            layers_per_block=1,
            attention_head_dim=4,
            norm_num_groups=8,
            cross_attention_dim=32,
        ),
        "vae": vae(
            [8, 8, 16, 24], sample_size=64, layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215
        ),
    },
    "sd2": {
        **PLAIN,
        "seed": 2,
        "dtype": "bf16",
        "shards": True,
        "old_vae_names": True,
        "pad": ["!"],
        "window": 24,
        "merges": 120,
        "text": [
            {
                "hidden_size": 40,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 5,
                "hidden_act": "gelu",
                "projection_dim": 48,
            }
        ],
        "scheduler": {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": "0.8.0",
            **BETAS,
            "clip_sample": False,
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
        },
        "unet": unet(
            [8, 16, 16, 24],
            [True, True, True, False],
            sample_size=16,
            layers_per_block=1,
            attention_head_dim=[1, 2, 4, 3],
            norm_num_groups=8,
            cross_attention_dim=40,
            use_linear_projection=True,
        ),
        "vae": vae([8, 16, 24], sample_size=64, layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215),
    },
    "sd2v": {
        **PLAIN,
        "seed": 21,
        "tokenizer_json": True,
        "window": 20,
        "merges": 60,
        "text": [
            {
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "hidden_act": "gelu",
                "projection_dim": 24,
            }
        ],
        "scheduler": {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": "0.42.1",
            **BETAS,
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "set_alpha_to_one": True,
            "steps_offset": 1,
            "timestep_spacing": "trailing",
            "trained_betas": None,
        },
        "unet": unet(
            [8, 16],
            [False, True],
            sample_size=32,
            layers_per_block=2,
            attention_head_dim=[2, 4],
            norm_num_groups=4,
            cross_attention_dim=24,
            in_channels=8,
            out_channels=8,
            use_linear_projection=True,
            upcast_attention=True,
        ),
        "vae": vae(
            [8, 16],
            sample_size=64,
            layers_per_block=2,
            norm_num_groups=2,
            latent_channels=8,
            scaling_factor=0.7,
            mid_block_add_attention=False,
        ),
    },
    "sdxl": {
        **PLAIN,
        "seed": 10,
        "dtype": "f16",
        "variant": ".fp16",
        "pad": ["<|endoftext|>", "!"],
        "window": 16,
        "merges": 160,
        "text": [
            {
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "hidden_act": "quick_gelu",
                "projection_dim": 24,
                "eos_token_id": 2,
            },
            {
                "hidden_size": 40,
                "intermediate_size": 80,
                "num_hidden_layers": 4,
                "num_attention_heads": 5,
                "hidden_act": "gelu",
                "projection_dim": 32,
                "eos_token_id": 2,
            },
        ],
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            "_diffusers_version": "0.19.0.dev0",
            **BETAS,
            "clip_sample": False,
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "trained_betas": None,
            "use_karras_sigmas": False,
        },
        "unet": unet(
            [8, 16, 16],
            [False, True, True],
            sample_size=8,
            layers_per_block=2,
            transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[1, 2, 4],
            norm_num_groups=8,
            cross_attention_dim=64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
        "vae": vae(
            [8, 8, 16, 16],
            sample_size=64,
            layers_per_block=2,
            norm_num_groups=4,
            scaling_factor=0.13025,
            force_upcast=True,
        ),
    },
}
