/**
 * CRIU's `pagemap-PID.img`: which pages of a process are in `pages-ID.img`, in that order, and which are to be looked for in
 * the folder that the symbolic link `parent` names (images/pagemap.proto of CRIU, MIT; https://criu.org/Memory_images).
 *
 * Layout: two magics (u32 LE), then u32 LE length and message, again and again: first a pagemap_head, then entries.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";

export const PAGE_BYTES = 4096;
const COMMON_MAGIC = 0x54564319;
const PAGEMAP_MAGIC = 0x56084025;
/** criu/include/pagemap.h */
const PE_PARENT = 1 << 0;
const PE_PRESENT = 1 << 2;

export interface PageRun {
  /** address of the first page, below 2^53 */
  vaddr: number;
  pages: number;
  /** here: the bytes are in this folder's pages image; parent: in the parent folder */
  where: "here" | "parent";
}

export interface PageMap {
  /** N of `pages-N.img` */
  pagesId: number;
  runs: PageRun[];
}

export function encodePageMap(map: PageMap): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32LE(COMMON_MAGIC, 0);
  head.writeUInt32LE(PAGEMAP_MAGIC, 4);
  const parts: Buffer[] = [head];
  const bytes: number[] = [];
  const message = (fields: [number: number, value: number][]): void => {
    bytes.length = 0;
    for (const [number, value] of fields) pushField(bytes, number, value);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length, 0);
    parts.push(length, Buffer.from(bytes));
  };
  message([[1, map.pagesId]]);
  for (const run of map.runs) {
    const isParent = run.where === "parent";
    // nr_pages is told twice: compat_nr_pages is a required field of the message
    message([
      [1, run.vaddr],
      [2, run.pages],
      ...(isParent ? ([[3, 1]] as [number, number][]) : []),
      [4, isParent ? PE_PARENT : PE_PRESENT],
      [5, run.pages],
    ]);
  }
  return Buffer.concat(parts);
}

/** @throws HoldfastError `PAGEMAP_INVALID` */
export function decodePageMap(image: Buffer): PageMap {
  if (image.length < 8 || image.readUInt32LE(0) !== COMMON_MAGIC || image.readUInt32LE(4) !== PAGEMAP_MAGIC)
    throw invalid();
  let pagesId = -1;
  const runs: PageRun[] = [];
  for (let at = 8; at < image.length; ) {
    if (at + 4 > image.length) throw invalid();
    const end = at + 4 + image.readUInt32LE(at);
    if (end > image.length) throw invalid();
    const fields = readFields(image, at + 4, end);
    at = end;
    if (pagesId === -1) pagesId = fields[1] ?? -1;
    else {
      const { 1: vaddr, 2: compatPages, 3: inParent, 4: flags, 5: pages } = fields;
      if (vaddr === undefined) throw invalid();
      const isParent = inParent === 1 || ((flags ?? 0) & PE_PARENT) !== 0;
      runs.push({ vaddr, pages: pages ?? compatPages ?? 0, where: isParent ? "parent" : "here" });
    }
  }
  if (pagesId === -1) throw invalid();
  return { pagesId, runs };
}

/** All fields of the messages are varints. Addresses are below 2^53, so numbers do. */
function readFields(image: Buffer, from: number, to: number): Record<number, number> {
  const fields: Record<number, number> = {};
  let at = from;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; factor <= 2 ** 49; factor *= 128) {
      const byte = at < to ? (image[at++] as number) : -1;
      if (byte === -1) throw invalid();
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
    throw invalid();
  };
  while (at < to) {
    const key = varint();
    if ((key & 7) !== 0) throw invalid();
    fields[key >> 3] = varint();
  }
  return fields;
}

function pushField(bytes: number[], number: number, value: number): void {
  bytes.push(number << 3);
  let rest = value;
  while (rest >= 128) {
    bytes.push((rest % 128) | 0x80);
    rest = Math.floor(rest / 128);
  }
  bytes.push(rest);
}

function invalid(): HoldfastError {
  return fail("PAGEMAP_INVALID", "not a page map of CRIU");
}
