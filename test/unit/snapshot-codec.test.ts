import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint, LegSnapshot, LegState, SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { decodeSessions, encodeSessions } from "#proxy/contract/snapshot-codec.ts";

const LIMITS = { sessionsMax: 10_000, bytesMax: 64 * 1024 * 1024 };
const CHECKSUM_AT = 4;

/** Objects as literals make them: deepEqual compares prototypes. */
function plain<T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> {
  return fc.record(model, { noNullPrototype: true }) as fc.Arbitrary<T>;
}

const u32 = fc.nat({ max: 0xffffffff });
const count = fc.maxSafeNat();
const bytes = fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array));
const name = fc.string({ unit: "grapheme", minLength: 1, maxLength: 20 });
const endpoint = (family: 4 | 6): fc.Arbitrary<Endpoint> =>
  plain({ address: family === 4 ? fc.ipV4() : fc.ipV6(), port: fc.integer({ min: 1, max: 65535 }) });
const state = fc.constantFrom<LegState>(
  "ESTABLISHED",
  "FIN_WAIT1",
  "FIN_WAIT2",
  "CLOSE",
  "CLOSE_WAIT",
  "LAST_ACK",
  "CLOSING",
);
const scale = fc.nat({ max: 14 });
const leg: fc.Arbitrary<LegSnapshot> = fc.constantFrom<4 | 6>(4, 6).chain((family) =>
  plain({
    family: fc.constant(family),
    local: endpoint(family),
    remote: endpoint(family),
    state,
    mss: fc.nat({ max: 65535 }),
    sackOk: fc.boolean(),
    windowScale: fc.option(plain({ snd: scale, rcv: scale })),
    timestamp: fc.option(u32),
    window: plain({ snd_wl1: u32, snd_wnd: u32, max_window: u32, rcv_wnd: u32, rcv_wup: u32 }),
    receive: plain({ seq: u32, bytes }),
    send: fc.tuple(u32, bytes, fc.nat({ max: 300 })).map(([seq, queued, unsent]) => ({
      seq,
      bytes: queued,
      unsentBytes: Math.min(unsent, queued.length),
    })),
    noDelay: fc.boolean(),
    keepAlive: fc.boolean(),
  }),
);
const fin = fc.constantFrom<"none" | "read" | "sent">("none", "read", "sent");
const session: fc.Arbitrary<SessionSnapshot> = plain({
  id: name,
  port: fc.nat({ max: 65535 }),
  edge: name,
  acceptedAtMs: count,
  client: fc.oneof(fc.constant(""), name),
  headerAwaited: fc.boolean(),
  bytesIn: count,
  bytesOut: count,
  upstream: fc.option(leg),
  downstream: fc.option(leg),
  pendingIn: bytes,
  pendingOut: bytes,
  finIn: fin,
  finOut: fin,
  watch: bytes,
});
const sessions = fc.uniqueArray(session, { selector: (each) => each.id, maxLength: 6 });

function isRefusal(error: unknown): boolean {
  return error instanceof HoldfastError && error.code === "SNAPSHOT_INVALID" && error.source === "peer";
}

function withChecksum(encoded: Buffer): Buffer {
  const start = encoded.toString("latin1", 0, CHECKSUM_AT) === "HFS3" ? crc32("HFS3") : 0;
  if (encoded.length >= 8)
    encoded.writeUInt32BE(crc32(encoded.subarray(CHECKSUM_AT + 4), start), CHECKSUM_AT);
  return encoded;
}

/** Either a value that is itself encodable, or the one error. */
function decodesOrRefuses(encoded: Buffer): void {
  let decoded: SessionSnapshot[];
  try {
    decoded = decodeSessions(encoded, LIMITS);
  } catch (error) {
    assert.ok(isRefusal(error), String(error));
    return;
  }
  assert.deepEqual(decodeSessions(encodeSessions(decoded), LIMITS), decoded);
}

