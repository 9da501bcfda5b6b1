/**
 * Folders that a program is in the middle of reading (getdents64(2)). The position in one is a number that its file system gives, by the order
 * in which names came (tmpfs, overlayfs) or by a hash with a seed of its own (ext4). CRIU sets the same number at the target, whose folder
 * has the same names at other positions: some would never be read, and others twice. At the end of a folder nothing follows on either node.
 */
import { readFileSync, readlinkSync, statSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { descriptorsOf } from "../runtime/processes.ts";
import { isShortage, readBeginning } from "../runtime/read-text.ts";
import { type Travelling, travellingMounts } from "../runtime/travelling-mounts.ts";
import { withSocketAt } from "./sockets.ts";

export interface BegunFolder {
  pid: number;
  fd: number;
  path: string;
  /** not 0 */
  position: bigint;
}

/**
 * Of processes that run. Asked is their own descriptor, whose place no other has: one that reads and deletes by turns (`rm -r`) has a list of its
 * own in overlayfs, and a place of its own in tmpfs before Linux 6.6; what is opened anew may have another end. None is moved: a program of 32
 * bits, whose place might be, is not asked while it runs.
 */
export async function halfReadFolders(container: Travelling, pids: number[]): Promise<BegunFolder[]> {
  const mounts = travellingMounts(container);
  const begun = (await begunFolders(mounts, pids)).filter(({ pid }) => has64Bits(pid));
  // by then the descriptor may be another file's: what is said is of the one that is asked
  return begun.flatMap(({ pid, fd }) => {
    const found = withSocketAt({ pid, fd }, (ours) => {
      const position = positionIn("self", ours, mounts);
      if (position === 0n || !descriptor.namesFollow(ours)) return [];
      return [{ pid, fd, path: readlinkSync(`/proc/self/fd/${ours}`), position }];
    });
    return found ?? [];
  });
}

/** Of a frozen tree. @throws HoldfastError `FILE_UNMOVABLE` */
export async function refuseHalfReadFolders(container: Travelling, pids: number[]): Promise<void> {
  for (const folder of await begunFolders(travellingMounts(container), pids))
    if (withSocketAt(folder, namesFollow) === true)
      throw fail("FILE_UNMOVABLE", `${said(folder)}; try again`);
}

function namesFollow(fd: number): boolean {
  const position = descriptor.positionOf(fd);
  const follow = descriptor.namesFollow(fd);
  if (descriptor.positionOf(fd) !== position) descriptor.setPosition(fd, position);
  return follow;
}

/** elf(5): ELFCLASS64 */
function has64Bits(pid: number): boolean {
  return readBeginning(`/proc/${pid}/exe`, 5)[4] === 2;
}

/** A clause. */
export function said({ pid, fd, path }: BegunFolder): string {
  return `process ${pid} is in the middle of reading the folder ${path} (descriptor ${fd}), whose names are at other positions on the other node`;
}

async function begunFolders(mounts: Set<string>, pids: number[]): Promise<BegunFolder[]> {
  const begun: BegunFolder[] = [];
  for (const pid of pids)
    for (const { fd, target } of await descriptorsOf(pid)) {
      const position = target.startsWith("/") ? positionIn(pid, fd, mounts) : 0n;
      if (position !== 0n) begun.push({ pid, fd, path: target, position });
    }
  return begun;
}

/** 0: at its beginning, no folder, on another mount, or closed meanwhile */
function positionIn(pid: number | "self", fd: number, mounts: Set<string>): bigint {
  try {
    if (!statSync(`/proc/${pid}/fd/${fd}`).isDirectory()) return 0n;
    const info = readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8");
    const field = (name: string): string => new RegExp(`^${name}:\\s*(\\d+)$`, "m").exec(info)?.[1] ?? "0";
    return mounts.has(field("mnt_id")) ? BigInt(field("pos")) : 0n;
  } catch (error) {
    if (isShortage(error)) throw error;
    return 0n;
  }
}
