/** uvicorn with uvloop, httptools and websockets: Python's asyncio as it is deployed. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { inside, type Program, runtimeOf, upstreamPort, versionFrom } from "../program.ts";
import { useWeb } from "../web-clients.ts";

const application = `
import asyncio

total = 0
counts = {}

async def app(scope, receive, send):
    global total
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown": return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        n = 0
        while (message := await receive())["type"] == "websocket.receive":
            n += 1
            await send({"type": "websocket.send", "text": f"{n} {message['text']}"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/stream":
        n = 0
        while True:
            n += 1
            await send({"type": "http.response.body", "body": b"%d\\n" % n, "more_body": True})
            await asyncio.sleep(0.002)
    client = scope["query_string"]
    counts[client] = counts.get(client, 0) + 1
    total += 1
    await send({"type": "http.response.body", "body": b"%d %d" % (counts[client], total)})
`;

const binary = runtimeOf("uvicorn") ?? "/nonexistent/uvicorn";

export const uvicorn: Program = {
  name: "uvicorn",
  title: "Python (uvicorn, uvloop)",
  needs: [binary],
  version: () => versionFrom([binary, "--version"], /uvicorn [\d.]+ with CPython [\d.]+/),
  prepare: (folder) => writeFileSync(join(folder, "application.py"), application),
  command: [
    binary,
    "--app-dir",
    inside,
    "--host",
    "127.0.0.1",
    "--port",
    upstreamPort,
    "--no-access-log",
    "application:app",
  ],
  env: { PYTHONDONTWRITEBYTECODE: "1" },
  port: 8080,
  keeps: "heap, keep-alive connections, a stream, a WebSocket",
  use: (stage) => useWeb(stage, uvicorn.port, { webSocket: true }),
};
