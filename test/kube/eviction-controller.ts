/**
 * The eviction-request controller, which Kubernetes 1.37 does not have yet: the API server serves and checks its objects, and nobody acts on
 * them. Tests play its part as KEP-4563 and the comments of k8s.io/api/lifecycle/v1alpha1 describe it: requests for one pod become one Eviction; its
 * responders are asked by priority, the next one when the one before is done; the last, of Kubernetes itself, calls pods/eviction.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Cluster, KubeObject } from "./cluster.ts";

const EVICTOR = "imperative-eviction.k8s.io/evictor";
const EVICTOR_PRIORITY = 100;
const LOOK_MS = 200;

interface Responder {
  name: string;
  priority: number;
  state?: string;
}

export class EvictionController {
  readonly #cluster: Cluster;
  readonly #namespace: string;
  readonly #end = new AbortController();
  readonly #done: Promise<void>;
  #failure: unknown = null;

  constructor(cluster: Cluster, namespace: string) {
    this.#cluster = cluster;
    this.#namespace = namespace;
    this.#done = this.#run();
  }

  /** @throws Error what it could not do: the API server refused what it, or a responder before it, has written */
  async close(): Promise<void> {
    this.#end.abort();
    await this.#done;
    if (this.#failure !== null) throw this.#failure;
  }

  #path(kind: string, name = "", subresource = ""): string {
    const parts = [kind, name, subresource].filter((part) => part !== "").join("/");
    return `/apis/lifecycle.k8s.io/v1alpha1/namespaces/${this.#namespace}/${parts}`;
  }

  /** As somebody asks for it. */
  async request(name: string, pod: KubeObject, requester = "example.com/maintenance"): Promise<void> {
    const { uid } = pod.metadata as unknown as { uid: string };
    await this.#cluster.api("POST", this.#path("evictionrequests"), {
      apiVersion: "lifecycle.k8s.io/v1alpha1",
      kind: "EvictionRequest",
      metadata: { name },
      spec: { target: { pod: { name: pod.metadata.name, uid } }, requester, intent: "Eviction" },
    });
  }

  async withdraw(name: string): Promise<void> {
    const spec = { intent: "Withdrawn" };
    const type = "application/merge-patch+json";
    await this.#cluster.api("PATCH", this.#path("evictionrequests", name), { spec }, type);
  }

  /** The newest Eviction of that pod. */
  async of(pod: KubeObject): Promise<KubeObject | undefined> {
    const { items } = await this.#cluster.api("GET", this.#path("evictions"));
    return (items as KubeObject[]).findLast(({ spec }) => spec.target.pod.uid === pod.metadata.uid);
  }

  async #run(): Promise<void> {
    const { signal } = this.#end;
    while (!signal.aborted) {
      try {
        await this.#look();
        this.#failure = null;
      } catch (error) {
        // a responder has written at the same time, or the API server is away: look again
        this.#failure = /: 409 /.test(String(error)) ? null : error;
      }
      await sleep(LOOK_MS, undefined, { signal }).catch(() => {});
    }
  }

  async #look(): Promise<void> {
    const requests = (await this.#cluster.api("GET", this.#path("evictionrequests"))).items as KubeObject[];
    const evictions = (await this.#cluster.api("GET", this.#path("evictions"))).items as KubeObject[];
    const wanted = requests.filter(({ spec }) => spec.intent === "Eviction");
    for (const { spec } of wanted)
      if (!evictions.some((one) => isOf(one, spec.target) && !isFinal(one)))
        if (!evictions.some((one) => isOf(one, spec.target) && isTrue(one, "TargetEvicted")))
          await this.#begin(spec.target, spec.requester, evictions.length);
    for (const eviction of evictions)
      if (!isFinal(eviction))
        await this.#goOn(
          eviction,
          wanted.some(({ spec }) => isOf(eviction, spec.target)),
        );
  }

  async #begin(target: { pod: { name: string; uid: string } }, requester: string, count: number) {
    const pod = await this.#podOf(target);
    if (pod === null) return;
    const own = (pod.spec.evictionResponders ?? []) as Responder[];
    const labels = Object.fromEntries([
      ...own.map(({ name }) => [name, "responder"]),
      [requester, "requester"],
    ]);
    const name = `${target.pod.uid}-${count}`;
    await this.#cluster.api("POST", this.#path("evictions"), {
      apiVersion: "lifecycle.k8s.io/v1alpha1",
      kind: "Eviction",
      metadata: { name, labels },
      spec: { target },
    });
  }

  async #goOn(eviction: KubeObject, isWanted: boolean): Promise<void> {
    const pod = await this.#podOf(eviction.spec.target);
    const { targetResponders, responders = [] } = eviction.status ?? {};
    if (targetResponders === undefined) {
      const own = (pod?.spec.evictionResponders ?? []) as Responder[];
      const all = [...own, { name: EVICTOR, priority: EVICTOR_PRIORITY }].sort(
        (one, other) => other.priority - one.priority,
      );
      const states = all.map((one, at) => ({ ...one, state: at === 0 ? "Active" : "Inactive" }));
      await this.#write(eviction, {
        targetResponders: states,
        responders: all.map(({ name }, at) => ({ name, ...(at === 0 ? { startTime: now() } : {}) })),
      });
      return;
    }
    const at = (targetResponders as Responder[]).findIndex(({ state }) => state === "Active");
    const status = at < 0 ? undefined : responders[at];
    const become = (state: string, next: boolean): object => ({
      targetResponders: (targetResponders as Responder[]).map((one, index) =>
        index === at ? { ...one, state } : next && index === at + 1 ? { ...one, state: "Active" } : one,
      ),
      responders: responders.map((one: object, index: number) =>
        next && index === at + 1 ? { ...one, startTime: now() } : one,
      ),
    });
    const isDone = status?.completionTime !== undefined;
    if (pod === null) {
      const conditions = [
        condition("TargetEvicted", "PodDeleted"),
        condition("Failed", "Succeeded", "False"),
      ];
      await this.#write(eviction, { ...become(isDone ? "Completed" : "Interrupted", false), conditions });
    } else if (!isWanted) {
      const conditions = [condition("Failed", "CanceledDueToNoRequesters")];
      await this.#write(eviction, { ...become("Canceled", false), conditions });
    } else if (isDone) {
      await this.#write(eviction, become("Completed", true));
    } else if (status?.name === EVICTOR) await this.#evict(pod);
  }

  /** As kubectl drain does. */
  async #evict({ metadata }: KubeObject): Promise<void> {
    const { name, uid } = metadata as unknown as { name: string; uid: string };
    const path = `/api/v1/namespaces/${this.#namespace}/pods/${name}/eviction`;
    const deleteOptions = { preconditions: { uid } };
    const body = { apiVersion: "policy/v1", kind: "Eviction", metadata: { name }, deleteOptions };
    await this.#cluster.api("POST", path, body).catch((error: unknown) => {
      if (!/: (404|409|429) /.test(String(error))) throw error;
    });
  }

  async #podOf({ pod: { name, uid } }: { pod: { name: string; uid: string } }): Promise<KubeObject | null> {
    const found = await this.#cluster.find(`/api/v1/namespaces/${this.#namespace}/pods/${name}`);
    return found?.metadata.uid === uid ? found : null;
  }

  async #write(eviction: KubeObject, status: object): Promise<void> {
    const path = this.#path("evictions", eviction.metadata.name, "status");
    await this.#cluster.api("PUT", path, { ...eviction, status: { ...eviction.status, ...status } });
  }
}

function isOf(eviction: KubeObject, target: { pod: { uid: string } }): boolean {
  return eviction.spec.target.pod.uid === target.pod.uid;
}

function isTrue({ status }: KubeObject, type: string): boolean {
  const conditions: { type: string; status: string }[] = status?.conditions ?? [];
  return conditions.some((one) => one.type === type && one.status === "True");
}

function isFinal(eviction: KubeObject): boolean {
  return isTrue(eviction, "TargetEvicted") || isTrue(eviction, "Failed");
}

function condition(type: string, reason: string, status = "True"): object {
  return { type, status, reason, message: "", lastTransitionTime: now() };
}

function now(): string {
  return `${new Date().toISOString().slice(0, 19)}Z`;
}
