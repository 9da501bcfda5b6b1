/** What another process has, seen and set from outside: pidfd_open(2), pidfd_getfd(2), kcmp(2), scheduling, limits. */
import { constants } from "node:os";
import { addressOf, check, errno, libc } from "./libc.ts";

const SYS_TGKILL = process.arch === "arm64" ? 131 : 234;
/** The same on every architecture that uses the generic table, and on x86-64. */
const SYS_PIDFD_SEND_SIGNAL = 424;
const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;
export const SYS_KCMP = process.arch === "arm64" ? 272 : 312;
const SYS_IOPRIO_SET = process.arch === "arm64" ? 30 : 251;
const SYS_IOPRIO_GET = process.arch === "arm64" ? 31 : 252;
const SYS_SCHED_SETATTR = process.arch === "arm64" ? 274 : 314;
const SYS_SCHED_GETATTR = process.arch === "arm64" ? 275 : 315;
/** linux/pidfd.h: O_EXCL */
const PIDFD_THREAD = 0o200;
const IOPRIO_WHO_PROCESS = 1;
/** struct sched_attr, SCHED_ATTR_SIZE_VER1 (include/uapi/linux/sched/types.h) */
const SCHED_ATTR_BYTES = 56;
/** cpumask of 8,192 CPUs: as large as a kernel is built for */
const CPUSET_BYTES = 1024;

/** A descriptor of the process, close-on-exec; readable once it has ended. */
export function pidfdOpen(pid: number): number {
  return check(libc().syscall(SYS_PIDFD_OPEN, pid, 0, 0, 0), `pidfd_open(${pid})`);
}

/** Of one thread, with the descriptors that it has. @throws HoldfastError EINVAL: before Linux 6.9 */
export function pidfdOpenThread(tid: number): number {
  return check(libc().syscall(SYS_PIDFD_OPEN, tid, PIDFD_THREAD, 0, 0), `pidfd_open(thread ${tid})`);
}

/** Our own, close-on-exec duplicate of another process's descriptor (needs PTRACE_MODE_ATTACH on it). */
export function pidfdGetfd(pidfd: number, fd: number): number {
  return check(libc().syscall(SYS_PIDFD_GETFD, pidfd, fd, 0, 0), `pidfd_getfd(${fd})`);
}

export function pidfdSendSignal(pidfd: number, signal: number): void {
  check(libc().syscall(SYS_PIDFD_SEND_SIGNAL, pidfd, signal, 0, 0), `pidfd_send_signal(${signal})`);
}

/** tgkill(2). False: it has ended */
export function signalThread(pid: number, tid: number, signal: number): boolean {
  const result = libc().syscall(SYS_TGKILL, pid, tid, signal, 0);
  if (result < 0 && errno() === constants.errno.ESRCH) return false;
  check(result, `tgkill(${signal})`);
  return true;
}

/** kcmp(2): KCMP_FILE compares two descriptors; the others two tasks' tables, and take no index. */
export const KCMP_FILE = 0;
export const KCMP_VM = 1;
export const KCMP_FILES = 2;
export const KCMP_FS = 3;
export const KCMP_SIGHAND = 4;
export const KCMP_IO = 5;
export const KCMP_SYSVSEM = 6;

/**
 * kcmp(2): 0 when both are the same object of the kernel, 1 or 2 (less, greater) in an order that is fixed until the next
 * boot; -errno where one of them is gone. Needs PTRACE_MODE_READ_REALCREDS on both.
 */
export function kcmp(one: number, other: number, type: number, index1 = 0, index2 = 0): number {
  const order = libc().syscall5(SYS_KCMP, one, other, type, index1, index2);
  return order < 0 ? -errno() : order;
}

/** CPUs a thread may run on, as hexadecimal text, the highest first; null: gone. */
export function getAffinity(tid: number): string | null {
  const mask = Buffer.alloc(CPUSET_BYTES);
  if (libc().sched_getaffinity(tid, mask.length, mask) < 0) return null;
  return BigInt(`0x${mask.reverse().toString("hex")}`).toString(16);
}

/** @param mask as {@link getAffinity} gives it; CPUs that this machine lacks are left out by the kernel */
export function setAffinity(tid: number, mask: string): void {
  const bytes = Buffer.from(mask.padStart(CPUSET_BYTES * 2, "0"), "hex").reverse();
  check(libc().sched_setaffinity(tid, bytes.length, bytes), `sched_setaffinity(${tid}, ${mask})`);
}

/** ioprio_get(2) of one thread, class << 13 | level; null: gone */
export function getIoPriority(tid: number): number | null {
  const priority = libc().syscall(SYS_IOPRIO_GET, IOPRIO_WHO_PROCESS, tid, 0, 0);
  return priority < 0 ? null : priority;
}

export function setIoPriority(tid: number, priority: number): void {
  check(
    libc().syscall(SYS_IOPRIO_SET, IOPRIO_WHO_PROCESS, tid, priority, 0),
    `ioprio_set(${tid}, ${priority})`,
  );
}

/** struct sched_attr (include/uapi/linux/sched/types.h); 64-bit fields in decimal */
export interface SchedulingAttributes {
  policy: number;
  flags: string;
  nice: number;
  priority: number;
  /** nanoseconds; of a fair policy: its time slice, 0: the machine's usual one */
  runtime: string;
  deadline: string;
  period: string;
  utilMin: number;
  utilMax: number;
}

/** sched_getattr(2); null: gone */
export function getSchedulingAttributes(tid: number): SchedulingAttributes | null {
  const bytes = Buffer.alloc(SCHED_ATTR_BYTES);
  if (libc().syscall(SYS_SCHED_GETATTR, tid, addressOf(bytes), bytes.length, 0) < 0) return null;
  return {
    policy: bytes.readUInt32LE(4),
    flags: String(bytes.readBigUInt64LE(8)),
    nice: bytes.readInt32LE(16),
    priority: bytes.readUInt32LE(20),
    runtime: String(bytes.readBigUInt64LE(24)),
    deadline: String(bytes.readBigUInt64LE(32)),
    period: String(bytes.readBigUInt64LE(40)),
    utilMin: bytes.readUInt32LE(48),
    utilMax: bytes.readUInt32LE(52),
  };
}

/** sched_setattr(2) */
export function setSchedulingAttributes(tid: number, attributes: SchedulingAttributes): void {
  const bytes = Buffer.alloc(SCHED_ATTR_BYTES);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(attributes.policy, 4);
  bytes.writeBigUInt64LE(BigInt(attributes.flags), 8);
  bytes.writeInt32LE(attributes.nice, 16);
  bytes.writeUInt32LE(attributes.priority, 20);
  bytes.writeBigUInt64LE(BigInt(attributes.runtime), 24);
  bytes.writeBigUInt64LE(BigInt(attributes.deadline), 32);
  bytes.writeBigUInt64LE(BigInt(attributes.period), 40);
  bytes.writeUInt32LE(attributes.utilMin, 48);
  bytes.writeUInt32LE(attributes.utilMax, 52);
  check(libc().syscall(SYS_SCHED_SETATTR, tid, addressOf(bytes), 0, 0), `sched_setattr(${tid})`);
}

/** prlimit(2) of another process; RLIM_INFINITY is 2^64 - 1. */
export function setResourceLimit(pid: number, resource: number, soft: bigint, hard: bigint): void {
  const limits = Buffer.alloc(16);
  limits.writeBigUInt64LE(soft, 0);
  limits.writeBigUInt64LE(hard, 8);
  check(libc().prlimit(pid, resource, limits, null), `prlimit(${pid}, ${resource})`);
}
