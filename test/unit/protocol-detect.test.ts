/** What the first bytes tell, those of real clients too. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { duplexPair } from "node:stream";
import { describe, it } from "node:test";
import { connect } from "node:tls";
import fc from "fast-check";
import { DETECT_BYTES_MAX, detect, type Protocol, tlsClientHello } from "#proxy/protocol/detect.ts";
import { Observer, type ObserverOptions } from "#proxy/protocol/observer.ts";

/** As node's own client sends it. */
async function clientHello(options: { servername?: string; ALPNProtocols?: string[] }): Promise<Buffer> {
  const [near, far] = duplexPair();
  const socket = connect({ socket: near, rejectUnauthorized: false, ...options });
  socket.on("error", () => {});
  const [hello] = (await once(far, "data")) as [Buffer];
  socket.destroy();
  return hello;
}

/** The same message in records of at most `size` bytes (RFC 8446 5.1). */
function inRecords(hello: Buffer, size: number): Buffer {
  const message = hello.subarray(5);
  const records: Buffer[] = [];
  for (let at = 0; at < message.length; at += size) {
    const fragment = message.subarray(at, at + size);
    records.push(Buffer.of(22, 3, 1, fragment.length >> 8, fragment.length & 0xff), fragment);
  }
  return Buffer.concat(records);
}

function observer(protocol: ObserverOptions["protocol"] = "auto"): Observer {
  return new Observer({ protocol, hooks: {} });
}

describe("the first bytes", () => {
  const cases: [text: string, found: Protocol | null, done: Protocol][] = [
    ["", null, "tcp"],
    ["G", null, "tcp"],
    ["GET /", null, "tcp"],
    ["GET / HTTP/1.1\r", null, "tcp"],
    ["GET / HTTP/1.1\r\n", "http", "http"],
    ["\r\n\r\nGET / HTTP/1.0\r\n", "http", "http"],
    ["M-SEARCH * HTTP/1.1\r\n", "http", "http"],
    ["GET / HTTP/1.1\n", "http", "http"],
    ["GET key\r\n", "tcp", "tcp"],
    ["PING\r\n", "tcp", "tcp"],
    ["*1\r\n$4\r\nPING\r\n", "tcp", "tcp"],
    ["get / HTTP/1.1\r\n", "tcp", "tcp"],
    ["GET / HTTP/1.1 x", "tcp", "tcp"],
    ["GET \0", "tcp", "tcp"],
    ["\r\n\r\n\r\n\r\n\r\n", "tcp", "tcp"],
    ["\rG", "tcp", "tcp"],
    ["EHLO a\r\n", "tcp", "tcp"],
    ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2", "h2"],
    ["PRI * HTTP/2.0\r\n\r\nS", null, "tcp"],
    ["SSH-2.0-x\r\n", "tcp", "tcp"],
    ["\x16", null, "tcp"],
    ["\x16\x03\x01\x00\x40\x01", "tls", "tls"],
    ["\x16\x03\x01\x00\x40\x02", "tcp", "tcp"],
    ["\x16\x02", "tcp", "tcp"],
    ["\x16\x03\x01\x00\x00", "tcp", "tcp"],
  ];
  for (const [text, found, done] of cases) {
    it(`${JSON.stringify(text)} are ${found ?? "not enough"}`, () => {
      assert.equal(detect(Buffer.from(text, "latin1"), false), found);
      assert.equal(detect(Buffer.from(text, "latin1"), true), done);
    });
  }

  it("never change their mind", () => {
    const prefixes = fc.oneof(
      fc.constantFrom(
        "GET /a HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\r\n\r\nPOST / HTTP/1.0\r\n",
      ),
      fc.stringMatching(/^[GETPRI* /HTTP1.\r\n]{0,40}$/),
    );
    fc.assert(
      fc.property(prefixes, (text) => {
        const bytes = Buffer.from(text, "latin1");
        let found: Protocol | null = null;
        for (let length = 0; length <= bytes.length; length++) {
          const now = detect(bytes.subarray(0, length), false);
          if (found !== null) assert.equal(now, found);
          found = now;
        }
      }),
    );
  });

  it("are not kept without a bound", () => {
    assert.equal(detect(Buffer.from(`GET /${"a".repeat(DETECT_BYTES_MAX)}`), false), "http");
    const waiting = observer();
    waiting.inbound(Buffer.from("GET /"));
    for (let length = 5; length < DETECT_BYTES_MAX; length++) {
      assert.equal(waiting.protocol, "detecting");
      waiting.inbound(Buffer.from("a"));
    }
    assert.equal(waiting.protocol, "http");
    waiting.inbound(Buffer.from(" HTTP/1.1\r\n\r\n"));
    assert.equal(waiting.inFlight[0]?.end, waiting.bytesIn);
  });

  it("are looked at within that bound however they are cut", () => {
    const line = Buffer.from(`GET /${"a".repeat(2 * DETECT_BYTES_MAX)} HTTP\r\n`);
    const whole = observer();
    whole.inbound(line);
    const parts = observer();
    for (const byte of line) parts.inbound(Buffer.of(byte));
    assert.equal(whole.opaqueReason, "http-version");
    assert.equal(parts.opaqueReason, "http-version");
  });

  it("are not waited for when the server speaks first", () => {
    const first = observer();
    first.outbound(Buffer.from("220 ready\r\n"));
    assert.equal(first.protocol, "tcp");
    assert.equal(first.opaqueReason, null);
    const between = observer();
    between.inbound(Buffer.from("GE"));
    between.outbound(Buffer.from("x"));
    between.inbound(Buffer.from("T / HTTP/1.1\r\n\r\n"));
    assert.equal(between.protocol, "tcp");
  });

  it("are all there are when the client has ended", () => {
    const ended = observer();
    ended.inbound(Buffer.from("GE"));
    assert.equal(ended.protocol, "detecting");
    ended.inboundFin();
    assert.equal(ended.protocol, "tcp");
  });
});

