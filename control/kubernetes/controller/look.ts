/** One look at a Migration: what there is, what follows from it, and one action at most. */
import type { Migration } from "../../api/resources.ts";
import type { Done } from "./act.ts";
import { type Calls, gather, gatherAfter, gatherAgain } from "./gather.ts";
import type { Action } from "./next.ts";
import type { Observed } from "./observed.ts";
import { plan } from "./plan.ts";

/**
 * When an object was written to meanwhile, it alone is read again and the plan is made again. Reading all takes a dozen calls: where others
 * write as often as that, nothing would ever be done.
 */
const AGAIN_MAX = 10;
/** what was read is no older than it may be at the end of one slow look */
const FRESH_MS = 1_000;

/** What a look knows when it begins, from the one before. */
export interface Known {
  observed: Observed;
  readMs: number;
}

export interface Look {
  migration: Migration;
  /** null: there is nothing to do for now */
  action: Action | null;
  isDone: boolean;
  wakeMs: number | null;
  /** when it was planned */
  nowMs: number;
  /** for the next look, where that follows at once; null: it reads all */
  known: Known | null;
}

/**
 * @param carryOut as `act`: null where what was decided by is not so any more
 * @returns null: the Migration is not there
 */
export async function look(
  api: Calls,
  { namespace, name }: { namespace: string; name: string },
  clock: () => number,
  carryOut: (migration: Migration, action: Action) => Promise<Done | null>,
  known: Known | null = null,
): Promise<Look | null> {
  const before = known !== null && isFresh(known, clock()) ? known : null;
  const readMs = before?.readMs ?? clock();
  const first = before?.observed ?? (await gather(api, namespace, name));
  if (first === null) return null;
  let observed = first;
  for (let again = 0; ; again += 1) {
    const { migration } = observed;
    const nowMs = clock();
    const { action, wakeMs } = plan(observed, nowMs);
    const done = action === null ? null : await carryOut(migration, action);
    const looked = { migration, action, isDone: done !== null, wakeMs, nowMs };
    if (action !== null && done !== null) {
      // what was done is done, and said: what cannot be read now the next look reads
      const after = await gatherAfter(api, observed, action, done.object).catch(() => null);
      return { ...looked, known: after === null ? null : { observed: after, readMs } };
    }
    const fresh = action === null || again === AGAIN_MAX ? null : await gatherAgain(api, observed, action);
    if (fresh === null) return { ...looked, known: null };
    observed = fresh;
  }
}

function isFresh({ readMs }: Known, nowMs: number): boolean {
  // the clock may be set back
  return nowMs >= readMs && nowMs - readMs <= FRESH_MS;
}
