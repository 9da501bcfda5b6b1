import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type SharedMapping, SharedObjects } from "#control/criu/shared-objects.ts";

const PAGE = 4096;

/** Pages `first` to `first + pages` of an object, mapped at page `at`. */
function mapping(object: string, at: number, first: number, pages: number): SharedMapping {
  const [start, offset] = [at * PAGE, first * PAGE];
  return { start, end: start + pages * PAGE, offset, object };
}

/** [first page, pages] that each mapping is the first to show */
function taken(objects: SharedObjects, areas: SharedMapping[]): number[][][] {
  const found = objects.take(areas);
  return areas.map((area) => (found.get(area) ?? []).map(({ vaddr, pages }) => [vaddr / PAGE, pages]));
}

describe("shared memory of a tree", () => {
  it("is taken once, whichever mappings of one process show it", () => {
    assert.deepEqual(
      taken(new SharedObjects(), [
        mapping("a", 100, 0, 1),
        mapping("a", 200, 2, 6),
        mapping("b", 300, 0, 2),
        mapping("a", 400, 1, 9),
        mapping("a", 500, 3, 1),
      ]),
      // by offset: what begins first shows first
      [[[0, 1]], [], [[0, 2]], [[1, 9]], []],
    );
  });

  it("is taken of other processes' mappings where those before showed nothing of it", () => {
    const objects = new SharedObjects();
    taken(objects, [mapping("a", 100, 2, 2), mapping("a", 200, 6, 2)]);
    assert.deepEqual(taken(objects, [mapping("a", 100, 0, 10)]), [
      [
        [0, 2],
        [4, 2],
        [8, 2],
      ],
    ]);
    assert.deepEqual(taken(objects, [mapping("a", 100, 0, 10), mapping("b", 200, 0, 1)]), [[], [[0, 1]]]);
  });

  it("has a number for each object, in the order in which they are met", () => {
    const objects = new SharedObjects();
    objects.take([mapping("b", 1, 0, 1), mapping("a", 2, 0, 1)]);
    assert.deepEqual(
      ["a", "b", "c"].map((object) => objects.numberOf(object)),
      [1, 0, 2],
    );
  });
});
