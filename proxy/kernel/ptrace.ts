/**
 * ptrace(2) of x86-64: one thread of another process, seized by this thread of ours, which alone may go on with it. A call of ours never
 * waits for the other thread, but for one that executes a program to be seized.
 */
import { constants } from "node:os";
import { addressOf, check, errno, failure, libc } from "./libc.ts";

const SYS_PTRACE = 101;
const SYS_WAIT4 = 61;
const SYS_WAITID = 247;

const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
const PTRACE_CONT = 7;
const PTRACE_DETACH = 17;
const PTRACE_SYSCALL = 24;
const PTRACE_SETOPTIONS = 0x4200;
const PTRACE_GETEVENTMSG = 0x4201;
const PTRACE_SEIZE = 0x4206;
const PTRACE_INTERRUPT = 0x4207;
const PTRACE_GETSIGMASK = 0x420a;
const PTRACE_SETSIGMASK = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION = 0x420f;
const PTRACE_GET_SYSCALL_INFO = 0x420e;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211;
const PTRACE_O_TRACESYSGOOD = 1;
const PTRACE_O_TRACECLONE = 1 << 3;
/** its seccomp filters do not count while we have it; needs CAP_SYS_ADMIN, and none of our own */
const PTRACE_O_SUSPEND_SECCOMP = 1 << 21;
const PTRACE_EVENT_CLONE = 3;
const PTRACE_EVENT_STOP = 128;
const SIGTRAP = 5;
const SYSCALL_STOP = SIGTRAP | 0x80;
const WNOHANG = 1;
const WEXITED = 4;
const WNOWAIT = 0x01000000;
const P_PID = 1;
/** CLD_EXITED, CLD_KILLED and this: it has ended; what is above has stopped */
const CLD_DUMPED = 3;
const __WALL = 0x40000000;

/** struct user_regs_struct (arch/x86/include/asm/user_64.h): 27 words */
const REGISTERS_BYTES = 27 * 8;
/** struct ptrace_sud_config: mode first */
const DISPATCH_BYTES = 32;
/** struct ptrace_rseq_configuration: rseq_abi_pointer first */
const RSEQ_BYTES = 24;
const SIGNAL_SET_BYTES = 8;
/** struct ptrace_syscall_info, as far as `entry`: op, arch, instruction_pointer, stack_pointer, nr, six arguments */
const CALL_BYTES = 80;
const PTRACE_SYSCALL_INFO_ENTRY = 1;
/** linux/audit.h: calls by the table of 64-bit programs; `int $0x80` is of another */
const AUDIT_ARCH_X86_64 = 0xc000003e;

/** Words of the registers, by their place in `struct user_regs_struct`. */
export const REGISTER = { r10: 7, rax: 10, rdx: 12, rsi: 13, rdi: 14, origRax: 15, rip: 16, cs: 17 } as const;

/** Whether registers of this machine are understood here. */
export const isSupported = process.arch === "x64";

/** What a thread was stopped by. `signal`: it was about to have it. `clone`: it has made one ({@link eventMessage}) */
export type Stop =
  | { by: "interrupt" | "system-call" | "clone" }
  | { by: "signal" | "group-stop"; signal: number };

/** @throws HoldfastError EPERM: somebody else has it already, or we may not; ESRCH */
export function seize(tid: number): void {
  trace("PTRACE_SEIZE", PTRACE_SEIZE, tid, 0, 0);
}

/**
 * Of one that stands still, and makes no call of its own until it is let go: threads that it makes are seized, too, and stop before
 * they do anything; its filters are not asked.
 * @throws HoldfastError EPERM: we may not
 */
export function takeOver(tid: number): void {
  const options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_SUSPEND_SECCOMP;
  trace("PTRACE_SETOPTIONS", PTRACE_SETOPTIONS, tid, 0, options);
}

/** It stops soon, wherever it is. @throws HoldfastError ESRCH */
export function interrupt(tid: number): void {
  if (libc().syscall(SYS_PTRACE, PTRACE_INTERRUPT, tid, 0, 0) === 0) return;
  const code = errno();
  // of one that is about to end (`lock_task_sighand` in kernel/ptrace.c)
  throw failure("PTRACE_INTERRUPT", code === constants.errno.EIO ? constants.errno.ESRCH : code);
}

/** To its next system call, or the end of that. @param signal that it is given; 0: none */
export function goToSystemCall(tid: number, signal = 0): void {
  trace("PTRACE_SYSCALL", PTRACE_SYSCALL, tid, 0, signal);
}

/** @param signal that it is given; 0: none */
export function goOn(tid: number, signal = 0): void {
  trace("PTRACE_CONT", PTRACE_CONT, tid, 0, signal);
}

/** Of one that stands still. */
export function detach(tid: number): void {
  trace("PTRACE_DETACH", PTRACE_DETACH, tid, 0, 0);
}

const status = Buffer.alloc(4);
const information = Buffer.alloc(128);

