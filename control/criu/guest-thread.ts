/**
 * A thread of ours in another process, for a moment: what a process alone can ask of the kernel for its own memory.
 *
 * One of its threads, the host, is stopped by ptrace(2) and makes one call, clone(2); the new thread, the guest, makes all others, in a
 * table of descriptors of its own, so that nobody there has, inherits or sees what it opens. The guest ends first, then the host goes on as
 * if nothing had been. It stands still for less than a millisecond on a node that has nothing else to do; other threads go on.
 *
 *   seize, interrupt ─▶ stopped ─▶ block its signals ─▶ clone ─▶ own registers ─▶ … the guest's calls, its end … ─▶ interrupt ─▶ detach
 *
 * The host's last stop is one where the kernel looks whether a call that was interrupted has to be begun again (ptrace(2), signal(7)), and
 * by then its registers are its own: so one that waits in nanosleep(2), futex(2) or poll(2) waits for the rest of its time. Calls that are
 * never begun again, such as epoll_wait(2), end with EINTR, as after SIGCONT; a thread that is in one is taken last of all.
 *
 * A group stop (SIGSTOP) may come at any time: the signal is passed on, stops of the group are passed over, and when the host is let go
 * the kernel stops it again (`__ptrace_unlink`). SIGKILL and execve(2) by others end both threads. What stands still because its
 * control group is frozen is given back when it goes on; whoever asked has an error by then. Should this agent end meanwhile, the kernel lets
 * both go as they are: the host has what is its own from clone(2) on, and between its calls the guest's next one is its last.
 */

import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { constants } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { failure } from "#proxy/kernel/libc.ts";
import * as ptrace from "#proxy/kernel/ptrace.ts";
import { isGone } from "./process-memory.ts";

export interface GuestThread {
  /** as this agent sees it */
  tid: number;
  /** Makes a system call there: its result, or -errno. */
  call(number: number, ...args: [number?, number?, number?]): Promise<number>;
}

/** x86-64 */
const SYS_CLONE = 56;
const SYS_EXIT = 60;
/** linux/sched.h: CLONE_VM, FS, FILES, SIGHAND, THREAD */
const AS_THREAD = 0x10f00;
/** x86-64: begun again by the kernel where no handler ran, with the time that is left */
const BEGUN_AGAIN = new Set([7, 23, 34, 35, 61, 130, 202, 230, 247, 270, 271]);
/** … by restart_syscall(2), which a filter of the program's own may not let pass: poll, nanosleep; and see {@link isByRestart} */
const BY_RESTART = new Set([7, 35]);
const SYS_FUTEX = 202;
const SYS_CLOCK_NANOSLEEP = 230;
/** ERESTART_RESTARTBLOCK of linux/errno.h: what such a call has in its result then */
const TO_RESTART = -516n;
/** who seizes a thread waits until no other of its process executes a program (`cred_guard_mutex`), which a slow file system may make long */
const EXECUTES = new Set([59, 322]);
/** PF_IO_WORKER, PF_USER_WORKER of linux/sched.h: threads of the kernel's, which stop and never go back to the program */
const OF_KERNEL = 0x4010;
const SYSCALL_INSTRUCTION = Buffer.from([0x0f, 0x05]);
const NO_CALL = -1n;
const ALL_SIGNALS = Buffer.alloc(8, 0xff);
const SIGSTOP = 19;
/** looked for again and again, before others have a turn */
const SPIN_MS = 0.3;
const AGAIN_MS = 1;
const AGAIN_MS_MAX = 50;
const REAP_MS = 1_000;
const LOOKS_MAX = 200;
/** for all of it, and as long again to give it back */
const STOP_MS_MAX = 1_000;
const TRIES_MAX = 3;
/** __USER_CS (arch/x86/include/asm/segment.h): of 64-bit code */
const USER_CS = 0x33n;
const ARGUMENTS = [ptrace.REGISTER.rdi, ptrace.REGISTER.rsi, ptrace.REGISTER.rdx];

/**
 * Processes that have not got everything back. One guest at a time: a thread that executes a program has the first one's number from then on, so of
 * two that wait for threads of one process either could take the other's for its own.
 */
const lending = new Set<number>();

