/**
 * A move, seen from the node that gives the workload away. It leads; the target (`arrival.ts`) follows.
 *
 * Up to the commit every failure ends in `rollback`: repair goes off on the application's sockets and on our legs, the
 * stopped tree goes on, the target forgets what it got. From the commit on the store tells who owns the workload: this
 * node may take it back only while the target has not marked it released, or when the target itself says that it gave up
 * (`settle.ts`). What it can no longer take back it retires.
 */
import { randomUUID } from "node:crypto";
import { closeSync } from "node:fs";
import { mkdir, readFile, readlink, rm } from "node:fs/promises";
import type { Channel } from "#proxy/contract/channel.ts";
import type {
  AdoptResult,
  CapturedPiece,
  CaptureResult,
  HoldResult,
  ShortenResult,
} from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { decodeSessions, encodeSessions } from "#proxy/contract/snapshot-codec.ts";
import type { DiagSocket } from "#proxy/kernel/diag.ts";
import { seal } from "#proxy/store/seal.ts";
import { refuse } from "../api/finding.ts";
import {
  type MoveResult,
  type OutcomeReply,
  outcomeReply,
  type Phase,
  type PhaseEvent,
  type PrepareCall,
  type ReleaseReply,
  type Report,
  type RestoreCall,
  type RestoreReply,
  type StandbyReply,
} from "../api/migration.ts";
import { semaphoresOf } from "../audit/semaphores-of.ts";
import { type Taken, takeFingerprint } from "../audit/take.ts";
import { type ImageManifest, ImageSender } from "../criu/images.ts";
import { beginCallsAgain } from "../criu/interrupted-calls.ts";
import type { TracedProcess } from "../criu/precopy.ts";
import { decodeStats } from "../criu/protocol.ts";
import { CriuWorker } from "../criu/worker.ts";
import { besideMounts, difference, packPaths, type Scan, scan } from "../runtime/files.ts";
import { openFolderIn } from "../runtime/inside.ts";
import { filesMappedForWriting, takeForChanged } from "../runtime/mapped-files.ts";
import { openQueues, readQueues } from "../runtime/posix-queues.ts";
import { highestInnerTid, identify, innerPid, stoppedOf, treeOf } from "../runtime/processes.ts";
import { addressesThatMove } from "./addresses.ts";
import type { MigrationHost } from "./host.ts";
import { locksOnSharedMounts } from "./locks.ts";
import { leaveOwnSockets } from "./own-sockets.ts";
import { predict } from "./prediction.ts";
import { Rehearsal } from "./rehearsal.ts";
import { goBack } from "./settle.ts";
import { beginRepair, classifySockets, shieldOutbound } from "./sockets.ts";
import { anonymousBytes, tracedTree } from "./traced-tree.ts";
import { refuseUnmovableFiles } from "./unmovable-files.ts";
import { memoryOf } from "./verify-memory.ts";
import { WatchedFiles } from "./watched-files.ts";
import { countsOf, lift as liftWatches, lostWatches, scratch } from "./watches.ts";

export interface DepartureOptions {
  to: string;
  /** from the first held client to the commit */
  deadlineMs: number;
  report: Report;
  /** somebody wants it stopped: rolls back unless it is too late */
  signal: AbortSignal;
  /** goes as far as it can without holding anybody, undoes it all, and says how long a move would make clients wait */
  rehearse: boolean;
}

/** what a proxy has captured, or a piece of it */
interface CapturedBody {
  result: CapturedPiece;
  body: Buffer;
}

const NO_BYTES = Buffer.alloc(0);
/** Held legs are worth keeping only as long as somebody may still come for them. */
const HELD_TTL_MS = 10 * 60_000;
/** CRIU asks this once the whole tree is frozen, and before it looks at any descriptor. */
const FROZEN_HOOK = "query-ext-files";
/** the container's writable layer among the files that are sent; the others are tmpfs mounts, named by where they are */
const LAYER = "layer";
const ABORT_MS_MAX = 1_000;
const FORGOTTEN_MS_MAX = 10_000;
/** a rolled-back move is reported when the store knows of it too, or after this */
const STORE_MS_MAX = 1_500;

/** takeover has no links */
const NO_LINK: Endpoint = { address: "", port: 0 };

