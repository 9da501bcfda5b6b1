/**
 * An HTTP application whose exchanges last as long as a client wants: each is bound to a gate, a name in the path, that
 * any client opens with `POST /gates/NAME`. Everything it knows is in memory.
 *
 *   PORT      HTTP/1.1                                                 (9000)
 *   INNER     HTTP/1.1 again, meant for tunnels                        (9001)
 *   H2C       HTTP/2 with prior knowledge; none without
 *   H2        HTTP/2 over TLS, needs key.pem and cert.pem in $TLS; none without
 *
 *   GET  /gates/NAME   how many exchanges wait at it
 *   GET  /poll/NAME    is answered with the gate's body when it opens
 *   GET  /bytes/NAME   random bytes until it opens, with /N behind the name at least N bytes
 *   PUT  /bytes/NAME   {bytes, sha256} of the body; with Expect: 100-continue the 100 waits for the gate
 *   GET  /sent/NAME    {bytes, sha256} of what GET /bytes/NAME has sent
 *   GET  /events/NAME  Server-Sent Events until it opens: 1, 2, 3, … for each client, whatever its Last-Event-ID
 *   CONNECT HOST:PORT  a tunnel to there
 *   Upgrade: chat/1    sends back each byte mixed with its number, as test/apps/echo does
 */
import { createHash, randomFillSync } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer as createH2cServer, createSecureServer } from "node:http2";
import { connect } from "node:net";
import { join } from "node:path";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { createServer } = process.getBuiltinModule("node:http");

const host = "127.0.0.1";
const tickMs = 4;
const chunkBytes = 64 * 1024;

/** @type {Map<string, {opened: Promise<string>, open: (body: string) => void, isOpen: boolean, waiting: number}>} */
const gates = new Map();
/** @type {Map<string, {bytes: number, sha256: string}>} */
const sent = new Map();

function gateOf(name) {
  let gate = gates.get(name);
  if (gate === undefined) {
    const { promise, resolve } = Promise.withResolvers();
    gate = { opened: promise, open: resolve, isOpen: false, waiting: 0 };
    promise.then(() => {
      gate.isOpen = true;
    });
    gates.set(name, gate);
  }
  return gate;
}

async function waitAt(name) {
  const gate = gateOf(name);
  gate.waiting += 1;
  const body = await gate.opened;
  gate.waiting -= 1;
  return body;
}

/** Counts and hashes what passes. */
async function* measured(chunks, summary) {
  const hash = createHash("sha256");
  for await (const chunk of chunks) {
    hash.update(chunk);
    summary.bytes += chunk.length;
    yield chunk;
  }
  summary.sha256 = hash.digest("hex");
}

async function* randomBytesUntil(gate, bytesMin) {
  for (let bytes = 0; bytes < bytesMin || !gate.isOpen; bytes += chunkBytes)
    yield randomFillSync(Buffer.allocUnsafe(chunkBytes));
}

async function* eventsUntil(gate) {
  for (let id = 1; !gate.isOpen; id++) {
    yield `id: ${id}\ndata: ${"x".repeat(id % 100)}\n\n`;
    await new Promise((resolve) => setTimeout(resolve, tickMs));
  }
}

function json(response, value) {
  response.setHeader("content-type", "application/json");
  response.end(`${JSON.stringify(value)}\n`);
}

async function answer(request, response) {
  const [, what, name = "", bytesMin = "0"] = request.url.split("/");
  switch (`${request.method} ${what}`) {
    case "GET gates":
      return json(response, { waiting: gateOf(name).waiting });
    case "POST gates": {
      const chunks = await request.toArray();
      gateOf(name).open(Buffer.concat(chunks).toString());
      return json(response, {});
    }
    case "GET poll":
      return response.end(await waitAt(name));
    case "GET bytes": {
      const summary = { bytes: 0, sha256: "" };
      await pipeline(measured(randomBytesUntil(gateOf(name), Number(bytesMin)), summary), response);
      sent.set(name, summary);
      return;
    }
    case "PUT bytes": {
      const summary = { bytes: 0, sha256: "" };
      for await (const _ of measured(request, summary));
      return json(response, summary);
    }
    case "GET sent":
      return json(response, sent.get(name) ?? null);
    case "GET events":
      response.setHeader("content-type", "text/event-stream");
      return await pipeline(eventsUntil(gateOf(name)), response);
    default:
      response.statusCode = 404;
      response.end();
  }
}

function onRequest(request, response) {
  answer(request, response).catch((error) => {
    console.log(`${request.method} ${request.url}: ${error.message}`);
    response.destroy();
  });
}

async function onExpectation(request, response) {
  await waitAt(request.url.split("/")[2]);
  response.writeContinue();
  onRequest(request, response);
}

function onUpgrade(request, socket, head) {
  let count = 0;
  const mixed = new Transform({
    transform(bytes, _encoding, done) {
      for (let i = 0; i < bytes.length; i++, count++) bytes[i] ^= (count ^ (count >>> 8) ^ (count >>> 16)) & 0xff;
      done(null, bytes);
    },
  });
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${request.headers.upgrade}\r\n\r\n`);
  socket.unshift(head);
  pipeline(socket, mixed, socket).catch((error) => console.log(`upgraded: ${error.message}`));
}

function onConnect(request, socket, head) {
  const [address, port] = request.url.split(":");
  const target = connect({ host: address, port: Number(port), noDelay: true }, () => {
    socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
    target.write(head);
    pipeline(socket, target, socket).catch((error) => console.log(`tunnel: ${error.message}`));
  });
  target.on("error", () => socket.destroy());
}

const { PORT = 9000, INNER = 9001, H2C, H2, TLS = "." } = process.env;
const listeners = [
  [PORT, createServer()],
  [INNER, createServer()],
];
if (H2C !== undefined) listeners.push([H2C, createH2cServer()]);
if (H2 !== undefined) {
  const [key, cert] = ["key.pem", "cert.pem"].map((name) => readFileSync(join(TLS, name)));
  listeners.push([H2, createSecureServer({ key, cert })]);
}
for (const [port, server] of listeners) {
  server.on("request", onRequest);
  server.on("checkContinue", onExpectation);
  server.on("upgrade", onUpgrade);
  server.on("connect", onConnect);
  server.listen(Number(port), host);
}
