/**
 * What this machine lets a process reserve (Documentation/mm/overcommit-accounting.rst), and how much of it the restore of a
 * process takes: CRIU counts all its private memory as writable for a moment.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readImage, writeImage } from "./image-files.ts";
import { fitReservations } from "./mm-image.ts";

/** vm.overcommit_memory */
const HEURISTIC = 0;
const NEVER = 2;
const MM_IMAGE = /^mm-\d+\.img$/;

export interface Accounting {
  /** heuristics: a single mapping larger than this is refused, in bytes; null: not in force */
  mappingBytesMax: number | null;
  /** strict accounting: what is left for all processes together, in bytes; null: not in force */
  leftBytes: number | null;
}

export function accountingHere(): Accounting {
  const mode = Number(readFileSync("/proc/sys/vm/overcommit_memory", "utf8"));
  const meminfo = readFileSync("/proc/meminfo", "utf8");
  const bytes = (name: string): number =>
    Number(new RegExp(`^${name}:\\s*(\\d+) kB$`, "m").exec(meminfo)?.[1] ?? 0) * 1024;
  return {
    mappingBytesMax: mode === HEURISTIC ? bytes("MemTotal") + bytes("SwapTotal") : null,
    leftBytes: mode === NEVER ? Math.max(0, bytes("CommitLimit") - bytes("Committed_AS")) : null,
  };
}

/** Changes images of processes so that their reservations can be made on this machine. Returns the names of the changed. */
export function fitToMachine(imagesDir: string): string[] {
  const { mappingBytesMax } = accountingHere();
  const changed: string[] = [];
  for (const name of readdirSync(imagesDir)) {
    if (!MM_IMAGE.test(name)) continue;
    const fitted = fitReservations(readImage(join(imagesDir, name)), mappingBytesMax);
    if (fitted === null) continue;
    writeImage(join(imagesDir, name), fitted);
    changed.push(name);
  }
  return changed;
}
