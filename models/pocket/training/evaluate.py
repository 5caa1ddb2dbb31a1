"""Measures the exported model: is the background the asked one, and the object?

60 prompts spread over the objects, each with a random wording and colour, one fixed seed each.
The corner figure: the mean colour of the four 8×8 corners is nearest to the asked colour.
The neighbour figure: among all objects' thumbnails composited over the asked colour, the one with
the least mean squared difference to the picture, reduced to 32×32 by averaging, is the asked
object or shares its head noun.
"""

import argparse
import json
import random

import numpy as np
import torch
from PIL import Image

import data
from draw import defaults, pipeline
from export import COLUMNS, MODEL, THUMBNAIL

STYLES = ("", ", 3d style", ", 3d render", " emoji")


def load_objects():
    described = json.loads((MODEL / "objects.json").read_text(encoding="utf-8"))
    sheet = np.asarray(Image.open(MODEL / "thumbnails.png").convert("RGBA"), dtype=np.float32)
    thumbnails = []
    for index in range(len(described["objects"])):
        y, x = index // COLUMNS * THUMBNAIL, index % COLUMNS * THUMBNAIL
        thumbnails.append(sheet[y : y + THUMBNAIL, x : x + THUMBNAIL])
    return described["objects"], described["colours"], np.stack(thumbnails)


def prompts(objects, colours, count):
    """(prompt, object's number, colour), objects at even distances, the rest at random."""
    rng = random.Random(3)
    names = list(colours)
    chosen = []
    for turn in range(count):
        number = turn * len(objects) // count
        colour = rng.choice(names)
        name = objects[number]["name"]
        article = "an" if name[0] in "aeiou" else "a"
        ground = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"
        chosen.append((f"{article} {name}{rng.choice(STYLES)} on {ground}", number, colour))
    return chosen


def nearest_colour(picture, colours):
    corners = np.concatenate(
        [picture[y, x].reshape(-1, 3) for y in (slice(8), slice(-8, None)) for x in (slice(8), slice(-8, None))]
    ).mean(axis=0)
    return min(colours, key=lambda name: np.square(corners - colours[name]).sum())


def nearest_object(picture, ground, thumbnails):
    side = data.IMAGE_SIZE // THUMBNAIL
    small = picture.reshape(THUMBNAIL, side, THUMBNAIL, side, 3).mean(axis=(1, 3))
    alpha = thumbnails[..., 3:] / 255
    placed = thumbnails[..., :3] * alpha + np.asarray(ground) * (1 - alpha)
    return int(np.square(placed - small).mean(axis=(1, 2, 3)).argmin())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--steps", type=int, default=defaults()["default_steps"])
    parser.add_argument("--guidance", type=float, default=defaults()["default_guidance_scale"])
    parser.add_argument("--sheet", help="write a contact sheet here")
    parser.add_argument("--verbose", action="store_true", help="list what went wrong")
    asked = parser.parse_args()
    objects, colours, thumbnails = load_objects()
    pipe = pipeline()
    corners = neighbours = 0
    pictures = []
    for seed, (prompt, number, colour) in enumerate(prompts(objects, colours, asked.count)):
        image = pipe(
            prompt,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        pictures.append(image)
        picture = np.asarray(image, dtype=np.float32)
        corner = nearest_colour(picture, colours)
        neighbour = nearest_object(picture, colours[colour], thumbnails)
        corners += corner == colour
        hit = objects[neighbour]["head"] == objects[number]["head"]
        neighbours += hit
        if asked.verbose and (corner != colour or not hit):
            print(f"{prompt}: {objects[neighbour]['name']} on {corner}")
    print(f"corners {corners}/{asked.count}, neighbours {neighbours}/{asked.count}")
    if asked.sheet:
        columns = 10
        side = data.IMAGE_SIZE
        sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
        for index, image in enumerate(pictures):
            sheet.paste(image, (index % columns * side, index // columns * side))
        sheet.save(asked.sheet, optimize=True)


if __name__ == "__main__":
    main()
