"""How much darkroom's pictures on a device are like diffusers' f32 on the CPU: likeness.py pictures|networks|seed DTYPE."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from cells import DARKROOM, summary, tell
from daemon import Daemon, Failed, environment
from files import byte_tensors, png_pixels, psnr

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests" / "reference" / "data"
CHECKPOINTS = ("sd15", "sd2", "sd2v", "sdxl")
MADE_WITHIN_S = 60
# Of a case of pictures.json that a request takes over as they are.
SAME = ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "sampler", "clip_skip")


def request_of(case):
    """The request for a case; what a case leaves open is left out. Prompts are read as diffusers reads them."""
    request = {name: case[name] for name in SAME if case.get(name) is not None}
    request |= {"prompt_syntax": "plain", "long_prompt": "truncate"}
    if case.get("schedule") == "karras":
        request["scheduler"] = "karras"
    return request


def pocket():
    """The bundled model's folder; a binary may lack it, and the repository has it anyway."""
    folder = ROOT / "models" / "pocket"
    return folder if (folder / "model_index.json").exists() else "bundled"


def sets():
    """(name, model, [(case, request, wanted pixels)]) of every reference picture."""
    for name in CHECKPOINTS:
        wanted = byte_tensors(DATA / name / "pictures.safetensors")
        cases = json.loads((DATA / name / "pictures.json").read_text(encoding="utf-8"))
        yield name, DATA / name / "model", [(case["name"], request_of(case), wanted[case["name"]]) for case in cases]
    rows = json.loads((DATA / "pocket" / "pocket.json").read_text(encoding="utf-8"))["pictures"]
    given = [(row["file"], request_of(row), png_pixels((DATA / "pocket" / row["file"]).read_bytes())) for row in rows]
    yield "pocket", pocket(), given


def drawn(daemon, request):
    return png_pixels(daemon.picture({**request, "output": {"metadata": False}}, timeout=60))


def pictures(device, dtype):
    """Every reference picture; one that is not drawn counts as 0 dB and is named."""
    found, failures, left = {}, [], list(sets())
    while left:
        name, model, cases = left.pop(0)
        with Daemon(model, device, dtype) as daemon:
            for case, request, wanted in cases:
                try:
                    found[name, case] = psnr(drawn(daemon, request), wanted)
                except (Failed, OSError, ValueError) as error:
                    found[name, case] = 0.0
                    failures.append(f"{name}, {case}: {error}")
        tell(f"pictures.{dtype}", DARKROOM, **summary(found), failures=failures, unfinished=bool(left))


def appears(path):
    """Whether a file is there in time: the models are made meanwhile, and each one's index comes last."""
    deadline = time.monotonic() + MADE_WITHIN_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return path.exists()


def seed(device, dtype):
    """The same seed on the CPU and on the device: the first cases of every set, and the full-size model where it is."""
    found = {}
    chosen = [(name, model, cases[:6]) for name, model, cases in sets()]
    full = os.environ.get("FULL_SD15")
    if full and appears(Path(full, "model_index.json")):
        request = {"prompt": "a red fox in the snow", "width": 256, "height": 256, "steps": 4, "seed": 7}
        chosen.append(("full-size sd15", full, [("256", request, None)]))
    while chosen:
        name, model, cases = chosen.pop(0)
        with Daemon(model, "cpu", dtype) as cpu, Daemon(model, device, dtype) as other:
            for case, request, _ in cases:
                found[name, case] = psnr(drawn(cpu, request), drawn(other, request))
        tell("seed", DARKROOM, **summary(found), unfinished=bool(chosen))


def networks(device, dtype):
    """Every network, by the reference tests' binary."""
    binary = os.environ.get("REFERENCE_TESTS", "")
    if not os.access(binary, os.X_OK):
        raise Failed("no test binary: REFERENCE_TESTS names none")
    env = dict(environment(), CARGO_MANIFEST_DIR=str(ROOT), DARKROOM_TEST_DEVICE=device, DARKROOM_TEST_DTYPE=dtype)
    ran = subprocess.run([binary, "device", "--nocapture"], capture_output=True, text=True, env=env, timeout=300)
    found = {}
    # The first line of a test stands behind its name.
    for text in re.findall(r"\{.*\"db\".*\}", ran.stdout):
        line = json.loads(text)
        found[line["checkpoint"], f"{line['network']} {line['case']}"] = line["db"]
    if not found:
        said = ran.stderr.split("panicked at", 1)[-1].splitlines() or ["it said nothing"]
        raise Failed(f"the test binary ended with {ran.returncode}: {' '.join(said[:2])[:300]}")
    failures = [] if "test result: ok" in ran.stdout else [f"the test binary ended with {ran.returncode}"]
    tell(f"networks.{dtype}", DARKROOM, **summary(found), failures=failures)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["pictures", "networks", "seed"])
    parser.add_argument("dtype")
    args = parser.parse_args()
    try:
        globals()[args.what](os.environ["DEVICE"], args.dtype)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
