/**
 * A cluster in memory, for the controller's own code: an API server with versions and preconditions, and whoever else acts in one
 * (kubelet, scheduler, controllers of ReplicaSets and StatefulSets, agents, people), each one step at a time and in any order. Calls of
 * the controller are steps too: they fail, are done without an answer, or are done long after whoever made them has died.
 *
 * The ReplicaSet controller ranks as the real one (pkg/controller, ActivePodsWithRanks), that of StatefulSets goes by its order
 * (pkg/controller/statefulset); what the agents do is what `control/api/resources.ts` asks of them.
 */
import {
  ANNOTATION,
  API_VERSION,
  DELETION_COST,
  isFinal,
  type Migration,
  migration as migrationSchema,
  SERVING,
} from "#control/api/resources.ts";
import type { KubernetesApi, List, Preconditions, Query } from "#control/kubernetes/client/api.ts";
import {
  conditionOf,
  controllerOf,
  type Deployment,
  isActive,
  isSelected,
  isTrue,
  type KubernetesObject,
  type LabelSelector,
  type Node,
  type OwnerReference,
  type Pod,
  type PodCondition,
  type ReplicaSet,
  type StatefulSet,
} from "#control/kubernetes/client/objects.ts";
import { pathOf } from "#control/kubernetes/client/paths.ts";
import { act } from "#control/kubernetes/controller/act.ts";
import type { Calls } from "#control/kubernetes/controller/gather.ts";
import { type Known, look } from "#control/kubernetes/controller/look.ts";
import { isStandby, ordinalPod } from "#control/kubernetes/controller/standby-pod.ts";
import { REVISION, revisionAnew } from "#control/kubernetes/controller/stateful-set.ts";
import { fail } from "#proxy/contract/error-codes.ts";

export const NAMESPACE = "shop";
const IMAGE = { name: "app", image: "app" };

/** [0, 1), the same for the same seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

type Stored = KubernetesObject & { status?: object; spec?: object };

/** Who deletes and creates is on record. */
export interface Deed {
  who: string;
  what: "create" | "delete";
  pod: string;
  uid: string;
  /** it had the application then */
  hadApplication: boolean;
}

interface Turn {
  who: Controller;
  go(): void;
}

/** One process of the controller. */
interface Controller {
  isAlive: boolean;
}

/** A move as the agents have it in their journals. */
interface RunningMove {
  migration: string;
  attempt: number;
  sourceUid: string;
  targetUid: string;
  outcome: { state: "Moved" | "Failed"; retryable: boolean } | null;
}

export interface ClusterOptions {
  seed: number;
  /** 0: the pod is nobody's */
  replicas: number;
  /** what makes them; default: a Deployment's ReplicaSet */
  owner?: "deployment" | "stateful-set";
  /** of a StatefulSet; default OrderedReady */
  podManagementPolicy?: "OrderedReady" | "Parallel";
  /** the pods have the readiness gate */
  gated: boolean;
  /** chance of a call to fail, each way */
  faults: number;
  controllers: number;
  /** others write to every pod and Migration each time that so many calls were done; default: never */
  othersWriteEvery?: number;
}

export class MadeUpCluster {
  readonly deeds: Deed[] = [];
  readonly random: () => number;
  nowMs = Date.parse("2026-01-01T00:00:00Z");
  /** uid of the pod that has the application; null: it has ended with its pod */
  application: string | null;
  move: RunningMove | null = null;
  /** nodes whose agents do nothing */
  readonly silentAgents = new Set<string>();
  /** calls are answered, moves succeed */
  calm = false;
  /** the API server asks `/ordinal` what becomes of a StatefulSet's pod */
  asksOrdinal = true;
  /** a quota has no room for one more pod, which a dry run asks for */
  refusesDryRuns = false;
  /** what waits for time only has it */
  isLate = false;
  /** never changed, but replaced */
  readonly #objects = new Map<string, Stored>();
  readonly #parsed = new WeakMap<object, Migration>();
  readonly #options: ClusterOptions;
  readonly #turns: Turn[] = [];
  readonly #controllers: Controller[] = [];
  #version = 1;
  /** pods in a row that `/ordinal` was not asked about */
  #missed = 0;
  #uids = 0;
  #callsDone = 0;

