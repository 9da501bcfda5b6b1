/** Ranges of pages, ordered by address and not overlapping: what is in one of two, in both, in one alone. */
import { PAGE_BYTES } from "./page-map.ts";
import type { PageRange } from "./page-scan.ts";

/** Appends, joined with the range before where it ends there. */
export function pushRange(ranges: PageRange[], vaddr: number, pages: number): void {
  const last = ranges.at(-1);
  if (last !== undefined && endOf(last) === vaddr) last.pages += pages;
  else ranges.push({ vaddr, pages });
}

/** What of `ranges` is in none of `others`. */
export function without(ranges: readonly PageRange[], others: readonly PageRange[]): PageRange[] {
  const left: PageRange[] = [];
  let index = 0;
  for (const range of ranges) {
    let at = range.vaddr;
    const end = endOf(range);
    for (let other = others[index]; other !== undefined && at < end; other = others[index]) {
      if (other.vaddr >= end) break;
      if (other.vaddr > at) pushRange(left, at, (other.vaddr - at) / PAGE_BYTES);
      at = Math.max(at, endOf(other));
      if (endOf(other) > end) break; // it goes on in the next
      index++;
    }
    if (at < end) pushRange(left, at, (end - at) / PAGE_BYTES);
  }
  return left;
}

/** What is in both. */
export function both(ranges: readonly PageRange[], others: readonly PageRange[]): PageRange[] {
  const common: PageRange[] = [];
  let index = 0;
  for (const range of ranges) {
    for (
      let other = others[index];
      other !== undefined && other.vaddr < endOf(range);
      other = others[index]
    ) {
      const from = Math.max(range.vaddr, other.vaddr);
      const to = Math.min(endOf(range), endOf(other));
      if (from < to) pushRange(common, from, (to - from) / PAGE_BYTES);
      if (endOf(other) > endOf(range)) break; // it goes on in the next
      index++;
    }
  }
  return common;
}

/** What is in one or the other. */
export function either(ranges: readonly PageRange[], others: readonly PageRange[]): PageRange[] {
  if (ranges.length === 0 || others.length === 0) return [...ranges, ...others];
  return union([...ranges, ...others]);
}

/** What is in any of some that may be in any order, and overlap. */
export function union(ranges: readonly PageRange[]): PageRange[] {
  const all: PageRange[] = [];
  for (const { vaddr, pages } of ranges.toSorted((one, other) => one.vaddr - other.vaddr)) {
    const last = all.at(-1);
    const end = vaddr + pages * PAGE_BYTES;
    if (last === undefined || endOf(last) < vaddr) all.push({ vaddr, pages });
    else if (end > endOf(last)) last.pages = (end - last.vaddr) / PAGE_BYTES;
  }
  return all;
}

/** Goes through ranges with ever higher addresses. */
export class RangeCursor {
  readonly #ranges: readonly PageRange[];
  #index = 0;

  constructor(ranges: readonly PageRange[]) {
    this.#ranges = ranges;
  }

  /** Whether the page at `vaddr` is in one of them, and how many of the next `pagesMax` are like it; at least one. */
  at(vaddr: number, pagesMax: number): { isInside: boolean; pages: number } {
    let range = this.#ranges[this.#index];
    while (range !== undefined && endOf(range) <= vaddr) range = this.#ranges[++this.#index];
    if (range === undefined) return { isInside: false, pages: pagesMax };
    const isInside = range.vaddr <= vaddr;
    const until = isInside ? endOf(range) : range.vaddr;
    return { isInside, pages: Math.min(pagesMax, (until - vaddr) / PAGE_BYTES) };
  }
}

function endOf({ vaddr, pages }: PageRange): number {
  return vaddr + pages * PAGE_BYTES;
}
