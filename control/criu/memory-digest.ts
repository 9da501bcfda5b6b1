/**
 * A digest of everything in the memory of a stopped tree that a move has to carry: taken in the source after the dump, and in
 * the target after the restore, each page must be there again (`memory-difference.ts`).
 *
 * What is looked at:
 * - private mappings: the process's own pages (`page-scan.ts`). Pages of zeroes and pages that are not there are the same in
 *   anonymous memory. What was never written in a private mapping of a file is the file's, and not looked at.
 * - shared mappings of a tmpfs or hugetlbfs (anonymous ones, memfd, System V segments, /dev/shm): all data of the mapped parts, once
 *   for all mappings that show it (`shared-objects.ts`); and which mappings show the same object.
 * - where all of these are, and with which permissions.
 *
 * What is not, and why: `[vvar]`, `[vdso]` and their like are the kernel's, and each kernel's own, as are the rings of
 *   io_setup(2), which CRIU makes anew; device memory (refused before a
 * move); MAP_DROPPABLE, whose pages may be gone at any time (CRIU leaves them out, too); shared mappings of files on other
 * file systems: they are files, which both nodes see or which travel as such.
 *
 * What the kernel itself writes between dump and restore is left out byte for byte: in `struct rseq` the fields `cpu_id_start`,
 * `cpu_id`, `node_id` and `mm_cid` (include/uapi/linux/rseq.h) say on which CPU a thread runs; it writes them whenever
 * the thread returns to user space. Robust futex lists and `clear_child_tid` it writes only when a thread ends.
 */
import { closeSync, openSync, readFileSync, readSync, statfsSync } from "node:fs";
import { open, readFile } from "node:fs/promises";
import { setImmediate as nextTurn } from "node:timers/promises";
import { crc32 } from "node:zlib";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { PAGE_BYTES } from "./page-map.ts";
import { ownPages, type PageRange } from "./page-scan.ts";
import { readPages, type TracedProcess } from "./process-memory.ts";
import { SharedObjects } from "./shared-objects.ts";

/** One thread's `struct rseq`. */
export interface RseqArea {
  innerPid: number;
  vaddr: number;
}

/**
 * Address (u64 LE), then CRC-32 of the page (u32 LE); ordered by address. Memory is compared with itself, not with what somebody
 * made up: a wrong page is missed once in 2^32.
 */
export const ENTRY_BYTES = 12;
const DIGEST_AT = 8;

export interface ProcessDigest {
  innerPid: number;
  /** "START-END PERMISSIONS KIND", hexadecimal, neighbours that are alike joined */
  layout: string[];
  /** {@link ENTRY_BYTES} a page */
  pages: Buffer;
}

type Kind = "anonymous" | "file" | "shared" | "none";

export interface MappedArea {
  start: number;
  end: number;
  /** as in maps: rwxp */
  permissions: string;
  offset: number;
  /** device and inode */
  object: string;
  name: string;
  /** two letters each (VmFlags of smaps, proc(5)) */
  flags: string[];
}

