/** The pump against a model: whatever sources, sinks, holds and detours do, bytes come out in order, once. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { Leg, LegListener } from "#proxy/stream/leg.ts";
import { Pump } from "#proxy/stream/pump.ts";

/** A sink that takes chunks whole, or keeps one until told; a source that knows whether it is read. */
class FakeEnd implements Leg {
  listener: LegListener | null = null;
  readonly reusesBuffer = true;
  readonly keepsChunk = true;
  blocking = false;
  outstanding: Buffer | null = null;
  get outstandingBytes(): number {
    return this.outstanding?.length ?? 0;
  }
  taken = "";
  finished = 0;
  reading = false;
  credit = 0;

  write(chunk: Buffer): boolean {
    assert.equal(this.outstanding, null, "one outstanding chunk");
    assert.equal(this.finished, 0, "no bytes after the FIN");
    if (!this.blocking) {
      this.taken += chunk.toString("latin1");
      return true;
    }
    this.outstanding = chunk;
    return false;
  }
  /** Takes some of the outstanding chunk; the rest is what a detach would give back. */
  split(bytes: number): Buffer {
    const chunk = this.outstanding ?? Buffer.alloc(0);
    this.outstanding = null;
    const taken = Math.min(bytes, chunk.length);
    this.taken += chunk.toString("latin1", 0, taken);
    return Buffer.from(chunk.subarray(taken));
  }
  finish(): void {
    assert.equal(this.outstanding, null);
    this.finished++;
  }
  reset(): void {}
  pauseReading(): void {
    this.reading = false;
  }
  resumeReading(): void {
    this.reading = true;
  }
  consumed(bytes: number): void {
    this.credit += bytes;
  }
}

type Step =
  | { do: "read"; bytes: number }
  | { do: "block" | "drain" | "hold" | "unhold" | "fin" }
  | { do: "detour"; taken: number };

const steps = fc.array(
  fc.oneof(
    fc.record({ do: fc.constant("read" as const), bytes: fc.integer({ min: 1, max: 40 }) }),
    fc.record({
      do: fc.constantFrom("block" as const, "drain" as const, "hold" as const, "unhold" as const),
    }),
    fc.record({ do: fc.constant("detour" as const), taken: fc.nat(40) }),
  ),
  { maxLength: 60 },
);

describe("the pump", () => {
  it("passes every byte once and in order, through back-pressure, holds and changes of sink", () => {
    fc.assert(
      fc.property(steps, fc.boolean(), (plan: Step[], fin) => {
        const source = new FakeEnd();
        let sink = new FakeEnd();
        const pump = new Pump();
        pump.setSource(source);
        pump.setSink(sink);
        const buffer = Buffer.alloc(64);
        let sent = "";
        let next = 0;
        let arrived = "";
        for (const step of plan) {
          if (step.do === "read" && source.reading) {
            // The same memory each time, as a leg's read buffer.
            for (let i = 0; i < step.bytes; i++) buffer[i] = 97 + (next++ % 26);
            sent += buffer.toString("latin1", 0, step.bytes);
            pump.receive(buffer.subarray(0, step.bytes));
          } else if (step.do === "block") sink.blocking = true;
          else if (step.do === "drain") {
            sink.blocking = false;
            if (sink.outstanding !== null) {
              sink.split(Number.POSITIVE_INFINITY);
              pump.drained();
            }
          } else if (step.do === "hold") {
            pump.hold();
            assert.equal(source.reading, false);
          } else if (step.do === "unhold") pump.unhold();
          else if (step.do === "detour") {
            pump.removeSink(sink.split(step.taken));
            assert.equal(source.reading, false);
            arrived += sink.taken;
            // As a capture does: what is pending is all there is between source and sink.
            assert.equal(arrived + pump.pending().toString("latin1"), sent);
            sink = new FakeEnd();
            pump.setSink(sink);
          }
          assert.ok(pump.pendingBytes <= 40, "a paused source leaves at most one chunk");
        }
        if (fin) pump.receiveFin();
        sink.blocking = false;
        if (sink.outstanding !== null) {
          sink.split(Number.POSITIVE_INFINITY);
          pump.drained();
        }
        pump.unhold();
        assert.equal(arrived + sink.taken, sent);
        assert.equal(sink.finished, fin ? 1 : 0);
        assert.equal(source.credit, sent.length);
        assert.equal(pump.bytes, sent.length);
      }),
      { numRuns: 500 },
    );
  });

  it("does not go on with a sink that is not as it left it", () => {
    const blockedAt = (): { pump: Pump; sink: FakeEnd } => {
      const [pump, sink] = [new Pump(), new FakeEnd()];
      pump.setSource(new FakeEnd());
      pump.setSink(sink);
      sink.blocking = true;
      pump.receive(Buffer.from("chunk"));
      return { pump, sink };
    };
    const asserted = { code: "ERR_ASSERTION" };
    assert.throws(() => blockedAt().pump.setSink(new FakeEnd()), asserted, "another one gets what follows");
    assert.throws(() => blockedAt().pump.removeSink(Buffer.from("chunk and more")), asserted, "bytes appear");
    const { pump, sink } = blockedAt();
    pump.removeSink(sink.split(2));
    assert.equal(pump.pending().toString(), "unk");
  });

  it("gives no credit for bytes that came from elsewhere", () => {
    const pump = new Pump();
    const source = new FakeEnd();
    pump.setSource(source);
    pump.prepend(Buffer.from("from a snapshot"));
    const sink = new FakeEnd();
    pump.setSink(sink);
    pump.receive(Buffer.from("own"));
    assert.equal(sink.taken, "from a snapshotown");
    assert.equal(source.credit, 3);
  });
});
