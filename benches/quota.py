"""How long /health takes to answer under a CPU quota: python3 benches/quota.py [--program P] [--cores 0.5] [darkroom's flags].

Needs root, since it makes a control group (version 2 or 1) and removes it afterwards. It starts the program inside, posts
one picture after another, and asks for /health over and over. Prints how many threads draw, the median and the worst answer
in milliseconds, and how often and for how long the system held the group up; fails where an answer took over a second.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

DARKROOM = Path(__file__).resolve().parent.parent / "target" / "release" / "darkroom"
PICTURE = {"prompt": "a frog on a green background", "steps": 150, "width": 512, "height": 512, "guidance_scale": 3, "n": 8}
GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
PROBES = 200
EVERY_S = 0.05
WORST_ALLOWED_MS = 1000
READY_WITHIN_S = 600


def make_group(cores):
    """A control group that may use `cores` cores, and the file with its statistics."""
    quota = int(cores * PERIOD_US)
    name = f"darkroom-quota-{os.getpid()}"
    if (GROUPS / "cgroup.controllers").exists():
        (GROUPS / "cgroup.subtree_control").write_text("+cpu")
        group = GROUPS / name
        group.mkdir()
        (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
    else:
        group = GROUPS / "cpu" / name
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    return group


def start(program, flags, group):
    """The daemon in the group, and its port."""
    enter = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    command = [program, "--port", "0", *flags]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=enter)
    return daemon, int(daemon.stdout.readline().rsplit(":", 1)[1])


def ask(port, path):
    """The answer to a GET on a connection of its own, and how long it took in milliseconds."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body, (time.perf_counter() - began) * 1000


def watch(port, seconds):
    """Probes until the worker is ready; the answers of /health meanwhile."""
    answers, deadline = [], time.monotonic() + seconds
    while ask(port, "/ready")[0] != 200:
        if time.monotonic() > deadline:
            sys.exit("the daemon does not become ready")
        answers.append(ask(port, "/health")[2])
        time.sleep(EVERY_S)
    return answers


def draw(port):
    """Draws one picture after another, until the daemon is ended."""
    headers = {"Content-Type": "application/json", "Accept": "image/png"}
    try:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/generate", json.dumps(PICTURE), headers)
            connection.getresponse().read()
            connection.close()
    except (OSError, http.client.HTTPException):
        return


def drawing_threads(daemon):
    """How many threads of the pool there are."""
    names = [path.read_text() for path in Path(f"/proc/{daemon.pid}/task").glob("*/comm")]
    return sum(name.startswith("draw-") for name in names)


def say(when, answers):
    ordered = sorted(answers) or [0.0]
    median, worst = statistics.median(ordered), ordered[-1]
    tail = ordered[len(ordered) * 99 // 100]
    print(f"/health {when}, {len(answers)} answers: median {median:.1f} ms, 99th percentile {tail:.1f} ms, worst {worst:.1f} ms")
    return worst


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=DARKROOM)
    parser.add_argument("--cores", type=float, default=0.5)
    arguments, flags = parser.parse_known_args()
    group = make_group(arguments.cores)
    daemon = None
    try:
        daemon, port = start(arguments.program, flags, group)
        loading = watch(port, READY_WITHIN_S)
        threading.Thread(target=draw, args=(port,), daemon=True).start()
        while json.loads(ask(port, "/ready")[1])["running"] == 0:
            time.sleep(EVERY_S)
        drawing = []
        for _ in range(PROBES):
            status, _, took_ms = ask(port, "/health")
            if status != 200:
                sys.exit(f"/health answers {status}")
            drawing.append(took_ms)
            time.sleep(EVERY_S)
        print(f"{arguments.cores} cores, {drawing_threads(daemon)} threads draw")
        worst = max(say("while loading", loading), say("while drawing", drawing))
        print(" ".join((group / "cpu.stat").read_text().split()))
    finally:
        if daemon is not None:
            daemon.kill()
            daemon.wait()
        # The group is empty only once the system has let go of the last thread.
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)
    if worst > WORST_ALLOWED_MS:
        sys.exit(f"over {WORST_ALLOWED_MS} ms")


if __name__ == "__main__":
    main()