  constructor(options: ClusterOptions) {
    this.#options = options;
    this.random = randomOf(options.seed);
    for (const name of ["a", "b", "c"])
      this.put(pathOf("nodes", { name }), {
        metadata: this.#meta(name),
        spec: {},
        status: { conditions: [{ type: "Ready", status: "True" }] },
      } as Node);
    const makes = options.owner === "stateful-set" ? this.#makeStatefulSet : this.#deployment;
    const owner = options.replicas > 0 ? makes.call(this, options.replicas) : null;
    const pods = Array.from({ length: Math.max(1, options.replicas) }, (_, index) =>
      this.#pod(`chat-${index}`, "a", owner),
    );
    this.application = pods[0]?.metadata.uid ?? null;
    for (let at = 0; at < options.controllers; at += 1) this.startController();
  }

  // ---- objects ----

  /** uids of the Migrations whose pods have a budget that allows no eviction */
  guarded(): string[] {
    return this.#under(pathOf("poddisruptionbudgets", { namespace: NAMESPACE })).map(({ metadata }) =>
      metadata.name.replace("holdfast-", ""),
    );
  }

  pods(): Pod[] {
    return this.#under<Pod>(pathOf("pods", { namespace: NAMESPACE }));
  }

  pod(name: string): Pod | null {
    return this.#get<Pod>(pathOf("pods", { namespace: NAMESPACE, name }));
  }

  byUid(uid: string | null): Pod | null {
    return this.pods().find(({ metadata }) => metadata.uid === uid) ?? null;
  }

  migrations(): Migration[] {
    return this.#under(pathOf("migrations", { namespace: NAMESPACE })).map((one) => {
      const parsed = this.#parsed.get(one) ?? migrationSchema.parse(one);
      this.#parsed.set(one, parsed);
      return parsed;
    });
  }

  /** A name that is taken is refused, as by the API server: an object is never replaced by another one. */
  migrate(name: string, spec: Migration["spec"]): void {
    const path = pathOf("migrations", { namespace: NAMESPACE, name });
    if (this.#get(path) !== null) return;
    this.put(path, {
      apiVersion: API_VERSION,
      kind: "Migration",
      metadata: this.#meta(name),
      spec,
    });
  }

  /** As it is now with `change` merged into it. */
  change(path: string, change: object): void {
    const before = this.#get(path);
    if (before !== null) this.put(path, merged(before, change) as Stored);
  }

  put(path: string, object: Stored): void {
    this.#version += 1;
    const { metadata } = object;
    const next = { ...object, metadata: { ...metadata, resourceVersion: String(this.#version) } };
    if (metadata.deletionTimestamp !== undefined && !path.includes("/pods/") && !metadata.finalizers?.length)
      this.#objects.delete(path);
    else this.#objects.set(path, next);
  }

  remove(path: string): void {
    this.#objects.delete(path);
  }

  deletePod(who: string, name: string): void {
    const path = pathOf("pods", { namespace: NAMESPACE, name });
    const pod = this.#get<Pod>(path);
    if (pod === null || pod.metadata.deletionTimestamp !== undefined) return;
    this.deeds.push({
      who,
      what: "delete",
      pod: name,
      uid: pod.metadata.uid,
      hadApplication: this.application === pod.metadata.uid,
    });
    // what no kubelet has yet goes at once
    if (pod.spec.nodeName === undefined) this.remove(path);
    else this.change(path, { metadata: { deletionTimestamp: this.#time() } });
  }

  #get<T extends Stored = Stored>(path: string): T | null {
    return (this.#objects.get(path) as T | undefined) ?? null;
  }

  #under<T extends KubernetesObject = Stored>(folder: string): T[] {
    return [...this.#objects]
      .filter(([path]) => path.startsWith(`${folder}/`))
      .map(([, object]) => object as unknown as T);
  }

  #meta(name: string): KubernetesObject["metadata"] {
    this.#uids += 1;
    return {
      name,
      namespace: NAMESPACE,
      uid: `uid-${this.#uids}`,
      resourceVersion: "0",
      generation: 1,
      creationTimestamp: this.#time(),
    };
  }

  #time(): string {
    return new Date(this.nowMs).toISOString();
  }

  #deployment(replicas: number): OwnerReference {
    const selector = { matchLabels: { app: "chat", "pod-template-hash": "1" } };
    const deployment: Deployment = {
      metadata: this.#meta("chat"),
      spec: { replicas, selector },
      status: { observedGeneration: 1, replicas, updatedReplicas: replicas },
    };
    this.put(pathOf("deployments", { namespace: NAMESPACE, name: "chat" }), deployment);
    const set: ReplicaSet = {
      metadata: {
        ...this.#meta("chat-1"),
        ownerReferences: [
          {
            apiVersion: "apps/v1",
            kind: "Deployment",
            name: "chat",
            uid: deployment.metadata.uid,
            controller: true,
          },
        ],
      },
      spec: { replicas, selector },
    };
    this.put(pathOf("replicasets", { namespace: NAMESPACE, name: "chat-1" }), set);
    return {
      apiVersion: "apps/v1",
      kind: "ReplicaSet",
      name: "chat-1",
      uid: set.metadata.uid,
      controller: true,
    };
  }

  #makeStatefulSet(replicas: number): OwnerReference {
    const { podManagementPolicy = "OrderedReady" } = this.#options;
    const set: StatefulSet = {
      metadata: this.#meta("chat"),
      spec: {
        replicas,
        podManagementPolicy,
        selector: { matchLabels: { app: "chat" } },
        template: { metadata: { labels: { app: "chat" } }, spec: { containers: [IMAGE] } },
      },
      status: { observedGeneration: 1, currentRevision: "1", updateRevision: "1" },
    };
    this.put(STATEFUL_SET, set);
    return referenceTo(set);
  }

  /** As webhooks have it when it is made. */
  #admitted(pod: Pod): Pod {
    if (controllerOf(pod)?.kind !== "StatefulSet") return pod;
    const found = this.migrations().find(
      ({ status }) => status.origin?.pod === pod.metadata.name && !isFinal(status.phase),
    );
    if (found === undefined) return pod;
    // after so many in a row that it misses the application stays where it is: migration-stateful-set.test.ts
    if (!this.asksOrdinal) return pod;
    const isSeen = this.calm || this.#missed === 2 || this.random() >= this.#options.faults;
    this.#missed = isSeen ? 0 : this.#missed + 1;
    return isSeen ? ordinalPod(pod, found, null) : pod;
  }

  #pod(name: string, node: string | undefined, owner: OwnerReference | null, revision = "1"): Pod {
    const pod: Pod = this.#admitted({
      metadata: {
        ...this.#meta(name),
        labels: { app: "chat", "pod-template-hash": "1", [REVISION]: revision },
        annotations: { [ANNOTATION.injected]: "1" },
        ...(owner === null ? {} : { ownerReferences: [owner] }),
      },
      spec: {
        containers: [IMAGE],
        ...(node === undefined ? {} : { nodeName: node }),
        ...(this.#options.gated ? { readinessGates: [{ conditionType: SERVING }] } : {}),
      },
      ...(node === undefined ? {} : { status: running([{ type: SERVING, status: "True" }, READY]) }),
    });
    this.put(pathOf("pods", { namespace: NAMESPACE, name }), pod);
    return pod;
  }

  // ---- the API as the controller sees it ----

  startController(): void {
    const who: Controller = { isAlive: true };
    this.#controllers.push(who);
    void this.#work(who);
  }

  killController(): void {
    const alive = this.#controllers.filter(({ isAlive }) => isAlive);
    const one = alive[Math.floor(this.random() * alive.length)];
    if (one === undefined) return;
    one.isAlive = false;
    this.startController();
  }

  async #work(who: Controller): Promise<void> {
    const api = this.#calls(who);
    for (;;) {
      await this.#turn(who);
      for (const { metadata } of this.migrations()) {
        try {
          let known: Known | null = null;
          do {
            const looked = await look(
              api,
              { namespace: NAMESPACE, name: metadata.name },
              () => this.nowMs,
              (migration, action) => act(api, migration, action),
              known,
            );
            known = looked?.known ?? null;
          } while (known !== null);
        } catch (error) {
          if ((error as { code?: string }).code !== "KUBERNETES_UNREACHABLE") throw error;
        }
      }
    }
  }

  /** To what the controller writes to, and nothing that it goes by. */
  #othersWrite(): void {
    const { othersWriteEvery = 0 } = this.#options;
    this.#callsDone += 1;
    if (othersWriteEvery === 0 || this.#callsDone % othersWriteEvery !== 0) return;
    for (const path of this.#objects.keys())
      if (/\/(pods|migrations)\//.test(path))
        this.change(path, { metadata: { annotations: { "example.com/writes": String(this.#callsDone) } } });
  }

  #turn(who: Controller): Promise<void> {
    return new Promise((go) => {
      this.#turns.push({ who, go });
    });
  }

  /** A call is done when its turn comes, be its caller dead by then; the caller goes on at another turn. */
  async #call<T>(who: Controller, isWrite: boolean, deed: () => T): Promise<T> {
    const lost = (): Error => fail("KUBERNETES_UNREACHABLE", "no answer");
    const chance = this.calm ? 0 : this.#options.faults;
    await this.#turn(who);
    if (!who.isAlive && (!isWrite || this.random() < 0.5)) return new Promise(() => {});
    if (this.random() < chance) throw lost();
    let result: T | null = null;
    let problem: unknown = null;
    try {
      result = deed();
    } catch (error) {
      problem = error;
    }
    this.#othersWrite();
    await this.#turn(who);
    if (!who.isAlive) return new Promise(() => {});
    if (this.random() < chance) throw lost();
    if (problem !== null) throw problem;
    return result as T;
  }

  #calls(who: Controller): Calls {
    return {
      find: <T>(path: string) => this.#call(who, false, () => this.#get(path) as T | null),
      list: <T extends KubernetesObject>(path: string, query: Query = {}) =>
        this.#call(who, false, (): List<T> => {
          const wanted = String(query.labelSelector ?? "")
            .split(",")
            .filter((part) => part !== "")
            .map((part) => part.split("="));
          const items = this.#under<T>(path).filter(({ metadata }) =>
            wanted.every(([key = "", value]) => metadata.labels?.[key] === value),
          );
          return { items, resourceVersion: String(this.#version) };
        }),
      create: <T>(folder: string, body: object, { dryRun }: Query = {}) =>
        this.#call(
          who,
          true,
          () => (dryRun === "All" ? this.#wouldBe(body as Pod) : this.#create(folder, body)) as T,
        ),
      patch: <T>(path: string, body: object) => this.#call(who, true, () => this.#patch(path, body) as T),
      delete: (path: string, options: { preconditions?: Preconditions; gracePeriodSeconds?: number } = {}) =>
        this.#call(who, true, () => {
          const isThere = this.#delete(path, options.preconditions ?? {});
          if (options.gracePeriodSeconds === 0) this.#drop(path);
          return isThere;
        }),
    } as Pick<KubernetesApi, "find" | "list" | "create" | "patch" | "delete">;
  }

  /** As webhooks have it, if it were made. */
  #wouldBe({ metadata: { annotations = {}, ...metadata }, ...rest }: Pod): Pod {
    if (this.refusesDryRuns) throw fail("KUBERNETES_FORBIDDEN", "exceeded quota");
    const injected: Record<string, string> = { ...annotations, [ANNOTATION.injected]: "1" };
    const pod = { ...rest, metadata: { ...metadata, annotations: injected } };
    const isSeen = this.asksOrdinal && controllerOf(pod)?.kind === "StatefulSet";
    if (isSeen && annotations[ANNOTATION.seen] === "false") injected[ANNOTATION.seen] = "true";
    return pod;
  }

  #create(folder: string, body: object): Stored {
    const { metadata, ...rest } = body as Stored;
    const path = `${folder}/${metadata.name}`;
    if (this.#objects.has(path)) throw fail("KUBERNETES_EXISTS", path);
    const made = { ...rest, metadata: { ...this.#meta(metadata.name), ...metadata } } as Stored;
    if (folder.endsWith("/pods"))
      this.deeds.push({
        who: "controller",
        what: "create",
        pod: metadata.name,
        uid: made.metadata.uid,
        hadApplication: false,
      });
    this.put(path, made);
    return made;
  }

  #patch(path: string, body: object): Stored {
    const isStatus = path.endsWith("/status");
    const at = path.replace(/\/status$/, "");
    const before = this.#get(at);
    if (before === null) throw fail("KUBERNETES_NOT_FOUND", path);
    const wanted = (body as { metadata?: { resourceVersion?: string } }).metadata?.resourceVersion;
    if (wanted !== undefined && wanted !== before.metadata.resourceVersion)
      throw fail("KUBERNETES_CONFLICT", path);
    const after = merged(before, body) as Stored;
    // the subresource changes the status, and nothing else does
    const next = isStatus
      ? { ...before, status: after.status }
      : { ...after, ...("status" in before ? { status: before.status } : {}) };
    this.put(at, next as Stored);
    return next as Stored;
  }

  #delete(path: string, { uid, resourceVersion }: Preconditions): boolean {
    const before = this.#get(path);
    if (before === null) return false;
    const { metadata } = before;
    if (uid !== undefined && uid !== metadata.uid) throw fail("KUBERNETES_CONFLICT", path);
    if (resourceVersion !== undefined && resourceVersion !== metadata.resourceVersion)
      throw fail("KUBERNETES_CONFLICT", path);
    if (path.includes("/pods/")) this.deletePod("controller", metadata.name);
    else this.change(path, { metadata: { deletionTimestamp: this.#time() } });
    return true;
  }

  #drop(path: string): void {
    const pod = this.#get<Pod>(path);
    if (this.application === pod?.metadata.uid) this.application = null;
    this.remove(path);
  }

  // ---- one step of somebody ----

  /** @returns who had it */
  async step(): Promise<string> {
    const actors: [string, () => void][] = [
      ["kubelet", () => this.#kubelet()],
      ["scheduler", () => this.#scheduler()],
      ["replica-set", () => this.#replicaSet()],
      ["stateful-set", () => this.#statefulSet()],
      ["agent", () => this.#agentMoves()],
      ["agent", () => this.#agentServes()],
      ["clock", () => this.#clock()],
    ];
    const controllerTurns = this.#turns.filter(({ who }) => who.isAlive || this.random() < 0.2);
    // a controller makes many calls to each step of the others
    if (controllerTurns.length > 0 && this.random() < 0.8) {
      const turn = controllerTurns[Math.floor(this.random() * controllerTurns.length)] as Turn;
      this.#turns.splice(this.#turns.indexOf(turn), 1);
      turn.go();
      await new Promise((resolve) => setImmediate(resolve));
      return "controller";
    }
    const [who, act] = actors[Math.floor(this.random() * actors.length)] as [string, () => void];
    act();
    return who;
  }

  #one<T>(items: T[]): T | undefined {
    return items[Math.floor(this.random() * items.length)];
  }

  #path(pod: Pod): string {
    return pathOf("pods", { namespace: NAMESPACE, name: pod.metadata.name });
  }

  #clock(): void {
    // seldom: others act meanwhile as they do in a second
    const isJump = this.isLate && this.random() < 0.05;
    this.nowMs += Math.floor(this.random() * (isJump ? 600_000 : 1_500));
  }

  #scheduler(): void {
    const pod = this.#one(this.pods().filter(({ spec }) => spec.nodeName === undefined));
    if (pod === undefined) return;
    const pins = pod.spec.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution
      ?.nodeSelectorTerms[0]?.matchFields ?? [{ key: "", operator: "In", values: ["a"] }];
    const nodes = this.#under<Node>("/api/v1/nodes").filter(
      ({ metadata: { name }, spec }) =>
        spec.unschedulable !== true &&
        pins.every(({ operator, values }) => values?.includes(name) === (operator === "In")),
    );
    const node = this.#one(nodes);
    if (node !== undefined)
      this.change(this.#path(pod), {
        spec: { nodeName: node.metadata.name },
        status: { phase: "Pending", conditions: [{ type: "PodScheduled", status: "True" }] },
      });
  }

  #kubelet(): void {
    const pod = this.#one(this.pods().filter(({ spec }) => spec.nodeName !== undefined));
    if (pod === undefined) return;
    const { uid, deletionTimestamp } = pod.metadata;
    if (deletionTimestamp !== undefined) {
      // graceful: it takes its time
      this.#drop(this.#path(pod));
      return;
    }
    const serving = conditionOf(pod, SERVING);
    const gate = (pod.spec.readinessGates ?? []).length === 0 || serving?.status === "True";
    // a replica that has never had anything to do with a move runs an application of its own
    const runs = this.application === uid || (!isStandby(pod) && this.#isOrdinary(pod));
    const conditions = [
      ...(serving === null ? [] : [serving]),
      { type: "Ready", status: runs && gate ? "True" : "False" } as PodCondition,
    ];
    this.change(this.#path(pod), { status: running(conditions) });
  }

  #isOrdinary({ metadata: { uid, name } }: Pod): boolean {
    // the store says that the application of this name is another's
    const isElsewhere = name === SOURCE && this.application !== null && this.application !== uid;
    return !this.#touched.has(uid) && !isElsewhere;
  }

  /** pods that had the application, or waited for it: without it nothing runs in them */
  readonly #touched = new Set<string>();

  #replicaSet(): void {
    const path = pathOf("replicasets", { namespace: NAMESPACE, name: "chat-1" });
    const set = this.#get<ReplicaSet>(path);
    if (set === null) return;
    const reference: OwnerReference = {
      apiVersion: "apps/v1",
      kind: "ReplicaSet",
      name: "chat-1",
      uid: set.metadata.uid,
      controller: true,
    };
    const { selector, replicas = 1 } = set.spec as { selector: LabelSelector; replicas?: number };
    for (const pod of this.pods()) {
      const owner = controllerOf(pod);
      const matches = isSelected(selector, pod.metadata.labels);
      if (owner === null && matches && isActive(pod))
        this.change(this.#path(pod), { metadata: { ownerReferences: [reference] } });
      if (owner?.uid === set.metadata.uid && !matches)
        this.change(this.#path(pod), { metadata: { ownerReferences: null } });
    }
    const active = this.pods().filter((pod) => controllerOf(pod)?.uid === set.metadata.uid && isActive(pod));
    for (let missing = replicas - active.length; missing > 0; missing -= 1) {
      const made = this.#pod(`chat-new-${this.#uids}`, undefined, reference);
      this.deeds.push({
        who: "replica-set",
        what: "create",
        pod: made.metadata.name,
        uid: made.metadata.uid,
        hadApplication: false,
      });
    }
    const rank = (pod: Pod): number[] => [
      pod.spec.nodeName === undefined ? 0 : 1,
      pod.status?.phase === "Running" ? 1 : 0,
      isTrue(pod, "Ready") ? 1 : 0,
      Number(pod.metadata.annotations?.[DELETION_COST] ?? 0),
      // the younger goes first
      -Number(pod.metadata.uid.slice(4)),
    ];
    active.sort((one, other) => compare(rank(one), rank(other)));
    for (const pod of active.slice(0, Math.max(0, active.length - replicas)))
      this.deletePod("replica-set", pod.metadata.name);
  }

  /** One thing at a time, in the order of its pods (`stateful_set_control.go`). */
  #statefulSet(): void {
    const set = this.#get<StatefulSet>(STATEFUL_SET);
    if (set === null) return;
    const { replicas = 1, podManagementPolicy } = set.spec;
    for (let ordinal = 0; ordinal < replicas; ordinal += 1) {
      const name = `chat-${ordinal}`;
      const pod = this.pod(name);
      if (pod === null) {
        const made = this.#pod(name, undefined, referenceTo(set), revisionAnew(set, name) ?? "");
        const { uid } = made.metadata;
        this.deeds.push({ who: "stateful-set", what: "create", pod: name, uid, hadApplication: false });
        return;
      }
      if (podManagementPolicy === "OrderedReady" && !(isActive(pod) && isTrue(pod, "Ready"))) return;
    }
    const owned = this.pods().filter((pod) => controllerOf(pod)?.uid === set.metadata.uid);
    const last = owned
      .filter(isActive)
      .sort((one, other) => (one.metadata.name < other.metadata.name ? 1 : -1));
    const [much] = last.filter(({ metadata }) => Number(metadata.name.slice(5)) >= replicas);
    const [old] = last.filter(
      ({ metadata }) => metadata.labels?.[REVISION] !== revisionAnew(set, metadata.name),
    );
    const pod = much ?? old;
    if (pod !== undefined) this.deletePod("stateful-set", pod.metadata.name);
  }

  #agentServes(): void {
    const pod = this.#one(
      this.pods().filter(
        ({ spec, status }) =>
          spec.nodeName !== undefined && status?.phase === "Running" && !this.silentAgents.has(spec.nodeName),
      ),
    );
    if (pod === undefined) return;
    const { uid } = pod.metadata;
    if (isStandby(pod)) this.#touched.add(uid);
    const serves = this.application === uid || (!isStandby(pod) && this.#isOrdinary(pod));
    const status = serves ? "True" : "False";
    const before = conditionOf(pod, SERVING);
    if (before?.status === status) return;
    const next: PodCondition = { type: SERVING, status, lastTransitionTime: this.#time() };
    const others = (pod.status?.conditions ?? []).filter(({ type }) => type !== SERVING);
    this.change(this.#path(pod), { status: { conditions: [...others, next] } });
  }

  /** Read at one step, written at another: by the version that was read. */
  #read: Migration | null = null;

  #agentMoves(): void {
    // an agent reads one object, and again when it has changed: nobody writes so often that it never gets to its own write
    const isQuick = (this.#options.othersWriteEvery ?? 0) > 0;
    const read = isQuick ? (this.#one(this.migrations()) ?? null) : this.#read;
    this.#read = null;
    if (read === null) {
      this.#read = this.#one(this.migrations()) ?? null;
      return;
    }
    const { status, metadata } = read;
    if (status.source?.node === undefined || this.silentAgents.has(status.source.node)) return;
    const { attempt = 0 } = status;
    const mine = this.move?.migration === metadata.uid ? this.move : null;
    if (mine !== null) {
      this.#agentGoesOn(mine, read);
      return;
    }
    const source = this.byUid(status.source.podUid ?? null);
    const target = this.byUid(status.target?.podUid ?? null);
    if (status.phase !== "Moving" || status.cancel !== undefined || status.move?.attempt === attempt) return;
    if (this.move !== null || source === null || target === null || !isStandby(target)) return;
    if (this.application !== source.metadata.uid || target.metadata.deletionTimestamp !== undefined) return;
    if (!this.#tell(read, { attempt, state: "Running" })) return;
    this.move = {
      migration: metadata.uid,
      attempt,
      sourceUid: source.metadata.uid,
      targetUid: target.metadata.uid,
      outcome: null,
    };
  }

  #agentGoesOn(move: RunningMove, read: Migration): void {
    if (move.outcome === null) {
      // a move takes its time
      if (!this.calm && this.random() < 0.6) return;
      const target = this.byUid(move.targetUid);
      const canMove = target !== null && target.metadata.deletionTimestamp === undefined;
      const hasSource = this.application === move.sourceUid;
      const isCancelled = read.status.cancel !== undefined;
      const fails = isCancelled || !canMove || !hasSource || (!this.calm && this.random() < 0.3);
      if (!fails) {
        this.application = move.targetUid;
        this.#touched.add(move.sourceUid).add(move.targetUid);
      }
      move.outcome = { state: fails ? "Failed" : "Moved", retryable: hasSource && this.random() < 0.7 };
      return;
    }
    const { state, retryable } = move.outcome;
    const isTold = this.#tell(read, {
      attempt: move.attempt,
      state,
      retryable,
      reason: state === "Failed" ? "MadeUp" : "Moved",
    });
    if (isTold) this.move = null;
  }

  #tell({ metadata }: Migration, move: object): boolean {
    const path = pathOf("migrations", { namespace: NAMESPACE, name: metadata.name });
    const now = this.#get(path);
    if (now === null || now.metadata.resourceVersion !== metadata.resourceVersion) return false;
    this.put(path, { ...now, status: { ...now.status, move } });
    return true;
  }
}

const STATEFUL_SET = pathOf("statefulsets", { namespace: NAMESPACE, name: "chat" });
/** of the pod that moves */
const SOURCE = "chat-0";
/** of a dry run */
function referenceTo({ metadata: { name, uid } }: StatefulSet): OwnerReference {
  return { apiVersion: "apps/v1", kind: "StatefulSet", name, uid, controller: true };
}

const READY: PodCondition = { type: "Ready", status: "True" };

function running(conditions: PodCondition[]): NonNullable<Pod["status"]> {
  return {
    phase: "Running",
    conditions,
    containerStatuses: [{ name: "app", state: { running: {} } }],
  };
}

function compare(one: number[], other: number[]): number {
  for (const [at, value] of one.entries()) if (value !== other[at]) return value - (other[at] ?? 0);
  return 0;
}

/** RFC 7386 */
function merged(before: unknown, patch: unknown): unknown {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch;
  const isMap = typeof before === "object" && before !== null && !Array.isArray(before);
  const next: Record<string, unknown> = isMap ? { ...before } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete next[key];
    else next[key] = merged(next[key], value);
  }
  return next;
}
