/**
 * Workloads of this node's injected pods, beside those of the agent's file: there is one for as long as its pod is there. Level-triggered: each
 * round compares what there is with what there should be, and what cannot be done now is tried again.
 *
 *   a pod's container runs              its workload is made, as a start of the agent makes one of the file
 *   the pod is being deleted            kubelet ends its containers, in its order: an application that ends is not started again
 *   its container has ended, or it is
 *   gone, or over                       the application stops, unless it has moved or is about to; clients that this node's proxy
 *                                       still forwards are waited for; then the workload and its folder go
 *   another pod of the same name        one after the other; a standby has the workload at once, when the application has left
 *
 * What is known of a pod is kept in the workload's folder: an agent that starts settles moves and finds its processes whether or not the
 * API server answers.
 */
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import { hasSidecar, socketPathProblem, type WorkloadConfig } from "../config/config.ts";
import {
  type InjectedPod,
  injectedPod,
  lookAt,
  nameOf,
  type SeenPod,
  workloadOf,
} from "../kubernetes/node/injected-pod.ts";

const FILE = "pod.json";
const AGAIN_MS = 1_000;
/** of a container that kubelet is starting */
const SOON_MS = 100;
/** … or that waits for something else: an image, or its configuration */
const SOON_MS_MAX = 10_000;

/** A workload of this node, as far as its pod decides over it. */
export interface PodWorkload {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly journal: { readonly role: string; readonly moving: unknown; readonly owed: unknown };
  /** what keeps it from being stopped now; null: nothing */
  readonly busyWith: string | null;
  readonly isMoving: boolean;
  readonly isStarting: boolean;
  readonly keeper: { countSessions(): Promise<number> };
  /** The application, and its clients' connections. @throws HoldfastError */
  stop(): Promise<void>;
  /** from now on it is that of another pod */
  useConfig(config: WorkloadConfig): void;
  /** What ends from now on stays so, and its container ends with it. */
  leaveDown(): void;
  /** … which is still there */
  hasContainer(): Promise<boolean>;
  close(): void;
}

export interface PodWorkloadsOptions<Workload extends PodWorkload> {
  /** all of this agent's, the file's too */
  workloads: Map<string, Workload>;
  stateDir: string;
  /** in it, the folder of their folders */
  folder: string;
  /** where clients connect */
  nodeAddress: string;
  /** ports of this node that no pod may have, and whose they are */
  reserved: ReadonlyMap<number, string>;
  log: Logger;
  create(config: WorkloadConfig): Workload;
  /** It is brought in line with its journal, and started where it is to be. */
  recover(workload: Workload): void;
  isRecovering(workload: Workload): boolean;
  /** Whether the container of that pod runs. @throws HoldfastError `CRI_UNREACHABLE` */
  runs(pod: InjectedPod): Promise<boolean>;
  /** null: there is room for what it may hold @param all with it */
  exceeds(all: readonly WorkloadConfig[]): string | null;
  /** for tests; default {@link AGAIN_MS} */
  againMs?: number;
}

type Pods = Map<string, SeenPod>;

export class PodWorkloads<Workload extends PodWorkload> {
  readonly #options: PodWorkloadsOptions<Workload>;
  /** those of pods, by name */
  readonly #own = new Map<string, InjectedPod>();
  /** by name of their workloads; null: not known yet */
  #pods: Pods | null = null;
  /** uids of those that are being deleted */
  #ending: ReadonlySet<string> = new Set();
  /** what was refused, so that it is said once */
  readonly #refused = new Map<string, string>();
  #round: Promise<void> | null = null;
  #isAgain = false;
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(options: PodWorkloadsOptions<Workload>) {
    this.#options = options;
  }

