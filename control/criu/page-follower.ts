/**
 * Looks at `pages-N.img` while CRIU still writes it, so that little is left to compare while clients wait.
 *
 * The page map, which tells what page is where, comes only at the end of the dump. But CRIU writes pages in the order of
 * their addresses, as our copy has them: a guess is right nearly always, and a wrong one costs a comparison later.
 */
import { closeSync, constants, openSync, readSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { PAGE_BYTES } from "./page-map.ts";

/** Consecutive pages and their bytes. */
export interface Stretch {
  vaddr: number;
  bytes: Buffer;
}

/** pages read at once */
const READ_PAGES = 64;
/** how far a page is looked for behind the place where it was expected: pages that were dropped since */
const LOOK_AHEAD_PAGES = 32;
const LOOK_MS = 2;

export class PageFollower {
  #path: string;
  #pages: Buffer[] = [];
  /** page in the image → page in the copy that has the same bytes */
  #known = new Map<number, Buffer>();
  #expected = 0;
  #seen = 0;
  #following = true;
  #done: Promise<void>;

  /** Starts at once; the file may not be there yet. */
  constructor(path: string, copy: Stretch[]) {
    this.#path = path;
    for (const { bytes } of copy) {
      for (let at = 0; at < bytes.length; at += PAGE_BYTES)
        this.#pages.push(bytes.subarray(at, at + PAGE_BYTES));
    }
    this.#done = this.#follow();
  }

  /** After the dump. */
  async stop(): Promise<void> {
    this.#following = false;
    await this.#done;
  }

  /** Whether page `index` of the image is known to be this page of the copy (the very same view of it). */
  isKnown(index: number, stretch: Stretch, offset: number): boolean {
    const page = this.#known.get(index);
    return (
      page !== undefined &&
      page.buffer === stretch.bytes.buffer &&
      page.byteOffset === stretch.bytes.byteOffset + offset
    );
  }

  async #follow(): Promise<void> {
    const piece = Buffer.allocUnsafe(READ_PAGES * PAGE_BYTES);
    let fd = -1;
    try {
      while (this.#following) {
        if (fd === -1) fd = openIfThere(this.#path);
        const read = fd === -1 ? 0 : readSync(fd, piece, 0, piece.length, this.#seen * PAGE_BYTES);
        const whole = Math.floor(read / PAGE_BYTES);
        for (let page = 0; page < whole; page++)
          this.#guess(piece.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES));
        await (whole === READ_PAGES ? nextTurn() : delay(LOOK_MS));
      }
    } finally {
      if (fd !== -1) closeSync(fd);
    }
  }

  #guess(page: Buffer): void {
    const last = Math.min(this.#pages.length, this.#expected + LOOK_AHEAD_PAGES);
    for (let candidate = this.#expected; candidate < last; candidate++) {
      const known = this.#pages[candidate] as Buffer;
      if (page.compare(known) !== 0) continue;
      this.#known.set(this.#seen, known);
      this.#expected = candidate;
      break;
    }
    this.#expected++;
    this.#seen++;
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function openIfThere(path: string): number {
  try {
    return openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch {
    return -1;
  }
}
