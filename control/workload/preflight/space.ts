/** Memory of a node, and how it is told. */
import { readFile } from "node:fs/promises";

/** What programs can have without swapping (proc(5), MemAvailable). */
export async function availableBytes(): Promise<number> {
  const meminfo = await readFile("/proc/meminfo", "utf8");
  return Number(/^MemAvailable:\s*(\d+) kB$/m.exec(meminfo)?.[1] ?? 0) * 1024;
}

export function mega(bytes: number): number {
  return Math.ceil(bytes / 1e6);
}
