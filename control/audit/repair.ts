/**
 * Sets again what a restore left otherwise, where the kernel lets somebody from outside do it. What was set is looked at again:
 * an option that changes no other at once, by the same descriptor, since every connection has some; the rest by the caller.
 * What cannot be set stays a difference.
 */
import { writeFileSync, writeSync } from "node:fs";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as ipc from "#proxy/kernel/ipc.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import * as procs from "#proxy/kernel/processes.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { Duplicates } from "./descriptors.ts";
import type { Facts, Fingerprint } from "./fingerprint.ts";
import type { Difference } from "./harmless.ts";
import { joinGroup } from "./multicast.ts";
import { INDEPENDENT, optionValue, readOption, socketOption } from "./socket-options.ts";
import { schedulingOf, taskNumbers } from "./tasks.ts";
import { timerState } from "./timer-facts.ts";
import { rearmTimer } from "./timer-repair.ts";
import type { Tree } from "./tree.ts";

export interface Repairs {
  /** what was set: `descriptor 12/5: TCP_USER_TIMEOUT` */
  done: string[];
  /** whom it was done to and who must be looked at again as a whole */
  subjects: Set<string>;
  /** timers that were armed again, which may have run out by the next look */
  rearmed: Set<string>;
  /** what the kernel refused, by {@link keyOf}, with its reason */
  refused: Map<string, string>;
}

/**
 * @param before the fingerprint to come back to
 * @param after what it is now: kept up to date where that is known at once
 */
export function repair(
  differences: Difference[],
  tree: Tree,
  before: Fingerprint,
  after: Fingerprint,
): Repairs {
  const repairs: Repairs = { done: [], subjects: new Set(), rearmed: new Set(), refused: new Map() };
  const tasks = taskNumbers(tree);
  const descriptors = new Map(
    tree.descriptors.map((descriptor) => [`descriptor ${descriptor.name}`, descriptor]),
  );
  const duplicates = new Duplicates();
  const done = (difference: Difference, work: () => boolean): void => {
    try {
      if (!work()) return;
      repairs.done.push(keyOf(difference));
      if (!INDEPENDENT.has(difference.name)) repairs.subjects.add(difference.subject);
    } catch (error) {
      if (!(error instanceof HoldfastError) && !(error instanceof Error && "code" in error)) throw error;
      repairs.refused.set(keyOf(difference), messageOf(error));
    }
  };
  try {
    for (const [subject, ofSubject] of bySubject(differences)) {
      const was = before.subjects[subject];
      const is = after.subjects[subject];
      if (was === undefined || is === undefined) continue;
      const tid = tasks.get(subject);
      const descriptor = descriptors.get(subject);
      const each = (work: (difference: Difference) => boolean): void => {
        for (const difference of ofSubject) done(difference, () => work(difference));
      };
      if (tid !== undefined) each((difference) => repairTask(tid, difference));
      else if (subject === "ipc") each((difference) => repairIpc(tree, difference));
      else if (descriptor !== undefined)
        duplicates.use(descriptor, (fd) =>
          each((difference) => repairDescriptor(fd, difference, was, is, repairs)),
        );
    }
  } finally {
    duplicates.close();
  }
  return repairs;
}

export function keyOf({ subject, name }: Difference): string {
  return `${subject}: ${name}`;
}

/** Of each subject SO_BUF_LOCK last, since setting a buffer's size locks it. */
function bySubject(differences: Difference[]): Map<string, Difference[]> {
  const isLast = ({ name }: Difference): number => Number(name === "SO_BUF_LOCK");
  const subjects = Map.groupBy(differences, ({ subject }) => subject);
  for (const ofSubject of subjects.values()) ofSubject.sort((a, b) => isLast(a) - isLast(b));
  return subjects;
}

/** Resources of prlimit(2) by their names in /proc/PID/limits. */
const RESOURCES: Record<string, number> = {
  "limit Max cpu time": 0,
  "limit Max file size": 1,
  "limit Max data size": 2,
  "limit Max stack size": 3,
  "limit Max core file size": 4,
  "limit Max resident set": 5,
  "limit Max processes": 6,
  "limit Max open files": 7,
  "limit Max locked memory": 8,
  "limit Max address space": 9,
  "limit Max file locks": 10,
  "limit Max pending signals": 11,
  "limit Max msgqueue size": 12,
  "limit Max nice priority": 13,
  "limit Max realtime priority": 14,
  "limit Max realtime timeout": 15,
};
const UNLIMITED = 2n ** 64n - 1n;

/** Files of /proc/PID that take the value they show. */
const WRITABLE: Record<string, string> = {
  "timer slack": "timerslack_ns",
  oom_score_adj: "oom_score_adj",
};

