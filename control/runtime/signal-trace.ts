/**
 * Signals that somebody sends to processes that stand still, each of them, as the kernel tells: its trace event signal:signal_generate, in an
 * instance of tracefs of our own. /proc/PID/status has one bit a signal, which says neither how many of a real-time one wait nor who sent it.
 *
 * Sources: Documentation/trace/ftrace.rst ("Instances", "Filters"), include/trace/events/signal.h, sigaction(2) (si_code).
 */
import { existsSync, writeFileSync } from "node:fs";
import { mkdir, readdir, rmdir, writeFile } from "node:fs/promises";
import { constants } from "node:os";
import { join } from "node:path";
import { close } from "#proxy/kernel/descriptors.ts";
import { newMount } from "#proxy/kernel/mounts.ts";
import { identify } from "./processes.ts";
import { readLink, readText } from "./read-text.ts";

export interface TracedSignal {
  /** a process (its first thread), or one thread of one */
  tid: number;
  isForThread: boolean;
  signal: number;
}

/** where systemd mounts it, and where it was before */
const MOUNTED = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const EVENT = "events/signal/signal_generate";
const PREFIX = "holdfast-";
/** of each CPU: some thousand signals */
const BUFFER_KB = 256;
/** of a filter's text, which is read into one page */
const FILTER_CHARS_MAX = 4_000;
/** PROC_PID_INIT_INO (include/linux/proc_ns.h): events have PIDs of this namespace */
export const FIRST_PID_NAMESPACE = "pid:[4026531836]";
/** What sends with a code of zero or less is somebody, and a timer of timer_create(2). */
const SI_TIMER = -2;
/** enum of the event: it waits now, with what was said with it or without. Others were dropped, or were waiting already. */
const WAITS = [0, 4];
const IGNORED = 1;
/** Names may be anything: what stands at a line's end is the kernel's. */
const LINE =
  /-(\d+)\s+\[\d+\] \S+ +[\d.]+: signal_generate: sig=(\d+) errno=-?\d+ code=(-?\d+) comm=[\s\S]{0,15}? pid=(\d+) grp=([01]) res=(\d)$/gm;
const WRITTEN = /^# entries-in-buffer\/entries-written: (\d+)\/(\d+)/m;

let count = 0;

export class SignalTrace {
  readonly #folder: string;
  /** null: it is mounted anyway */
  readonly #mountFd: number | null;
  #watched: ReadonlySet<number> = new Set();
  #senders: ReadonlySet<number> = new Set();

  private constructor(folder: string, mountFd: number | null) {
    this.#folder = folder;
    this.#mountFd = mountFd;
  }

  /** null: this kernel does not tell, or not this process. It takes some 30 ms, and as long again to close; nobody's signals are told yet. */
  static async open(): Promise<SignalTrace | null> {
    if (readLink("/proc/self/ns/pid") !== FIRST_PID_NAMESPACE) return null;
    let mountFd: number | null = null;
    try {
      let root = MOUNTED.find((path) => existsSync(join(path, EVENT)));
      if (root === undefined) {
        mountFd = newMount("tracefs");
        root = `/proc/self/fd/${mountFd}`;
      }
      const instances = join(root, "instances");
      await removeAbandoned(instances);
      const own = await identify(process.pid);
      const trace = new SignalTrace(
        join(instances, `${PREFIX}${process.pid}-${own?.startTicks}-${count++}`),
        mountFd,
      );
      await mkdir(trace.#folder);
      try {
        await writeFile(join(trace.#folder, "buffer_size_kb"), `${BUFFER_KB}`);
        trace.#filter("pid == 0");
        await writeFile(join(trace.#folder, EVENT, "enable"), "1");
        return trace;
      } catch (error) {
        await rmdir(trace.#folder);
        throw error;
      }
    } catch {
      if (mountFd !== null) close(mountFd);
      return null; // not built in, locked down (kernel_lockdown(7)), or not allowed
    }
  }

  /**
   * From here on signals to these threads are told.
   * @param senders who sends for reasons of its own
   * @returns whether they will be
   */
  watch(tids: readonly number[], senders: readonly number[]): boolean {
    this.#watched = new Set(tids);
    this.#senders = new Set([...tids, ...senders]);
    const each = tids.map((tid) => `pid == ${tid}`).join(" || ");
    const range = `pid >= ${Math.min(...tids)} && pid <= ${Math.max(...tids)}`;
    try {
      this.#filter(`code <= 0 && code != ${SI_TIMER} && (${each.length > FILTER_CHARS_MAX ? range : each})`);
      return true;
    } catch {
      return false;
    }
  }

  /** In the order in which they came. @returns null: there were more than there is room for */
  sent(): TracedSignal[] | null {
    const text = readText(join(this.#folder, "trace"));
    const [, kept, written] = WRITTEN.exec(text) ?? [];
    if (kept === undefined || kept !== written) return null;
    const found: TracedSignal[] = [];
    for (const [, sender, signal, , tid, group, result] of text.matchAll(LINE)) {
      if (this.#senders.has(Number(sender)) || !this.#watched.has(Number(tid))) continue;
      // of one that is ignored SIGCONT has done its work all the same
      const isContinued = Number(signal) === constants.signals.SIGCONT && Number(result) === IGNORED;
      if (!WAITS.includes(Number(result)) && !isContinued) continue;
      found.push({ tid: Number(tid), isForThread: group === "0", signal: Number(signal) });
    }
    return found;
  }

  async close(): Promise<void> {
    await writeFile(join(this.#folder, EVENT, "enable"), "0").catch(() => {});
    await rmdir(this.#folder).catch(() => {});
    if (this.#mountFd !== null) close(this.#mountFd);
  }

  #filter(text: string): void {
    writeFileSync(join(this.#folder, EVENT, "filter"), text);
  }
}

/** Of agents that were killed. */
async function removeAbandoned(instances: string): Promise<void> {
  for (const name of await readdir(instances)) {
    const [, pid, startTicks] = /^holdfast-(\d+)-(\d+)-\d+$/.exec(name) ?? [];
    if (pid === undefined) continue;
    if ((await identify(Number(pid)))?.startTicks === startTicks) continue;
    await rmdir(join(instances, name)).catch(() => {});
  }
}
