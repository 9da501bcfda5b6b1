/**
 * The restore: images become the application, which stays silent and does not run. CRIU is kept waiting in the hooks that matter:
 *
 *   pre-restore             it has read every image but those of memory               memory is complete
 *   setup-namespaces        the root is there, in the container's control group       CRIU leaves that group
 *   post-setup-namespaces   its namespaces are there, and nothing else of it          message queues are made
 *   post-restore            everything is there, in repair mode                       the proxy has its legs too
 *   pre-resume              CRIU is about to let go of the tree                       we freeze it
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { RestoreCall, RestoreReply } from "../../api/migration.ts";
import type { InstanceState } from "../../api/watches.ts";
import { semaphoresOf } from "../../audit/semaphores-of.ts";
import { fitToMachine } from "../../criu/address-space.ts";
import { withCriuReason } from "../../criu/failure.ts";
import type { ProcessDigest } from "../../criu/memory-digest.ts";
import type { InheritFd } from "../../criu/protocol.ts";
import { adoptOrphans } from "../../criu/subreaper.ts";
import type { Freezer } from "../../runtime/freezer.ts";
import { makeQueues, QueueStands, showQueues } from "../../runtime/posix-queues.ts";
import { identify, treeOf } from "../../runtime/processes.ts";
import type { MigrationHost } from "../host.ts";
import { fitOwnSockets, type OwnSockets, putBackOwnSockets, readOwnSockets } from "../own-sockets.ts";
import { putBackTerminals } from "../terminals.ts";
import type { Timeline } from "../timeline.ts";
import { restoredMemory } from "../verify-memory.ts";
import { countsOf, overflowOf, put as putWatches } from "../watches.ts";
import { auditRestored } from "./audit-restored.ts";
import type { ImageIntake } from "./image-intake.ts";
import type { Application, ArrivalState, Informed } from "./state.ts";

/** What an arrival goes by when it restores. */
export interface Restoring extends Informed {
  readonly host: MigrationHost;
  readonly state: ArrivalState;
  readonly images: ImageIntake;
  readonly timeline: Timeline;
  /** settles when the proxy has the legs to the application */
  readonly adopted: Promise<void>;
  /** … when images of memory are complete that were to follow */
  readonly memoryComplete: Promise<void>;
}

/**
 * @param queues of POSIX messages, from `readQueues`
 * @throws HoldfastError `MIGRATION_ABORTED` as soon as it is given up; `CRIU_RESTORE`, `AUDIT_DIFFERENCE` and many others
 */
export async function restore(
  restoring: Restoring,
  call: RestoreCall,
  queues: Buffer,
): Promise<{ application: Application; reply: RestoreReply }> {
  const { host, state, container, criu, before, timeline } = restoring;
  const imagesFromMs = performance.now();
  host.context.faults.at("target:restore");
  const imagesDir = container.hostPath("images");
  if (call.memoryFollows) restoring.images.completeSome(call.manifest);
  else restoring.images.complete(call.manifest);
  fitToMachine(imagesDir);
  timeline.span("target agent", "completes images", imagesFromMs);
  await timeline.during("target agent", "looks for numbers in the way", () => criu.stepAside());
  const recordFromMs = performance.now();
  const worker = await identify(criu.pid);
  state.throwIfGivenUp(); // what is on record, and on the device, may be another move's
  host.recordMoving({ criu: worker, stopped: call.stopped });
  timeline.span("target agent", "records CRIU", recordFromMs);
  // CRIU leaves repair mode for what a socket had not sent yet: a peer that is not there answers with RST
  await state.untilGivenUp(restoring.adopted);
  state.throwIfGivenUp();
  const fitFromMs = performance.now();
  const ownSockets = fitSockets(restoring);
  const semaphores = criu.takeSemaphores(semaphoresOf(before));
  const stands = new QueueStands(container, call.openQueues);
  timeline.span("target agent", "fits own sockets, semaphores, queues", fitFromMs);
  const inNamespaces = async (root: number): Promise<void> => {
    await adoptOrphans(imagesDir, root);
    makeQueues(root, queues);
    await showQueues(container, root);
    stands.put();
  };
  const application = await state.untilGivenUp(
    runCriu(restoring, call, { ownSockets, semaphores, inNamespaces }),
  );
  stands.remove();
  state.throwIfGivenUp();
  await timeline.during("target agent", "puts watches back", () =>
    putWatchesBack(restoring, application, call.watches),
  );
  host.context.faults.at("target:audit");
  const reply = await timeline.during("target agent", "audits", () =>
    auditRestored(host, { container, root: application.root, ownSockets }, before),
  );
  state.throwIfGivenUp();
  return { application, reply };
}

