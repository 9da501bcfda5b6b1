import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { aheadOf, besides, isNeeded } from "#control/migration/tree-numbers.ts";

const max = 32_768;

test("CRIU's numbers are ahead of the tree's, and from the beginning where there are none ahead", () => {
  assert.equal(aheadOf(12, max), 1_012);
  assert.equal(aheadOf(max - 1, max), 300);
  fc.assert(fc.property(fc.integer({ min: 1, max: max - 1 }), (tid) => aheadOf(tid, max) + 30 < max));
});

test("numbers beside the tree's are free, wherever the tree's are", () => {
  const numbers = fc.uniqueArray(fc.integer({ min: 1, max: max - 1 }), { maxLength: 500 });
  fc.assert(
    fc.property(numbers, (needed) => {
      const last = besides(new Set(needed), max);
      assert.ok(last >= 300 && last + 60 < max);
      for (const number of needed)
        assert.ok(number <= last || number > last + 60, `${number} beside ${last}`);
    }),
  );
});

test("what CRIU starts while it restores gets the numbers after its own", () => {
  assert.equal(isNeeded(1_000, new Set([999, 1_030])), false);
  assert.equal(isNeeded(1_000, new Set([1_000])), true);
  assert.equal(isNeeded(1_000, new Set([1_029])), true);
});
