/**
 * Which pages of a range are a process's own: anonymous, or copied on write from a file. They are the ones CRIU dumps of a
 * private mapping (`should_dump_page` in criu/mem.c).
 *
 * PAGEMAP_SCAN (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst) passes over what has no page tables, so a reservation of
 * terabytes costs as little as what is used of it. Older kernels are asked page by page.
 */
import { readSync } from "node:fs";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as libc from "#proxy/kernel/libc.ts";
import { PAGE_BYTES } from "./page-map.ts";

/** Consecutive pages. */
export interface PageRange {
  vaddr: number;
  pages: number;
}

/** What is one process's own. */
export interface OwnPages extends PageRange {
  /** whoever reads them may wait for a disk */
  isSwapped: boolean;
}

/** _IOWR('f', 16, struct pm_scan_arg) of linux/fs.h */
const PAGEMAP_SCAN = 0xc0606610;
const ARG_BYTES = 96;
const WALK_END_AT = 32;
const REGION_BYTES = 24;
const REGIONS_MAX = 512;
/** flags: protects what matches, in the same step; only memory that is registered with userfaultfd(2) for WP_ASYNC */
const PM_SCAN_WP_MATCHING = 1n;
const PM_SCAN_CHECK_WPASYNC = 2n;
const PAGE_IS_WPALLOWED = 1n << 0n;
const PAGE_IS_WRITTEN = 1n << 1n;
const PAGE_IS_FILE = 1n << 2n;
const PAGE_IS_PRESENT = 1n << 3n;
const PAGE_IS_SWAPPED = 1n << 4n;
const PAGE_IS_PFNZERO = 1n << 5n;
/** Linux 6.15: made by MADV_GUARD_INSTALL, cannot be read */
const PAGE_IS_GUARD = 1n << 8n;
const NOT_OWN = PAGE_IS_FILE | PAGE_IS_PFNZERO;

/** of an entry of /proc/PID/pagemap, in its highest byte */
const PRESENT = 0x80;
const SWAPPED = 0x40;
const FILE_OR_SHARED = 0x20;
const ENTRIES_AT_ONCE = 4_096;
/** page by page, a mapping larger than this takes too long to look at: 16 million entries */
const BY_ENTRY_BYTES_MAX = 64 * 2 ** 30;

/** What the kernel answered to the first scan. */
let way: "guards" | "scan" | "entries" = "guards";

/** Whether they are found without a look at each address (Linux 6.7); known when some have been looked for. */
export function areFoundFast(): boolean {
  return way !== "entries";
}

/**
 * Own pages of [start, end), ordered by address. Guard pages are left out.
 * @param pagemap descriptor of /proc/PID/pagemap. A process that ends in the middle ends the ranges.
 */
export function* ownPages(pagemap: number, start: number, end: number): Generator<OwnPages> {
  for (let at = start; at < end; ) {
    const scanned = way === "entries" ? null : scan(pagemap, at, end);
    if (scanned === null) return yield* byEntry(pagemap, at, end);
    yield* scanned.ranges;
    if (scanned.walkEnd <= at) return;
    at = scanned.walkEnd;
  }
}

/** null: this kernel cannot */
function scan(pagemap: number, start: number, end: number): { ranges: OwnPages[]; walkEnd: number } | null {
  const returned = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | (way === "guards" ? PAGE_IS_GUARD : 0n);
  let found: Scanned;
  try {
    found = scanOnce(pagemap, start, end, {
      flags: 0n,
      inverted: NOT_OWN, // these have to be absent
      mask: NOT_OWN,
      returned,
    });
  } catch (error) {
    const code = error instanceof HoldfastError ? error.code : "";
    if (code === "ESRCH") return { ranges: [], walkEnd: end };
    if (code !== "EINVAL" && code !== "ENOTTY") throw error;
    way = way === "guards" && code === "EINVAL" ? "scan" : "entries";
    return way === "scan" ? scan(pagemap, start, end) : null;
  }
  const ranges: OwnPages[] = [];
  for (const { vaddr, pages, categories } of found.regions) {
    if ((categories & PAGE_IS_GUARD) !== 0n) continue;
    ranges.push({ vaddr, pages, isSwapped: (categories & PAGE_IS_SWAPPED) !== 0n });
  }
  return { ranges, walkEnd: found.walkEnd };
}

/**
 * Pages of [start, end) that were written since this was last asked; from now on they count as unwritten, in the same step. In any order, and
 * some may come twice: the kernel may say that it has gone less far than it has. @throws HoldfastError EPERM: not all of it is registered for that (`userfault.ts`)
 */