/** null: it has not stopped yet @throws HoldfastError ESRCH: it has ended */
export function stopped(tid: number): Stop | null {
  const found = libc().syscall(SYS_WAIT4, tid, addressOf(status), WNOHANG | __WALL, 0);
  if (found === 0) return null;
  const word = status.readUInt32LE(0);
  if (found < 0 || (word & 0xff) !== 0x7f) throw failure(`wait4(${tid})`, constants.errno.ESRCH);
  const signal = (word >> 8) & 0xff;
  if (signal === SYSCALL_STOP) return { by: "system-call" };
  if (word >> 16 === PTRACE_EVENT_CLONE) return { by: "clone" };
  if (word >> 16 !== PTRACE_EVENT_STOP) return { by: "signal", signal };
  return signal === SIGTRAP ? { by: "interrupt" } : { by: "group-stop", signal };
}

/**
 * Hears that it has ended, which who traces it has to; what has stopped under that number by now is another thread, and stays unheard: the one
 * that executed a program has that of the first (`de_thread` in fs/exec.c).
 * @returns there is nothing more to hear of it
 */
export function heardEnd(tid: number): boolean {
  const options = WNOHANG | WEXITED | WNOWAIT | __WALL;
  if (libc().syscall5(SYS_WAITID, P_PID, tid, addressOf(information), options, 0) < 0) return true;
  // siginfo_t: si_signo, si_errno, si_code
  if (information.readInt32LE(0) === 0) return false;
  if (information.readInt32LE(8) <= CLD_DUMPED)
    libc().syscall(SYS_WAIT4, tid, addressOf(status), WNOHANG | __WALL, 0);
  return true;
}

export function registers(tid: number): Buffer {
  const bytes = Buffer.alloc(REGISTERS_BYTES);
  trace("PTRACE_GETREGS", PTRACE_GETREGS, tid, 0, addressOf(bytes));
  return bytes;
}

export function setRegisters(tid: number, bytes: Buffer): void {
  trace("PTRACE_SETREGS", PTRACE_SETREGS, tid, 0, addressOf(bytes));
}

/** A system call, and the address behind the instruction that makes it. */
export interface EnteredCall {
  number: bigint;
  args: bigint[];
  behind: bigint;
}

/** The call that it has stopped at the beginning of. null: it has not, or that is none of a 64-bit program (Linux 5.3) */
export function enteredCall(tid: number): EnteredCall | null {
  const bytes = Buffer.alloc(CALL_BYTES);
  trace("PTRACE_GET_SYSCALL_INFO", PTRACE_GET_SYSCALL_INFO, tid, bytes.length, addressOf(bytes));
  if (bytes.readUInt8(0) !== PTRACE_SYSCALL_INFO_ENTRY || bytes.readUInt32LE(4) !== AUDIT_ARCH_X86_64)
    return null;
  const [behind = 0n, , number = 0n, ...args] = Array.from({ length: 9 }, (_, word) =>
    bytes.readBigUInt64LE(8 + word * 8),
  );
  return { number, args, behind };
}

/** Signals that it has blocked; where it waits with others blocked for so long, those it has blocked otherwise. */
export function signalMask(tid: number): Buffer {
  const bytes = Buffer.alloc(SIGNAL_SET_BYTES);
  trace("PTRACE_GETSIGMASK", PTRACE_GETSIGMASK, tid, bytes.length, addressOf(bytes));
  return bytes;
}

export function setSignalMask(tid: number, bytes: Buffer): void {
  trace("PTRACE_SETSIGMASK", PTRACE_SETSIGMASK, tid, bytes.length, addressOf(bytes));
}

/** The thread that it has made. */
export function eventMessage(tid: number): number {
  const bytes = Buffer.alloc(8);
  trace("PTRACE_GETEVENTMSG", PTRACE_GETEVENTMSG, tid, 0, addressOf(bytes));
  return Number(bytes.readBigUInt64LE(0));
}

/** Where its `struct rseq` is (linux/rseq.h). 0: it has none; null: this kernel does not say (Linux 5.13) */
export function restartableSequences(tid: number): bigint | null {
  const bytes = Buffer.alloc(RSEQ_BYTES);
  const code = [SYS_PTRACE, PTRACE_GET_RSEQ_CONFIGURATION, tid, bytes.length] as const;
  return libc().syscall(...code, addressOf(bytes)) < 0 ? null : bytes.readBigUInt64LE(0);
}

/** Its system calls go to a handler of its own (Documentation/admin-guide/syscall-user-dispatch.rst). */
export function dispatchesItself(tid: number): boolean {
  const bytes = Buffer.alloc(DISPATCH_BYTES);
  const code = [SYS_PTRACE, PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, bytes.length] as const;
  // a kernel before 6.4 does not say
  if (libc().syscall(...code, addressOf(bytes)) < 0) return true;
  return bytes.readBigUInt64LE(0) !== 0n;
}

function trace(call: string, request: number, tid: number, address: number, data: number | bigint): void {
  check(libc().syscall(SYS_PTRACE, request, tid, address, data), call);
}
