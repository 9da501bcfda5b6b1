/**
 * Signals that somebody sends to an application while it is frozen: CRIU has read those that waited before, so at the target nobody would
 * have sent them. Who sent them is told that they arrived (kill(2)), and so they have to: before the commit the move rolls back, after it they are
 * sent once more at the target. The kernel tells of each (`signal-trace.ts`); where it does not, what it shows of those that wait has to do: not how
 * many of one number, and not who has sent it.
 *
 * Sources: proc(5) (SigPnd, ShdPnd of /proc/PID/status; /proc/PID/timers).
 */
import { constants } from "node:os";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { signalThread } from "#proxy/kernel/processes.ts";
import type { SentSignal } from "../api/migration.ts";
import { innerPid, treeOf } from "./processes.ts";
import { listNames, readText } from "./read-text.ts";
import type { SignalTrace } from "./signal-trace.ts";

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

interface Waiting {
  pid: number;
  innerPid: number;
  innerTid: number;
  /** bit N - 1: signal N waits for the thread, for its process */
  own: bigint;
  shared: bigint;
}

export class PendingSignals {
  /** by TID */
  readonly #waiting: ReadonlyMap<number, Waiting>;
  readonly #trace: SignalTrace | null;
  /** how many the kernel has told of, and what was told or seen */
  #toldCount = 0;
  readonly #known = new Set<string>();

  private constructor(waiting: ReadonlyMap<number, Waiting>, trace: SignalTrace | null) {
    this.#waiting = waiting;
    this.#trace = trace;
  }

  /**
   * Of a tree that is frozen, before CRIU reads what waits.
   * @param trace null: this kernel does not tell who sends what
   * @param criu its processes, which send signals of their own
   */
  static of(pids: number[], trace: SignalTrace | null, criu: readonly number[]): PendingSignals {
    const tids = pids.flatMap(threadsOf);
    const isTold = trace?.watch(tids, [process.pid, ...criu]) === true;
    return new PendingSignals(waitingFor(pids), isTold ? trace : null);
  }

  /** The last before the commit. @throws HoldfastError `SIGNALLED` (retryable): it goes on where it has them */
  throwIfMore(): void {
    const traced = this.#trace?.sent();
    if (traced === null) throw signalled("the application", "more signals than can be kept");
    for (const { tid, signal } of traced ?? []) {
      const waiting = this.#waiting.get(tid);
      if (waiting !== undefined) throw signalled(`process ${waiting.pid}`, namesOf(bitOf(signal)));
    }
    for (const { before, now } of this.#again()) {
      const sent = (now.own & ~before.own) | (now.shared & ~before.shared);
      if (sent !== 0n) throw signalled(`process ${now.pid}`, namesOf(sent));
    }
  }

  /**
   * What came since it was asked last, though the tree is not to go on here: whoever sent it was told that it arrived. Not what ends
   * whatever is left of it here.
   */
  sent(): SentSignal[] {
    const told = this.#told();
    for (const one of told) this.#known.add(keyOf(one));
    // what the kernel has sent by itself
    const others = this.#seen().filter((one) => !this.#known.has(keyOf(one)));
    for (const one of others) this.#known.add(keyOf(one));
    return [...told, ...others].filter(({ signal }) => signal !== signals.SIGKILL);
  }

  /** There were more than the kernel keeps for us: of each number {@link sent} has one, if it waits. */
  get areMore(): boolean {
    return this.#trace !== null && this.#trace.sent() === null;
  }

  /** Each by itself. */
  #told(): SentSignal[] {
    const all = this.#trace?.sent() ?? [];
    const found = all.slice(this.#toldCount).flatMap(({ tid, isForThread, signal }) => {
      const to = this.#waiting.get(tid);
      return to === undefined
        ? []
        : [{ process: to.innerPid, thread: isForThread ? to.innerTid : null, signal }];
    });
    this.#toldCount = Math.max(this.#toldCount, all.length);
    return found;
  }

  #seen(): SentSignal[] {
    const found: SentSignal[] = [];
    for (const { before, now } of this.#again()) {
      const [process, thread] = [now.innerPid, now.innerTid];
      for (const signal of numbersOf(now.own & ~before.own)) found.push({ process, thread, signal });
      if (process !== thread) continue; // each thread shows what waits for its process
      for (const signal of numbersOf(now.shared & ~before.shared))
        found.push({ process, thread: null, signal });
    }
    return found;
  }

  *#again(): Generator<{ before: Waiting; now: Waiting }> {
    const pids = new Set([...this.#waiting.values()].map(({ pid }) => pid));
    for (const [thread, now] of waitingFor([...pids])) {
      const before = this.#waiting.get(thread) ?? { ...now, own: 0n, shared: 0n };
      yield { before, now };
    }
  }
}

/** To processes of a tree that runs; those that have ended get none. */
export async function sendAgain(root: number, sent: SentSignal[]): Promise<void> {
  for (const pid of await treeOf(root)) {
    const inner = await innerPid(pid);
    for (const { process: of, thread, signal } of sent) {
      if (of !== inner) continue;
      if (thread === null) kill(pid, signal);
      else
        for (const tid of threadsOf(pid))
          if ((await innerPid(tid)) === thread) signalThread(pid, tid, signal);
    }
  }
}

function kill(pid: number, signal: number): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

function keyOf({ process, thread, signal }: SentSignal): string {
  return `${process}/${thread}/${signal}`;
}

function signalled(who: string, names: string): HoldfastError {
  return fail(
    "SIGNALLED",
    `${who} was sent ${names} while it was frozen, which the other node would not know of`,
  );
}

function threadsOf(pid: number): number[] {
  return listNames(`/proc/${pid}/task`).map(Number);
}

function waitingFor(pids: number[]): Map<number, Waiting> {
  const waiting = new Map<number, Waiting>();
  for (const pid of pids) {
    const ofOthers = ~ownSignals(pid);
    for (const tid of threadsOf(pid)) {
      const status = readText(`/proc/${pid}/task/${tid}/status`);
      const field = (name: string): string => new RegExp(`^${name}:\\s*(.+)$`, "m").exec(status)?.[1] ?? "0";
      const inner = (name: string): number => Number(field(name).split(/\s+/).at(-1));
      waiting.set(tid, {
        pid,
        innerPid: inner("NStgid"),
        innerTid: inner("NSpid"),
        own: BigInt(`0x${field("SigPnd")}`) & ofOthers,
        shared: BigInt(`0x${field("ShdPnd")}`) & ofOthers,
      });
    }
  }
  return waiting;
}

/** Those that nobody sends, and those of its timers. */
function ownSignals(pid: number): bigint {
  const ofTimers = [...readText(`/proc/${pid}/timers`).matchAll(/^signal: (\d+)\//gm)].map(([, signal]) =>
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
  return numbersOf(mask)
    .map((signal) => names.get(signal) ?? `signal ${signal}`)
    .join(", ");
}

function numbersOf(mask: bigint): number[] {
  return Array.from({ length: 64 }, (_, at) => at + 1).filter((signal) => (mask & bitOf(signal)) !== 0n);
}
