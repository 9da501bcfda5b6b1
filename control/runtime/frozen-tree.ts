/**
 * Whether a tree has stood still since it was frozen: what is read of it is of one moment only then.
 *
 * From one freeze to the commit there are two who hold it, one after the other:
 * - CRIU, from before our first look at the frozen tree on (`query-ext-files`) to where it lets go (after `post-dump`). It runs code of its own in
 *   each process and has each thread make calls, so threads are switched to and use time there, and no counter tells that from a
 *   thread that ran by itself. But a thread that CRIU does not hold is not stopped by it, and CRIU takes no thread twice. So at the end of that
 *   time, before we freeze, each one is to be stopped by one and the same tracer ({@link assertTraced}).
 * - The freezer, which is complete before CRIU lets go. A thread that is let go may be switched to once more, on its way from where it was
 *   stopped into the freezer; from when it has come to rest ({@link FrozenTree.at}) it is not, and how often it ran stays as it is.
 *   A thread that was thawed, for however short a time and by whatever means (the group's file, or moved to another group
 *   and back), has been switched to.
 *
 * Not seen: a thaw that begins and ends between the two looks at where CRIU lets go, a few milliseconds apart on a node that is not busy
 * (changed files are read from then on). And in a freezer in which
 * signals wake (cgroup v2, `do_freezer_trap` in kernel/signal.c), as much as a signal that waits to be taken may have done: without a thaw,
 * a thread that is woken so runs nothing of its own, and still has the signal before it.
 *
 * Sources: proc(5); Documentation/scheduler/sched-stats.rst (schedstat); kernel/sched/stats.h (`sched_info_arrive`).
 */
import { readdirSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { readText } from "./read-text.ts";

/** Of a `Freezer`. */
export interface Freezing {
  readonly isFrozen: boolean;
  readonly isComplete: boolean;
  readonly wakesForSignals: boolean;
}

const REST_MS_MAX = 2_000;
const POLL_MS = 1;

export class FrozenTree {
  readonly #freezer: Freezing;
  /** "PID/TID" → how often it has run */
  readonly #ran: ReadonlyMap<string, number>;

  private constructor(freezer: Freezing, threads: string[]) {
    this.#freezer = freezer;
    this.#ran = new Map(threads.map((thread) => [thread, timesRun(thread) ?? 0]));
  }

  /**
   * When nobody but the freezer holds it. Waits until each thread has come to rest.
   * @param pids all of the tree: who comes later was made by a thread that ran
   * @param throwIfStopped who waits for it may want no more of it
   * @throws HoldfastError `IMAGE_REFUSED` when that takes too long
   */
  static async at(
    freezer: Freezing,
    pids: number[],
    throwIfStopped: () => void = () => {},
  ): Promise<FrozenTree> {
    const late = performance.now() + REST_MS_MAX;
    const resting = new Set<string>();
    let before: FrozenTree | null = null;
    for (;;) {
      throwIfStopped();
      const threads = threadsOf(pids);
      // first: a thread at rest stays there
      for (const thread of threads) if (!resting.has(thread) && !isUnderWay(thread)) resting.add(thread);
      if (freezer.isComplete && threads.every((thread) => resting.has(thread))) {
        const tree = new FrozenTree(freezer, threads);
        // there a thread looks asleep that was preempted on its way to sleep, and is switched to once more
        if (!freezer.wakesForSignals || tree.#isAs(before)) return tree;
        before = tree;
      }
      if (performance.now() > late) {
        if (before !== null) return before; // signals wake it all the time
        throw moved("it does not come to rest in the freezer");
      }
      await delay(POLL_MS);
    }
  }

  #isAs(other: FrozenTree | null): boolean {
    return (
      other !== null &&
      other.#ran.size === this.#ran.size &&
      [...other.#ran].every(([thread, times]) => this.#ran.get(thread) === times)
    );
  }

  /** @throws HoldfastError `IMAGE_REFUSED`: a thread of it has run since, or has ended */
  verify(): void {
    /** by process: the threads that have run, and how often in all */
    const ran = new Map<string, { threads: string[]; times: number }>();
    for (const [thread, before] of this.#ran) {
      const now = timesRun(thread);
      if (now === before) continue;
      if (now === null) throw moved(`thread ${thread} has ended`);
      if (!this.#freezer.wakesForSignals) throw moved(`thread ${thread} has run`);
      const pid = thread.slice(0, thread.indexOf("/"));
      const of = ran.get(pid) ?? { threads: [], times: 0 };
      of.threads.push(thread);
      ran.set(pid, { ...of, times: of.times + now - before });
    }
    for (const { threads, times } of ran.values())
      if (times > wakesAtMost(threads.map((thread) => read(thread, "status"))))
        throw moved(`thread ${threads[0]} has run`);
    if (!this.#freezer.isFrozen) throw moved("it has been thawed");
  }
}

/** Those that have not ended. */
export function livingOf(pids: number[]): number[] {
  return pids.filter((pid) => !hasEnded(read(`${pid}/${pid}`, "status")));
}

/**
 * While CRIU holds the tree, and before anybody else stops it.
 * @param living those that lived when CRIU had just taken it
 * @throws HoldfastError `IMAGE_REFUSED`: a thread is not stopped by the one tracer of all, or a process was killed since
 */
export function assertTraced(pids: number[], living: number[] = []): void {
  let tracer: string | undefined;
  const killed = living.find((pid) => hasEnded(read(`${pid}/${pid}`, "status")));
  if (killed !== undefined) throw moved(`process ${killed} has ended`);
  for (const thread of threadsOf(pids)) {
    const status = read(thread, "status");
    if (hasEnded(status)) continue;
    const [state = "", of = "0"] = [field(status, "State"), field(status, "TracerPid")];
    tracer ??= of;
    if (!state.startsWith("t") || of === "0" || of !== tracer)
      throw moved(`thread ${thread} is not stopped by CRIU (${state})`);
  }
}

function hasEnded(status: string): boolean {
  return /^[ZX]/.test(field(status, "State") ?? "Z");
}

/** null: it has gone. One that has ended and is not waited for stays as it is */
function timesRun(thread: string): number | null {
  // a kernel without it says nothing, one where it is off says zeroes of everybody
  const times = Number(read(thread, "schedstat").trim().split(" ")[2] ?? 0);
  return times > 0 ? times : timesSwitched(read(thread, "status"));
}

/** How often a thread was switched away from, for kernels that do not keep schedstat. null: it has gone */
export function timesSwitched(status: string): number | null {
  const [own, forced] = [
    field(status, "voluntary_ctxt_switches"),
    field(status, "nonvoluntary_ctxt_switches"),
  ];
  return own === undefined ? null : Number(own) + Number(forced);
}

/**
 * How often signals that have not been taken may have woken threads of one process in the freezer: each once, and that once interrupted.
 * @param statuses of those that were woken
 */
export function wakesAtMost(statuses: string[]): number {
  const set = (status: string, name: string): bigint => BigInt(`0x${field(status, name) ?? "0"}`);
  let wakes = 0;
  const count = (signals: bigint): void => {
    // of a real-time signal there may be any number
    if (signals >> 31n !== 0n) wakes = Number.POSITIVE_INFINITY;
    for (let rest = signals; rest !== 0n; rest &= rest - 1n) wakes += 2;
  };
  let ofProcess = 0n;
  for (const status of statuses) {
    const heard = ~set(status, "SigBlk");
    count(set(status, "SigPnd") & heard);
    ofProcess |= set(status, "ShdPnd") & heard;
  }
  count(ofProcess);
  return wakes;
}

/** "PID/TID", of all that there are. */
function threadsOf(pids: number[]): string[] {
  return pids.flatMap((pid) => {
    try {
      return readdirSync(`/proc/${pid}/task`).map((tid) => `${pid}/${tid}`);
    } catch {
      return [];
    }
  });
}

/** It runs or is about to, or is held by a tracer still. */
function isUnderWay(thread: string): boolean {
  return /\) [Rt][^)]*$/.test(read(thread, "stat"));
}

function field(status: string, name: string): string | undefined {
  return new RegExp(`^${name}:\\s*(.*)$`, "m").exec(status)?.[1];
}

function read(thread: string, file: string): string {
  const [pid, tid] = thread.split("/");
  return readText(`/proc/${pid}/task/${tid}/${file}`);
}

function moved(what: string): HoldfastError {
  return fail("IMAGE_REFUSED", `the application did not stand still while it was read: ${what}`, {
    source: "kernel",
  });
}