/** False: there is no way to set this from outside. */
function repairTask(tid: number, { name, before }: Difference): boolean {
  if (before === null) return false;
  const file = WRITABLE[name];
  const resource = RESOURCES[name];
  if (file !== undefined) writeFileSync(`/proc/${tid}/${file}`, before);
  else if (resource !== undefined) {
    const [soft = "", hard = ""] = before.split(" ");
    procs.setResourceLimit(tid, resource, limitValue(soft), limitValue(hard));
  } else if (name === "CPU affinity") {
    if (!/^[0-9a-f]+$/.test(before)) return false;
    procs.setAffinity(tid, before);
  } else if (name === "I/O priority") procs.setIoPriority(tid, Number(before));
  else if (name === "scheduling") {
    const attributes = schedulingOf(before);
    if (attributes === null) return false;
    procs.setSchedulingAttributes(tid, attributes);
  } else if (name === "coredump_filter") writeFileSync(`/proc/${tid}/coredump_filter`, `0x${before}`);
  else if (name === "autogroup")
    writeFileSync(`/proc/${tid}/autogroup`, / nice (-?\d+)$/.exec(before)?.[1] ?? "0");
  else return false;
  return true;
}

/** include/uapi/linux/shm.h: removed, and still attached */
const SHM_DEST = 0o1000;

/** eventfd(2). CRIU 4.2 keeps 32 bits of what was counted. */
function addToCount(fd: number, missing: bigint): boolean {
  if (missing <= 0n) return false;
  const count = Buffer.alloc(8);
  count.writeBigUInt64LE(missing);
  writeSync(fd, count);
  return true;
}

/** A segment that was removed while somebody had it attached is restored as one that stays. */
function repairIpc(tree: Tree, { name, before, after }: Difference): boolean {
  const root = tree.processes[0];
  const id = / shmid=(\d+) /.exec(before ?? "")?.[1];
  if (!name.startsWith("shm ") || id === undefined || root === undefined) return false;
  const isAttached = / nattch=[1-9]/.test(after ?? "");
  if (!isRemoved(before) || isRemoved(after) || !isAttached) return false;
  namespaces.inIpcNamespaceOf(root.pid, () => ipc.removeSharedMemory(Number(id)));
  return true;
}

function isRemoved(segment: string | null): boolean {
  const permissions = / perms=([0-7]+) /.exec(segment ?? "")?.[1] ?? "0";
  return (Number.parseInt(permissions, 8) & SHM_DEST) !== 0;
}

function limitValue(text: string): bigint {
  return text === "unlimited" ? UNLIMITED : BigInt(text);
}

function repairDescriptor(
  fd: number,
  difference: Difference,
  was: Facts,
  is: Facts,
  repairs: Repairs,
): boolean {
  const { subject, name, before } = difference;
  const timer = timerState(was);
  const restored = timerState(is);
  if (timer !== null && restored !== null) {
    if (repairs.rearmed.has(subject)) return false;
    rearmTimer(fd, timer, restored);
    repairs.rearmed.add(subject);
    return true;
  }
  const option = socketOption(name);
  if (option !== undefined) {
    if (option.readOnly) return false;
    if (name === "SO_SNDBUF" || name === "SO_RCVBUF") {
      const force = name === "SO_SNDBUF" ? sock.SO_SNDBUFFORCE : sock.SO_RCVBUFFORCE;
      // the kernel doubles what it is given
      sock.setsockoptInt(fd, sock.SOL_SOCKET, force, Math.floor(Number(before ?? 0) / 2));
      sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_BUF_LOCK, Number(was.SO_BUF_LOCK ?? 0));
      return true;
    }
    sock.setsockoptBuffer(fd, option.level, option.option, optionValue(option, before));
    if (INDEPENDENT.has(name)) readOption(fd, option, is);
    return true;
  }
  if (before === null) return false;
  if (name.startsWith("multicast ")) return joinGroup(fd, name, before);
  if (name === "pipe size") return descriptor.tryFcntl(fd, descriptor.F_SETPIPE_SZ, Number(before)) >= 0;
  if (name === "write hint") {
    descriptor.setWriteHint(fd, Number(before));
    return true;
  }
  if (name === "exclusive") return descriptor.tryIoctlInt(fd, descriptor.TIOCEXCL) >= 0;
  if (name === "eventfd-count")
    return addToCount(fd, BigInt(`0x${before}`) - BigInt(`0x${difference.after}`));
  if (name === "seals") return descriptor.tryFcntl(fd, descriptor.F_ADD_SEALS, Number(before)) >= 0;
  return false;
}
