/** The observer sees what is there, however it is cut, and whenever it changes the process. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { type Duplex, duplexPair } from "node:stream";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { Observer, type ObserverOptions } from "#proxy/protocol/observer.ts";
import {
  cuts,
  garbage,
  httpConversation,
  mutated,
  observe,
  recordingHooks,
  type Segment,
  stateOf,
  webSocketConversation,
} from "#test/support/observed.ts";

const conversation = fc.oneof(httpConversation, webSocketConversation);
const anything = fc.oneof(
  conversation.map(({ segments }) => segments),
  mutated(conversation),
  garbage,
);
const protocol = fc.constantFrom<ObserverOptions["protocol"]>(
  "auto",
  "http",
  "websocket",
  "tls",
  "h2",
  "tcp",
);
const SAVED_BYTES_MAX = 200_000;

describe("the observer", () => {
  it("sees the messages that were written", () => {
    fc.assert(
      fc.property(conversation, cuts, ({ segments, events, inFlight }, pieces) => {
        const seen = observe(segments, pieces);
        assert.deepEqual(seen.events, events);
        assert.equal((seen.state.inFlight as unknown[]).length, inFlight);
        assert.equal(seen.state.opaqueReason, null);
      }),
      { numRuns: 400 },
    );
  });

  it("sees the same however the bytes are cut", () => {
    fc.assert(
      fc.property(anything, cuts, protocol, fc.boolean(), (segments, pieces, name, fin) => {
        const whole = observe(segments, [], { protocol: name, fin });
        assert.deepEqual(observe(segments, pieces, { protocol: name, fin }), whole);
        assert.deepEqual(observe(segments, [1], { protocol: name, fin }), whole);
      }),
      { numRuns: 400 },
    );
  });

  it("goes on in another process as if it had stayed", () => {
    fc.assert(
      fc.property(anything, cuts, protocol, fc.boolean(), (segments, pieces, name, fin) => {
        const stayed = observe(segments, pieces, { protocol: name, fin });
        assert.deepEqual(observe(segments, pieces, { protocol: name, fin, restart: true }), stayed);
      }),
      { numRuns: 400 },
    );
  });

  it("finds the requests that node:http finds, or does not name them", async () => {
    let named = 0;
    const requests = fc.oneof(
      httpConversation.map(({ segments }) => segments),
      mutated(httpConversation),
    );
    await fc.assert(
      fc.asyncProperty(requests, async (segments) => {
        const bytes = Buffer.concat(
          segments.filter(({ side }) => side === "client").map((segment) => segment.bytes),
        );
        if (/CONNECT|upgrade/i.test(bytes.toString("latin1"))) return;
        const begun: string[] = [];
        const ended: string[] = [];
        const observer = new Observer({
          protocol: "http",
          hooks: {
            onRequest: (_record, head) => begun.push(`${head.method} ${head.target}`),
            onRequestEnd: () => ended.push(begun.at(-1) as string),
          },
        });
        observer.inbound(bytes);
        const theirs = await parsedByNode(bytes);
        if (observer.opaqueReason !== null || theirs === null) return;
        named++;
        assert.deepEqual(ended, theirs);
      }),
      { numRuns: 300 },
    );
    assert.ok(named > 50, `only ${named} compared`);
  });
});

/** Complete requests as node's own server understands them, without a socket; null: it refuses. */
async function parsedByNode(bytes: Buffer): Promise<string[] | null> {
  const found: string[] = [];
  const server = createServer({ requireHostHeader: false, requestTimeout: 0, headersTimeout: 0 });
  let refused = false;
  let gone = false;
  const [client, accepted] = duplexPair() as [Duplex, Duplex];
  server.on("request", (request, response) => {
    request.resume();
    request.once("end", () => {
      found.push(`${request.method} ${request.url}`);
      response.end();
    });
    request.on("error", () => {});
  });
  server.on("checkExpectation", (_request, response) => response.end());
  server.on("clientError", (error: NodeJS.ErrnoException) => {
    // the end of the bytes in mid-request is no refusal
    refused ||= error.code !== "HPE_INVALID_EOF_STATE" && error.code !== "ECONNRESET";
    client.destroy();
  });
  client.on("error", () => {});
  accepted.on("error", () => {});
  client.once("close", () => {
    gone = true;
  });
  server.emit("connection", accepted);
  client.resume();
  client.end(bytes);
  if (!gone) await once(client, "close");
  server.close();
  return refused ? null : found;
}

