/** Files of /proc, whose reader may have gone or may not be asked (EINVAL where the kernel lacks the feature). */
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, readSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

const AGAIN_MS = 100;
/** how long one is waited out */
export const SHORTAGE_MS_MAX = 10_000;
const SHORTAGES = new Set(["EMFILE", "ENFILE", "ENOMEM"]);

/** This agent, or its node, has no descriptor or memory left for a moment: that says nothing of what was asked for. */
export function isShortage(error: unknown): boolean {
  for (let at = error; at instanceof Error; at = at.cause)
    if (SHORTAGES.has((at as NodeJS.ErrnoException).code ?? "")) return true;
  return false;
}

/** Again and again, as long as there is a shortage. @param lateMs of `performance.now()`: not any more then */
export async function withRoom<T>(
  work: () => Promise<T> | T,
  lateMs = performance.now() + SHORTAGE_MS_MAX,
): Promise<T> {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!isShortage(error) || performance.now() > lateMs) throw error;
      await delay(AGAIN_MS);
    }
  }
}

/** @throws Error a shortage */
function unlessShortage<T>(otherwise: T, ask: () => T): T {
  try {
    return ask();
  } catch (error) {
    if (isShortage(error)) throw error;
    return otherwise;
  }
}

/** "" where it cannot be read. Bytes that are no UTF-8 all become one character: for text, which Node reads in one call. */
export function readText(path: string): string {
  return unlessShortage("", () => readFileSync(path, "utf8"));
}

/** Empty where it cannot be read. */
export function readBytes(path: string): Buffer {
  return unlessShortage(Buffer.alloc(0), () => readFileSync(path));
}

const chunk = Buffer.allocUnsafe(64 * 1024);

/** … of what a process can make as long as it likes (PR_SET_MM, prctl(2)): its beginning. */
export function readBeginning(path: string, bytesMax: number): Buffer {
  return unlessShortage(Buffer.alloc(0), () => {
    const file = openSync(path, "r");
    try {
      const parts: Buffer[] = [];
      for (let length = 0; length < bytesMax; ) {
        const count = readSync(file, chunk, 0, Math.min(chunk.length, bytesMax - length), null);
        if (count === 0) break;
        parts.push(Buffer.from(chunk.subarray(0, count)));
        length += count;
      }
      return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
    } finally {
      closeSync(file);
    }
  });
}

const pieces = Buffer.allocUnsafe(256 * 1024);

/**
 * … of records, some at a time, however many there are; none where it cannot be read. What `use` throws is thrown.
 * @param last how the last line of each record begins, as no other line does
 */
export function readRecords(path: string, last: string, use: (records: string) => void): void {
  const file = unlessShortage(null, () => openSync(path, "r"));
  if (file === null) return;
  const mark = `\n${last}`;
  try {
    let length = 0;
    for (;;) {
      const count = unlessShortage(0, () => readSync(file, pieces, length, pieces.length - length, null));
      length += count;
      if (count > 0 && length < pieces.length) continue;
      // the last record that is there whole; one that is longer than all of this comes in pieces
      const newline = count === 0 ? -1 : pieces.lastIndexOf("\n", length - 1);
      const at = newline < mark.length ? -1 : pieces.lastIndexOf(mark, newline - mark.length);
      const end = at < 0 ? length : pieces.indexOf("\n", at + 1) + 1;
      if (end > 0) use(pieces.toString("utf8", 0, end));
      if (count === 0) return;
      pieces.copyWithin(0, end, length);
      length -= end;
    }
  } finally {
    closeSync(file);
  }
}

export function readLink(path: string): string {
  return unlessShortage("", () => readlinkSync(path));
}

/** Names in a folder; [] where it cannot be read. */
export function listNames(path: string): string[] {
  return unlessShortage([], () => readdirSync(path));
}
