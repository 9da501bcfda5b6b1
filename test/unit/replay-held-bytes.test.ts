/** What is held for an application that is away: first in, first out, within limits, sealed on disk. */
import assert from "node:assert/strict";
import { fstatSync, mkdtempSync, readdirSync, readlinkSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { punchHole } from "#proxy/kernel/descriptors.ts";
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
        const budget = new HeldBudget(limits, punchHole);
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
    const budget = new HeldBudget(limits, punchHole);
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
    const budget = new HeldBudget({ ...limits, spillBytesMax: 0 }, punchHole);
    const held = new HeldBytes(budget);
    assert.ok(held.push(Buffer.alloc(1000)));
    assert.ok(!held.push(Buffer.alloc(1)), "the session's memory");
    const other = new HeldBytes(budget);
    assert.ok(other.push(Buffer.alloc(500)));
    assert.ok(!other.push(Buffer.alloc(1)), "the workload's memory");
    assert.equal(budget.memoryBytes, 1500);
  });

  it("charge the disk for what a small record costs", () => {
    const budget = new HeldBudget({ ...limits, sessionBytesMax: 0 }, punchHole);
    const held = new HeldBytes(budget);
    let records = 0;
    while (held.push(Buffer.from("x"))) records++;
    assert.ok(records > 0 && records < 100, `${records} records of one byte in 8,000`);
    held.clear();
  });

  it("fail with SPILL_FAILED where the disk refuses, or the file was changed", () => {
    const nowhere = new HeldBytes(
      new HeldBudget({ ...limits, sessionBytesMax: 0, spillDir: join(directory, "none") }, punchHole),
    );
    assert.throws(() => nowhere.push(Buffer.from("x")), { code: "SPILL_FAILED" });
    const held = new HeldBytes(new HeldBudget({ ...limits, sessionBytesMax: 0 }, punchHole));
    held.push(Buffer.from("secret"));
    writeSync(fileIn(directory), "damage", 0);
    assert.throws(() => held.shift(), { code: "SPILL_FAILED" });
    held.clear();
  });

  it("that cannot be read back are given back to the budget, and their file to the disk", () => {
    const before = descriptors();
    const budget = new HeldBudget({ ...limits, sessionBytesMax: 0 }, punchHole);
    const held = new HeldBytes(budget);
    held.push(Buffer.from("secret"));
    held.push(Buffer.from("another"));
    writeSync(fileIn(directory), "damage", 0);
    assert.throws(() => held.shift(), { code: "SPILL_FAILED" });
    assert.equal(String(held.shift()), "another");
    assert.deepEqual([held.isEmpty, budget.spilledBytes], [true, 0]);
    assert.equal(descriptors(), before);
  });

  const MIB = 1024 * 1024;
  const CHUNK = Buffer.alloc(32 * 1024, 7);
  /** A backlog of 3 MiB that is passed through, of which what is beyond 1 MiB is on disk. */
  function* passing(budget: HeldBudget): Generator<{ refused: boolean }> {
    const held = new HeldBytes(budget);
    for (let bytes = 0; bytes < 3 * MIB; bytes += CHUNK.length) assert.ok(held.push(CHUNK));
    try {
      for (let refused = false; !refused; ) {
        refused = !held.push(CHUNK);
        yield { refused };
        if (!refused) assert.ok(held.shift()?.equals(CHUNK));
      }
    } finally {
      held.clear();
    }
  }
  const passed = { ...limits, sessionBytesMax: MIB, workloadBytesMax: MIB, spillBytesMax: 4 * MIB };

  it("take no more of the disk than the limit, however much passes through what is held, and none of it is refused", () => {
    const budget = new HeldBudget(passed, punchHole);
    let rounds = 0;
    for (const { refused } of passing(budget)) {
      assert.ok(!refused, `refused after ${rounds} chunks, with ${budget.spilledBytes} bytes on disk`);
      if (++rounds % 32 === 0) {
        const { blocks } = fstatSync(fileIn(directory));
        assert.ok(blocks * 512 <= passed.spillBytesMax, `${blocks * 512} bytes on disk`);
        assert.ok(budget.spilledBytes <= passed.spillBytesMax);
      }
      if (rounds === 256) break;
    }
  });

  it("come out where the disk has no room even to give some back, and are charged until their file is closed", () => {
    let asked = 0;
    const budget = new HeldBudget({ ...passed, sessionBytesMax: 0 }, () => {
      asked++;
      throw new Error("ENOSPC");
    });
    const held = new HeldBytes(budget);
    const chunks = Array.from({ length: 6 }, (_, index) => Buffer.alloc(30_000, index));
    for (const chunk of chunks) held.push(chunk);
    for (const chunk of chunks) assert.deepEqual(held.shift(), chunk);
    assert.equal(asked, 1);
    assert.equal(budget.spilledBytes, 0);
  });

  it("are charged until their file is closed where the file system gives nothing back before", () => {
    const budget = new HeldBudget(passed, () => false);
    let sizeMax = 0;
    for (const { refused } of passing(budget)) {
      sizeMax = Math.max(sizeMax, fstatSync(fileIn(directory)).size);
      assert.ok(sizeMax <= passed.spillBytesMax, `${sizeMax} bytes`);
      if (refused) assert.ok(sizeMax > 3 * MIB);
    }
    assert.equal(budget.spilledBytes, 0);
  });
});

/** The spill file of a session, the only one there. */
function fileIn(directory: string): number {
  const found = readdirSync("/proc/self/fd").filter((each) => isIn(directory, each));
  assert.equal(found.length, 1);
  return Number(found[0]);
}

function isIn(directory: string, fd: string): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).startsWith(directory);
  } catch {
    return false; // the one the list was read with
  }
}