export function* takeWrittenPages(pagemap: number, start: number, end: number): Generator<PageRange> {
  const flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
  const what = { flags, inverted: 0n, mask: PAGE_IS_WRITTEN, returned: PAGE_IS_WRITTEN };
  for (const { vaddr, pages } of scanAll(pagemap, start, end, what)) yield { vaddr, pages };
}

/** Pages of [start, end) that were not written since that was last asked ({@link takeWrittenPages}); in any order. */
export function* unwrittenPages(pagemap: number, start: number, end: number): Generator<PageRange> {
  const what = {
    flags: 0n,
    inverted: PAGE_IS_WRITTEN,
    mask: PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
    returned: PAGE_IS_WPALLOWED,
  };
  for (const { vaddr, pages } of scanAll(pagemap, start, end, what)) yield { vaddr, pages };
}

interface Scanned {
  regions: (PageRange & { categories: bigint })[];
  walkEnd: number;
}
/** of `struct pm_scan_arg`; any of present and swapped is asked for always */
interface Asked {
  flags: bigint;
  inverted: bigint;
  mask: bigint;
  returned: bigint;
}

function* scanAll(pagemap: number, start: number, end: number, asked: Asked): Generator<PageRange> {
  for (let at = start; at < end; ) {
    const { regions, walkEnd } = scanOnce(pagemap, at, end, asked);
    for (const { vaddr, pages } of regions) yield { vaddr, pages };
    if (walkEnd <= at) return;
    at = walkEnd;
  }
}

/** @throws HoldfastError ESRCH, EINVAL, ENOTTY, EPERM */
function scanOnce(pagemap: number, start: number, end: number, asked: Asked): Scanned {
  const regions = Buffer.alloc(REGIONS_MAX * REGION_BYTES);
  const arg = Buffer.alloc(ARG_BYTES);
  for (const [index, value] of [
    BigInt(ARG_BYTES),
    asked.flags,
    BigInt(start),
    BigInt(end),
    0n, // walk_end, the kernel's
    libc.addressOf(regions),
    BigInt(REGIONS_MAX),
    0n, // max_pages: no limit
    asked.inverted, // category_inverted
    asked.mask, // category_mask
    PAGE_IS_PRESENT | PAGE_IS_SWAPPED, // category_anyof_mask
    asked.returned,
  ].entries())
    arg.writeBigUInt64LE(value, index * 8);
  const count = descriptor.ioctlCount(pagemap, PAGEMAP_SCAN, arg);
  const found: Scanned = { regions: [], walkEnd: Number(arg.readBigUInt64LE(WALK_END_AT)) };
  for (let at = 0; at < count * REGION_BYTES; at += REGION_BYTES) {
    const vaddr = Number(regions.readBigUInt64LE(at));
    const pages = (Number(regions.readBigUInt64LE(at + 8)) - vaddr) / PAGE_BYTES;
    found.regions.push({ vaddr, pages, categories: regions.readBigUInt64LE(at + 16) });
  }
  return found;
}

/** From entries of /proc/PID/pagemap. Of what is larger than {@link BY_ENTRY_BYTES_MAX} nothing. */
export function* byEntry(pagemap: number, start: number, end: number): Generator<OwnPages> {
  if (end - start > BY_ENTRY_BYTES_MAX) return;
  const entries = Buffer.alloc(ENTRIES_AT_ONCE * 8);
  for (let at = start; at < end; ) {
    const wanted = Math.min(ENTRIES_AT_ONCE, (end - at) / PAGE_BYTES) * 8;
    const read = readSync(pagemap, entries, 0, wanted, (at / PAGE_BYTES) * 8);
    for (const { first, pages, isSwapped } of ownRuns(entries.subarray(0, read)))
      yield { vaddr: at + first * PAGE_BYTES, pages, isSwapped };
    if (read < wanted) return;
    at += (read / 8) * PAGE_BYTES;
  }
}

function ownRuns(entries: Buffer): { first: number; pages: number; isSwapped: boolean }[] {
  const runs: { first: number; pages: number; isSwapped: boolean }[] = [];
  for (let page = 0; page * 8 < entries.length; page++) {
    const top = entries[page * 8 + 7] as number;
    if ((top & (PRESENT | SWAPPED)) === 0 || (top & FILE_OR_SHARED) !== 0) continue;
    const isSwapped = (top & SWAPPED) !== 0;
    const last = runs.at(-1);
    if (last?.isSwapped === isSwapped && last.first + last.pages === page) last.pages++;
    else runs.push({ first: page, pages: 1, isSwapped });
  }
  return runs;
}
