/** Frames and greetings of links: any split, any garbage. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, it } from "node:test";
import fc from "fast-check";
import { decodeHello, encodeHello, type Greeting, isWelcome, welcome } from "#proxy/link/link-auth.ts";
import {
  decodeAck,
  decodeActive,
  decodeMove,
  decodeResumed,
  encodeAck,
  encodeActive,
  encodeCounted,
  encodeCredit,
  encodeMove,
  encodeResumed,
  FRAME,
  FrameDecoder,
  type FrameType,
  frame,
} from "#proxy/link/link-codec.ts";

type Seen = { type: FrameType; bytes: string };

function collect(): { seen: Seen[]; decoder: FrameDecoder } {
  const seen: Seen[] = [];
  const decoder: FrameDecoder = new FrameDecoder({
    onData(part) {
      assert.ok(part.length > 0);
      const last = seen.at(-1);
      if (last?.type === FRAME.data) last.bytes += part.toString("hex");
      else seen.push({ type: FRAME.data, bytes: part.toString("hex") });
    },
    onControl: (type, payload) => seen.push({ type, bytes: payload.toString("hex") }),
  });
  return { seen, decoder };
}

const anyFrame = fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 300 }).map((bytes) => frame(FRAME.data, Buffer.from(bytes))),
  fc.constantFrom(FRAME.fin, FRAME.hold, FRAME.held, FRAME.resume).map((type) => frame(type)),
  fc.nat().map((bytes) => encodeCredit(bytes)),
  fc
    .tuple(fc.nat(), fc.nat(), fc.nat())
    .map(([epoch, bytesIn, bytesOut]) => encodeActive({ epoch, bytesIn, bytesOut })),
  fc.constantFrom(frame(FRAME.count), frame(FRAME.prepared, Buffer.of(1))),
  fc.nat().map((bytes) => encodeCounted(bytes)),
  fc
    .tuple(fc.nat(), fc.integer({ min: 1, max: 65_535 }), fc.oneof(fc.ipV4(), fc.ipV6()))
    .map(([epoch, port, address]) => encodeMove({ epoch, link: { address, port } })),
);

describe("the link codec", () => {
  it("reads in a MOVE what was written, and nothing where it is no address of a port", () => {
    for (const link of [
      { address: "10.0.0.1", port: 1 },
      { address: "fd00::1", port: 65_535 },
    ])
      assert.deepEqual(decodeMove(encodeMove({ epoch: 7, link }).subarray(4)), { epoch: 7, link });
    for (const link of [
      { address: "10.0.0.1", port: 0 },
      { address: "example", port: 1 },
      { address: "10.0.0.1\0", port: 1 },
    ])
      assert.equal(decodeMove(encodeMove({ epoch: 7, link }).subarray(4)), null);
    const { decoder } = collect();
    assert.equal(decoder.feed(frame(FRAME.move, Buffer.alloc(10))), false, "without an address");
  });

  it("gives the same frames however the stream is cut", () => {
    fc.assert(
      fc.property(
        fc.array(anyFrame, { maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 50 })),
        (frames, cuts) => {
          const stream = Buffer.concat(frames);
          const whole = collect();
          assert.ok(whole.decoder.feed(stream));
          const parts = collect();
          let at = 0;
          for (let i = 0; at < stream.length; i++) {
            const length = cuts.length === 0 ? 7 : (cuts[i % cuts.length] as number);
            assert.ok(parts.decoder.feed(stream.subarray(at, at + length)));
            at += length;
          }
          assert.deepEqual(parts.seen, whole.seen);
        },
      ),
    );
  });

  it("refuses garbage for good, and never throws", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        const { decoder } = collect();
        const good = decoder.feed(Buffer.from(bytes));
        assert.equal(good, decoder.error === null);
        if (!good) assert.equal(decoder.feed(frame(FRAME.fin)), false);
      }),
    );
  });

  it("refuses a length before it gathers anything", () => {
    const { decoder } = collect();
    assert.equal(decoder.feed(Buffer.of(FRAME.hello, 0xff, 0xff, 0xff)), false);
    assert.match(decoder.error ?? "", /HELLO of 16777215 bytes/);
  });

  it("brings back what ACTIVE says", () => {
    const active = { epoch: 7, bytesIn: 2 ** 40, bytesOut: 3 };
    assert.deepEqual(decodeActive(encodeActive(active).subarray(4)), active);
  });

  it("brings back what RESUMED and ACK say", () => {
    for (const [fin, holds] of [
      [true, false],
      [false, true],
    ] as const) {
      const resumed = { bytes: 2 ** 40 + 1, creditedBytes: 2 ** 40, fin, holds };
      assert.deepEqual(decodeResumed(encodeResumed(resumed).subarray(4)), resumed);
      assert.deepEqual(decodeAck(encodeAck({ bytes: 2 ** 33, fin }).subarray(4)), { bytes: 2 ** 33, fin });
    }
  });
});

describe("the greeting of a link", () => {
  const key = randomBytes(32);
  const nonce = randomBytes(16);
  const greeting: Greeting = {
    session: "abc",
    port: 1,
    epoch: 9,
    anchor: "a",
    client: "[fd00::1]:1",
    acceptedAtMs: 1_800_000_000_000,
    fresh: true,
  };
  const hello = encodeHello(key, nonce, randomBytes(16), greeting);

  it("is understood by whoever has the key, first or not, and it is known which that was", () => {
    assert.deepEqual(decodeHello([randomBytes(32), key], nonce, hello), { greeting, key, resumable: false });
    assert.ok(isWelcome(key, hello, welcome(key, hello)));
  });

  it("is refused with another key, another nonce, or any byte changed", () => {
    assert.equal(decodeHello([randomBytes(32)], nonce, hello), null);
    assert.equal(decodeHello([key], randomBytes(16), hello), null);
    assert.ok(!isWelcome(randomBytes(32), hello, welcome(key, hello)));
    fc.assert(
      fc.property(fc.nat(hello.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const bad = Buffer.from(hello);
        bad[at] = (bad[at] as number) ^ flip;
        assert.equal(decodeHello([key], nonce, bad), null);
      }),
    );
  });

  it("is refused when cut short", () => {
    for (let length = 0; length < hello.length; length++) {
      assert.equal(decodeHello([key], nonce, hello.subarray(0, length)), null);
    }
  });
});
