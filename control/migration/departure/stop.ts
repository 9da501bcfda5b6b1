/** What ends a move before its time: somebody who wants it stopped, and the deadline, which begins with the hold. */
import type { Channel } from "#proxy/contract/channel.ts";
import { fail } from "#proxy/contract/error-codes.ts";

export class Stop {
  /** somebody wants it stopped */
  readonly cancelled: AbortSignal;
  readonly #deadlineMs: number;
  readonly #deadline = new AbortController();
  #timer: NodeJS.Timeout | undefined;

  constructor(cancelled: AbortSignal, deadlineMs: number) {
    this.cancelled = cancelled;
    this.#deadlineMs = deadlineMs;
  }

  startDeadline(): void {
    this.#timer = setTimeout(() => {
      this.#deadline.abort(fail("DEADLINE", `the deadline of ${this.#deadlineMs} ms has passed`));
    }, this.#deadlineMs);
  }

  /** Safe at any time. One that has passed stays so. */
  endDeadline(): void {
    clearTimeout(this.#timer);
  }

  /** @throws HoldfastError `CANCELLED`, `DEADLINE` */
  throwIfStopped(): void {
    this.cancelled.throwIfAborted();
    this.#deadline.signal.throwIfAborted();
  }

  /** For work that waits for a target which may have stopped answering. It goes on, unheard. */
  untilStopped<T>(work: Promise<T>): Promise<T> {
    const signal = this.#signal;
    return new Promise<T>((resolve, reject) => {
      const onAbort = (): void => reject(signal.reason);
      if (signal.aborted) onAbort();
      signal.addEventListener("abort", onAbort, { once: true });
      work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
    });
  }

  /** Asks the target, for as long as the move is not stopped. */
  call<T>(
    channel: Channel,
    method: string,
    params: object,
    body?: Buffer,
  ): Promise<{ result: T; body: Buffer }> {
    const signal = this.#signal;
    return channel.call<T>(method, params, { signal, ...(body === undefined ? {} : { body }) });
  }

  get #signal(): AbortSignal {
    return AbortSignal.any([this.cancelled, this.#deadline.signal]);
  }
}
