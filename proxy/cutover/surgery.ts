/**
 * Legs in the surgeon's hands: other events run meanwhile, and a session may end. Its detached legs are watched by nobody,
 * so no byte of theirs passes; their descriptors stay open until the surgeon has answered (see `detached-legs`).
 */
import assert from "node:assert/strict";
import type { Outcome } from "#proxy/contract/leg-surgeon.ts";
import type { DetachedLeg } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

/** One outcome a leg; the descriptors of those that were let go meanwhile are closed. */
export async function operate<T>(
  { kernel }: WorkloadProxy,
  legs: readonly DetachedLeg[],
  work: () => Promise<Outcome<T>[]>,
): Promise<Outcome<T>[]> {
  for (const leg of legs) {
    assert(!leg.inSurgery, "a leg is in one operation at a time");
    leg.inSurgery = true;
  }
  try {
    return sameCount(await work(), legs.length);
  } finally {
    for (const leg of legs) {
      leg.inSurgery = false;
      if (leg.isLetGo) kernel.close(leg.fd);
    }
  }
}

/** Outcomes belong to legs by their place. */
export function sameCount<T>(outcomes: Outcome<T>[], legs: number): Outcome<T>[] {
  assert.equal(outcomes.length, legs, "the surgeon answers for each leg");
  return outcomes;
}
