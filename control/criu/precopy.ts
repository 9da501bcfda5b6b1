/**
 * Memory that is at the target before anybody is held.
 *
 * This kernel cannot track which pages change (soft-dirty is off), so we compare. In rounds, while the application runs,
 * its private memory is read (/proc/PID/mem, proc(5)); a copy of it is kept here and what is new in a round is sent as a layer of
 * images. When CRIU has dumped, its pages are compared with the copy, in its images or where it left them (`stand-in.ts`), and only
 * those that differ travel; the others are marked "in parent" in the page map, and CRIU at the target finds them in the layers
 * below (https://criu.org/Incremental_dumps).
 *
 * A copy is what the last layer has under a process's number, no more: a page is taken from there only where its bytes are
 * the same, so it does no harm that memory changes while it is read, or that processes come, end and leave their
 * numbers to others.
 *
 * A process that was forked shares most of its memory with its parent. What is the same there at the same address is not
 * sent again, and not kept again: the target is told where it has it.
 */

import { closeSync, constants, openSync, readdirSync, readSync } from "node:fs";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { readImage } from "./image-files.ts";
import { alwaysDumped } from "./mm-image.ts";
import { type KnownRun, PageFollower } from "./page-follower.ts";
import { decodePageMap, encodePageMap, PAGE_BYTES, type PageRun } from "./page-map.ts";
import { both, either, pushRange } from "./page-ranges.ts";
import { areFoundFast, type PageRange } from "./page-scan.ts";
import {
  FrozenMemory,
  LENT_BYTES,
  PIECE_PAGES,
  readMemory,
  type Stretch,
  type TracedProcess,
} from "./process-memory.ts";
import { mayMissWrites } from "./unseen-writes.ts";
import { anonymousBytesOf, WriteTracking } from "./write-tracking.ts";

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

/** … in a round. */
interface Part extends Match {
  /** where the target has it for this process already; absent: it is sent, or said to be another's */
  place?: Place;
}

const PAGE_MAP = /^pagemap-(\d+)\.img$/;

export class Precopy {
  #bytesMax: number;
  /** by innerPid: what the last layer has, ordered by address */
  #copies = new Map<number, Copy>();
  /** by innerPid, of the last round */
  #parents = new Map<number, number | null>();
  #first: number | null = null;
  #follower: PageFollower | null = null;
  #look: FrozenLook | null = null;
  #layers = 0;
  #isGivenUp = false;
  readonly #lent = Buffer.allocUnsafeSlow(LENT_BYTES);

  /** by innerPid; of those that are large enough for it */
  #tracked = new Map<number, WriteTracking>();
  #untracked = new Set<number>();
  #trackedAtLast = 0;
  /** by innerPid: what they have not written since it was copied, when they were frozen */
  #unwritten = new Map<number, PageRange[]>();
  readonly #trackedBytesMin: number;

