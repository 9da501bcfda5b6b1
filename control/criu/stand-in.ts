/**
 * A stand-in for the images of an earlier dump, so that CRIU copies no memory while everybody waits.
 *
 * Of a page that an earlier dump has and that was not written since, CRIU writes only that it is there ("in parent",
 * https://criu.org/Incremental_dumps); whether it was written the kernel tells (soft-dirty bits). Here every address is in
 * images of an earlier dump that has nothing, and CRIU is told that this kernel tells, which one without CONFIG_MEM_SOFT_DIRTY never
 * says of any page. So all that the process can read stays where it is, and `precopy.ts` reads it from the frozen process: only that
 * process is ever believed. What CRIU does write (memory without PROT_READ, huge pages, shared memory, rings of io_setup(2) should there be
 * one; where soft-dirty bits exist, every page that has one) is complete in its images, as without this.
 *
 * Sources: CRIU 4.2 criu/mem.c (`generate_vma_iovs`, `__page_in_parent`), criu/page-xfer.c (`check_pagehole_in_parent`),
 * criu/include/kerndat.h (`struct kerndat_s`).
 */
import { linkSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { encodePageMap, PAGE_BYTES, type PageRun } from "./page-map.ts";
import { encodeFields } from "./protobuf.ts";

/** Folder of the stand-in, in the folder of the images. */
const STAND_IN = "earlier";
const PAGE_MAP = "pagemap.img";
const PAGES_ID = 1;

/**
 * As CRIU says it of itself. Which pages it skips, and where it keeps what it knows of the kernel, is its own affair: another
 * version copies everything, until test/privileged/criu-memory.test.ts has passed with it.
 */
const TRIED_WITH: readonly string[] = ["4.2", "4.2.1"];

/** `has_dirty_track` of `struct kerndat_s`, behind two magics, a device, a capability and a page frame's number */
const HAS_DIRTY_TRACK_AT = 32;

/** the one image with a single magic; inventory_entry: img_version = 1, dump_uptime = 8 in microseconds */
const INVENTORY_MAGIC = 0x58313116;
const IMAGES_VERSION = 2;
/** later than any process was started: none is taken for another that has its number now */
const UPTIME_US = 2n ** 62n;

/** What a page map can say of one run, and how far addresses go here (`PageRun`). */
const RUN_PAGES = 2 ** 32 - 1;
const ADDRESSES_END = 2 ** 53;

/**
 * CRIU's knowledge of the kernel, with the kernel telling which pages were written; null: it is not known where that is kept, or what
 * this CRIU would make of it.
 */
export function withDirtyTracking(cache: Buffer, version: string): Buffer | null {
  if (!TRIED_WITH.includes(version) || cache[HAS_DIRTY_TRACK_AT] !== 0) return null;
  const changed = Buffer.from(cache);
  changed[HAS_DIRTY_TRACK_AT] = 1;
  return changed;
}

/** Before CRIU is asked to dump: it looks for the folder at once. Returns what CRIU is to call it (`parentDir`). */
export function makeStandIn(imagesDir: string): string {
  const dir = join(imagesDir, STAND_IN);
  mkdirSync(dir, { mode: 0o700 });
  const options = { mode: 0o600 };
  writeFileSync(join(dir, "inventory.img"), inventory(), options);
  writeFileSync(join(dir, `pages-${PAGES_ID}.img`), "", options);
  writeFileSync(join(dir, PAGE_MAP), encodePageMap({ pagesId: PAGES_ID, runs: everything() }), options);
  return STAND_IN;
}

/**
 * While the tree is frozen, and before CRIU reads any memory. A process that is left out is dumped as a whole.
 * @param innerPids as CRIU numbers them
 */
export function standInFor(imagesDir: string, innerPids: number[]): void {
  const dir = join(imagesDir, STAND_IN);
  for (const pid of innerPids) linkSync(join(dir, PAGE_MAP), join(dir, `pagemap-${pid}.img`));
}

function inventory(): Buffer {
  const entry = encodeFields([
    [1, IMAGES_VERSION],
    [8, UPTIME_US],
  ]);
  const head = Buffer.alloc(8);
  head.writeUInt32LE(INVENTORY_MAGIC, 0);
  head.writeUInt32LE(entry.length, 4);
  return Buffer.concat([head, entry]);
}

function everything(): PageRun[] {
  const runs: PageRun[] = [];
  for (let vaddr = PAGE_BYTES; vaddr < ADDRESSES_END; vaddr += RUN_PAGES * PAGE_BYTES)
    runs.push({
      vaddr,
      pages: Math.min(RUN_PAGES, (ADDRESSES_END - vaddr) / PAGE_BYTES),
      where: "here",
    });
  return runs;
}
