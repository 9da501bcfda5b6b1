/**
 * A move, seen from the node that takes the workload. It follows the source's calls (`api/migration.ts` has their order) on one
 * channel, and decides alone only when that channel is gone: then the store tells whether this node owns the workload.
 *
 * What CRIU restores is frozen before CRIU lets go of it. So until the release not one instruction of it has run and giving
 * up is always possible; and an agent that dies loses nothing: the next one lets the application go on, or removes it.
 */
import { closeSync, mkdirSync, openSync } from "node:fs";
import { rm } from "node:fs/promises";
import { z } from "zod";
import { type Channel, checked } from "#proxy/contract/channel.ts";
import type { AdoptResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import {
  adoptCall,
  filesEvent,
  filesGoneCall,
  type ImagesOpenReply,
  imagesEvent,
  type MemoryCall,
  memoryCall,
  type OutcomeReply,
  type PrepareCall,
  type ReleaseReply,
  type RestoreCall,
  type RestoreReply,
  restoreCall,
  type SignalsCall,
  type StandbyReply,
  signalsCall,
} from "../../api/migration.ts";
import { FORMAT } from "../../audit/fingerprint.ts";
import { rehearse } from "../../audit/take.ts";

import { realPathIn } from "../../runtime/inside.ts";
import { coveredIn, mountsOf, shownIn } from "../../runtime/mounted.ts";
import { sendAgain } from "../../runtime/pending-signals.ts";
import { emptyBut, removePaths } from "../../runtime/remove-files.ts";
import type { Sandbox } from "../../runtime/runtime.ts";
import type { MigrationHost } from "../host.ts";
import { decideAtTarget } from "../settle.ts";
import { takeEach, untilDone } from "../steps.ts";
import { Timeline } from "../timeline.ts";
import { refuseMissingUnixPeers } from "../unix-peers.ts";
import { type VerifyCall, verifyCall, verifyMemory } from "../verify-memory.ts";
import { parseFingerprint } from "./audit-restored.ts";
import { FilesIntake } from "./files-intake.ts";
import { givenUp } from "./given-up.ts";
import { ImageIntake } from "./image-intake.ts";
import { Release } from "./release.ts";
import { restore } from "./restore.ts";
import { RestoringCriu } from "./restoring-criu.ts";
import { StandbyContainer } from "./standby-container.ts";
import { ArrivalState, type Restored, type State } from "./state.ts";

/** the container's writable layer among the files that come in; the others are tmpfs mounts, named by where they are */
const LAYER = "layer";

export class Arrival {
  readonly prepare: PrepareCall;
  readonly #host: MigrationHost;
  readonly #channel: Channel;
  readonly #state = new ArrivalState();
  readonly #container = new StandbyContainer();
  readonly #files = new FilesIntake();
  readonly #timeline = new Timeline();
  readonly #images: ImageIntake;
  /** when memory can be taken: before the standby is complete */
  readonly #imagesOpen = Promise.withResolvers<void>();
  /** the standby, from when it is asked for. null: it has not been */
  #standbyMade: Promise<StandbyReply> | null = null;
  /** when the last piece of the legs to the application is */
  readonly #upstreamAdopted = Promise.withResolvers<void>();
  /** when CRIU may read memory */
  readonly #memoryComplete = Promise.withResolvers<void>();
  /** when it is on record that this was given up */
  #recorded: Promise<void> = Promise.resolve();
  /** the last piece of the clients' legs. null: it has not come */
  #downstreamAdopted: Promise<AdoptResult> | null = null;

  constructor(host: MigrationHost, channel: Channel, prepare: PrepareCall) {
    this.#host = host;
    this.#channel = channel;
    this.prepare = prepare;
    const warn = (text: string, error: unknown, more: object = {}): void =>
      host.context.log.warn({ workload: host.name, ...more, reason: messageOf(error) }, text);
    this.#images = new ImageIntake((image, error) => warn("arrival: image not taken", error, { image }));
    for (const { promise } of [this.#upstreamAdopted, this.#memoryComplete]) promise.catch(() => {}); // looked at by `restore`
    this.#imagesOpen.promise.catch(() => {}); // where nobody asks
    void channel.closed
      .then(() => this.#sourceIsGone())
      .catch((error: unknown) => warn("arrival failed", error));
  }

  get ended(): boolean {
    const { at } = this.#state.now;
    return at === "released" || at === "forgotten";
  }

  /** What the source may ask for, in its order. `prepare` itself has been answered by the caller. */
  handlers(): void {
    const nothing = z.strictObject({});
    this.#on("files", filesEvent, ({ root }, body) => this.#takeFiles(root, body));
    this.#on("standby", nothing, () => {
      if (this.#standbyMade !== null) throw fail("MIGRATION_ORDER", "the standby has been asked for already");
      this.#standbyMade = this.#standby();
      return this.#standbyMade;
    });
    this.#on("imagesOpen", nothing, () => this.#openImages());
    this.#on("images", imagesEvent, async (event, body) => this.#images.take(event, body));
    this.#on("filesGone", filesGoneCall, ({ root, gone }) => this.#removeFiles(root, gone));
    this.#on("adopt", adoptCall, ({ last }, body) => this.#adoptUpstream(body, last));
    this.#on("fingerprint", nothing, async (_, body) => this.#inform(body));
    this.#on("restore", restoreCall, (call, body) => this.#restore(call, body));
    this.#on("memory", memoryCall, async (call) => this.#completeMemory(call));
    this.#on("verify", verifyCall, (call, body) => this.#verify(call, body));
    this.#on("adoptDownstream", adoptCall, ({ last }, body) => this.#takeDownstream(body, last));
    this.#on("release", nothing, async () => this.#goLive(this.#state.expect("restored")));
    this.#on("signals", signalsCall, (call) => this.#signal(call));
    this.#on("abort", nothing, () => this.abort(null));
    this.#on("forgotten", nothing, () => this.#forgotten());
    this.#on("idle", nothing, async () => undefined); // how long the way there and back takes
  }

  /** @param handler → the result */
  #on<Params>(
    method: string,
    schema: z.ZodType<Params>,
    handler: (params: Params, body: Buffer) => Promise<unknown>,
  ): void {
    const { context, name } = this.#host;
    const handle = async (params: Params, body: Buffer): Promise<{ result: unknown }> => {
      try {
        return { result: await handler(params, body) };
      } catch (error) {
        const reason = messageOf(error);
        context.log.warn({ workload: name, step: method, reason }, "arrival: step failed");
        throw error;
      }
    };
    this.#channel.on(method, checked(schema, handle));
  }

  // ---- the source's calls ----

  /** Starts making the standby; resolves when its layer can be filled. Where it cannot, it is given up. */
  async begin(): Promise<void> {
    try {
      await this.#begin();
    } catch (error) {
      this.#giveUp().catch(() => {}); // only where the agent ends
      throw error;
    }
  }

  async #begin(): Promise<void> {
    this.#state.throwIfGivenUp(); // the source may have gone meanwhile
    const { migration, from, epoch, anchors } = this.prepare;
    this.#host.record({
      moving: {
        side: "target",
        id: migration,
        peer: from,
        epoch,
        step: "prepared",
        criu: null,
        stopped: [],
        ran: false,
        watches: [],
        link: null,
        anchors,
      },
    });
    this.#host.context.faults.at("target:prepare");
    await this.#container.begin(this.#host);
  }

  async #takeFiles(root: string, body: Buffer): Promise<void> {
    const isBeingMade = (): boolean => root === LAYER && this.#state.now.at === "preparing";
    const isUnpacked = await this.#files.take(root, body, async () => {
      if (isBeingMade()) return { fd: openSync(await this.#container.layer, "r"), initPid: null };
      const container = this.#made();
      return { fd: openTree(container, root), initPid: container.init.pid };
    });
    if (isUnpacked && isBeingMade()) this.#container.filled();
  }

  async #removeFiles(root: string, gone: string[]): Promise<void> {
    const fd = openTree(this.#made(), root);
    await removePaths(fd, gone).finally(() => closeSync(fd));
  }

  #made(): Sandbox {
    return this.#state.expect("standby", "informed", "restored", "releasing").container;
  }

  async #standby(): Promise<StandbyReply> {
    this.#state.expect("preparing");
    const host = this.#host;
    const { context } = host;
    const { epoch, facts, highestTid, semaphores } = this.prepare;
    this.#container.filled();
    const container = await this.#container.created;
    if (container === null) throw fail("MIGRATION_ORDER", "a step of the move came out of order");
    host.record({ container: container.ref });
    for (const folder of container.travels) await emptyFolder(container, folder);
    await refuseMissingUnixPeers(container, facts.unixPeers);
    context.faults.at("target:standby");
    const images = container.hostPath("images");
    mkdirSync(images, { mode: 0o700 });
    this.#images.open(images, host.limits.imagesBytesMax);
    this.#imagesOpen.resolve();
    this.#state.throwIfGivenUp(); // what is begun before that is ended; nothing is afterwards
    const starting = RestoringCriu.start(container, context.criu, { highestTid, semaphores });
    const proxy = host.keeper.standby(epoch);
    // until it comes alive: what connects to the frozen application would make it another than it was
    const door = container.closeDoor(host.config.ports.map(({ upstream }) => upstream.port));
    const made = await Promise.allSettled([starting, proxy, door]);
    if (this.#state.isGivenUp || made.some(({ status }) => status === "rejected"))
      await starting.then((criu) => criu.close()).catch(() => {}); // it did not start
    const [criu, link] = await Promise.all([starting, proxy, door]);
    this.#state.throwIfGivenUp();
    rehearse();
    this.#state.standby({ container, criu });
    return { link };
  }

  async #adoptUpstream(legs: Buffer, isLast: boolean): Promise<AdoptResult> {
    this.#state.expect("standby", "informed");
    this.#host.context.faults.at("target:adopt");
    const { resolve, reject } = this.#upstreamAdopted; // looked at by `restore`
    try {
      const { epoch } = this.prepare;
      const { result } = await this.#timeline.during("target proxy", "adopts the application's legs", () =>
        this.#host.proxy.command<"adoptUpstream", AdoptResult>("adoptUpstream", { epoch }, legs),
      );
      if (isLast) resolve();
      return result;
    } catch (error) {
      reject(error);
      throw error;
    }
  }

  async #openImages(): Promise<ImagesOpenReply> {
    await this.#imagesOpen.promise;
    return { memoryLast: true, fingerprintFormat: FORMAT };
  }

  #inform(fingerprint: Buffer): void {
    this.#state.expect("standby", "informed");
    this.#state.informed(parseFingerprint(fingerprint));
  }

  async #restore(call: RestoreCall, queues: Buffer): Promise<RestoreReply> {
    const restoring = {
      timeline: this.#timeline,
      ...this.#state.expect("informed"),
      host: this.#host,
      state: this.#state,
      images: this.#images,
      adopted: this.#upstreamAdopted.promise,
      memoryComplete: this.#memoryComplete.promise,
    };
    const { application, reply } = await restore(restoring, call, queues);
    this.#state.restored(application);
    this.#host.recordMoving({ step: "restored" });
    this.#host.context.faults.at("target:restored");
    return reply;
  }

  #completeMemory({ manifest }: MemoryCall): void {
    this.#state.expect("informed");
    const { resolve, reject } = this.#memoryComplete; // looked at by `restore`
    try {
      this.#host.context.faults.at("target:memory");
      this.#images.complete(manifest);
      resolve();
    } catch (error) {
      reject(error);
      throw error;
    }
  }

  async #verify(call: VerifyCall, body: Buffer): Promise<void> {
    const { application } = this.#state.expect("restored");
    await this.#timeline.during("target agent", "compares memory", async () =>
      verifyMemory(application.root, await application.readMemory(), call, body),
    );
    this.#state.throwIfGivenUp();
  }

  #takeDownstream(legs: Buffer, isLast: boolean): Promise<AdoptResult> {
    const adopting = this.#adoptDownstream(legs, isLast);
    if (isLast) this.#downstreamAdopted = adopting;
    return adopting;
  }

  async #adoptDownstream(legs: Buffer, isLast: boolean): Promise<AdoptResult> {
    this.#state.expect("restored");
    const { epoch } = this.prepare;
    const { result } = await this.#timeline.during("target proxy", "adopts clients' legs", () =>
      this.#host.proxy.command<"adoptDownstream", AdoptResult>("adoptDownstream", { epoch }, legs),
    );
    this.#state.throwIfGivenUp();
    if (!isLast) return result;
    this.#host.recordMoving({ step: "adopted" });
    this.#host.context.faults.at("target:adopted");
    return result;
  }

  // ---- how it ends ----

  /**
   * Before the release is decided: gives up, which is certain when this resolves, though what was made is still being
   * removed (`forgotten`). After: it is done, or about to be; or the store does not answer, and only the source's word can
   * decide. @param grant that word: the epoch at which this node may go on
   */
  async abort(grant: number | null): Promise<OutcomeReply> {
    const { now } = this.#state;
    if (now.at === "released") return { outcome: "released", epoch: now.epoch };
    const outcome = now.at === "releasing" ? await now.release.outcome(grant) : null;
    if (outcome !== null) return outcome;
    this.#giveUp().catch(() => {});
    await this.#recorded; // the answer has to stay true
    return { outcome: "gave-up", epoch: this.prepare.epoch };
  }

  /** Ownership has moved to this node. */
  async #goLive({ application, container, criu }: Restored): Promise<ReleaseReply> {
    const host = this.#host;
    const releaseMs = performance.now();
    const epoch = await this.#timeline.during("store", "release", () => this.#release());
    // from here nobody can take the workload back, and nobody else has it
    await this.#hasToBe("go on", () => host.recordMoving({ step: "released", epoch }));
    const onAlive = (): void => {
      if (this.#state.now.at === "released") return;
      this.#state.released(epoch);
      if (this.#channel.isOpen) this.#channel.send("released", {}).catch(() => {});
    };
    host.context.faults.at("target:released");
    await this.#hasToBe("go on", () => host.comeAlive(epoch, onAlive, this.#timeline));
    const removed = {
      "close CRIU": () => criu.close(),
      "close what was taken in": () => this.#closeIntakes(),
      "remove images": () => rm(container.hostPath("images"), { recursive: true, force: true }),
    };
    await takeEach(removed, (what, error) => this.#warn(`${what} failed; continuing`, error));
    await this.#hasToBe("own the workload", () => host.becomeOwner(epoch, this.prepare.anchors));
    return { criuRestoreMs: application.criuMs, timeline: this.#timeline.since(releaseMs) };
  }

  /** Again and again, until it is done or the agent ends. */
  #hasToBe(what: string, step: () => Promise<void> | void): Promise<void> {
    const onFailure = (error: unknown): void => this.#warn(`the application cannot ${what} yet`, error);
    return untilDone(step, onFailure, () => this.#host.throwIfClosed());
  }

  /** As they were sent to it while it was not running. One that has ended since had no use for them. */
  async #signal({ sent }: SignalsCall): Promise<void> {
    this.#state.expect("released");
    const root = await this.#host.container.applicationRoot();
    if (root !== null) await sendAgain(root, sent);
  }

  /** → at which epoch this node goes on. Where it does not, it has given up, or leaves that to the next agent. */
  async #release(): Promise<number> {
    try {
      this.#host.context.faults.at("target:release");
      this.#host.recordMoving({ step: "releasing" });
      const release = new Release(this.#host, this.#channel, this.prepare);
      this.#state.releasing(release);
      return await release.decided;
    } catch (error) {
      const { now } = this.#state;
      if (now.at !== "releasing" || !now.release.isLeftOpen) await this.#giveUp();
      throw error;
    }
  }

  /** Only the store knows now whether the source had committed. */
  async #sourceIsGone(): Promise<void> {
    const host = this.#host;
    const { context, name } = host;
    const { migration, epoch } = this.prepare;
    const { at } = this.#state.now;
    if (at === "releasing" || at === "released" || this.#state.isGivenUp) return;
    const outcome = await decideAtTarget(host, migration, epoch, () => this.#state.isGivenUp);
    if (this.#state.isGivenUp) return;
    const { now } = this.#state;
    if (outcome === "not-mine" || now.at !== "restored") return this.#giveUp();
    context.log.warn({ workload: name }, "the source is gone after its commit: going on from the store");
    try {
      if (host.vip !== null)
        await (this.#downstreamAdopted ?? this.#adoptDownstream(await host.heldBytes(epoch), true));
    } catch (error) {
      await this.#giveUp();
      throw error;
    }
    this.#state.throwIfGivenUp();
    await this.#goLive(now);
  }

  /** Decided at once, and known to a later agent: the source may have been told. Resolves when no trace is left. */
  #giveUp(): Promise<void> {
    const { now } = this.#state;
    if (now.at === "gave-up") return now.forgetting;
    if (now.at === "forgotten") return Promise.resolve();
    this.#recorded = this.#hasToBe("be given up", () => this.#host.recordMoving({ step: "gave-up" }));
    const forgetting = this.#recorded.then(() => this.#forget(now));
    forgetting.catch(() => {});
    this.#state.giveUp(forgetting);
    return forgetting;
  }

  async #forget(left: State): Promise<void> {
    const host = this.#host;
    this.#container.giveUp(givenUp());
    this.#upstreamAdopted.reject(givenUp());
    this.#memoryComplete.reject(givenUp());
    this.#imagesOpen.reject(givenUp());
    const container = await this.#container.created.catch(() => null);
    const steps = {
      connections: () => host.endLeftConnections(),
      CRIU: () => ("criu" in left ? left.criu.close() : undefined),
      "what was taken in": () => this.#closeIntakes(),
    };
    // first: what is killed here must not say farewell from an address that lives elsewhere
    await this.#hasToBe("leave its address", () => void host.vip?.remove());
    // with the CRIU at work in it; where the agent ends before, the next one finds it on record
    await this.#hasToBe("be ended", async () => container?.destroy());
    await takeEach(steps, (what, error) => this.#warn(`${what} of an arrival that was given up`, error));
    await this.#hasToBe("have its proxy discarded", () => host.keeper.discard(this.prepare.epoch));
    await this.#standbyMade?.catch(() => {}); // all that it was at has been ended
    await this.#hasToBe("be forgotten", () => host.record({ moving: null, container: null }));
    this.#state.forgotten();
  }

  /** One that was refused before it began: nothing of it is here, and what becomes of its channel is no matter. */
  dismiss(): void {
    if (this.#state.isGivenUp) return; // its source has gone meanwhile
    this.#state.giveUp(Promise.resolve());
    this.#state.forgotten();
  }

  #warn(text: string, error: unknown): void {
    const { context, name } = this.#host;
    context.log.warn({ workload: name, reason: messageOf(error) }, text);
  }

  /** Resolves when what was given up has gone. */
  async #forgotten(): Promise<void> {
    const { now } = this.#state;
    if (now.at === "gave-up") await now.forgetting;
  }

  #closeIntakes(): void {
    this.#images.close();
    this.#files.close();
  }
}

/** What an init container, or an earlier application, left there: the source's files come in its place. */
async function emptyFolder(container: Sandbox, path: string): Promise<void> {
  const folder = container.openFolder(path);
  try {
    const mounts = mountsOf(container.init.pid);
    await emptyBut(folder, [...coveredIn(mounts, path), ...shownIn(mounts, path)]);
  } finally {
    closeSync(folder);
  }
}

/** The caller closes it. @throws HoldfastError `FILES_PATH` */
function openTree(container: Sandbox, root: string): number {
  if (root === LAYER) return container.openRootForFiles();
  // the version before says it as the configuration does
  const path = container.travels.includes(root) ? root : realPathIn(container, root);
  if (!container.travels.includes(path)) throw fail("FILES_PATH", `no tmpfs ${root} here`);
  return container.openFolder(path);
}
