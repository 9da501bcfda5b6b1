/** What is taken of the application while CRIU has it frozen, and before CRIU has looked at any of its descriptors. */
import type { CaptureResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { DiagSocket } from "#proxy/kernel/diag.ts";
import { type Taken, takeFingerprint } from "../../audit/take.ts";
import { treeOf } from "../../runtime/processes.ts";
import { audited } from "../audited.ts";
import { refuseHalfReadFolders } from "../half-read-folders.ts";
import type { MigrationHost } from "../host.ts";
import { locksOnSharedMounts } from "../locks.ts";
import { leaveOwnSockets } from "../own-sockets.ts";
import { classifySockets, shieldOutbound } from "../sockets.ts";
import { leaveTerminals } from "../terminals.ts";
import { refuseUnmovableFiles } from "../unmovable-files.ts";
import { countsOf, lift as liftWatches, scratch } from "../watches.ts";
import { carryLegs } from "./carry-legs.ts";
import { imagesDirOf, type Move } from "./move.ts";
import type { Prepared } from "./prepare.ts";
import { round } from "./progress.ts";

export interface Captured {
  /** settles when the target has the legs to the application */
  readonly adopting: Promise<void>;
  readonly taken: Taken;
}

export async function capture(move: Move, prepared: Prepared): Promise<Captured> {
  await refuseSharedLocks(move.host, prepared.root);
  // before its connections to others are cut: it passes by itself, and the move is tried again
  await refuseHalfReadFolders(move.host.container, await treeOf(prepared.root));
  const [legs, taken] = await Promise.all([captureUpstream(move, prepared), closeOutbound(move, prepared)]);
  const { timeline } = move.progress;
  await timeline.during("source agent", "lifts watches", () => liftAllWatches(move.host, prepared)); // last: up to here nothing that a process could tell has changed
  return { ...legs, taken };
}

/** One taken since the preflight: the restore would wait for it until the deadline. */
async function refuseSharedLocks({ config }: MigrationHost, root: number): Promise<void> {
  const mounts = config.container?.mounts ?? [];
  if (!mounts.some((mount) => mount.shared)) return;
  const [lock] = await locksOnSharedMounts(await treeOf(root), mounts);
  if (lock === undefined) return;
  throw fail(
    "LOCK_SHARED",
    `process ${lock.pid} holds a lock on ${lock.path}, which the other node sees too`,
  );
}

/**
 * Before CRIU has looked at the application's ends: from here on nothing arrives at ours. Captured after the dump, a
 * leg could hold bytes that the dumped end believes not sent yet, as the kernel sends on while CRIU reads; that end
 * would then refuse every acknowledgement as one of the future, for good.
 */
async function captureUpstream(move: Move, { channel }: Prepared): Promise<Pick<Captured, "adopting">> {
  const { host, progress } = move;
  host.context.faults.at("source:capture");
  const { epoch } = host.journal;
  const captured = await progress.timeline.during("source proxy", "captures the application's legs", () =>
    host.proxy.command<"captureUpstream", CaptureResult>("captureUpstream", { epoch }),
  );
  progress.captured(captured.result);
  // the target adopts them while CRIU dumps
  const adopting = carryLegs(move, channel, "adopt", captured).then((adopted) =>
    progress.adopted(adopted, "connections to the application"),
  );
  adopting.catch(() => {}); // looked at by `restore`
  return { adopting };
}

/** While the application is frozen: one that is not would have connected again by the dump. */
async function closeOutbound(
  { host, progress }: Move,
  { root, fingerprintFormat }: Prepared,
): Promise<Taken> {
  const { timeline } = progress;
  const fromMs = performance.now();
  const { config, container } = host;
  const pids = await treeOf(root);
  const upstreams = config.ports.map((port) => port.upstream);
  const sockets = await classifySockets(pids, upstreams);
  const stays = (socket: DiagSocket): boolean =>
    config.outbound === "keep" && socket.local.address === config.vip?.address;
  const cut = sockets.outbound.filter((socket) => !stays(socket));
  await leaveOwnSockets(imagesDirOf(host), sockets, cut);
  // When what ends on purpose has ended; before CRIU puts sockets in repair mode and runs code of its own in the processes; and
  // before the shield, which is an option of the sockets, and not the application's. The proxy captures its legs meanwhile.
  const options = await audited(config, container, root);
  timeline.span("source agent", "leaves own sockets", fromMs);
  const fingerprintFromMs = performance.now();
  const taken = takeFingerprint({ ...options, format: fingerprintFormat });
  timeline.span("source agent", "takes the fingerprint", fingerprintFromMs);
  const shieldFromMs = performance.now();
  refuseInFlight(taken);
  refuseUnreadErrors(taken);
  leaveTerminals(imagesDirOf(host), taken.tree);
  await shieldOutbound(pids, sockets.outbound.filter(stays));
  timeline.span("source agent", "shields what stays", shieldFromMs);
  return taken;
}

/** Passed since the preflight. A session may be among them, of which no process has a descriptor, and nobody would take it along. */
function refuseInFlight(taken: Taken): void {
  const [passing] = taken.passing();
  if (passing === undefined) return;
  throw fail(
    "DESCRIPTORS_IN_FLIGHT",
    `descriptors that the application has sent to itself (SCM_RIGHTS) were not received yet: ${passing}`,
  );
}

/** Come since the preflight. No call sets it at the target, and CRIU, which reads what waits there, would take it at the source. */
function refuseUnreadErrors(taken: Taken): void {
  const [failed] = taken.failed();
  if (failed === undefined) return;
  throw fail(
    "UNIX_ERROR_UNREAD",
    `the application has not read that the other end of a Unix socket was closed before it had read all: ${failed}`,
  );
}

async function liftAllWatches(host: MigrationHost, { root, watched }: Prepared): Promise<void> {
  const pids = await treeOf(root);
  const { container, context, name } = host;
  await refuseUnmovableFiles(pids);
  const atMs = performance.now();
  const states = await liftWatches(watched, pids, scratch(container), (watches) =>
    host.recordMoving({ watches }),
  );
  if (states.length > 0)
    context.log.info(
      { workload: name, ...countsOf(states), ms: round(performance.now() - atMs) },
      "watches taken along",
    );
  context.faults.at("source:watches");
}
