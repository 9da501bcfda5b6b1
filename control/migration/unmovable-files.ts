/**
 * State of descriptors that is lost without a word, or cannot be dumped: who asks for SIGIO when a folder changes (fcntl(2)
 * F_NOTIFY: the kernel tells nobody what was asked for), memory that only its process can read (memfd_secret(2)), and
 * fanotify(7), whose marks and unanswered questions CRIU drops.
 */
import { statfsSync, statSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { borrow, giveBack } from "../runtime/borrowed.ts";
import { descriptorsOf, isPathOnly } from "../runtime/processes.ts";

export type UnmovableKind = "folder-notification" | "memfd-secret" | "fanotify";

export interface Unmovable {
  kind: UnmovableKind;
  pid: number;
  fd: number;
}

/** include/uapi/linux/magic.h */
const SECRETMEM_MAGIC = 0x5345434d;
const SECRETMEM_LINK = "/secretmem (deleted)";
const FANOTIFY_LINK = "anon_inode:[fanotify]";

/** Of these processes, which may run meanwhile. */
export async function unmovableFiles(pids: number[]): Promise<Unmovable[]> {
  const found: Unmovable[] = [];
  for (const pid of pids) {
    for (const { fd, target } of await descriptorsOf(pid)) {
      const kind = kindOf(pid, fd, target);
      if (kind !== null) found.push({ kind, pid, fd });
    }
  }
  return found;
}

/** Of a frozen tree: what came to be since the checks. @throws HoldfastError `FILE_UNMOVABLE` */
export async function refuseUnmovableFiles(pids: number[]): Promise<void> {
  const [first] = await unmovableFiles(pids);
  if (first === undefined) return;
  throw fail(
    "FILE_UNMOVABLE",
    `process ${first.pid} has descriptor ${first.fd} of a kind that cannot move (${first.kind})`,
  );
}

function kindOf(pid: number, fd: number, target: string): UnmovableKind | null {
  if (target === FANOTIFY_LINK) return "fanotify";
  if (!target.startsWith("/")) return null;
  const file = `/proc/${pid}/fd/${fd}`;
  try {
    if (target === SECRETMEM_LINK) return statfsSync(file).type === SECRETMEM_MAGIC ? "memfd-secret" : null;
    return statSync(file).isDirectory() && hasOwner(pid, fd) ? "folder-notification" : null;
  } catch {
    return null; // closed meanwhile
  }
}

/**
 * F_NOTIFY makes the process the one that signals go to; on a folder nothing else has a use for that. A descriptor opened with O_PATH
 * cannot be asked, nor ask.
 */
function hasOwner(pid: number, fd: number): boolean {
  if (isPathOnly(pid, fd)) return false;
  const ours = borrow(pid, fd);
  try {
    return descriptor.ownerOf(ours) !== 0;
  } finally {
    giveBack(ours);
  }
}
