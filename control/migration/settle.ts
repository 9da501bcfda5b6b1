/**
 * Who goes on when a move was cut off. The store decides; where it cannot be asked or has forgotten, the other node's
 * word does. Both sides ask here, in mid-move and after a restart.
 *
 *   not tried to commit          the source goes on: no target can come alive without a commit
 *   commit tried                 `takeBack` (the target can then no longer mark itself released), or its "gave-up"
 *   the target was given word    (`grant`: it came alive though the store was silent) only its own word counts
 */
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Workload } from "../agent/workload.ts";
import { type Outcome, outcomeReply } from "./move.ts";

export const STORE_RETRY_MS = 200;
const PEER_MS_MAX = 1_000;

/** The store did not answer, or has lost what it knew: no proof of anything, ask somebody else. */
export function isNoAnswer(error: unknown): boolean {
  return error instanceof HoldfastError && (error.retryable || error.code === "STORE_ABSENT");
}

export interface Unclear {
  migration: string;
  peer: string;
  /** the target's */
  epoch: number;
  granted: boolean;
}

/**
 * At the source, after a commit that may have happened: asks until somebody knows.
 * `here`: this node goes on, at `epoch` if the store has given one.
 */
export async function decideAtSource(
  workload: Workload,
  unclear: Unclear,
): Promise<{ where: "here"; epoch: number | null } | { where: "there" }> {
  for (let attempt = 0; ; attempt++) {
    const told = unclear.granted ? await hasReleased(workload, unclear) : await takeBack(workload, unclear);
    if (told !== null) return told;
    const word = await askTarget(workload, unclear);
    if (word === "released") return { where: "there" };
    if (word === "gave-up") return { where: "here", epoch: null };
    if (attempt === 0)
      workload.context.log.warn(
        { workload: workload.name, migration: unclear.migration, peer: unclear.peer },
        "neither the store nor the other node says who has the workload: its clients wait until one does",
      );
    await delay();
    workload.throwIfClosed();
  }
}

async function takeBack(
  workload: Workload,
  { migration }: Unclear,
): Promise<{ where: "here"; epoch: number } | { where: "there" } | null> {
  const { context, name } = workload;
  try {
    const { epoch } = await context.store.takeBack({ workload: name, node: context.node, migration });
    return { where: "here", epoch };
  } catch (error) {
    if (error instanceof HoldfastError && error.code === "STORE_FENCED") return { where: "there" };
    if (!isNoAnswer(error)) throw error;
    return null;
  }
}

/** Only looks: the target may be alive without the store knowing it yet. */
async function hasReleased(workload: Workload, { peer, epoch }: Unclear): Promise<{ where: "there" } | null> {
  const ownership = await workload.context.store.ownership(workload.name).catch(() => null);
  const released = ownership?.owner === peer && ownership.epoch >= epoch && ownership.state === "released";
  return released ? { where: "there" } : null;
}

async function askTarget(workload: Workload, { peer, migration, epoch }: Unclear): Promise<Outcome | null> {
  try {
    const channel = await workload.context.dial(peer, PEER_MS_MAX);
    try {
      const params = { workload: workload.name, migration, epoch };
      const { result } = await channel.call("outcome", params, { timeoutMs: PEER_MS_MAX });
      return outcomeReply.parse(result).outcome;
    } finally {
      channel.close();
    }
  } catch {
    return null;
  }
}

/**
 * At the target, when the source is gone: whether this node owns the workload. After "not-mine" no commit can follow;
 * a store that has forgotten everything has no commit either.
 * @param given true when the source has been told meanwhile that this node gave up
 */
export async function decideAtTarget(
  workload: Workload,
  migration: string,
  epoch: number,
  given: () => boolean,
): Promise<"mine" | "not-mine"> {
  const { context, name } = workload;
  for (;;) {
    if (given()) return "not-mine";
    try {
      const ownership = await context.store.cancel({ workload: name, migration });
      return ownership.owner === context.node && ownership.epoch === epoch ? "mine" : "not-mine";
    } catch (error) {
      if (!(error instanceof HoldfastError && error.retryable)) return "not-mine";
    }
    await delay();
    workload.throwIfClosed();
  }
}

export function delay(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, STORE_RETRY_MS));
}