describe("a ClientHello", () => {
  it("gives its names, in any records and any pieces", async () => {
    const hello = await clientHello({ servername: "shop.example.org", ALPNProtocols: ["h2", "http/1.1"] });
    fc.assert(
      fc.property(fc.integer({ min: 60, max: 2000 }), fc.integer({ min: 1, max: 700 }), (size, step) => {
        const bytes = inRecords(hello, size);
        const watching = observer();
        for (let at = 0; at < bytes.length; at += step) {
          assert.equal(watching.serverName, null);
          watching.inbound(bytes.subarray(at, at + step));
        }
        assert.equal(watching.protocol, "tls");
        assert.equal(watching.serverName, "shop.example.org");
        assert.deepEqual(watching.alpn, ["h2", "http/1.1"]);
        assert.deepEqual(tlsClientHello(bytes), { serverName: "shop.example.org", alpn: ["h2", "http/1.1"] });
      }),
    );
  });

  it("has no names when it is in more records than anybody sends", async () => {
    const bytes = inRecords(await clientHello({ servername: "a.example" }), 4);
    const watching = observer();
    for (const byte of bytes) watching.inbound(Buffer.of(byte));
    assert.equal(watching.protocol, "tls");
    assert.equal(watching.serverName, null);
    assert.ok(watching.save().length < 100);
  });

  it("gives them when it is large", async () => {
    const ALPNProtocols = Array.from({ length: 50 }, (_, index) => `${index}`.padStart(220, "p"));
    const hello = await clientHello({ servername: "a.example", ALPNProtocols });
    assert.ok(hello.length > DETECT_BYTES_MAX + 1000);
    for (const first of [hello.length, hello.length - 1, DETECT_BYTES_MAX, 6]) {
      const watching = observer();
      watching.inbound(hello.subarray(0, first));
      watching.inbound(hello.subarray(first));
      assert.equal(watching.serverName, "a.example");
      assert.deepEqual(watching.alpn, ALPNProtocols);
    }
  });

  it("may have no names", async () => {
    assert.deepEqual(tlsClientHello(await clientHello({})), { serverName: null, alpn: [] });
  });

  it("is refused or read, whatever becomes of its bytes", async () => {
    const hello = await clientHello({ servername: "a.example", ALPNProtocols: ["h2"] });
    for (let length = 0; length < hello.length; length++)
      assert.equal(tlsClientHello(hello.subarray(0, length)), "incomplete");
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(), fc.nat({ max: 255 })), { minLength: 1, maxLength: 6 }),
        (edits) => {
          const altered = Buffer.from(hello);
          for (const [at, byte] of edits) altered[at % altered.length] = byte;
          const found = tlsClientHello(altered);
          assert.ok(typeof found === "string" || Array.isArray(found.alpn));
          const watching = observer("tls");
          watching.inbound(altered);
          assert.ok(watching.protocol === "tls" || watching.opaqueReason === "not-tls");
        },
      ),
      { numRuns: 500 },
    );
  });

  it("is given up when the server answers its half", async () => {
    const hello = await clientHello({ servername: "a.example" });
    const watching = observer();
    watching.inbound(hello.subarray(0, 50));
    watching.outbound(Buffer.of(21, 3, 3, 0, 2, 2, 40));
    watching.inbound(hello.subarray(50));
    assert.equal(watching.protocol, "tls");
    assert.equal(watching.serverName, null);
    assert.ok(watching.save().length < 100);
  });
});

describe("a port that says what it carries", () => {
  const cases: [ObserverOptions["protocol"], Protocol, string, Protocol, string | null][] = [
    ["tcp", "tcp", "GET / HTTP/1.1\r\n\r\n", "tcp", null],
    ["http", "http", "\x16\x03\x01", "tcp", "request-line"],
    ["websocket", "http", "GET / HTTP/1.1\r\n\r\n", "http", null],
    ["tls", "tls", "GET / HTTP/1.1\r\n\r\n", "tcp", "not-tls"],
    ["h2", "h2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2", null],
    ["h2", "h2", "GET / HTTP/1.1\r\n\r\n", "tcp", "not-h2"],
    ["h2", "h2", "PRI * HTTP/2.0\r\n\r\nSX", "tcp", "not-h2"],
  ];
  for (const [protocol, before, text, after, reason] of cases) {
    it(`${protocol}, and gets ${JSON.stringify(text.slice(0, 24))}`, () => {
      const watching = observer(protocol);
      assert.equal(watching.protocol, before);
      watching.inbound(Buffer.from(text, "latin1"));
      assert.equal(watching.protocol, after);
      assert.equal(watching.opaqueReason, reason);
    });
  }

  it("h2, where the server need not wait", () => {
    const watching = observer("h2");
    watching.outbound(Buffer.alloc(9));
    watching.inbound(Buffer.from("GET / HTTP/1.1\r\n"));
    assert.equal(watching.opaqueReason, "not-h2");
  });
});
