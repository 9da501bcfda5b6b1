/**
 * The phases hold, capture and dump. They are one request to CRIU, which calls back on its way (`worker.ts`) and is kept
 * waiting in each hook that matters here:
 *
 *   pre-dump         it is about to freeze the tree           clients are held
 *   query-ext-files  the tree is frozen, no descriptor read   its legs, outbound connections and watches are taken
 *   post-dump        it is about to let go of the tree        we freeze it; files that changed, and the fingerprint, are sent
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import type { HoldResult, ShortenResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import type { RestoreCall } from "../../api/migration.ts";
import type { Taken } from "../../audit/take.ts";
import { leaveConnectionNames } from "../../criu/connection-names.ts";
import { withCriuReason } from "../../criu/failure.ts";
import { hasNamedFiles } from "../../criu/image-file.ts";
import { readImage } from "../../criu/image-files.ts";
import type { ImageSender } from "../../criu/images.ts";
import { takeUnsentForSent } from "../../criu/inner-connections.ts";
import { beginCallsAgain } from "../../criu/interrupted-calls.ts";
import { makeStandIn, standInFor } from "../../criu/stand-in.ts";
import { canLeavePages } from "../../criu/worker.ts";
import type { Freezer } from "../../runtime/freezer.ts";
import { assertTraced, FrozenTree, livingOf } from "../../runtime/frozen-tree.ts";
import { PendingSignals } from "../../runtime/pending-signals.ts";
import { openQueues } from "../../runtime/posix-queues.ts";
import { identify, innerPid, stoppedOf, treeOf } from "../../runtime/processes.ts";
import { readText } from "../../runtime/read-text.ts";
import type { MigrationHost } from "../host.ts";
import { beginRepair } from "../sockets.ts";
import { tracedTree } from "../traced-tree.ts";
import { memoryOf } from "../verify-memory.ts";
import { type Captured, capture } from "./capture.ts";
import { imagesDirOf, type Move } from "./move.ts";
import { parentDeathNotKept } from "./parent-death.ts";
import type { Prepared } from "./prepare.ts";
import { round } from "./progress.ts";

/** A digest of all memory, being taken. */
export type MemoryDigest = ReturnType<typeof memoryOf>;

interface LetGo {
  /** settles when the target has what changed of the files */
  readonly filesSent: Promise<void>;
  /** settles when the target has it */
  readonly fingerprintSent: Promise<unknown>;
  /** null: none is wanted, or there is a freezer, and so time for it during the transfer */
  readonly memory: MemoryDigest | null;
}

interface Frozen {
  /** what waited for its processes when it was frozen */
  readonly signals: PendingSignals;
}

export interface Dumped extends Pick<Captured, "adopting">, Frozen, LetGo {
  readonly openQueues: RestoreCall["openQueues"];
  /** what is read of the tree was there when it was dumped, as long as it stands still; null: there is no freezer */
  readonly frozen: FrozenTree | null;
  /** what is lost in the images, in lines for people */
  readonly notKept: string[];
}

/** The hold begins when CRIU says that it is about to freeze. */
export async function dump(move: Move, prepared: Prepared): Promise<Dumped> {
  const { host, options, stop, progress } = move;
  const { root, worker, sender } = prepared;
  const { context } = host;
  const imagesDir = imagesDirOf(host);
  const pid = await innerRoot(root);
  await shortenQueues(host);
  stop.throwIfStopped();
  host.recordMoving({ step: "held", criu: await identify(worker.pid) });
  const startedMs = performance.now();
  const freezer = await host.freezer();
  const queues = await openQueues(await treeOf(root));
  progress.began("dump", startedMs);
  const parentDir = (await leavesPages(host, prepared.sender, freezer)) ? makeStandIn(imagesDir) : null;
  const isLeft = parentDir !== null;
  sender.start(isLeft);
  const hooks = new DumpHooks(move, prepared, { freezer, leavesPages: isLeft });
  const { timeline } = progress;
  const asked = {
    pid,
    logFile: "dump.log",
    timeoutSeconds: Math.ceil(options.deadlineMs / 1000),
    logLevel: context.log.isLevelEnabled("debug") ? 4 : 2,
    ghostLimitBytes: host.limits.imagesBytesMax,
    leave: freezer === null ? "stopped" : "running",
    external: queues.map(({ key }) => key),
    ...(parentDir === null ? {} : { parentDir }),
  } as const;
  const atHook = (hook: string): Promise<void> => hooks.at(hook);
  try {
    await timeline.hooked("source CRIU", atHook, (onHook) => worker.request("DUMP", asked, onHook));
  } catch (error) {
    if (worker.hasDied) move.inHand = hooks.inHand;
    await hooks.edited.catch(() => {}); // nothing else writes images when the move goes back
    throw await withCriuReason(error, "CRIU_DUMP", `${imagesDir}/dump.log`);
  }
  const notKept = await timeline.during("source agent", "waits for edited images", () => hooks.edited);
  const repairFromMs = performance.now();
  let frozen: FrozenTree | null = null;
  if (freezer !== null) {
    const tree = await treeOf(root);
    // CRIU has left repair mode on its way out; the sockets are as silent as before if this tree has to be ended
    await beginRepair(tree);
    frozen = await FrozenTree.at(freezer, tree, () => stop.throwIfStopped());
  }
  timeline.span("source agent", "begins repair, looks at the frozen tree", repairFromMs);
  progress.done("dump", performance.now() - startedMs - hooks.waitedMs);
  return {
    ...hooks.dumped,
    openQueues: queues.map(({ key, name }) => ({ key, name: name ?? "" })),
    frozen,
    notKept,
  };
}