/** thrown by ours and caught by ours */
const LATE = new Error("it has not stopped in time");
const UNEXPECTED = new Error(
  "a call there was another than was asked for, or ended in another way than calls do",
);
/** another try may have it */
const AGAIN = Symbol("again");

/**
 * @param work what it throws, this throws; a call of the guest's that does not come to its end ends it, and this has null
 * @returns null: no thread can be had. Another guest is there, or each stands still, is somebody else's, has ended, or is of a kind that is not known here
 * @throws HoldfastError FREEZER: the process was frozen meanwhile, and is given back when it goes on
 */
export async function withGuestThread<T>(
  pid: number,
  work: (guest: GuestThread) => Promise<T>,
): Promise<T | null> {
  if (!ptrace.isSupported || lending.has(pid)) return null;
  try {
    // libuv takes what our own children have to say
    if (parentOf(pid) === process.pid || isFirst(pid)) return null;
    const tried = new Set<number>();
    for (let tries = 0; tries < TRIES_MAX; tries++) {
      const at = systemCallOf(pid);
      const tid = chosenThread(pid, tried);
      if (at === null || tid === null || !isSeized(tid)) return null;
      lending.add(pid);
      tried.add(tid);
      const host = new Host(pid, tid, at);
      const outcome = await host.lend(work);
      if (outcome !== AGAIN) return outcome;
      // who executes a program waits until its dead are heard of, and who seizes another for that
      if (host.hasDead) return null;
      await host.done;
    }
    return null;
  } catch (error) {
    if (isGone(error)) return null;
    throw error;
  }
}

/** False: somebody else has it, or this agent may not. */
function isSeized(tid: number): boolean {
  try {
    ptrace.seize(tid);
    return true;
  } catch (error) {
    if (error instanceof HoldfastError && error.source === "kernel") return false;
    throw error;
  }
}

/** One that is seized. It is stopped or it runs, and only one that is stopped can be told anything but to stop. */
class Traced {
  readonly tid: number;
  isStopped = false;
  /** a thread that it has created, and is traced, too */
  made: number | null = null;
  /** when it is no longer waited for, of `performance.now()` */
  until: number;

  constructor(tid: number, until: number) {
    this.tid = tid;
    this.until = until;
  }

  /**
   * Stops where nothing is under way. Which signals it has on the way there is its own affair, but for what our own calls came to.
   * @returns whether it is not stopped for another reason, too (SIGSTOP)
   */
  async interrupted(): Promise<boolean> {
    let signal = 0;
    for (;;) {
      // each time: any stop forgets an interrupt that has not come about (`ptrace_stop`)
      ptrace.interrupt(this.tid);
      if (this.isStopped) this.#go(ptrace.goOn, signal);
      const stop = await this.#nextStop();
      if (stop.by === "interrupt") return true;
      if (stop.by === "group-stop") return false;
      if (stop.by === "system-call") this.#leaveOut(); // late, and who knows whose
      signal = stop.by === "signal" ? stop.signal : 0;
    }
  }

  /** @param base registers that the call does not need are these */
  async call(
    base: Buffer,
    at: bigint,
    number: number,
    args: readonly (number | undefined)[],
  ): Promise<number> {
    await this.#enter(base, at, number, args);
    await this.#systemCallStop();
    return Number(ptrace.registers(this.tid).readBigInt64LE(ptrace.REGISTER.rax * 8));
  }

