/**
 * Readiness of many descriptors, edge by edge, from an epoll instance of our own (epoll(7), EPOLLET).
 *
 * Why not libuv's: it enters JavaScript once for each descriptor, with a handle, a stream and a callback scope behind
 * each. Here libuv watches one descriptor, the epoll instance, and what is ready is handled in one go.
 *
 *   libuv's loop ──readable──▶ setImmediate ──▶ epoll_wait ──▶ onReady, onReady, onReady ... ──▶ those that asked for more
 *
 * The work is done in an immediate because libuv calls us outside Node's callbacks: only there does an exception that nobody
 * catches reach `uncaughtException`, and only after it are promises looked at.
 *
 * A descriptor's number may be given to another one in the middle of a batch: a generation tells stale events.
 */
import * as polling from "./polling.ts";

/** Each of these is told once; whoever does not read to the end of what is there has to ask with {@link Epoll.soon}. */
const INTEREST =
  polling.EPOLLIN |
  polling.EPOLLPRI |
  polling.EPOLLOUT |
  polling.EPOLLRDHUP |
  polling.EPOLLERR |
  polling.EPOLLHUP |
  polling.EPOLLET;
/** Fewer at once are no crowd: the next come through the loop, which others wait for as well. */
const CROWD = 16;
const ROUNDS_MAX = 4;

export interface Watcher {
  /** Bits as of {@link INTEREST}; 0: it had asked to be called again. */
  onReady(events: number): void;
  /** `onReady` has thrown, and is not called again for that event. What this throws ends the process. */
  onBroken(error: unknown): void;
}

export class Epoll {
  readonly #watchers: (Watcher | undefined)[] = [];
  readonly #generations: number[] = [];
  #fd = -1;
  #soon: Watcher[] = [];
  #isScheduled = false;
  #isDispatching = false;

  /**
   * `fd` is non-blocking. What is ready already is told with the next batch.
   * @throws HoldfastError ENOSPC (fs.epoll.max_user_watches), ENOMEM: nobody watches it
   */
  watch(fd: number, watcher: Watcher): void {
    if (this.#fd < 0) {
      this.#fd = polling.epollCreate();
      polling.pollInLoop(this.#fd, this.#schedule);
    }
    const generation = ((this.#generations[fd] ?? 0) + 1) | 0;
    this.#generations[fd] = generation;
    polling.epollAdd(this.#fd, fd, INTEREST, generation);
    this.#watchers[fd] = watcher;
  }

  /** Before the descriptor is closed or given away. Nothing where nobody watches it. */
  unwatch(fd: number): void {
    if (this.#watchers[fd] === undefined) return;
    this.#watchers[fd] = undefined;
    polling.epollDelete(this.#fd, fd);
  }

  /** Calls `onReady(0)` when the others had their turn, and never from within this call. */
  soon(watcher: Watcher): void {
    this.#soon.push(watcher);
    if (!this.#isDispatching) this.#schedule();
  }

  readonly #schedule = (): void => {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(this.#dispatch);
  };

  readonly #dispatch = (): void => {
    this.#isScheduled = false;
    this.#isDispatching = true;
    try {
      const again = this.#soon;
      if (again.length > 0) {
        this.#soon = [];
        for (const watcher of again) call(watcher, 0);
      }
      for (let round = 0; this.#fd >= 0 && round < ROUNDS_MAX; round++) {
        const count = polling.epollNow(this.#fd);
        for (let index = 0; index < count; index++) {
          const fd = polling.epollEvent.fd(index);
          if (this.#generations[fd] !== polling.epollEvent.generation(index)) continue;
          const watcher = this.#watchers[fd];
          if (watcher !== undefined) call(watcher, polling.epollEvent.events(index));
        }
        if (count < CROWD) break;
      }
    } finally {
      this.#isDispatching = false;
    }
    if (this.#soon.length > 0) this.#schedule();
  };
}

/** One watcher's mistake is not to keep the others of its batch from their events. */
function call(watcher: Watcher, events: number): void {
  try {
    watcher.onReady(events);
  } catch (error) {
    watcher.onBroken(error);
  }
}
