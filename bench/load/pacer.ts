/**
 * Sleeps as a load generator on a fixed schedule must: to the microsecond, and no longer than until something happens on a
 * socket. Timers of Node (as those of wrk2) are whole milliseconds late or early, and spinning would take the CPU from the
 * application beside it.
 *
 * The event loop's own epoll descriptor can be polled like any other: ppoll(2) returns when it has something to report or
 * when the time is over, and the loop, which is called with `setImmediate`, then does its work without waiting.
 *
 * Sources: ppoll(2), epoll(7), PR_SET_TIMERSLACK in prctl(2), `tfd` of /proc/PID/fdinfo in proc(5).
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import koffi from "koffi";

const POLLIN = 1;
const PR_SET_TIMERSLACK = 29;

export class Pacer {
  readonly #ppoll: (fds: Buffer, count: number, timeout: Buffer, mask: null) => number;
  /** struct pollfd */
  readonly #fds = Buffer.alloc(8);
  /** struct timespec */
  readonly #timeout = Buffer.alloc(16);

  /** @param watched a descriptor the event loop reads from; of the process's epolls this tells the loop's */
  constructor(watched: number) {
    const libc = koffi.load("libc.so.6");
    this.#ppoll = libc.func("int ppoll(void *, unsigned long, const void *, const void *)") as never;
    // The kernel adds 50 µs to every sleep otherwise, so that it may wake several sleepers at once.
    libc.func("int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)")(
      PR_SET_TIMERSLACK,
      1,
      0,
      0,
      0,
    );
    this.#fds.writeInt32LE(epollWatching(watched), 0);
    this.#fds.writeInt16LE(POLLIN, 4);
  }

  /** Returns at `atMs` (as `performance.now()` counts), or as soon as the event loop has something to do. */
  sleepUntil(atMs: number): void {
    const waitMs = atMs - performance.now();
    if (waitMs <= 0) return;
    const seconds = Math.floor(waitMs / 1000);
    this.#timeout.writeUIntLE(seconds, 0, 6);
    this.#timeout.writeUIntLE(Math.floor((waitMs - seconds * 1000) * 1e6), 8, 6);
    this.#ppoll(this.#fds, 1, this.#timeout, null);
  }
}

function epollWatching(fd: number): number {
  const watches = new RegExp(`^tfd:\\s*${fd}\\s`, "m");
  for (const name of readdirSync("/proc/self/fd")) {
    try {
      if (readlinkSync(`/proc/self/fd/${name}`) !== "anon_inode:[eventpoll]") continue;
      if (watches.test(readFileSync(`/proc/self/fdinfo/${name}`, "utf8"))) return Number(name);
    } catch {
      // the directory's own descriptor, closed by now
    }
  }
  throw new Error(`no epoll of this process watches descriptor ${fd}`);
}