  /**
   * To the beginning of a call: of this one, or of none. Its filters are not asked, and the instruction is in memory that it can change
   * until then.
   */
  async #enter(
    base: Buffer,
    at: bigint,
    number: number,
    args: readonly (number | undefined)[],
  ): Promise<void> {
    ptrace.setRegisters(this.tid, registersOfCall(base, at, number, args));
    await this.#systemCallStop();
    const found = ptrace.enteredCall(this.tid);
    const isOurs =
      found?.number === BigInt(number) &&
      found.behind === at + BigInt(SYSCALL_INSTRUCTION.length) &&
      ARGUMENTS.every((_, index) => found.args[index] === BigInt.asUintN(64, BigInt(args[index] ?? 0)));
    if (isOurs) return;
    this.#leaveOut();
    throw UNEXPECTED;
  }

  /** Of the call that it has stopped at the beginning of becomes none; at its end this changes nothing any more. */
  #leaveOut(): void {
    const registers = ptrace.registers(this.tid);
    registers.writeBigInt64LE(NO_CALL, ptrace.REGISTER.origRax * 8);
    ptrace.setRegisters(this.tid, registers);
  }

  /** Its beginning, or its end. */
  async #systemCallStop(): Promise<void> {
    for (let signal = 0; ; ) {
      this.#go(ptrace.goToSystemCall, signal);
      const stop = await this.#nextStop();
      if (stop.by === "system-call") return;
      if (stop.by === "signal" && stop.signal !== SIGSTOP) throw UNEXPECTED;
      signal = stop.by === "signal" ? stop.signal : 0;
    }
  }

  /** Of one that is stopped: whoever lets it go, its next call is its last. */
  setToEnd(base: Buffer, at: bigint): void {
    ptrace.setRegisters(this.tid, registersOfCall(base, at, SYS_EXIT, [0]));
  }

  /** @throws HoldfastError ESRCH, when it has ended */
  async end(base: Buffer, at: bigint): Promise<void> {
    await this.#enter(base, at, SYS_EXIT, [0]);
    for (;;) {
      this.#go(ptrace.goOn, 0);
      await this.#nextStop();
    }
  }

  detach(): void {
    ptrace.detach(this.tid);
    this.isStopped = false;
  }

  #go(go: (tid: number, signal: number) => void, signal: number): void {
    go(this.tid, signal);
    this.isStopped = false;
  }

  async #nextStop(): Promise<ptrace.Stop> {
    const spunMs = performance.now() + SPIN_MS;
    for (let againMs = AGAIN_MS; ; ) {
      const stop = ptrace.stopped(this.tid);
      if (stop !== null) {
        this.isStopped = true;
        if (stop.by === "clone") this.made = ptrace.eventMessage(this.tid);
        return stop;
      }
      const now = performance.now();
      if (now > this.until) throw LATE;
      if (now < spunMs) continue;
      // of a first thread it is said only when all others are gone, too; one that executes a program waits for who traces them (`de_thread`)
      if (isDead(this.tid)) throw failure(`thread ${this.tid}`, constants.errno.ESRCH);
      await sleep(againMs);
      againMs = Math.min(againMs * 2, AGAIN_MS_MAX);
    }
  }
}

class Host {
  readonly #pid: number;
  readonly #at: bigint;
  readonly #thread: Traced;
  /** its own, where they are changed */
  #own: { registers: Buffer; mask: Buffer } | null = null;
  #hasBegunClone = false;
  #guest: Traced | null = null;
  #done: Promise<unknown> = Promise.resolve();
  readonly #reaping: Promise<void>[] = [];

  /** @param at of a system call's instruction in its memory */
  constructor(pid: number, tid: number, at: bigint) {
    this.#pid = pid;
    this.#at = at;
    this.#thread = new Traced(tid, performance.now() + STOP_MS_MAX);
  }

  /** One of its process has ended that has to be heard of. */
  get hasDead(): boolean {
    return this.#reaping.length > 0;
  }

  /** Nothing is lent any more. */
  get done(): Promise<unknown> {
    return this.#done;
  }

  async lend<T>(work: (guest: GuestThread) => Promise<T>): Promise<T | typeof AGAIN | null> {
    let outcome: T | typeof AGAIN | null = null;
    try {
      outcome = await this.#lend(work);
    } catch (error) {
      if (error !== LATE && error !== UNEXPECTED && !isGone(error)) throw error;
    } finally {
      await this.#giveBack();
    }
    return outcome;
  }

