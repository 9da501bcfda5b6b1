/** WebSocket clients over the ends of their application: the socket stays, messages come once and in order, or it is closed with a reason. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { Socket } from "node:net";
import { after, afterEach, before, describe, it } from "node:test";
import { WebSocket, WebSocketServer } from "ws";
import { ReplayStage } from "#test/support/mortal-application.ts";
import { type RawEnd, within } from "#test/support/raw-ends.ts";

const REPLAY_BYTES_MAX = 64 * 1024;
const PING_MS = 50;
const AT_LEAST = 1;
const DRAIN_MS = 10_000;
/** a pause looks this often, a millisecond or more apart */
const ANSWER_MS_MIN = 90;
const KEY = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT = createHash("sha1").update(`${KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
const HANDSHAKE = `GET /chat?room=1 HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ${KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, b\r\nX-Token: secret\r\n\r\n`;
const TEXT = 0x81;
const CLOSE = 0x88;
const PING = 0x89;
const PONG = 0x8a;

function agree(fields = "Sec-WebSocket-Protocol: a\r\n"): string {
  return `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n${fields}\r\n`;
}

/** A client's frame, masked. */
function frame(first: number, payload: string | Buffer): Buffer {
  const bytes = Buffer.from(payload);
  const mask = Buffer.from([1, 2, 3, 4]);
  const length =
    bytes.length < 126
      ? Buffer.from([0x80 | bytes.length])
      : Buffer.from([0x80 | 126, bytes.length >> 8, bytes.length & 0xff]);
  const masked = Buffer.from(bytes.map((byte, index) => byte ^ (mask[index % 4] as number)));
  return Buffer.concat([Buffer.from([first]), length, mask, masked]);
}

/** A server's short frame. */
function said(first: number, payload: string | Buffer = ""): Buffer {
  const bytes = Buffer.from(payload);
  return Buffer.concat([Buffer.from([first, bytes.length]), bytes]);
}

interface Frame {
  first: number;
  payload: Buffer;
}

/** The server's frames a client received behind the handshake's answer. */
function framesIn(received: Buffer): Frame[] {
  const frames: Frame[] = [];
  const end = received.indexOf("\r\n\r\n");
  for (let at = end < 0 ? received.length : end + 4; at + 2 <= received.length; ) {
    const length = received[at + 1] as number;
    assert.ok(length < 126);
    if (at + 2 + length > received.length) break;
    frames.push({ first: received[at] as number, payload: received.subarray(at + 2, at + 2 + length) });
    at += 2 + length;
  }
  return frames;
}

describe("WebSocket over an application that ends", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  before(async () => {
    stage = await ReplayStage.start(
      [{ protocol: "websocket" }, { protocol: "auto", delivery: "atLeastOnce" }],
      { replayBytesMax: REPLAY_BYTES_MAX, stallMsMax: 20, pingMs: PING_MS, lingerMsMax: 200 },
    );
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  async function open(port = stage.port): Promise<{ client: RawEnd; server: RawEnd }> {
    const { client, server } = await stage.pair(HANDSHAKE, port);
    server.socket.write(agree());
    await client.has(agree().length);
    return { client, server };
  }

  /** The next life's end, when it has the repeated handshake and has agreed. */
  async function again(answer = agree()): Promise<{ server: RawEnd; behind: () => Buffer }> {
    const server = await stage.application.accept();
    await server.has(HANDSHAKE.length);
    assert.equal(String(server.received), HANDSHAKE, "byte for byte");
    server.socket.write(answer);
    return { server, behind: () => server.received.subarray(HANDSHAKE.length) };
  }

  async function closedWith(client: RawEnd): Promise<number | null> {
    assert.equal(await client.ending(), "end");
    const last = framesIn(client.received).at(-1);
    return last?.first === CLOSE ? last.payload.readUInt16BE(0) : null;
  }

  it("keeps the socket, repeats the handshake, and delivers what was sent meanwhile once and in order", async () => {
    const { client, server } = await open();
    client.socket.write(frame(TEXT, "before"));
    await server.has(HANDSHAKE.length + frame(TEXT, "before").length);
    stage.application.end();
    await stage.untilAway(1);
    const messages = Array.from({ length: 50 }, (_, index) => frame(TEXT, `message ${index}`));
    for (const message of messages) client.socket.write(message);
    await stage.application.begin();
    const { server: next, behind } = await again();
    await next.has(HANDSHAKE.length + Buffer.concat(messages).length);
    assert.ok(behind().equals(Buffer.concat(messages)), "what the old life was given is not repeated");
    next.socket.write(said(TEXT, "hello"));
    await client.until("hello", () =>
      framesIn(client.received).some(({ payload }) => String(payload) === "hello"),
    );
    assert.equal(client.over, null);
  });

  for (const [name, answer] of Object.entries({
    "another subprotocol": agree("Sec-WebSocket-Protocol: b\r\n"),
    "another extension": agree(
      "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    ),
    "a refusal": "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "something that is not HTTP": "\x00\x01\x02\x03 not\r\n\r\n",
  })) {
    it(`closes with 1012 when the next life answers the handshake with ${name}`, async () => {
      const before = await stage.count("webSocketsRefused");
      const { client } = await open();
      await stage.application.restart();
      await again(answer);
      assert.equal(await closedWith(client), 1012);
      assert.equal((await stage.count("webSocketsRefused")) - before, 1);
    });
  }

  it("tries again when a life ends in the middle of the handshake", async () => {
    const { client } = await open();
    await stage.application.restart();
    const first = await stage.application.accept();
    await first.has(HANDSHAKE.length);
    first.socket.resetAndDestroy();
    const { server } = await again();
    server.socket.write(said(TEXT, "third"));
    await client.until("third", () =>
      framesIn(client.received).some(({ payload }) => String(payload) === "third"),
    );
  });

  it("passes on what the next life says in one piece with its handshake", async () => {
    const { client } = await open();
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(HANDSHAKE.length);
    server.socket.write(Buffer.concat([Buffer.from(agree()), said(TEXT, "first word")]));
    await client.until("the word", () =>
      framesIn(client.received).some(({ payload }) => String(payload) === "first word"),
    );
  });

  it("resets a client whose next life agrees to a handshake before it was sent one", async () => {
    const request = "GET /first HTTP/1.1\r\nHost: app\r\n\r\n";
    const { client } = await stage.pair(request + HANDSHAKE);
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(request.length);
    assert.equal(String(server.received), request, "what follows waits for the answer");
    server.socket.write(`HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none${agree()}`);
    assert.equal(await client.ending(), "ECONNRESET");
    assert.equal(String(server.received), request);
  });

  it("does not dial for ever for an application that hangs up on everybody", async () => {
    const { client } = await open();
    let connections = 0;
    stage.application.serve = (socket) => {
      connections++;
      socket.once("data", () => socket.write(agree(), () => socket.resetAndDestroy()));
    };
    await stage.application.restart();
    assert.equal(await closedWith(client), 1012);
    assert.ok(connections >= 2 && connections <= 10, `${connections} connections`);
  });

  it("repeats messages that are not answered where the policy is at least once, and only those", async () => {
    const { client, server } = await open(stage.ports[AT_LEAST]);
    const answered = frame(TEXT, "answered");
    client.socket.write(answered);
    await server.has(HANDSHAKE.length + answered.length);
    server.socket.write(said(TEXT, "answer"));
    await client.until("an answer", () => framesIn(client.received).length === 1);
    const open1 = frame(TEXT, "open 1");
    const open2 = frame(TEXT, "open 2");
    client.socket.write(Buffer.concat([open1, open2]));
    await server.has(HANDSHAKE.length + answered.length + open1.length + open2.length);
    const before = await stage.count("messagesReplayed");
    await stage.application.restart();
    const { server: next, behind } = await again();
    await next.has(HANDSHAKE.length + open1.length + open2.length);
    assert.ok(behind().equals(Buffer.concat([open1, open2])));
    assert.equal((await stage.count("messagesReplayed")) - before, 2);
  });

  it("gives an unanswered message to three lives and no more", async () => {
    const { client, server } = await open(stage.ports[AT_LEAST]);
    const poison = frame(TEXT, "poison");
    client.socket.write(poison);
    await server.has(HANDSHAKE.length + poison.length);
    for (let life = 2; life <= 3; life++) {
      await stage.application.restart();
      const { server: next } = await again();
      await next.has(HANDSHAKE.length + poison.length);
    }
    await stage.application.restart();
    assert.equal(await closedWith(client), 1012);
  });

  it("closes with 1012 when more is unanswered than is kept", async () => {
    const { client, server } = await open(stage.ports[AT_LEAST]);
    const message = frame(0x82, Buffer.alloc(30_000));
    for (let index = 0; index < 3; index++) client.socket.write(message);
    await server.has(HANDSHAKE.length + 3 * message.length);
    await stage.application.restart();
    assert.equal(await closedWith(client), 1012);
  });

  it("outlives any number of messages that are answered, or given away, and of pings", async () => {
    for (const port of stage.ports) {
      const { client, server } = await open(port);
      const big = frame(0x82, Buffer.alloc(30_000));
      for (let index = 0; index < 5; index++) {
        client.socket.write(big);
        await server.has(HANDSHAKE.length + (index + 1) * big.length);
        const count = framesIn(client.received).length;
        server.socket.write(said(TEXT, "ok"));
        await client.until("ok", () => framesIn(client.received).length > count);
      }
      const ping = frame(PING, "p".repeat(120));
      const pings = 1000;
      for (let index = 0; index < pings; index++) client.socket.write(ping);
      await server.has(HANDSHAKE.length + 5 * big.length + pings * ping.length);
      await stage.application.restart();
      const { server: next } = await again();
      next.socket.write(said(TEXT, "still"));
      await client.until("still", () =>
        framesIn(client.received).some(({ payload }) => String(payload) === "still"),
      );
      client.socket.resetAndDestroy();
      await stage.proxy.untilSessions(0);
    }
  });

  it("gives a message whose fragments the old life had in part to the new life as a whole", async () => {
    const { client, server } = await open();
    const parts = [frame(0x01, "one "), frame(0x00, "two "), frame(0x80, "three")];
    client.socket.write(Buffer.concat(parts.slice(0, 2)));
    await server.has(HANDSHAKE.length + Buffer.concat(parts.slice(0, 2)).length);
    stage.application.end();
    await stage.untilAway(1);
    client.socket.write(parts[2] as Buffer);
    await stage.application.begin();
    const { server: next, behind } = await again();
    await next.has(HANDSHAKE.length + Buffer.concat(parts).length);
    assert.ok(behind().equals(Buffer.concat(parts)));
  });

  it("gives a message that was cut in the middle of a frame to the new life as a whole", async () => {
    const { client, server } = await open();
    const message = frame(0x82, randomBytes(50_000));
    client.socket.write(message.subarray(0, 33_333));
    await server.has(HANDSHAKE.length + 33_333);
    stage.application.end();
    await stage.untilAway(1);
    client.socket.write(message.subarray(33_333));
    await stage.application.begin();
    const { server: next, behind } = await again();
    await next.has(HANDSHAKE.length + message.length);
    assert.ok(behind().equals(message));
  });

  it("closes with 1012 when the beginning of a cut message is not kept any more", async () => {
    const { client, server } = await open();
    const fragment = frame(0x02, Buffer.alloc(60_000));
    const last = frame(0x80, Buffer.alloc(60_000));
    client.socket.write(Buffer.concat([fragment, last.subarray(0, 30_000)]));
    await server.has(HANDSHAKE.length + fragment.length + 30_000);
    await stage.application.restart();
    assert.equal(await closedWith(client), 1012);
  });

  it("answers a client's Close that the application will not answer any more", async () => {
    const { client, server } = await open();
    const close = frame(CLOSE, Buffer.from([0x03, 0xe8]));
    client.socket.write(close);
    await server.has(HANDSHAKE.length + close.length);
    await stage.application.restart();
    assert.equal(await closedWith(client), 1000);
  });

  it("delivers a Close that came while the application was unavailable, behind the messages before it", async () => {
    const { client } = await open();
    stage.application.end();
    await stage.untilAway(1);
    const words = Buffer.concat([frame(TEXT, "last words"), frame(CLOSE, Buffer.from([0x03, 0xe8]))]);
    client.socket.write(words);
    await stage.application.begin();
    const { server: next, behind } = await again();
    await next.has(HANDSHAKE.length + words.length);
    assert.ok(behind().equals(words));
    next.socket.end(said(CLOSE, Buffer.from([0x03, 0xe8])));
    assert.equal(await closedWith(client), 1000);
  });

  for (const how of ["reset", "fin"] as const) {
    it(`ends the connection honestly in the middle of the application's frame (${how})`, async () => {
      const { client, server } = await open();
      const part = said(TEXT, "a whole message").subarray(0, 6);
      server.socket.write(part);
      await client.has(agree().length + part.length);
      await stage.application.restart(how);
      assert.equal(await client.ending(), how === "fin" ? "end" : "ECONNRESET");
      assert.ok(client.received.subarray(agree().length).equals(part), "nothing was put behind it");
    });
  }

  it("closes with 1012 between two fragments of the application's message", async () => {
    const { client, server } = await open();
    const part = said(0x01, "first half");
    server.socket.write(part);
    await client.has(agree().length + part.length);
    await stage.application.restart();
    assert.equal(await closedWith(client), 1012);
  });

  it("answers the client's pings while the application is unavailable, and pings the client", async () => {
    const { client, server } = await open();
    const unanswered = frame(PING, "unanswered");
    client.socket.write(unanswered);
    await server.has(HANDSHAKE.length + unanswered.length);
    stage.application.end();
    await stage.untilAway(1);
    client.socket.write(frame(PING, "are you there"));
    await client.until("pongs and pings", () => {
      const frames = framesIn(client.received);
      const pongs = frames.filter(({ first }) => first === PONG).map(({ payload }) => String(payload));
      const pings = frames.filter(({ first }) => first === PING).length;
      return pongs.join() === "unanswered,are you there" && pings >= 2;
    });
    const pong = frame(PONG, "holdfast");
    client.socket.write(pong);
    await stage.application.begin();
    await again();
  });

  it("is closed with 1012 when the application does not come back in time", async () => {
    const short = await ReplayStage.start([{ protocol: "websocket" }], {
      unavailableMsMax: 50,
      lingerMsMax: 200,
    });
    try {
      const { client, server } = await short.pair(HANDSHAKE);
      server.socket.write(agree());
      await client.has(agree().length);
      short.application.end();
      assert.equal(await closedWith(client), 1012);
      // … and when it is back and does not answer the handshake.
      await short.application.begin();
      await short.resume();
      const second = await short.pair(HANDSHAKE);
      second.server.socket.write(agree());
      await second.client.has(agree().length);
      await short.application.restart();
      assert.equal(await closedWith(second.client), 1012);
      await short.proxy.untilSessions(0);
    } finally {
      await short.stop();
    }
  });

  it("does not show a paused application's goodbye", async () => {
    const { client, server } = await open();
    await stage.pause();
    server.socket.write(said(CLOSE, Buffer.from([0x03, 0xe9])));
    assert.equal(await server.ending(), "ECONNRESET");
    stage.application.end();
    await stage.application.begin();
    const resumed = stage.resume();
    const { server: next } = await again();
    await resumed;
    next.socket.write(said(TEXT, "back"));
    await client.until("back", () =>
      framesIn(client.received).some(({ payload }) => String(payload) === "back"),
    );
    assert.ok(!framesIn(client.received).some(({ first }) => first === CLOSE));
  });

  it("has its application's answers waited for by a pause, one for each message", async () => {
    const { client, server } = await open();
    const [first, second] = [frame(TEXT, "first"), frame(TEXT, "second")];
    client.socket.write(Buffer.concat([first, second]));
    await server.has(HANDSHAKE.length + first.length + second.length);
    server.socket.write(said(TEXT, "answer"));
    await client.has(agree().length + said(TEXT, "answer").length);
    const startMs = performance.now();
    await stage.pause(DRAIN_MS);
    // Nobody answers the second one: it is given up, but not at once.
    assert.ok(performance.now() - startMs >= ANSWER_MS_MIN);
    await stage.application.restart();
    const resumed = stage.resume();
    await again();
    await resumed;
  });

  for (const perMessageDeflate of [true, false]) {
    it(`ws goes on talking to ws, ${perMessageDeflate ? "with compression that remembers" : "uncompressed"}`, async () => {
      const serve = (socket: Socket): void => {
        const http = createServer();
        const server = new WebSocketServer({
          server: http,
          perMessageDeflate: perMessageDeflate ? { threshold: 0 } : false,
        });
        server.on("connection", (one) => {
          one.on("error", () => {});
          one.on("message", (message, isBinary) => one.send(message, { binary: isBinary }));
        });
        http.emit("connection", socket);
      };
      stage.application.serve = serve;
      const client = new WebSocket(`ws://127.0.0.1:${stage.port}`, {
        perMessageDeflate: perMessageDeflate ? { threshold: 0 } : false,
      });
      const failures: unknown[] = [];
      client.on("error", (error) => failures.push(error)).on("close", (code) => failures.push(code));
      await once(client, "open");
      const echoed = async (text: string): Promise<string> => {
        const answer = once(client, "message");
        client.send(text);
        return String((await within(`an echo of ${text.slice(0, 20)}`, answer))[0]);
      };
      for (let life = 0; life < 4; life++) {
        for (let index = 0; index < 5; index++) {
          const text = `the same words again and again, ${life} ${index} `.repeat(20);
          assert.equal(await echoed(text), text);
        }
        await stage.application.restart(life % 2 === 0 ? "reset" : "fin");
      }
      assert.deepEqual(failures, []);
      client.removeAllListeners("close").terminate();
    });
  }
});
