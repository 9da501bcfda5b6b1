/** How long clients would wait, said from what a rehearsal has counted and measured. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { type Measured, predict, tooMuchMemory } from "#control/migration/prediction.ts";
import { type SessionMember, sessionFault } from "#control/workload/preflight/session-tree.ts";

const measured: Measured = {
  downstream: "takeover",
  legs: 100,
  processes: 1,
  threads: 12,
  mappings: 300,
  descriptors: 120,
  imageBytes: 60e6,
  lastRoundBytes: 2e6,
  copiedBytesMax: 2 ** 30,
  leavesPages: false,
  readBytesPerMs: 1_000_000,
  sendBytesPerMs: 200_000,
  scanMs: 10,
  callMs: 1,
  storeMs: 1,
  criuMs: 60,
  holdMsMax: 250,
};

const likely = (more: Partial<Measured>, phase?: string): number => {
  const { pauseMs, parts } = predict({ ...measured, ...more });
  return phase === undefined ? pauseMs.likely : (parts.find((part) => part.phase === phase)?.ms.likely ?? -1);
};

describe("the predicted pause", () => {
  it("is the sum of its parts, in order low, likely, high", () => {
    fc.assert(
      fc.property(
        fc.record({
          legs: fc.nat(100_000),
          processes: fc.integer({ min: 1, max: 1_000 }),
          imageBytes: fc.nat(2 ** 31 - 1),
          lastRoundBytes: fc.option(fc.nat(2 ** 30), { nil: null }),
          callMs: fc.nat(500),
        }),
        (more) => {
          const { pauseMs, parts } = predict({ ...measured, ...more });
          for (const bound of ["low", "likely", "high"] as const) {
            const sum = parts.reduce((total, { ms }) => total + ms[bound], 0);
            assert.ok(Math.abs(pauseMs[bound] - sum) < 0.1);
          }
          for (const { ms } of [{ ms: pauseMs }, ...parts])
            assert.ok(0 <= ms.low && ms.low <= ms.likely && ms.likely <= ms.high);
        },
      ),
    );
  });

  it("grows with what there is to do, in the phase that does it", () => {
    assert.ok(likely({ imageBytes: 600e6 }, "dump") > likely({}, "dump") + 400);
    assert.ok(likely({ imageBytes: 600e6, leavesPages: true }, "dump") < likely({}, "dump") + 40);
    assert.ok(likely({ lastRoundBytes: 200e6 }, "restore") > likely({}, "restore") + 900);
    assert.ok(likely({ processes: 50 }, "restore") > likely({}, "restore") + 90);
    assert.ok(likely({ legs: 10_000 }, "capture") > likely({}, "capture") + 1_000);
    assert.ok(likely({ callMs: 100 }) > likely({}) + 400);
  });

  it("counts all memory where nothing is copied before the hold", () => {
    const all = likely({ lastRoundBytes: null, imageBytes: 400e6 }, "restore");
    assert.ok(all > 2_000 && all < 2_800, `${all}`);
  });

  it("counts what is beyond the limit of copies as sent while clients wait", () => {
    const partly =
      likely({ imageBytes: 2 ** 30 + 300e6 }, "restore") - likely({ imageBytes: 2 ** 30 }, "restore");
    assert.ok(partly > 1_800 && partly < 2_500, `${partly}`);
  });

  it("is not begun with where memory alone takes longer than the deadline", () => {
    const beyond = tooMuchMemory({ ...measured, imageBytes: 2 ** 30 + 4e9 }, 10_000);
    assert.match(
      beyond?.what ?? "",
      /^5074 MB of memory, of which 4002 MB .* take at least \d+(\.\d)? ms, and the deadline is 10000 ms$/,
    );
    assert.match(beyond?.cure ?? "", /^raise limits\.precopyMbMax/);
    const dumped = tooMuchMemory({ ...measured, imageBytes: 4e9, lastRoundBytes: null }, 10_000);
    assert.match(dumped?.what ?? "", /of which 4000 MB/);
    const restored = tooMuchMemory({ ...measured, imageBytes: 40e9, copiedBytesMax: 2 ** 40 }, 10_000);
    assert.equal(restored?.cure, "raise limits.deadlineMs (or --deadline)");
    assert.equal(tooMuchMemory({ ...measured, imageBytes: 2 ** 30 + 500e6 }, 10_000), null);
    assert.equal(tooMuchMemory(measured, 10_000), null);
  });

  it("says that the hold may take as long as its bound", () => {
    const [hold] = predict(measured).parts;
    assert.equal(hold?.phase, "hold");
    assert.equal(hold?.ms.high, 250);
  });
});

describe("sessions that a tree of processes can be given again", () => {
  const tree = (...members: [pid: number, parent: number, session: number][]): SessionMember[] =>
    members.map(([pid, parent, session]) => ({ pid, parent, session }));
  const faultOf = (...members: [number, number, number][]): number | null =>
    sessionFault(tree(...members), true)?.pid ?? null;

  it("born in the root's, led by themselves, or below their leader", () => {
    assert.equal(faultOf([10, 1, 10], [11, 10, 10], [12, 10, 12], [13, 12, 12], [14, 13, 12]), null);
    assert.equal(sessionFault([], true), null);
  });

  it("children of the root whoever led them: CRIU gives them a leader", () => {
    assert.equal(faultOf([10, 1, 10], [12, 10, 99]), null);
    // where the root cannot be made to take them they would be the container's init's
    assert.equal(sessionFault(tree([10, 1, 10], [11, 10, 10], [12, 10, 99]), false)?.pid, 12);
  });

  it("not a grandchild whose leader has ended: what a daemon leaves below a subreaper", () => {
    assert.equal(faultOf([10, 1, 10], [11, 10, 10], [12, 11, 99]), 12);
  });

  it("born before its parent began a session of its own", () => {
    assert.equal(faultOf([10, 1, 10], [11, 10, 11], [12, 11, 10]), null);
    // 11 cannot have been in two sessions before its own
    assert.equal(faultOf([10, 1, 10], [11, 10, 10], [12, 11, 12], [13, 12, 10], [14, 12, 11]), 14);
  });
});
