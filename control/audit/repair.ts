/**
 * Sets again what a restore left otherwise, where the kernel lets somebody from outside do it. What was set is looked at again
 * by the caller; what cannot be set stays a difference.
 */
import { writeFileSync } from "node:fs";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import * as kernel from "#proxy/tcp/kernel.ts";
import type { Facts, Fingerprint } from "./fingerprint.ts";
import type { Difference } from "./harmless.ts";
import { joinGroup } from "./multicast.ts";
import { optionValue, socketOption } from "./socket-options.ts";
import { schedulingOf, taskNumbers } from "./tasks.ts";
import { timerState } from "./timer-facts.ts";
import { rearmTimer } from "./timer-repair.ts";
import type { Tree } from "./tree.ts";

export interface Repairs {
  /** what was set: `descriptor 12/5: TCP_USER_TIMEOUT` */
  done: string[];
  /** whom it was done to: they are looked at again */
  subjects: Set<string>;
  /** timers that were armed again, which may have run out by the next look */
  rearmed: Set<string>;
  /** what the kernel refused, by {@link keyOf}, with its reason */
  refused: Map<string, string>;
}

/** @param before the fingerprint to come back to */
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
  for (const difference of inOrder(differences)) {
    const { subject } = difference;
    const was = before.subjects[subject];
    const is = after.subjects[subject];
    if (was === undefined || is === undefined) continue;
    try {
      const tid = tasks.get(subject);
      const descriptor = descriptors.get(subject);
      let isDone = false;
      if (tid !== undefined) isDone = repairTask(tid, difference);
      else if (subject === "ipc") isDone = repairIpc(tree, difference);
      else if (descriptor !== undefined)
        isDone = withDescriptor(descriptor.pid, descriptor.fd, (fd) =>
          repairDescriptor(fd, difference, was, is, repairs),
        );
      if (!isDone) continue;
      repairs.done.push(keyOf(difference));
      repairs.subjects.add(subject);
    } catch (error) {
      if (!(error instanceof HoldfastError) && !(error instanceof Error && "code" in error)) throw error;
      repairs.refused.set(keyOf(difference), messageOf(error));
    }
  }
  return repairs;
}

export function keyOf({ subject, name }: Difference): string {
  return `${subject}: ${name}`;
}

/** SO_BUF_LOCK last, since setting a buffer's size locks it. */
function inOrder(differences: Difference[]): Difference[] {
  const isLast = ({ name }: Difference): number => Number(name === "SO_BUF_LOCK");
  return [...differences].sort((a, b) => isLast(a) - isLast(b));
}

function withDescriptor(pid: number, fd: number, work: (fd: number) => boolean): boolean {
  const pidfd = kernel.pidfdOpen(pid);
  try {
    const ours = kernel.pidfdGetfd(pidfd, fd);
    try {
      return work(ours);
    } finally {
      kernel.close(ours);
    }
  } finally {
    kernel.close(pidfd);
  }
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
    kernel.setResourceLimit(tid, resource, limitValue(soft), limitValue(hard));
  } else if (name === "CPU affinity") {
    if (!/^[0-9a-f]+$/.test(before)) return false;
    kernel.setAffinity(tid, before);
  } else if (name === "I/O priority") kernel.setIoPriority(tid, Number(before));
  else if (name === "scheduling") {
    const attributes = schedulingOf(before);
    if (attributes === null) return false;
    kernel.setSchedulingAttributes(tid, attributes);
  } else if (name === "coredump_filter") writeFileSync(`/proc/${tid}/coredump_filter`, `0x${before}`);
  else if (name === "autogroup")
    writeFileSync(`/proc/${tid}/autogroup`, / nice (-?\d+)$/.exec(before)?.[1] ?? "0");
  else return false;
  return true;
}

/** include/uapi/linux/shm.h: removed, and still attached */
const SHM_DEST = 0o1000;

/** A segment that was removed while somebody had it attached is restored as one that stays. */
function repairIpc(tree: Tree, { name, before, after }: Difference): boolean {
  const root = tree.processes[0];
  const id = / shmid=(\d+) /.exec(before ?? "")?.[1];
  if (!name.startsWith("shm ") || id === undefined || root === undefined) return false;
  const isAttached = / nattch=[1-9]/.test(after ?? "");
  if (!isRemoved(before) || isRemoved(after) || !isAttached) return false;
  kernel.inIpcNamespaceOf(root.pid, () => kernel.removeSharedMemory(Number(id)));
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
      const force = name === "SO_SNDBUF" ? kernel.SO_SNDBUFFORCE : kernel.SO_RCVBUFFORCE;
      // the kernel doubles what it is given
      kernel.setsockoptInt(fd, kernel.SOL_SOCKET, force, Math.floor(Number(before ?? 0) / 2));
      kernel.setsockoptInt(fd, kernel.SOL_SOCKET, kernel.SO_BUF_LOCK, Number(was.SO_BUF_LOCK ?? 0));
      return true;
    }
    kernel.setsockoptBuffer(fd, option.level, option.option, optionValue(option, before));
    return true;
  }
  if (before === null) return false;
  if (name.startsWith("multicast ")) return joinGroup(fd, name, before);
  if (name === "pipe size") return kernel.tryFcntl(fd, kernel.F_SETPIPE_SZ, Number(before)) >= 0;
  if (name === "seals") return kernel.tryFcntl(fd, kernel.F_ADD_SEALS, Number(before)) >= 0;
  return false;
}
