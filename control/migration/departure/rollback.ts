/** The way back, from wherever a departure has come to. */
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { type OutcomeReply, outcomeReply } from "../../api/migration.ts";
import { goBack } from "../settle.ts";
import type { Move } from "./move.ts";
import { departedAt, NO_LINK, type Step } from "./reached.ts";

const ABORT_MS_MAX = 1_000;
const FORGOTTEN_MS_MAX = 10_000;
/** a rolled-back move is reported when the store knows of it too, or after this */
const STORE_MS_MAX = 1_500;

export type RolledBack =
  | { readonly outcome: "rolled-back" }
  /** it was too late: the target has released, and goes on at this epoch; its proxy takes links there */
  | { readonly outcome: "moved"; readonly epoch: number; readonly link: Endpoint };

export async function rollback({ id, host, options, stop, reached }: Move): Promise<RolledBack> {
  stop.endDeadline();
  const step = reached.goBack();
  const departed = departedAt(step);
  // without a commit the target cannot come alive: nobody has to wait until it has heard
  const asked = askTargetToGiveUp(step);
  const settled = await goBack(
    host,
    { migration: id, peer: options.to, ...departed },
    departed.commitTried ? await asked : null,
    async () => {
      if (!("worker" in step)) return;
      await step.worker.close().catch((error: unknown) => {
        host.context.log.warn({ workload: host.name, reason: messageOf(error) }, "CRIU did not end in order");
      });
    },
  );
  if (settled.where === "there")
    return { outcome: "moved", epoch: settled.epoch, link: "link" in step ? step.link : NO_LINK };
  if ((await asked) !== null && "channel" in step)
    await step.channel.call("forgotten", {}, { timeoutMs: FORGOTTEN_MS_MAX }).catch(() => {});
  await host.outbox.flushed(STORE_MS_MAX);
  host.context.log.info({ workload: host.name, epoch: host.journal.epoch }, "going on here");
  return { outcome: "rolled-back" };
}

/** null: no answer */
async function askTargetToGiveUp(step: Step): Promise<OutcomeReply | null> {
  if (step.at === "undialled") return { outcome: "gave-up", epoch: 0 }; // it was never told anything
  if (!step.channel.isOpen) return null;
  try {
    const { result } = await step.channel.call("abort", {}, { timeoutMs: ABORT_MS_MAX });
    return outcomeReply.parse(result);
  } catch {
    return null;
  }
}
