/** Which answers to health checks are given again, and to whom (RFC 9111). */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HttpHead } from "#proxy/protocol/http-head.ts";
import { PlainRequest, StoredAnswer } from "#proxy/protocol/stored-answer.ts";

function head(lines: string[]): HttpHead {
  const bytes = Buffer.from(`${lines.join("\r\n")}\r\n\r\n`, "latin1");
  return new HttpHead(bytes, 0, bytes.length);
}

const asked = (line = "GET /healthz HTTP/1.1", ...fields: string[]): PlainRequest | null =>
  PlainRequest.of(head([line, ...(line.endsWith("1.1") ? ["Host: a"] : []), ...fields]));

function plain(...lines: string[]): PlainRequest {
  const request = asked(...(lines as [string?, ...string[]]));
  assert.ok(request !== null);
  return request;
}

function stored(fields: string[], request = plain(), status = 200): StoredAnswer | null {
  const text = [`HTTP/1.1 ${status} X`, "Content-Length: 2", ...fields].join("\r\n");
  return StoredAnswer.of(request, Buffer.from(`${text}\r\n\r\nok`), 1_000);
}

describe("a request for an answer that somebody else has got", () => {
  it("is plain: without credentials, conditions, a body or a change of protocol", () => {
    assert.notEqual(asked(), null);
    assert.notEqual(asked("HEAD /healthz HTTP/1.1", "User-Agent: kube-probe/1.34", "Accept: */*"), null);
    for (const field of [
      "authorization: Bearer x",
      "Cookie: sid=1",
      "Range: bytes=0-0",
      'If-None-Match: "x"',
      "If-Modified-Since: Thu, 26 Nov 2026 12:00:00 GMT",
      "Upgrade: websocket",
      "Expect: 100-continue",
      "Cache-Control: no-cache",
      "Content-Length: 3",
      "Transfer-Encoding: chunked",
    ])
      assert.equal(asked("GET /healthz HTTP/1.1", field), null, field);
    assert.equal(asked("POST /healthz HTTP/1.1"), null);
  });

  it("is for the same: method, version, host, and target with its query", () => {
    const answer = stored([], plain("GET /healthz?db=1 HTTP/1.1"));
    assert.equal(answer?.fits(plain("GET /healthz?db=1 HTTP/1.1", "User-Agent: other")), true);
    for (const line of ["GET /healthz?db=2 HTTP/1.1", "GET /healthz HTTP/1.1", "HEAD /healthz?db=1 HTTP/1.1"])
      assert.equal(answer?.fits(plain(line)), false, line);
    assert.equal(answer?.fits(plain("GET /healthz?db=1 HTTP/1.0", "Host: a")), false);
    const other = PlainRequest.of(head(["GET /healthz?db=1 HTTP/1.1", "Host: b"]));
    assert.ok(other !== null);
    assert.equal(answer?.fits(other), false);
  });
});

describe("an answer that is given again", () => {
  it("sets no cookie, is nobody's own, and may be stored", () => {
    assert.notEqual(stored([]), null);
    assert.notEqual(stored(["Cache-Control: max-age=0"]), null);
    for (const field of [
      "Set-Cookie: sid=victim",
      "Cache-Control: no-store",
      "cache-control: max-age=5, private",
      'Cache-Control: no-cache="X"',
      "Cache-Control: must-revalidate",
      "Cache-Control: s-maxage=1",
      "Vary: *",
      "Vary: Accept, *",
      "Age: 3",
    ])
      assert.equal(stored([field]), null, field);
    assert.notEqual(stored(["Cache-Control: privately"]), null);
  });

  it("is complete, and says something of the application and not of the moment", () => {
    for (const status of [206, 304, 401, 403, 429, 500, 503]) assert.equal(stored([], plain(), status), null);
    for (const status of [204, 404]) assert.notEqual(stored([], plain(), status), null);
    assert.equal(StoredAnswer.of(plain(), Buffer.from("HTTP/1.1 200 OK\r\nContent-"), 0), null);
    assert.equal(StoredAnswer.of(plain(), Buffer.from("HTTP/1.1 100 Continue\r\n\r\n"), 0), null);
  });

  it("was chosen by nothing that is different now", () => {
    const answer = stored(["Vary: Accept-Language"], plain("GET /healthz HTTP/1.1", "Accept-Language: de"));
    assert.equal(answer?.fits(plain("GET /healthz HTTP/1.1", "accept-language: de")), true);
    assert.equal(answer?.fits(plain("GET /healthz HTTP/1.1", "Accept-Language: fr")), false);
    assert.equal(answer?.fits(plain()), false);
  });

  it("says how old it is, and that the connection ends", () => {
    const answer = stored(["Keep-Alive: timeout=5", "Connection: keep-alive", "X-Build: 7"]);
    assert.equal(
      answer?.given(4_999).toString(),
      "HTTP/1.1 200 X\r\nContent-Length: 2\r\nConnection: close\r\nX-Build: 7\r\nAge: 3\r\n\r\nok",
    );
  });
});
