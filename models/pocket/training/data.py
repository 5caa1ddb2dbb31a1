"""The pictures and the captions: fetched by package name, composited, worded at random."""

import io
import json
import os
import random
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache as remembered
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from catalogue import COLOURS, COLOUR_WORDS, DEFAULT_COLOUR, DEFAULT_STYLE, OBJECTS, STYLES

PACKAGES = {
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "@lobehub/fluent-emoji-flat": "1.1.0",
    "@iconify-json/noto": "1.2.9",
    "emojibase-data": "17.0.0",
}
IMAGE_SIZE = 128
OBJECT_SIZE = 108

# Vector pictures are drawn this large first, and then made small like all others.
VECTOR_SIZE = 256

# What views after the first vary: the object's size, and its place around the centre, in pixels.
VIEW_SIZES = (98, 110)
VIEW_SHIFT = 4

# Groups of emojibase, by number; objects beyond the catalogue come from CARRYING_GROUPS.
GROUPS = {
    0: "faces", 1: "people", 3: "animals and nature", 4: "food",
    5: "travel", 6: "activities", 7: "objects", 8: "symbols",
}
CARRYING_GROUPS = (3, 4, 5, 6, 7)
NOT_CARRYING = ("clock", "o’clock", "thirty", "moon", "globe", "flag", "map", "person", "people")


@dataclass
class Object:
    code: str
    emoji: str
    names: list[str]
    group: str

    @property
    def name(self):
        return self.names[0]

    @property
    def head(self):
        return self.name.split()[-1]


@dataclass
class View:
    """How a picture is placed on its canvas."""

    mirrored: bool = False
    size: int = OBJECT_SIZE
    shift: tuple[int, int] = (0, 0)


def fetch(cache: Path):
    """Download the packages that are not in the cache yet, and unpack them."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, version in PACKAGES.items():
        folder = _package(cache, name)
        if folder.exists():
            continue
        archive = folder.with_name(folder.name + ".tgz")
        if not archive.exists():
            print(f"fetching {name}@{version}")
            subprocess.run(
                ["npm", "pack", f"{name}@{version}"],
                cwd=cache, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        unpacking = folder.with_name(folder.name + ".part")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacking, filter="data")
        os.rename(unpacking / "package", folder)
        unpacking.rmdir()


def _package(cache: Path, name: str):
    return cache / f"{name.removeprefix('@').replace('/', '-')}-{PACKAGES[name]}"


def _emojibase(cache: Path):
    path = _package(cache, "emojibase-data") / "en" / "data.json"
    return json.loads(path.read_text(encoding="utf-8"))


@remembered
def _noto(cache: Path):
    """Noto's pictures come in one file: SVG bodies by name, and the names by code."""
    folder = _package(cache, "@iconify-json/noto")
    return [json.loads((folder / name).read_text()) for name in ("chars.json", "icons.json")]


def _source(cache: Path, style: str, code: str):
    """A picture's WebP file or its SVG text, or None where the style lacks it.

    The packages keep variation selectors in names only sometimes.
    """
    for candidate in (code, code.replace("-fe0f", ""), code + "-fe0f"):
        if style == "noto":
            names, icons = _noto(cache)
            icon = icons["icons"].get(names.get(candidate))
            if icon:
                width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
                opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
                # Some bodies refer to parts of themselves by the older attribute.
                opening += ' xmlns:xlink="http://www.w3.org/1999/xlink">'
                return f"{opening}{icon['body']}</svg>"
        elif style == "flat":
            path = _package(cache, "@lobehub/fluent-emoji-flat") / "assets" / f"{candidate}.svg"
            if path.exists():
                return path.read_text(encoding="utf-8")
        else:
            path = _package(cache, "@lobehub/fluent-emoji-3d") / "assets" / f"{candidate}.webp"
            if path.exists():
                return path
    return None


def _drawn(cache: Path, code: str):
    """Whether every style has a picture of the object."""
    return all(_source(cache, style, code) for style in STYLES)


def objects(cache: Path, count: int | None = None) -> list[Object]:
    """The catalogue's objects, cut or filled up from emojibase's to `count`."""
    entries = {e["hexcode"].lower().replace("-fe0f", ""): e for e in _emojibase(cache)}
    chosen = []
    for line in OBJECTS.strip().splitlines():
        emoji, _, names = line.partition(" ")
        code = "-".join(f"{ord(c):04x}" for c in emoji if ord(c) != 0xFE0F)
        if not _drawn(cache, code):
            raise SystemExit(f"a style has no picture of {emoji}")
        group = GROUPS[entries[code]["group"]]
        chosen.append(Object(code, emoji, [n.strip() for n in names.split("|")], group))
    if count is None:
        return chosen
    taken = {o.code for o in chosen}
    for code, entry in sorted(entries.items(), key=lambda e: e[1].get("order", 0)):
        if len(chosen) >= count:
            break
        label = entry["label"].lower()
        if (
            entry.get("group") in CARRYING_GROUPS
            and _drawn(cache, code)
            and code not in taken
            and len(label) <= 24
            and not any(word in label for word in NOT_CARRYING)
        ):
            chosen.append(Object(code, entry["emoji"], [label], GROUPS[entry["group"]]))
    return chosen[:count]


