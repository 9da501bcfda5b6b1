/**
 * How often memory is copied while the application runs. Each round sends what was written since the one before; another is worth it only
 * as long as there is less to send each time (live migration's pre-copy: Clark et al., NSDI 2005).
 */

export interface PrecopyRound {
  /** that were new to the target */
  bytes: number;
  /** from its beginning until they were sent */
  ms: number;
}

const ROUNDS_MAX = 8;
/** a round takes some 100 ms however small it is; so much is copied within a few once all stands still */
const BYTES_MIN = 2 * 1024 * 1024;
/** a round that sends more than this share of what the last one did will not get further */
const SHARE_MAX = 0.75;
/** what was written in less time is not worth a round */
const IDLE_MS_MIN = 200;
/** all rounds after the first, unless that took longer */
const AGAIN_MS_MAX = 5_000;

export class PrecopyRounds {
  readonly #rounds: PrecopyRound[] = [];
  readonly #spaceBytes: number;
  /** by performance.now(): the last of them … */
  #endedMs = 0;
  /** … and between the one before it and its beginning */
  #idleMs = 0;

  /** @param spaceBytes that the target has for images: a further round must leave room for what will be sent of the frozen tree */
  constructor(spaceBytes: number) {
    this.#spaceBytes = spaceBytes;
  }

  get rounds(): readonly PrecopyRound[] {
    return this.#rounds;
  }

  get bytes(): number {
    return sum(this.#rounds, ({ bytes }) => bytes);
  }

  /** One that has just ended. @param idleMs between the one before it and its beginning */
  add(round: PrecopyRound, idleMs = 0): void {
    this.#rounds.push(round);
    this.#idleMs = idleMs;
    this.#endedMs = performance.now();
  }

  /** Since the last round ended. @param nowMs by performance.now() */
  idleMs(nowMs = performance.now()): number {
    return this.#rounds.length === 0 ? 0 : nowMs - this.#endedMs;
  }

  /** Whether a further round, or the first, is worth it. */
  isAnother(): boolean {
    const last = this.#rounds.at(-1);
    if (last === undefined) return true;
    const before = this.#rounds.at(-2);
    const again = this.#rounds.slice(1);
    return (
      this.#rounds.length < ROUNDS_MAX &&
      last.bytes >= BYTES_MIN &&
      (before === undefined || last.bytes <= before.bytes * SHARE_MAX) &&
      sum(again, ({ ms }) => ms) < Math.max(AGAIN_MS_MAX, this.#rounds[0]?.ms ?? 0) &&
      this.#hasRoom(last)
    );
  }

  /** After a wait in which as much may have changed as in the last round: one more is worth it, whatever that one brought. */
  isLate(idleMs = this.idleMs()): boolean {
    const last = this.#rounds.at(-1);
    return last !== undefined && idleMs > Math.max(IDLE_MS_MIN, last.ms) && this.#hasRoom(last);
  }

  /** … as large as the last one, and as much again when all stands still */
  #hasRoom(last: PrecopyRound): boolean {
    return this.bytes + 2 * last.bytes <= this.#spaceBytes;
  }

  /** How fast the application writes to pages that the target has: by what changed while the round before was under way. null: one round says nothing */
  get dirtyBytesPerSecond(): number | null {
    const [before, last] = this.#rounds.slice(-2);
    if (before === undefined || last === undefined) return null;
    return (last.bytes / Math.max(1, before.ms + this.#idleMs)) * 1_000;
  }
}

function sum<T>(all: readonly T[], of: (one: T) => number): number {
  return all.reduce((total, one) => total + of(one), 0);
}
