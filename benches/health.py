"""How long /health takes to answer while darkroom draws: python3 benches/health.py [darkroom's own flags].

Starts the release build on a free port, posts one picture after another for some seconds, and asks for /health all the
while on one connection. Prints the median and the worst answer in milliseconds, and fails where the worst is over 10. What
else the machine does counts, too: on a busy one, look at the median and the 99th percentile.
"""

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

DARKROOM = Path(__file__).resolve().parent.parent / "target" / "release" / "darkroom"
PICTURE = {"prompt": "a frog on a green background", "steps": 150, "width": 128, "height": 128, "guidance_scale": 3}
DRAW_FOR_S = 20
EVERY_S = 0.01
WORST_ALLOWED_MS = 10
READY_WITHIN_S = 300


def start(flags):
    """The daemon and its port, once it is ready."""
    daemon = subprocess.Popen([DARKROOM, "--port", "0", *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port = int(daemon.stdout.readline().rsplit(":", 1)[1])
    deadline = time.monotonic() + READY_WITHIN_S
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while ask(connection, "/ready")[0] != 200:
        if daemon.poll() is not None or time.monotonic() > deadline:
            sys.exit("the daemon does not become ready")
        time.sleep(0.1)
    return daemon, port


def ask(connection, path):
    """The status of a GET, and how long it took in milliseconds."""
    began = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status, (time.perf_counter() - began) * 1000


def draw(port, stop):
    """Draws one picture after another until it is told to stop."""
    while not stop.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json", "Accept": "image/png"}
        connection.request("POST", "/generate", json.dumps(PICTURE), headers)
        connection.getresponse().read()
        connection.close()


def main():
    daemon, port = start(sys.argv[1:])
    stop = threading.Event()
    threading.Thread(target=draw, args=(port, stop), daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    time.sleep(0.5)
    answers, deadline = [], time.monotonic() + DRAW_FOR_S
    try:
        while time.monotonic() < deadline:
            status, took_ms = ask(connection, "/health")
            if status != 200:
                sys.exit(f"/health answers {status}")
            answers.append(took_ms)
            time.sleep(EVERY_S)
    finally:
        stop.set()
        daemon.kill()
    ordered = sorted(answers)
    print(
        f"/health while drawing, {len(answers)} answers: median {statistics.median(answers):.2f} ms,"
        f" 99th percentile {ordered[len(ordered) * 99 // 100]:.2f} ms, worst {ordered[-1]:.2f} ms"
    )
    if ordered[-1] > WORST_ALLOWED_MS:
        sys.exit(f"over {WORST_ALLOWED_MS} ms")


if __name__ == "__main__":
    main()
