"""Run the README's shell examples against a real daemon, as a newcomer would, in an empty directory.

Each ```sh block of README.md runs as one script with `set -eu`. The block that is `cargo run --release` becomes the
daemon, on the README's own port; `cargo test` and what installs the program are run elsewhere in CI and left out here.
Fails on the first block that fails, and on a picture that a block names but does not write.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START = "cargo run --release"
RUN_ELSEWHERE = ("cargo test", "cargo install", "git clone", "cargo lint", "python")
READY_WITHIN_S = 120
BLOCK_WITHIN_S = 300
MAGIC = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".webp": b"RIFF"}


def blocks():
    """The README's shell blocks, in order."""
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)]


def start_daemon():
    """The release build, once it listens and is ready."""
    binary = ROOT / "target" / "release" / "darkroom"
    daemon = subprocess.Popen([binary], stdout=subprocess.PIPE, text=True, cwd=tempfile.mkdtemp())
    watchdog = threading.Timer(READY_WITHIN_S, daemon.kill)
    watchdog.start()
    line = daemon.stdout.readline()
    watchdog.cancel()
    if "listening on http://127.0.0.1:7860" not in line:
        sys.exit(f"the daemon's first line is {line!r}")
    ready = ["curl", "-sf", "--retry", "60", "--retry-delay", "1", "--retry-all-errors", "127.0.0.1:7860/ready"]
    subprocess.run(ready, check=True, stdout=subprocess.DEVNULL, timeout=READY_WITHIN_S)
    return daemon


def run_block(block, folder):
    """Runs one block and checks the pictures it names."""
    print(f"\n$ {block}", flush=True)
    env = dict(os.environ, PATH=f"{ROOT / 'target' / 'release'}:{os.environ['PATH']}")
    subprocess.run(["bash", "-euc", block], check=True, cwd=folder, env=env, timeout=BLOCK_WITHIN_S)
    for name in re.findall(r"(?:-o|--output) (\S+)", block):
        path = folder / name
        magic = MAGIC.get(path.suffix)
        if not path.exists() or (magic and not path.read_bytes().startswith(magic)):
            sys.exit(f"{name} is not what its name says, after:\n{block}")


def main():
    todo = [block for block in blocks() if not block.startswith(RUN_ELSEWHERE)]
    if START not in todo:
        sys.exit(f"README.md has no block that is `{START}`")
    folder = Path(tempfile.mkdtemp())
    daemon = start_daemon()
    passed = 0
    try:
        for block in todo:
            if block != START:
                run_block(block, folder)
                passed += 1
        daemon.terminate()
        if daemon.wait(timeout=60) != 0:
            sys.exit(f"the daemon ended with {daemon.returncode} on SIGTERM")
    finally:
        daemon.kill()
    if passed < 5:
        sys.exit(f"only {passed} README examples were found: is the pattern still right?")
    print(f"\n{passed} README examples passed")


if __name__ == "__main__":
    main()
