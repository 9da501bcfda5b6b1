/** The phases transfer and restore: what else changed goes over, and the target makes the application of it. */
import type { MemoryCall, RestoreCall, RestoreReply } from "../../api/migration.ts";
import type { ImageManifest } from "../../criu/images.ts";
import { readQueues } from "../../runtime/posix-queues.ts";
import { readLink } from "../../runtime/read-text.ts";
import type { MigrationHost } from "../host.ts";
import { tracedTree } from "../traced-tree.ts";
import { memoryOf } from "../verify-memory.ts";
import { type Dumped, innerRoot, type MemoryDigest } from "./dump.ts";
import { imagesDirOf, type Move } from "./move.ts";
import type { Prepared } from "./prepare.ts";
import { round } from "./progress.ts";

export interface Transferred {
  /** without images of memory */
  readonly call: Omit<RestoreCall, "memoryFollows">;
  /** of POSIX messages */
  readonly queues: Buffer;
  /** null: none is wanted */
  readonly memory: MemoryDigest | null;
}

/** What else changed, but for memory. */
export async function transfer(move: Move, prepared: Prepared, dumped: Dumped): Promise<Transferred> {
  const { host, stop, progress } = move;
  const { timeline } = progress;
  const { root, sender } = prepared;
  stop.throwIfStopped();
  host.context.faults.at("source:transfer");
  const memory = dumped.memory ?? (host.limits.verifyMemory ? memoryOf(root, imagesDirOf(host)) : null);
  memory?.catch(() => {}); // looked at by `restore`
  const manifest = await timeline.during("source agent", "sends other images", () =>
    stop.untilStopped(sender.sendOthers()),
  );
  await timeline.during("source agent", "sends changed files", () => stop.untilStopped(dumped.filesSent));
  const queuesFromMs = performance.now();
  const { stopped = [], watches = [] } = host.journal.moving ?? {};
  const call = {
    manifest,
    root: await innerRoot(root),
    outputPipes: outputPipesOf(host),
    stopped,
    openQueues: dumped.openQueues,
    watches,
  };
  const queues = readQueues(root);
  timeline.span("source agent", "reads queues", queuesFromMs);
  return { call, queues, memory };
}

export async function restore(
  move: Move,
  prepared: Prepared,
  dumped: Dumped,
  { call, queues, memory }: Transferred,
): Promise<void> {
  const { host, stop, progress } = move;
  const { channel, memoryLast } = prepared;
  stop.throwIfStopped();
  host.context.faults.at("source:restore");
  const { timeline } = progress;
  await timeline.during("source agent", "sends the fingerprint", async () => dumped.fingerprintSent);
  const ask = async (more: Partial<RestoreCall>): Promise<RestoreReply> =>
    (await stop.call<RestoreReply>(channel, "restore", { ...call, ...more }, queues)).result;
  const last = (): Promise<ImageManifest> => lastOfMemory(move, prepared, dumped);
  const whole = async (): Promise<RestoreReply> => ask({ manifest: { ...call.manifest, ...(await last()) } });
  const tellOfMemory = async (): Promise<void> => {
    const told: MemoryCall = { manifest: await last() };
    await stop.call(channel, "memory", told);
  };
  const [result] = await (memoryLast
    ? Promise.all([ask({ memoryFollows: true }), tellOfMemory(), dumped.adopting])
    : Promise.all([whole(), dumped.adopting]));
  progress.result.auditMs.target = round(result.auditMs);
  progress.result.notKept.push(...dumped.notKept, ...result.notKept);
  if (memory !== null) {
    await timeline.during("source agent", "compares memory", async () => {
      const digest = await stop.untilStopped(memory);
      await stop.call(channel, "verify", digest.call, digest.body);
    });
  }
  dumped.frozen?.verify(); // all is as it was, up to the commit
}

/** @returns the manifest of all images of memory, which are on their way */
async function lastOfMemory(
  { host, stop, progress }: Move,
  prepared: Prepared,
  dumped: Dumped,
): Promise<ImageManifest> {
  const { root, sender } = prepared;
  const manifest = await progress.timeline.during("source agent", "sends memory", () =>
    stop.untilStopped(sender.finish(() => tracedTree(root))),
  );
  dumped.frozen?.verify(); // files and memory have been read
  host.context.faults.at("source:memory");
  progress.result.imageBytes = sender.sentBytes - progress.result.precopyBytes;
  progress.result.trackedProcesses = sender.trackedProcesses;
  return manifest;
}

/** Pipes of the application's output whose reader is outside: the target's own take their place. */
function outputPipesOf({ container }: MigrationHost): string[] {
  const pipes = new Set<string>();
  for (const fd of [1, 2]) {
    // PID 1 has the same standard output as the application was started with
    const target = readLink(`/proc/${container.init.pid}/fd/${fd}`);
    if (target.startsWith("pipe:[")) pipes.add(target);
  }
  return [...pipes];
}
