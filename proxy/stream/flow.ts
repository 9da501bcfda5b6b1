/**
 * Whether one direction of a leg is worth longer queues: bytes pass fast. What is bounded by time is what waits: a bound grows
 * only while four of it pass in 50 ms, so that no more waits than passes in 25 ms. Whoever reads nothing, or slowly, from the beginning is left
 * with what a leg starts with, and a move has little to carry for it. What has grown stays so until the leg is built anew, by a move,
 * or is shortened for one (`TcpLeg.shorten`).
 */

/** What a peer that never reads may take at once (its own queues and ours): nothing is concluded from that, and no `Flow` is needed. */
export const FIRST_BYTES = 512 * 1024;
const BOUNDS = 4;
const FAST_MS = 50;

/** Begins when {@link FIRST_BYTES} have passed. */
export class Flow {
  #leftBytes = FIRST_BYTES;
  #everyBytes = FIRST_BYTES;
  #sinceMs = Math.trunc(performance.now());

  get hasGrown(): boolean {
    return this.#everyBytes > FIRST_BYTES;
  }

  /** True when the queue should grow: ask the kernel, and tell {@link grown}. */
  passed(bytes: number): boolean {
    this.#leftBytes -= bytes;
    return this.#leftBytes <= 0 && this.#isFast();
  }

  /** @param boundBytes what it is now */
  grown(boundBytes: number): void {
    this.#everyBytes = Math.max(FIRST_BYTES, boundBytes * BOUNDS);
    this.#leftBytes = this.#everyBytes;
  }

  #isFast(): boolean {
    const nowMs = Math.trunc(performance.now());
    const isFast = nowMs - this.#sinceMs <= FAST_MS;
    this.#sinceMs = nowMs;
    this.#leftBytes = this.#everyBytes;
    return isFast;
  }
}
