/**
 * Memory that is at the target before anybody is held.
 *
 * This kernel cannot track which pages change (soft-dirty is off), so we compare. In rounds, while the application runs,
 * its private memory is read (/proc/PID/mem, proc(5)); a copy of it is kept here and what is new in a round is sent as a layer of
 * images. When CRIU has dumped, its pages are compared with the copy, and only those that differ travel; the others
 * are marked "in parent" in the page map, and CRIU at the target finds them in the layers below (https://criu.org/Incremental_dumps).
 *
 * A page is taken from a layer only where its bytes are the same, so reading memory that changes meanwhile does no harm.
 */

import { closeSync, constants, openSync, readFileSync, readSync } from "node:fs";
import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { type KnownRun, PageFollower, type Stretch } from "./page-follower.ts";
import { decodePageMap, encodePageMap, PAGE_BYTES, type PageRun } from "./page-map.ts";

export interface TracedProcess {
  /** as this agent sees it */
  pid: number;
  /** as the images name it: in the container's PID namespace */
  innerPid: number;
}

/** One image file of a layer. */
export type SendLayerFile = (layer: number, name: string, offset: number, bytes: Buffer) => Promise<void>;

interface Mapping {
  start: number;
  end: number;
}

const PRESENT = 0x80;
const FILE_OR_SHARED = 0x20;
/** largest piece of memory read and compared at once */
const PIECE_PAGES = 256;
/** a mapping larger than this is a reservation, not memory */
const MAPPING_BYTES_MAX = 64 * 2 ** 30;

export class Precopy {
  #processes: TracedProcess[];
  /** by pid: what the target has, ordered by address */
  #copies = new Map<number, Stretch[]>();
  #followers = new Map<number, PageFollower>();
  #layers = 0;

  constructor(processes: TracedProcess[]) {
    this.#processes = processes;
  }

  /** Layers at the target so far; 0: nothing to build on. */
  get layers(): number {
    return this.#layers;
  }

