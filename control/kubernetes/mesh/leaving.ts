/**
 * When a DestinationRule may lose subsets, or go: some time after no route leads to them any more. What comes to istiod together it tells
 * Envoys together, clusters before routes: requests are answered 503 in between, where a subset has gone.
 */
import type { Resource } from "#envoy/generate/resource.ts";

/** istiod has told every Envoy what was written before */
export const SETTLE_MS = 5_000;

export class Leaving {
  readonly #settleMs: number;
  /** since when the routes of each rule are what they are to be */
  readonly #since = new Map<string, number>();

  constructor(settleMs: number) {
    this.#settleMs = settleMs;
  }

  /** @param routesAreRight as the API server has them. @returns whether it is time; else it is to be asked again */
  isTime(rule: string, routesAreRight: boolean): boolean {
    if (!routesAreRight) {
      this.#since.delete(rule);
      return false;
    }
    const now = performance.now();
    const since = this.#since.get(rule) ?? now;
    const isTime = now - since >= this.#settleMs;
    if (isTime) this.#since.delete(rule);
    else this.#since.set(rule, since);
    return isTime;
  }
}

interface Rule {
  spec?: object;
}

/** What `found` has of subsets that the rule is not to have any more. */
export function lostSubsets(found: Rule | undefined, rule: Rule): { name: string }[] {
  const kept = new Set(subsetsOf(rule).map(({ name }) => name));
  return subsetsOf(found).filter(({ name }) => !kept.has(name));
}

export function withSubsets<T extends Resource>(rule: T, more: readonly object[]): T {
  return { ...rule, spec: { ...rule.spec, subsets: [...subsetsOf(rule), ...more] } };
}

function subsetsOf(rule: Rule | undefined): { name: string }[] {
  return ((rule?.spec ?? {}) as { subsets?: { name: string }[] }).subsets ?? [];
}
