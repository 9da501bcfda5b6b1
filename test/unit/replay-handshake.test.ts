/** A repeated WebSocket handshake: however its answer is cut, and what counts as the same agreement. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { type Agreement, agrees, HandshakeAnswer } from "#proxy/replay/handshake.ts";

const HEAD =
  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: abc=\r\n" +
  "sec-websocket-PROTOCOL: chat\r\nSec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12\r\n\r\n";

function agreed(head: string): Agreement | null | undefined {
  const found = new HandshakeAnswer().feed(Buffer.from(head));
  return found === undefined || found === null ? found : found.agreed;
}

describe("the answer to a repeated handshake", () => {
  it("is read however it is cut, and what is behind it is kept", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 50 }), fc.array(fc.nat(400), { maxLength: 6 }), (rest, cuts) => {
        const whole = Buffer.concat([Buffer.from(HEAD), rest]);
        const places = [0, ...cuts.filter((at) => at < HEAD.length).sort((a, b) => a - b), whole.length];
        const answer = new HandshakeAnswer();
        for (let index = 1; index < places.length - 1; index++)
          assert.equal(answer.feed(whole.subarray(places[index - 1], places[index])), undefined);
        const found = answer.feed(whole.subarray(places.at(-2)));
        assert.deepEqual(found, {
          agreed: {
            accept: "abc=",
            protocol: "chat",
            extensions: "permessage-deflate;server_max_window_bits=12",
          },
          rest: Buffer.from(rest),
        });
      }),
    );
  });

  it("is none when it is another status, or has no end", () => {
    assert.equal(agreed("HTTP/1.1 200 OK\r\n\r\n"), null);
    assert.equal(agreed("HTTP/1.1 1010 Odd\r\n\r\n"), null);
    assert.equal(agreed("HTTP/1.1 101"), undefined);
    assert.equal(agreed("x".repeat(64 * 1024 + 1)), null);
  });

  it("agrees when accept, subprotocol and extensions are the same, but for what only the client was told", () => {
    const base = agreed(HEAD) as Agreement;
    const changed = (from: string | RegExp, to: string) => agreed(HEAD.replace(from, to)) as Agreement;
    assert.ok(
      agrees(base, changed("permessage-deflate;", "Permessage-Deflate ; client_no_context_takeover ;")),
    );
    assert.ok(!agrees(base, changed("abc=", "abd=")));
    assert.ok(!agrees(base, changed(": chat", ": other")));
    assert.ok(!agrees(base, changed(/sec-websocket-PROTOCOL: chat\r\n/, "")));
    assert.ok(!agrees(base, changed("=12", "=15")));
    assert.ok(!agrees(base, changed(/Sec-WebSocket-Extensions: .*\r\n/, "")));
  });
});
