/**
 * How long clients waited: for each the longest gap between two answers within an interval. Pure arithmetic on times
 * that the caller reads (milliseconds, any clock that only rises).
 */

export interface Blackout {
  p50: number;
  p99: number;
  max: number;
}

/** One client's answers. The gap at the anchors counts too: a client that never hears again shows the whole interval. */
export class GapMeter {
  #lastMs: number;
  #longestMs = 0;

  constructor(nowMs: number) {
    this.#lastMs = nowMs;
  }

  answer(nowMs: number): void {
    this.#longestMs = Math.max(this.#longestMs, nowMs - this.#lastMs);
    this.#lastMs = nowMs;
  }

  /** A new interval begins; the answer before it stays the start of the first gap. */
  mark(): void {
    this.#longestMs = 0;
  }

  /** Sending was paused on purpose: what passed since the last answer is nobody's gap. */
  forget(nowMs: number): void {
    this.#lastMs = nowMs;
  }

  longestMs(nowMs: number): number {
    return Math.max(this.#longestMs, nowMs - this.#lastMs);
  }
}

/** Nearest-rank percentiles over clients, to a tenth of a millisecond; zeros without clients. */
export function blackoutOf(longestMs: readonly number[]): Blackout {
  const sorted = [...longestMs].sort((a, b) => a - b);
  const at = (share: number) => round(sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0);
  return { p50: at(0.5), p99: at(0.99), max: at(1) };
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10;
}
