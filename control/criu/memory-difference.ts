/** Where the memory of a restored tree is not what it was: the first place, in words. */
import { ENTRY_BYTES, type ProcessDigest } from "./memory-digest.ts";

/** What only the restored process itself can answer about one of its pages. */
export interface AskRestored {
  /** digest of the page as it is there, be it the process's own or not; null: nothing is there */
  digestAt(innerPid: number, vaddr: number): Promise<number | null>;
  /** the page is the process's own, and the same as in the file that is mapped there */
  isAsInFile(innerPid: number, vaddr: number): Promise<boolean>;
}

/** null: they are the same */
export async function memoryDifference(
  source: ProcessDigest[],
  restored: ProcessDigest[],
  ask: AskRestored,
): Promise<string | null> {
  const there = new Map(restored.map((process) => [process.innerPid, process]));
  for (const process of source) {
    const other = there.get(process.innerPid);
    if (other === undefined) return `process ${process.innerPid} is not there`;
    const difference = layoutDifference(process, other) ?? (await pageDifference(process, other, ask));
    if (difference !== null) return `process ${process.innerPid}: ${difference}`;
  }
  const here = new Set(source.map(({ innerPid }) => innerPid));
  const more = restored.find(({ innerPid }) => !here.has(innerPid));
  return more === undefined ? null : `process ${more.innerPid} was not there`;
}

function layoutDifference(source: ProcessDigest, restored: ProcessDigest): string | null {
  // there may be 65,530 of them, and nothing else of this agent has a turn meanwhile
  const [here, there] = [new Set(source.layout), new Set(restored.layout)];
  const lost = source.layout.find((area) => !there.has(area));
  const more = restored.layout.find((area) => !here.has(area));
  if (lost !== undefined) return `mapping ${lost} is not there${more === undefined ? "" : `, but ${more}`}`;
  return more === undefined ? null : `mapping ${more} was not there`;
}

async function pageDifference(
  source: ProcessDigest,
  restored: ProcessDigest,
  ask: AskRestored,
): Promise<string | null> {
  const { innerPid } = source;
  const differs = (vaddr: number, how: string): string =>
    `the page at ${vaddr.toString(16)} ${how}, in mapping ${mappingAt(source, vaddr)}`;
  let one = 0;
  let other = 0;
  while (one < source.pages.length || other < restored.pages.length) {
    const here = addressAt(source.pages, one);
    const there = addressAt(restored.pages, other);
    if (here === there) {
      if (digestAt(source.pages, one) !== digestAt(restored.pages, other)) return differs(here, "differs");
      one += ENTRY_BYTES;
      other += ENTRY_BYTES;
    } else if (here < there) {
      // not the process's own any more; of a mapped file it may be the same all the same
      const digest = await ask.digestAt(innerPid, here);
      if (digest !== digestAt(source.pages, one)) return differs(here, "is lost");
      one += ENTRY_BYTES;
    } else {
      // CRIU may have written a page of a mapped file that the source had left alone
      if (!(await ask.isAsInFile(innerPid, there))) return differs(there, "has bytes where there were none");
      other += ENTRY_BYTES;
    }
  }
  return null;
}

function addressAt(pages: Buffer, at: number): number {
  return at < pages.length ? Number(pages.readBigUInt64LE(at)) : Number.POSITIVE_INFINITY;
}

function digestAt(pages: Buffer, at: number): number {
  return pages.readUInt32LE(at + 8);
}

function mappingAt(process: ProcessDigest, vaddr: number): string {
  const found = process.layout.find((area) => {
    const [start = "", end = ""] = area.split(" ", 1)[0]?.split("-") ?? [];
    return Number.parseInt(start, 16) <= vaddr && vaddr < Number.parseInt(end, 16);
  });
  return found ?? "(none)";
}
