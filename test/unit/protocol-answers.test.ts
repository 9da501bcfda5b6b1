/** What the proxy says itself: names in a first answer, and answers in the application's place. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { SessionNaming } from "#proxy/contract/commands.ts";
import { refusal } from "#proxy/protocol/http-answer.ts";
import { HttpHead } from "#proxy/protocol/http-head.ts";
import { Observer } from "#proxy/protocol/observer.ts";
import { ResponseHeadEditor } from "#proxy/protocol/response-head-editor.ts";
import { issueCookie, nameOf } from "#proxy/protocol/session-name.ts";

const key = randomBytes(32);

function request(target: string, ...fields: string[]): HttpHead {
  const bytes = Buffer.from(
    `GET ${target} HTTP/1.1\r\n${fields.map((line) => `${line}\r\n`).join("")}\r\n`,
    "latin1",
  );
  return new HttpHead(bytes, 0, bytes.length);
}

describe("a session's name", () => {
  const naming = (from: SessionNaming["from"], name: string, issue = false): SessionNaming => ({
    from,
    name,
    issue,
  });
  const cases: [what: string, SessionNaming, HttpHead, name: string | null, valid: boolean][] = [
    ["in a cookie", naming("cookie", "sid"), request("/", "Cookie: xsid=1; sid=42;a=b"), "42", true],
    ["in a quoted cookie", naming("cookie", "sid"), request("/", 'Cookie: sid="42"'), "42", true],
    ["in no cookie", naming("cookie", "sid"), request("/", "Cookie: SID=42"), null, true],
    ["twice the same", naming("cookie", "sid"), request("/", "Cookie: sid=4", "Cookie: sid=4"), "4", true],
    ["twice, differing", naming("cookie", "sid"), request("/", "Cookie: sid=4; sid=5"), null, false],
    ["in a header", naming("header", "X-Session"), request("/", "x-session:  a.b-c "), "a.b-c", true],
    ["with a space", naming("header", "X-Session"), request("/", "x-session: a b"), null, false],
    ["that is not ASCII", naming("header", "X-Session"), request("/", "x-session: \u00e9"), null, false],
    ["that is empty", naming("header", "X-Session"), request("/", "x-session:"), null, false],
    [
      "of 200 bytes",
      naming("header", "X-Session"),
      request("/", `x-session: ${"a".repeat(200)}`),
      "a".repeat(200),
      true,
    ],
    [
      "of 201 bytes",
      naming("header", "X-Session"),
      request("/", `x-session: ${"a".repeat(201)}`),
      null,
      false,
    ],
    ["in the query", naming("query", "s"), request("/a?xs=1&s=a%2Fb#s=2"), "a/b", true],
    ["in no query", naming("query", "s"), request("/s=1"), null, true],
    ["in a query that would end a line", naming("query", "s"), request("/?s=a%0d%0ab"), null, false],
    [
      "in a subprotocol",
      naming("subprotocol", "session."),
      request("/", "Sec-WebSocket-Protocol: chat, session.42"),
      "42",
      true,
    ],
  ];
  for (const [what, how, head, name, valid] of cases) {
    it(what, () => assert.deepEqual(nameOf(head, how, [key]), { name, valid }));
  }

  it("of ours comes back, and nobody else's does", () => {
    const how = naming("cookie", "hf", true);
    const { name, line } = issueCookie(how, key);
    const found = /^Set-Cookie: (hf=([\w-]{22})\.[\w-]{43}); Path=\/; HttpOnly; SameSite=Lax$/.exec(line);
    assert.ok(found?.[1] !== undefined);
    assert.equal(found[2], name);
    const cookie = found[1];
    assert.deepEqual(nameOf(request("/", `Cookie: hf=x; ${cookie}`), how, [key]), { name, valid: true });
    const refused = { name: null, valid: false };
    assert.deepEqual(nameOf(request("/", `Cookie: ${cookie}`), how, [randomBytes(32)]), refused);
    assert.deepEqual(
      nameOf(request("/", `Cookie: other${cookie.slice(2)}`), naming("cookie", "other", true), [key]),
      refused,
    );
    assert.notEqual(issueCookie(how, key).name, name);
    fc.assert(
      // the last digit of 43 carries two bits that mean nothing
      fc.property(
        fc.integer({ min: 3, max: cookie.length - 1 }),
        fc.constantFrom("A", "b", "_", ".", "\u00e9"),
        (at, put) => {
          const altered = cookie.slice(0, at) + put + cookie.slice(at + 1);
          if (altered === cookie) return;
          assert.deepEqual(nameOf(request("/", `Cookie: ${altered}`), how, [key]), refused);
        },
      ),
    );
  });
});

describe("the editor of the first answer", () => {
  const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: a\r\nX: 1\r\nserver: b\r\n\r\n";
  const edit = {
    append: ["Set-Cookie: a=b"],
    replace: [
      ["Server", "c"],
      ["New", "d"],
    ] as [string, string][],
  };
  const EDITED =
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: c\r\nX: 1\r\nNew: d\r\nSet-Cookie: a=b\r\n\r\n";

  function through(
    text: string,
    pieces: number[],
  ): { text: string; edits: number; done: boolean; longest: number } {
    let edits = 0;
    const editor = new ResponseHeadEditor(() => {
      edits++;
      return edit;
    });
    const bytes = Buffer.from(text, "latin1");
    const passed: Buffer[] = [];
    let at = 0;
    let longest = 0;
    let passedBytes = 0;
    for (let piece = 0; at < bytes.length; piece++) {
      const length = pieces[piece % pieces.length] as number;
      const now = Buffer.from(editor.push(Buffer.from(bytes.subarray(at, at + length))));
      passed.push(now);
      passedBytes += now.length;
      at += length;
      longest = Math.max(longest, Math.min(at, bytes.length) - passedBytes);
    }
    const { done } = editor;
    passed.push(editor.flush());
    return { text: Buffer.concat(passed).toString("latin1"), edits, done, longest };
  }

  const pieces = fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 5 });
  const interim = "HTTP/1.1 103 Early Hints\r\nServer: x\r\n\r\n";
  const switching = "HTTP/1.1 101 X\r\nServer: a\r\n\r\n";
  const cases: [what: string, before: string, after: string][] = [
    ["changes it and nothing behind it", `${OK}ok${OK}ok`, `${EDITED}ok${OK}ok`],
    ["lets 1xx pass", `${interim}${interim}${OK}ok`, `${interim}${interim}${EDITED}ok`],
    [
      "changes 101",
      `${switching}\x81\x00`,
      "HTTP/1.1 101 X\r\nServer: c\r\nNew: d\r\nSet-Cookie: a=b\r\n\r\n\x81\x00",
    ],
    ["leaves what is no answer", "220 ready\r\n", "220 ready\r\n"],
    [
      "leaves an answer that is not strict",
      "HTTP/1.1 200 OK\nServer: a\n\nx",
      "HTTP/1.1 200 OK\nServer: a\n\nx",
    ],
    ["leaves half an answer", OK.slice(0, 40), OK.slice(0, 40)],
    [
      "leaves a head over 64 KiB",
      `HTTP/1.1 200 OK\r\nA: ${"b".repeat(70_000)}\r\n\r\n`,
      `HTTP/1.1 200 OK\r\nA: ${"b".repeat(70_000)}\r\n\r\n`,
    ],
  ];
  for (const [what, before, after] of cases) {
    it(what, () => {
      fc.assert(
        fc.property(pieces, (lengths) => {
          const seen = through(before, lengths);
          assert.equal(seen.text, after);
          assert.equal(seen.edits, after === before ? 0 : 1);
          assert.equal(seen.done, what !== "leaves half an answer");
          assert.ok(seen.longest <= 64 * 1024);
        }),
        { numRuns: before.length > 10_000 ? 5 : 100 },
      );
    });
  }

  it("gives up on 1xx without end", () => {
    const many = interim.repeat(20);
    assert.deepEqual(through(many + OK, [1000]).text, many + OK);
  });

  it("does not let an edit end a line", () => {
    const editor = new ResponseHeadEditor(() => ({ append: ["A: b\r\nC: d"] }));
    assert.throws(() => editor.push(Buffer.from(OK)), { code: "ERR_ASSERTION" });
  });
});

describe("an answer in the application's place", () => {
  for (const status of [429, 500, 502, 503, 504] as const) {
    for (const close of [false, true]) {
      it(`${status}, after which the connection ${close ? "ends" : "goes on"}`, () => {
        for (const method of ["GET", "HEAD"]) {
          const ended: boolean[] = [];
          const observer = new Observer({
            protocol: "http",
            hooks: { onAnswered: (_, keepAlive) => ended.push(keepAlive) },
          });
          observer.inbound(Buffer.from(`${method} / HTTP/1.1\r\n\r\n`));
          const bytes = refusal({ status, retryAfterS: 3, close, headOnly: method === "HEAD" });
          observer.outbound(bytes);
          assert.deepEqual(ended, [!close]);
          assert.equal(observer.opaqueReason, null);
          assert.match(bytes.toString(), new RegExp(`^HTTP/1.1 ${status} .*\\r\\nRetry-After: 3\\r\\n`, "s"));
        }
      });
    }
  }
});
