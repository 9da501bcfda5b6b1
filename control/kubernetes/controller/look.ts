/** One look at a Migration: what there is, what follows from it, and one action at most. */
import type { Migration } from "../../api/resources.ts";
import { type Calls, gather, gatherAgain } from "./gather.ts";
import type { Action } from "./next.ts";
import { plan } from "./plan.ts";

/**
 * When an object was written to meanwhile, it alone is read again and the plan is made again. Reading all takes a dozen calls: where others
 * write as often as that, nothing would ever be done.
 */
const AGAIN_MAX = 10;

export interface Look {
  migration: Migration;
  /** null: there is nothing to do for now */
  action: Action | null;
  isDone: boolean;
  wakeMs: number | null;
  /** when it was planned */
  nowMs: number;
}

/**
 * @param carryOut as `act`: false where what was decided by is not so any more
 * @returns null: the Migration is not there
 */
export async function look(
  api: Calls,
  { namespace, name }: { namespace: string; name: string },
  clock: () => number,
  carryOut: (migration: Migration, action: Action) => Promise<boolean>,
): Promise<Look | null> {
  const first = await gather(api, namespace, name);
  if (first === null) return null;
  let observed = first;
  for (let again = 0; ; again += 1) {
    const { migration } = observed;
    const nowMs = clock();
    const { action, wakeMs } = plan(observed, nowMs);
    const isDone = action !== null && (await carryOut(migration, action));
    const fresh =
      action === null || isDone || again === AGAIN_MAX ? null : await gatherAgain(api, observed, action);
    if (fresh === null) return { migration, action, isDone, wakeMs, nowMs };
    observed = fresh;
  }
}