  async #lend<T>(work: (guest: GuestThread) => Promise<T>): Promise<T | typeof AGAIN | null> {
    const { tid, until } = this.#thread;
    if (!(await this.#thread.interrupted()) || ptrace.dispatchesItself(tid)) return null;
    // a number may have become another process's before it was seized
    if (threadAt(`/proc/${this.#pid}/task/${tid}`) === null) return null;
    const registers = ptrace.registers(tid);
    if (registers.readBigUInt64LE(ptrace.REGISTER.cs * 8) !== USER_CS) return null;
    // it may have executed another program since this was looked for
    if (!readMemory(this.#pid, this.#at, SYSCALL_INSTRUCTION.length)?.equals(SYSCALL_INSTRUCTION))
      return AGAIN;
    if (isInRestartableSequence(this.#pid, tid, registers)) return AGAIN;
    const { rax, origRax } = ptrace.REGISTER;
    if (
      registers.readBigInt64LE(origRax * 8) >= 0n &&
      registers.readBigInt64LE(rax * 8) === TO_RESTART &&
      hasFilters(this.#pid, tid)
    ) {
      // it has begun such a call since it was looked at; as after a signal, which every program has to expect there
      registers.writeBigInt64LE(BigInt(-constants.errno.EINTR), rax * 8);
      ptrace.setRegisters(tid, registers);
      return AGAIN;
    }
    // not before: what it makes by itself is its own, and its filters hold for what it calls
    ptrace.takeOver(tid);
    this.#own = { registers, mask: ptrace.signalMask(tid) };
    ptrace.setSignalMask(tid, ALL_SIGNALS);
    this.#hasBegunClone = true;
    await this.#thread.call(registers, this.#at, SYS_CLONE, [AS_THREAD, 0]);
    this.#putBack();
    const { made } = this.#thread;
    if (made === null) return AGAIN;
    const guest = new Traced(made, until);
    this.#guest = guest;
    await guest.interrupted();
    const base = ptrace.registers(made);
    guest.setToEnd(base, this.#at);
    const call: GuestThread["call"] = async (number, ...args) => {
      const result = await guest.call(base, this.#at, number, args);
      guest.setToEnd(base, this.#at);
      return result;
    };
    return await work({ tid: made, call });
  }

  /** @throws HoldfastError FREEZER: it does not stop, and is given back when it does */
  async #giveBack(): Promise<void> {
    const back = this.#endGuest().then(
      () => this.#restore(),
      (error: unknown) => this.#restore().then(() => Promise.reject(error)),
    );
    // no other before all has been heard of: who executes a program waits for that, and who seizes it for who executes it
    const isHeard = (): Promise<unknown> => Promise.all(this.#reaping);
    this.#done = Promise.allSettled([back])
      .then(isHeard)
      .then(() => lending.delete(this.#pid));
    const late = sleep(STOP_MS_MAX, LATE, { ref: false });
    if ((await Promise.race([back, late])) !== LATE) return;
    back.catch(() => {});
    throw fail(
      "FREEZER",
      `process ${this.#pid} has neither stopped nor gone on for a second: is its control group frozen by somebody else, or the node overloaded?`,
    );
  }

  async #endGuest(): Promise<void> {
    const { made, until } = this.#thread;
    if (made === null) return;
    this.#guest ??= new Traced(made, until);
    this.#guest.until = Number.POSITIVE_INFINITY;
    try {
      await this.#guest.interrupted();
      await this.#guest.end(ptrace.registers(made), this.#at);
    } catch (error) {
      // whatever it would do now is none of ours: the program has changed the instruction, and ends with it
      if (error === UNEXPECTED) process.kill(this.#pid, "SIGKILL");
      else if (!isGone(error)) throw error;
      this.#reap(made);
    }
  }

  /** What was changed of it is as before. Of one that is stopped. */
  #putBack(): void {
    if (this.#own === null) return;
    const { registers, mask } = this.#own;
    ptrace.setRegisters(this.#thread.tid, registers);
    ptrace.setSignalMask(this.#thread.tid, mask);
    this.#own = null;
  }

  async #restore(): Promise<void> {
    const thread = this.#thread;
    const { tid } = thread;
    thread.until = Number.POSITIVE_INFINITY;
    try {
      // one that was not changed goes on from any stop
      if (!thread.isStopped || this.#hasBegunClone) await thread.interrupted();
      // one that had not come to its call before
      if (this.#guest === null) await this.#endGuest();
      this.#putBack();
      thread.detach();
    } catch (error) {
      if (!isGone(error)) throw error;
      this.#reap(tid);
      if (this.#hasBegunClone && this.#guest === null) this.#reaping.push(this.#hearOfMade());
      if (tid !== this.#pid) await this.#letGo();
    }
  }

  /** A thread that executes another program has its process's number afterwards, and is traced under that. Where it is none of ours this ends at once. */
  async #letGo(): Promise<void> {
    const thread = new Traced(this.#pid, Number.POSITIVE_INFINITY);
    try {
      await thread.interrupted();
      thread.detach();
    } catch (error) {
      if (!isGone(error)) throw error;
      this.#reap(this.#pid);
    }
  }

  /** One that has been killed stays until who traces it has heard of it: in the background, as it may write a core first. */
  #reap(tid: number): void {
    const isFirst = tid === this.#pid;
    const end = endOf(tid, isFirst ? REAP_MS : AGAIN_MS_MAX);
    // nobody waits for a first thread but its parent, and its end is not told before that of all others (`delay_group_leader`)
    if (!isFirst) this.#reaping.push(end);
  }

  /** One that the host has made, and both are killed before it said so. It may still be on its way to its end. */
  async #hearOfMade(): Promise<void> {
    let before: string | null = null;
    for (let looks = 0, againMs = AGAIN_MS; looks < LOOKS_MAX; looks++) {
      const threads = threadsOf(this.#pid);
      const made = threads?.tids.find(
        (tid) => tid !== this.#thread.tid && tid !== this.#pid && isTraced(this.#pid, tid),
      );
      if (made !== undefined) return endOf(made, AGAIN_MS_MAX);
      // a listing is cut short, without an error, where the thread that it has come to goes (`next_tid` in fs/proc/base.c)
      const now = threads?.tids.length === threads?.count ? (threads?.tids.join() ?? null) : null;
      if (now !== null && now === before) return;
      before = now;
      await sleep(againMs, undefined, { ref: false });
      againMs = Math.min(againMs * 2, AGAIN_MS_MAX);
    }
  }
}

async function endOf(tid: number, againMsMax: number): Promise<void> {
  for (let againMs = AGAIN_MS; !ptrace.heardEnd(tid); againMs = Math.min(againMs * 2, againMsMax))
    await sleep(againMs, undefined, { ref: false });
}

/** As they are listed, and how many there are, by the kernel's count. null: this cannot be seen now */
function threadsOf(pid: number): { tids: number[]; count: number } | null {
  try {
    const tids = readdirSync(`/proc/${pid}/task`).map(Number);
    return { tids, count: Number(statusOf(String(pid), "Threads")) };
  } catch (error) {
    return isGone(error) ? { tids: [], count: 0 } : null;
  }
}

/** By this agent. */
function isTraced(pid: number, tid: number): boolean {
  try {
    return statusOf(`${pid}/task/${tid}`, "TracerPid") === String(process.pid);
  } catch {
    return false; // it has gone, or is looked at again
  }
}

/** It has ended, and is there for who wants to hear of it. What cannot be seen now counts as alive, and is looked at again. */
function isDead(tid: number): boolean {
  try {
    const { state } = threadAt(`/proc/${tid}`) ?? { state: "X" };
    return state === "Z" || state === "X";
  } catch {
    return false;
  }
}

function registersOfCall(
  base: Buffer,
  at: bigint,
  number: number,
  args: readonly (number | undefined)[],
): Buffer {
  const { rip, rax, origRax } = ptrace.REGISTER;
  const registers = Buffer.from(base);
  const put = (word: number, value: bigint): number => registers.writeBigInt64LE(value, word * 8);
  put(rip, at);
  put(rax, BigInt(number));
  put(origRax, NO_CALL);
  for (const [index, word] of ARGUMENTS.entries()) put(word, BigInt(args[index] ?? 0));
  return registers;
}

/**
 * Whether it is in code that the kernel has it leave when it was interrupted (rseq(2)): if it is anywhere else when it goes on for the first
 * time, the kernel takes it that it has left by itself. Of one that is stopped.
 */
function isInRestartableSequence(pid: number, tid: number, registers: Buffer): boolean {
  const area = ptrace.restartableSequences(tid);
  if (area === null) return true; // this kernel does not say
  if (area === 0n) return false;
  // struct rseq: cpu_id_start, cpu_id, rseq_cs
  const current = readMemory(pid, area + 8n, 8)?.readBigUInt64LE(0);
  if (current === undefined) return true;
  if (current === 0n) return false;
  // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip
  const sequence = readMemory(pid, current, 32);
  if (sequence === null) return true;
  const into = registers.readBigUInt64LE(ptrace.REGISTER.rip * 8) - sequence.readBigUInt64LE(8);
  return into >= 0n && into < sequence.readBigUInt64LE(16);
}

/** Whether it is the first process of its PID namespace: such a one takes no SIGSTOP from within, but while it is traced (`sig_ignored`). */
function isFirst(pid: number): boolean {
  return /(^|\s)1$/.test(statusOf(String(pid), "NStgid"));
}

/** Where the kernel's own code in its memory (vdso(7), and no file that is called so) makes a system call. null: it has none */
function systemCallOf(pid: number): bigint | null {
  const [, start, end] =
    /^([0-9a-f]+)-([0-9a-f]+) \S+ 0+ 00:00 0 +\[vdso\]$/m.exec(readFileSync(`/proc/${pid}/maps`, "utf8")) ??
    [];
  if (start === undefined || end === undefined) return null;
  const from = BigInt(`0x${start}`);
  const at = readMemory(pid, from, Number(BigInt(`0x${end}`) - from))?.indexOf(SYSCALL_INSTRUCTION) ?? -1;
  return at < 0 ? null : from + BigInt(at);
}

/** null: it has not all of that */
function readMemory(pid: number, from: bigint, length: number): Buffer | null {
  const bytes = Buffer.alloc(length);
  const memory = openSync(`/proc/${pid}/mem`, "r");
  try {
    return readSync(memory, bytes, 0, length, from) === length ? bytes : null;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EIO") return null;
    throw error;
  } finally {
    closeSync(memory);
  }
}

function parentOf(pid: number): number {
  return Number(statusOf(String(pid), "PPid"));
}

/** A field of /proc/TASK/status. */
function statusOf(task: string, field: string): string {
  return new RegExp(`^${field}:\\s*(.*)$`, "m").exec(readFileSync(`/proc/${task}/status`, "utf8"))?.[1] ?? "";
}

/** One that notices least, of those not tried yet where there are any. null: each may be long in stopping, or in being seized */
function chosenThread(pid: number, tried: ReadonlySet<number>): number | null {
  let best: number | null = null;
  let other: number | null = null;
  let again: number | null = null;
  for (const name of readdirSync(`/proc/${pid}/task`)) {
    const tid = Number(name);
    const thread = threadAt(`/proc/${pid}/task/${name}`);
    if (thread === null) continue;
    const { state, call, args, flags } = thread;
    if (call !== null && EXECUTES.has(call)) return null; // whichever is seized
    if ((state !== "R" && state !== "S") || (flags & OF_KERNEL) !== 0) continue;
    if (call !== null && isByRestart(call, args) && hasFilters(pid, tid)) continue;
    if (tried.has(tid)) again ??= tid;
    else if (call === null || BEGUN_AGAIN.has(call)) best ??= tid;
    else other ??= tid;
  }
  return best ?? other ?? again;
}

/** futex(2) without a limit, and clock_nanosleep(2) until a time (TIMER_ABSTIME), begin again by themselves. */
function isByRestart(call: number, args: readonly string[]): boolean {
  if (call === SYS_FUTEX) return args[3] !== "0x0";
  if (call === SYS_CLOCK_NANOSLEEP) return (Number(args[1]) & 1) === 0;
  return BY_RESTART.has(call);
}

interface Thread {
  state: string;
  flags: number;
  /** the system call that it is in; null: none, or it runs */
  call: number | null;
  args: string[];
}

/** null: it has ended */
function threadAt(folder: string): Thread | null {
  try {
    // state, parent, group, session, terminal, its group, flags; proc_pid_stat(5)
    const [state = "", , , , , , flags] = readFileSync(`${folder}/stat`, "utf8")
      .replace(/^.*\) /s, "")
      .split(" ");
    const [call = "", ...args] = readFileSync(`${folder}/syscall`, "utf8").split(" ");
    return { state, flags: Number(flags), call: call.startsWith("running") ? null : Number(call), args };
  } catch (error) {
    if (isGone(error)) return null;
    throw error;
  }
}

/** Of its own, or of its container's: some do not let restart_syscall(2) pass, and end the process. */
function hasFilters(pid: number, tid: number): boolean {
  return statusOf(`${pid}/task/${tid}`, "Seccomp") !== "0";
}
