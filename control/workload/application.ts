/**
 * The application as processes in its container: found, asked to end, and how it ended (pidfd_open(2); PIDFD_GET_INFO of
 * linux/pidfd.h, which tells the exit status from Linux 6.15 on). When it is started and ended: `supervisor.ts`.
 *
 * It is the child of the container's init that leads its own session. What it leaves behind when it ends becomes children
 * of the init too, so which of them it was is kept in the journal.
 */
import { open } from "node:fs/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as procs from "#proxy/kernel/processes.ts";
import type { WorkloadConfig } from "../config/config.ts";
import {
  childrenOf,
  identify,
  isSameProcess,
  type ProcessIdentity,
  processState,
  sessionOf,
  treeOf,
} from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";

/** null: the kernel does not tell, or nobody was there to ask */
export type End = { status: number } | { signal: number } | null;

const POLLIN = 1;
/** _IOWR(0xFF, 11, struct pidfd_info), its first version */
const PIDFD_GET_INFO = 0xc0_40_ff_0b;
const PIDFD_INFO_BYTES = 64;
const PIDFD_INFO_EXIT = 8n;
const EXIT_CODE_AT = 60;
/** between a process's end and its init's wait(2), which makes the status known */
const REAP_MS_MAX = 100;
const KILL_MS_MAX = 5_000;
const LOG_TAIL_BYTES = 4_096;
export const POLL_MS = 2;

export class Application {
  readonly process: ProcessIdentity;
  #pidfd: number;

  private constructor(process: ProcessIdentity, pidfd: number) {
    this.process = process;
    this.#pidfd = pidfd;
  }

  /** null: it has ended */
  static async open(process: ProcessIdentity): Promise<Application | null> {
    let pidfd: number;
    try {
      pidfd = procs.pidfdOpen(process.pid);
    } catch {
      return null;
    }
    // looked at again: the number may have been another's by the time it was opened
    if (await isSameProcess(process)) return new Application(process, pidfd);
    descriptor.close(pidfd);
    return null;
  }

  /** Asks the kernel, and does not wait: cheap enough to be asked all the time. */
  get hasEnded(): boolean {
    return polling.pollNow(this.#pidfd, POLLIN) !== 0;
  }

  /** Of one that has ended. */
  async end(): Promise<End> {
    const info = Buffer.alloc(PIDFD_INFO_BYTES);
    const late = performance.now() + REAP_MS_MAX;
    do {
      info.fill(0).writeBigUInt64LE(PIDFD_INFO_EXIT);
      try {
        descriptor.ioctlBuffer(this.#pidfd, PIDFD_GET_INFO, info);
      } catch {
        return null;
      }
      if ((info.readBigUInt64LE() & PIDFD_INFO_EXIT) !== 0n) {
        const code = info.readInt32LE(EXIT_CODE_AT);
        return (code & 0x7f) === 0 ? { status: (code >> 8) & 0xff } : { signal: code & 0x7f };
      }
      await poll();
    } while (performance.now() < late);
    return null;
  }

  /** To its root alone, as the kernel does where that is PID 1 of its container. */
  signal(number: number): void {
    try {
      procs.pidfdSendSignal(this.#pidfd, number);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
  }

  /** Asks its process group to end. Resolves when its root has, or after `msMax`. */
  async askToEnd(signal: NodeJS.Signals, msMax: number): Promise<void> {
    if (this.hasEnded) return;
    signalGroup(this.process.pid, signal);
    signalGroup(this.process.pid, "SIGCONT"); // one that is stopped hears nothing else
    const late = performance.now() + msMax;
    while (!this.hasEnded && performance.now() < late) await poll();
  }

  close(): void {
    if (this.#pidfd >= 0) descriptor.close(this.#pidfd);
    this.#pidfd = -1;
  }
}

/** @param known what the journal says: believed if it still lives. null: there is none */
export async function findApplication(
  container: Sandbox,
  known: ProcessIdentity | null,
): Promise<Application | null> {
  if (known !== null) return Application.open(known);
  for (const pid of await childrenOf(container.init.pid)) {
    if ((await sessionOf(pid)) !== pid) continue;
    const identity = await identify(pid);
    const found = identity === null ? null : await Application.open(identity);
    if (found !== null) return found;
  }
  return null;
}

/** Ends whatever a container has besides its init, by SIGKILL. @throws HoldfastError `APPLICATION_STUCK` */
export async function clearContainer(container: Sandbox): Promise<void> {
  const late = performance.now() + KILL_MS_MAX;
  for (;;) {
    const left: number[] = [];
    for (const pid of await treeOf(container.init.pid)) {
      if (pid === container.init.pid || !(await isAlive(pid))) continue;
      left.push(pid);
    }
    if (left.length === 0) return;
    for (const pid of left) trySignal(pid, "SIGKILL");
    if (performance.now() > late) {
      throw fail(
        "APPLICATION_STUCK",
        `process ${left[0]} cannot be ended: it waits for a device or a file system`,
      );
    }
    await poll();
  }
}

/** Whether an end asks for another start. What nobody has seen counts as a failure. */
export function isToStartAgain(policy: WorkloadConfig["restart"], end: End): boolean {
  const isFailure = end === null || "signal" in end || end.status !== 0;
  return policy === "always" || (policy === "on-failure" && isFailure);
}

export function describeEnd(end: End): string {
  if (end === null) return "it has ended";
  return "signal" in end ? `ended by signal ${end.signal}` : `ended with status ${end.status}`;
}

/** What the application said last. */
export async function lastLogLine(logFile: string): Promise<string> {
  try {
    await using file = await open(logFile, "r");
    const { size } = await file.stat();
    const tail = Buffer.alloc(Math.min(size, LOG_TAIL_BYTES));
    await file.read(tail, 0, tail.length, size - tail.length);
    const said = tail.toString("utf8").trim().split("\n").at(-1);
    if (said !== undefined && said !== "") return said;
  } catch {
    // it has just been kept as the one before
  }
  return logFile.endsWith(".1") ? "it said nothing" : lastLogLine(`${logFile}.1`);
}

export function poll(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, POLL_MS));
}

async function isAlive(pid: number): Promise<boolean> {
  const state = await processState(pid);
  return state !== null && state !== "Z" && state !== "X";
}

function signalGroup(leader: number, signal: NodeJS.Signals): void {
  trySignal(-leader, signal);
}

function trySignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
