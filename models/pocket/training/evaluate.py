"""Measures the exported model: is the background the asked one, and the object, and the style?

60 prompts spread over the objects, each with a random style and colour, one fixed seed each.
The corner figure: the mean colour of the four 8×8 corners is nearest to the asked colour.
The neighbour figure: among all objects' thumbnails in all styles, composited over the asked colour,
the one with the least mean squared difference to the picture, reduced to 32×32 by averaging, or to its
mirror image, is the asked object or shares its head noun. The style figure: that thumbnail has the
asked style.
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


def load_objects():
    """objects.json, and the thumbnails: [style, object, height, width, 4]."""
    described = json.loads((MODEL / "objects.json").read_text(encoding="utf-8"))
    sheet = np.asarray(Image.open(MODEL / "thumbnails.png").convert("RGBA"), dtype=np.float32)
    shape = len(described["styles"]), len(described["objects"])
    thumbnails = []
    for index in range(shape[0] * shape[1]):
        y, x = index // COLUMNS * THUMBNAIL, index % COLUMNS * THUMBNAIL
        thumbnails.append(sheet[y : y + THUMBNAIL, x : x + THUMBNAIL])
    return described, np.stack(thumbnails).reshape(*shape, THUMBNAIL, THUMBNAIL, 4)


def prompts(described, count):
    """(prompt, object's number, style's number, colour), objects at even distances, the rest at random."""
    rng = random.Random(3)
    objects, colours, styles = described["objects"], list(described["colours"]), described["styles"]
    chosen = []
    for turn in range(count):
        number = turn * len(objects) // count
        style, colour = rng.randrange(len(styles)), rng.choice(colours)
        # The default style's wordings include saying nothing.
        unsaid = [""] if styles[style]["name"] == described["default_style"] else []
        word = rng.choice(unsaid + styles[style]["words"])
        name = objects[number]["name"]
        article = "an" if name[0] in "aeiou" else "a"
        ground = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"
        subject = f"{article} {name}, {word}," if word else f"{article} {name}"
        chosen.append((f"{subject} on {ground}", number, style, colour))
    return chosen


def nearest_colour(picture, colours):
    corners = np.concatenate(
        [picture[y, x].reshape(-1, 3) for y in (slice(8), slice(-8, None)) for x in (slice(8), slice(-8, None))]
    ).mean(axis=0)
    return min(colours, key=lambda name: np.square(corners - colours[name]).sum())


def nearest_picture(picture, ground, thumbnails):
    """The numbers of the style and of the object."""
    side = data.IMAGE_SIZE // THUMBNAIL
    small = picture.reshape(THUMBNAIL, side, THUMBNAIL, side, 3).mean(axis=(1, 3))
    alpha = thumbnails[..., 3:] / 255
    placed = thumbnails[..., :3] * alpha + np.asarray(ground) * (1 - alpha)
    views = np.stack([small, small[:, ::-1]])
    distances = np.stack([np.square(placed - view).mean(axis=(2, 3, 4)) for view in views]).min(axis=0)
    return np.unravel_index(distances.argmin(), distances.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--steps", type=int, default=defaults()["default_steps"])
    parser.add_argument("--guidance", type=float, default=defaults()["default_guidance_scale"])
    parser.add_argument("--sheet", help="write a contact sheet here")
    parser.add_argument("--verbose", action="store_true", help="list what went wrong")
    asked = parser.parse_args()
    described, thumbnails = load_objects()
    objects, colours, styles = (described[key] for key in ("objects", "colours", "styles"))
    pipe = pipeline()
    corners = neighbours = in_style = 0
    pictures = []
    for seed, (prompt, number, style, colour) in enumerate(prompts(described, asked.count)):
        image = pipe(
            prompt,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        pictures.append(image)
        picture = np.asarray(image, dtype=np.float32)
        corner = nearest_colour(picture, colours)
        found_style, found = nearest_picture(picture, colours[colour], thumbnails)
        hits = (corner == colour, objects[found]["head"] == objects[number]["head"], found_style == style)
        corners, neighbours, in_style = (n + hit for n, hit in zip((corners, neighbours, in_style), hits))
        if asked.verbose and not all(hits):
            print(f"{prompt}: {objects[found]['name']}, {styles[found_style]['name']}, on {corner}", flush=True)
    print(f"of {asked.count}: corners {corners}, neighbours {neighbours}, styles {in_style}")
    if asked.sheet:
        columns = 10
        side = data.IMAGE_SIZE
        sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
        for index, image in enumerate(pictures):
            sheet.paste(image, (index % columns * side, index // columns * side))
        sheet.save(asked.sheet, optimize=True)


if __name__ == "__main__":
    main()