  /** Reads all memory once and sends what is new as the next layer. Resolves with the bytes of pages sent. */
  async round(send: SendLayerFile): Promise<number> {
    const layer = this.#layers + 1;
    let sentBytes = 0;
    for (const [index, { pid, innerPid }] of this.#processes.entries()) {
      const pagesId = index + 1;
      const before = new Cursor(this.#copies.get(pid) ?? []);
      const after: Stretch[] = [];
      const runs: PageRun[] = [];
      let offset = 0;
      for await (const stretch of readMemory(pid)) {
        after.push(stretch);
        for (const run of compare(stretch, before)) {
          pushRun(runs, run);
          if (run.where === "parent") continue;
          const from = run.vaddr - stretch.vaddr;
          const bytes = stretch.bytes.subarray(from, from + run.pages * PAGE_BYTES);
          await send(layer, `pages-${pagesId}.img`, offset, bytes);
          offset += bytes.length;
        }
      }
      this.#copies.set(pid, after);
      await send(layer, `pagemap-${innerPid}.img`, 0, encodePageMap({ pagesId, runs }));
      if (offset === 0) await send(layer, `pages-${pagesId}.img`, 0, Buffer.alloc(0));
      sentBytes += offset;
    }
    this.#layers = layer;
    return sentBytes;
  }

  /** The dump begins. */
  follow(imagesDir: string): void {
    for (const [index, { pid }] of this.#processes.entries()) {
      const pagesId = index + 1; // as CRIU counts; if not, nothing is known and everything is compared
      const copy = this.#copies.get(pid) ?? [];
      this.#followers.set(pagesId, new PageFollower(join(imagesDir, `pages-${pagesId}.img`), copy));
    }
  }

  /** Safe at any time. */
  async stop(): Promise<void> {
    for (const follower of this.#followers.values()) await follower.stop();
  }

  /**
   * After the dump: what of its memory images has to travel. Images that are not in the result travel as they are.
   * @param imagesDir CRIU's finished images
   */
  async reduce(imagesDir: string): Promise<Map<string, Buffer[]>> {
    await this.stop();
    const reduced = new Map<string, Buffer[]>();
    for (const { pid, innerPid } of this.#processes) {
      const copy = this.#copies.get(pid);
      const image = readIfThere(join(imagesDir, `pagemap-${innerPid}.img`));
      if (copy === undefined || image === null) continue;
      const { pagesId, runs: dumped } = decodePageMap(image);
      const name = `pages-${pagesId}.img`;
      const before = new Cursor(copy);
      const known = new KnownCursor(this.#followers.get(pagesId)?.known ?? []);
      const runs: PageRun[] = [];
      const changed: Buffer[] = [];
      const pages = openSync(join(imagesDir, name), constants.O_RDONLY | constants.O_NOFOLLOW);
      try {
        let index = 0;
        for (const { vaddr: start, pages: count } of dumped) {
          for (let done = 0; done < count; ) {
            const vaddr = start + done * PAGE_BYTES;
            const same = known.pagesAt(index, vaddr);
            const rest = Math.min(count - done, PIECE_PAGES);
            const taken = same > 0 ? Math.min(same, count - done) : Math.min(rest, known.unknownAt(index));
            if (same > 0) pushRun(runs, { vaddr, pages: taken, where: "parent" });
            else {
              const bytes = readPages(pages, name, index, taken);
              for (const run of compare({ vaddr, bytes }, before)) {
                pushRun(runs, run);
                const from = run.vaddr - vaddr;
                if (run.where === "here") changed.push(bytes.subarray(from, from + run.pages * PAGE_BYTES));
              }
            }
            done += taken;
            index += taken;
          }
        }
      } finally {
        closeSync(pages);
      }
      reduced.set(`pagemap-${innerPid}.img`, [encodePageMap({ pagesId, runs })]);
      reduced.set(name, changed);
    }
    return reduced;
  }
}

function readPages(fd: number, name: string, index: number, pages: number): Buffer {
  const bytes = Buffer.allocUnsafe(pages * PAGE_BYTES);
  if (readSync(fd, bytes, 0, bytes.length, index * PAGE_BYTES) !== bytes.length) {
    throw new HoldfastError(`${name} is cut off`, { code: "IMAGE_REFUSED", source: "criu" });
  }
  return bytes;
}

/** Goes through what a follower knows with ever higher pages of the image. */
class KnownCursor {
  #known: KnownRun[];
  #at = 0;

  constructor(known: KnownRun[]) {
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
  #stretches: Stretch[];
  #at = 0;

  constructor(stretches: Stretch[]) {
    this.#stretches = stretches;
  }

  /** The stretch that holds `vaddr`, else the next one above it. */
  seek(vaddr: number): Stretch | null {
    for (; this.#at < this.#stretches.length; this.#at++) {
      const stretch = this.#stretches[this.#at] as Stretch;
      if (stretch.vaddr + stretch.bytes.length > vaddr) return stretch;
    }
    return null;
  }
}

/** Cuts a stretch into runs that the copy has byte for byte ("parent") and runs that it has not ("here"). */
function compare(stretch: Stretch, before: Cursor): PageRun[] {
  const runs: PageRun[] = [];
  const end = stretch.vaddr + stretch.bytes.length;
  for (let vaddr = stretch.vaddr; vaddr < end; ) {
    const old = before.seek(vaddr);
    const oldStart = old === null ? end : Math.min(old.vaddr, end);
    if (vaddr < oldStart) {
      pushRun(runs, { vaddr, pages: (oldStart - vaddr) / PAGE_BYTES, where: "here" });
      vaddr = oldStart;
      continue;
    }
    const known = old as Stretch;
    const common = Math.min(end, known.vaddr + known.bytes.length) - vaddr;
    comparePages(runs, vaddr, stretch.bytes, vaddr - stretch.vaddr, known.bytes, vaddr - known.vaddr, common);
    vaddr += common;
  }
  return runs;
}

/** Halves what differs until it is one page: memory that did not change is compared in few, large steps. */
function comparePages(
  runs: PageRun[],
  vaddr: number,
  one: Buffer,
  oneAt: number,
  other: Buffer,
  otherAt: number,
  bytes: number,
): void {
  const pages = bytes / PAGE_BYTES;
  const same = one.compare(other, otherAt, otherAt + bytes, oneAt, oneAt + bytes) === 0;
  if (same || pages === 1) {
    pushRun(runs, { vaddr, pages, where: same ? "parent" : "here" });
    return;
  }
  const half = (pages >> 1) * PAGE_BYTES;
  comparePages(runs, vaddr, one, oneAt, other, otherAt, half);
  comparePages(runs, vaddr + half, one, oneAt + half, other, otherAt + half, bytes - half);
}

/** Appends, joined with the run before where they belong together. */
function pushRun(runs: PageRun[], run: PageRun): void {
  const last = runs.at(-1);
  if (last !== undefined && last.where === run.where && last.vaddr + last.pages * PAGE_BYTES === run.vaddr)
    last.pages += run.pages;
  else runs.push({ ...run });
}

/** The private, present, anonymous pages of a process, ordered by address. A process that ends in the middle ends the reading. */
async function* readMemory(pid: number): AsyncGenerator<Stretch> {
  const maps = await readFile(`/proc/${pid}/maps`, "utf8").catch(() => "");
  if (maps === "") return;
  const memory = await open(`/proc/${pid}/mem`, "r");
  const pagemap = await open(`/proc/${pid}/pagemap`, "r");
  try {
    for (const mapping of privateMappings(maps)) {
      for (let start = mapping.start; start < mapping.end; start += PIECE_PAGES * PAGE_BYTES) {
        const pages = Math.min(PIECE_PAGES, (mapping.end - start) / PAGE_BYTES);
        const flags = Buffer.alloc(pages * 8);
        const { bytesRead } = await pagemap.read(flags, 0, flags.length, (start / PAGE_BYTES) * 8);
        for (const [first, count] of presentRuns(flags.subarray(0, bytesRead))) {
          const vaddr = start + first * PAGE_BYTES;
          const bytes = Buffer.allocUnsafeSlow(count * PAGE_BYTES);
          const read = await memory.read(bytes, 0, bytes.length, vaddr).catch(() => ({ bytesRead: 0 }));
          const whole = read.bytesRead - (read.bytesRead % PAGE_BYTES);
          if (whole > 0) yield { vaddr, bytes: bytes.subarray(0, whole) };
        }
      }
    }
  } finally {
    await memory.close();
    await pagemap.close();
  }
}

/** Lines of /proc/PID/maps that CRIU would dump pages of. */
export function privateMappings(maps: string): Mapping[] {
  const mappings: Mapping[] = [];
  for (const line of maps.split("\n")) {
    const [, start = "", end = "", permissions = "", name = ""] =
      /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)$/.exec(line) ?? [];
    const isMemory =
      permissions.endsWith("p") && permissions !== "---p" && !/^\[(vvar|vdso|vsyscall|uprobes)/.test(name);
    const mapping = { start: Number.parseInt(start, 16), end: Number.parseInt(end, 16) };
    if (isMemory && mapping.end - mapping.start <= MAPPING_BYTES_MAX) mappings.push(mapping);
  }
  return mappings;
}

/** From entries of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): runs of [first, count]. */
function presentRuns(flags: Buffer): [first: number, count: number][] {
  const runs: [number, number][] = [];
  for (let page = 0; page * 8 < flags.length; page++) {
    const top = flags[page * 8 + 7] as number;
    if ((top & PRESENT) === 0 || (top & FILE_OR_SHARED) !== 0) continue;
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === page) last[1]++;
    else runs.push([page, 1]);
  }
  return runs;
}

function readIfThere(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch {
    return null;
  }
}
