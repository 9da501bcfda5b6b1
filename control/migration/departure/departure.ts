/**
 * A move, seen from the node that gives the workload away. It leads; the target (`../arrival/arrival.ts`) follows.
 *
 * Up to the commit every failure ends in `rollback`: repair goes off on the application's sockets and on our legs, the
 * stopped tree goes on, the target forgets what it got. From the commit on the store tells who owns the workload: this
 * node may take it back only while the target has not marked it released, or when the target itself says that it gave up
 * (`../settle.ts`). What it can no longer take back it retires.
 */
import { randomUUID } from "node:crypto";
import { readFile, rm } from "node:fs/promises";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { type Finding, refuse } from "../../api/finding.ts";
import type { MoveResult } from "../../api/migration.ts";
import { decodeStats } from "../../criu/protocol.ts";
import { identify, treeOf } from "../../runtime/processes.ts";
import type { MigrationHost } from "../host.ts";
import { leftByCriu } from "../left-by-criu.ts";
import { type Measured, predict, tooMuchMemory } from "../prediction.ts";
import { Rehearsal } from "../rehearsal.ts";
import { takeEach } from "../steps.ts";
import { anonymousBytes, tracedTree } from "../traced-tree.ts";
import { commit, passSignalsOn, release } from "./commit.ts";
import { dump, leavesPages } from "./dump.ts";
import { type DepartureOptions, imagesDirOf, type Move, Opened } from "./move.ts";
import { type Prepared, prepare } from "./prepare.ts";
import { Progress, round } from "./progress.ts";
import { Reached, unknownMove } from "./reached.ts";
import { restore, transfer } from "./restore.ts";
import { rollback } from "./rollback.ts";
import { Stop } from "./stop.ts";

/** How it came out; moved: at which epoch the target goes on, and where its proxy takes links. */
type Outcome =
  | { readonly outcome: "rolled-back" | "rehearsed" }
  | { readonly outcome: "moved"; readonly epoch: number; readonly link: Endpoint };

export class Departure {
  readonly #move: Move;

  constructor(host: MigrationHost, options: DepartureOptions) {
    const { name, context, downstream } = host;
    const { to, signal, deadlineMs, report } = options;
    this.#move = {
      id: randomUUID(),
      host,
      options,
      stop: new Stop(signal, deadlineMs),
      progress: new Progress({ workload: name, from: context.node, to, downstream }, report),
      rehearsal: new Rehearsal(),
      reached: new Reached(),
      opened: new Opened(),
      openToTheEnd: new Opened(),
      inHand: [],
    };
  }

  /** Resolves in every case in which the workload has exactly one owner again; `outcome` says which. */
  async run(): Promise<MoveResult> {
    const move = this.#move;
    const { progress } = move;
    let outcome: Outcome;
    let passOn: (() => Promise<void>) | undefined;
    try {
      const prepared = await progress.phase(
        "prepare",
        () => prepare(move),
        () => copies(progress.result),
      );
      if (move.options.rehearse) return await rehearsed(move, prepared);
      const legs = await move.host.keeper.countSessions();
      const facts = await measured(move, prepared, { legs, storeMs: 0, leavesPages: true });
      progress.result.prediction = predict(facts);
      await refuseTooMuchMemory(move, prepared, facts);
      const dumped = await dump(move, prepared);
      passOn = () => passSignalsOn(move, prepared, dumped);
      const transferred = await progress.phase("transfer", () => transfer(move, prepared, dumped));
      await progress.phase("restore", () => restore(move, prepared, dumped, transferred));
      await progress.phase("commit", () => commit(move, prepared, dumped));
      await progress.phase("release", () => release(move, prepared));
      await passOn();
      outcome = { outcome: "moved", epoch: prepared.epoch, link: prepared.link };
    } catch (error) {
      return await finish(move, await failed(move, error), passOn);
    }
    move.host.context.faults.at("source:retire");
    return await finish(move, outcome, passOn);
  }

  /** The target asks this when the store cannot tell: from here on nothing is taken back without the target's word. */
  grantRelease(migration: string): void {
    const { id, reached, host } = this.#move;
    if (migration !== id) throw unknownMove();
    reached.granted();
    host.recordMoving({ step: "granted" });
  }
}

/** What was copied before the hold, for people. */
function copies({ precopyBytes, precopyRounds, dirtyBytesPerSecond }: MoveResult): string {
  const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
  const written =
    dirtyBytesPerSecond === null ? "" : `, ${megabytes(dirtyBytesPerSecond)}/s written meanwhile`;
  return `${megabytes(precopyBytes)} of memory in ${precopyRounds.length} round${precopyRounds.length === 1 ? "" : "s"}${written}`;
}

