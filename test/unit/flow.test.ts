import assert from "node:assert/strict";
import { describe, it, mock } from "node:test";
import { FIRST_BYTES, Flow } from "#proxy/stream/flow.ts";

const KIB = 1024;
const CHUNK_BYTES = 64 * KIB;
const BOUND_BYTES_MAX = 4096 * KIB;

/** What a bound that starts with 128 kB is after so many bytes at that pace. */
function boundAfter(options: { bytes: number; bytesPerMs: number }): number {
  let nowMs = 1_000_000;
  const clock = mock.method(performance, "now", () => nowMs);
  try {
    let flow: Flow | null = null;
    let bound = 128 * KIB;
    for (let passed = 0; passed < options.bytes; passed += CHUNK_BYTES) {
      nowMs += CHUNK_BYTES / options.bytesPerMs;
      if (flow === null) {
        if (passed + CHUNK_BYTES >= FIRST_BYTES) flow = new Flow();
        continue;
      }
      if (!flow.passed(CHUNK_BYTES)) continue;
      bound = Math.min(bound * 2, BOUND_BYTES_MAX);
      flow.grown(bound);
    }
    return bound;
  } finally {
    clock.mock.restore();
  }
}

describe("a queue's bound", () => {
  it("stays for whoever takes what fits into its own queues at once, and then nothing", () => {
    assert.equal(boundAfter({ bytes: 512 * KIB, bytesPerMs: 1e6 }), 128 * KIB);
  });

  it("stays for whoever takes little at a time, however long", () => {
    assert.equal(boundAfter({ bytes: 1024 * 1024 * KIB, bytesPerMs: 1_000 }), 128 * KIB);
  });

  it("grows to its end within a few of it where bytes pass fast", () => {
    assert.equal(boundAfter({ bytes: 8 * BOUND_BYTES_MAX, bytesPerMs: 500_000 }), BOUND_BYTES_MAX);
  });

  it("ends at what passes in 25 ms", () => {
    for (const bytesPerMs of [6_000, 10_000, 20_000, 40_000]) {
      const bound = boundAfter({ bytes: 1024 * 1024 * KIB, bytesPerMs });
      assert.ok(bound <= 25 * bytesPerMs && bound >= 5 * bytesPerMs, `${bound} at ${bytesPerMs} a ms`);
    }
  });
});
