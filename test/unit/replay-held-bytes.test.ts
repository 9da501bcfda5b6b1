/** What is held for an application that is away: first in, first out, within limits, sealed on disk. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readlinkSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { HeldBudget, HeldBytes, type HeldLimits } from "#proxy/replay/held-bytes.ts";

describe("held bytes", () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-held-"));
  after(() => rmSync(directory, { recursive: true, force: true }));
  const limits: HeldLimits = {
    sessionBytesMax: 1000,
    workloadBytesMax: 1500,
    spillBytesMax: 8000,
    spillDir: directory,
  };
  const descriptors = (): number => readdirSync("/proc/self/fd").length;

  it("come out as they went in, from memory and disk, of many sessions within one budget", () => {
    const step = fc.record({
      session: fc.nat(2),
      push: fc.option(fc.uint8Array({ maxLength: 700 }), { nil: null }),
    });
    const before = descriptors();
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const budget = new HeldBudget(limits);
        const sessions = [0, 1, 2].map(() => ({ held: new HeldBytes(budget), expected: [] as Buffer[] }));
        for (const { session, push } of steps) {
          const { held, expected } = sessions[session] as (typeof sessions)[number];
          if (push !== null && push.length > 0) {
            const chunk = Buffer.from(push);
            if (held.push(chunk)) expected.push(Buffer.from(chunk));
            chunk.fill(0xff);
          } else {
            const whole = Buffer.concat(expected.splice(0));
            const chunk = held.shift();
            assert.equal(chunk === null, whole.length === 0);
            if (chunk === null) continue;
            assert.deepEqual(chunk, whole.subarray(0, chunk.length));
            if (chunk.length < whole.length) expected.push(whole.subarray(chunk.length));
          }
          assert.ok(budget.memoryBytes <= limits.workloadBytesMax);
          assert.ok(budget.spilledBytes <= limits.spillBytesMax);
        }
        for (const { held, expected } of sessions) {
          const got: Buffer[] = [];
          for (let chunk = held.shift(); chunk !== null; chunk = held.shift()) got.push(chunk);
          assert.deepEqual(Buffer.concat(got), Buffer.concat(expected));
          assert.ok(held.isEmpty && !held.isSpilled);
        }
        assert.deepEqual([budget.memoryBytes, budget.spilledBytes], [0, 0]);
        assert.deepEqual(readdirSync(directory), [], "no file has a name");
      }),
    );
    assert.equal(descriptors(), before, "files that are read to their end are closed");
  });

  it("are all let go by clear", () => {
    const before = descriptors();
    const budget = new HeldBudget(limits);
    const held = new HeldBytes(budget);
    for (let index = 0; index < 3; index++) assert.ok(held.push(Buffer.alloc(900)));
    assert.ok(held.isSpilled);
    held.clear();
    assert.deepEqual([held.isEmpty, budget.memoryBytes, budget.spilledBytes], [true, 0, 0]);
    assert.equal(descriptors(), before);
    assert.ok(held.push(Buffer.from("again")));
    assert.equal(String(held.shift()), "again");
  });

  it("are not taken over the limits, and refused work takes nothing", () => {
    const budget = new HeldBudget({ ...limits, spillBytesMax: 0 });
    const held = new HeldBytes(budget);
    assert.ok(held.push(Buffer.alloc(1000)));
    assert.ok(!held.push(Buffer.alloc(1)), "the session's memory");
    const other = new HeldBytes(budget);
    assert.ok(other.push(Buffer.alloc(500)));
    assert.ok(!other.push(Buffer.alloc(1)), "the workload's memory");
    assert.equal(budget.memoryBytes, 1500);
  });

  it("charge the disk for what a small record costs", () => {
    const budget = new HeldBudget({ ...limits, sessionBytesMax: 0 });
    const held = new HeldBytes(budget);
    let records = 0;
    while (held.push(Buffer.from("x"))) records++;
    assert.ok(records > 0 && records < 100, `${records} records of one byte in 8,000`);
    held.clear();
  });

  it("fail with SPILL_FAILED where the disk refuses, or the file was changed", () => {
    const nowhere = new HeldBytes(
      new HeldBudget({ ...limits, sessionBytesMax: 0, spillDir: join(directory, "none") }),
    );
    assert.throws(() => nowhere.push(Buffer.from("x")), { code: "SPILL_FAILED" });
    const held = new HeldBytes(new HeldBudget({ ...limits, sessionBytesMax: 0 }));
    held.push(Buffer.from("secret"));
    const fd = readdirSync("/proc/self/fd").find((each) => isIn(directory, each));
    assert.notEqual(fd, undefined);
    writeSync(Number(fd), "damage", 0);
    assert.throws(() => held.shift(), { code: "SPILL_FAILED" });
    held.clear();
  });
});

function isIn(directory: string, fd: string): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).startsWith(directory);
  } catch {
    return false; // the one the list was read with
  }
}
