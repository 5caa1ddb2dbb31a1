"""darkroom as a process: its start until it is ready, requests to it, and its end."""

import base64
import http.client
import json
import os
import queue
import signal
import subprocess
import threading
import time

ASK_EVERY_S = 0.005
LISTENS_WITHIN_S = 30
ENDS_WITHIN_S = 45
TAIL = 600  # characters of a log that a message quotes


class Failed(Exception):
    """What is told in place of a figure."""


def environment():
    """The children's environment: where the CUDA libraries lie is nobody else's concern."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    if os.environ.get("GPU_LIBRARY_PATH"):
        found["LD_LIBRARY_PATH"] = os.environ["GPU_LIBRARY_PATH"]
    return found


class Daemon:
    """A server on a free port; as a context it is ready at its beginning and gone at its end."""

    def __init__(self, model, device, dtype, *flags, ready_within_s=120):
        self.log = open(os.devnull, "w+b") if "SCRATCH_DIR" not in os.environ else self.open_log()
        command = [os.environ["DARKROOM"], "--port", "0", "--model", str(model), "--device", device, "--dtype", dtype]
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, *flags], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment()
        )
        try:
            self.port = self.listens()
            self.seconds_to_ready = self.becomes_ready(ready_within_s)
        except BaseException:
            self.kill()
            raise

    def open_log(self):
        number = 0
        while True:
            path = os.path.join(os.environ["SCRATCH_DIR"], f"darkroom-{os.getpid()}-{number}.log")
            try:
                return open(path, "x+b")
            except FileExistsError:
                number += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def said(self):
        """The end of its log."""
        self.log.flush()
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - TAIL))
        text = self.log.read().decode("utf-8", "replace").strip()
        return text or "it said nothing"

    def listens(self):
        lines = queue.Queue()
        threading.Thread(target=lambda: lines.put(self.process.stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=LISTENS_WITHIN_S)
            return int(line.strip().rsplit(":", 1)[1])
        except (queue.Empty, IndexError, ValueError):
            raise Failed(f"darkroom does not listen: {self.said()}") from None

    def becomes_ready(self, within_s):
        reason = None
        while time.perf_counter() - self.began < within_s:
            if self.process.poll() is not None:
                raise Failed(f"darkroom ended with {self.process.returncode}: {self.said()}")
            try:
                status, answer = self.ask("GET", "/ready", timeout=10)
                if status == 200:
                    return time.perf_counter() - self.began
                reason = json.loads(answer).get("reason") or answer.decode()
                if json.loads(answer).get("state") == "failed":
                    raise Failed(f"darkroom failed to load: {reason}")
            except OSError as error:
                reason = str(error)
            time.sleep(ASK_EVERY_S)
        raise Failed(f"darkroom is not ready after {within_s:.0f} s ({reason}): {self.said()}")

    def connect(self, timeout):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, timeout=300, **headers):
        """(status, bytes) of a request; header names are written with underscores."""
        connection = self.connect(timeout)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json", **named})
            response = connection.getresponse()
            self.retry_after = response.headers.get("Retry-After")
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def picture(self, request, timeout=300):
        """The bytes of a PNG."""
        status, answer = self.ask("POST", "/generate", request, timeout, Accept="image/png")
        if status != 200:
            raise Failed(problem(status, answer))
        return answer

    def job(self, request, timeout=300):
        """A finished job and its pictures' bytes."""
        wait = f"wait={int(timeout)}"
        status, answer = self.ask("POST", "/generate", request, timeout, Prefer=wait, Accept="application/json")
        job = json.loads(answer) if answer else {}
        if status != 200 or job.get("status") != "succeeded":
            raise Failed(problem(status, answer))
        return job, [base64.b64decode(image["base64"]) for image in job["images"]]

    def end(self):
        """Its exit status after SIGTERM, and the seconds until then."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(ENDS_WITHIN_S), time.perf_counter() - began
        except subprocess.TimeoutExpired:
            raise Failed(f"darkroom runs on {ENDS_WITHIN_S} s after SIGTERM: {self.said()}") from None

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def problem(status, answer):
    """What an answer that is no picture says, in a line."""
    try:
        said = json.loads(answer)
        error = said.get("error") or said
        return f"{status} {error.get('code', said.get('status'))}: {error.get('detail') or error.get('message')}"
    except (ValueError, AttributeError):
        return f"{status}: {answer[:200]!r}"
