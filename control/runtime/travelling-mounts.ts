/** Which mounts of a container a move takes the files of along. */
import { readText } from "./read-text.ts";

/** Of a sandbox. */
export interface Travelling {
  init: { pid: number };
  travels: readonly string[];
}

/** Numbers of mounts, /proc/PID/mountinfo's first column, that files travel of: the root, where the writable layer is, and tmpfs. */
export function travellingMounts({ init, travels }: Travelling): Set<string> {
  const numbers = new Set<string>();
  for (const line of readText(`/proc/${init.pid}/mountinfo`).split("\n")) {
    const [number = "", , , , target = ""] = line.split(" ");
    // proc(5): a space, tab, newline or backslash is written in octal
    const path = target.replace(/\\([0-7]{3})/g, (_, code: string) =>
      String.fromCharCode(Number.parseInt(code, 8)),
    );
    if (path === "/" || travels.includes(path)) numbers.add(number);
  }
  return numbers;
}
