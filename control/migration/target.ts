/**
 * A move, seen from the node that takes the workload. It follows the source's calls (`move.ts` has their order) on one
 * channel, and decides alone only when that channel is gone: then the store tells whether this node owns the workload.
 *
 * CRIU is kept waiting in its own hook, `post-restore`, with the whole tree rebuilt and not one instruction of it run.
 * So giving up is always possible until then, also by dying: a CRIU whose hook is not answered kills what it restored.
 */

import { closeSync, constants, mkdirSync, openSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import type { Channel } from "#proxy/contract/channel.ts";
import type { AdoptResult } from "#proxy/contract/commands.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { unseal } from "#proxy/store/seal.ts";
import type { Workload } from "../agent/workload.ts";
import { cgroupProcsOf } from "../container/cgroups.ts";
import { runCommand } from "../container/command.ts";
import { removePaths, unpackInto } from "../container/files.ts";
import { type ContainerRecord, pathInside, runPath } from "../container/runtime.ts";
import { INSIDE_CRIU, INSIDE_RUN } from "../container/spec.ts";
import { ImageReceiver } from "../criu/images.ts";
import { CriuWorker, FIRST_INHERITED_FD } from "../criu/worker.ts";
import type {
  FilesEvent,
  FilesGoneCall,
  ImageEvent,
  PrepareCall,
  ReleaseReply,
  RestoreCall,
  StandbyReply,
} from "./move.ts";
import { criuLogReason } from "./source.ts";

const STORE_RETRY_MS = 200;
const GRANT_MS_MAX = 5_000;
/** PIDs that the helpers of a move may use up between the tree's own and the next ones */
const PID_MARGIN = 1_000;

type State = "preparing" | "standby" | "restored" | "releasing" | "released" | "gave-up";

interface Unpacking {
  stream: NodeJS.WritableStream;
  done: Promise<void>;
}

export class Arrival {
  readonly prepare: PrepareCall;
  #workload: Workload;
  #channel: Channel;
  #state: State = "preparing";
  #created: Promise<ContainerRecord> | null = null;
  #container: ContainerRecord | null = null;
  #layerReady = Promise.withResolvers<string>();
  #layerDone = Promise.withResolvers<void>();
  #unpacking = new Map<string, Unpacking>();
  #images: ImageReceiver | null = null;
  #worker: CriuWorker | null = null;
  #output = -1;
  #restoring: Promise<unknown> | null = null;
  #restored = Promise.withResolvers<void>();
  #mayResume = Promise.withResolvers<void>();
  #released: Promise<void> | null = null;
  #upstreamAdopted: Promise<void> | null = null;
  #downstreamAdopted = false;
  #criuMs = 0;
  #leaveMs = 0;
  #ending: Promise<void> | null = null;

  constructor(workload: Workload, channel: Channel, prepare: PrepareCall) {
    this.#workload = workload;
    this.#channel = channel;
    this.prepare = prepare;
    for (const promise of [this.#layerReady, this.#layerDone, this.#restored, this.#mayResume])
      promise.promise.catch(() => {});
    void channel.closed.then(() => this.#sourceIsGone());
  }

  get ended(): boolean {
    return this.#state === "gave-up" || this.#state === "released";
  }

  /** Registers what the source may say. `prepare` itself has been answered by the caller. */
  handlers(): void {
    const on = <Params>(
      method: string,
      handler: (params: Params, body: Buffer) => Promise<{ result?: unknown } | void>,
    ): void => {
      this.#channel.on(method, async (params, body) => {
        try {
          return await handler(params as Params, body);
        } catch (error) {
          this.#workload.context.log.warn(
            { workload: this.#workload.name, step: method, reason: messageOf(error) },
            "arrival: step failed",
          );
          throw error;
        }
      });
    };
    on<FilesEvent>("files", ({ root }, body) => this.#files(root, body));
    on<object>("standby", async () => ({ result: await this.#standby() }));
    on<ImageEvent>("image", async ({ name, offset }, body) =>
      required(this.#images).write(name, offset, body),
    );
    on<FilesGoneCall>("filesGone", ({ root, gone }) => removePaths(this.#rootOf(root), gone));
    on<object>("adopt", async (_, body) => ({ result: await this.#adoptUpstream(body) }));
    on<RestoreCall>("restore", (params) => this.#restore(params));
    on<object>("adoptDownstream", async (_, body) => ({ result: await this.#adoptDownstream(body) }));
    on<object>("release", async () => ({ result: await this.#release() }));
    on<object>("abort", async () => ({ result: { outcome: await this.#abort() } }));
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
      const target =
        root === "layer" && this.#state === "preparing" ? await this.#layerReady.promise : this.#rootOf(root);
      const started = unpackInto(target);
      started.stream.on("error", () => {}); // tar's exit status tells
      started.done.catch(() => {});
      unpacking = started;
      this.#unpacking.set(root, unpacking);
    }
    if (body.length > 0) {
      if (!unpacking.stream.write(body))
        await new Promise<void>((resolve) => unpacking.stream.once("drain", resolve).once("close", resolve));
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
    workload.record({ container });
    context.faults.at("target:standby");
    const link = await workload.standbyProxy(this.prepare.epoch);
    const images = runPath(container, "images");
    mkdirSync(images, { mode: 0o700 });
    this.#images = new ImageReceiver(images, workload.limits.imagesBytesMax);
    await this.#keepPidsFree(container);
    await this.#startWorker(container);
    this.#state = "standby";
    return { link };
  }

  /** `ns_last_pid` (Documentation/admin-guide/sysctl/kernel.rst): the next process gets the number after it. */
  async #keepPidsFree(container: ContainerRecord): Promise<void> {
    const last = this.prepare.highestTid + PID_MARGIN;
    const enter = [
      "-t",
      String(container.init.pid),
      "-p",
      "--",
      "/bin/sh",
      "-c",
      `echo ${last} > /proc/sys/kernel/ns_last_pid`,
    ];
    await runCommand("nsenter", enter, { source: "container" });
  }

  async #startWorker(container: ContainerRecord): Promise<void> {
    // the standby's own output: what the restored application writes goes on into this node's log
    this.#output = openSync(`/proc/${container.init.pid}/fd/1`, constants.O_WRONLY);
    const options = {
      tool: this.#workload.context.criu.at(INSIDE_CRIU),
      initPid: container.init.pid,
      cgroupProcs: await cgroupProcsOf(container),
    };
    const probe = await CriuWorker.start({ ...options, inherit: [] });
    try {
      await probe.request("FEATURE_CHECK");
    } finally {
      await probe.close();
    }
    this.#worker = await CriuWorker.start({ ...options, inherit: [this.#output] });
  }

  async #adoptUpstream(legs: Buffer): Promise<AdoptResult> {
    this.#expect("standby");
    this.#workload.context.faults.at("target:adopt");
    const adopting = this.#workload.proxy.command<"adoptUpstream", AdoptResult>(
      "adoptUpstream",
      { epoch: this.prepare.epoch },
      legs,
    );
    this.#upstreamAdopted = adopting.then(() => {});
    this.#upstreamAdopted.catch(() => {}); // looked at by `restore`
    return (await adopting).result;
  }

  async #restore({ manifest, outputPipes }: RestoreCall): Promise<void> {
    this.#expect("standby");
    const { context } = this.#workload;
    required(this.#images).verify(manifest);
    required(this.#images).close();
    context.faults.at("target:restore");
    this.#restoring = this.#runCriu(outputPipes);
    this.#restoring.catch((error: unknown) => this.#restored.reject(error));
    // the application's sockets stay silent until CRIU may go on, so its peers may come at the same time
    await Promise.all([this.#restored.promise, required(this.#upstreamAdopted)]);
    this.#state = "restored";
    context.faults.at("target:restored");
  }

  async #adoptDownstream(legs: Buffer): Promise<AdoptResult> {
    this.#expect("restored");
    const { result } = await this.#workload.proxy.command<"adoptDownstream", AdoptResult>(
      "adoptDownstream",
      { epoch: this.prepare.epoch },
      legs,
    );
    this.#downstreamAdopted = true;
    return result;
  }

  async #runCriu(outputPipes: string[]): Promise<void> {
    const { context, limits } = this.#workload;
    const startedMs = performance.now();
    try {
      await required(this.#worker).request(
        "RESTORE",
        {
          imagesDir: `${INSIDE_RUN}/images`,
          logFile: "restore.log",
          logLevel: context.log.isLevelEnabled("debug") ? 4 : 2,
          ghostLimitBytes: limits.imagesBytesMax,
          inheritFds: outputPipes.map((key) => ({ key, fd: FIRST_INHERITED_FD })),
        },
        async (hook) => {
          if (hook === "post-restore") {
            this.#criuMs = performance.now() - startedMs;
            this.#restored.resolve();
            await this.#mayResume.promise;
          } else if (hook === "pre-resume") {
            this.#criuMs += performance.now() - this.#leaveMs;
            await this.#released;
          }
        },
      );
    } catch (error) {
      const log = await readFile(runPath(required(this.#container), "images", "restore.log"), "utf8").catch(
        () => "",
      );
      const reason = criuLogReason(log);
      if (reason === null || !(error instanceof HoldfastError) || error.source !== "criu") throw error;
      throw new HoldfastError(`CRIU cannot restore the application: ${reason}`, {
        code: "CRIU_RESTORE",
        source: "criu",
        cause: error,
      });
    }
  }

  /** Ownership has moved to this node. */
  async #release(): Promise<ReleaseReply> {
    this.#expect("restored");
    this.#state = "releasing";
    return this.#goLive();
  }

  /** Before the release was asked for: forget everything. After: it is done, or about to be. */
  async #abort(): Promise<"gave-up" | "released"> {
    if (this.#released !== null) {
      const done = await this.#released.then(
        () => true,
        () => false,
      );
      if (done) return "released";
    }
    await this.#giveUp();
    return "gave-up";
  }

  // ---- how it ends ----

  async #goLive(): Promise<ReleaseReply> {
    const workload = this.#workload;
    const { context, proxy, vip } = workload;
    const epoch = this.prepare.epoch;
    context.faults.at("target:release");
    // only now: a segment for an address without its legs would be answered with RST
    vip?.add();
    workload.recordMoving({ step: "adopted" });
    context.faults.at("target:adopted");
    if (this.#ending !== null)
      throw new HoldfastError("the move was given up", { code: "MIGRATION_ABORTED", source: "migration" });
    // from here nobody can take the workload back; CRIU's last stage runs meanwhile and then waits for it
    this.#released = this.#markReleased().then(async () => {
      workload.recordMoving({ step: "released" });
      context.faults.at("target:released");
      await proxy.command("release", { epoch });
      vip?.announce();
    });
    this.#leaveMs = performance.now();
    this.#mayResume.resolve();
    await Promise.all([this.#released, this.#restoring]);
    this.#state = "released";
    await this.#letGo();
    await workload.becomeOwner(epoch, required(this.#container), this.prepare.edges);
    return { criuRestoreMs: this.#criuMs };
  }

  /** The store says that it is decided; where it cannot be asked, the source gives its word instead. */
  async #markReleased(): Promise<void> {
    const { context, name } = this.#workload;
    const owned = { workload: name, node: context.node, epoch: this.prepare.epoch };
    for (;;) {
      try {
        await context.store.markReleased(owned);
        return;
      } catch (error) {
        if (!(error instanceof HoldfastError && error.retryable)) throw error;
        if (this.#channel.isOpen) {
          try {
            await this.#channel.call(
              "grant",
              { migration: this.prepare.migration },
              { timeoutMs: GRANT_MS_MAX },
            );
            this.#workload.markReleasedLater(owned, STORE_RETRY_MS);
            return;
          } catch {
            // neither the store nor the source: ask again
          }
        }
        await new Promise((resolve) => setTimeout(resolve, STORE_RETRY_MS));
      }
    }
  }

  /** Sends nothing to any peer; leaves no trace. */
  #giveUp(): Promise<void> {
    this.#ending ??= this.#forget();
    return this.#ending;
  }

  async #forget(): Promise<void> {
    const workload = this.#workload;
    this.#state = "gave-up";
    const gone = new HoldfastError("the move was given up", {
      code: "MIGRATION_ABORTED",
      source: "migration",
    });
    for (const waiting of [this.#layerReady, this.#layerDone, this.#restored, this.#mayResume])
      waiting.reject(gone);
    await this.#restoring?.catch(() => {});
    await this.#letGo();
    const container = this.#container ?? (await this.#created?.catch(() => null)) ?? null;
    if (container !== null) await workload.runtime.destroy(container);
    await workload.discardProxy(this.prepare.epoch);
    workload.vip?.remove();
    workload.record({ moving: null, container: null });
  }

  async #letGo(): Promise<void> {
    await this.#worker?.close();
    this.#worker = null;
    this.#images?.close();
    if (this.#output !== -1) closeSync(this.#output);
    this.#output = -1;
    for (const { stream } of this.#unpacking.values()) stream.end();
    this.#unpacking.clear();
    if (this.#container !== null) await removeImages(this.#container);
  }

  /** Only the store knows now whether the source had committed. */
  async #sourceIsGone(): Promise<void> {
    if (this.#state !== "preparing" && this.#state !== "standby" && this.#state !== "restored") return;
    const workload = this.#workload;
    const { context, name } = workload;
    const outcome = await settle(this.#workload, this.prepare.migration, this.prepare.epoch);
    if (this.#ending !== null) return;
    if (outcome === "mine" && this.#state === "restored") {
      context.log.warn({ workload: name }, "the source is gone after its commit: going on from the store");
      const sealed = await context.store.held({ workload: name, epoch: this.prepare.epoch });
      const held =
        sealed === null
          ? Buffer.alloc(0)
          : unseal(context.key, { workload: name, epoch: this.prepare.epoch, kind: "held" }, sealed);
      if (workload.vip !== null && !this.#downstreamAdopted) await this.#adoptDownstream(held);
      this.#state = "releasing";
      await this.#goLive();
    } else await this.#giveUp();
  }

  // ---- parts ----

  #rootOf(root: string): string {
    const container = required(this.#container);
    if (root === "layer") return pathInside(container, "/");
    if (!container.tmpfs.includes(root))
      throw new HoldfastError(`no tmpfs ${root} here`, { code: "FILES_PATH", source: "peer" });
    return pathInside(container, root);
  }

  #expect(state: State): void {
    if (this.#state !== state)
      throw new HoldfastError(`the target is ${this.#state}, not ${state}`, {
        code: "MIGRATION_ORDER",
        source: "peer",
      });
  }
}

/** Whether this node owns the workload now; asked until the store answers. After "not mine" no commit can follow. */
export async function settle(
  workload: Workload,
  migration: string,
  epoch: number,
): Promise<"mine" | "not-mine"> {
  const { context, name } = workload;
  for (;;) {
    try {
      const ownership = await context.store.cancel({ workload: name, migration });
      return ownership.owner === context.node && ownership.epoch === epoch ? "mine" : "not-mine";
    } catch (error) {
      if (!(error instanceof HoldfastError && error.retryable)) return "not-mine";
    }
    await new Promise((resolve) => setTimeout(resolve, STORE_RETRY_MS));
  }
}

async function removeImages(container: ContainerRecord): Promise<void> {
  const images = runPath(container, "images");
  await rm(images, { recursive: true, force: true });
}

function required<T>(value: T | null | undefined): T {
  if (value === null || value === undefined)
    throw new HoldfastError("a step of the move came out of order", {
      code: "MIGRATION_ORDER",
      source: "peer",
    });
  return value;
}
