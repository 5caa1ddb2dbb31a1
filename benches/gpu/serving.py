"""What a worker bears: 200 jobs of 20 clients, a cancelled job, a request too large for the memory, and SIGTERM."""

import json
import os
import shlex
import sys
import threading
import time
from pathlib import Path

from cells import DARKROOM, tell, tell_missing
from daemon import Daemon, Failed, problem
from files import png_pixels, psnr
from likeness import DATA, pocket
from memory import Ballast

CLIENTS, JOBS, SEEDS = 20, 200, 8
LEAST_DB = 50.0  # of a picture in company against the same alone
TRIES = 100
# What a cancelled job may take beyond a step: the request, and the event's way back.
BEYOND_A_STEP_MS = 50
# What is left free for the request that must not fit; the largest that the default limits allow.
LEFT_FREE_MIB = (1024, 256, 64)
LARGEST = {"width": 2048, "height": 2048, "n": 8, "steps": 2, "deadline_ms": 20_000}


def request(seed, **other):
    return {"prompt": f"a red fox in the snow, number {seed}", "seed": seed, "steps": 6, **other}


def client(daemon, numbers, alone, found):
    """Draws one job after another until there are none; a full queue is asked again."""
    while True:
        try:
            number = numbers.pop()
        except IndexError:
            return
        seed = number % SEEDS
        try:
            for _ in range(TRIES):
                status, answer = daemon.ask("POST", "/generate", request(seed), 120, Accept="image/png")
                if status != 429:
                    break
                time.sleep(0.1)
            found.append(psnr(png_pixels(answer), alone[seed]) if status == 200 else problem(status, answer))
        except (OSError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")


def jobs(daemon):
    alone = [png_pixels(daemon.picture(request(seed))) for seed in range(SEEDS)]
    numbers, found = list(range(JOBS)), []
    threads = [threading.Thread(target=client, args=(daemon, numbers, alone, found)) for _ in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    failures = [answer for answer in found if isinstance(answer, str)]
    likenesses = [answer for answer in found if not isinstance(answer, str)]
    least = min(likenesses, default=0.0)
    passed = len(likenesses) == JOBS and least >= LEAST_DB
    note = f"{len(likenesses)} of {JOBS} in {seconds:.1f} s, least {least:.0f} dB against alone"
    tell("jobs", DARKROOM, passed=passed, text=note, failures=failures[:5])


def events(response):
    """(event, data) of a stream, until it ends."""
    name = None
    while line := response.readline():
        field, _, value = line.decode("utf-8").rstrip("\r\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def cancel(daemon):
    connection = daemon.connect(60)
    body = json.dumps(request(1, steps=150, width=256, height=256))
    connection.request("POST", "/generate", body, {"Accept": "text/event-stream", "Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise Failed(problem(response.status, response.read()))
    began, step, steps_ms, after = None, 0, [], 0
    for name, data in events(response):
        if name == "progress":
            steps_ms.append(data["step_ms"])
            after += began is not None
            if data["step"] >= 3 and began is None:
                step = data["step"]
                began = time.perf_counter()
                threading.Thread(target=daemon.ask, args=("DELETE", f"/jobs/{data['job_id']}")).start()
        elif name in ("complete", "error", "cancelled"):
            break
    took_ms = (time.perf_counter() - (began or time.perf_counter())) * 1000
    connection.close()
    # Where the machine is busy the request may take long, and the events tell.
    within_a_step = took_ms <= max(steps_ms, default=0) + BEYOND_A_STEP_MS or after <= 1
    passed = name == "cancelled" and within_a_step
    note = f"{name} {took_ms:.0f} ms after step {step}, {after} more told; a step takes {max(steps_ms, default=0):.0f} ms"
    tell("cancel", DARKROOM, passed=passed, text=note)


def stays_alive(daemon, row):
    """Ready again, and a picture that is right."""
    deadline = time.perf_counter() + 30
    while daemon.ask("GET", "/ready", timeout=10)[0] != 200:
        if time.perf_counter() > deadline:
            raise Failed("not ready again within 30 s")
        time.sleep(0.05)
    one, other = (png_pixels(daemon.picture(request(3))) for _ in range(2))
    tell(row, DARKROOM, passed=one == other, text="ready, and draws")


def ask_too_much(daemon):
    """What is answered to the largest request; None where it was drawn, or would have been with more time."""
    status, answer = daemon.ask("POST", "/generate", request(5, **LARGEST), 40, Prefer="wait=30", Accept="application/json")
    said = problem(status, answer)
    drawn = status == 200 and json.loads(answer).get("status") == "succeeded"
    return None if drawn or "deadline_exceeded" in said else said


def ask_in_want(daemon, ballast):
    """(answer, MiB left free) of the first request that was not drawn, with less and less memory."""
    try:
        for left in LEFT_FREE_MIB:
            ballast.leave(left)
            if said := ask_too_much(daemon):
                return said, left
        return None, left
    finally:
        ballast.drop()


def out_of_memory(device):
    """A request that does not fit. On a GPU all but a little memory is taken away first; on the CPU OOM_FLAGS bounds it."""
    flags = shlex.split(os.environ.get("OOM_FLAGS", ""))
    if device.startswith("cpu") and not flags:
        for row in ("oom", "again"):
            tell_missing(row, DARKROOM, "not asked: OOM_FLAGS names no flags that bound memory on the CPU")
        return
    model = os.environ.get("FULL_SD15") or str(DATA / "sd15" / "model")
    if not Path(model, "model_index.json").exists():
        model = str(DATA / "sd15" / "model")
    try:
        ballast = None if device.startswith("cpu") else Ballast(device)
    except OSError as error:
        return tell_missing("oom", DARKROOM, f"not asked: the card's memory cannot be taken away: {error}")
    with Daemon(model, device, os.environ["SPEED_DTYPE"], *flags) as daemon:
        daemon.picture(request(3))
        said, left = None, None
        if ballast is None:
            said = ask_too_much(daemon)
        else:
            said, left = ask_in_want(daemon, ballast)
        if daemon.process.poll() is not None:
            raise Failed(f"the worker died of it with {daemon.process.returncode}: {daemon.said()}")
        if said is None:
            tell_missing("oom", DARKROOM, "drew the largest request all the same: nothing was refused")
        else:
            named = "memory" in said.lower() or "mib" in said.lower() or "gib" in said.lower()
            free = f"{left} MiB free: " if left else ""
            tell("oom", DARKROOM, passed=named, text=f"{free}{said}"[:200])
        stays_alive(daemon, "again")


def sigterm(daemon):
    """The running job ends, new work gets 503, and so does the process."""
    answers = []

    def wait():
        body = request(2, steps=60, width=256, height=256)
        answers.append(daemon.ask("POST", "/generate", body, 60, Prefer="wait=50", Accept="application/json"))

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.perf_counter() + 20
    while json.loads(daemon.ask("GET", "/ready", timeout=10)[1])["running"] == 0:
        if not thread.is_alive() or time.perf_counter() > deadline:
            raise Failed("the job that SIGTERM was to meet did not run")
        time.sleep(0.001)
    code, seconds = daemon.end()
    thread.join(timeout=60)
    status = json.loads(answers[0][1]).get("status") if answers else "no answer"
    note = f"ended with {code} after {seconds:.1f} s, the running job {status}"
    tell("sigterm", DARKROOM, passed=code == 0 and status == "succeeded", text=note)


def main():
    device, dtype = os.environ["DEVICE"], os.environ["SPEED_DTYPE"]
    failed = []
    small = str(DATA / "sd15" / "model") if os.environ["SIZES"] == "tiny" else pocket()

    def attempt(row, check, *given):
        try:
            check(*given)
        except (Failed, OSError, ValueError, KeyError, IndexError) as error:
            failed.append(row)
            tell(row, DARKROOM, passed=False, text=f"{type(error).__name__}: {error}"[:200])

    with Daemon(small, device, dtype, "--queue-capacity", str(CLIENTS)) as daemon:
        attempt("jobs", jobs, daemon)
        attempt("cancel", cancel, daemon)
        attempt("sigterm", sigterm, daemon)
    attempt("oom", out_of_memory, device)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    try:
        main()
    except (Failed, OSError) as error:
        sys.exit(f"{error}")