  /** null: that pod has none, or not yet */
  workloadOf(podUid: string): Workload | null {
    for (const [name, { uid }] of this.#own)
      if (uid === podUid) return this.#options.workloads.get(name) ?? null;
    return null;
  }

  /** What an earlier agent knew. Called once, before anything recovers. @returns names of those that cannot be used: what is theirs must stay */
  restore(): string[] {
    const { folder, log } = this.#options;
    const unread: string[] = [];
    for (const name of readdirSync(folder)) {
      try {
        const text = readText(join(folder, name, FILE));
        if (text === null) continue;
        this.#make(injectedPod.parse(JSON.parse(text)));
      } catch (error) {
        unread.push(name);
        log.error({ workload: name, reason: messageOf(error) }, "what was kept of its pod cannot be used");
      }
    }
    return unread;
  }

  /** @param objects all pods of this node (core/v1) */
  update(objects: readonly unknown[]): void {
    const { log } = this.#options;
    const pods: Pods = new Map();
    const there = new Set<string>();
    const ending = new Set<string>();
    for (const object of objects) {
      try {
        const found = lookAt(object);
        if (found?.state === "ending") ending.add(found.pod.uid);
        if (found === null || found.state === "ending" || found.state === "over") continue;
        there.add(found.pod.uid);
        const name = nameOf(found.pod);
        const other = pods.get(name)?.pod;
        // whatever their order is: one that has the workload keeps it
        const isLater = other !== undefined && this.#own.get(name)?.uid !== found.pod.uid;
        const [kept, refused] = isLater ? [other, found.pod] : [found.pod, other];
        if (!isLater) pods.set(name, found);
        if (refused !== undefined)
          this.#refuse(refused, `workload ${name} is that of pod ${kept.namespace}/${kept.name}, too`);
      } catch (error) {
        log.error({ reason: messageOf(error) }, "a pod is not understood");
      }
    }
    this.#pods = pods;
    this.#ending = ending;
    for (const uid of this.#refused.keys()) if (!there.has(uid)) this.#refused.delete(uid);
    this.#go();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  #go(): void {
    if (this.#isClosed) return;
    this.#isAgain = true;
    this.#round ??= this.#rounds().finally(() => {
      this.#round = null;
    });
  }

  async #rounds(): Promise<void> {
    while (this.#isAgain && !this.#isClosed) {
      this.#isAgain = false;
      clearTimeout(this.#timer);
      const { log, againMs = AGAIN_MS } = this.#options;
      const names = new Set([...this.#own.keys(), ...(this.#pods?.keys() ?? [])]);
      let nextMs = Number.POSITIVE_INFINITY;
      for (const name of names) {
        try {
          if (!(await this.#settle(name))) nextMs = Math.min(nextMs, this.#isSoon(name) ? SOON_MS : againMs);
        } catch (error) {
          nextMs = Math.min(nextMs, againMs);
          log.warn({ workload: name, reason: messageOf(error) }, "its pod and it do not agree yet");
        }
      }
      if (nextMs !== Number.POSITIVE_INFINITY && !this.#isClosed)
        this.#timer = setTimeout(() => this.#go(), nextMs).unref();
    }
  }

  /** False: it has to be looked at again. */
  async #settle(name: string): Promise<boolean> {
    const pods = this.#pods;
    if (pods === null) return true;
    const has = this.#own.get(name);
    const wanted = pods.get(name);
    if (has !== undefined && has.uid === wanted?.pod.uid) return true;
    const runs = wanted !== undefined && (await this.#runs(wanted));
    if (has !== undefined && runs && this.#rebind(name, wanted.pod)) return true;
    if (has !== undefined && !(await this.#remove(name, wanted?.pod))) return false;
    if (wanted === undefined) return true;
    return runs ? this.#add(wanted.pod) : wanted.state !== "initialized";
  }

  async #runs({ pod, state }: SeenPod): Promise<boolean> {
    return state === "here" || (state === "initialized" && (await this.#options.runs(pod)));
  }

  /** kubelet is about to start its container. */
  #isSoon(name: string): boolean {
    const wanted = this.#pods?.get(name);
    return wanted?.state === "initialized" && Date.now() - wanted.sinceMs < SOON_MS_MAX;
  }

  /** False: it is refused, for now. */
  #add(pod: InjectedPod): boolean {
    const { log, recover } = this.#options;
    let workload: Workload;
    try {
      workload = this.#make(pod);
    } catch (error) {
      this.#refuse(pod, messageOf(error));
      return false;
    }
    const { name } = workload;
    log.info({ workload: name, namespace: pod.namespace, pod: pod.name }, "a pod has brought a workload");
    recover(workload);
    return true;
  }

  /** @throws HoldfastError `CONFIG_INVALID` */
  #make(pod: InjectedPod): Workload {
    const { workloads, stateDir, folder, nodeAddress, create, exceeds, reserved } = this.#options;
    const config = workloadOf(pod, nodeAddress);
    const { name } = config;
    const tooLong = socketPathProblem(stateDir, name);
    if (tooLong !== null) throw new Error(tooLong);
    if (workloads.has(name)) throw new Error(`the agent's file has a workload ${name}`);
    for (const other of workloads.values())
      for (const { listen } of other.config.ports)
        if (
          [config, other.config].every((one) => listensAt(one, nodeAddress)) &&
          config.ports.some((port) => port.listen === listen)
        )
          throw new Error(`${other.name} listens at port ${listen} of this node already: choose another`);
    for (const { listen } of config.ports)
      if (listensAt(config, nodeAddress) && reserved.has(listen))
        throw new Error(`port ${listen} of this node is ${reserved.get(listen)}: choose another`);
    const tooMuch = exceeds([...[...workloads.values()].map((other) => other.config), config]);
    if (tooMuch !== null) throw new Error(tooMuch);
    mkdirSync(join(folder, name), { recursive: true, mode: 0o700 });
    this.#keep(name, pod);
    const workload = create(config);
    workloads.set(name, workload);
    this.#own.set(name, pod);
    return workload;
  }

  /**
   * The application has left, and another pod of it is here: a standby. Clients who came here before stay with the workload, whose
   * proxy they are connected to. False: it is not so.
   */
  #rebind(name: string, pod: InjectedPod): boolean {
    const { workloads, nodeAddress, log, isRecovering } = this.#options;
    const workload = workloads.get(name);
    if (workload === undefined || isRecovering(workload) || workload.busyWith !== null) return false;
    const { role, moving, owed } = workload.journal;
    if (role === "owner" || moving !== null || owed !== null) return false;
    const config = workloadOf(pod, nodeAddress);
    if (config.start) return false; // an application of its own
    if (hasSidecar(config)) return false; // its clients are connected to the pod before, and go with it
    const rest = (one: WorkloadConfig): string => JSON.stringify({ ...one, pod: null, start: null });
    if (rest(config) !== rest(workload.config)) return false;
    const { between: _, ...annotations } = pod.annotations;
    // clients may have been told of this node before
    const own = isPassedBy(this.#own.get(name)) ? pod : { ...pod, annotations };
    this.#keep(name, own);
    workload.useConfig(config);
    this.#own.set(name, own);
    log.info({ workload: name, namespace: pod.namespace, pod: pod.name }, "another pod has its workload");
    return true;
  }

  /** For the agent after this one. */
  #keep(name: string, pod: InjectedPod): void {
    const file = join(this.#options.folder, name, FILE);
    writeFileSync(`${file}.new`, JSON.stringify(pod), { mode: 0o600 });
    renameSync(`${file}.new`, file);
  }

  /** Its pod is no longer there. @param next that is to have its name. False: not yet */
  async #remove(name: string, next: InjectedPod | undefined): Promise<boolean> {
    const { workloads, folder, log, isRecovering, nodeAddress } = this.#options;
    const workload = workloads.get(name);
    if (workload === undefined) return true;
    if (isRecovering(workload) || workload.isStarting) return false;
    if (workload.busyWith !== null) {
      // what has ended is not started again and again in a pod that has gone: it would keep the next one waiting
      if (!workload.isMoving) workload.leaveDown();
      return false;
    }
    if (workload.journal.role === "owner") {
      if (this.#ending.has(this.#own.get(name)?.uid ?? "") && (await workload.hasContainer())) {
        workload.leaveDown();
        return false;
      }
      log.info({ workload: name }, "its pod has gone: the application stops");
      await workload.stop();
    }
    // no client was told of this node, where the application only waited; or clients come to an application of the next pod's own
    const isOver =
      isPassedBy(this.#own.get(name)) || (next !== undefined && workloadOf(next, nodeAddress).start);
    const isLeft = isOver && workload.journal.role === "anchor";
    if (isLeft && (await workload.keeper.countSessions()) === 0) await workload.stop();
    const { role, moving, owed } = workload.journal;
    // clients that came here before it left: they stay for as long as they like
    if (role !== "none" || moving !== null || owed !== null) return false;
    workload.close();
    workloads.delete(name);
    this.#own.delete(name);
    rmSync(join(folder, name), { recursive: true, force: true });
    log.info({ workload: name }, "its pod has gone, and it as well");
    return true;
  }

  #refuse({ uid, namespace, name }: InjectedPod, reason: string): void {
    if (this.#refused.get(uid) === reason) return;
    this.#refused.set(uid, reason);
    this.#options.log.error({ namespace, pod: name, reason }, "a pod has no workload");
  }
}

/** An application was there only until its own pod was made anew. */
function isPassedBy(pod: InjectedPod | undefined): boolean {
  return pod?.annotations.between === "true";
}

function listensAt({ downstream, listenIn, listenAddress }: WorkloadConfig, address: string): boolean {
  return downstream !== "gateway" && listenIn === "node" && listenAddress === address;
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return null;
    throw error;
  }
}
