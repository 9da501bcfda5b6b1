/** Files of /proc, whose reader may have gone or may not be asked (EINVAL where the kernel lacks the feature). */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** "" where it cannot be read. Bytes that are no UTF-8 all become one character: for text, which Node reads in one call. */
export function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

/** Empty where it cannot be read. */
export function readBytes(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch {
    return Buffer.alloc(0);
  }
}

export function readLink(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
}

/** Names in a folder; [] where it cannot be read. */
export function listNames(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
