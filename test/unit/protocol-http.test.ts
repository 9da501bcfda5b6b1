/** HTTP/1.x as the observer frames it: what it names, and each thing it refuses to. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Observer } from "#proxy/protocol/observer.ts";
import type { OpaqueReason } from "#proxy/protocol/opaque-reason.ts";
import { recordingHooks, type Segment } from "#test/support/observed.ts";

interface Stage {
  observer: Observer;
  events: string[];
  client(text: string): void;
  server(text: string): void;
}

function http(): Stage {
  const events: string[] = [];
  const observer = new Observer({ protocol: "http", hooks: recordingHooks(events) });
  return {
    observer,
    events,
    client: (text) => observer.inbound(Buffer.from(text, "latin1")),
    server: (text) => observer.outbound(Buffer.from(text, "latin1")),
  };
}

const GET = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const head = (line: string, ...fields: string[]) => `${[line, ...fields].join("\r\n")}\r\n\r\n`;
const post = (...fields: string[]) => head("POST / HTTP/1.1", ...fields);
const chunks = (text: string) => `${post("Transfer-Encoding: chunked")}${text}`;

describe("a request is not named", () => {
  const cases: [what: string, reason: OpaqueReason, text: string][] = [
    ["that is no request", "request-line", "\x16\x03\x01"],
    ["without a target", "request-line", "GET  HTTP/1.1\r\n"],
    ["of HTTP/0.9", "request-line", "GET /\r\n"],
    ["with a space in its target", "http-version", "GET /a b HTTP/1.1\r\n"],
    ["with a lower-case method", "request-line", "get / HTTP/1.1\r\n"],
    ["with a method in two cases", "method", "GeT / HTTP/1.1\r\n"],
    ["with a method of 25 bytes", "method", `${"A".repeat(25)} / HTTP/1.1\r\n`],
    ["of HTTP/1.2", "http-version", "GET / HTTP/1.2\r\n"],
    ["of HTTP/2.0", "http-version", "GET / HTTP/2.0\r\n"],
    ["whose version is cut short", "http-version", "GET / HTTP\r\n"],
    ["of http/1.1", "http-version", "GET / http/1.1\r\n"],
    ["with more behind its version", "request-line", "GET / HTTP/1.1 \r\n"],
    ["whose first line ends in a bare LF", "bare-lf", "GET / HTTP/1.1\nHost: a\r\n\r\n"],
    ["with a bare LF behind a field", "bare-lf", "GET / HTTP/1.1\r\nHost: a\n\r\n"],
    ["with a bare LF for its empty line", "bare-lf", "GET / HTTP/1.1\r\nHost: a\r\n\n"],
    ["with a bare CR in a value", "bare-cr", "GET / HTTP/1.1\r\nA: b\rc: d\r\n"],
    ["with a folded field", "obs-fold", "GET / HTTP/1.1\r\nA: b\r\n c\r\n"],
    ["with a tab before its first field", "obs-fold", "GET / HTTP/1.1\r\n\tA: b\r\n"],
    ["with a space before the colon", "field-name", "GET / HTTP/1.1\r\nA : b\r\n"],
    ["with an empty field name", "field-name", "GET / HTTP/1.1\r\n: b\r\n"],
    ["with a line that is no field", "field-name", "GET / HTTP/1.1\r\nA\r\n"],
    ["with a NUL in a name", "field-name", "GET / HTTP/1.1\r\nA\0: b\r\n"],
    ["with a NUL in a value", "field-value", "GET / HTTP/1.1\r\nA: b\0\r\n"],
    ["with DEL in a value", "field-value", "GET / HTTP/1.1\r\nA: \x7f\r\n"],
    ["with two lengths that differ", "content-length", post("Content-Length: 1", "Content-Length: 2")],
    ["with two lengths that are the same", "content-length", post("Content-Length: 1", "Content-Length: 1")],
    ["with a list of lengths", "content-length", post("Content-Length: 1, 1")],
    ["with a signed length", "content-length", post("Content-Length: +1")],
    ["with a hexadecimal length", "content-length", post("Content-Length: 0x1")],
    ["with an empty length", "content-length", post("Content-Length: ")],
    ["with a length that some read as octal", "content-length", post("Content-Length: 010")],
    ["with a length under a gateway's name", "content-length", post("Content_Length: 1")],
    ["with a coding under a gateway's name", "transfer-encoding", post("Transfer_Encoding: chunked")],
    [
      "with a length that is for the next hop only",
      "content-length",
      post("Connection: close, content-length"),
    ],
    ["with an extension without a name", "chunk-extension", chunks("3;\r\n")],
    [
      "behind one that was the last",
      "request-after-close",
      `${head("GET / HTTP/1.1", "Connection: close")}G`,
    ],
    ["with a length beyond 2^53", "content-length", post("Content-Length: 9007199254740993")],
    ["with a length of 17 digits", "content-length", post("Content-Length: 00000000000000001")],
    [
      "with length and coding",
      "length-and-transfer-encoding",
      post("Content-Length: 3", "Transfer-Encoding: chunked"),
    ],
    [
      "with coding and length",
      "length-and-transfer-encoding",
      post("Transfer-Encoding: chunked", "Content-Length: 3"),
    ],
    ["with a coding that is not chunked", "transfer-encoding", post("Transfer-Encoding: identity")],
    ["with two codings", "transfer-encoding", post("Transfer-Encoding: gzip, chunked")],
    ["chunked twice", "transfer-encoding", post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")],
    ["with a coding in quotes", "transfer-encoding", post('Transfer-Encoding: "chunked"')],
    ["with an empty coding", "transfer-encoding", post("Transfer-Encoding:")],
    ["of HTTP/1.0 with a coding", "transfer-encoding", head("POST / HTTP/1.0", "Transfer-Encoding: chunked")],
    ["with a chunk without a size", "chunk-size", chunks("\r\n")],
    ["with a chunk size in prefix notation", "chunk-size", chunks("0x3\r\n")],
    ["with a signed chunk size", "chunk-size", chunks("-3\r\n")],
    ["with white space behind a chunk size", "chunk-size", chunks("3 \r\n")],
    ["with a chunk beyond 2^53", "chunk-size", chunks("20000000000000\r\n")],
    ["with a chunk size of 17 digits", "chunk-size", chunks(`${"0".repeat(17)}\r\n`)],
    ["with a bare LF behind a chunk size", "bare-lf", chunks("3\nabc\r\n")],
    ["with a bare CR behind a chunk size", "bare-cr", chunks("3\rabc")],
    ["with a bare LF behind an extension", "bare-lf", chunks("3;a\nabc\r\n")],
    ["with a NUL in an extension", "chunk-extension", chunks("3;\0\r\n")],
    ["with an extension of 1,025 bytes", "chunk-extension", chunks(`3;${"x".repeat(1025)}\r\n`)],
    ["with a chunk longer than its size", "chunk-end", chunks("3\r\nabcd\r\n")],
    ["with a bare LF behind a chunk", "bare-lf", chunks("3\r\nabc\n0\r\n\r\n")],
    ["with a folded trailer", "trailer", chunks("0\r\nA: b\r\n c\r\n\r\n")],
    ["with a space in a trailer's name", "trailer", chunks("0\r\nA : b\r\n\r\n")],
    ["with a bare LF behind a trailer", "bare-lf", chunks("0\r\nA: b\n\r\n")],
    ["with a bare LF at the end of its trailers", "bare-lf", chunks("0\r\n\n")],
    ["with trailers over 16 KiB", "trailer", chunks(`0\r\n${"a: b\r\n".repeat(2731)}\r\n`)],
    ["with a head over 64 KiB", "head-too-large", `GET / HTTP/1.1\r\nA: ${"b".repeat(64 * 1024)}\r\n\r\n`],
    ["with 257 fields", "too-many-fields", head("GET / HTTP/1.1", ...Array<string>(257).fill("a: b"))],
    ["behind five empty lines", "too-many-empty-lines", `${"\r\n".repeat(5)}${GET}`],
    ["behind half an empty line", "bare-cr", `\r${GET}`],
    ["as the 1,025th without an answer", "too-many-requests", GET.repeat(1025)],
    ["that is CONNECT with a body", "body-not-allowed", head("CONNECT a:1 HTTP/1.1", "Content-Length: 3")],
    [
      "behind an upgrade without an answer",
      "upgrade",
      `${head("GET / HTTP/1.1", "Connection: upgrade", "Upgrade: h2c")}${GET}`,
    ],
    ["behind a CONNECT without an answer", "upgrade", `${head("CONNECT a:1 HTTP/1.1")}x`],
  ];
  for (const [what, reason, text] of cases) {
    it(what, () => {
      const { observer, events, client, server } = http();
      client(text);
      assert.equal(observer.opaqueReason, reason);
      assert.equal(observer.protocol, "tcp");
      assert.equal(events.at(-1), `opaque ${reason}`);
      const { length } = events;
      client(GET);
      server(OK);
      assert.equal(events.length, length, "only counted from here on");
      assert.equal(observer.bytesIn, text.length + GET.length);
      assert.equal(observer.bytesOut, OK.length);
      assert.deepEqual(observer.inFlight, []);
    });
  }
});

describe("an answer is not named", () => {
  const cases: [what: string, reason: OpaqueReason, text: string, request?: string][] = [
    ["that is no answer", "status-line", "SSH-2.0\r\n"],
    ["of another version", "http-version", "HTTP/2.0 200\r\n"],
    ["without a status", "status-line", "HTTP/1.1 OK\r\n\r\n"],
    ["with a status of four digits", "status-line", "HTTP/1.1 2000 OK\r\n"],
    ["with a status of one digit", "status-line", "HTTP/1.1 2\r\n"],
    ["with a status below 100", "status-line", "HTTP/1.1 099 X\r\n"],
    ["with a bare LF", "bare-lf", "HTTP/1.1 200 OK\nA: b\n\n"],
    [
      "with length and coding",
      "length-and-transfer-encoding",
      "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ["204 with a length", "body-not-allowed", "HTTP/1.1 204 X\r\nContent-Length: 1\r\n\r\n"],
    ["100 with a coding", "body-not-allowed", "HTTP/1.1 100 X\r\nTransfer-Encoding: chunked\r\n\r\n"],
    [
      "chunked, to HTTP/1.0",
      "transfer-encoding",
      "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n",
      head("GET / HTTP/1.0"),
    ],
    ["101 that nobody asked for", "upgrade", "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"],
    [
      "101 that names nothing",
      "upgrade",
      "HTTP/1.1 101 X\r\n\r\n",
      head("GET / HTTP/1.1", "Connection: upgrade", "Upgrade: x"),
    ],
    [
      "101 in the middle of the request",
      "upgrade",
      "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
      head("GET / HTTP/1.1", "Connection: upgrade", "Upgrade: x", "Content-Length: 1"),
    ],
    ["without a request", "unsolicited-answer", `${OK}HTTP/1.1 408 Request Timeout\r\n\r\n`],
  ];
  for (const [what, reason, text, request = GET] of cases) {
    it(what, () => {
      const { observer, client, server } = http();
      client(request);
      server(text);
      assert.equal(observer.opaqueReason, reason);
      assert.equal(observer.bytesOut, text.length);
    });
  }

  it("to half a request", () => {
    const { observer, client, server } = http();
    client("GET / HTTP/1.1\r\n");
    server("HTTP/1.1 408 Request Timeout\r\n\r\n");
    assert.equal(observer.opaqueReason, "unsolicited-answer");
    observer.outboundFin();
    assert.equal(observer.protocol, "tcp");
  });
});

describe("a request in flight", () => {
  it("is followed from its first byte to the last of its answer", () => {
    const { observer, client, server } = http();
    assert.ok(observer.inboundAtBoundary && observer.outboundAtBoundary);
    client("\r\n");
    assert.ok(observer.inboundAtBoundary);
    client("PUT /a HT");
    assert.ok(!observer.inboundAtBoundary);
    assert.equal(observer.inboundMessageStart, 2);
    client("TP/1.1\r\nContent-Length: 4\r\n\r\nab");
    const [record] = observer.inFlight;
    assert.ok(record !== undefined);
    assert.deepEqual(
      [record.method, record.start, record.headEnd, record.end, record.idempotent],
      ["PUT", 2, 40, -1, true],
    );
    record.tag = "mine";
    client("cd");
    assert.equal(record.end, 44);
    assert.ok(observer.inboundAtBoundary);
    assert.equal(observer.inboundMessageStart, 44);
    server("HTTP/1.1 103 Early Hints\r\n\r\n");
    assert.ok(!record.answerStarted);
    server("HTTP/1.1 2");
    assert.ok(record.answerStarted && !observer.outboundAtBoundary);
    server("00 OK\r\nContent-Length: 1\r\n\r\n");
    assert.equal(observer.inFlight[0]?.tag, "mine");
    server("x");
    assert.deepEqual(observer.inFlight, []);
    assert.ok(observer.outboundAtBoundary);
    assert.equal(observer.requests, 1);
  });

  it("may be answered before it is complete, and is complete all the same", () => {
    const { observer, events, client, server } = http();
    client(`${post("Content-Length: 4")}ab`);
    server("HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n");
    assert.deepEqual(observer.inFlight, []);
    assert.ok(!observer.inboundAtBoundary);
    client(`cd${GET}`);
    server(OK);
    assert.deepEqual(events.slice(-5), [
      "request ends 42",
      "request GET / HTTP/1.1 42-69",
      "request ends 69",
      "answer 200 to GET",
      "answered GET true",
    ]);
  });

  it("is unclear when 100 was asked for, refused, and something follows", () => {
    const expecting = post("Expect: 100-continue", "Content-Length: 4");
    const refused = http();
    refused.client(expecting);
    assert.equal(refused.observer.oldest?.expectsContinue, true);
    refused.server("HTTP/1.1 417 X\r\nContent-Length: 0\r\n\r\n");
    assert.equal(refused.observer.protocol, "http");
    refused.client("GET ");
    assert.equal(refused.observer.opaqueReason, "expectation");

    const allowed = http();
    allowed.client(expecting);
    allowed.server("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n");
    allowed.client(`abcd${GET}`);
    assert.equal(allowed.observer.inFlightCount, 1);

    const impatient = http();
    impatient.client(`${expecting}ab`);
    impatient.server("HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n");
    impatient.client(`cd${GET}`);
    assert.equal(impatient.observer.inFlightCount, 1);
  });
});

describe("the end of the connection", () => {
  const cases: [what: string, request: string, answer: string, closing: boolean, events: string[]][] = [
    ["is not near", GET, OK, false, ["answered GET true"]],
    [
      "is asked for by the client",
      head("GET / HTTP/1.1", "Connection: close"),
      OK,
      true,
      ["answered GET false"],
    ],
    [
      "is told by the application",
      GET,
      `${head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 0")}`,
      true,
      ["answered GET false"],
    ],
    ["is usual in HTTP/1.0", head("GET / HTTP/1.0"), OK, true, ["answered GET false"]],
    [
      "is put off in HTTP/1.0",
      head("GET / HTTP/1.0", "Connection: keep-alive"),
      head("HTTP/1.0 200 OK", "Connection: Keep-Alive", "Content-Length: 0"),
      false,
      ["answered GET true"],
    ],
    ["ends the answer", GET, `${head("HTTP/1.1 200 OK")}abc`, true, []],
  ];
  for (const [what, request, text, closing, events] of cases) {
    it(what, () => {
      const stage = http();
      stage.client(request);
      stage.server(text);
      assert.equal(stage.observer.closing, closing);
      assert.deepEqual(
        stage.events.filter((event) => event.startsWith("answered")),
        events,
      );
    });
  }

  it("completes an answer without a length, and not one that is cut short", () => {
    const whole = http();
    whole.client(GET);
    whole.server("HTTP/1.1 200 OK\r\n\r\nabc");
    assert.equal(whole.observer.inFlightCount, 1);
    whole.observer.outboundFin();
    assert.equal(whole.events.at(-1), "answered GET false");
    assert.equal(whole.observer.inFlightCount, 0);

    const cut = http();
    cut.client(GET);
    cut.server("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc");
    cut.observer.outboundFin();
    assert.equal(cut.observer.inFlightCount, 1);
  });
});

describe("an upgrade", () => {
  const asks = (upgrade: string, ...more: string[]) =>
    head("GET / HTTP/1.1", "Connection: keep-alive, UPGRADE", `Upgrade: ${upgrade}`, ...more);
  const agrees = (upgrade: string) => head("HTTP/1.1 101 X", "Connection: upgrade", `Upgrade: ${upgrade}`);
  const cases: [what: string, request: string, asked: string | null, answer: string, protocol: string][] = [
    ["to a WebSocket", asks("WebSocket"), "websocket", agrees("websocket"), "websocket"],
    ["to something else", asks("h2c"), "tunnel", agrees("h2c"), "tunnel"],
    ["where the application chooses", asks("h2c, websocket"), "websocket", agrees("h2c"), "tunnel"],
    ["that is declined", asks("h2c"), "tunnel", OK, "http"],
    [
      "by CONNECT",
      head("CONNECT a:1 HTTP/1.1"),
      "tunnel",
      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
      "tunnel",
    ],
    ["by CONNECT that is declined", head("CONNECT a:1 HTTP/1.1"), "tunnel", OK.replace("200", "403"), "http"],
    ["that Connection does not name", head("GET / HTTP/1.1", "Upgrade: websocket"), null, OK, "http"],
    [
      "in HTTP/1.0",
      head("GET / HTTP/1.0", "Connection: upgrade, keep-alive", "Upgrade: websocket"),
      null,
      OK,
      "http",
    ],
  ];
  for (const [what, request, asked, text, protocol] of cases) {
    it(what, () => {
      const { observer, client, server } = http();
      client(request);
      assert.equal(observer.oldest?.upgrade, asked);
      assert.ok(observer.inboundAtBoundary);
      server(text);
      assert.equal(observer.protocol, protocol);
      assert.equal(observer.inFlightCount, 0);
      if (protocol !== "http") return;
      client(GET);
      assert.equal(observer.inFlightCount, 1);
    });
  }
});

describe("a head", () => {
  it("is given as it came", () => {
    const text = head(
      "GET /a?b HTTP/1.1",
      "Host:x",
      "COOKIE: \t a=1 \t",
      "cookie: b=2",
      "Empty:",
      "X:\u00a0y",
    );
    let calls = 0;
    const observer = new Observer({
      protocol: "http",
      hooks: {
        onRequest: (_record, view) => {
          calls++;
          assert.equal(view.text(), text);
          assert.deepEqual(
            [view.method, view.target, view.version, view.status],
            ["GET", "/a?b", "HTTP/1.1", 0],
          );
          assert.equal(view.field("Cookie"), "a=1");
          assert.deepEqual(view.fields("cookie"), ["a=1", "b=2"]);
          assert.equal(view.field("empty"), "");
          assert.equal(view.field("x"), "\u00a0y");
          assert.equal(view.field("cook"), null);
        },
      },
    });
    const segment: Segment = { side: "client", bytes: Buffer.from(text, "latin1") };
    observer.inbound(segment.bytes);
    for (const byte of segment.bytes) observer.inbound(Buffer.of(byte));
    assert.equal(calls, 2);
  });
});
