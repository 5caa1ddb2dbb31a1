"""Times OpenVINO on the CPU with the UNet and the decoder of a checkpoint: python3 benches/time_openvino.py CHECKPOINT.

CHECKPOINT is a directory in diffusers layout. Needs the packages of tests/reference/requirements.txt and openvino. Both
networks are converted for one size first, which takes a minute and is not counted; the UNet for two latents, as guidance
needs it. Prints for each the median seconds of its runs, after one that does not count.
"""

import argparse
import statistics
import time

import numpy as np
import openvino
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

TIMESTEP = 500
WINDOW = 77


class Unet(torch.nn.Module):
    """Its output as a plain tensor."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, latents, timestep, text):
        return self.network(latents, timestep, encoder_hidden_states=text, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """The way from latents to pixels alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, latents):
        return self.network.decode(latents, return_dict=False)[0]


def converted(network, inputs):
    """A model of these shapes alone, which lets OpenVINO plan its memory."""
    with torch.inference_mode():
        model = openvino.convert_model(network, example_input=inputs)
    model.reshape({model.input(number): list(given.shape) for number, given in enumerate(inputs)})
    return model


def median_seconds(model, inputs, args):
    options = {
        "INFERENCE_PRECISION_HINT": args.dtype,
        "INFERENCE_NUM_THREADS": args.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    inputs = [np.asarray(given) for given in inputs]
    seconds = []
    for _ in range(args.runs + 1):
        began = time.perf_counter()
        compiled(inputs)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--size", type=int, default=256, help="side in pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    options = {"torch_dtype": torch.float32, "local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(args.checkpoint, subfolder="unet", **options).eval()
    vae = AutoencoderKL.from_pretrained(args.checkpoint, subfolder="vae", **options).eval()
    side = args.size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(2, unet.config.in_channels, side, side)
    text = torch.randn(2, WINDOW, unet.config.cross_attention_dim)
    stages = [
        ("unet_pair", Unet(unet), (latents, torch.tensor(TIMESTEP), text)),
        ("vae_decode", Decoder(vae), (latents[:1],)),
    ]
    for name, network, inputs in stages:
        print(f"{name:<10} {median_seconds(converted(network, inputs), inputs, args):9.4f} s", flush=True)


if __name__ == "__main__":
    main()
