/**
 * Files that processes write to through memory they share with it (mmap(2), MAP_SHARED). On a tmpfs, where the writable layer
 * is too, such writes show in no time stamp once a page is writable: the kernel notes the time of the first write to a page
 * (`file_update_time` in mm/memory.c, of filesystems without `page_mkwrite`), and nothing makes the page read-only again. So
 * who compares time stamps must take a file that was mapped at the first look for changed.
 */
import { readFileSync } from "node:fs";
import { nameText } from "./file-names.ts";
import { inodeIn, type Scan } from "./files.ts";

/** Paths as the processes see them of files mapped for writing to. Processes that have gone have none. */
export function filesMappedForWriting(pids: Iterable<number>): Set<string> {
  const paths = new Set<string>();
  for (const pid of pids) for (const path of pathsIn(mapsOf(pid))) paths.add(path);
  return paths;
}

/** Pure: of `/proc/PID/maps`, see proc_pid_maps(5). @param maps a character a byte */
export function pathsIn(maps: string): string[] {
  return maps.split("\n").flatMap((line) => {
    const path = /^[0-9a-f]+-[0-9a-f]+ .w.s [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ [1-9]\d* +(\/.*)$/.exec(line)?.[1];
    if (path === undefined) return [];
    const plain = path.replace(/ \(deleted\)$/, "").replaceAll("\\012", "\n");
    return [nameText(Buffer.from(plain, "latin1"))];
  });
}

/** Makes these files, by all of their names, of what was seen below `target`, differ from whatever is seen later. */
export function takeForChanged(seen: Scan, target: string, paths: Iterable<string>): void {
  const inodes = new Set<string>();
  for (const path of paths) {
    const state = seen.get(pathBelow(target, path) ?? "");
    if (state !== undefined) inodes.add(inodeIn(state));
  }
  if (inodes.size === 0) return;
  for (const [path, state] of seen) if (inodes.has(inodeIn(state))) seen.set(path, "mapped");
}

/** The part of a path below a mount's target ("/": of the whole), or null when it is elsewhere. */
function pathBelow(target: string, path: string): string | null {
  const folder = target.endsWith("/") ? target : `${target}/`;
  return path.startsWith(folder) ? path.slice(folder.length) : null;
}

function mapsOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/maps`, "latin1");
  } catch {
    return "";
  }
}