describe("a saved observer", () => {
  const options = { protocol: "auto", hooks: {} } as const;

  it("is refused or works when anybody has changed it", () => {
    fc.assert(
      fc.property(
        anything,
        fc.array(fc.tuple(fc.nat(), fc.nat({ max: 255 })), { maxLength: 4 }),
        fc.double({ min: 0, max: 2, noNaN: true }),
        anything,
        (segments, edits, share, more) => {
          const saved = saveOf(segments);
          for (const [at, byte] of edits) saved[at % saved.length] = byte;
          const cut = saved.subarray(0, Math.ceil(saved.length * share));
          let observer: Observer;
          try {
            observer = Observer.restore(cut, options);
          } catch (error) {
            assert.ok(error instanceof HoldfastError && error.code === "OBSERVER_INVALID", String(error));
            assert.equal(error.source, "peer");
            return;
          }
          feed(observer, more);
          observer.outboundFin();
          observer.inboundFin();
          stateOf(observer);
        },
      ),
      { numRuns: 600 },
    );
  });

  it("is refused when cut short or continued", () => {
    const saved = saveOf([{ side: "client", bytes: Buffer.from("GET / HTTP/1.1\r\n\r\nGET / HT") }]);
    Observer.restore(saved, options);
    const refusal = { code: "OBSERVER_INVALID", source: "peer" };
    for (let length = 0; length < saved.length; length++)
      assert.throws(() => Observer.restore(saved.subarray(0, length), options), refusal);
    assert.throws(() => Observer.restore(Buffer.concat([saved, Buffer.of(0)]), options), refusal);
  });
});

describe("whatever comes, the observer", () => {
  const endless: [string, Segment["side"], string, string][] = [
    ["a head without end", "client", "GET / HTTP/1.1\r\n", "a: b\r\n"],
    ["a line without end", "client", "GET /", "x".repeat(1000)],
    ["a target without end, a byte at a time", "client", "GET /", "x"],
    [
      "trailers without end",
      "client",
      "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
      "a: b\r\n",
    ],
    ["an extension without end", "client", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", "x"],
    ["requests without end", "client", "", "GET / HTTP/1.1\r\n\r\n"],
    ["empty lines without end", "client", "GET / HTTP/1.1\r\n\r\n", "\r\n"],
    ["1xx without end", "server", "", "HTTP/1.1 100 Continue\r\n\r\n"],
    ["an answer's head without end", "server", "HTTP/1.1 200 OK\r\n", "a: b\r\n"],
  ];
  for (const [what, side, start, repeated] of endless) {
    it(`keeps a bounded part of it: ${what}`, () => {
      const observer = new Observer({ protocol: "auto", hooks: {} });
      if (side === "server") observer.inbound(Buffer.from("GET / HTTP/1.1\r\n\r\n"));
      feed(observer, [{ side, bytes: Buffer.from(start) }]);
      const more = [{ side, bytes: Buffer.from(repeated) }];
      const times = Math.max(3000, Math.ceil(150_000 / repeated.length));
      for (let time = 0; time < times; time++) feed(observer, more);
      assert.ok(observer.save().length < SAVED_BYTES_MAX);
      if (what !== "1xx without end") assert.equal(observer.protocol, "tcp");
      assert.ok(observer.inFlightCount <= 1024);
    });
  }

  it("never throws, and what it saves is bounded", () => {
    fc.assert(
      fc.property(fc.array(anything, { maxLength: 6 }), protocol, (parts, name) => {
        const observer = new Observer({ protocol: name, hooks: recordingHooks([]) });
        for (const part of parts) feed(observer, part);
        assert.ok(observer.save().length < SAVED_BYTES_MAX);
        const bytes = parts.flat().reduce((sum, { bytes }) => sum + bytes.length, 0);
        assert.equal(observer.bytesIn + observer.bytesOut, bytes);
      }),
      { interruptAfterTimeLimit: 3000, numRuns: 5000, markInterruptAsFailure: false },
    );
  });
});

function feed(observer: Observer, segments: readonly Segment[]): void {
  for (const { side, bytes } of segments) {
    if (side === "client") observer.inbound(bytes);
    else observer.outbound(bytes);
  }
}

function saveOf(segments: readonly Segment[]): Buffer {
  const observer = new Observer({ protocol: "auto", hooks: {} });
  feed(observer, segments);
  return observer.save();
}
