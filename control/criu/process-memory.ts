/**
 * Reads the private memory of other processes (/proc/PID/mem, proc(5)): of those that run what is there, of those that stand still
 * all that was asked for.
 */
import { closeSync, openSync, read, readSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { setImmediate as nextTurn } from "node:timers/promises";
import { promisify } from "node:util";
import { fail } from "#proxy/contract/error-codes.ts";
import { PAGE_BYTES } from "./page-map.ts";
import { RangeCursor } from "./page-ranges.ts";
import { ownPages, type PageRange } from "./page-scan.ts";

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

/** Consecutive pages and their bytes. */
export interface Stretch {
  vaddr: number;
  bytes: Buffer;
}

interface Mapping {
  start: number;
  end: number;
}

/** largest piece of memory read and compared at once */
export const PIECE_PAGES = 256;
/** … where it is not kept: still in the processor's cache when it is compared */
export const LENT_BYTES = 64 * PAGE_BYTES;
/** how much is read before other work of this agent has a turn */
const TURN_BYTES = PIECE_PAGES * PAGE_BYTES;

/**
 * A process's own pages of its private mappings, ordered by address. A process that ends in the middle ends the reading.
 * @param known pages that need not be read: they are passed on without bytes where the process still has them
 * @param lent every stretch is read into this, and is there until the next is asked for; else each has memory of its own, which
 *   takes as long to get as to fill
 */
export async function* readMemory(
  process: TracedProcess,
  known: readonly PageRange[] = [],
  lent?: Buffer,
): AsyncGenerator<Stretch | PageRange> {
  const piecePages = lent === undefined ? PIECE_PAGES : lent.length / PAGE_BYTES;
  const knownPages = new RangeCursor(known);
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
      for (const { vaddr: start, pages, isSwapped } of ownPages(pagemap, mapping.start, mapping.end)) {
        for (let done = 0, taken = 0; done < pages; done += taken) {
          const vaddr = start + done * PAGE_BYTES;
          const next = knownPages.at(vaddr, pages - done);
          taken = next.isInside ? next.pages : Math.min(piecePages, next.pages);
          if (next.isInside) {
            yield { vaddr, pages: taken };
            continue;
          }
          const length = taken * PAGE_BYTES;
          const bytes = lent?.subarray(0, length) ?? Buffer.allocUnsafeSlow(length);
          const there = await readIfThere(memory, bytes, vaddr, isSwapped);
          const whole = there - (there % PAGE_BYTES);
          if (whole > 0) yield { vaddr, bytes: bytes.subarray(0, whole) };
          bytesThisTurn += bytes.length;
          if (bytesThisTurn < TURN_BYTES) continue;
          bytesThisTurn = 0;
          await nextTurn();
        }
      }
    }
  } catch (error) {
    if (!isGone(error)) throw error;
  } finally {
    for (const file of files) closeSync(file);
  }
}

/** Of a file of /proc: its process has ended. */
export function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === "ESRCH" || code === "ENOENT";
}

const readByThread = promisify(read);

/**
 * Bytes read. What is in memory is read at once, as that takes longer by way of a thread; what is swapped out is waited for in
 * one, and others have a turn meanwhile.
 */
export async function readPages(
  memory: number,
  bytes: Buffer,
  vaddr: number,
  isSwapped: boolean,
): Promise<number> {
  if (!isSwapped) return readSync(memory, bytes, 0, bytes.length, vaddr);
  return (await readByThread(memory, bytes, 0, bytes.length, vaddr)).bytesRead;
}

/** 0 where the mapping has gone meanwhile. */
function readIfThere(...read: Parameters<typeof readPages>): Promise<number> {
  return readPages(...read).catch(() => 0);
}

/** Lines of /proc/PID/maps that CRIU would dump pages of; no address is in two of them. */
export function privateMappings(maps: string): Mapping[] {
  return [...privateLines(maps)].map(({ mapping }) => mapping);
}

/** Those of them that are of no file. */
export function anonymousMappings(maps: string): Mapping[] {
  return [...privateLines(maps)].filter(({ inode }) => inode === "0").map(({ mapping }) => mapping);
}

function* privateLines(maps: string): Generator<{ mapping: Mapping; inode: string }> {
  // the kernel hands out a page of lines at a time, and goes on with the mapping that is where it ended: one that was joined meanwhile with
  // what it has shown comes again, from its old start (`m_start`, fs/proc/task_mmu.c)
  let shown = 0;
  for (const line of maps.split("\n")) {
    const [, from = "", to = "", permissions = "", inode = "", name = ""] =
      /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)$/.exec(line) ?? [];
    if (permissions === "") continue;
    const [start, end] = [Math.max(Number.parseInt(from, 16), shown), Number.parseInt(to, 16)];
    if (start >= end) continue;
    shown = end;
    if (!permissions.endsWith("p") || /^\[(vvar|vdso|vsyscall|uprobes)/.test(name)) continue;
    yield { mapping: { start, end }, inode };
  }
}

/** Of a process that stands still, and that CRIU has dumped without what it left there. */
export class FrozenMemory {
  #innerPid: number;
  #fd: number;
  #isSwapped: boolean;
  #lent = Buffer.allocUnsafeSlow(LENT_BYTES);
  #bytesThisTurn = 0;

  private constructor(innerPid: number, fd: number, isSwapped: boolean) {
    this.#innerPid = innerPid;
    this.#fd = fd;
    this.#isSwapped = isSwapped;
  }

  /** @throws HoldfastError `IMAGE_REFUSED`: it has ended */
  static async open(innerPid: number, process: TracedProcess | undefined): Promise<FrozenMemory> {
    const gone = (cause?: unknown): Error =>
      fail("IMAGE_REFUSED", `process ${innerPid} has ended since it was dumped`, { source: "kernel", cause });
    if (process === undefined) throw gone();
    let fd: number;
    try {
      fd = openSync(`/proc/${process.pid}/mem`, "r");
    } catch (cause) {
      throw gone(cause);
    }
    // which of its pages are swapped out is not asked of each: that would take longer than to read one that is not
    const status = await readFile(`/proc/${process.pid}/status`, "utf8").catch(() => "");
    const isSwapped = !/^VmSwap:\s*0 kB$/m.test(status);
    // what was opened stays that process's: its number does not
    if ((await process.isAlive?.()) !== false) return new FrozenMemory(innerPid, fd, isSwapped);
    closeSync(fd);
    throw gone();
  }

  /** All of them; a stretch is there until the next is asked for. @throws HoldfastError `IMAGE_REFUSED`: one cannot be read */
  async *read(vaddr: number, pages: number): AsyncGenerator<Stretch> {
    for (let at = vaddr; at < vaddr + pages * PAGE_BYTES; at += LENT_BYTES) {
      const bytes = this.#lent.subarray(0, Math.min(LENT_BYTES, vaddr + pages * PAGE_BYTES - at));
      for (let read = 0; read < bytes.length; ) {
        const more = await readIfThere(this.#fd, bytes.subarray(read), at + read, this.#isSwapped);
        if (more === 0)
          throw fail(
            "IMAGE_REFUSED",
            `process ${this.#innerPid}: no page can be read at ${(at + read).toString(16)}`,
            { source: "kernel" },
          );
        read += more;
      }
      yield { vaddr: at, bytes };
      this.#bytesThisTurn += bytes.length;
      if (this.#bytesThisTurn < TURN_BYTES) continue;
      this.#bytesThisTurn = 0;
      await nextTurn();
    }
  }

  close(): void {
    closeSync(this.#fd);
  }
}
