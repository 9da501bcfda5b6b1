/**
 * In which order the subsets of a DestinationRule and the routes to them come and go: no route leads to a subset that an Envoy has not got.
 * What comes to istiod together it tells Envoys together, and they take routes at once, but a new cluster only when they have heard of its
 * endpoints, and a cluster that goes before its routes do: requests are answered 503 in between (`NC`, cluster_not_found).
 *
 *   coming    the subset, and the routes some time after
 *   going     the routes, and the subset, or the whole rule, some time after
 */
import type { Resource } from "#envoy/generate/resource.ts";

/** istiod has told every Envoy what was written before */
export const SETTLE_MS = 5_000;

/** How long what something waits for has been so. */
export class Settled {
  readonly #settleMs: number;
  /** since when, by what waits */
  readonly #since = new Map<string, number>();

  constructor(settleMs: number) {
    this.#settleMs = settleMs;
  }

  /** @param isSo as the API server has it. @returns whether it is time; else it is to be asked again */
  isTime(what: string, isSo: boolean): boolean {
    if (!isSo) {
      this.#since.delete(what);
      return false;
    }
    const now = performance.now();
    const since = this.#since.get(what) ?? now;
    const isTime = now - since >= this.#settleMs;
    if (isTime) this.#since.delete(what);
    else this.#since.set(what, since);
    return isTime;
  }
}

/** A DestinationRule or a VirtualService. */
interface Written {
  spec?: object;
}

interface Subset {
  name: string;
}

/** What `found` has of subsets that the rule is not to have any more. */
export function lostSubsets(found: Written | undefined, rule: Written): Subset[] {
  const kept = new Set(subsetsOf(rule).map(({ name }) => name));
  return subsetsOf(found).filter(({ name }) => !kept.has(name));
}

export function withSubsets<T extends Resource>(rule: T, more: readonly object[]): T {
  return { ...rule, spec: { ...rule.spec, subsets: [...subsetsOf(rule), ...more] } };
}

/** Whether routes are to lead to subsets to which those that there are do not. */
export function leadElsewhere(found: Written | undefined, routes: Written): boolean {
  const before = ledTo(found);
  return ledTo(routes).some((name) => !before.includes(name));
}

/** Whether the rule has every subset that routes lead to. */
export function hasLedTo(rule: Written | undefined, routes: Written): boolean {
  const names = subsetsOf(rule).map(({ name }) => name);
  return ledTo(routes).every((name) => names.includes(name));
}

function ledTo(routes: Written | undefined): string[] {
  const { http = [] } = (routes?.spec ?? {}) as {
    http?: { route?: { destination?: { subset?: string } }[] }[];
  };
  const subsets = http.flatMap(({ route = [] }) => route.map(({ destination }) => destination?.subset));
  return subsets.filter((name) => name !== undefined);
}

function subsetsOf(rule: Written | undefined): Subset[] {
  return ((rule?.spec ?? {}) as { subsets?: Subset[] }).subsets ?? [];
}
