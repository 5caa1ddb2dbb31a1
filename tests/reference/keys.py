"""The keys that the classes of diffusers and transformers take from a checkpoint's configuration: data/keys.json."""

import inspect

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig

from checkpoints import write_json

CLASSES = [
    UNet2DConditionModel,
    AutoencoderKL,
    CLIPTextConfig,
    StableDiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    LatentConsistencyModelPipeline,
    LatentConsistencyModelImg2ImgPipeline,
    AutoencoderTiny,
]


def keys(kind):
    """The names of a class's parameters, in its order."""
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")]


def write(folder):
    write_json(folder / "keys.json", {kind.__name__: keys(kind) for kind in CLASSES})
