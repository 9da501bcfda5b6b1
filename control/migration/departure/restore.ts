/** The phases transfer and restore: what else changed goes over, and the target makes the application of it. */
import type { Channel } from "#proxy/contract/channel.ts";
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
  /** of all images but those of memory, which are on their way */
  readonly manifest: ImageManifest;
  /** null: none is wanted */
  readonly memory: MemoryDigest | null;
}

/** What else changed: the rest of the memory, beside the files. Where the target can begin without it, that goes last. */
export async function transfer(move: Move, prepared: Prepared, dumped: Dumped): Promise<Transferred> {
  const { host, stop } = move;
  const { root, sender } = prepared;
  stop.throwIfStopped();
  host.context.faults.at("source:transfer");
  const memory = dumped.memory ?? (host.limits.verifyMemory ? memoryOf(root, imagesDirOf(host)) : null);
  memory?.catch(() => {}); // looked at by `restore`
  const manifest = await stop.untilStopped(sender.sendOthers());
  await stop.untilStopped(dumped.filesSent);
  return { manifest, memory };
}

export async function restore(
  move: Move,
  prepared: Prepared,
  dumped: Dumped,
  { manifest, memory }: Transferred,
): Promise<void> {
  const { host, stop, progress } = move;
  const { channel, root, memoryLast } = prepared;
  stop.throwIfStopped();
  host.context.faults.at("source:restore");
  dumped.frozen?.verify(); // files have been read
  const { stopped = [], watches = [] } = host.journal.moving ?? {};
  const call: Omit<RestoreCall, "manifest" | "memoryFollows"> = {
    root: await innerRoot(root),
    outputPipes: outputPipesOf(host),
    stopped,
    openQueues: dumped.openQueues,
    watches,
  };
  const queues = readQueues(root);
  await dumped.fingerprintSent;
  const ask = (images: Pick<RestoreCall, "manifest"> & Partial<RestoreCall>): Promise<RestoreReply> =>
    stop.call<RestoreReply>(channel, "restore", { ...call, ...images }, queues).then(({ result }) => result);
  const whole = async (): Promise<RestoreReply> =>
    ask({ manifest: { ...manifest, ...(await lastOfMemory(move, prepared, dumped)) } });
  const ahead = async (): Promise<RestoreReply> => {
    const memoryTold = async (): Promise<void> =>
      told(move, channel, await lastOfMemory(move, prepared, dumped));
    const [reply] = await Promise.all([ask({ manifest, memoryFollows: true }), memoryTold()]);
    return reply;
  };
  const [result] = await Promise.all([memoryLast ? ahead() : whole(), dumped.adopting]);
  progress.result.auditMs.target = round(result.auditMs);
  progress.result.notKept.push(...dumped.notKept, ...result.notKept);
  if (memory !== null) {
    const digest = await stop.untilStopped(memory);
    await stop.call(channel, "verify", digest.call, digest.body);
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
  const manifest = await stop.untilStopped(sender.finish(() => tracedTree(root)));
  dumped.frozen?.verify(); // memory has been read
  host.context.faults.at("source:memory");
  progress.result.imageBytes = sender.sentBytes - progress.result.precopyBytes;
  progress.result.trackedProcesses = sender.trackedProcesses;
  return manifest;
}

async function told({ stop }: Move, channel: Channel, manifest: ImageManifest): Promise<void> {
  const call: MemoryCall = { manifest };
  await stop.call(channel, "memory", call);
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
