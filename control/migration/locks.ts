/**
 * Locks that cannot go along: those on a file that both nodes see. The source holds them for as long as it may have to
 * roll back, so the target could not take them; let go for a moment, anybody waiting for one would get it.
 * Locks on files of the container's own travel with the file (CRIU, `--file-locks`).
 */
import { readFile } from "node:fs/promises";
import type { MountConfig } from "../config/config.ts";
import { descriptorsOf } from "../runtime/processes.ts";

export interface SharedLock {
  pid: number;
  path: string;
}

/** flock(2) and fcntl(2) locks, as /proc/PID/fdinfo/FD tells them (proc(5)). */
export async function locksOnSharedMounts(pids: number[], mounts: MountConfig[]): Promise<SharedLock[]> {
  const shared = mounts.filter((mount) => mount.shared).map((mount) => mount.target);
  if (shared.length === 0) return [];
  const locks: SharedLock[] = [];
  for (const pid of pids) {
    for (const { fd, target } of await descriptorsOf(pid)) {
      if (!shared.some((folder) => target === folder || target.startsWith(`${folder}/`))) continue;
      const info = await readFile(`/proc/${pid}/fdinfo/${fd}`, "utf8").catch(() => "");
      if (/^lock:/m.test(info)) locks.push({ pid, path: target });
    }
  }
  return locks;
}
