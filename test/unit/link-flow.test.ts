/** What a link's two ends know of its bytes, without a connection: what is sent arrives once and in order, however often it is cut. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { FRAME } from "#proxy/link/link-codec.ts";
import { Incoming, LINK_WINDOW_BYTES, Outgoing } from "#proxy/link/link-flow.ts";
import { LinkPulse } from "#proxy/link/link-pulse.ts";
import { LinkQuestions } from "#proxy/link/link-questions.ts";

/** The byte at each position says where it is. */
const PATTERN = Buffer.from(Uint8Array.from({ length: 200_000 }, (_, at) => at % 251));
function patternAt(from: number, bytes: number): Buffer {
  return PATTERN.subarray(from % 251, (from % 251) + bytes);
}

/** What is on its way between the two ends of one direction. */
class Direction {
  readonly out = new Outgoing();
  readonly in = new Incoming();
  given = 0;
  got = 0;
  #way: Buffer[] = [];

  give(bytes: number): void {
    if (this.out.hasUnsent) return;
    this.out.offer(patternAt(this.given, bytes));
    this.given += bytes;
    this.frame();
  }

  frame(): void {
    const part = this.out.next(true);
    if (part !== null) this.#way.push(Buffer.from(part));
  }

  arrive(): void {
    const part = this.#way.shift();
    if (part === undefined) return;
    assert.ok(this.in.take(part.length), "no more comes than there is credit for");
    assert.ok(part.equals(patternAt(this.got, part.length)), `the bytes at ${this.got}`);
    this.got += part.length;
    this.in.consume(part.length);
  }

  credit(): void {
    if (!this.in.hasCredit) return;
    this.out.credit(this.in.takeCredit());
    assert.ok(this.out.acknowledge({ bytes: this.out.creditedBytes, fin: false }));
    this.frame();
  }

  acknowledge(): void {
    assert.ok(this.out.acknowledge(this.in.received));
  }

  cut(): void {
    this.#way = [];
    this.in.takeCredit();
    const resumed = { ...this.in.received, creditedBytes: this.in.creditedBytes };
    assert.ok(this.out.resume(resumed));
    assert.ok(this.out.acknowledge(resumed));
    this.#way = this.out.unacknowledged().map((chunk) => Buffer.from(chunk));
    this.frame();
  }
}

describe("a direction of a link", () => {
  it("gives each byte once and in order, and never has more than a window on its way", () => {
    const step = fc.oneof(
      fc.record({ is: fc.constant("give" as const), bytes: fc.integer({ min: 1, max: 100_000 }) }),
      fc.record({ is: fc.constantFrom("arrive", "credit", "acknowledge", "cut" as const) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const direction = new Direction();
        for (const one of steps) {
          if ("bytes" in one) direction.give(one.bytes);
          else direction[one.is as "arrive" | "credit" | "acknowledge" | "cut"]();
          assert.ok(direction.out.sentBytes - direction.out.creditedBytes <= LINK_WINDOW_BYTES);
        }
        for (let left = 100; left > 0 && direction.got < direction.given; left--) {
          direction.arrive();
          direction.credit();
        }
        assert.equal(direction.got, direction.given);
      }),
      { numRuns: 200 },
    );
  });

  it("takes nothing beyond the window, and nothing behind FIN", () => {
    const flow = new Incoming();
    assert.ok(flow.take(LINK_WINDOW_BYTES));
    assert.equal(flow.take(1), false);
    const ended = new Incoming();
    ended.takeFin();
    assert.equal(ended.take(1), false);
  });

  it("believes no acknowledgement of what was not sent", () => {
    const flow = new Outgoing();
    flow.offer(Buffer.alloc(10));
    flow.next(true);
    assert.equal(flow.acknowledge({ bytes: 11, fin: false }), false);
    assert.equal(flow.acknowledge({ bytes: 10, fin: true }), false);
    assert.ok(flow.acknowledge({ bytes: 10, fin: false }));
    assert.equal(flow.resume({ bytes: 9, creditedBytes: 0, fin: false }), false, "it had more");
    assert.equal(flow.resume({ bytes: 10, creditedBytes: 11, fin: false }), false);
  });

  it("sends nothing while it is held, and a FIN that was held behind what was", () => {
    const flow = new Outgoing();
    flow.hold();
    flow.offer(Buffer.alloc(10));
    assert.equal(flow.next(false), null);
    assert.equal(flow.finish(), false);
    flow.unhold();
    assert.equal(flow.next(false)?.length, 10);
    assert.ok(flow.takeHeldFin());
    assert.ok(flow.finish());
    assert.equal(flow.finish(), false, "once");
  });
});

describe("what an owner asks of an anchor", () => {
  const types = (frames: Buffer[]): number[] => frames.map((frame) => frame[0] as number);
  const to = { epoch: 2, link: { address: "10.0.0.1", port: 7 } };

  it("is asked again over another connection until it is answered", () => {
    const questions = new LinkQuestions();
    questions.move(to);
    questions.hold();
    questions.count();
    assert.deepEqual(types(questions.again(false)), [FRAME.hold, FRAME.move, FRAME.count]);
    questions.onHeld();
    questions.prepared = "ready";
    questions.countedBytes = 5;
    assert.ok(questions.isHeld);
    assert.deepEqual(questions.again(true), []);
  });

  it("counts each HOLD: HELD of one before is none of the last", () => {
    const questions = new LinkQuestions();
    questions.hold();
    questions.resume();
    questions.hold();
    questions.onHeld();
    assert.equal(questions.isHeld, false);
    questions.onHeld();
    assert.ok(questions.isHeld);
  });

  it("is RESUME where the anchor holds, and nobody has it hold any more", () => {
    const questions = new LinkQuestions();
    questions.hold();
    questions.resume();
    assert.deepEqual(types(questions.again(true)), [FRAME.resume]);
    assert.deepEqual(questions.again(false), []);
  });
});

describe("the other end of a link", () => {
  const looks = (pulse: LinkPulse, count: number): void => {
    for (let at = 0; at < count; at++) pulse.look();
  };

  it("is asked by the dialler when nothing has followed what was sent, and is gone when nothing comes of that", () => {
    const pulse = new LinkPulse();
    pulse.sent();
    looks(pulse, 1);
    assert.equal(pulse.isToAsk(true), false);
    looks(pulse, 1);
    assert.ok(pulse.isToAsk(true));
    assert.equal(pulse.isToAsk(false), false, "an acceptor has time");
    assert.ok(pulse.ask(7));
    assert.equal(pulse.ask(7), false, "once");
    looks(pulse, 2);
    assert.equal(pulse.isSilent(7), false);
    looks(pulse, 1);
    assert.ok(pulse.isSilent(7));
  });

  it("is not gone while its connection gets on, or when it has been heard of", () => {
    const pulse = new LinkPulse();
    pulse.sent();
    looks(pulse, 2);
    pulse.ask(7);
    looks(pulse, 3);
    assert.equal(pulse.isSilent(8), false, "its answer is behind what is others'");
    looks(pulse, 3);
    assert.ok(pulse.isSilent(8));
    pulse.heard();
    assert.equal(pulse.hasAsked, false);
    assert.equal(pulse.isToAsk(true), false);
  });
});
