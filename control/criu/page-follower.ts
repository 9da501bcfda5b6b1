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

/** Pages of the image that are, in this order and without a gap, pages of the copy. */
export interface KnownRun {
  /** first page in the image */
  index: number;
  pages: number;
  /** address of the first page in the copy */
  vaddr: number;
}

export class PageFollower {
  /** in the order of the image */
  readonly known: KnownRun[] = [];
  #path: string;
  #copy: Stretch[];
  /** where in the copy the next page is expected */
  #stretch = 0;
  #offset = 0;
  #seen = 0;
  #following = true;
  #done: Promise<void>;

  /** Starts at once; the file may not be there yet. */
  constructor(path: string, copy: Stretch[]) {
    this.#path = path;
    this.#copy = copy;
    this.#done = this.#follow();
  }

  /** After the dump. */
  async stop(): Promise<void> {
    this.#following = false;
    await this.#done;
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
    const [stretch, offset] = [this.#stretch, this.#offset];
    for (let tries = 0; tries < LOOK_AHEAD_PAGES; tries++) {
      const candidate = this.#copy[this.#stretch];
      if (candidate === undefined) break;
      const at = this.#offset;
      const vaddr = candidate.vaddr + at;
      this.#advance(candidate);
      if (page.compare(candidate.bytes, at, at + PAGE_BYTES) === 0) {
        this.#know(vaddr);
        return;
      }
    }
    // changed since it was copied: the next page is expected after where this one was
    this.#stretch = stretch;
    this.#offset = offset;
    const changed = this.#copy[stretch];
    if (changed !== undefined) this.#advance(changed);
    this.#seen++;
  }

  #advance(stretch: Stretch): void {
    this.#offset += PAGE_BYTES;
    if (this.#offset < stretch.bytes.length) return;
    this.#stretch++;
    this.#offset = 0;
  }

  #know(vaddr: number): void {
    const last = this.known.at(-1);
    if (
      last !== undefined &&
      last.index + last.pages === this.#seen &&
      last.vaddr + last.pages * PAGE_BYTES === vaddr
    )
      last.pages++;
    else this.known.push({ index: this.#seen, pages: 1, vaddr });
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
