// How well clients of server-sent events read `complete`: node benches/sse_clients.mjs PORT.
//
// Needs `npm install eventsource eventsource-parser` in the folder that it is called from and a worker on 127.0.0.1:PORT.
// Does what benches/sse_clients.py does, and prints rows of the same table.

import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const { EventSource } = await import(require.resolve("eventsource"));
const { EventSourceParserStream } = await import(require.resolve("eventsource-parser/stream"));

const JOB = { prompt: "a frog", n: 4, width: 512, height: 512, steps: 1, seed: 1 };
const READ_WITHIN_MS = 60_000;

async function withEventSource(url) {
  const source = new EventSource(url);
  try {
    return await new Promise((resolve, reject) => {
      source.addEventListener("complete", (event) => resolve(event.data));
      source.addEventListener("error", (event) => reject(new Error(event.message ?? "the stream ended")));
      setTimeout(reject, READ_WITHIN_MS, new Error("it took too long")).unref();
    });
  } finally {
    source.close();
  }
}

async function withParser(url) {
  const { body } = await fetch(url, { signal: AbortSignal.timeout(READ_WITHIN_MS) });
  const events = body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  for await (const event of events) {
    if (event.event === "complete") return event.data;
  }
  throw new Error("the stream ended before `complete`");
}

const CLIENTS = { eventsource: withEventSource, "eventsource-parser": withParser };

/** The path of a job that has ended. */
async function draw(base, inline) {
  const answer = await fetch(`${base}/generate`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...JOB, output: { inline } }),
  });
  const path = answer.headers.get("location");
  for (;;) {
    const { status } = await (await fetch(base + path)).json();
    if (status === "succeeded") return path;
    if (status !== "queued" && status !== "running") throw new Error(`the job has ${status}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function longestLine(url) {
  const events = Buffer.from(await (await fetch(url)).arrayBuffer()).toString("latin1");
  return Math.max(...events.split("\n").map((line) => line.length));
}

/** Whether a picture of `complete` is a PNG from its first byte to its last. */
async function isWhole(base, image) {
  const png = image.base64
    ? Buffer.from(image.base64, "base64")
    : Buffer.from(await (await fetch(base + image.url)).arrayBuffer());
  return png.subarray(1, 4).toString() === "PNG" && png.subarray(-8, -4).toString() === "IEND";
}

const base = `http://127.0.0.1:${Number(process.argv[2])}`;
console.log("| client | pictures | came whole | longest line, bytes | ms |\n| --- | --- | --- | --- | --- |");
for (const inline of [true, false]) {
  const path = await draw(base, inline);
  const line = await longestLine(`${base}${path}/events`);
  for (const [name, read] of Object.entries(CLIENTS)) {
    const began = performance.now();
    let whole = "yes";
    try {
      const { images } = JSON.parse(await read(`${base}${path}/events`));
      const checks = await Promise.all(images.map((image) => isWhole(base, image)));
      if (checks.length !== JOB.n || checks.includes(false)) whole = "no";
    } catch (error) {
      whole = `no: ${error.message}`;
    }
    const tookMs = Math.round(performance.now() - began);
    console.log(`| ${name} | ${inline ? "inline" : "links"} | ${whole} | ${line} | ${tookMs} |`);
  }
}
