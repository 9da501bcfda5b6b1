/** What load says of clients: for how long they waited, since when, and who has gone. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { GapMeter, waitingSince } from "../load/gaps.ts";
import { goneIn, type LoadReport } from "../load/protocol.ts";

describe("a client's longest gap", () => {
  it("is between two answers, or since the last one", () => {
    const gaps = new GapMeter(0);
    for (const ms of [10, 20, 220, 230]) gaps.answer(ms);
    assert.deepEqual(gaps.longest(240), { ms: 200, beganMs: 20 });
    assert.deepEqual(gaps.longest(1_000), { ms: 770, beganMs: 230 });
    gaps.mark();
    gaps.answer(260);
    assert.deepEqual(gaps.longest(270), { ms: 30, beganMs: 230 });
    gaps.forget(900);
    assert.deepEqual(gaps.longest(910), { ms: 30, beganMs: 230 });
  });

  it("began when that of most clients did", () => {
    const began = [100, 5, 110, 120, 105].map((beganMs) => ({ ms: 50, beganMs }));
    assert.equal(waitingSince(began), 105);
    assert.equal(waitingSince([]), 0);
  });
});

describe("clients' connections", () => {
  it("are missed when they went before the last mark, too", () => {
    const of = (report: Partial<LoadReport>): number => goneIn(report as LoadReport);
    assert.equal(of({ sessions: 10, alive: 10, resets: 0 }), 0);
    assert.equal(of({ sessions: 10, alive: 7, resets: 3 }), 3);
    assert.equal(of({ sessions: 10, alive: 7, resets: 0 }), 3);
  });
});
