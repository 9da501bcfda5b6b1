/**
 * What each process of a move was at, and when: kept in memory by both agents, for `npm run bench:profile -- cutover`. What CRIU and
 * the proxies did is as their agent saw it, with the way to them and back. Nothing is done in the pause but adding to an array.
 */
import type { Lane, TimelineSpan } from "../api/migration.ts";

/** of one agent; pieces of very many legs make more */
export const SPANS_MAX = 200;

export class Timeline {
  readonly #spans: TimelineSpan[] = [];

  /** Both by `performance.now()`. Beyond {@link SPANS_MAX} nothing is kept. */
  span(lane: Lane, name: string, fromMs: number, toMs = performance.now()): void {
    if (this.#spans.length < SPANS_MAX) this.#spans.push({ lane, name, fromMs, toMs });
  }

  /** Of what fails there is no span. */
  async during<T>(lane: Lane, name: string, work: () => Promise<T>): Promise<T> {
    const fromMs = performance.now();
    const result = await work();
    this.span(lane, name, fromMs);
    return result;
  }

  /**
   * A request to CRIU: spans are what it works at up to each hook, and up to its answer; in between it is kept waiting.
   * @param ask given a hook to call back
   */
  async hooked<T>(
    lane: Lane,
    onHook: (hook: string) => Promise<void>,
    ask: (onHook: (hook: string) => Promise<void>) => Promise<T>,
  ): Promise<T> {
    let fromMs = performance.now();
    const result = await ask(async (hook) => {
      this.span(lane, `to ${hook}`, fromMs);
      await onHook(hook);
      fromMs = performance.now();
    });
    this.span(lane, "to its answer", fromMs);
    return result;
  }

  /** In the order of their beginnings, in ms from `zeroMs`, to hundredths. */
  since(zeroMs: number): TimelineSpan[] {
    return moved(this.#spans, -zeroMs).sort((one, other) => one.fromMs - other.fromMs);
  }
}

/**
 * One timeline of both agents': the target's clock is another one. Its spans count from when it received `release`, and are laid
 * where the source sent that: so they stand too early by the way there, which is a round trip at most. (`restore` would do, but
 * the source is busy then, and sends it tens of milliseconds late.)
 * @param source in ms from the hold, as is `releaseMs`, when the source sent `release`
 * @returns in the order of their beginnings; what was over before the hold is left out
 */
export function placed(
  source: readonly TimelineSpan[],
  target: readonly TimelineSpan[],
  releaseMs: number,
): TimelineSpan[] {
  return [...source, ...moved(target, releaseMs)]
    .filter(({ toMs }) => toMs > 0)
    .sort((one, other) => one.fromMs - other.fromMs);
}

function moved(spans: readonly TimelineSpan[], byMs: number): TimelineSpan[] {
  const at = (ms: number): number => Math.round((ms + byMs) * 100) / 100;
  return spans.map(({ lane, name, fromMs, toMs }) => ({ lane, name, fromMs: at(fromMs), toMs: at(toMs) }));
}
