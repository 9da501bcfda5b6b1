/**
 * How long clients waited: for each the longest gap between two answers within an interval. Pure arithmetic on times
 * that the caller reads (milliseconds, any clock that only rises).
 */

export interface Blackout {
  p50: number;
  p99: number;
  max: number;
}

/** Between two answers. */
export interface Gap {
  ms: number;
  /** when the answer before it came */
  beganMs: number;
}

/** One client's answers. The gap at the anchors counts too: a client that never hears again shows the whole interval. */
export class GapMeter {
  #lastMs: number;
  #longest: Gap = { ms: 0, beganMs: 0 };

  constructor(nowMs: number) {
    this.#lastMs = nowMs;
  }

  answer(nowMs: number): void {
    this.#longest = this.longest(nowMs);
    this.#lastMs = nowMs;
  }

  /** A new interval begins; the answer before it stays the start of the first gap. */
  mark(): void {
    this.#longest = { ms: 0, beganMs: this.#lastMs };
  }

  /** Sending was paused on purpose: what passed since the last answer is nobody's gap. */
  forget(nowMs: number): void {
    this.#lastMs = nowMs;
  }

  longest(nowMs: number): Gap {
    const ms = nowMs - this.#lastMs;
    return ms > this.#longest.ms ? { ms, beganMs: this.#lastMs } : this.#longest;
  }
}

/**
 * When clients began to wait: each one's last answer before its longest gap, of all the middle one. So it is early by half the time that
 * passes between two answers. 0 without clients.
 */
export function waitingSince(longest: readonly Gap[]): number {
  const sorted = longest.map(({ beganMs }) => beganMs).sort((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? 0;
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
