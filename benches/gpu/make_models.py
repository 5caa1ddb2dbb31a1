"""Writes Stable Diffusion 1.5 and XL at full size with random f16 weights: python3 benches/gpu/make_models.py FOLDER [NAME].

NAME is sd15 (2.1 GB) or sdxl (6.9 GB); both by default. Needs nothing but Python's own library: the configurations are
those of `tests/published`, the shapes follow from them (`shapes.py`), and the tokenizers are the small ones of
`tests/reference`, which suffice to draw. Speed does not depend on the weights' values. They are uniform, scaled by each
layer's inputs as torch does it, so that nothing overflows in f16. `--check` compares the names and shapes with
diffusers' and transformers' own instead of writing anything.
"""

import argparse
import json
import random
import shutil
import struct
import sys
from pathlib import Path

import shapes

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = {"sd15": "sd-1.5", "sdxl": "sdxl-base-1.0"}
# Whose tokenizer is taken, by the name of the folder.
TOKENIZERS = {"tokenizer": "sd15", "tokenizer_2": "sdxl"}
NETWORKS = {"text_encoder": shapes.text_encoder, "text_encoder_2": shapes.text_encoder, "unet": shapes.unet, "vae": shapes.vae}
FILES = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}
# Parts of the pipelines that nobody draws with.
LEFT_OUT = ("safety_checker", "feature_extractor")
BLOCK = 1 << 16  # random numbers for each scale, which a tensor repeats
EMBEDDING_SPREAD = 0.02


def published(name):
    """The JSON files of a published checkpoint, by their paths."""
    files = json.loads((ROOT / "tests" / "published" / f"{PUBLISHED[name]}.json").read_text(encoding="utf-8"))
    for part in LEFT_OUT:
        files["model_index.json"].pop(part, None)
    return files


def tensors(files, component):
    """[(name, shape)] of a network."""
    return list(NETWORKS[component](files[f"{component}/config.json"]))


class Values:
    """Random f16 numbers, a block for each scale, made once."""

    def __init__(self, seed):
        self.random, self.blocks = random.Random(seed), {}

    def block(self, spread):
        if spread not in self.blocks:
            uniform = self.random.uniform
            self.blocks[spread] = struct.pack(f"<{BLOCK}e", *(uniform(-spread, spread) for _ in range(BLOCK)))
        return self.blocks[spread]

    def write(self, file, name, shape):
        count = 1
        for side in shape:
            count *= side
        if len(shape) == 1:
            is_norm_weight = name.endswith(".weight")
            file.write(struct.pack("<e", 1.0 if is_norm_weight else 0.0) * count)
            return
        inputs = count // shape[0]
        spread = EMBEDDING_SPREAD if "embedding.weight" in name else inputs**-0.5
        block = self.block(spread)
        # No two tensors begin alike.
        offset = 2 * self.random.randrange(BLOCK)
        left = 2 * count
        while left:
            piece = memoryview(block)[offset : offset + left]
            file.write(piece)
            left -= len(piece)
            offset = 0


def write_safetensors(path, named, values):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in named:
        count = 1
        for side in shape:
            count *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + 2 * count]}
        offset += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=1 << 20) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in named:
            values.write(file, name, shape)


def write(name, folder):
    """The whole checkpoint; the index comes last, so that what is there is whole."""
    files = published(name)
    values = Values(name)
    for path, content in files.items():
        component = path.split("/")[0]
        if "tokenizer" in component or path == "model_index.json":
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content, indent=1), encoding="utf-8")
        if component in NETWORKS:
            file = FILES.get(component, "model.safetensors")
            write_safetensors(folder / component / file, tensors(files, component), values)
    for component, donor in TOKENIZERS.items():
        if component in files["model_index.json"]:
            copy_tokenizer(ROOT / "tests" / "reference" / "data" / donor / "model" / component, folder / component, files)
    (folder / "model_index.json").write_text(json.dumps(files["model_index.json"], indent=1), encoding="utf-8")


def copy_tokenizer(source, target, files):
    """The small tokenizer with the window of the full-size encoder."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    config = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["model_max_length"] = files["text_encoder/config.json"]["max_position_embeddings"]
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def check(name):
    """What differs from the networks of diffusers and transformers; nothing is the answer to hope for."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    files, wrong = published(name), []
    for component in NETWORKS:
        config = files.get(f"{component}/config.json")
        if config is None:
            continue
        with torch.device("meta"):
            if component.startswith("text"):
                kind = CLIPTextModelWithProjection if "Projection" in config["architectures"][0] else CLIPTextModel
                network = kind(CLIPTextConfig.from_dict(config))
            else:
                network = (UNet2DConditionModel if component == "unet" else AutoencoderKL).from_config(config)
        # Newer transformers have dropped the prefix that published files have.
        wanted = {key.removeprefix("text_model."): tuple(x.shape) for key, x in network.named_parameters()}
        found = {key.removeprefix("text_model."): shape for key, shape in tensors(files, component)}
        wrong += [f"{name}/{component}: {pair}" for pair in wanted.items() ^ found.items()]
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the checkpoints go, each in a folder of its name")
    parser.add_argument("names", nargs="*", default=list(PUBLISHED), help="sd15, sdxl; both by default")
    parser.add_argument("--check", action="store_true", help="compare names and shapes with diffusers' and write nothing")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in PUBLISHED]:
        sys.exit(f"{unknown[0]!r} is none of {', '.join(PUBLISHED)}")
    for name in args.names:
        if args.check:
            wrong = check(name)
            print(f"{name}: {len(wrong)} differ", *wrong[:20], sep="\n")
            if wrong:
                sys.exit(1)
        elif not (args.folder / name / "model_index.json").exists():
            write(name, args.folder / name)
            print(f"{args.folder / name}", flush=True)


if __name__ == "__main__":
    main()