/** Those that have grown, while nobody waits yet. A proxy of the version before does not know it. */
async function shortenQueues({ proxy, journal, context }: MigrationHost): Promise<void> {
  await proxy.command<"shorten", ShortenResult>("shorten", { epoch: journal.epoch }).catch((error) => {
    context.log.info({ err: error }, "queues could not be shortened; there is more to carry");
  });
}

/**
 * Whether CRIU need not copy any page: most are at the target, and those that changed are read from the tree, which only a freezer
 * keeps as it was dumped.
 */
export async function leavesPages(
  { context }: MigrationHost,
  sender: ImageSender,
  freezer: Freezer | null,
): Promise<boolean> {
  return sender.hasLayers && freezer !== null && (await canLeavePages(context.criu.sealed()));
}

/** Of the application's root, as CRIU numbers it. */
export async function innerRoot(root: number): Promise<number> {
  const pid = await innerPid(root);
  if (pid === null) throw outOfOrder("the application has ended in the middle of its move");
  return pid;
}

/** What has become of the hooks so far. */
type Passed =
  | { readonly hook: "none" | "pre-dump" }
  | ({ readonly hook: "query-ext-files" } & Captured & Frozen)
  | ({ readonly hook: "post-dump" } & Pick<Captured, "adopting"> & Frozen & LetGo);

class DumpHooks {
  readonly #move: Move;
  readonly #prepared: Prepared;
  readonly #freezer: Freezer | null;
  readonly #leavesPages: boolean;
  #passed: Passed = { hook: "none" };
  /** when CRIU had just stopped the tree */
  #living: number[] = [];
  /** @see {@link edited} */
  #edited: Promise<string[]> = Promise.resolve([]);
  /** how long CRIU was kept waiting by what are phases of their own */
  #waitedMs = 0;

  constructor(
    move: Move,
    prepared: Prepared,
    { freezer, leavesPages }: { freezer: Freezer | null; leavesPages: boolean },
  ) {
    this.#move = move;
    this.#prepared = prepared;
    this.#freezer = freezer;
    this.#leavesPages = leavesPages;
  }

  /** Images as the target needs them, done while CRIU lets go of the tree. Resolves with what is lost in them, in lines for people. */
  get edited(): Promise<string[]> {
    return this.#edited;
  }

  get waitedMs(): number {
    return this.#waitedMs;
  }