  /**
   * @param bytesMax how much may be kept here; what is beyond is left to the dump
   * @param trackedBytesMin a process with more memory is asked which pages were written, in place of comparing all
   */
  constructor(bytesMax: number, trackedBytesMin = Number.POSITIVE_INFINITY) {
    this.#bytesMax = bytesMax;
    this.#trackedBytesMin = trackedBytesMin;
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
    const unwritten = await this.#track(processes);
    let sentBytes = 0;
    let keptBytes = 0;
    const buffers = new Set<ArrayBufferLike>();
    for (const [index, process] of processes.entries()) {
      const { innerPid } = process;
      const pages = `${folder}/pages-${index + 1}.img`;
      const last = this.#copies.get(innerPid) ?? [];
      const before = new Cursor(last, "forget");
      const known = both(unwritten.get(innerPid) ?? [], rangesOf(last));
      const after: Copy = [];
      const runs: PageRun[] = [];
      let offset = 0;
      const keep = ({ vaddr, bytes, place }: PlacedStretch): void => {
        if (!buffers.has(bytes.buffer)) keptBytes += bytes.buffer.byteLength;
        buffers.add(bytes.buffer);
        after.push({ vaddr, bytes, place });
      };
      const kinCopy = this.#kinOf(innerPid, copies);
      const kin = new Cursor(kinCopy);
      // most of what can be compared has not changed, and needs no memory of its own
      const lent = last.length + kinCopy.length > 0 ? this.#lent : undefined;
      for await (const stretch of readMemory(process, known, lent)) {
        if (keptBytes > this.#bytesMax) break;
        if (!("bytes" in stretch)) {
          pushPages(runs, { ...stretch, where: "parent" });
          for (const part of before.within(stretch)) keep(part);
          continue;
        }
        const parts: Part[] = [];
        for (const own of match(stretch, before)) {
          pushRun(runs, own, own.known === null ? "here" : "parent");
          if (own.known === null) parts.push(...match(own, kin));
          else parts.push({ ...own, place: own.known.place });
        }
        for (const { vaddr, bytes, known, place } of lent === undefined ? parts : kept(parts)) {
          if (place !== undefined) {
            keep({ vaddr, bytes, place });
            continue;
          }
          await send(pages, offset, bytes, known?.place ?? null);
          keep({ vaddr, bytes, place: { name: pages, offset } });
          offset += bytes.length;
          if (known === null) sentBytes += bytes.length;
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

  /**
   * As soon as the processes are frozen: takes what they have not written since the last round. CRIU is to meet them as they are
   * without us, when this has resolved.
   */
  async endTracking(): Promise<void> {
    for (const [innerPid, tracking] of this.#tracked) {
      this.#unwritten.set(innerPid, both(tracking.unwritten(), rangesOf(this.#copies.get(innerPid) ?? [])));
      this.#trackedAtLast++;
    }
    await this.#trackNoMore();
  }

  /** Processes that were tracked until they were frozen. */
  get trackedProcesses(): number {
    return this.#trackedAtLast;
  }

  /** Of processes that are frozen, and that CRIU is about to leave pages in (`stand-in.ts`): most are compared while it works. */
  async lookAt(processes: TracedProcess[]): Promise<void> {
    if (!areFoundFast()) return; // page by page, a large reservation takes longer than what CRIU does meanwhile
    await this.endTracking();
    this.#look = new FrozenLook(processes, this.#copies, this.#unwritten);
  }

  /** The move has failed: {@link reduce}, too, reads nothing more. Safe at any time. */
  async giveUp(): Promise<void> {
    this.#isGivenUp = true;
    await this.stop();
  }

  /** Nothing is read ahead any more. Safe at any time. */
  async stop(): Promise<void> {
    await this.#trackNoMore();
    await this.#look?.stop();
    await this.#follower?.stop();
  }

  /**
   * After the dump: sends what of its memory images has to travel. Resolves with the names of the images that are done; others
   * travel as they are.
   * @param imagesDir CRIU's finished images
   * @param processes of the tree that was dumped, parents first; still frozen where CRIU left pages in it (`stand-in.ts`)
   */
  async reduce(imagesDir: string, processes: TracedProcess[], send: SendPages): Promise<Set<string>> {
    await this.stop();
    this.#meet(processes);
    const done = new Set<string>();
    const frozen = new Map(processes.map((process) => [process.innerPid, process]));
    for (const map of readdirSync(imagesDir)) {
      const innerPid = Number(PAGE_MAP.exec(map)?.[1] ?? 0);
      if (innerPid === 0) continue;
      const kin = this.#kinOf(innerPid, this.#copies);
      const copy = this.#copies.get(innerPid) ?? [];
      const { pagesId, runs: dumped } = decodePageMap(readImage(join(imagesDir, map)));
      const isLeft = dumped.some(({ where }) => where === "parent");
      if (copy.length === 0 && kin.length === 0 && !isLeft) continue;
      const name = `pages-${pagesId}.img`;
      const known = this.#follower?.known(pagesId, innerPid) ?? [];
      const whole = alwaysDumped(readImage(join(imagesDir, `mm-${innerPid}.img`)));
      const memory = isLeft ? await FrozenMemory.open(innerPid, frozen.get(innerPid)) : null;
      const same = this.#look?.same(innerPid) ?? [];
      const throwIfGivenUp = (): void => {
        if (this.#isGivenUp) throw fail("IMAGE_REFUSED", "the move was given up");
      };
      const image = { imagesDir, name, dumped, known, copy, kin, whole, memory, same, throwIfGivenUp };
      const runs = await reduceImage(image, send).finally(() => memory?.close());
      await send(map, 0, encodePageMap({ pagesId, runs }), null);
      done.add(map).add(name);
    }
    return done;
  }

  /** From now on it is known of large processes what they write. Resolves with pages that were not written since the round before. */
  async #track(processes: TracedProcess[]): Promise<Map<number, PageRange[]>> {
    const unwritten = new Map<number, PageRange[]>();
    if (this.#trackedBytesMin === Number.POSITIVE_INFINITY) return unwritten;
    for (const [innerPid, { pid }] of this.#tracked)
      if (!processes.some((process) => process.innerPid === innerPid && process.pid === pid))
        await this.#trackNoMore(innerPid);
    for (const process of processes) {
      const { innerPid } = process;
      if (!this.#tracked.has(innerPid)) await this.#beginTracking(process);
      const tracking = this.#tracked.get(innerPid);
      if (tracking !== undefined) unwritten.set(innerPid, tracking.begin());
    }
    // after the last of them, and before anything is read
    for (const { pid, innerPid } of processes) {
      if (!this.#tracked.has(innerPid) || !mayMissWrites(pid)) continue;
      await this.#trackNoMore(innerPid);
      unwritten.delete(innerPid);
    }
    return unwritten;
  }

  async #beginTracking(process: TracedProcess): Promise<void> {
    const { pid, innerPid } = process;
    if (this.#isGivenUp || this.#untracked.has(pid) || (await anonymousBytesOf(pid)) < this.#trackedBytesMin)
      return;
    this.#untracked.add(pid); // until it is
    const tracking = await WriteTracking.of(pid);
    if (tracking === null) return;
    // the number may be another's
    if ((await process.isAlive?.()) === false) return tracking.close();
    this.#tracked.set(innerPid, tracking);
    if (this.#isGivenUp) await this.#trackNoMore();
  }

  /** @param which not given: all */
  async #trackNoMore(which?: number): Promise<void> {
    const trackings = which === undefined ? [...this.#tracked] : [[which, this.#tracked.get(which)] as const];
    for (const [innerPid] of trackings) this.#tracked.delete(innerPid);
    await Promise.all(trackings.map(([, tracking]) => tracking?.close()));
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
    whole: { start: number; end: number }[];
    /** what CRIU left where it is; null: nothing */
    memory: FrozenMemory | null;
    /** what of that is as in the copy, in order */
    same: readonly PageRange[];
    throwIfGivenUp: () => void;
  },
  send: SendPages,
): Promise<PageRun[]> {
  const before = new Cursor(image.copy);
  const kin = new Cursor(image.kin);
  const known = new KnownCursor(image.known);
  const runs: PageRun[] = [];
  let offset = 0;
  const take = async (stretch: Stretch, { isWhole = false, isLent = false }): Promise<void> => {
    image.throwIfGivenUp();
    for (const own of isWhole ? [{ ...stretch, known: null }] : match(stretch, before)) {
      pushRun(runs, own, own.known === null ? "here" : "parent");
      if (own.known !== null) continue;
      for (const part of match(own, kin)) {
        const bytes = isLent ? Buffer.from(part.bytes) : part.bytes;
        await send(image.name, offset, bytes, part.known?.place ?? null);
        offset += bytes.length;
      }
    }
  };
  const pages = openSync(join(image.imagesDir, image.name), constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    let index = 0;
    for (const { vaddr: start, pages: count, where } of image.dumped) {
      if (where === "parent") {
        if (image.memory === null) throw fail("IMAGE_REFUSED", `${image.name} builds on nothing`);
        const { isWhole, pages: alike } = wholeFrom(image.whole, start, count);
        if (isWhole || alike < count)
          throw fail("IMAGE_REFUSED", `${image.name} lacks pages that are looked for nowhere else`);
        for (const { vaddr, pages, isSame } of splitBySame(image.same, start, count)) {
          if (isSame) pushPages(runs, { vaddr, pages, where: "parent" });
          else
            for await (const stretch of image.memory.read(vaddr, pages))
              await take(stretch, { isLent: true });
        }
        continue;
      }
      for (let done = 0; done < count; ) {
        const vaddr = start + done * PAGE_BYTES;
        const { isWhole, pages: alike } = wholeFrom(image.whole, vaddr, count - done);
        const same = isWhole ? 0 : known.pagesAt(index, vaddr);
        const unknown = isWhole ? alike : known.unknownAt(index);
        const taken = Math.min(alike, same > 0 ? same : Math.min(PIECE_PAGES, unknown));
        if (same > 0) pushPages(runs, { vaddr, pages: taken, where: "parent" });
        else {
          const stretch = { vaddr, bytes: readPages(pages, image.name, index, taken) };
          await take(stretch, { isWhole });
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
function wholeFrom(
  ranges: { start: number; end: number }[],
  vaddr: number,
  pagesMax: number,
): { isWhole: boolean; pages: number } {
  const next = ranges.find(({ end }) => vaddr < end);
  const isWhole = next !== undefined && next.start <= vaddr;
  const until = next === undefined ? Number.POSITIVE_INFINITY : isWhole ? next.end : next.start;
  return { isWhole, pages: Math.min(pagesMax, (until - vaddr) / PAGE_BYTES) };
}

function readPages(fd: number, name: string, index: number, pages: number): Buffer {
  const bytes = Buffer.allocUnsafe(pages * PAGE_BYTES);
  if (readSync(fd, bytes, 0, bytes.length, index * PAGE_BYTES) !== bytes.length) {
    throw fail("IMAGE_REFUSED", `${name} is cut off`, { source: "criu" });
  }
  return bytes;
}

/**
 * Compares frozen processes with what the target has. What it finds the same stays so: nobody but CRIU writes there, and CRIU puts
 * back what it changes.
 */
class FrozenLook {
  #same = new Map<number, PageRange[]>();
  readonly #known: ReadonlyMap<number, readonly PageRange[]>;
  #stopped = false;
  #done: Promise<void>;

  /** Starts at once. @param known what need not be read for that, by innerPid */
  constructor(
    processes: TracedProcess[],
    copies: ReadonlyMap<number, Copy>,
    known: ReadonlyMap<number, readonly PageRange[]>,
  ) {
    this.#known = known;
    // what could not be looked at is read later, and has its error then
    this.#done = this.#look(processes, copies).catch(() => {});
  }

  /** Safe at any time. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }

  /** In order; what was not looked at yet is not among it. */
  same(innerPid: number): readonly PageRange[] {
    return either(this.#same.get(innerPid) ?? [], this.#known.get(innerPid) ?? []);
  }

  async #look(processes: TracedProcess[], copies: ReadonlyMap<number, Copy>): Promise<void> {
    const lent = Buffer.allocUnsafeSlow(LENT_BYTES);
    for (const process of processes) {
      const copy = new Cursor(copies.get(process.innerPid) ?? []);
      const same: PageRange[] = [];
      this.#same.set(process.innerPid, same);
      for await (const stretch of readMemory(process, this.#known.get(process.innerPid), lent)) {
        if (this.#stopped) return;
        if (!("bytes" in stretch)) continue;
        for (const { vaddr, bytes, known } of match(stretch, copy))
          if (known !== null) pushRange(same, vaddr, bytes.length / PAGE_BYTES);
      }
    }
  }
}

/** Cuts pages into what is in the ranges, and what is not; both in order. */
function* splitBySame(
  same: readonly PageRange[],
  start: number,
  pages: number,
): Generator<PageRange & { isSame: boolean }> {
  const end = start + pages * PAGE_BYTES;
  let at = start;
  for (let index = firstEndingAfter(same, start); index < same.length && at < end; index++) {
    const range = same[index] as PageRange;
    const from = Math.max(at, range.vaddr);
    const to = Math.min(end, range.vaddr + range.pages * PAGE_BYTES);
    if (from >= end) break;
    if (from > at) yield { vaddr: at, pages: (from - at) / PAGE_BYTES, isSame: false };
    yield { vaddr: from, pages: (to - from) / PAGE_BYTES, isSame: true };
    at = to;
  }
  if (at < end) yield { vaddr: at, pages: (end - at) / PAGE_BYTES, isSame: false };
}

/** Index of the first range that ends above the address: by halves, as there may be many. */
function firstEndingAfter(ranges: readonly PageRange[], vaddr: number): number {
  let [low, high] = [0, ranges.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    const { vaddr: start, pages } = ranges[middle] as PageRange;
    if (start + pages * PAGE_BYTES > vaddr) high = middle;
    else low = middle + 1;
  }
  return low;
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

  /** What they have of some pages, all of which are in one or another. */
  *within({ vaddr: start, pages }: PageRange): Generator<PlacedStretch> {
    const end = start + pages * PAGE_BYTES;
    for (let vaddr = start; vaddr < end; ) {
      const stretch = this.seek(vaddr);
      if (stretch === null || stretch.vaddr > vaddr) throw new Error("no copy of a page that is known");
      const from = vaddr - stretch.vaddr;
      const to = Math.min(end - stretch.vaddr, stretch.bytes.length);
      const { name, offset } = stretch.place;
      yield { vaddr, bytes: stretch.bytes.subarray(from, to), place: { name, offset: offset + from } };
      vaddr = stretch.vaddr + to;
    }
  }
}

/** Where a copy has anything. */
function rangesOf(copy: Copy): PageRange[] {
  const ranges: PageRange[] = [];
  for (const { vaddr, bytes } of copy) pushRange(ranges, vaddr, bytes.length / PAGE_BYTES);
  return ranges;
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

/**
 * Parts of a stretch whose bytes are lent, with bytes that stay: those that are in a copy have that copy's; the others are
 * copied together. Where a quarter is new all of it is copied: few pages shall not keep the whole of an older copy.
 */
function kept(parts: Part[]): Part[] {
  const size = (all: Part[]): number => all.reduce((sum, { bytes }) => sum + bytes.length, 0);
  const fresh = parts.filter(({ known }) => known === null);
  const areCopied = size(fresh) * 4 >= size(parts);
  const own = fresh.length === 0 ? null : Buffer.allocUnsafeSlow(size(areCopied ? parts : fresh));
  let at = 0;
  return parts.map((part) => {
    if (own === null || (part.known !== null && !areCopied))
      return { ...part, bytes: part.known?.bytes ?? part.bytes };
    const from = at;
    at += part.bytes.copy(own, at);
    return { ...part, bytes: own.subarray(from, at) };
  });
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
