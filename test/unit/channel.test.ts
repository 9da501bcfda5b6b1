import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Duplex, duplexPair } from "node:stream";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { Channel, type ChannelOptions, checked } from "#proxy/contract/channel.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

function pair(left: ChannelOptions = {}, right: ChannelOptions = {}): { a: Channel; b: Channel } {
  const [x, y] = duplexPair();
  return { a: new Channel(x, { name: "b", ...left }), b: new Channel(y, { name: "a", ...right }) };
}

function frame(header: unknown, body: Buffer = Buffer.alloc(0)): Buffer {
  const json = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeUInt32BE(json.length, 0);
  prefix.writeUInt32BE(body.length, 4);
  return Buffer.concat([prefix, json, body]);
}

/** A stream the test feeds by hand. */
function handFed(): { stream: Duplex; feed(bytes: Buffer): void; end(): void } {
  const stream = new Duplex({ read() {}, write: (_chunk, _encoding, done) => done() });
  return { stream, feed: (bytes) => void stream.push(bytes), end: () => void stream.push(null) };
}

describe("channel", () => {
  test("a call brings back result and body", async () => {
    const { a } = pair(
      {},
      {
        handlers: {
          join: (params: { n: number }, body) => ({
            result: { n: params.n + 1 },
            body: [body, Buffer.from("-"), Buffer.alloc(0), Buffer.from("end")],
          }),
        },
      },
    );
    const { result, body } = await a.call<{ n: number }>("join", { n: 1 }, { body: Buffer.from("start") });
    assert.deepEqual(result, { n: 2 });
    assert.equal(body.toString(), "start-end");
    a.close();
  });

  test("both sides call each other at once, large bodies included", async () => {
    const echo = { echo: async (_params: unknown, body: Buffer) => ({ body }) };
    const { a, b } = pair({ handlers: echo }, { handlers: echo });
    const big = Buffer.alloc(3_000_000, 7);
    const answers = await Promise.all(
      [a, b].flatMap((end) => [1, 2, 3].map(() => end.call("echo", {}, { body: big }))),
    );
    for (const { body } of answers) assert.ok(body.equals(big));
    a.close();
    assert.equal(await b.closed, null);
  });

  test("a HoldfastError crosses whole, anything else becomes INTERNAL", async () => {
    const { a } = pair(
      {},
      {
        handlers: {
          ours: async () => {
            throw new HoldfastError("no space: free some", {
              code: "IMAGES_FULL",
              source: "criu",
              retryable: true,
            });
          },
          foreign: () => {
            throw new TypeError("x is undefined");
          },
          notJson: () => ({ result: 1n }),
        },
      },
    );
    await assert.rejects(a.call("ours", {}), {
      code: "IMAGES_FULL",
      source: "criu",
      retryable: true,
      message: "no space: free some",
    });
    await assert.rejects(a.call("foreign", {}), { code: "INTERNAL", message: "x is undefined" });
    await assert.rejects(a.call("notJson", {}), { code: "INTERNAL" });
    await assert.rejects(a.call("nothing", {}), { code: "CHANNEL_METHOD" });
    a.close();
  });

  test("checked refuses what its schema refuses", async () => {
    const schema = {
      parse(value: unknown) {
        const { epoch } = value as { epoch: unknown };
        if (typeof epoch !== "number") throw new Error("epoch: expected a number");
        return { epoch };
      },
    };
    const { a } = pair({}, { handlers: { hold: checked(schema, ({ epoch }) => ({ result: epoch })) } });
    assert.equal((await a.call("hold", { epoch: 3 })).result, 3);
    await assert.rejects(a.call("hold", { epoch: "3" }), { code: "CHANNEL_PARAMS", message: /epoch/ });
    a.close();
  });

  test("time-out and abort give a call up, and its late answer is ignored", async () => {
    const { a } = pair({}, { handlers: { slow: () => sleep(30), quick: () => ({ result: 1 }) } });
    await assert.rejects(a.call("slow", {}, { timeoutMs: 5 }), { code: "CHANNEL_TIMEOUT", retryable: true });
    const stop = new AbortController();
    const call = a.call("slow", {}, { signal: stop.signal });
    stop.abort(new Error("no longer wanted"));
    await assert.rejects(call, { code: "CHANNEL_ABORTED", message: /no longer wanted/ });
    await assert.rejects(a.call("slow", {}, { signal: stop.signal }), { code: "CHANNEL_ABORTED" });
    await sleep(40);
    assert.equal((await a.call("quick", {})).result, 1);
    assert.ok(a.isOpen);
    a.close();
  });

  test("when the stream ends every pending call rejects, and later ones too", async () => {
    const { a, b } = pair({}, { handlers: { never: () => new Promise(() => {}) } });
    const call = a.call("never", {});
    await sleep(5);
    b.close();
    await assert.rejects(call, { code: "CHANNEL_CLOSED", retryable: true });
    assert.equal(await a.closed, null);
    assert.equal(a.isOpen, false);
    await assert.rejects(a.call("never", {}), { code: "CHANNEL_CLOSED" });
    await assert.rejects(a.send("never", {}), { code: "CHANNEL_CLOSED" });
  });

  test("events keep their order, hold back what follows, and are all delivered before an orderly end", async () => {
    const seen: string[] = [];
    const { a, b } = pair(
      {},
      {
        handlers: {
          chunk: async (params: { n: number }) => {
            await sleep(1);
            seen.push(`chunk ${params.n}`);
          },
          end: () => {
            seen.push("end");
          },
        },
      },
    );
    for (let n = 0; n < 5; n++) await a.send("chunk", { n }, Buffer.alloc(10));
    await a.call("end", {});
    for (let n = 5; n < 8; n++) await a.send("chunk", { n });
    a.close();
    assert.equal(await b.closed, null);
    assert.deepEqual(
      seen,
      [0, 1, 2, 3, 4, "end", 5, 6, 7].map((n) => (n === "end" ? n : `chunk ${n}`)),
    );
  });

  test("a slow receiver slows the sender down", async () => {
    let received = 0;
    let open = false;
    const { a, b } = pair(
      {},
      {
        handlers: {
          chunk: async () => {
            received += 1;
            while (!open) await sleep(1);
          },
        },
      },
    );
    let sent = 0;
    const sending = (async () => {
      for (; sent < 200; sent++) await a.send("chunk", {}, Buffer.alloc(16_384));
    })();
    await sleep(30);
    assert.equal(received, 1);
    assert.ok(sent < 30, `${sent} chunks were taken while the first one was being worked on`);
    open = true;
    await sending;
    a.close();
    await b.closed;
    assert.equal(received, 200);
  });

  test("a failing event handler closes the channel and tells why", async () => {
    const { a, b } = pair(
      {},
      {
        handlers: {
          bad: async () => {
            throw new HoldfastError("disk full", { code: "IMAGES_FULL", source: "kernel" });
          },
        },
      },
    );
    await a.send("bad", {});
    assert.equal((await b.closed)?.code, "IMAGES_FULL");
    const c = pair();
    await c.a.send("unknown", {});
    assert.equal((await c.b.closed)?.code, "CHANNEL_PROTOCOL");
  });

  test("lengths are refused before anything is allocated, on the way in and out", async () => {
    for (const [header, body] of [
      [0xffff_ffff, 0],
      [10, 0xffff_ffff],
      [0, 10],
    ] as const) {
      const { stream, feed } = handFed();
      const channel = new Channel(stream);
      const bytes = Buffer.alloc(8);
      bytes.writeUInt32BE(header, 0);
      bytes.writeUInt32BE(body, 4);
      feed(bytes);
      assert.equal((await channel.closed)?.code, "CHANNEL_PROTOCOL");
      assert.ok(stream.destroyed);
    }
    const { a } = pair({ bodyBytesMax: 100 }, { handlers: { ok: () => ({ result: 1 }) } });
    await assert.rejects(a.call("ok", {}, { body: Buffer.alloc(101) }), { code: "CHANNEL_TOO_LARGE" });
    assert.equal((await a.call("ok", {}, { body: Buffer.alloc(100) })).result, 1);
    a.close();
  });

  test("a peer that calls and never reads the answers is cut off", async () => {
    const { stream, feed } = handFed();
    stream._write = () => {};
    const channel = new Channel(stream, { callsMax: 10, handlers: { ping: () => ({ result: 1 }) } });
    for (let id = 1; id <= 11; id++) feed(frame({ k: "call", id, m: "ping", p: {} }));
    assert.match((await channel.closed)?.message ?? "", /more than 10 calls/);
  });

  test("headers that are no frame of ours close the channel", async () => {
    for (const header of [
      "not json",
      "[]",
      "null",
      { k: "shout" },
      { k: "call", id: 1, m: "x" },
      { k: "call", id: -1, m: "x", p: {} },
      { k: "call", id: 1, m: "", p: {} },
      { k: "event", m: "x", p: [] },
      { k: "reply", id: 99, p: {} },
      { k: "constructor", id: 1, m: "x", p: {} },
    ]) {
      const { stream, feed } = handFed();
      const channel = new Channel(stream);
      feed(frame(header));
      assert.equal((await channel.closed)?.code, "CHANNEL_PROTOCOL", JSON.stringify(header));
    }
  });

  test("an end in the middle of a frame is not an orderly end", async () => {
    const { stream, feed, end } = handFed();
    const channel = new Channel(stream);
    feed(frame({ k: "event", m: "x", p: {} }).subarray(0, 12));
    end();
    assert.equal((await channel.closed)?.code, "CHANNEL_CLOSED");
  });

  test("any split of the byte stream gives the same frames", async () => {
    const events = fc.array(fc.record({ text: fc.string(), body: fc.uint8Array({ maxLength: 9000 }) }), {
      minLength: 1,
      maxLength: 6,
    });
    await fc.assert(
      fc.asyncProperty(events, fc.infiniteStream(fc.integer({ min: 1, max: 5000 })), async (sent, sizes) => {
        const { stream, feed, end } = handFed();
        const seen: { text: string; body: Uint8Array }[] = [];
        const channel = new Channel(stream, {
          handlers: {
            e: (params: { text: string }, body) => {
              seen.push({ text: params.text, body: new Uint8Array(body) });
              return seen.length % 2 === 0 ? Promise.resolve() : undefined;
            },
          },
        });
        const bytes = Buffer.concat(
          sent.map(({ text, body }) => frame({ k: "event", m: "e", p: { text } }, Buffer.from(body))),
        );
        for (let at = 0; at < bytes.length; ) {
          const size = sizes.next().value as number;
          feed(bytes.subarray(at, at + size));
          at += size;
        }
        end();
        assert.equal(await channel.closed, null);
        assert.deepEqual(
          seen,
          sent.map(({ text, body }) => ({ text, body })),
        );
      }),
      { numRuns: 100 },
    );
  });

  test("garbage never throws anything, it only closes", async () => {
    const header = fc.oneof(
      fc.json().map((json) => frame(json)),
      fc
        .record({
          k: fc.constantFrom("call", "reply", "error", "event"),
          id: fc.nat(3),
          m: fc.string(),
          p: fc.jsonValue(),
        })
        .map((value) => frame(value)),
      fc.uint8Array({ minLength: 1, maxLength: 64 }).map((bytes) => Buffer.from(bytes)),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(header, { minLength: 1, maxLength: 5 }), async (parts) => {
        const { stream, feed, end } = handFed();
        const channel = new Channel(stream, { handlers: { "": () => {} } });
        const call = channel.call("x", {}).catch((error: unknown) => {
          assert.ok(error instanceof HoldfastError);
        });
        for (const part of parts) feed(part);
        end();
        await channel.closed;
        await call;
        assert.equal(channel.isOpen, false);
      }),
      { numRuns: 300 },
    );
  });

  test("a round trip over a Unix socket is a matter of microseconds", async (t) => {
    const folder = mkdtempSync(join(tmpdir(), "holdfast-channel-"));
    const path = join(folder, "socket");
    const server = createServer((socket) => {
      new Channel(socket, { handlers: { ping: () => ({ result: 1 }) } });
    });
    server.listen(path);
    await once(server, "listening");
    const socket: Socket = connect(path);
    await once(socket, "connect");
    const channel = new Channel(socket);
    for (let n = 0; n < 500; n++) await channel.call("ping", {});
    const calls = 2000;
    const startedMs = performance.now();
    for (let n = 0; n < calls; n++) await channel.call("ping", { epoch: n }, { timeoutMs: 1000 });
    t.diagnostic(`${(((performance.now() - startedMs) * 1000) / calls).toFixed(1)} us a call`);
    channel.close();
    server.close();
    await once(server, "close");
    rmSync(folder, { recursive: true });
  });
});