def _read(source) -> Image.Image:
    """A WebP file or an SVG text as a picture, cropped to what is visible."""
    if isinstance(source, str):
        png = resvg_py.svg_to_bytes(svg_string=source, width=VECTOR_SIZE, skip_system_fonts=True)
        source = io.BytesIO(png)
    image = Image.open(source).convert("RGBA")
    return image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())


def picture(cache: Path, thing: Object, style: str, view: View) -> Image.Image:
    """The object on a transparent canvas of IMAGE_SIZE, where its view places it."""
    image = _read(_source(cache, style, thing.code))
    if view.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = view.size / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    # Alpha has to be multiplied in while resizing, or edges take on hidden colours.
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE))
    canvas.paste(image, [(IMAGE_SIZE - side) // 2 + by for side, by in zip(size, view.shift)])
    return canvas


def views(number: int, thing: Object, style: str) -> list[View]:
    """The first is upright, centred and as large as OBJECT_SIZE; every other one is mirrored."""
    rng = random.Random(f"{thing.code} {style}")
    shift = range(-VIEW_SHIFT, VIEW_SHIFT + 1)
    return [View()] + [
        View(turn % 2 == 1, rng.randint(*VIEW_SIZES), (rng.choice(shift), rng.choice(shift)))
        for turn in range(1, number)
    ]


def pictures(cache: Path, things: list[Object], number: int = 1) -> np.ndarray:
    """All pictures in `number` views, f32 in 0..1: [view, style, object, 4, height, width]."""
    stack = np.stack(
        [
            [[np.asarray(picture(cache, o, s, view)) for view in views(number, o, s)] for o in things]
            for s in STYLES
        ]
    )
    return stack.transpose(2, 0, 1, 5, 3, 4).astype(np.float32) / 255


def colour_values() -> np.ndarray:
    """The colours as f32 in 0..1: [colour, 3]."""
    return np.asarray(list(COLOURS.values()), dtype=np.float32) / 255


def composite(rgba, colour):
    """An [.., 4, h, w] picture over an [.., 3] colour, in -1..1; NumPy or torch."""
    rgb, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    return 2 * (rgb * alpha + colour[..., None, None] * (1 - alpha)) - 1


def _article(words: str):
    return ("an " if words[0] in "aeiou" else "a ") + words


def _of_colour(rng: random.Random, colour: str):
    return rng.choice((colour, colour, *COLOUR_WORDS.get(colour, ())))


def caption(rng: random.Random, thing: Object, style: str, colour: str) -> str:
    """One wording of an object in a style on a colour.

    The default style and the default colour may be left out; any other has to be named, or the
    picture could not be told from its caption.
    """
    name = thing.name if rng.random() < 0.6 else rng.choice(thing.names)
    named = style != DEFAULT_STYLE or rng.random() < 0.4
    word = rng.choice(STYLES[style]) if named else None
    if word and rng.random() < 0.2:
        name, word = f"{word} {name}", None
    subject = rng.choice((name, _article(name), _article(name), f"the {name}"))
    if rng.random() < 0.15:
        subject = rng.choice(
            (f"{name} emoji", f"a picture of {_article(name)}", f"{_article(name)} emoji")
        )
    parts = [subject] + ([word] if word else [])
    if word and rng.random() < 0.1:
        parts.reverse()
    if colour == DEFAULT_COLOUR and rng.random() < 0.5:
        return ", ".join(parts)
    hue = _of_colour(rng, colour)
    ground = rng.choice((f"{hue} background", f"{_article(hue)} background"))
    kind = rng.random()
    if kind < 0.65:
        if rng.random() < 0.5:
            return f"{', '.join(parts)}{', ' if word else ' '}on {ground}"
        return ", ".join([f"{parts[0]} on {ground}", *parts[1:]])
    if kind < 0.75:
        return f"{', '.join(parts)} on {hue}"
    if kind < 0.85:
        return ", ".join([*parts, ground])
    if kind < 0.93:
        return ", ".join([ground, *parts])
    return f"on {ground}, " + ", ".join(parts)