describe("session snapshots as bytes", () => {
  it("come back as they were", () => {
    fc.assert(
      fc.property(sessions, (value) => {
        assert.deepEqual(decodeSessions(encodeSessions(value), LIMITS), value);
      }),
    );
  });

  it("are of the layout that every version reads, where no load balancer has named a client", () => {
    const [one] = fc.sample(session, { numRuns: 1, seed: 1 });
    assert.ok(one);
    const magicOf = (client: string, headerAwaited: boolean): string =>
      encodeSessions([{ ...one, client, headerAwaited }]).toString("latin1", 0, 4);
    assert.equal(magicOf("", false), "HFS2");
    assert.equal(magicOf("192.0.2.1:80", false), "HFS3");
    assert.equal(magicOf("", true), "HFS3");
  });

  it("are refused when cut short or continued, checksum right or wrong", () => {
    fc.assert(
      fc.property(
        sessions,
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        bytes,
        (value, share, tail) => {
          const encoded = encodeSessions(value);
          const cut = encoded.subarray(0, Math.floor(encoded.length * share));
          assert.throws(() => decodeSessions(Buffer.from(cut), LIMITS), isRefusal);
          assert.throws(() => decodeSessions(withChecksum(Buffer.from(cut)), LIMITS), isRefusal);
          if (tail.length > 0) {
            const longer = withChecksum(Buffer.concat([encoded, tail]));
            assert.throws(() => decodeSessions(longer, LIMITS), isRefusal);
          }
        },
      ),
    );
  });

  it("of one layout are never read as the other", () => {
    fc.assert(
      fc.property(sessions, (value) => {
        const encoded = encodeSessions(value);
        const other = encoded.toString("latin1", 0, 4) === "HFS2" ? "HFS3" : "HFS2";
        encoded.write(other, "latin1");
        assert.throws(() => decodeSessions(encoded, LIMITS), isRefusal);
      }),
    );
    const nothing = encodeSessions([]);
    nothing.write("HFS3", "latin1");
    assert.throws(() => decodeSessions(nothing, LIMITS), isRefusal);
  });

  it("are refused after any accident on the way", () => {
    fc.assert(
      fc.property(sessions, fc.nat(), fc.integer({ min: 1, max: 255 }), (value, position, flip) => {
        const encoded = encodeSessions(value);
        const at = position % encoded.length;
        encoded[at] = (encoded[at] as number) ^ flip;
        assert.throws(() => decodeSessions(encoded, LIMITS), isRefusal);
      }),
    );
  });

  it("decode to a valid value or are refused when somebody altered them and mended the checksum", () => {
    const edits = fc.array(fc.tuple(fc.nat(), fc.nat({ max: 255 })), { minLength: 1, maxLength: 8 });
    fc.assert(
      fc.property(sessions, edits, (value, changes) => {
        const encoded = encodeSessions(value);
        for (const [position, byte] of changes) encoded[position % encoded.length] = byte;
        decodesOrRefuses(withChecksum(encoded));
      }),
      { numRuns: 500 },
    );
  });

  it("are refused as random bytes behind a right header", () => {
    fc.assert(
      fc.property(fc.constantFrom("HFS2", "HFS3"), fc.uint8Array({ maxLength: 400 }), (magic, noise) => {
        decodesOrRefuses(withChecksum(Buffer.concat([Buffer.from(`${magic}\0\0\0\0`), noise])));
      }),
      { numRuns: 500 },
    );
  });

  it("are refused beyond the limits, before a session is read", () => {
    const encoded = encodeSessions(fc.sample(session, { numRuns: 1, seed: 1 }));
    assert.throws(() => decodeSessions(encoded, { ...LIMITS, bytesMax: encoded.length - 1 }), isRefusal);
    assert.throws(() => decodeSessions(encoded, { ...LIMITS, sessionsMax: 0 }), isRefusal);
    assert.equal(decodeSessions(encoded, { sessionsMax: 1, bytesMax: encoded.length }).length, 1);
  });

  it("are refused when they promise more than they hold", () => {
    const encoded = encodeSessions([]);
    encoded.writeUInt32BE(9_999, encoded.length - 4);
    assert.throws(() => decodeSessions(withChecksum(encoded), LIMITS), isRefusal);
  });

  it("are refused when one session occurs twice", () => {
    const [one] = fc.sample(session, { numRuns: 1, seed: 1 });
    assert.ok(one);
    assert.throws(() => decodeSessions(encodeSessions([one, one]), LIMITS), isRefusal);
  });

  it("take little time for 5,000 sessions", (context) => {
    const many = fc
      .sample(session, { numRuns: 200, seed: 7 })
      .flatMap((each, row) =>
        Array.from({ length: 25 }, (_, column) => ({ ...each, id: `${row}-${column}` })),
      );
    const started = performance.now();
    const encoded = encodeSessions(many);
    const between = performance.now();
    assert.equal(decodeSessions(encoded, LIMITS).length, 5_000);
    const decodeMs = performance.now() - between;
    context.diagnostic(
      `${encoded.length} bytes, encode ${(between - started).toFixed(1)} ms, decode ${decodeMs.toFixed(1)} ms`,
    );
  });
});
