/**
 * Shared memory of a tree that is digested (`memory-digest.ts`): each byte of an object once, whichever of its mappings show it, in
 * one process or in several.
 */
import { PAGE_BYTES } from "./page-map.ts";
import { pushRange, RangeCursor, union } from "./page-ranges.ts";
import type { PageRange } from "./page-scan.ts";

export interface SharedMapping {
  start: number;
  end: number;
  /** of `start` in the object, in bytes */
  offset: number;
  /** device and inode */
  object: string;
}

interface SharedObject {
  number: number;
  /** by offset in the object, ordered */
  taken: PageRange[];
}

export class SharedObjects {
  /** by device and inode */
  #met = new Map<string, SharedObject>();

  /** The same for all its mappings, counted as they are met: in the source and the target alike. */
  numberOf(object: string): number {
    return this.#meet(object).number;
  }

  /**
   * What each mapping is the first to show, by offset in its object; from now on it is taken.
   * @param areas all of one process, ordered by address: their number may be 65,530
   */
  take<M extends SharedMapping>(areas: readonly M[]): Map<M, PageRange[]> {
    const first = new Map<M, PageRange[]>();
    for (const [object, mapped] of Map.groupBy(areas, ({ object }) => object)) {
      const known = this.#meet(object);
      const taken = new RangeCursor(known.taken);
      const shown: PageRange[] = [];
      let until = 0;
      for (const area of mapped.toSorted((one, other) => one.offset - other.offset)) {
        const end = area.offset + area.end - area.start;
        const parts: PageRange[] = [];
        for (let at = Math.max(area.offset, until); at < end; ) {
          const { isInside, pages } = taken.at(at, (end - at) / PAGE_BYTES);
          if (!isInside) pushRange(parts, at, pages);
          at += pages * PAGE_BYTES;
        }
        until = Math.max(until, end);
        shown.push(...parts);
        first.set(area, parts);
      }
      known.taken = union([...known.taken, ...shown]);
    }
    return first;
  }

  #meet(object: string): SharedObject {
    let known = this.#met.get(object);
    if (known === undefined) {
      known = { number: this.#met.size, taken: [] };
      this.#met.set(object, known);
    }
    return known;
  }
}
