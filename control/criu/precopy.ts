/**
 * Memory that is at the target before anybody is held.
 *
 * This kernel cannot track which pages change (soft-dirty is off), so we compare. In rounds, while the application runs,
 * its private memory is read (/proc/PID/mem, proc(5)); a copy of it is kept here and what is new in a round is sent as a layer of
 * images. When CRIU has dumped, its pages are compared with the copy, and only those that differ travel; the others
 * are marked "in parent" in the page map, and CRIU at the target finds them in the layers below (https://criu.org/Incremental_dumps).
 *
 * A copy is what the last layer has under a process's number, no more: a page is taken from there only where its bytes are
 * the same, so it does no harm that memory changes while it is read, or that processes come, end and leave their
 * numbers to others.
 *
 * A process that was forked shares most of its memory with its parent. What is the same there at the same address is not
 * sent again, and not kept again: the target is told where it has it.
 */

import { closeSync, constants, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { hugeRanges } from "./mm-image.ts";
import { type KnownRun, PageFollower, type Stretch } from "./page-follower.ts";
import { decodePageMap, encodePageMap, PAGE_BYTES, type PageRun } from "./page-map.ts";
import { ownPages } from "./page-scan.ts";

export interface TracedProcess {
  /** as this agent sees it */
  pid: number;
  /** as the images name it: in the container's PID namespace */
  innerPid: number;
  /** innerPid of the process that forked it; null: not of this tree */
  innerParent: number | null;
  /** false: it has ended, and the number may be another's. Not given: it cannot end */
  isAlive?(): Promise<boolean>;
}

/** Where the target has bytes already: from `offset` on in an image of a layer. */
export interface Place {
  name: string;
  offset: number;
}

/** The next bytes of an image: themselves, or where the target has them. */
export type SendPages = (name: string, offset: number, bytes: Buffer, from: Place | null) => Promise<void>;

/** Consecutive pages that the target has one after the other in one image. */
interface PlacedStretch extends Stretch {
  place: Place;
}
type Copy = PlacedStretch[];

/** Consecutive pages that are known as a whole, or not at all. */
interface Match extends Stretch {
  /** null: the target does not have them */
  known: PlacedStretch | null;
}

interface Mapping {
  start: number;
  end: number;
}

/** largest piece of memory read and compared at once */
const PIECE_PAGES = 256;
/** how much is read before other work of this agent has a turn */
const TURN_BYTES = PIECE_PAGES * PAGE_BYTES;
const PAGE_MAP = /^pagemap-(\d+)\.img$/;
/** of a process that has ended */
const GONE = new Set(["ENOENT", "ESRCH"]);

export class Precopy {
  #bytesMax: number;
  /** by innerPid: what the last layer has, ordered by address */
  #copies = new Map<number, Copy>();
  /** by innerPid, of the last round */
  #parents = new Map<number, number | null>();
  #first: number | null = null;
  #follower: PageFollower | null = null;
  #layers = 0;

  /** @param bytesMax how much may be kept here; what is beyond is left to the dump */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Layers at the target so far; 0: nothing to build on. */
  get layers(): number {
    return this.#layers;
  }

  /**
   * Reads all memory once and sends what is new as the next layer. Resolves with the bytes of pages sent.
   * @param processes of the tree as it is now, parents first
   */
  async round(processes: TracedProcess[], send: SendPages): Promise<number> {
    const folder = `layer-${this.#layers + 1}`;
    const copies = new Map<number, Copy>();
    this.#meet(processes);
    let sentBytes = 0;
    let keptBytes = 0;
    const buffers = new Set<ArrayBufferLike>();
    for (const [index, process] of processes.entries()) {
      const { innerPid } = process;
      const pages = `${folder}/pages-${index + 1}.img`;
      const before = new Cursor(this.#copies.get(innerPid) ?? [], "forget");
      const kin = new Cursor(this.#kinOf(innerPid, copies));
      const after: Copy = [];
      const runs: PageRun[] = [];
      let offset = 0;
      for await (const stretch of readMemory(process)) {
        if (keptBytes > this.#bytesMax) break;
        const parts: { vaddr: number; bytes: Buffer; kept: Buffer | null; place: Place }[] = [];
        for (const own of match(stretch, before)) {
          pushRun(runs, own, own.known === null ? "here" : "parent");
          if (own.known !== null) {
            parts.push({ ...own, kept: own.known.bytes, place: own.known.place });
            continue;
          }
          for (const part of match(own, kin)) {
            await send(pages, offset, part.bytes, part.known?.place ?? null);
            parts.push({ ...part, kept: part.known?.bytes ?? null, place: { name: pages, offset } });
            offset += part.bytes.length;
            if (part.known === null) sentBytes += part.bytes.length;
          }
        }
        // what is kept already as a whole is not kept twice
        const isKept = parts.every(({ kept }) => kept !== null);
        for (const { vaddr, bytes, kept, place } of parts) {
          const keep = isKept && kept !== null ? kept : bytes;
          if (!buffers.has(keep.buffer)) keptBytes += keep.buffer.byteLength;
          buffers.add(keep.buffer);
          after.push({ vaddr, bytes: keep, place });
        }
      }
      copies.set(innerPid, after);
      this.#copies.delete(innerPid);
      const pagesId = index + 1;
      await send(`${folder}/pagemap-${innerPid}.img`, 0, encodePageMap({ pagesId, runs }), null);
      if (offset === 0) await send(pages, 0, Buffer.alloc(0), null);
    }
    this.#copies = copies;
    this.#layers += 1;
    return sentBytes;
  }

  /** The dump begins. */
  follow(imagesDir: string): void {
    this.#follower = new PageFollower(imagesDir, (innerPid) => this.#copies.get(innerPid));
  }

  /** Safe at any time. */
  async stop(): Promise<void> {
    await this.#follower?.stop();
  }

  /**
   * After the dump: sends what of its memory images has to travel. Resolves with the names of the images that are done; others
   * travel as they are.
   * @param imagesDir CRIU's finished images
   * @param processes of the tree that was dumped, parents first
   */
  async reduce(imagesDir: string, processes: TracedProcess[], send: SendPages): Promise<Set<string>> {
    await this.stop();
    this.#meet(processes);
    const done = new Set<string>();
    for (const map of readdirSync(imagesDir)) {
      const innerPid = Number(PAGE_MAP.exec(map)?.[1] ?? 0);
      if (innerPid === 0) continue;
      const kin = this.#kinOf(innerPid, this.#copies);
      const copy = this.#copies.get(innerPid) ?? [];
      if (copy.length === 0 && kin.length === 0) continue;
      const { pagesId, runs: dumped } = decodePageMap(readFileSync(join(imagesDir, map)));
      const name = `pages-${pagesId}.img`;
      const known = this.#follower?.known(pagesId, innerPid) ?? [];
      const huge = hugeRanges(readFileSync(join(imagesDir, `mm-${innerPid}.img`)));
      const runs = await reduceImage({ imagesDir, name, dumped, known, copy, kin, huge }, send);
      await send(map, 0, encodePageMap({ pagesId, runs }), null);
      done.add(map).add(name);
    }
    return done;
  }

  #meet(processes: TracedProcess[]): void {
    this.#parents = new Map(processes.map(({ innerPid, innerParent }) => [innerPid, innerParent]));
    this.#first = processes[0]?.innerPid ?? null;
  }

  /** The copy of the nearest process it was forked from; of one that has lost its parent, that of the first process. */
  #kinOf(innerPid: number, copies: Map<number, Copy>): Copy {
    const parent = this.#parents.get(innerPid) ?? this.#first;
    return parent === null || parent === innerPid ? [] : (copies.get(parent) ?? []);
  }
}

/** One `pages-N.img` of the dump. Returns the page map of what was sent. */
async function reduceImage(
  image: {
    imagesDir: string;
    name: string;
    dumped: PageRun[];
    known: readonly KnownRun[];
    copy: Copy;
    kin: Copy;
    /** what has to be in the dump itself */
    huge: { start: number; end: number }[];
  },
  send: SendPages,
): Promise<PageRun[]> {
  const before = new Cursor(image.copy);
  const kin = new Cursor(image.kin);
  const known = new KnownCursor(image.known);
  const runs: PageRun[] = [];
  let offset = 0;
  const pages = openSync(join(image.imagesDir, image.name), constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    let index = 0;
    for (const { vaddr: start, pages: count } of image.dumped) {
      for (let done = 0; done < count; ) {
        const vaddr = start + done * PAGE_BYTES;
        const { isHuge, pages: alike } = hugeFrom(image.huge, vaddr, count - done);
        const same = isHuge ? 0 : known.pagesAt(index, vaddr);
        const unknown = isHuge ? alike : known.unknownAt(index);
        const taken = Math.min(alike, same > 0 ? same : Math.min(PIECE_PAGES, unknown));
        if (same > 0) pushPages(runs, { vaddr, pages: taken, where: "parent" });
        else {
          const stretch = { vaddr, bytes: readPages(pages, image.name, index, taken) };
          for (const own of isHuge ? [{ ...stretch, known: null }] : match(stretch, before)) {
            pushRun(runs, own, own.known === null ? "here" : "parent");
            if (own.known !== null) continue;
            for (const part of match(own, kin)) {
              await send(image.name, offset, part.bytes, part.known?.place ?? null);
              offset += part.bytes.length;
            }
          }
        }
        done += taken;
        index += taken;
      }
    }
  } finally {
    closeSync(pages);
  }
  if (offset === 0) await send(image.name, 0, Buffer.alloc(0), null);
  return runs;
}

/** Whether the page is in one of the ranges, and how many of the next `pagesMax` are like it. */
function hugeFrom(
  ranges: { start: number; end: number }[],
  vaddr: number,
  pagesMax: number,
): { isHuge: boolean; pages: number } {
  const next = ranges.find(({ end }) => vaddr < end);
  const isHuge = next !== undefined && next.start <= vaddr;
  const until = next === undefined ? Number.POSITIVE_INFINITY : isHuge ? next.end : next.start;
  return { isHuge, pages: Math.min(pagesMax, (until - vaddr) / PAGE_BYTES) };
}

function readPages(fd: number, name: string, index: number, pages: number): Buffer {
  const bytes = Buffer.allocUnsafe(pages * PAGE_BYTES);
  if (readSync(fd, bytes, 0, bytes.length, index * PAGE_BYTES) !== bytes.length) {
    throw fail("IMAGE_REFUSED", `${name} is cut off`, { source: "criu" });
  }
  return bytes;
}

/** Goes through what a follower knows with ever higher pages of the image. */
class KnownCursor {
  #known: readonly KnownRun[];
  #at = 0;

  constructor(known: readonly KnownRun[]) {
    this.#known = known;
  }

  /** How many pages from `index` on are known to be those of the copy from `vaddr` on. */
  pagesAt(index: number, vaddr: number): number {
    const run = this.#seek(index);
    if (run === undefined || run.index > index) return 0;
    const into = index - run.index;
    return run.vaddr + into * PAGE_BYTES === vaddr ? run.pages - into : 0;
  }

  /** How many pages from `index` on have to be looked at; at least one. */
  unknownAt(index: number): number {
    const run = this.#seek(index);
    if (run === undefined) return Number.POSITIVE_INFINITY;
    // a run that covers `index` was guessed wrong: its pages are looked at, too
    return run.index > index ? run.index - index : run.index + run.pages - index;
  }

  #seek(index: number): KnownRun | undefined {
    for (let run = this.#known[this.#at]; run !== undefined; run = this.#known[++this.#at]) {
      if (run.index + run.pages > index) return run;
    }
    return undefined;
  }
}

/** Goes through ordered stretches with ever higher addresses. */
class Cursor {
  #stretches: (PlacedStretch | undefined)[];
  #at = 0;
  #forgets: boolean;

  /** @param forget what was passed is not needed any more: its memory is freed */
  constructor(stretches: Copy, forget?: "forget") {
    this.#stretches = stretches;
    this.#forgets = forget !== undefined;
  }

  /** The stretch that holds `vaddr`, else the next one above it. */
  seek(vaddr: number): PlacedStretch | null {
    for (; this.#at < this.#stretches.length; this.#at++) {
      const stretch = this.#stretches[this.#at];
      if (stretch !== undefined && stretch.vaddr + stretch.bytes.length > vaddr) return stretch;
      if (this.#forgets) this.#stretches[this.#at] = undefined;
    }
    return null;
  }
}

/** Cuts a stretch into what the copy has byte for byte, one of its stretches at a time, and what it has not. */
function* match(stretch: Stretch, copy: Cursor): Generator<Match> {
  const end = stretch.vaddr + stretch.bytes.length;
  const part = (from: number, to: number): Stretch => ({
    vaddr: from,
    bytes: stretch.bytes.subarray(from - stretch.vaddr, to - stretch.vaddr),
  });
  /** where pages begin that are in no stretch of the copy, or differ; not given out yet */
  let unknownFrom = stretch.vaddr;
  for (let vaddr = stretch.vaddr; vaddr < end; ) {
    const old = copy.seek(vaddr);
    if (old === null || old.vaddr >= end) break;
    vaddr = Math.max(vaddr, old.vaddr);
    const to = Math.min(end, old.vaddr + old.bytes.length);
    for (const { from, bytes } of sameRuns(part(vaddr, to), old)) {
      if (from > unknownFrom) yield { ...part(unknownFrom, from), known: null };
      const into = from - old.vaddr;
      yield {
        ...part(from, from + bytes),
        known: {
          vaddr: from,
          bytes: old.bytes.subarray(into, into + bytes),
          place: { name: old.place.name, offset: old.place.offset + into },
        },
      };
      unknownFrom = from + bytes;
    }
    vaddr = to;
  }
  if (unknownFrom < end) yield { ...part(unknownFrom, end), known: null };
}

/** Where the stretch is the same as the one of the copy that covers it. */
function sameRuns(stretch: Stretch, old: Stretch): { from: number; bytes: number }[] {
  const runs: { from: number; bytes: number }[] = [];
  /** halves what differs until it is one page: memory that did not change is compared in few, large steps */
  const look = (at: number, bytes: number): void => {
    const oldAt = stretch.vaddr - old.vaddr + at;
    if (stretch.bytes.compare(old.bytes, oldAt, oldAt + bytes, at, at + bytes) === 0) {
      const last = runs.at(-1);
      const from = stretch.vaddr + at;
      if (last !== undefined && last.from + last.bytes === from) last.bytes += bytes;
      else runs.push({ from, bytes });
    } else if (bytes > PAGE_BYTES) {
      const half = ((bytes / PAGE_BYTES) >> 1) * PAGE_BYTES;
      look(at, half);
      look(at + half, bytes - half);
    }
  };
  look(0, stretch.bytes.length);
  return runs;
}

function pushRun(runs: PageRun[], { vaddr, bytes }: Stretch, where: PageRun["where"]): void {
  pushPages(runs, { vaddr, pages: bytes.length / PAGE_BYTES, where });
}

/** Appends, joined with the run before where they belong together. */
function pushPages(runs: PageRun[], run: PageRun): void {
  const last = runs.at(-1);
  if (last !== undefined && last.where === run.where && last.vaddr + last.pages * PAGE_BYTES === run.vaddr)
    last.pages += run.pages;
  else runs.push({ ...run });
}

/** A process's own pages of its private mappings, ordered by address. A process that ends in the middle ends the reading. */
async function* readMemory(process: TracedProcess): AsyncGenerator<Stretch> {
  const { pid } = process;
  const files: number[] = [];
  let bytesThisTurn = 0;
  try {
    const maps = await readFile(`/proc/${pid}/maps`, "utf8");
    const memory = openSync(`/proc/${pid}/mem`, "r");
    files.push(memory);
    const pagemap = openSync(`/proc/${pid}/pagemap`, "r");
    files.push(pagemap);
    // what was opened stays that process's: its number does not
    if ((await process.isAlive?.()) === false) return;
    for (const mapping of privateMappings(maps)) {
      for (const { vaddr: start, pages } of ownPages(pagemap, mapping.start, mapping.end)) {
        for (let done = 0; done < pages; done += PIECE_PAGES) {
          const vaddr = start + done * PAGE_BYTES;
          const bytes = Buffer.allocUnsafeSlow(Math.min(PIECE_PAGES, pages - done) * PAGE_BYTES);
          const read = readIfThere(memory, bytes, vaddr);
          const whole = read - (read % PAGE_BYTES);
          if (whole > 0) yield { vaddr, bytes: bytes.subarray(0, whole) };
          // it never waits for a disk, and by way of a thread it takes longer; but others have a turn, too
          bytesThisTurn += bytes.length;
          if (bytesThisTurn < TURN_BYTES) continue;
          bytesThisTurn = 0;
          await nextTurn();
        }
      }
    }
  } catch (error) {
    if (!GONE.has((error as NodeJS.ErrnoException).code ?? "")) throw error;
  } finally {
    for (const file of files) closeSync(file);
  }
}

/** Bytes read; 0 where the mapping has gone meanwhile. */
function readIfThere(memory: number, bytes: Buffer, vaddr: number): number {
  try {
    return readSync(memory, bytes, 0, bytes.length, vaddr);
  } catch {
    return 0;
  }
}

/** Lines of /proc/PID/maps that CRIU would dump pages of. */
export function privateMappings(maps: string): Mapping[] {
  const mappings: Mapping[] = [];
  for (const line of maps.split("\n")) {
    const [, start = "", end = "", permissions = "", name = ""] =
      /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)$/.exec(line) ?? [];
    const isMemory = permissions.endsWith("p") && !/^\[(vvar|vdso|vsyscall|uprobes)/.test(name);
    if (isMemory) mappings.push({ start: Number.parseInt(start, 16), end: Number.parseInt(end, 16) });
  }
  return mappings;
}
