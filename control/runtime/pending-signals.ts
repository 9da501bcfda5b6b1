/**
 * Signals that somebody sends to an application while it is frozen: CRIU has read those that waited before, so at the target nobody would
 * have sent them. Who sent them is told that they arrived (kill(2)), and so they have to.
 *
 * Sources: proc(5) (SigPnd, ShdPnd of /proc/PID/status; /proc/PID/timers).
 */
import { readdirSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import { fail } from "#proxy/contract/error-codes.ts";

const { signals } = constants;

/**
 * What the kernel sends for what is carried and goes on at the target, or did there already: timers, children that were stopped, what comes
 * in on descriptors. And what stops a process: a tree where there is no freezer, and a job that was stopped, to which CRIU sends its signal again
 * when it lets go of it.
 */
const NOT_SENT_BY_ANYBODY = [
  signals.SIGALRM,
  signals.SIGVTALRM,
  signals.SIGPROF,
  signals.SIGCHLD,
  signals.SIGIO,
  signals.SIGURG,
  signals.SIGSTOP,
  signals.SIGTSTP,
  signals.SIGTTIN,
  signals.SIGTTOU,
  signals.SIGCONT,
];

export class PendingSignals {
  /** "PID/TID" → bit N - 1: signal N waits, for the thread or its process */
  readonly #waiting: ReadonlyMap<string, bigint>;

  private constructor(waiting: ReadonlyMap<string, bigint>) {
    this.#waiting = waiting;
  }

  /** Of a tree that is frozen, before CRIU reads what waits. */
  static of(pids: number[]): PendingSignals {
    return new PendingSignals(waitingFor(pids));
  }

  /** The last before the commit. @throws HoldfastError `SIGNALLED` (retryable): it goes on where it has them */
  throwIfMore(): void {
    const pids = new Set([...this.#waiting.keys()].map((thread) => Number(thread.split("/")[0])));
    for (const [thread, waiting] of waitingFor([...pids])) {
      const sent = waiting & ~(this.#waiting.get(thread) ?? 0n);
      if (sent === 0n) continue;
      throw fail(
        "SIGNALLED",
        `process ${thread.split("/")[0]} was sent ${namesOf(sent)} while it was frozen, which the other node would not know of`,
      );
    }
  }
}

function waitingFor(pids: number[]): Map<string, bigint> {
  const waiting = new Map<string, bigint>();
  for (const pid of pids) {
    const ofOthers = ~ownSignals(pid);
    for (const tid of list(`/proc/${pid}/task`)) {
      const status = read(`/proc/${pid}/task/${tid}/status`);
      const mask = (name: string): bigint =>
        BigInt(`0x${new RegExp(`^${name}:\\s*([0-9a-f]+)$`, "m").exec(status)?.[1] ?? "0"}`);
      waiting.set(`${pid}/${tid}`, (mask("SigPnd") | mask("ShdPnd")) & ofOthers);
    }
  }
  return waiting;
}

/** Those that nobody sends, and those of its timers. */
function ownSignals(pid: number): bigint {
  const ofTimers = [...read(`/proc/${pid}/timers`).matchAll(/^signal: (\d+)\//gm)].map(([, signal]) =>
    Number(signal),
  );
  return [...NOT_SENT_BY_ANYBODY, ...ofTimers].reduce((mask, signal) => mask | bitOf(signal), 0n);
}

function bitOf(signal: number): bigint {
  return signal > 0 ? 1n << BigInt(signal - 1) : 0n;
}

/** "SIGHUP, SIGUSR1"; real-time ones by number */
function namesOf(mask: bigint): string {
  const names = new Map<number, string>(Object.entries(signals).map(([name, signal]) => [signal, name]));
  const found: string[] = [];
  for (let signal = 1; signal <= 64; signal++)
    if ((mask & bitOf(signal)) !== 0n) found.push(names.get(signal) ?? `signal ${signal}`);
  return found.join(", ");
}

/** [] where it has ended */
function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}