/** @returns null: the application has none that are restored apart */
function fitSockets({ host, container }: Restoring): OwnSockets | null {
  const { config, vip } = host;
  const imagesDir = container.hostPath("images");
  const ownSockets = readOwnSockets(imagesDir);
  const needVip =
    ownSockets !== null &&
    fitOwnSockets(imagesDir, ownSockets, { initPid: container.init.pid, vip: config.vip?.address });
  if (needVip || config.outbound === "keep") vip?.park(); // they need the address here, where it comes later
  return ownSockets;
}

interface RunOptions {
  ownSockets: OwnSockets | null;
  semaphores: InheritFd[];
  /** called with the root of the tree when its namespaces are there, and nothing else of it */
  inNamespaces(root: number): Promise<void>;
}

async function runCriu(
  { host, state, container, criu, adopted, memoryComplete, timeline }: Restoring,
  { outputPipes, root: innerRoot, memoryFollows }: RestoreCall,
  { ownSockets, semaphores, inNamespaces }: RunOptions,
): Promise<Application> {
  const { context, limits } = host;
  const imagesDir = container.hostPath("images");
  const startedMs = performance.now();
  const freezer = await host.freezer();
  let spared: Promise<void> = Promise.resolve();
  /** null: nothing changes it before it is asked for */
  let memory: ProcessDigest[] | null = null;
  try {
    const asked = {
      logFile: "restore.log",
      logLevel: context.log.isLevelEnabled("debug") ? 4 : 2,
      ghostLimitBytes: limits.imagesBytesMax,
      leave: freezer === null ? "stopped" : "running",
    } as const;
    const atHook = async (hook: string): Promise<void> => {
      if (hook === "pre-restore" && memoryFollows) await state.untilGivenUp(memoryComplete);
      if (hook === "setup-namespaces" && freezer !== null) {
        spared = criu.spare(freezer);
        spared.catch(() => {}); // looked at before the freeze
      }
      if (hook === "post-setup-namespaces")
        await timeline.during("target agent", "makes message queues", async () =>
          inNamespaces(await criu.madeRoot(innerRoot)),
        );
      // repair mode ends only when both ends of each session are there
      if (hook === "post-restore") await state.untilGivenUp(adopted);
      if (hook !== "pre-resume") return;
      const made = (): Promise<number> => criu.madeRoot(innerRoot);
      const fromMs = performance.now();
      if (freezer !== null) await freezeMade(host, { freezer, spared, made });
      // SIGSTOP changes it: see `#letGo` of the source's `dump.ts`
      else if (limits.verifyMemory) memory = await restoredMemory(await made(), imagesDir);
      timeline.span("target agent", "freezes the tree", fromMs);
    };
    await timeline.hooked("target CRIU", atHook, (onHook) =>
      criu.restore(asked, { outputPipes, semaphores }, onHook),
    );
    const criuMs = performance.now() - startedMs;
    await timeline.during("target CRIU", "ends", () => criu.end()); // the tree is a child of the container's init only then
    const putBackFromMs = performance.now();
    const root = await container.applicationRoot();
    if (root === null) throw fail("RESTORED_GONE", "the restored application is not there");
    const pids = await treeOf(root);
    if (ownSockets !== null) await putBackOwnSockets(pids, ownSockets);
    await putBackTerminals(imagesDir, pids);
    timeline.span("target agent", "puts back own sockets, terminals", putBackFromMs);
    return { root, criuMs, readMemory: async () => memory ?? (await restoredMemory(root, imagesDir)) };
  } catch (error) {
    throw await withCriuReason(error, "CRIU_RESTORE", container.hostPath("images", "restore.log"));
  }
}

/** CRIU is about to let go of the tree, and would do so even if we said no: what cannot be frozen must not run. */
async function freezeMade(
  { context }: MigrationHost,
  { freezer, spared, made }: { freezer: Freezer; spared: Promise<void>; made: () => Promise<number> },
): Promise<void> {
  try {
    context.faults.at("target:freeze");
    await spared;
    await freezer.freeze();
  } catch (error) {
    for (const pid of await treeOf(await made())) kill(pid);
    throw error;
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // it has ended
  }
}

async function putWatchesBack(
  { host, container }: Restoring,
  { root }: Application,
  watches: InstanceState[],
): Promise<void> {
  const { context, name } = host;
  const atMs = performance.now();
  for (const state of await putWatches(watches, container, await treeOf(root)))
    context.log.warn({ workload: name, reason: messageOf(overflowOf(state)) }, "arrival: watches");
  if (watches.length > 0)
    context.log.info(
      { workload: name, ...countsOf(watches), ms: Math.round(performance.now() - atMs) },
      "arrival: watches set again",
    );
  context.faults.at("target:watches");
}
