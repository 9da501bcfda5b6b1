/**
 * System calls made by a thread of another process, which goes on afterwards as if nothing had been: what a process alone can ask of
 * the kernel for its own memory. It stands still for less than a millisecond; the other threads go on.
 *
 *   seize, interrupt ─▶ stopped ─▶ block its signals ─▶ (registers of a call ─▶ entry ─▶ exit)… ─▶ interrupt ─▶ its own registers ─▶ detach
 *
 * The last stop is one where the kernel looks whether a call that was interrupted has to be begun again (ptrace(2), signal(7)), and by
 * then its registers are its own again: so one that waits in nanosleep(2), futex(2) or poll(2) waits for the rest of its time.
 * Calls that are never begun again, such as epoll_wait(2), end with EINTR, as after SIGCONT; a thread that is in one is taken
 * last of all.
 */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as ptrace from "#proxy/kernel/ptrace.ts";

/** Makes a system call there: its result, or -errno. */
export type BorrowedCall = (number: number, ...args: [number?, number?, number?]) => Promise<number>;

/** x86-64: begun again by the kernel where no handler ran, with the time that is left */
const BEGUN_AGAIN = new Set([7, 23, 34, 35, 61, 130, 202, 230, 247, 270, 271]);
const SYSCALL_INSTRUCTION = Buffer.from([0x0f, 0x05]);
const NO_CALL = -1n;
const ALL_SIGNALS = Buffer.alloc(8, 0xff);
/** looked for again and again, before others have a turn */
const SPIN_MS = 0.3;
const AGAIN_MS = 1;
const STOP_MS_MAX = 1_000;
/** __USER_CS (arch/x86/include/asm/segment.h): of 64-bit code */
const USER_CS = 0x33n;
const ARGUMENTS = [ptrace.REGISTER.rdi, ptrace.REGISTER.rsi, ptrace.REGISTER.rdx];

