/** The phases transfer and restore: what else changed goes over, and the target makes the application of it. */
import type { RestoreCall, RestoreReply } from "../../api/migration.ts";
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
  /** resolves when the last image is on its way */
  readonly finishing: Promise<ImageManifest>;
  /** null: none is wanted */
  readonly memory: MemoryDigest | null;
}

/** What else changed: the rest of the memory, beside the files. */
export async function transfer(move: Move, prepared: Prepared, dumped: Dumped): Promise<Transferred> {
  const { host, stop } = move;
  const { root, sender } = prepared;
  stop.throwIfStopped();
  host.context.faults.at("source:transfer");
  const memory = dumped.memory ?? (host.limits.verifyMemory ? memoryOf(root, imagesDirOf(host)) : null);
  const finishing = sender.finish(() => tracedTree(root));
  for (const side of [memory, finishing]) side?.catch(() => {}); // looked at by `restore`
  await stop.untilStopped(dumped.filesSent);
  return { finishing, memory };
}

export async function restore(
  move: Move,
  prepared: Prepared,
  dumped: Dumped,
  { finishing, memory }: Transferred,
): Promise<void> {
  const { host, stop, progress } = move;
  const { channel, root, sender } = prepared;
  stop.throwIfStopped();
  host.context.faults.at("source:restore");
  const manifest = await stop.untilStopped(finishing);
  dumped.frozen?.verify(); // files and memory have been read
  progress.result.imageBytes = sender.sentBytes - progress.result.precopyBytes;
  progress.result.trackedProcesses = sender.trackedProcesses;
  const { stopped = [], watches = [] } = host.journal.moving ?? {};
  const call: RestoreCall = {
    manifest,
    root: await innerRoot(root),
    outputPipes: outputPipesOf(host),
    stopped,
    openQueues: dumped.openQueues,
    watches,
  };
  const queues = readQueues(root);
  await dumped.fingerprintSent;
  const [{ result }] = await Promise.all([
    stop.call<RestoreReply>(channel, "restore", call, queues),
    dumped.adopting,
  ]);
  progress.result.auditMs.target = round(result.auditMs);
  progress.result.notKept.push(...dumped.notKept, ...result.notKept);
  if (memory !== null) {
    const digest = await stop.untilStopped(memory);
    await stop.call(channel, "verify", digest.call, digest.body);
  }
  dumped.frozen?.verify(); // all is as it was, up to the commit
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
