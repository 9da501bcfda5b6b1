/** Ranges of pages against sets of them. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { PAGE_BYTES } from "#control/criu/page-map.ts";
import { both, either, pushRange, RangeCursor, union, without } from "#control/criu/page-ranges.ts";
import type { PageRange } from "#control/criu/page-scan.ts";

const PAGES = 40;
const pages = fc.uniqueArray(fc.nat(PAGES - 1)).map((numbers) => new Set(numbers));

/** @param joined false: neighbours may be ranges of their own, as the kernel's answers are */
function rangesOf(numbers: ReadonlySet<number>, joined = true): PageRange[] {
  const ranges: PageRange[] = [];
  for (let page = 0; page < PAGES; page++) {
    if (!numbers.has(page)) continue;
    if (joined || page % 3 === 0) pushRange(ranges, page * PAGE_BYTES, 1);
    else ranges.push({ vaddr: page * PAGE_BYTES, pages: 1 });
  }
  return ranges;
}

function pagesOf(ranges: readonly PageRange[]): number[] {
  return ranges.flatMap(({ vaddr, pages }) =>
    Array.from({ length: pages }, (_, at) => vaddr / PAGE_BYTES + at),
  );
}

const those = (isIn: (page: number) => boolean): number[] => [...Array(PAGES).keys()].filter(isIn);

describe("ranges of pages", () => {
  for (const joined of [true, false])
    it(`are what sets of pages are, ${joined ? "joined" : "in pieces"}`, () => {
      fc.assert(
        fc.property(pages, pages, (one, other) => {
          const [ranges, others] = [rangesOf(one, joined), rangesOf(other, joined)];
          assert.deepEqual(
            pagesOf(without(ranges, others)),
            those((page) => one.has(page) && !other.has(page)),
          );
          assert.deepEqual(
            pagesOf(both(ranges, others)),
            those((page) => one.has(page) && other.has(page)),
          );
          assert.deepEqual(
            pagesOf(either(ranges, others)),
            those((page) => one.has(page) || other.has(page)),
          );
        }),
      );
    });

  it("that overlap, in any order, are united", () => {
    const some = fc.array(fc.tuple(fc.nat(PAGES - 1), fc.integer({ min: 1, max: 5 })));
    fc.assert(
      fc.property(some, (given) => {
        const ranges = given.map(([page, count]) => ({ vaddr: page * PAGE_BYTES, pages: count }));
        const inside = new Set(
          given.flatMap(([page, count]) => Array.from({ length: count }, (_, i) => page + i)),
        );
        assert.deepEqual(
          pagesOf(union(ranges)),
          [...inside].sort((one, other) => one - other),
        );
      }),
    );
  });

  it("say of each page whether it is inside, and how many are like it", () => {
    fc.assert(
      fc.property(pages, (numbers) => {
        const cursor = new RangeCursor(rangesOf(numbers));
        for (let page = 0; page < PAGES; ) {
          const { isInside, pages: alike } = cursor.at(page * PAGE_BYTES, PAGES - page);
          assert.ok(alike >= 1);
          for (let at = page; at < page + alike; at++) assert.equal(numbers.has(at), isInside);
          page += alike;
        }
      }),
    );
  });
});