/** null: it cannot be had. It stands still, is somebody else's, has ended, or is of a kind that is not known here */
export async function borrowThread<T>(
  pid: number,
  work: (call: BorrowedCall) => Promise<T>,
): Promise<T | null> {
  if (!ptrace.isSupported) return null;
  try {
    // libuv takes what our own children have to say
    if (parentOf(pid) === process.pid) return null;
    const at = systemCallOf(pid);
    const tid = chosenThread(pid);
    if (at === null || tid === null || !isSeized(tid)) return null;
    return await new BorrowedThread(pid, tid, at).lend(work);
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

class BorrowedThread {
  readonly #pid: number;
  readonly #tid: number;
  readonly #at: bigint;
  /** which came meanwhile and cannot be blocked */
  readonly #signals: number[] = [];

  /** @param at of a system call's instruction in its memory */
  constructor(pid: number, tid: number, at: bigint) {
    this.#pid = pid;
    this.#tid = tid;
    this.#at = at;
  }

  async lend<T>(work: (call: BorrowedCall) => Promise<T>): Promise<T | null> {
    const tid = this.#tid;
    ptrace.interrupt(tid);
    const stopped = this.#hasStopped();
    const late = sleep(STOP_MS_MAX, "late" as const, { ref: false });
    const isOurs = await Promise.race([stopped, late]);
    if (isOurs === "late") {
      // what keeps it, such as a frozen control group, keeps it from going on, too
      stopped.then(() => ptrace.detach(tid)).catch(() => {});
      return null;
    }
    let own: Buffer | null = null;
    let mask: Buffer | null = null;
    try {
      if (!isOurs || ptrace.dispatchesItself(tid)) return null;
      const registers = ptrace.registers(tid);
      if (registers.readBigUInt64LE(ptrace.REGISTER.cs * 8) !== USER_CS) return null;
      mask = ptrace.signalMask(tid);
      ptrace.setSignalMask(tid, ALL_SIGNALS);
      own = registers;
      return await work((number, ...args) => this.#call(registers, number, args));
    } finally {
      await this.#giveBack(own, mask);
    }
  }

  /** False: it was stopped before. Whatever comes first is let through. */
  async #hasStopped(): Promise<boolean> {
    for (;;) {
      const stop = await this.#nextStop();
      if (stop.by === "interrupt") return true;
      if (stop.by === "group-stop") return false;
      ptrace.goOn(this.#tid, stop.by === "signal" ? stop.signal : 0);
    }
  }

  async #call(own: Buffer, number: number, args: readonly (number | undefined)[]): Promise<number> {
    const { rip, rax, origRax } = ptrace.REGISTER;
    const registers = Buffer.from(own);
    const put = (word: number, value: bigint): number => registers.writeBigInt64LE(value, word * 8);
    put(rip, this.#at);
    put(rax, BigInt(number));
    put(origRax, NO_CALL);
    for (const [index, word] of ARGUMENTS.entries()) put(word, BigInt(args[index] ?? 0));
    ptrace.setRegisters(this.#tid, registers);
    await this.#until("system-call", () => ptrace.goToSystemCall(this.#tid));
    await this.#until("system-call", () => ptrace.goToSystemCall(this.#tid));
    return Number(ptrace.registers(this.#tid).readBigInt64LE(rax * 8));
  }

  /** @param own null: they were not changed */
  async #giveBack(own: Buffer | null, mask: Buffer | null): Promise<void> {
    const tid = this.#tid;
    try {
      if (own !== null) {
        ptrace.interrupt(tid);
        await this.#until("interrupt", () => ptrace.goOn(tid));
        ptrace.setRegisters(tid, own);
      }
      if (mask !== null) ptrace.setSignalMask(tid, mask);
      ptrace.detach(tid);
      for (const signal of this.#signals) process.kill(this.#pid, signal);
    } catch (error) {
      if (!isGone(error)) throw error;
    }
  }

  async #until(wanted: ptrace.Stop["by"], go: () => void): Promise<void> {
    for (;;) {
      go();
      const stop = await this.#nextStop();
      if (stop.by === wanted) return;
      if (stop.by === "signal") this.#signals.push(stop.signal);
    }
  }

  async #nextStop(): Promise<ptrace.Stop> {
    const spunMs = performance.now() + SPIN_MS;
    for (;;) {
      const stop = ptrace.stopped(this.#tid);
      if (stop !== null) return stop;
      if (performance.now() > spunMs) await sleep(AGAIN_MS);
    }
  }
}

/** Where the kernel's own code in its memory (vdso(7)) makes a system call. null: it has none */
function systemCallOf(pid: number): bigint | null {
  const [, start, end] =
    /^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$/m.exec(readFileSync(`/proc/${pid}/maps`, "utf8")) ?? [];
  if (start === undefined || end === undefined) return null;
  const from = BigInt(`0x${start}`);
  const bytes = Buffer.alloc(Number(BigInt(`0x${end}`) - from));
  const memory = openSync(`/proc/${pid}/mem`, "r");
  try {
    readSync(memory, bytes, 0, bytes.length, from);
  } finally {
    closeSync(memory);
  }
  const at = bytes.indexOf(SYSCALL_INSTRUCTION);
  return at < 0 ? null : from + BigInt(at);
}

function parentOf(pid: number): number {
  return Number(/^PPid:\s*(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
}

/** One that notices least. null: each may be long in stopping */
function chosenThread(pid: number): number | null {
  let other: number | null = null;
  for (const name of readdirSync(`/proc/${pid}/task`)) {
    const tid = Number(name);
    const folder = `/proc/${pid}/task/${name}`;
    const state = readFileSync(`${folder}/stat`, "utf8").replace(/^.*\) /s, "")[0] ?? "";
    if (state !== "R" && state !== "S") continue;
    const [call = ""] = readFileSync(`${folder}/syscall`, "utf8").split(" ");
    if (call.startsWith("running") || BEGUN_AGAIN.has(Number(call))) return tid;
    other ??= tid;
  }
  return other;
}

function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === "ESRCH" || code === "ENOENT";
}
