/**
 * A move, seen from the node that takes the workload. It follows the source's calls (`api/migration.ts` has their order) on one
 * channel, and decides alone only when that channel is gone: then the store tells whether this node owns the workload.
 *
 * What CRIU restores is frozen before CRIU lets go of it. So until the release not one instruction of it has run and giving
 * up is always possible; and an agent that dies loses nothing: the next one lets the application go on, or removes it.
 */

import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { type Channel, checked } from "#proxy/contract/channel.ts";
import type { AdoptResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import {
  adoptCall,
  filesEvent,
  filesGoneCall,
  type ImagesEvent,
  imagesEvent,
  type OutcomeReply,
  type PrepareCall,
  type ReleaseReply,
  type RestoreCall,
  type RestoreReply,
  restoreCall,
  type StandbyReply,
} from "../api/migration.ts";
import type { InstanceState } from "../api/watches.ts";
import { type Fingerprint, fingerprintSchema } from "../audit/fingerprint.ts";
import { semaphoresOf } from "../audit/semaphores-of.ts";
import { rehearse } from "../audit/take.ts";
import { notWhatItWas, sessionsAt, type Verified, verifyRestored } from "../audit/verify.ts";
import { fitToMachine } from "../criu/address-space.ts";
import { stopSignalOf } from "../criu/image-file.ts";
import { ImageReceiver } from "../criu/images.ts";
import type { ProcessDigest } from "../criu/memory-digest.ts";
import type { InheritFd } from "../criu/protocol.ts";
import { SpareSemaphores } from "../criu/semaphores.ts";
import { fitTerminalData } from "../criu/terminal-data.ts";
import { CriuWorker, FIRST_INHERITED_FD, type WorkerOptions } from "../criu/worker.ts";
import { removePaths, unpackInto } from "../runtime/files.ts";
import type { Freezer } from "../runtime/freezer.ts";
import { openFolderIn, openOutput } from "../runtime/inside.ts";
import { inNetworkOf } from "../runtime/network-namespace.ts";
import { makeQueues, QueueStands, showQueues } from "../runtime/posix-queues.ts";
import { childrenOf, identify, innerPid, treeOf } from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import { addressesThatMove } from "./addresses.ts";
import { criuLogReason } from "./departure.ts";
import type { MigrationHost } from "./host.ts";
import {
  fitOwnSockets,
  type OwnSockets,
  ownSubjects,
  putBackOwnSockets,
  readOwnSockets,
} from "./own-sockets.ts";
import { decideAtTarget, OUTCOME_MS_MAX, release } from "./settle.ts";
import { aheadOf, besides, isInTheWay, neededNumbers, numbersMax, setLastNumber } from "./tree-numbers.ts";
import { refuseMissingUnixPeers } from "./unix-peers.ts";
import { restoredMemory, type VerifyCall, verifyCall, verifyMemory } from "./verify-memory.ts";
import { countsOf, overflowOf, put as putWatches } from "./watches.ts";

const GRANT_MS_MAX = 5_000;
/** eventfds that the application may have made since the move was prepared */
const SPARE_SEMAPHORES = 8;
/** each is one line of the log's entry; the move's own line has the first few */
const DIFFERENCES_LOGGED_MAX = 100;

type State = "preparing" | "standby" | "restored" | "releasing" | "released" | "gave-up";

interface Unpacking {
  stream: NodeJS.WritableStream;
  done: Promise<void>;
}

export class Arrival {
  readonly prepare: PrepareCall;
  #workload: MigrationHost;
  #channel: Channel;
  #state: State = "preparing";
  #created: Promise<Sandbox> | null = null;
  #container: Sandbox | null = null;
  #layerReady = Promise.withResolvers<string>();
  #layerDone = Promise.withResolvers<void>();
  #unpacking = new Map<string, Unpacking>();
  #images: ImageReceiver | null = null;
  #imageError: unknown = null;
  #worker: CriuWorker | null = null;
  /** standard output and error */
  #outputs: number[] = [];
  #semaphores = new SpareSemaphores(0);
  #before: Fingerprint | null = null;
  /** without a freezer, where memory is to be verified: before SIGSTOP changes it, see the source's `post-dump` */
  #memory: ProcessDigest[] | null = null;
  #restored = Promise.withResolvers<void>();
  /** → at which epoch */
  #released: Promise<number> | null = null;
  /** the epoch at which this node may go on, by the source's word on another channel */
  #granted: number | null = null;
  /** when the last piece of them is */
  readonly #upstreamAdopted = Promise.withResolvers<void>();
  /** the last piece of them */
  #downstreamAdopted: Promise<AdoptResult> | null = null;
  #ownSockets: OwnSockets | null = null;
  #criuMs = 0;
  /** inner PID of the application */
  #root = -1;
  #ending: Promise<void> | null = null;
  #forgotten = false;
  /** this agent ends, and leaves to the next one what became of the release */
  #isLeftOpen = false;

  constructor(workload: MigrationHost, channel: Channel, prepare: PrepareCall) {
    this.#workload = workload;
    this.#channel = channel;
    this.prepare = prepare;
    for (const { promise } of [this.#layerReady, this.#layerDone, this.#restored, this.#upstreamAdopted])
      promise.catch(() => {});
    void channel.closed
      .then(() => this.#sourceIsGone())
      .catch((error: unknown) =>
        workload.context.log.warn({ workload: workload.name, reason: messageOf(error) }, "arrival failed"),
      );
  }

  get ended(): boolean {
    return this.#state === "released" || this.#forgotten;
  }

  /** Registers what the source may say. `prepare` itself has been answered by the caller. */
  handlers(): void {
    const on = <Params>(
      method: string,
      schema: z.ZodType<Params>,
      handler: (
        params: Params,
        body: Buffer,
      ) => Promise<{ result?: unknown }> | Promise<undefined> | undefined,
    ): void => {
      this.#channel.on(
        method,
        checked(schema, async (params, body) => {
          try {
            return await handler(params, body);
          } catch (error) {
            this.#workload.context.log.warn(
              { workload: this.#workload.name, step: method, reason: messageOf(error) },
              "arrival: step failed",
            );
            throw error;
          }
        }),
      );
    };
    const nothing = z.strictObject({});
    on("files", filesEvent, async ({ root }, body) => void (await this.#files(root, body)));
    on("standby", nothing, async () => ({ result: await this.#standby() }));
    on("images", imagesEvent, (event, body) => this.#takeImages(event, body));
    on("filesGone", filesGoneCall, async ({ root, gone }) => {
      const fd = this.#openTree(root);
      await removePaths(fd, gone).finally(() => closeSync(fd));
    });
    on("adopt", adoptCall, async ({ last }, body) => ({ result: await this.#adoptUpstream(body, last) }));
    on("fingerprint", nothing, async (_, body) => {
      this.#expect("standby");
      this.#before = parsed(body);
      return {};
    });
    on("restore", restoreCall, async (params, body) => ({ result: await this.#restore(params, body) }));
    on("verify", verifyCall, async (params, body) => void (await this.#verify(params, body)));
    on("adoptDownstream", adoptCall, async ({ last }, body) => {
      const adopting = this.#adoptDownstream(body, last);
      if (last) this.#downstreamAdopted = adopting;
      return { result: await adopting };
    });
    on("release", nothing, async () => ({ result: await this.#release() }));
    on("abort", nothing, async () => ({ result: await this.abort(null) }));
    on("idle", nothing, () => undefined); // how long the way there and back takes
    on("forgotten", nothing, async () => void (await this.#ending));
  }

  // ---- the source's calls ----

  /** Starts making the standby; resolves when its layer can be filled. */
  async begin(): Promise<void> {
    const { context } = this.#workload;
    this.#workload.record({
      moving: {
        side: "target",
        id: this.prepare.migration,
        peer: this.prepare.from,
        epoch: this.prepare.epoch,
        step: "prepared",
        criu: null,
        stopped: [],
        watches: [],
        link: null,
        anchors: this.prepare.anchors,
      },
    });
    context.faults.at("target:prepare");
    this.#created = this.#workload.createContainer(async (layer) => {
      this.#layerReady.resolve(layer);
      await this.#layerDone.promise;
    });
    this.#created.catch((error: unknown) => this.#layerReady.reject(error));
    await this.#layerReady.promise;
  }

  async #files(root: string, body: Buffer): Promise<void> {
    let unpacking = this.#unpacking.get(root);
    if (unpacking === undefined) {
      const isNew = root === "layer" && this.#state === "preparing";
      const fd = isNew ? openSync(await this.#layerReady.promise, "r") : this.#openTree(root);
      const initPid = isNew ? null : required(this.#container).init.pid;
      const started = await unpackInto({ fd, initPid }).finally(() => closeSync(fd));
      started.stream.on("error", () => {}); // tar's exit status tells
      started.done.catch(() => {});
      unpacking = started;
      this.#unpacking.set(root, unpacking);
    }
    if (body.length > 0) {
      if (!unpacking.stream.write(body)) await drained(unpacking.stream);
      return;
    }
    this.#unpacking.delete(root);
    unpacking.stream.end();
    await unpacking.done;
    if (root === "layer" && this.#state === "preparing") this.#layerDone.resolve();
  }

  async #standby(): Promise<StandbyReply> {
    this.#expect("preparing");
    const workload = this.#workload;
    const { context } = workload;
    this.#layerDone.resolve();
    const container = await required(this.#created);
    this.#container = container;
    workload.record({ container: container.ref });
    // until it comes alive: what connects to the frozen application would make it another than it was
    await container.closeDoor(workload.config.ports.map(({ upstream }) => upstream.port));
    await refuseMissingUnixPeers(container, this.prepare.facts.unixPeers);
    context.faults.at("target:standby");
    const link = await workload.keeper.standby(this.prepare.epoch);
    const images = container.hostPath("images");
    mkdirSync(images, { mode: 0o700 });
    this.#images = new ImageReceiver(images, workload.limits.imagesBytesMax);
    await this.#startCriu(container);
    this.#state = "standby";
    return { link };
  }

  async #startCriu(container: Sandbox): Promise<void> {
    const max = await numbersMax(container.init.pid);
    await setLastNumber(container.init.pid, aheadOf(this.prepare.highestTid, max));
    // the standby's own output: what the restored application writes goes on into this node's log
    this.#outputs = [openOutput(container, 1), openOutput(container, 2)];
    const options = await this.#workerOptions(container);
    const probe = await CriuWorker.start({ ...options, inherit: [], outlivesAgent: false });
    try {
      await probe.request("FEATURE_CHECK");
    } finally {
      await probe.close();
    }
    this.#semaphores = new SpareSemaphores(this.prepare.semaphores + SPARE_SEMAPHORES);
    this.#worker = await CriuWorker.start(await this.#workerOptions(container));
    rehearse();
  }

  async #workerOptions(container: Sandbox): Promise<WorkerOptions> {
    return {
      criu: this.#workload.context.criu.sealed(),
      imagesDir: container.hostPath("images"),
      initPid: container.init.pid,
      cgroupProcs: await container.cgroupProcs(),
      inherit: [...this.#outputs, ...this.#semaphores.fds],
      outlivesAgent: true,
    };
  }

  /** The tree has other numbers by now than when the move was prepared, and CRIU may have one of them. */
  async #stepAside(container: Sandbox): Promise<void> {
    const needed = neededNumbers(container.hostPath("images"));
    const worker = required(this.#worker);
    if (!(await isInTheWay(worker.pid, needed))) return;
    await worker.close();
    await setLastNumber(container.init.pid, besides(needed, await numbersMax(container.init.pid)));
    this.#worker = await CriuWorker.start(await this.#workerOptions(container));
  }

  /** Nobody waits for the outcome of an event, and one that fails would end the channel: `restore` says why. */
  #takeImages({ pieces }: ImagesEvent, body: Buffer): undefined {
    if (this.#imageError !== null) return;
    let at = 0;
    for (const { name, offset, bytes, from } of pieces) {
      try {
        if (from !== undefined) required(this.#images).copy(name, offset, bytes, from);
        else required(this.#images).write(name, offset, body.subarray(at, at + bytes));
      } catch (error) {
        this.#imageError = error;
        this.#workload.context.log.warn(
          { workload: this.#workload.name, image: name, reason: messageOf(error) },
          "arrival: image not taken",
        );
        return;
      }
      if (from === undefined) at += bytes;
    }
  }

  async #adoptUpstream(legs: Buffer, isLast: boolean): Promise<AdoptResult> {
    this.#expect("standby");
    this.#workload.context.faults.at("target:adopt");
    const { resolve, reject } = this.#upstreamAdopted; // looked at by `restore`
    try {
      const { result } = await this.#workload.proxy.command<"adoptUpstream", AdoptResult>(
        "adoptUpstream",
        { epoch: this.prepare.epoch },
        legs,
      );
      if (isLast) resolve();
      return result;
    } catch (error) {
      reject(error);
      throw error;
    }
  }

  async #restore(restore: RestoreCall, queues: Buffer): Promise<RestoreReply> {
    this.#expect("standby");
    const { manifest, outputPipes, stopped, openQueues } = restore;
    this.#root = restore.root;
    const { context } = this.#workload;
    const images = required(this.#images);
    context.faults.at("target:restore");
    if (this.#imageError !== null) throw this.#imageError;
    images.verify(manifest);
    images.close();
    images.linkLayers();
    const container = required(this.#container);
    fitToMachine(container.hostPath("images"));
    fitTerminals(container.hostPath("images"));
    await this.#stepAside(container);
    this.#workload.recordMoving({ criu: await identify(required(this.#worker).pid), stopped });
    // CRIU leaves repair mode for what a socket had not sent yet: a peer that is not there answers with RST
    await this.#upstreamAdopted.promise;
    if (this.#fitSockets() || this.#workload.config.outbound === "keep") this.#workload.vip?.park();
    const before = required(this.#before);
    const semaphores = this.#semaphores.install(
      required(this.#container).hostPath("images"),
      semaphoresOf(before),
      FIRST_INHERITED_FD + this.#outputs.length,
    );
    const stands = new QueueStands(required(this.#container), openQueues);
    this.#runCriu(outputPipes, semaphores, async (root) => {
      makeQueues(root, queues);
      await showQueues(required(this.#container), root);
      stands.put();
    }).then(this.#restored.resolve, this.#restored.reject);
    await this.#restored.promise;
    stands.remove();
    this.#throwIfEnding();
    await this.#putWatches(restore.watches);
    context.faults.at("target:audit");
    const reply = await this.#audit(before);
    this.#throwIfEnding();
    this.#state = "restored";
    this.#workload.recordMoving({ step: "restored" });
    context.faults.at("target:restored");
    return reply;
  }

  /** Of the restored tree, complete and not running: what is not as it was is repaired, or nothing goes on here. */
  async #audit(before: Fingerprint): Promise<RestoreReply> {
    const { context, config, name } = this.#workload;
    const container = required(this.#container);
    const pids = await treeOf(required(await container.applicationRoot()));
    const initPid = container.init.pid;
    const verify = (): Verified =>
      verifyRestored(
        before,
        {
          initPid,
          pids,
          addresses: addressesThatMove(config),
          volumes: (config.container?.mounts ?? []).map(({ target }) => target),
        },
        {
          ownSockets: new Set([
            ...(this.#ownSockets === null ? [] : ownSubjects(this.#ownSockets)),
            ...sessionsAt(this.#portsCut, before),
          ]),
          stopSignalOf: (pid) => stopSignalOf(readFileSync(container.hostPath(`images/core-${pid}.img`))),
        },
      );
    const { ms, facts, repaired, differences, losses } = inNetworkOf([initPid], verify);
    const told = { workload: name, ms: Math.round(ms), facts, repaired: tally(repaired), notKept: losses };
    if (differences.length > 0) {
      context.log.warn(
        { ...told, differences: differences.slice(0, DIFFERENCES_LOGGED_MAX) },
        "audit failed",
      );
      throw notWhatItWas(before, differences);
    }
    context.log.info(told, "audit passed");
    return { auditMs: ms, notKept: losses };
  }

  async #verify(call: VerifyCall, body: Buffer): Promise<void> {
    this.#expect("restored");
    const container = required(this.#container);
    const root = required(await container.applicationRoot());
    const restored = this.#memory ?? (await restoredMemory(root, container.hostPath("images")));
    await verifyMemory(root, restored, call, body);
    this.#throwIfEnding();
  }

  async #putWatches(watches: InstanceState[]): Promise<void> {
    const { context, name } = this.#workload;
    const container = required(this.#container);
    const tree = await treeOf(required(await container.applicationRoot()));
    const atMs = performance.now();
    for (const state of await putWatches(watches, container, tree))
      context.log.warn({ workload: name, reason: messageOf(overflowOf(state)) }, "arrival: watches");
    if (watches.length > 0)
      context.log.info(
        { workload: name, ...countsOf(watches), ms: Math.round(performance.now() - atMs) },
        "arrival: watches set again",
      );
    context.faults.at("target:watches");
  }

  async #adoptDownstream(legs: Buffer, isLast: boolean): Promise<AdoptResult> {
    this.#expect("restored");
    const { result } = await this.#workload.proxy.command<"adoptDownstream", AdoptResult>(
      "adoptDownstream",
      { epoch: this.prepare.epoch },
      legs,
    );
    this.#throwIfEnding();
    if (!isLast) return result;
    this.#workload.recordMoving({ step: "adopted" });
    this.#workload.context.faults.at("target:adopted");
    return result;
  }

  /** Where the source ends what clients have to the application, to be replayed here. */
  get #portsCut(): number[] {
    const { ports } = this.#workload.config;
    return ports.filter(({ moveBy }) => moveBy === "replay").map(({ upstream }) => upstream.port);
  }

  /** True when one of them needs the VIP here, where it comes later. */
  #fitSockets(): boolean {
    const container = required(this.#container);
    this.#ownSockets = readOwnSockets(container.hostPath("images"));
    if (this.#ownSockets === null) return false;
    return fitOwnSockets(container.hostPath("images"), this.#ownSockets, {
      initPid: container.init.pid,
      vip: this.#workload.config.vip?.address,
    });
  }

  /** @param inNamespaces called with the root of the tree when its namespaces are there, and nothing else of it */
  async #runCriu(
    outputPipes: string[],
    semaphores: InheritFd[],
    inNamespaces: (root: number) => Promise<void>,
  ): Promise<void> {
    const { context, limits } = this.#workload;
    const container = required(this.#container);
    const startedMs = performance.now();
    const freezer = await this.#workload.freezer();
    let spared: Promise<void> = Promise.resolve();
    try {
      await required(this.#worker).request(
        "RESTORE",
        {
          logFile: "restore.log",
          logLevel: context.log.isLevelEnabled("debug") ? 4 : 2,
          ghostLimitBytes: limits.imagesBytesMax,
          inheritFds: [
            ...outputPipes.map((key, at) => ({ key, fd: FIRST_INHERITED_FD + at })),
            ...semaphores,
          ],
          leave: freezer === null ? "stopped" : "running",
        },
        async (hook) => {
          if (hook === "setup-namespaces") {
            spared = this.#spareCriu(freezer);
            spared.catch(() => {}); // looked at before the freeze
          }
          if (hook === "post-setup-namespaces") {
            const [root] = await this.#restoredTree();
            await inNamespaces(required(root));
          }
          // Everything is there, and still silent: repair mode ends only when both ends of each session are.
          if (hook === "post-restore") await this.#upstreamAdopted.promise;
          if (hook === "pre-resume" && freezer !== null) await this.#freezeRestored(freezer, spared);
          if (hook === "pre-resume" && freezer === null && limits.verifyMemory) {
            const [root] = await this.#restoredTree();
            this.#memory = await restoredMemory(required(root), container.hostPath("images"));
          }
        },
      );
      this.#criuMs = performance.now() - startedMs;
      // the tree is a child of the container's init only when CRIU, its parent until then, has ended
      await required(this.#worker).close();
      const root = await required(this.#container).applicationRoot();
      if (root === null) {
        throw fail("RESTORED_GONE", "the restored application is not there");
      }
      if (this.#ownSockets !== null) await putBackOwnSockets(await treeOf(root), this.#ownSockets);
    } catch (error) {
      const log = await readFile(required(this.#container).hostPath("images", "restore.log"), "utf8").catch(
        () => "",
      );
      const reason = criuLogReason(log);
      if (reason === null || !(error instanceof HoldfastError) || error.source !== "criu") throw error;
      throw fail("CRIU_RESTORE", `CRIU cannot restore the application: ${reason}`, { cause: error });
    }
  }

  /** The root of the tree is there, in the container's control group, and its children will be: CRIU itself need not be. */
  async #spareCriu(freezer: Freezer | null): Promise<void> {
    const { pid } = required(this.#worker);
    await freezer?.spare([pid, ...(await childrenOf(pid))]);
  }

  /** CRIU is about to let go of the tree, and would do so even if we said no: what cannot be frozen must not run. */
  async #freezeRestored(freezer: Freezer, spared: Promise<void>): Promise<void> {
    try {
      this.#workload.context.faults.at("target:freeze");
      await spared;
      await freezer.freeze();
    } catch (error) {
      for (const pid of await this.#restoredTree()) kill(pid);
      throw error;
    }
  }

  /** What CRIU has made of the tree so far: until it ends it is its parent, and of helpers of its own. */
  async #restoredTree(): Promise<number[]> {
    const [criu] = await childrenOf(required(this.#worker).pid);
    for (const pid of criu === undefined ? [] : await childrenOf(criu))
      if ((await innerPid(pid)) === this.#root) return treeOf(pid);
    throw fail("RESTORED_GONE", `CRIU has not made process ${this.#root}`);
  }

  /** Ownership has moved to this node. */
  async #release(): Promise<ReleaseReply> {
    this.#expect("restored");
    this.#state = "releasing";
    return this.#goLive();
  }

  /**
   * Before the release is decided: gives up, which is certain when this resolves, though what was made is still being
   * removed (`forgotten`). After: it is done, or about to be; or the store does not answer, and only the source's word can
   * decide. @param grant that word: the epoch at which this node may go on
   */
  async abort(grant: number | null): Promise<OutcomeReply> {
    const { epoch } = this.prepare;
    if (this.#released !== null) {
      this.#granted = grant ?? this.#granted;
      const unsure = sleep(OUTCOME_MS_MAX, null, { ref: false });
      const done = await Promise.race([this.#released.catch(() => 0), unsure]);
      if (done === null || this.#isLeftOpen) return { outcome: "unsure", epoch };
      if (done > 0) return { outcome: "released", epoch: done };
    }
    this.#giveUp().catch(() => {});
    return { outcome: "gave-up", epoch };
  }

  // ---- how it ends ----

  async #goLive(): Promise<ReleaseReply> {
    const workload = this.#workload;
    const { context } = workload;
    let { epoch } = this.prepare;
    try {
      context.faults.at("target:release");
      this.#throwIfEnding();
      workload.recordMoving({ step: "releasing" });
      this.#released = this.#markReleased();
      epoch = await this.#released;
    } catch (error) {
      if (!this.#isLeftOpen) await this.#giveUp();
      throw error;
    }
    // from here nobody can take the workload back
    workload.recordMoving({ step: "released", epoch });
    context.faults.at("target:released");
    await workload.comeAlive(epoch);
    this.#state = "released";
    if (this.#channel.isOpen) this.#channel.send("released", {}).catch(() => {});
    await this.#letGo();
    workload.becomeOwner(epoch, this.prepare.anchors);
    return { criuRestoreMs: this.#criuMs };
  }

  /**
   * The store says that it is decided; where it cannot be asked, or has forgotten, the source gives its word instead.
   * Resolves with the epoch at which this node goes on.
   */
  async #markReleased(): Promise<number> {
    const workload = this.#workload;
    const { name, context } = workload;
    const { migration, epoch } = this.prepare;
    return release(workload, {
      migration,
      epoch,
      mark: () => context.store.markReleased({ workload: name, node: context.node, epoch }),
      grants: () => this.#sourceGrants(),
      word: () => this.#granted,
    }).catch((error: unknown) => {
      if (workload.isClosed) this.#isLeftOpen = true; // the store may have it: the next agent asks
      throw error;
    });
  }

  async #sourceGrants(): Promise<boolean> {
    if (!this.#channel.isOpen) return false;
    try {
      await this.#channel.call(
        "grantRelease",
        { migration: this.prepare.migration },
        { timeoutMs: GRANT_MS_MAX },
      );
      return true;
    } catch {
      return false; // neither the store nor the source: ask again
    }
  }

  /** Decided at once, and known to a later agent: the source may have been told. Resolves when no trace is left. */
  #giveUp(): Promise<void> {
    if (this.#ending === null) {
      this.#state = "gave-up";
      this.#workload.recordMoving({ step: "gave-up" });
      this.#ending = this.#forget();
      this.#ending.catch(() => {});
    }
    return this.#ending;
  }

  async #forget(): Promise<void> {
    const workload = this.#workload;
    for (const waiting of [this.#layerReady, this.#layerDone, this.#restored, this.#upstreamAdopted])
      waiting.reject(givenUp());
    const container = this.#container ?? (await this.#created?.catch(() => null)) ?? null;
    this.#container = null;
    workload.vip?.remove(); // first: what is killed here must not say farewell from an address that lives elsewhere
    await container?.destroy(); // with the CRIU at work in it
    workload.endLeftConnections();
    await this.#letGo();
    await workload.keeper.discard(this.prepare.epoch);
    workload.record({ moving: null, container: null });
    this.#forgotten = true;
  }

  async #letGo(): Promise<void> {
    await this.#worker?.close();
    this.#worker = null;
    this.#images?.close();
    for (const output of this.#outputs) closeSync(output);
    this.#outputs = [];
    this.#semaphores.close();
    for (const { stream } of this.#unpacking.values()) stream.end();
    this.#unpacking.clear();
    if (this.#container !== null) await removeImages(this.#container);
  }

  /** Only the store knows now whether the source had committed. */
  async #sourceIsGone(): Promise<void> {
    if (this.#state === "released" || this.#state === "releasing" || this.#state === "gave-up") return;
    const workload = this.#workload;
    const { context, name } = workload;
    const { migration, epoch } = this.prepare;
    const given = (): boolean => this.#ending !== null;
    const outcome = await decideAtTarget(workload, migration, epoch, given);
    if (given()) return;
    if (outcome === "not-mine" || this.#state !== "restored") return this.#giveUp();
    context.log.warn({ workload: name }, "the source is gone after its commit: going on from the store");
    try {
      if (workload.vip !== null)
        await (this.#downstreamAdopted ?? this.#adoptDownstream(await workload.heldBytes(epoch), true));
    } catch (error) {
      await this.#giveUp();
      throw error;
    }
    this.#state = "releasing";
    await this.#goLive();
  }

  // ---- parts ----

  /** The caller closes it. */
  #openTree(root: string): number {
    const container = required(this.#container);
    if (root !== "layer" && !container.travels.includes(root))
      throw fail("FILES_PATH", `no tmpfs ${root} here`);
    return root === "layer" ? container.openRootForFiles() : openFolderIn(container, root);
  }

  #throwIfEnding(): void {
    if (this.#ending !== null) throw givenUp();
  }

  #expect(state: State): void {
    if (this.#state !== state) throw fail("MIGRATION_ORDER", `the target is ${this.#state}, not ${state}`);
  }
}

/** So that what terminals have written is not translated twice. */
function fitTerminals(imagesDir: string): void {
  const [data, info] = ["tty-data.img", "tty-info.img"].map((name) => join(imagesDir, name)) as [
    string,
    string,
  ];
  if (!existsSync(data)) return;
  const fitted = fitTerminalData(readFileSync(data), readFileSync(info));
  if (fitted !== null) writeFileSync(data, fitted);
}

/** Resolves when the stream takes more, or never will. */
function drained(stream: NodeJS.WritableStream): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      stream.off("drain", done).off("close", done);
      resolve();
    };
    stream.on("drain", done).on("close", done);
  });
}

/** How often each thing was set again: of a thousand connections as well one entry. */
function tally(repaired: string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const text of repaired) {
    const name = text.slice(text.indexOf(": ") + 2);
    counts[name] = (counts[name] ?? 0) + 1;
  }
  return counts;
}

function parsed(fingerprint: Buffer): Fingerprint {
  let value: unknown;
  try {
    value = JSON.parse(fingerprint.toString("utf8"));
  } catch (cause) {
    throw fail("FINGERPRINT_INVALID", "the source's fingerprint is not JSON", { cause });
  }
  const checked = fingerprintSchema.safeParse(value);
  if (checked.success) return checked.data;
  throw fail(
    "FINGERPRINT_INVALID",
    "the source's fingerprint is not one: both agents must be of one version",
  );
}

async function removeImages(container: Sandbox): Promise<void> {
  const images = container.hostPath("images");
  await rm(images, { recursive: true, force: true });
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // it has ended
  }
}

function givenUp(): HoldfastError {
  return fail("MIGRATION_ABORTED", "the move was given up");
}

function required<T>(value: T | null | undefined): T {
  if (value === null || value === undefined)
    throw fail("MIGRATION_ORDER", "a step of the move came out of order");
  return value;
}
