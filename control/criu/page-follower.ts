/**
 * Looks at CRIU's page images while it still writes them, so that little is left to compare while clients wait.
 *
 * What it finds are guesses about where pages are, never about what is in them: that page I of `pages-N.img` has the bytes of a
 * page of one process's copy was seen. Whose image N is, is said by `pagemap-PID.img`, which CRIU writes when it has written
 * all pages; until then the order in which the files were made tells, as CRIU makes a page map and its pages one after
 * the other, of processes and of shared memory alike. What was followed with another process's copy is not known.
 */
import { closeSync, constants, openSync, readdirSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { PAGE_BYTES } from "./page-map.ts";
import type { Stretch } from "./process-memory.ts";

/** pages read at once */
const READ_PAGES = 64;
/** how far a page is looked for behind the place where it was expected: pages that were dropped since */
const LOOK_AHEAD_PAGES = 32;
const LOOK_MS = 2;
const PAGE_MAP = /^pagemap-(?:shmem-)?\d+\.img$/;
const OF_PROCESS = /^pagemap-(\d+)\.img$/;
const PAGES = /^pages-(\d+)\.img$/;

/** Pages of the image that are, in this order and without a gap, pages of the copy. */
export interface KnownRun {
  /** first page in the image */
  index: number;
  pages: number;
  /** address of the first page in the copy */
  vaddr: number;
}

/** Follows all page images of one dump. */
export class PageFollower {
  #dir: string;
  #copyOf: (innerPid: number) => readonly Stretch[] | undefined;
  /** page maps in the order in which they were made */
  #maps: string[] = [];
  #followed = new Map<number, ImageFollower>();
  #following = true;
  #piece = Buffer.allocUnsafe(READ_PAGES * PAGE_BYTES);
  #done: Promise<void>;

  /**
   * Starts at once.
   * @param dir where CRIU will write
   * @param copyOf what is known of a process's memory, ordered by address
   */
  constructor(dir: string, copyOf: (innerPid: number) => readonly Stretch[] | undefined) {
    this.#dir = dir;
    this.#copyOf = copyOf;
    this.#done = this.#follow();
    this.#done.catch(() => {}); // told by `stop`
  }

  /** After the dump. Safe at any time. */
  async stop(): Promise<void> {
    this.#following = false;
    await this.#done;
  }

  /** What is known of `pages-{pagesId}.img`, which is that process's: nothing if it was taken for another's. */
  known(pagesId: number, innerPid: number): readonly KnownRun[] {
    const image = this.#followed.get(pagesId);
    return image?.innerPid === innerPid ? image.known : [];
  }

  async #follow(): Promise<void> {
    try {
      while (this.#following) {
        this.#look();
        let more = false;
        for (const image of this.#followed.values()) more = image.read(this.#piece) || more;
        await (more ? nextTurn() : delay(LOOK_MS));
      }
    } finally {
      for (const image of this.#followed.values()) image.close();
    }
  }

  /** A rollback removes the images meanwhile, one after the other. */
  #look(): void {
    try {
      this.#lookAt(readdirSync(this.#dir));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }

  #lookAt(names: string[]): void {
    const maps = names.filter((name) => PAGE_MAP.test(name) && !this.#maps.includes(name));
    if (maps.length > 0) this.#maps.push(...inOrderOfCreation(this.#dir, maps));
    for (const name of names) {
      const pagesId = Number(PAGES.exec(name)?.[1] ?? 0);
      if (pagesId === 0 || this.#followed.has(pagesId)) continue;
      const innerPid = Number(OF_PROCESS.exec(this.#maps[pagesId - 1] ?? "")?.[1] ?? 0);
      const copy = this.#copyOf(innerPid);
      if (copy !== undefined)
        this.#followed.set(pagesId, new ImageFollower(join(this.#dir, name), innerPid, copy));
    }
  }
}

class ImageFollower {
  readonly innerPid: number;
  /** in the order of the image */
  readonly known: KnownRun[] = [];
  #fd: number;
  #copy: readonly Stretch[];
  /** where in the copy the next page is expected */
  #stretch = 0;
  #offset = 0;
  #seen = 0;

  constructor(path: string, innerPid: number, copy: readonly Stretch[]) {
    this.innerPid = innerPid;
    this.#copy = copy;
    this.#fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  }

  /** Looks at what was written since. Returns whether there may be more. */
  read(piece: Buffer): boolean {
    const read = readSync(this.#fd, piece, 0, piece.length, this.#seen * PAGE_BYTES);
    const whole = Math.floor(read / PAGE_BYTES);
    for (let page = 0; page < whole; page++)
      this.#guess(piece.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES));
    return whole === READ_PAGES;
  }

  close(): void {
    closeSync(this.#fd);
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

/** A tmpfs numbers its inodes in that order; a wrong order is a wrong guess. */
function inOrderOfCreation(dir: string, names: string[]): string[] {
  return names
    .map((name) => ({ name, inode: statSync(join(dir, name)).ino }))
    .sort((one, other) => one.inode - other.inode)
    .map(({ name }) => name);
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
