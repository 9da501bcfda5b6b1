/** Frames and greetings of links: any split, any garbage. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  decodeHello,
  decodeTrunk,
  encodeHello,
  encodeTrunk,
  type Greeting,
  isWelcome,
  welcome,
} from "#proxy/link/link-auth.ts";
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
  frameHeader,
} from "#proxy/link/link-codec.ts";
import { isResumable, newNonce, takesTrunks } from "#proxy/link/link-tls.ts";

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

  it("gives each frame with its channel, where frames have one, however the stream is cut", () => {
    const channels = fc.array(fc.tuple(fc.nat(0xffff_ffff), anyFrame), { maxLength: 20 });
    fc.assert(
      fc.property(channels, fc.integer({ min: 1, max: 50 }), (frames, cut) => {
        const stream = Buffer.concat(
          frames.map(([channel, bytes]) => {
            const prefix = Buffer.alloc(4);
            prefix.writeUInt32BE(channel);
            return Buffer.concat([prefix, bytes]);
          }),
        );
        const seen: Buffer[][] = [];
        let dataLeft = 0;
        const decoder = new FrameDecoder(
          {
            onData: (part, channel) => {
              const last = seen.at(-1) as Buffer[];
              if (dataLeft > 0) last.push(Buffer.from(part));
              else {
                const length = frames[seen.length]?.[1].length ?? 0;
                dataLeft = length - 4;
                seen.push([
                  Buffer.from(String(channel)),
                  frameHeader(FRAME.data, dataLeft),
                  Buffer.from(part),
                ]);
              }
              dataLeft -= part.length;
            },
            onControl: (type, payload, channel) =>
              seen.push([Buffer.from(String(channel)), frame(type, payload)]),
          },
          true,
        );
        for (let at = 0; at < stream.length; at += cut)
          assert.ok(decoder.feed(stream.subarray(at, at + cut)));
        assert.deepEqual(
          seen.map((parts) => Buffer.concat(parts).toString("hex")),
          frames.map(([channel, bytes]) =>
            Buffer.concat([Buffer.from(String(channel)), bytes]).toString("hex"),
          ),
        );
      }),
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

describe("the greeting of a trunk", () => {
  const key = randomBytes(32);
  const nonce = randomBytes(16);
  const trunk = encodeTrunk(key, nonce, randomBytes(16));

  it("is understood by whoever has the key, first or not", () => {
    assert.equal(decodeTrunk([randomBytes(32), key], nonce, trunk), key);
    assert.ok(isWelcome(key, trunk, welcome(key, trunk)));
  });

  it("is refused with another key, another nonce, any byte changed, or cut short", () => {
    assert.equal(decodeTrunk([randomBytes(32)], nonce, trunk), null);
    assert.equal(decodeTrunk([key], randomBytes(16), trunk), null);
    for (let at = 0; at < trunk.length; at++) {
      const bad = Buffer.from(trunk);
      bad[at] = (bad[at] as number) ^ 1;
      assert.equal(decodeTrunk([key], nonce, bad), null);
      assert.equal(decodeTrunk([key], nonce, trunk.subarray(0, at)), null);
    }
  });

  it("is asked for by a NONCE that says so, which no other does", () => {
    for (const encrypted of [false, true]) {
      assert.ok(takesTrunks(newNonce(encrypted, "trunk")) && isResumable(newNonce(encrypted, "trunk")));
      assert.ok(!takesTrunks(newNonce(encrypted, true)) && isResumable(newNonce(encrypted, true)));
      assert.ok(!takesTrunks(newNonce(encrypted, false)));
    }
  });
});
