"""How much torch's own pictures and networks in a number type are like its f32 on the CPU: torch_likeness.py DTYPE..."""

import argparse
import json
import logging
import os
import sys
import warnings

import torch
from safetensors.torch import load_file

from cells import DIFFUSERS, summary, tell
from likeness import CHECKPOINTS, DATA

sys.path.insert(0, str(DATA.parent))
import expected  # noqa: E402  (of tests/reference)
import pictures  # noqa: E402

from diffusers import UNet2DConditionModel  # noqa: E402

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = ("layouts/nested", "layouts/plain_middle", "layouts/no_middle")


def likeness(found, wanted):
    """As `likeness` in tests/reference/device.rs."""
    found, wanted = found.double().cpu(), wanted.double()
    mean = (found - wanted).square().mean()
    decibels = (10 * torch.log10((wanted.max() - wanted.min()) ** 2 / mean)).item()
    return 0.0 if decibels != decibels else min(decibels, 200.0)


def psnr(found, wanted):
    error = (found.double() - wanted.double()).square().mean().item()
    return 200.0 if error == 0 else 10 * torch.log10(torch.tensor(255.0**2 / error)).item()


def drawn(pipe, config, case):
    """A picture as diffusers' pipelines end: an f16 VAE that asks for it decodes in f32."""
    latents = pictures.draw_by_pipeline(pipe, config, case)
    if latents.dtype == torch.float16 and pipe.vae.config.force_upcast:
        pipe.vae.to(torch.float32)
        picture = pictures.decode(pipe, latents.float())
        pipe.vae.to(latents.dtype)
        return picture
    return pictures.decode(pipe, latents)


def of_pictures(name, pipe, found, failures):
    """Every case that diffusers' own pipeline draws; a layer left out needs `expected.encode`, which is the CPU's."""
    wanted, config = load_file(DATA / name / "pictures.safetensors"), pipe.scheduler.config
    for case in json.loads((DATA / name / "pictures.json").read_text(encoding="utf-8")):
        if case["drawn_by"] != "diffusers" or case["clip_skip"] is not None:
            continue
        try:
            found[name, case["name"]] = psnr(drawn(pipe, config, case), wanted[case["name"]])
        except (RuntimeError, TypeError, ValueError) as error:
            failures.append(f"{name}, {case['name']}: {error}"[:200])


def of_networks(name, pipe, found):
    folder, device, dtype = DATA / name, pipe.device, pipe.unet.dtype
    text = load_file(folder / "text.safetensors")
    for row in range(len(text["embeddings"])):
        if expected.is_xl(pipe):
            states, _, pooled, _ = pipe.encode_prompt(expected.PROMPTS[row], device=device, do_classifier_free_guidance=False)
            found[name, f"text {row} pooled"] = likeness(pooled, text["pooled"][row : row + 1])
        else:
            states = pipe.encode_prompt(expected.PROMPTS[row], device, 1, False)[0]
        found[name, f"text {row}"] = likeness(states, text["embeddings"][row : row + 1])
    given = load_file(folder / "unet.safetensors")
    here = {key: given[key].to(device, dtype) for key in given if key not in ("timesteps", "outputs", "odd_output")}
    added = {key: here[key] for key in ("text_embeds", "time_ids") if key in here}

    def unet(sample, timestep):
        return pipe.unet(here[sample], timestep.to(device), here["encoder_hidden_states"], added_cond_kwargs=added).sample

    for timestep, wanted in zip(given["timesteps"], given["outputs"]):
        found[name, f"unet {timestep.item():g}"] = likeness(unet("sample", timestep), wanted)
    found[name, "unet odd size"] = likeness(unet("odd_sample", given["timesteps"][0]), given["odd_output"])
    vae = load_file(folder / "vae.safetensors")
    decoded = pipe.vae.decode(vae["latents"].to(device, dtype)).sample
    found[name, "vae decoded"] = likeness(decoded, vae["decoded"])
    for kind in ("", "odd_"):
        moments = pipe.vae.encode(vae[f"{kind}image"].to(device, dtype)).latent_dist
        for part in ("mean", "logvar"):
            key = f"{kind}encoded_{part}"
            found[name, f"vae {key}"] = likeness(getattr(moments, part), vae[key])


def of_layout(name, device, dtype, found):
    unet = UNet2DConditionModel.from_pretrained(DATA / name / "model", subfolder="unet", local_files_only=True)
    unet = unet.to(device, dtype)
    given = load_file(DATA / name / "unet.safetensors")
    here = {key: given[key].to(device, dtype) for key in given}
    added = {key: here[key] for key in ("text_embeds", "time_ids") if key in here}
    output = unet(here["sample"], 321, here["encoder_hidden_states"], added_cond_kwargs=added).sample
    found[name, "unet 321"] = likeness(output, given["output"])


@torch.no_grad()
def of_dtype(dtype, device):
    of_all_pictures, of_all_networks, failures = {}, {}, []
    for name in LAYOUTS:
        of_layout(name, device, DTYPES[dtype], of_all_networks)
    for name in CHECKPOINTS:
        pipe = expected.load(name, DATA / name / "model").to(device, DTYPES[dtype])
        unfinished = name != CHECKPOINTS[-1]
        of_networks(name, pipe, of_all_networks)
        tell(f"networks.{dtype}", DIFFUSERS, **summary(of_all_networks), unfinished=unfinished)
        of_pictures(name, pipe, of_all_pictures, failures)
        tell(f"pictures.{dtype}", DIFFUSERS, **summary(of_all_pictures), failures=failures, unfinished=unfinished)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dtypes", nargs="+", choices=DTYPES)
    args = parser.parse_args()
    device = os.environ["DEVICE"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device == "cpu":
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for dtype in args.dtypes:
        of_dtype(dtype, device)


if __name__ == "__main__":
    main()
