"""The pictures and the captions: fetched by package name, composited, worded at random."""

import json
import os
import random
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from catalogue import COLOURS, COLOUR_WORDS, DEFAULT_COLOUR, OBJECTS

PACKAGES = {
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "emojibase-data": "17.0.0",
}
IMAGE_SIZE = 128
OBJECT_SIZE = 108

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


def fetch(cache: Path):
    """Download the packages that are not in the cache yet, and unpack them."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, version in PACKAGES.items():
        folder = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}"
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


def _assets(cache: Path):
    return cache / f"lobehub-fluent-emoji-3d-{PACKAGES['@lobehub/fluent-emoji-3d']}" / "assets"


def _emojibase(cache: Path):
    path = cache / f"emojibase-data-{PACKAGES['emojibase-data']}" / "en" / "data.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _asset_code(cache: Path, hexcode: str):
    """The name of the picture's file, which keeps variation selectors only sometimes."""
    code = hexcode.lower()
    for candidate in (code, code.replace("-fe0f", ""), code + "-fe0f"):
        if (_assets(cache) / f"{candidate}.webp").exists():
            return candidate
    return None


def objects(cache: Path, count: int | None = None) -> list[Object]:
    """The catalogue's objects, cut or filled up from emojibase's to `count`."""
    entries = {e["hexcode"].upper().replace("-FE0F", ""): e for e in _emojibase(cache)}
    chosen = []
    for line in OBJECTS.strip().splitlines():
        emoji, _, names = line.partition(" ")
        key = "-".join(f"{ord(c):04X}" for c in emoji if ord(c) != 0xFE0F)
        code = _asset_code(cache, key)
        if code is None:
            raise SystemExit(f"no picture of {emoji} in the package")
        group = GROUPS[entries[key]["group"]]
        chosen.append(Object(code, emoji, [n.strip() for n in names.split("|")], group))
    if count is None:
        return chosen
    taken = {o.code for o in chosen}
    for entry in sorted(entries.values(), key=lambda e: e.get("order", 0)):
        if len(chosen) >= count:
            break
        label = entry["label"].lower()
        code = _asset_code(cache, entry["hexcode"])
        if (
            entry.get("group") in CARRYING_GROUPS
            and code is not None
            and code not in taken
            and len(label) <= 24
            and not any(word in label for word in NOT_CARRYING)
        ):
            chosen.append(Object(code, entry["emoji"], [label], GROUPS[entry["group"]]))
    return chosen[:count]


def picture(cache: Path, thing: Object) -> Image.Image:
    """The object on a transparent canvas of IMAGE_SIZE, centred, as large as OBJECT_SIZE."""
    image = Image.open(_assets(cache) / f"{thing.code}.webp").convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = OBJECT_SIZE / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    # Alpha has to be multiplied in while resizing, or edges take on hidden colours.
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE))
    canvas.paste(image, [(IMAGE_SIZE - side) // 2 for side in size])
    return canvas


def pictures(cache: Path, things: list[Object]) -> np.ndarray:
    """All objects' pictures as f32 in 0..1: [object, 4, height, width]."""
    stack = np.stack([np.asarray(picture(cache, o)) for o in things])
    return stack.transpose(0, 3, 1, 2).astype(np.float32) / 255


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


def caption(rng: random.Random, thing: Object, colour: str) -> str:
    """One wording of an object on a colour."""
    name = thing.name if rng.random() < 0.6 else rng.choice(thing.names)
    subject = rng.choice((name, _article(name), _article(name), f"the {name}"))
    if rng.random() < 0.15:
        subject = rng.choice(
            (f"{name} emoji", f"a picture of {_article(name)}", f"{_article(name)} emoji")
        )
    style = rng.choice(("3d", "3d style", "3d render", "emoji style")) if rng.random() < 0.2 else None
    parts = [subject] + ([style] if style else [])
    if colour == DEFAULT_COLOUR and rng.random() < 0.5:
        return ", ".join(parts)
    word = _of_colour(rng, colour)
    ground = rng.choice((f"{word} background", f"a {word} background" if word[0] != "o" else f"an {word} background"))
    kind = rng.random()
    if kind < 0.65:
        if style and rng.random() < 0.5:
            return f"{subject}, {style}, on {ground}"
        parts[0] = f"{subject} on {ground}"
        return ", ".join(parts)
    if kind < 0.75:
        return f"{subject} on {word}"
    if kind < 0.85:
        return ", ".join([*parts, ground])
    if kind < 0.93:
        return ", ".join([ground, *parts])
    return f"on {ground}, " + ", ".join(parts)
