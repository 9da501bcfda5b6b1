/** The log of what may be sent again: it gives back the bytes it says it has, and never more than it may keep. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { InboundLog } from "#proxy/replay/inbound-log.ts";

const BYTES_MAX = 200;

/** The stream's byte at an offset. */
function bytesAt(from: number, to: number): Buffer {
  return Buffer.from(Array.from({ length: to - from }, (_, index) => ((from + index) * 31) & 0xff));
}

describe("the log of what a client has sent", () => {
  it("gives back what it covers, whatever is appended, dropped and skipped", () => {
    const step = fc.oneof(
      fc.record({ do: fc.constant("append" as const), count: fc.integer({ min: 0, max: 90 }) }),
      fc.record({ do: fc.constant("drop" as const), part: fc.double({ min: 0, max: 1, noNaN: true }) }),
      fc.record({ do: fc.constant("skip" as const), count: fc.integer({ min: 0, max: 20 }) }),
    );
    fc.assert(
      fc.property(fc.nat(1000), fc.array(step, { maxLength: 40 }), (base, steps) => {
        const log = new InboundLog(BYTES_MAX, base);
        for (const each of steps) {
          if (each.do === "append") log.append(bytesAt(log.end, log.end + each.count));
          else if (each.do === "skip") log.skipTo(log.end + each.count);
          else log.dropTo(log.base + Math.floor(each.part * (log.end - log.base)));
          assert.ok(log.keptBytes <= BYTES_MAX);
          assert.ok(log.base <= log.end);
          assert.ok(log.covers(log.base, log.base + log.keptBytes));
          for (const [from, to] of [
            [log.base, log.base + log.keptBytes],
            [log.base + (log.keptBytes >> 2), log.base + (log.keptBytes >> 1)],
          ] as const)
            assert.deepEqual(log.slice(from, to), bytesAt(from, to));
        }
        log.dropTo(log.end);
        assert.ok(log.covers(log.end, log.end));
        log.append(bytesAt(log.end, log.end + BYTES_MAX));
        assert.ok(log.covers(log.base, log.end), "an empty log begins anew");
      }),
    );
  });

  it("has no holes: behind what did not fit nothing is kept", () => {
    const log = new InboundLog(10);
    log.append(bytesAt(0, 8));
    log.append(bytesAt(8, 12));
    log.append(bytesAt(12, 13));
    assert.ok(log.covers(0, 8));
    assert.ok(!log.covers(0, 9));
    assert.ok(!log.covers(12, 13));
    assert.throws(() => log.slice(0, 13));
    log.dropTo(9);
    assert.ok(!log.covers(9, 10), "the hole does not close by dropping what is before it");
  });

  it("copies: what is appended may be overwritten", () => {
    const log = new InboundLog(10);
    const chunk = Buffer.from("abc");
    log.append(chunk);
    chunk.fill(0);
    assert.equal(String(log.slice(0, 3)), "abc");
  });

  it("does not change what it has given out", () => {
    const log = new InboundLog(100);
    log.append(Buffer.from("abc"));
    const given = log.slice(0, 3);
    log.append(Buffer.from("def"));
    log.dropTo(2);
    log.append(Buffer.from("ghi"));
    assert.equal(String(given), "abc");
    assert.equal(String(log.slice(2, 9)), "cdefghi");
  });
});
