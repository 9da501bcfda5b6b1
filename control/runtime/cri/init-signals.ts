/**
 * The signals of a pod's PID 1, which only waits (`catatonit -P`). kubelet ends a container by its stop signal to PID 1, after `preStop`; the
 * init would end at SIGTERM, and with it everything, by SIGKILL. So it is kept from taking signals: it has all of them blocked, and
 * takes them from a signalfd(2) whose set whoever has the descriptor can change. What it is sent stays pending, where the agent sees
 * it (proc_pid_status(5), SigPnd and ShdPnd) and gives it to the application, as the kernel would without us.
 *
 * An init that is no catatonit has no signalfd: then nothing is held, and it does what it does.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { constants } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { borrow, giveBack } from "../borrowed.ts";

const { SIGCHLD, SIGINT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU } = constants.signals;
/** catatonit's end: once pending they cannot be taken from it without that */
const ENDING: readonly number[] = [SIGTERM, SIGINT];
/** its own business */
const KEPT: readonly number[] = [SIGCHLD, SIGTSTP, SIGTTIN, SIGTTOU];
const ALL = 0xffff_ffff_ffff_ffffn;
const SIGNALS = 64;
/** one that is frozen takes them later, and then the application is given them once more */
const DROP_MS_MAX = 1_000;
/** a busy node */
const STARTING_MS_MAX = 5_000;
/** proc_pid_comm(5) of what will be the init: "runc:[2:INIT]", "crun" */
const RUNTIME = /^(runc|crun|youki)/;
const POLL_MS = 1;

/**
 * From then on it takes nothing but what is its own business. Its container runtime may say that it runs before it has come to that: it is waited
 * for. Safe to repeat; false: it is no such init.
 */
export async function holdSignals(initPid: number): Promise<boolean> {
  const late = performance.now() + STARTING_MS_MAX;
  for (;;) {
    const mayCome = isStarting(initPid) && performance.now() < late; // asked first: it may be there just after
    if (setTaken(initPid, setOf(KEPT))) return true;
    if (!mayCome) return false;
    await delay(POLL_MS);
  }
}

/** It works, or is its container runtime's process still, which waits to become it. One that sleeps without a signalfd will have none. */
function isStarting(initPid: number): boolean {
  try {
    // proc_pid_stat(5): pid (comm) state
    const [, comm = "", state = ""] =
      /\((.*)\) (\S)/s.exec(readFileSync(`/proc/${initPid}/stat`, "latin1")) ?? [];
    return "RD".includes(state) || (state === "S" && RUNTIME.test(comm));
  } catch {
    return false; // it has ended
  }
}

/** Pending with it, and nobody else's business: signal numbers. Empty where it has ended. */
export function heldSignals(initPid: number): number[] {
  let status = "";
  try {
    status = readFileSync(`/proc/${initPid}/status`, "latin1");
  } catch {
    // it has ended
  }
  let pending = 0n;
  for (const [, set] of status.matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm))
    pending |= BigInt(`0x${set}`);
  pending &= ~setOf(KEPT);
  if (pending === 0n) return [];
  return Array.from({ length: SIGNALS }, (_, at) => at + 1).filter((one) => isIn(pending, one));
}

/** They are what the end of a container is asked by, of an init that is none itself. */
export function isEnding(signal: number): boolean {
  return ENDING.includes(signal);
}

/** It takes these and does nothing at them, so that the next ones are seen. Those that end it stay where they are. */
export async function dropSignals(initPid: number, signals: readonly number[]): Promise<void> {
  const dropped = signals.filter((signal) => !isEnding(signal));
  if (dropped.length === 0 || !setTaken(initPid, setOf([...KEPT, ...dropped]))) return;
  wake(initPid);
  const late = performance.now() + DROP_MS_MAX;
  while (heldSignals(initPid).some((signal) => dropped.includes(signal)) && performance.now() < late)
    await delay(POLL_MS);
  setTaken(initPid, setOf(KEPT));
}

/** It ends with status 0, by itself: its container, as one whose application has ended well. */
export function endInit(initPid: number): void {
  if (!setTaken(initPid, ALL)) return;
  send(initPid, SIGTERM);
  wake(initPid); // one that is pending already is no news
}

function setTaken(initPid: number, set: bigint): boolean {
  let own = -1;
  try {
    const number = readdirSync(`/proc/${initPid}/fd`).find((fd) =>
      readlinkSync(`/proc/${initPid}/fd/${fd}`).endsWith("[signalfd]"),
    );
    if (number === undefined) return false;
    own = borrow(initPid, Number(number));
    descriptor.setSignalSet(own, set);
    return true;
  } catch (error) {
    if (hasEnded(error)) return false;
    throw error;
  } finally {
    if (own >= 0) giveBack(own);
  }
}

/** A reader of a signalfd looks again when a signal comes. */
function wake(initPid: number): void {
  send(initPid, SIGCHLD);
}

function send(pid: number, signal: number): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (!hasEnded(error)) throw error;
  }
}

function hasEnded(error: unknown): boolean {
  return ["ENOENT", "ESRCH", "EBADF"].includes((error as NodeJS.ErrnoException).code ?? "");
}

function setOf(signals: readonly number[]): bigint {
  return signals.reduce((set, signal) => set | (1n << BigInt(signal - 1)), 0n);
}

function isIn(set: bigint, signal: number): boolean {
  return (set & (1n << BigInt(signal - 1))) !== 0n;
}
