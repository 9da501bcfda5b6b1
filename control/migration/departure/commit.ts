/** The phases commit and release: from the commit on the store tells who owns the workload. */
import type { AdoptResult, CaptureResult } from "#proxy/contract/commands.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { seal } from "#proxy/store/seal.ts";
import { type ReleaseReply, releaseReply } from "../../api/migration.ts";
import { type CapturedBody, carryLegs } from "./carry-legs.ts";
import type { Dumped } from "./dump.ts";
import type { Move } from "./move.ts";
import type { Prepared } from "./prepare.ts";
import { round } from "./progress.ts";

const NO_BYTES = Buffer.alloc(0);
/** Held legs are worth keeping only as long as somebody may still come for them. */
const HELD_TTL_MS = 10 * 60_000;
const SIGNALS_MS_MAX = 5_000;
const MORE_SIGNALS =
  "signals sent while the move was committed: more than can be kept, of each number one was passed on";

export async function commit(move: Move, { channel, epoch }: Prepared, { signals }: Dumped): Promise<void> {
  const { id, host, stop, progress, reached } = move;
  const { context, journal, name } = host;
  stop.throwIfStopped();
  const { timeline } = progress;
  await timeline.during("source agent", "anchors settle", () => host.anchors.settle(journal.epoch));
  const captured = await captureDownstream(move);
  // More than the store is to keep, nobody shall need there: whoever goes on has the legs already.
  const isTooMuch =
    captured !== null && (captured.result.left > 0 || captured.body.length > host.limits.storedLegsBytesMax);
  let adopted: AdoptResult | null = null;
  if (isTooMuch) adopted = await stop.untilStopped(carryLegs(move, channel, "adoptDownstream", captured));
  const stored = captured === null || isTooMuch ? NO_BYTES : captured.body;
  context.faults.at("source:commit");
  stop.throwIfStopped();
  signals.throwIfMore();
  const held = seal(context.ring.first, { workload: name, epoch, kind: "held" }, stored);
  host.recordMoving({ step: "committing" });
  reached.committing();
  // the target adopts these legs meanwhile: silent, shielded, and forgotten if the commit fails
  const adopting =
    captured === null || isTooMuch ? null : carryLegs(move, channel, "adoptDownstream", captured);
  const committing = timeline.during("store", "commit", () =>
    context.store.commit({
      workload: name,
      node: context.node,
      epoch: journal.epoch,
      migration: id,
      held,
      ttlMs: HELD_TTL_MS,
    }),
  );
  // both have ended before anything is taken back
  await Promise.allSettled([committing, adopting]);
  await committing;
  adopted ??= await adopting;
  if (adopted !== null) progress.adopted(adopted, "clients' connections");
  stop.endDeadline();
  context.faults.at("source:committed");
}

/** Takeover: the clients' legs, and the address off this node. null: they stay where they are */
async function captureDownstream({ host, progress }: Move): Promise<CapturedBody | null> {
  if (host.vip === null) return null;
  const { epoch } = host.journal;
  const captured = await progress.timeline.during("source proxy", "captures clients' legs", () =>
    host.proxy.command<"captureDownstream", CaptureResult>("captureDownstream", { epoch }),
  );
  progress.captured(captured.result);
  host.vip.remove();
  return captured;
}

/** A target that does not answer is no longer waited for: the store tells what it did. */
export async function release({ options, progress }: Move, { channel }: Prepared): Promise<void> {
  const releaseMs = performance.now();
  const { result } = await channel.call<ReleaseReply>("release", {}, { timeoutMs: options.deadlineMs });
  progress.pause.ends();
  progress.result.criuMs.restore = round(result.criuRestoreMs);
  progress.toldByTarget(releaseReply.shape.timeline.parse(result.timeline), releaseMs);
}

/** What was sent to the frozen application since the last look, and arrives a moment late. The move stands, whatever comes of it. */
export async function passSignalsOn(
  { host, progress }: Move,
  { channel }: Prepared,
  { signals }: Dumped,
): Promise<void> {
  const { notKept } = progress.result;
  if (signals.areMore && !notKept.includes(MORE_SIGNALS)) notKept.push(MORE_SIGNALS);
  const sent = signals.sent();
  if (sent.length === 0) return;
  const { name, context } = host;
  try {
    await channel.call("signals", { sent }, { timeoutMs: SIGNALS_MS_MAX });
    context.log.info({ workload: name, signals: sent.length }, "signals passed on");
  } catch (error) {
    context.log.warn({ workload: name, signals: sent, reason: messageOf(error) }, "signals lost");
    for (const { process, signal } of sent)
      notKept.push(`process ${process}: signal ${signal}, sent while the move was committed`);
  }
}
