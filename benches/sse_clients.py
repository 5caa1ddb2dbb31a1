"""How well clients of server-sent events read `complete`: python3 benches/sse_clients.py PORT.

Needs `pip install httpx httpx-sse sseclient-py aiohttp aiohttp-sse-client2` and a worker on 127.0.0.1:PORT. It has a job of
four pictures drawn with the pictures in the event, and one with links to them only. Each client reads each job's events once
the job has ended, so that the drawing is not counted, and fetches what is only linked. Prints a row for each: whether all
pictures came whole, the longest line of the stream in bytes, and how long it took in milliseconds. benches/sse_clients.mjs
does the same with clients in JavaScript.
"""

import asyncio
import base64
import json
import sys
import time
import urllib.request

import aiohttp
import aiohttp_sse_client2.client
import httpx
import httpx_sse
import sseclient

JOB = {"prompt": "a frog", "n": 4, "width": 512, "height": 512, "steps": 1, "seed": 1}
READ_WITHIN_S = 60


def with_httpx_sse(url):
    with httpx.Client(timeout=READ_WITHIN_S) as client, httpx_sse.connect_sse(client, "GET", url) as source:
        return next(event.data for event in source.iter_sse() if event.event == "complete")


def with_sseclient(url):
    with httpx.stream("GET", url, timeout=READ_WITHIN_S) as response:
        events = sseclient.SSEClient(response.iter_bytes()).events()
        return next(event.data for event in events if event.event == "complete")


def with_aiohttp_sse(url):
    async def read():
        timeout = aiohttp.ClientTimeout(total=READ_WITHIN_S)
        async with aiohttp_sse_client2.client.EventSource(url, timeout=timeout) as source:
            async for event in source:
                if event.type == "complete":
                    return event.data
        raise EOFError("the stream ended before `complete`")

    return asyncio.run(read())


CLIENTS = {"httpx-sse": with_httpx_sse, "sseclient-py": with_sseclient, "aiohttp-sse-client2": with_aiohttp_sse}


def draw(base, inline):
    """The path of a job that has ended."""
    body = json.dumps({**JOB, "output": {"inline": inline}}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{base}/generate", body, headers)) as answer:
        path = answer.headers["Location"]
    while (status := json.load(urllib.request.urlopen(base + path))["status"]) != "succeeded":
        if status not in ("queued", "running"):
            sys.exit(f"the job has {status}")
        time.sleep(0.1)
    return path


def longest_line(url):
    with urllib.request.urlopen(url) as events:
        return max(len(line.rstrip(b"\n")) for line in events)


def is_whole(base, image):
    """Whether a picture of `complete` is a PNG from its first byte to its last."""
    png = base64.b64decode(image["base64"]) if "base64" in image else urllib.request.urlopen(base + image["url"]).read()
    return png.startswith(b"\x89PNG") and png.endswith(b"IEND\xaeB`\x82")


def main():
    base = f"http://127.0.0.1:{int(sys.argv[1])}"
    print("| client | pictures | came whole | longest line, bytes | ms |\n| --- | --- | --- | --- | --- |")
    for inline in (True, False):
        path = draw(base, inline)
        line = longest_line(f"{base}{path}/events")
        for name, read in CLIENTS.items():
            began = time.perf_counter()
            try:
                images = json.loads(read(f"{base}{path}/events"))["images"]
                whole = "yes" if len(images) == JOB["n"] and all(is_whole(base, image) for image in images) else "no"
            except Exception as error:  # A client that cannot read this is a row of the table as well.
                whole = f"no: {type(error).__name__}"
            took_ms = (time.perf_counter() - began) * 1000
            print(f"| {name} | {'inline' if inline else 'links'} | {whole} | {line} | {took_ms:.0f} |")


if __name__ == "__main__":
    main()
