/** What becomes of sessions while their application is unavailable, counted from its end until it is back. */
import type { Counters } from "./counters.ts";

export interface UnavailableFigures {
  replayed: number;
  refused: number;
  reset: number;
}

export class UnavailableCount {
  readonly #counters: Counters;
  #before: UnavailableFigures | null = null;

  constructor(counters: Counters) {
    this.#counters = counters;
  }

  /** Does nothing where it has begun. */
  begin(): void {
    this.#before ??= this.#now();
  }

  /** @returns all zero where nothing has begun */
  end(): UnavailableFigures {
    const now = this.#now();
    const before = this.#before ?? now;
    this.#before = null;
    return {
      replayed: now.replayed - before.replayed,
      refused: now.refused - before.refused,
      reset: now.reset - before.reset,
    };
  }

  #now(): UnavailableFigures {
    const { requestsReplayed, messagesReplayed, requestsRefused, webSocketsRefused, sessionsReset } =
      this.#counters;
    return {
      replayed: requestsReplayed + messagesReplayed,
      refused: requestsRefused + webSocketsRefused,
      reset: sessionsReset,
    };
  }
}
