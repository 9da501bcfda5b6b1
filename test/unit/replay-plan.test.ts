/** What becomes of requests in flight: order, safety, and that every byte that is sent again is there. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { RequestRecord } from "#proxy/protocol/observer.ts";
import { type PlanInput, planReplay } from "#proxy/replay/plan.ts";

function record(fields: Partial<RequestRecord>): RequestRecord {
  return {
    method: "GET",
    start: 0,
    headEnd: 10,
    end: 10,
    idempotent: true,
    upgrade: null,
    expectsContinue: false,
    answerStarted: false,
    keepAlive: true,
    tag: null,
    ...fields,
  };
}

const input = (fields: Partial<PlanInput>): PlanInput => ({
  inFlight: [],
  bytesIn: 10,
  messageStart: 10,
  sentUpTo: 10,
  unsafe: false,
  hasLife: () => true,
  covers: () => true,
  ...fields,
});

describe("the plan of a replay", () => {
  const outcome = (fields: Partial<RequestRecord>, around: Partial<PlanInput> = {}): string | undefined =>
    planReplay(input({ inFlight: [record(fields)], ...around }))?.[0]?.do;

  it("sends what is idempotent, what nothing was given away of, and what the policy allows", () => {
    assert.equal(outcome({}), "send");
    assert.equal(outcome({ idempotent: false }), "refuse");
    assert.equal(outcome({ idempotent: false }, { unsafe: true }), "send");
    assert.equal(outcome({ idempotent: false }, { sentUpTo: 0 }), "send");
    assert.equal(outcome({ idempotent: false }, { sentUpTo: 1 }), "refuse");
    assert.equal(outcome({ idempotent: false, end: -1 }, { messageStart: 0 }), "refuse");
    assert.equal(outcome({ idempotent: false, end: -1 }, { messageStart: 0, sentUpTo: 0 }), "send");
    assert.equal(outcome({ end: -1 }, { messageStart: 0 }), "send");
    assert.equal(outcome({}, { covers: () => false }), "refuse");
    assert.equal(outcome({}, { hasLife: () => false }), "refuse");
  });

  it("is lost with the beginning of a head", () => {
    assert.equal(planReplay(input({ bytesIn: 20, covers: () => false })), null);
    assert.deepEqual(planReplay(input({ bytesIn: 20 })), [{ do: "send", from: 10, to: 20, record: null }]);
  });

  it("has every request once and in order, and never sends again what may have been acted upon", () => {
    const request = fc.record({
      bytes: fc.integer({ min: 1, max: 50 }),
      idempotent: fc.boolean(),
      hasLife: fc.boolean(),
    });
    fc.assert(
      fc.property(
        fc.array(request, { maxLength: 8 }),
        fc.boolean(),
        fc.nat(60),
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (requests, isLastOpen, partialHead, sentPart, keptPart) => {
          let at = 100;
          const records = requests.map(({ bytes, idempotent }, index) => {
            const start = at;
            at += bytes;
            const isOpen = isLastOpen && index === requests.length - 1;
            return record({ start, headEnd: start + 1, end: isOpen ? -1 : at, idempotent });
          });
          const last = records.at(-1);
          const isOpen = last?.end === -1;
          const bytesIn = at + (isOpen ? 0 : partialHead);
          const sentUpTo = 100 + Math.floor(sentPart * (bytesIn - 100));
          const keptTo = 100 + Math.floor(keptPart * (bytesIn - 100));
          const covers = (from: number, to: number): boolean => from >= 100 && to <= keptTo;
          const alive = new Set(records.filter((_, index) => requests[index]?.hasLife));
          const plan = planReplay({
            inFlight: records,
            bytesIn,
            messageStart: isOpen ? last.start : at,
            sentUpTo,
            unsafe: false,
            hasLife: (each) => alive.has(each),
            covers,
          });
          if (plan === null) {
            assert.ok(bytesIn > at && keptTo < bytesIn);
            return;
          }
          const known = plan.filter((step) => step.record !== null);
          assert.deepEqual(
            known.map((step) => step.record),
            records,
          );
          let end = 100;
          for (const step of plan) {
            if (step.do === "refuse") continue;
            assert.ok(step.from >= end && step.to > step.from && covers(step.from, step.to));
            end = step.to;
            const { record: sent } = step;
            if (sent === null) continue;
            assert.equal(step.from, sent.start);
            assert.equal(step.to, sent.end < 0 ? bytesIn : sent.end);
            assert.ok(alive.has(sent));
            assert.ok(sent.idempotent || sent.start >= sentUpTo);
          }
          if (bytesIn > at) assert.equal(plan.at(-1)?.record, null);
        },
      ),
    );
  });
});