export class Departure {
  #workload: MigrationHost;
  #options: DepartureOptions;
  #id = randomUUID();
  #startedMs = performance.now();
  #phasesMs: MoveResult["phasesMs"] = {};
  #channel: Channel | null = null;
  #worker: CriuWorker | null = null;
  #sender: ImageSender | null = null;
  #epoch = 0;
  #root = -1;
  #scans = new Map<string, Scan>();
  #link: Endpoint = NO_LINK;
  #queues: RestoreCall["openQueues"] = [];
  #held = false;
  #adopting: Promise<void> = Promise.resolve();
  #memory: ReturnType<typeof memoryOf> | null = null;
  #finishing: Promise<ImageManifest> = Promise.resolve({});
  #watched: WatchedFiles | null = null;
  #taken: Taken | null = null;
  #fingerprintSent: Promise<unknown> | null = null;
  #reserveTried = false;
  #commitTried = false;
  #granted = false;
  #goingBack = false;
  #holdAtMs = 0;
  #releasedAtMs = 0;
  #deadline = new AbortController();
  #deadlineTimer: NodeJS.Timeout | undefined;
  #result: MoveResult;
  #rehearsal = new Rehearsal();

  constructor(workload: MigrationHost, options: DepartureOptions) {
    this.#workload = workload;
    this.#options = options;
    this.#result = {
      workload: workload.name,
      from: workload.context.node,
      to: options.to,
      downstream: workload.downstream,
      sessions: 0,
      messages: null,
      lost: null,
      repeated: null,
      resets: null,
      blackoutMs: { p50: null, p99: null, max: null },
      holdMs: 0,
      phasesMs: this.#phasesMs,
      criuMs: { dump: 0, restore: 0 },
      auditMs: { source: 0, target: 0 },
      notKept: [],
      legUs: { capture: 0, adopt: 0 },
      precopyBytes: 0,
      imageBytes: 0,
      outcome: "rolled-back",
      reason: null,
    };
  }

  /** Resolves in every case in which the workload has exactly one owner again; `outcome` says which. */
  async run(): Promise<MoveResult> {
    const { faults } = this.#workload.context;
    try {
      await this.#phase("prepare", () => this.#prepare());
      if (this.#options.rehearse) return await this.#rehearsed();
      await this.#dump();
      await this.#phase("transfer", () => this.#transfer());
      await this.#phase("restore", () => this.#restore());
      await this.#phase("commit", () => this.#commit());
      await this.#phase("release", () => this.#release());
    } catch (error) {
      const { signal } = this.#options;
      this.#result.reason = messageOf(signal.aborted ? signal.reason : error);
      this.#workload.context.log.warn(
        { workload: this.#workload.name, migration: this.#id, reason: this.#result.reason },
        "move failed",
      );
      if (!(await this.#phase("rollback", () => this.#rollback()))) return await this.#finish("moved");
      return await this.#finish("rolled-back");
    }
    faults.at("source:retire");
    return await this.#finish("moved");
  }

  /** Everything up to the hold has been done. */
  async #rehearsed(): Promise<MoveResult> {
    const workload = this.#workload;
    const sessions = await workload.keeper.countSessions();
    const storeAtMs = performance.now();
    await workload.context.store.ping();
    const storeMs = performance.now() - storeAtMs;
    const { holdMsMax } = workload.config.limits;
    await this.#rehearsal.asked(() => this.#call("idle", {}));
    this.#result.sessions = sessions;
    this.#result.prediction = predict(
      await this.#rehearsal.measured(await treeOf(this.#root), {
        downstream: workload.downstream,
        legs: sessions,
        storeMs,
        holdMsMax,
      }),
    );
    this.#throwIfStopped();
    await this.#phase("undo", () => this.#rollback());
    return await this.#finish("rehearsed");
  }

  // ---- forward ----

  async #prepare(): Promise<void> {
    const workload = this.#workload;
    const { context, journal } = workload;
    const container = workload.container;
    const root = await container.applicationRoot();
    if (root === null) throw fail("WORKLOAD_DOWN", `${workload.name} is not running`);
    this.#channel = await context.dial(this.#options.to);
    this.#channel.on("released", () => {
      this.#releasedAtMs = performance.now();
    });
    const { facts, ...check } = await this.#untilStopped(workload.preflight(this.#options.to, this.#channel));
    this.#result.check = check;
    refuse(check.findings, context.node);
    this.#root = root;
    // on record before the store is asked: a reservation that nobody knows of would refuse every later move
    this.#reserveTried = true;
    workload.record({
      moving: {
        side: "source",
        id: this.#id,
        peer: this.#options.to,
        epoch: journal.epoch + 1,
        step: "prepared",
        criu: null,
        stopped: [],
        watches: [],
        link: null,
        anchors: [],
      },
    });
    const ownership = await workload.outbox.reserve(this.#id, this.#options.to);
    context.faults.at("source:reserved");
    this.#epoch = ownership.migration?.epoch ?? journal.epoch + 1;
    workload.see(this.#epoch);
    workload.recordMoving({ epoch: this.#epoch });
    context.faults.at("source:prepare");
    // the first look takes several times as long as the next, and the next one clients wait for
    const { fingerprint } = await this.#look();
    const prepare: PrepareCall = {
      workload: workload.name,
      migration: this.#id,
      from: context.node,
      epoch: this.#epoch,
      anchors: workload.anchors.afterLeaving(this.#options.to),
      highestTid: await highestInnerTid(await treeOf(root)),
      facts: required(facts),
      ownerEpoch: journal.epoch,
      semaphores: semaphoresOf(fingerprint).length,
    };
    await this.#call("prepare", prepare);
    if (!container.layerInUse) await this.#untilStopped(this.#sendFilesFirst(LAYER));
    const standby = await this.#call<StandbyReply>("standby", {});
    this.#link = standby.result.link ?? NO_LINK;
    if (workload.downstream === "forward") workload.recordMoving({ link: this.#link });
    if (container.layerInUse) await this.#untilStopped(this.#sendFilesFirst(LAYER));
    for (const mount of container.travels) await this.#untilStopped(this.#sendFilesFirst(mount));
    if (workload.downstream === "forward")
      await workload.anchors.prepare(this.#epoch, this.#options.to, this.#link);
    await this.#findWatchedFiles();
    await this.#startWorker();
    await this.#sendLayers();
  }

  /** Last before the hold, so that as little as possible changes in between. */
  async #sendLayers(): Promise<void> {
    const channel = required(this.#channel);
    this.#sender = new ImageSender(this.#imagesDir, (pieces) =>
      this.#rehearsal.sent(pieces, () =>
        channel.send(
          "images",
          { pieces: pieces.map((piece) => ({ ...piece, bytes: piece.bytes.length })) },
          pieces.filter(({ from }) => from === undefined).map(({ bytes }) => bytes),
        ),
      ),
    );
    const { precopyBytesMax } = this.#workload.limits;
    if ((await anonymousBytes(await this.#tree())) > precopyBytesMax) return;
    const sender = this.#sender;
    this.#result.precopyBytes = await this.#untilStopped(
      this.#rehearsal.rounds(() =>
        sender.sendLayers(() => this.#tree(), precopyBytesMax, this.#options.signal),
      ),
    );
  }

  /** The application's processes as they are now. */
  #tree(): Promise<TracedProcess[]> {
    return tracedTree(this.#root);
  }

  async #startWorker(): Promise<void> {
    const { container, context } = this.#workload;
    const freezer = await this.#workload.freezer();
    await rm(this.#imagesDir, { recursive: true, force: true });
    await mkdir(this.#imagesDir, { mode: 0o700 });
    const options = {
      criu: context.criu.sealed(),
      imagesDir: this.#imagesDir,
      initPid: container.init.pid,
      // not where it would freeze with the application
      cgroupProcs: (await container.cgroupProcs()).filter((path) => path !== freezer?.procs),
      inherit: [],
      outlivesAgent: false,
    };
    const probe = await CriuWorker.start(options); // how long CRIU takes here
    try {
      await this.#rehearsal.timed("criuMs", () => probe.request("FEATURE_CHECK"));
    } finally {
      await probe.close();
    }
    this.#worker = await CriuWorker.start(options);
  }

  /** The hold begins when CRIU says that it is about to freeze. */
  async #dump(): Promise<void> {
    const { config, container, context, limits, proxy } = this.#workload;
    const worker = required(this.#worker);
    const root = required(await innerPid(this.#root));
    // a proxy of the version before does not know it
    await proxy
      .command<"shorten", ShortenResult>("shorten", { epoch: this.#workload.journal.epoch })
      .catch((error) => {
        context.log.info({ err: error }, "queues could not be shortened; there is more to carry");
      });
    this.#throwIfStopped();
    this.#workload.recordMoving({ step: "held", criu: await identify(worker.pid) });
    const startedMs = performance.now();
    let holdMs = 0;
    let captureMs = 0;
    const freezer = await this.#workload.freezer();
    const queues = await openQueues(await treeOf(this.#root));
    this.#queues = queues.map(({ key, name }) => ({ key, name: name ?? "" }));
    this.#report("dump", "start", startedMs - this.#startedMs);
    required(this.#sender).start();
    try {
      await worker.request(
        "DUMP",
        {
          pid: root,
          logFile: "dump.log",
          timeoutSeconds: Math.ceil(this.#options.deadlineMs / 1000),
          logLevel: context.log.isLevelEnabled("debug") ? 4 : 2,
          ghostLimitBytes: limits.imagesBytesMax,
          leave: freezer === null ? "stopped" : "running",
          external: queues.map(({ key }) => key),
        },
        async (hook) => {
          const atMs = performance.now();
          if (hook === FROZEN_HOOK) {
            await this.#phase("capture", async () => {
              await this.#refuseSharedLocks();
              [, this.#taken] = await Promise.all([this.#captureUpstream(), this.#closeOutbound()]);
              await this.#liftWatches(); // last: up to here nothing that a process could tell has changed
            });
            captureMs = performance.now() - atMs;
          }
          // CRIU is about to let go of the tree
          if (hook === "post-dump" && freezer !== null) await freezer.freeze();
          // SIGSTOP comes after SIGCHLD: a thread that hears of a child that stopped still has that put on its stack
          if (hook === "post-dump" && freezer === null) await this.#digestMemory();
          if (hook === "post-dump") this.#sendFingerprint(required(this.#taken));
          if (hook !== "pre-dump") return;
          await this.#phase("hold", async () => {
            context.faults.at("source:hold");
            this.#held = true;
            // clients do not wait yet
            await container.closeDoor(config.ports.map(({ upstream }) => upstream.port));
            this.#holdAtMs = performance.now();
            this.#startDeadline();
            const epoch = this.#workload.journal.epoch;
            const { result } = await proxy.command<"hold", HoldResult>("hold", { epoch });
            this.#result.sessions = result.sessions;
            if (result.acceptBacklog > 0) {
              throw fail(
                "APPLICATION_BUSY",
                `${result.acceptBacklog} connections wait for the application to accept them: raise limits.holdMsMax`,
              );
            }
          });
          holdMs = performance.now() - atMs;
          if (freezer === null)
            this.#workload.recordMoving({ stopped: await stoppedOf(await treeOf(this.#root)) });
          this.#throwIfStopped();
          context.faults.at("source:dump");
        },
      );
    } catch (error) {
      throw await this.#criuReason(error, "dump.log");
    }
    beginCallsAgain(this.#imagesDir, await readFile(`${this.#imagesDir}/dump.log`, "utf8").catch(() => ""));
    // CRIU has left repair mode on its way out; the sockets are as silent as before if this tree has to be ended
    if (freezer !== null) await beginRepair(await treeOf(this.#root));
    this.#phasesMs.dump = performance.now() - startedMs - holdMs - captureMs;
    this.#report("dump", "done", this.#phasesMs.dump);
  }

  /** Finds watched files ahead, as there may be many. One that cannot be found is a reason when everything is frozen. */
  async #findWatchedFiles(): Promise<void> {
    const { container, config, runtime } = this.#workload;
    const { lower } = await runtime.plan(config);
    this.#watched = new WatchedFiles(container, lower);
    await lostWatches(this.#watched, await treeOf(this.#root));
  }

  async #liftWatches(): Promise<void> {
    const pids = await treeOf(this.#root);
    await refuseUnmovableFiles(pids);
    const { container, context, name } = this.#workload;
    const atMs = performance.now();
    const states = await liftWatches(required(this.#watched), pids, scratch(container), (watches) =>
      this.#workload.recordMoving({ watches }),
    );
    if (states.length > 0)
      context.log.info(
        { workload: name, ...countsOf(states), ms: round(performance.now() - atMs) },
        "watches taken along",
      );
    context.faults.at("source:watches");
  }

  /** One taken since the preflight: the restore would wait for it until the deadline. */
  async #refuseSharedLocks(): Promise<void> {
    const mounts = this.#workload.config.container?.mounts ?? [];
    if (!mounts.some((mount) => mount.shared)) return;
    const [lock] = await locksOnSharedMounts(await treeOf(this.#root), mounts);
    if (lock === undefined) return;
    throw fail(
      "LOCK_SHARED",
      `process ${lock.pid} holds a lock on ${lock.path}, which the other node sees too`,
    );
  }

  /** While the application is frozen: one that is not would have connected again by the dump. */
  async #closeOutbound(): Promise<Taken> {
    const { config } = this.#workload;
    const pids = await treeOf(this.#root);
    const upstreams = config.ports.map((port) => port.upstream);
    const sockets = await classifySockets(pids, upstreams);
    const stays = (socket: DiagSocket): boolean =>
      config.outbound === "keep" && socket.local.address === config.vip?.address;
    const cut = sockets.outbound.filter((socket) => !stays(socket));
    await leaveOwnSockets(this.#imagesDir, sockets, cut);
    const taken = await this.#look(); // before the shield, which is an option of the sockets, and not the application's
    await shieldOutbound(pids, sockets.outbound.filter(stays));
    return taken;
  }

  /**
   * When CRIU has read the sockets, and no earlier: what the proxy acknowledged last, before it shielded its legs, may have been on its
   * way over a busy node's loopback device. What is only text by now is sorted beside the transfer.
   */
  #sendFingerprint(taken: Taken): void {
    const startedMs = performance.now();
    taken.refreshTcp(); // the proxy has passed on what there was, and perhaps ended sessions that will be made anew
    this.#result.auditMs.source = round(taken.ms + performance.now() - startedMs);
    this.#fingerprintSent = new Promise((resolve) => setImmediate(resolve)).then(() =>
      this.#call("fingerprint", {}, Buffer.from(JSON.stringify(taken.fingerprint))),
    );
    this.#fingerprintSent.catch(() => {}); // looked at by `restore`
  }

  /**
   * In the frozen hook: when what ends on purpose has ended, and before CRIU changes anything, which puts sockets in repair
   * mode and runs code of its own in the processes. The proxy captures its legs meanwhile.
   */
  async #look(): Promise<Taken> {
    const { config, container } = this.#workload;
    return takeFingerprint({
      initPid: container.init.pid,
      pids: await treeOf(this.#root),
      addresses: addressesThatMove(config),
      volumes: (config.container?.mounts ?? []).map(({ target }) => target),
    });
  }

  /**
   * Before CRIU has looked at the application's ends: from here on nothing arrives at ours. Captured after the dump, a
   * leg could hold bytes that the dumped end believes not sent yet, as the kernel sends on while CRIU reads; that end
   * would then refuse every acknowledgement as one of the future, for good.
   */
  async #captureUpstream(): Promise<void> {
    const { context, journal, proxy } = this.#workload;
    context.faults.at("source:capture");
    const captured = await proxy.command<"captureUpstream", CaptureResult>("captureUpstream", {
      epoch: journal.epoch,
    });
    this.#countCapture(captured.result);
    // the target adopts them while CRIU dumps
    this.#adopting = this.#carry("adopt", captured).then((adopted) => {
      this.#countAdopt(adopted);
      this.#tellLost(adopted, "connections to the application");
    });
    this.#adopting.catch(() => {}); // looked at by `restore`
  }

  /** A piece at a time: the target adopts one while the proxy gives the next. */
  async #carry(method: "adopt" | "adoptDownstream", first: CapturedBody): Promise<AdoptResult> {
    const sum: AdoptResult = { sessions: 0, legs: 0, lost: 0, adoptUs: 0 };
    for (let piece = first; ; ) {
      const { body, result: more } = piece;
      const isLast = more.left === 0;
      // of the only one nothing is said: an agent of the version before knows no other
      const params = isLast ? (piece === first ? {} : { last: true }) : { last: false };
      const adopting = this.#call<AdoptResult>(method, params, body);
      adopting.catch(() => {}); // looked at below
      const next = isLast ? null : await this.#takeCaptured();
      let result: AdoptResult;
      try {
        result = (await adopting).result;
      } catch (error) {
        if (piece !== first || next === null || !isRefusedParameter(error)) throw error;
        return (await this.#call<AdoptResult>(method, {}, await this.#asOnePiece([piece, next]))).result;
      }
      sum.sessions += result.sessions;
      sum.legs += result.legs;
      sum.lost += result.lost;
      sum.adoptUs += result.adoptUs;
      if (next === null) return sum;
      piece = next;
    }
  }

  #takeCaptured(): Promise<CapturedBody> {
    const { proxy, journal } = this.#workload;
    return proxy.command<"takeCaptured", CapturedPiece>("takeCaptured", { epoch: journal.epoch });
  }

  /** For an agent of the version before, which takes no pieces. */
  async #asOnePiece(pieces: CapturedBody[]): Promise<Buffer> {
    while ((pieces.at(-1)?.result.left ?? 0) > 0) pieces.push(await this.#takeCaptured());
    const limits = { sessionsMax: Number.MAX_SAFE_INTEGER, bytesMax: Number.MAX_SAFE_INTEGER };
    return encodeSessions(pieces.flatMap(({ body }) => decodeSessions(body, limits)));
  }

  async #digestMemory(): Promise<void> {
    if (!this.#workload.limits.verifyMemory) return;
    this.#memory ??= memoryOf(this.#root, this.#imagesDir);
    await this.#memory;
  }

  /** What else changed: files, and the rest of the memory. */
  async #transfer(): Promise<void> {
    this.#throwIfStopped();
    this.#workload.context.faults.at("source:transfer");
    this.#digestMemory().catch(() => {}); // looked at by `restore`
    const files = this.#sendFilesSecond();
    this.#finishing = required(this.#sender).finish(() => this.#tree());
    for (const side of [files, this.#finishing]) side.catch(() => {}); // looked at below and by `restore`
    await this.#untilStopped(files);
  }

  async #restore(): Promise<void> {
    this.#throwIfStopped();
    this.#workload.context.faults.at("source:restore");
    const [manifest, outputPipes] = await this.#untilStopped(
      Promise.all([this.#finishing, this.#outputPipes()]),
    );
    this.#result.imageBytes = required(this.#sender).sentBytes - this.#result.precopyBytes;
    const stopped = this.#workload.journal.moving?.stopped ?? [];
    const watches = this.#workload.journal.moving?.watches ?? [];
    const root = required(await innerPid(this.#root));
    const openQueues = this.#queues;
    const restore: RestoreCall = { manifest, root, outputPipes, stopped, openQueues, watches };
    const queues = readQueues(this.#root);
    await required(this.#fingerprintSent);
    const [{ result }] = await Promise.all([
      this.#call<RestoreReply>("restore", restore, queues),
      this.#adopting,
    ]);
    this.#result.auditMs.target = round(result.auditMs);
    this.#result.notKept.push(...result.notKept);
    await this.#verify();
  }

  async #verify(): Promise<void> {
    if (this.#memory === null) return;
    const { call, body } = await this.#untilStopped(this.#memory);
    await this.#call("verify", call, body);
  }

  /** From here on the store tells who owns the workload. */
  async #commit(): Promise<void> {
    const workload = this.#workload;
    const { context, journal, name } = workload;
    this.#throwIfStopped();
    let captured: CapturedBody | null = null;
    if (workload.vip !== null) {
      const capture = await workload.proxy.command<"captureDownstream", CaptureResult>("captureDownstream", {
        epoch: journal.epoch,
      });
      this.#countCapture(capture.result);
      captured = capture;
      workload.vip.remove();
    }
    let downstream = captured?.body ?? NO_BYTES;
    let adopted: AdoptResult | null = null;
    if (
      captured !== null &&
      (captured.result.left > 0 || downstream.length > workload.limits.storedLegsBytesMax)
    ) {
      // More than the store is to keep, so nobody shall need it there: whoever goes on has the legs already.
      adopted = await this.#untilStopped(this.#carry("adoptDownstream", captured));
      downstream = NO_BYTES;
    }
    context.faults.at("source:commit");
    this.#throwIfStopped();
    const held = seal(context.ring.first, { workload: name, epoch: this.#epoch, kind: "held" }, downstream);
    workload.recordMoving({ step: "committing" });
    this.#commitTried = true;
    // the target adopts these legs meanwhile: silent, shielded, and forgotten if the commit fails
    const adopting = captured === null || adopted !== null ? null : this.#carry("adoptDownstream", captured);
    const commit = context.store.commit({
      workload: name,
      node: context.node,
      epoch: journal.epoch,
      migration: this.#id,
      held,
      ttlMs: HELD_TTL_MS,
    });
    // both have ended before anything is taken back
    await Promise.allSettled([commit, adopting]);
    await commit;
    adopted ??= await adopting;
    if (adopted !== null) {
      this.#countAdopt(adopted);
      this.#tellLost(adopted, "clients' connections");
    }
    clearTimeout(this.#deadlineTimer);
    context.faults.at("source:committed");
  }

  #tellLost({ lost = 0 }: AdoptResult, which: string): void {
    if (lost > 0)
      this.#result.notKept.push(
        `sessions: ${lost}, whose ${which} could not be built at ${this.#options.to}: its proxy.log says why`,
      );
  }

  /** A target that does not answer is no longer waited for: the store tells what it did. */
  async #release(): Promise<void> {
    const { result } = await required(this.#channel).call<ReleaseReply>(
      "release",
      {},
      { timeoutMs: this.#options.deadlineMs },
    );
    this.#releasedAtMs ||= performance.now();
    this.#result.criuMs.restore = round(result.criuRestoreMs);
  }

  /** The target asks this when the store cannot tell: from here on nothing is taken back without the target's word. */
  grantRelease(migration: string): void {
    if (migration !== this.#id || !this.#commitTried || this.#goingBack)
      throw fail("MIGRATION_UNKNOWN", "no such migration");
    this.#granted = true;
    this.#workload.recordMoving({ step: "granted" });
  }

  // ---- back ----

  /** Resolves with false when it is too late: the target has released. */
  async #rollback(): Promise<boolean> {
    clearTimeout(this.#deadlineTimer);
    const workload = this.#workload;
    const { name } = workload;
    this.#goingBack = true; // no grant any more
    // without a commit the target cannot come alive: nobody has to wait until it has heard
    const asked = this.#askTargetToGiveUp();
    const settled = await goBack(
      workload,
      {
        migration: this.#id,
        peer: this.#options.to,
        epoch: this.#epoch,
        reserveTried: this.#reserveTried,
        held: this.#held,
        commitTried: this.#commitTried,
        granted: this.#granted,
      },
      this.#commitTried ? await asked : null,
      async () =>
        this.#worker?.close().catch((error: unknown) => {
          workload.context.log.warn(
            { workload: name, reason: messageOf(error) },
            "CRIU did not end in order",
          );
        }),
    );
    if (settled.where === "there") {
      this.#epoch = settled.epoch;
      return false;
    }
    if ((await asked) !== null)
      await this.#channel?.call("forgotten", {}, { timeoutMs: FORGOTTEN_MS_MAX }).catch(() => {});
    await workload.outbox.flushed(STORE_MS_MAX);
    workload.context.log.info({ workload: name, epoch: workload.journal.epoch }, "going on here");
    return true;
  }

  /** null: no answer */
  async #askTargetToGiveUp(): Promise<OutcomeReply | null> {
    if (this.#channel === null) return { outcome: "gave-up", epoch: 0 }; // it was never told anything
    if (!this.#channel.isOpen) return null;
    try {
      const { result } = await this.#channel.call("abort", {}, { timeoutMs: ABORT_MS_MAX });
      return outcomeReply.parse(result);
    } catch {
      return null;
    }
  }

  // ---- the end ----

  async #finish(outcome: MoveResult["outcome"]): Promise<MoveResult> {
    const workload = this.#workload;
    clearTimeout(this.#deadlineTimer);
    this.#result.outcome = outcome;
    if (this.#holdAtMs > 0)
      this.#result.holdMs = round((this.#releasedAtMs || performance.now()) - this.#holdAtMs);
    await this.#worker?.close();
    if (outcome !== "moved") this.#channel?.close(); // a sender that waits for the target ends
    await this.#sender?.close();
    this.#watched?.close();
    const stats = await readFile(`${this.#imagesDir}/stats-dump`).then(decodeStats, () => null);
    this.#result.criuMs.dump = round(((stats?.dump?.freezingUs ?? 0) + (stats?.dump?.frozenUs ?? 0)) / 1000);
    if (outcome === "moved") {
      await this.#phase("retire", () =>
        workload.retire(this.#epoch, { node: this.#options.to, link: this.#link }),
      );
    } else {
      await rm(this.#imagesDir, { recursive: true, force: true });
    }
    this.#channel?.close();
    const legs = this.#legs;
    this.#result.legUs = {
      capture: round(legs.captureUs / Math.max(1, legs.captured)),
      adopt: round(legs.adoptUs / Math.max(1, legs.adopted)),
    };
    for (const [phase, ms] of Object.entries(this.#phasesMs)) this.#phasesMs[phase as Phase] = round(ms);
    return this.#result;
  }

  // ---- parts ----

  get #imagesDir(): string {
    return this.#workload.container.hostPath("images");
  }

  #legs = { captured: 0, captureUs: 0, adopted: 0, adoptUs: 0 };

  #countCapture(result: CaptureResult): void {
    this.#legs.captured += result.legs;
    this.#legs.captureUs += result.captureUs;
  }

  #countAdopt(result: Pick<AdoptResult, "legs" | "adoptUs">): void {
    this.#legs.adopted += result.legs;
    this.#legs.adoptUs += result.adoptUs;
  }

  /** Pipes of the application's output whose reader is outside: the target's own take their place. */
  async #outputPipes(): Promise<string[]> {
    const pipes = new Set<string>();
    for (const fd of [1, 2]) {
      // PID 1 has the same standard output as the application was started with
      const target = await readlink(`/proc/${this.#workload.container.init.pid}/fd/${fd}`).catch(() => "");
      if (target.startsWith("pipe:[")) pipes.add(target);
    }
    return [...pipes];
  }

  async #sendFilesFirst(name: string): Promise<void> {
    const before = await this.#rehearsal.timed("scanMs", () => this.#scan(name));
    // after the scan, and before anything is read: see mapped-files.ts
    const mapped = filesMappedForWriting((await this.#tree()).map(({ pid }) => pid));
    takeForChanged(before, name === LAYER ? "/" : name, mapped);
    this.#scans.set(name, before);
    if (name === LAYER && this.#workload.container.layerInUse) {
      // whiteouts and opaque folders are the overlay's own to make
      const { gone, changed } = difference(new Map(), before);
      if (gone.length > 0) await this.#call("filesGone", { root: name, gone });
      await this.#sendTar(name, changed, true);
    } else await this.#sendTar(name, before.keys(), true);
  }

  async #sendFilesSecond(): Promise<void> {
    for (const [name, before] of this.#scans) {
      const { gone, changed } = difference(before, await this.#scan(name));
      if (gone.length > 0) await this.#call("filesGone", { root: name, gone });
      if (changed.length > 0) await this.#sendTar(name, changed, false);
    }
  }

  async #scan(name: string): Promise<Scan> {
    const root = this.#openTree(name);
    const { container } = this.#workload;
    try {
      const found = await scan(root);
      return name === LAYER && container.layerInUse ? besideMounts(found, container.init.pid) : found;
    } finally {
      closeSync(root);
    }
  }

  /** Seen from the container, whose root is as far as any link or ".." leads. */
  #openTree(name: string): number {
    const { container } = this.#workload;
    return name === LAYER ? container.openLayer() : openFolderIn(container, name);
  }

  async #sendTar(name: string, paths: Iterable<string>, live: boolean): Promise<void> {
    const channel = required(this.#channel);
    const fd = this.#openTree(name);
    const { stream, done } = await packPaths(
      { fd, initPid: this.#workload.container.init.pid },
      paths,
      live,
    ).finally(() => closeSync(fd));
    done.catch(() => {}); // looked at below; must not be unhandled meanwhile
    for await (const piece of stream) await channel.send("files", { root: name }, piece as Buffer);
    await done;
    await channel.send("files", { root: name }, Buffer.alloc(0));
  }

  #startDeadline(): void {
    const { deadlineMs } = this.#options;
    this.#deadlineTimer = setTimeout(() => {
      this.#deadline.abort(fail("DEADLINE", `the deadline of ${deadlineMs} ms has passed`));
    }, deadlineMs);
  }

  #throwIfStopped(): void {
    this.#options.signal.throwIfAborted();
    this.#deadline.signal.throwIfAborted();
  }

  /** For work that waits for a target which may have stopped answering. It goes on, unheard. */
  #untilStopped<T>(work: Promise<T>): Promise<T> {
    const signal = AbortSignal.any([this.#options.signal, this.#deadline.signal]);
    return new Promise<T>((resolve, reject) => {
      const onAbort = (): void => reject(signal.reason);
      if (signal.aborted) onAbort();
      signal.addEventListener("abort", onAbort, { once: true });
      work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
    });
  }

  #call<T>(method: string, params: object, body?: Buffer): Promise<{ result: T; body: Buffer }> {
    const signal = AbortSignal.any([this.#options.signal, this.#deadline.signal]);
    return required(this.#channel).call<T>(method, params, {
      signal,
      ...(body === undefined ? {} : { body }),
    });
  }

  async #criuReason(error: unknown, log: string): Promise<unknown> {
    if (!(error instanceof HoldfastError) || error.source !== "criu") return error;
    const reason = criuLogReason(await readFile(`${this.#imagesDir}/${log}`, "utf8").catch(() => ""));
    return reason === null
      ? error
      : fail("CRIU_DUMP", `CRIU cannot dump the application: ${reason}`, { cause: error });
  }

  async #phase<T>(phase: PhaseEvent["phase"], work: () => Promise<T>): Promise<T> {
    const atMs = performance.now();
    this.#report(phase, "start", atMs - this.#startedMs);
    const result = await work();
    this.#phasesMs[phase] = performance.now() - atMs;
    this.#report(phase, "done", this.#phasesMs[phase] ?? 0);
    return result;
  }

  #report(phase: PhaseEvent["phase"], state: PhaseEvent["state"], ms: number): void {
    const note = phase === "rollback" && this.#result.reason !== null ? { note: this.#result.reason } : {};
    this.#options.report({ type: "phase", phase, state, ms: round(ms), ...note });
  }
}

/** The first complaint in CRIU's log that says why, without file names and without the harmless one about limits. */
export function criuLogReason(log: string): string | null {
  const line = log
    .split("\n")
    .find((candidate) => candidate.includes("Error (") && !candidate.includes("RLIMIT_NOFILE"));
  const reason = line?.replace(/^.*?Error \([^)]*\):\s*/, "").trim() ?? null;
  const [, pid, signal] = /^SEIZE (\d+): unsupported stop signal (\d+)$/.exec(reason ?? "") ?? [];
  if (pid === undefined) return reason;
  return `process ${pid} of the container was stopped by its terminal (signal ${signal}); stop it by Ctrl-Z in the foreground, or end it`;
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}

/** Its schema, of another version, knows something else. */
function isRefusedParameter(error: unknown): boolean {
  return error instanceof HoldfastError && error.code === "CHANNEL_PARAMS";
}

function required<T>(value: T | null | undefined): T {
  if (value === null || value === undefined)
    throw fail("MIGRATION_ORDER", "a step of the move came out of order", { source: "migration" });
  return value;
}
