"""Draw the pictures of the documentation with the bundled model: needs Pillow and a worker.

    darkroom & python3 docs/make_pictures.py [http://127.0.0.1:7860]
"""

import base64
import io
import json
import sys
import urllib.request
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860"
SIDE = 128
LABEL = 14
GAP = 4


def post(body, accept):
    """The answer to a request."""
    headers = {"Content-Type": "application/json", "Accept": accept}
    request = urllib.request.Request(SERVER + "/generate", json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=300)


def draw(**body):
    """The picture of a request."""
    return Image.open(io.BytesIO(post(body, "image/png").read())).convert("RGB")


def previews(**body):
    """What a drawing looks like on its way, and its picture: (step, picture) pairs."""
    shown, event = [], None
    for line in post(body, "text/event-stream"):
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            event = value
        elif name == "data" and event == "preview":
            data = json.loads(value)
            shown.append((f"step {data['step']}", picture_of(data["image"])))
        elif name == "data" and event == "complete":
            shown.append(("finished", picture_of(json.loads(value)["images"][0]["base64"])))
    return shown


def picture_of(text):
    """A picture from base64."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def base64_of(picture):
    """A picture as base64."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def sheet(labelled, columns, name):
    """Writes labelled pictures in rows to a file."""
    rows = -(-len(labelled) // columns)
    width, height = columns * (SIDE + GAP) + GAP, rows * (SIDE + LABEL + GAP) + GAP
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    for index, (label, picture) in enumerate(labelled):
        x = GAP + index % columns * (SIDE + GAP)
        y = GAP + index // columns * (SIDE + LABEL + GAP)
        pen.text((x, y), label, fill="black")
        page.paste(picture.resize((SIDE, SIDE), Image.BICUBIC), (x, y + LABEL))
    page.quantize(192, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


def main():
    model = json.load(urllib.request.urlopen(SERVER + "/model", timeout=30))
    prompt = "a lion on a green background"
    samplers = [(name, draw(prompt=prompt, seed=2, steps=10, sampler=name)) for name in model["samplers"]]
    sheet(samplers, 7, "samplers.png")
    sheet(previews(prompt=prompt, seed=2, steps=20, preview_every=4), 5, "previews.png")
    frog = draw(prompt="a frog on a green background", seed=7)
    lion = draw(prompt=prompt, seed=2, strength=0.7, image=base64_of(frog))
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).ellipse((24, 24, 104, 104), fill=255)
    apple = draw(prompt="a red apple on a green background", seed=5, image=base64_of(frog), strength=1.0,
                 mask=base64_of(mask), mask_blur=3)
    sheet([("a frog", frog), ("a lion from it", lion), ("a mask", mask.convert("RGB")), ("an apple in it", apple)], 4,
          "changes.png")


if __name__ == "__main__":
    main()