/** largest piece of memory read at once */
const PIECE_BYTES = 256 * PAGE_BYTES;
const KERNELS = /^\[(vvar|vdso|vsyscall|uprobes|vectors|sigpage)/;
const TMPFS_MAGIC = 0x01021994;
const HUGETLBFS_MAGIC = 0x958458f6;
/** [offset, length] in struct rseq: cpu_id_start and cpu_id; node_id and mm_cid */
const RSEQ_KERNELS = [
  [0, 8],
  [20, 8],
] as const;

/** Of processes that stand still. */
export async function digestTree(processes: TracedProcess[], rseq: RseqArea[]): Promise<ProcessDigest[]> {
  const objects = new SharedObjects();
  const digests: ProcessDigest[] = [];
  const inOrder = processes.toSorted((one, other) => one.innerPid - other.innerPid);
  for (const process of inOrder) {
    const masks = rseq.filter(({ innerPid }) => innerPid === process.innerPid).map(({ vaddr }) => vaddr);
    digests.push(await new ProcessReader(process, masks).digest(objects));
  }
  return digests;
}

/** The digest of one page of a stopped process, whatever is there. null: nothing can be read there */
export async function digestPageAt(pid: number, vaddr: number, masks: number[]): Promise<number | null> {
  const memory = await open(`/proc/${pid}/mem`, "r");
  try {
    const page = Buffer.alloc(PAGE_BYTES);
    const { bytesRead } = await memory.read(page, 0, PAGE_BYTES, vaddr).catch(() => ({ bytesRead: 0 }));
    if (bytesRead !== PAGE_BYTES) return null;
    mask(page, vaddr, masks);
    return crc32(page);
  } finally {
    await memory.close();
  }
}

/** Whether a page that a process has of its own is what the mapped file has there. */
export async function isAsInFile(pid: number, vaddr: number): Promise<boolean> {
  const area = areasOf(await readFile(`/proc/${pid}/smaps`, "utf8")).find(
    ({ start, end }) => start <= vaddr && vaddr < end,
  );
  if (area === undefined) return false;
  const mine = Buffer.alloc(PAGE_BYTES);
  const files = Buffer.alloc(PAGE_BYTES);
  const memory = await open(`/proc/${pid}/mem`, "r");
  const file = await open(fileOf(pid, area), "r").catch(() => null);
  try {
    await memory.read(mine, 0, PAGE_BYTES, vaddr);
    await file?.read(files, 0, PAGE_BYTES, area.offset + vaddr - area.start);
    return file !== null && mine.equals(files);
  } finally {
    await memory.close();
    await file?.close();
  }
}

class ProcessReader {
  #pid: number;
  #innerPid: number;
  #masks: number[];
  #entries: Buffer[] = [];
  #piece = Buffer.allocUnsafe(PIECE_BYTES);
  #bytesThisTurn = 0;

  constructor({ pid, innerPid }: TracedProcess, masks: number[]) {
    this.#pid = pid;
    this.#innerPid = innerPid;
    this.#masks = masks;
  }

  /** @param objects of shared memory that the processes before it have */
  async digest(objects: SharedObjects): Promise<ProcessDigest> {
    const areas = areasOf(readFileSync(`/proc/${this.#pid}/smaps`, "utf8"))
      .map((area) => ({ area, kind: kindOf(this.#pid, area) }))
      .filter(({ kind }) => kind !== "none");
    const fresh = objects.take(areas.filter(({ kind }) => kind === "shared").map(({ area }) => area));
    const layout: { start: number; end: number; what: string }[] = [];
    const memory = openSync(`/proc/${this.#pid}/mem`, "r");
    const pagemap = openSync(`/proc/${this.#pid}/pagemap`, "r");
    try {
      for (const { area, kind } of areas) {
        let what = `${area.permissions} ${kind}`;
        if (kind === "shared") {
          what += ` ${objects.numberOf(area.object)}+${area.offset.toString(16)}`;
          await this.#shared(area, fresh.get(area) ?? []);
        } else await this.#own(area, kind, memory, pagemap);
        const last = layout.at(-1);
        if (last?.what === what && last.end === area.start && kind !== "shared") last.end = area.end;
        else layout.push({ start: area.start, end: area.end, what });
      }
    } finally {
      closeSync(memory);
      closeSync(pagemap);
    }
    return {
      innerPid: this.#innerPid,
      layout: layout.map(({ start, end, what }) => `${start.toString(16)}-${end.toString(16)} ${what}`),
      pages: Buffer.concat(this.#entries),
    };
  }

  async #own(area: MappedArea, kind: Kind, memory: number, pagemap: number): Promise<void> {
    for (const range of ownPages(pagemap, area.start, area.end)) {
      const end = range.vaddr + range.pages * PAGE_BYTES;
      for (let at = range.vaddr; at < end; at += PIECE_BYTES) {
        const piece = this.#piece.subarray(0, Math.min(PIECE_BYTES, end - at));
        const bytesRead = await readPages(memory, piece, at, range.isSwapped);
        await this.#add(at, this.#piece.subarray(0, bytesRead), kind === "anonymous");
      }
    }
  }

  /** What was never written of it is not there, and stays so: it is not read by way of the process. @param parts by offset in the object */
  async #shared(area: MappedArea, parts: readonly PageRange[]): Promise<void> {
    if (parts.length === 0) return;
    const file = openSync(fileOf(this.#pid, area), "r");
    try {
      for (const { vaddr: start, pages } of parts) {
        const end = start + pages * PAGE_BYTES;
        for (let at = descriptor.seekData(file, start); at !== null && at < end; ) {
          at -= at % PAGE_BYTES;
          const bytes = Buffer.alloc(Math.min(PIECE_BYTES, end - at));
          const bytesRead = readSync(file, bytes, 0, bytes.length, at);
          const whole = Math.ceil(bytesRead / PAGE_BYTES) * PAGE_BYTES;
          if (whole === 0) break;
          await this.#add(area.start + at - area.offset, bytes.subarray(0, whole), true);
          at = descriptor.seekData(file, at + whole);
        }
      }
    } finally {
      closeSync(file);
    }
  }

  async #add(vaddr: number, bytes: Buffer, zeroIsNothing: boolean): Promise<void> {
    const entries = Buffer.allocUnsafe((bytes.length / PAGE_BYTES) * ENTRY_BYTES);
    let used = 0;
    for (let at = 0; at + PAGE_BYTES <= bytes.length; at += PAGE_BYTES) {
      const page = bytes.subarray(at, at + PAGE_BYTES);
      mask(page, vaddr + at, this.#masks);
      if (zeroIsNothing && page.equals(zeroPage)) continue;
      entries.writeBigUInt64LE(BigInt(vaddr + at), used);
      entries.writeUInt32LE(crc32(page), used + DIGEST_AT);
      used += ENTRY_BYTES;
    }
    if (used > 0) this.#entries.push(entries.subarray(0, used));
    // others have a turn, too
    this.#bytesThisTurn += bytes.length;
    if (this.#bytesThisTurn < PIECE_BYTES) return;
    this.#bytesThisTurn = 0;
    await nextTurn();
  }
}

/** From /proc/PID/smaps. */
export function areasOf(smaps: string): MappedArea[] {
  const areas: MappedArea[] = [];
  for (const line of smaps.split("\n")) {
    const head = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+ \S+)\s*(.*)$/.exec(line);
    if (head !== null) {
      const [, start = "", end = "", permissions = "", offset = "", object = "", name = ""] = head;
      areas.push({
        start: Number.parseInt(start, 16),
        end: Number.parseInt(end, 16),
        permissions,
        offset: Number.parseInt(offset, 16),
        object,
        name,
        flags: [],
      });
    } else if (line.startsWith("VmFlags:")) {
      const area = areas.at(-1);
      if (area !== undefined) area.flags = line.slice("VmFlags:".length).trim().split(" ");
    }
  }
  return areas;
}

function kindOf(pid: number, area: MappedArea): Kind {
  const isDevice = area.flags.includes("io") || area.flags.includes("pf");
  if (KERNELS.test(area.name) || isDevice || area.flags.includes("dp")) return "none";
  if (area.permissions.endsWith("p")) return area.object.endsWith(" 0") ? "anonymous" : "file";
  try {
    const { type } = statfsSync(fileOf(pid, area));
    return type === TMPFS_MAGIC || type === HUGETLBFS_MAGIC ? "shared" : "none";
  } catch {
    return "none"; // what cannot be opened as a file is a device's
  }
}

function fileOf(pid: number, { start, end }: MappedArea): string {
  return `/proc/${pid}/map_files/${start.toString(16)}-${end.toString(16)}`;
}

function mask(page: Buffer, vaddr: number, masks: number[]): void {
  for (const rseq of masks) {
    if (rseq < vaddr || rseq >= vaddr + PAGE_BYTES) continue;
    for (const [offset, length] of RSEQ_KERNELS)
      page.fill(0, rseq - vaddr + offset, rseq - vaddr + offset + length);
  }
}

const zeroPage = Buffer.alloc(PAGE_BYTES);