/** Everything up to the hold has been done. */
async function rehearsed(move: Move, prepared: Prepared): Promise<MoveResult> {
  const { channel, sender } = prepared;
  const { host, stop, progress, rehearsal } = move;
  const legs = await host.keeper.countSessions();
  const storeAtMs = performance.now();
  await host.context.store.ping();
  const storeMs = performance.now() - storeAtMs;
  await rehearsal.asked(() => stop.call(channel, "idle", {}));
  progress.result.sessions = legs;
  const canLeavePages = await leavesPages(host, sender, await host.freezer());
  const facts = await measured(move, prepared, { legs, storeMs, leavesPages: canLeavePages });
  progress.result.prediction = predict(facts);
  stop.throwIfStopped();
  await refuseTooMuchMemory(move, prepared, facts);
  await progress.phase("undo", () => rollback(move));
  return await finish(move, { outcome: "rehearsed" });
}

async function measured(
  { host, rehearsal }: Move,
  { root }: Prepared,
  of: Pick<Measured, "legs" | "storeMs" | "leavesPages">,
): Promise<Measured> {
  const { downstream, limits } = host;
  const { holdMsMax } = host.config.limits;
  const copiedBytesMax = limits.precopyBytesMax;
  return await rehearsal.measured(await treeOf(root), { ...of, downstream, holdMsMax, copiedBytesMax });
}

/** @throws HoldfastError `PREFLIGHT`: clients would be held until the deadline, and for nothing */
async function refuseTooMuchMemory(move: Move, { root }: Prepared, all: Measured): Promise<void> {
  const { host, options, progress } = move;
  if (tooMuchMemory(all, options.deadlineMs) === null) return;
  // pages that were forked may travel once
  const imageBytes = Math.min(all.imageBytes, await anonymousBytes(await tracedTree(root)));
  const obstacle = tooMuchMemory({ ...all, imageBytes }, options.deadlineMs);
  if (obstacle === null) return;
  const { node } = host.context;
  const finding: Finding = {
    id: "memory.past-deadline",
    category: "memory",
    node,
    workload: host.name,
    severity: "error",
    ...obstacle,
  };
  progress.result.check?.findings.push(finding);
  refuse([finding], node);
}

async function failed(move: Move, error: unknown): Promise<Outcome> {
  const { id, host, options, progress, opened } = move;
  const reason = messageOf(options.signal.aborted ? options.signal.reason : error);
  progress.result.reason = reason;
  host.context.log.warn({ workload: host.name, migration: id, reason }, "move failed");
  return progress.phase("rollback", async () => {
    await opened.stopReading((stopped) => {
      host.context.log.warn({ workload: host.name, reason: messageOf(stopped) }, "reading was cut off");
    });
    const back = await rollback(move);
    if (back.outcome === "rolled-back") await tellHarm(move);
    return back;
  });
}

/** Where CRIU has died in the middle of its dump, going back does not undo all that it had done. */
async function tellHarm({ host, progress, inHand }: Move): Promise<void> {
  const { harm, memory } = await leftByCriu(inHand);
  const { name, context } = host;
  if (memory.length > 0) context.log.warn({ workload: name, pids: memory }, "memory of CRIU's is left in it");
  if (harm.length === 0) return;
  const { result } = progress;
  const what = harm.join(", ");
  result.reason = `${result.reason}; what CRIU had begun has harmed the application: ${what}`;
  context.log.error({ workload: name, harm }, "CRIU was killed, and has harmed the application");
  const [root = -1] = inHand;
  host.harmed(await identify(root), what);
}

/**
 * Closes what was opened; the workload goes on elsewhere, or has gone on here.
 * @param passOn what its processes here are sent until they have ended; absent: nothing has looked for that
 */
async function finish(move: Move, outcome: Outcome, passOn?: () => Promise<void>): Promise<MoveResult> {
  const { host, options, stop, progress, reached, opened, openToTheEnd } = move;
  const { result } = progress;
  stop.endDeadline();
  result.outcome = outcome.outcome;
  result.holdMs = round(progress.pause.ms);
  const closeChannel = (): void => {
    if ("channel" in reached.step) reached.step.channel.close();
  };
  if (outcome.outcome !== "moved") closeChannel(); // a sender that waits for the target ends
  const isLeft = (what: string, error: unknown): void =>
    host.context.log.warn({ workload: host.name, reason: messageOf(error) }, `${what}; continuing`);
  const isLeftOpen = (error: unknown): void => isLeft("what the move had opened was not closed", error);
  await opened.close(isLeftOpen);
  const stats = await dumpStats(host);
  result.criuMs.dump = round(((stats?.dump?.freezingUs ?? 0) + (stats?.dump?.frozenUs ?? 0)) / 1000);
  try {
    if (outcome.outcome === "moved") {
      const { epoch, link } = outcome;
      await progress.phase("retire", () => host.retire(epoch, { node: options.to, link }));
      await passOn?.();
    } else {
      const remove = (): Promise<void> => rm(imagesDirOf(host), { recursive: true, force: true });
      await takeEach({ "images are left": remove }, isLeft);
    }
  } finally {
    await openToTheEnd.close(isLeftOpen);
    closeChannel();
  }
  return progress.ended();
}

/** null: it has not dumped anything, or what it wrote has gone with the container */
async function dumpStats(host: MigrationHost): Promise<ReturnType<typeof decodeStats> | null> {
  try {
    return decodeStats(await readFile(`${imagesDirOf(host)}/stats-dump`));
  } catch {
    return null;
  }
}