  /** What CRIU is at work at: not yet, as long as it has not been told that it may. */
  get inHand(): number[] {
    return ["none", "pre-dump"].includes(this.#passed.hook) ? [] : this.#living;
  }

  get dumped(): Pick<Captured, "adopting"> & Frozen & LetGo {
    const passed = this.#passed;
    if (passed.hook !== "post-dump") throw outOfOrder("CRIU has dumped without a word on the way");
    return passed;
  }

  async at(hook: string): Promise<void> {
    if (hook === "pre-dump") this.#passed = await this.#hold();
    if (hook === "query-ext-files") this.#passed = await this.#capture();
    if (hook === "post-dump") this.#passed = await this.#letGo(this.#passed);
  }

  async #hold(): Promise<Passed> {
    const { host, stop } = this.#move;
    await this.#phase("hold", () => this.#holdClients());
    if (this.#freezer === null)
      host.recordMoving({ stopped: await stoppedOf(await treeOf(this.#prepared.root)) });
    stop.throwIfStopped();
    host.context.faults.at("source:dump");
    return { hook: "pre-dump" };
  }

  async #holdClients(): Promise<void> {
    const { host, reached, progress, stop } = this.#move;
    const { worker, link } = this.#prepared;
    host.context.faults.at("source:hold");
    reached.held(worker, link);
    // clients do not wait yet
    await host.container.closeDoor(host.config.ports.map(({ upstream }) => upstream.port));
    progress.pause.begins();
    stop.startDeadline();
    const { epoch } = host.journal;
    const { result } = await progress.timeline.during("source proxy", "holds clients", () =>
      host.proxy.command<"hold", HoldResult>("hold", { epoch }),
    );
    progress.result.sessions = result.sessions;
    if (result.acceptBacklog > 0) {
      throw fail(
        "APPLICATION_BUSY",
        `${result.acceptBacklog} connections wait for the application to accept them: raise limits.holdMsMax`,
      );
    }
  }

  async #capture(): Promise<Passed> {
    const { timeline } = this.#move.progress;
    const fromMs = performance.now();
    const pids = await treeOf(this.#prepared.root);
    this.#living = livingOf(pids);
    const { sender, trace, worker } = this.#prepared;
    const signals = PendingSignals.of(pids, trace, await treeOf(worker.pid));
    const tracking = sender.endTracking();
    tracking.catch(() => {}); // looked at below, unless the capture has failed // beside what the proxy does
    timeline.span("source agent", "looks at signals", fromMs);
    const captured = await this.#phase("capture", () => capture(this.#move, this.#prepared));
    const trackedFromMs = performance.now();
    await tracking;
    if (this.#leavesPages) {
      const tree = await tracedTree(this.#prepared.root);
      standInFor(
        imagesDirOf(this.#move.host),
        tree.map(({ innerPid }) => innerPid),
      );
      await sender.lookAt(tree);
    }
    timeline.span("source agent", "looks at what was written", trackedFromMs);
    return { hook: "query-ext-files", signals, ...captured };
  }

  async #letGo(passed: Passed): Promise<Passed> {
    if (passed.hook !== "query-ext-files") throw outOfOrder("CRIU has not said when the tree was frozen");
    const { host } = this.#move;
    host.context.faults.at("source:dumped");
    const { adopting, signals, taken } = passed;
    const { timeline } = this.#move.progress;
    const fromMs = performance.now();
    let memory: MemoryDigest | null = null;
    if (this.#freezer !== null) {
      assertTraced(await treeOf(this.#prepared.root), this.#living);
      await this.#freezer.freeze();
    } else if (host.limits.verifyMemory) {
      // SIGSTOP comes after SIGCHLD: a thread that hears of a child that stopped still has that put on its stack
      memory = memoryOf(this.#prepared.root, imagesDirOf(host));
      await memory;
    }
    timeline.span("source agent", "freezes the tree", fromMs);
    const files = await timeline.during("source agent", "finds changed files", () => this.#sendFiles());
    this.#edited = turn().then(() => editImages(imagesDirOf(host), this.#prepared.root));
    this.#edited.catch(() => {}); // looked at by `dump`
    return {
      hook: "post-dump",
      adopting,
      signals,
      memory,
      ...files,
      fingerprintSent: this.#sendFingerprint(taken),
    };
  }

  /** Beside CRIU's letting go, but for files that have a name only until then. */
  async #sendFiles(): Promise<{ filesSent: Promise<void> }> {
    const { files } = this.#prepared;
    const filesSent = files.sendChanged();
    filesSent.catch(() => {}); // looked at by `transfer`
    const remaps = join(imagesDirOf(this.#move.host), "remap-fpath.img");
    if (existsSync(remaps) && hasNamedFiles(readImage(remaps))) await this.#move.stop.untilStopped(filesSent);
    return { filesSent };
  }

  /**
   * When CRIU has read the sockets, and no earlier: what the proxy acknowledged last, before it shielded its legs, may have
   * been on its way over a busy node's loopback device. What is only text by now is sorted beside the transfer.
   */
  #sendFingerprint(taken: Taken): Promise<unknown> {
    const { stop, progress } = this.#move;
    const { channel } = this.#prepared;
    const startedMs = performance.now();
    taken.refreshTcp(); // the proxy has passed on what there was, and perhaps ended sessions that will be made anew
    progress.result.auditMs.source = round(taken.ms + performance.now() - startedMs);
    const sent = new Promise((resolve) => setImmediate(resolve)).then(() =>
      stop.call(channel, "fingerprint", {}, Buffer.from(JSON.stringify(taken.fingerprint))),
    );
    sent.catch(() => {}); // looked at by `restore`
    return sent;
  }

  async #phase<T>(phase: "hold" | "capture", work: () => Promise<T>): Promise<T> {
    const atMs = performance.now();
    const result = await this.#move.progress.phase(phase, work);
    this.#waitedMs += performance.now() - atMs;
    return result;
  }
}

/** CRIU has written all of them by `post-dump` (cr_dump_finish() of its cr-dump.c). @returns what is lost, in lines for people */
async function editImages(imagesDir: string, root: number): Promise<string[]> {
  takeUnsentForSent(imagesDir);
  leaveConnectionNames(imagesDir);
  beginCallsAgain(imagesDir, readText(join(imagesDir, "dump.log")));
  return await parentDeathNotKept(imagesDir, root);
}

function outOfOrder(what: string): HoldfastError {
  return fail("MIGRATION_ORDER", what, { source: "migration" });
}
