/** Pods that are to be injected and are not: which they are, who is told, and that they are told once. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import type { KubernetesApi } from "#control/kubernetes/client/api.ts";
import type { KubernetesObject, Pod } from "#control/kubernetes/client/objects.ts";
import { Watches } from "#control/kubernetes/client/watches.ts";
import { watchAllPods } from "#control/kubernetes/controller/all-pods.ts";
import { isAskedFor, verdictOf } from "#control/kubernetes/controller/injection.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import { reportMissedPods } from "#control/kubernetes/controller/missed-pods.ts";
import { inject } from "#control/kubernetes/inject/inject.ts";
import { madeUpWatch, type Tell } from "../support/made-up-watch.ts";
import { until } from "../support/moved-program.ts";
import { podShapes } from "../support/pod-shapes.ts";

const OPTIONS = { image: "none", imagePullPolicy: null, proxy: { image: "none", default: "node" } } as const;
const INJECT = "holdfast.dev/inject";
let version = 0;

function pod(
  namespace: string,
  name: string,
  more: { spec?: object; metadata?: object; phase?: string } = {},
): Pod {
  version += 1;
  return {
    metadata: {
      ...{ name, namespace, uid: `${namespace}-${name}`, resourceVersion: String(version) },
      creationTimestamp: "2026-11-27T00:00:00Z",
      ...more.metadata,
    },
    spec: { containers: [{ name: "app", ports: [{ containerPort: 80 }] }], ...more.spec },
    status: { phase: more.phase ?? "Running" },
  };
}

describe("a pod without injection", () => {
  it("is missed where the injector would inject it, and only there", () => {
    for (const { name, pod: shape, expected } of podShapes()) {
      const { injection, message } = verdictOf(shape as unknown as Pod);
      const outcome = inject(shape, OPTIONS);
      const wanted = { injected: "missed", refused: "refused", unchanged: "left" }[outcome.kind];
      const isOurs = "holdfast.dev/injected" in (shape.metadata?.annotations ?? {});
      assert.equal(injection, isOurs ? "injected" : wanted, name);
      if (injection === "refused") assert.equal(message, expected?.refused);
      const done = outcome.kind === "injected" ? verdictOf(outcome.pod as unknown as Pod) : null;
      if (done !== null) assert.equal(done.injection, "injected", name);
    }
  });

  it("is not missed when it has ended", () => {
    assert.equal(verdictOf(pod("shop", "chat", { phase: "Succeeded" })).injection, "left");
  });

  it("is asked for as the webhook configuration selects it", () => {
    const asked = (namespace: string, own?: string, label?: string): boolean =>
      isAskedFor({ namespace, labels: own === undefined ? {} : { [INJECT]: own } }, label, "holdfast");
    assert.ok(asked("shop", undefined, "enabled"));
    assert.ok(asked("shop", "enabled", undefined));
    assert.ok(asked("shop", "enabled", "other"));
    assert.ok(!asked("shop"));
    assert.ok(!asked("shop", "disabled", "enabled"));
    assert.ok(!asked("shop", "enabled", "disabled"));
    for (const namespace of ["kube-system", "kube-node-lease", "holdfast"])
      assert.ok(!asked(namespace, "enabled", "enabled"), namespace);
  });
});

/** What is watched of an API server, and the Events that it is given. */
class Api {
  readonly events = new Map<string, { reason: string; message: string; involvedObject: { name: string } }>();
  created = 0;
  readonly #objects: Record<"namespaces" | "pods", Map<string, KubernetesObject>> = {
    namespaces: new Map(),
    pods: new Map(),
  };
  readonly #tell = new Map<string, Tell>();

  put(kind: "namespaces" | "pods", object: KubernetesObject): void {
    this.#objects[kind].set(object.metadata.uid, object);
    this.#tell.get(kind)?.({ type: "MODIFIED", object });
  }

  namespace(name: string, label: string): void {
    version += 1;
    const metadata = { name, uid: name, resourceVersion: String(version), labels: { [INJECT]: label } };
    this.put("namespaces", { metadata: { ...metadata, creationTimestamp: "" } });
  }

  get api(): KubernetesApi {
    const kindOf = (path: string): "namespaces" | "pods" => (path.endsWith("pods") ? "pods" : "namespaces");
    return {
      list: async (path: string, _query: object, _signal: unknown, keep: (one: object) => object) => ({
        items: [...this.#objects[kindOf(path)].values()].map((one) => keep(one)),
        resourceVersion: "1",
      }),
      create: async (_path: string, body: { metadata: { name: string } }) => {
        this.created += 1;
        if (this.events.has(body.metadata.name))
          throw Object.assign(new Error(), { code: "KUBERNETES_EXISTS" });
        this.events.set(body.metadata.name, body as never);
      },
      watch: (path: string, _query: object, signal: AbortSignal) =>
        madeUpWatch<KubernetesObject>(signal, (tell) => this.#tell.set(kindOf(path), tell)),
    } as unknown as KubernetesApi;
  }

  /** "NAME REASON" */
  get told(): string[] {
    return [...this.events.values()]
      .map(({ reason, involvedObject }) => `${involvedObject.name} ${reason}`)
      .sort();
  }
}

describe("the controller", () => {
  let end = new AbortController();
  let done: Promise<void> = Promise.resolve();
  afterEach(async () => {
    end.abort();
    await done;
  });
  const begin = (api: Api, metrics: ControllerMetrics): void => {
    end = new AbortController();
    const onProblem = (what: string, error: unknown): void => assert.fail(`${what}: ${String(error)}`);
    const shared = { api: api.api, onProblem };
    const watches = new Watches({ ...shared, silent: metrics.silent });
    const pods = watchAllPods(watches);
    const reporting = reportMissedPods({ ...shared, metrics, pods, namespace: "holdfast" }, end.signal);
    done = reporting.then(() => watches.close());
  };
  const counts = async (metrics: ControllerMetrics): Promise<string[]> =>
    (await metrics.registry.metrics())
      .split("\n")
      .filter((line) => line.startsWith("holdfast_controller_pods{"))
      .map((line) => line.replace(/.*injection="(\w+)"\} (\d+)/, "$1 $2"));

  it("says of each that it was missed or cannot be injected, once, and counts them", async () => {
    const api = new Api();
    const metrics = new ControllerMetrics();
    api.namespace("shop", "enabled");
    api.put("pods", pod("shop", "missed"));
    api.put("pods", pod("shop", "node-bound", { spec: { hostNetwork: true } }));
    api.put("pods", pod("shop", "whole", { metadata: { annotations: { "holdfast.dev/injected": "1" } } }));
    api.put("pods", pod("shop", "left-out", { metadata: { labels: { [INJECT]: "disabled" } } }));
    api.put("pods", pod("other", "nobody-asks"));
    api.put("pods", pod("kube-system", "system", { metadata: { labels: { [INJECT]: "enabled" } } }));
    begin(api, metrics);
    await until("both are told", () => api.events.size === 2);
    assert.deepEqual(api.told, ["missed HoldfastInjectionMissed", "node-bound HoldfastInjectionRefused"]);
    assert.deepEqual(await counts(metrics), ["injected 1", "missed 1", "refused 1", "left 3"]);
    // what kubelet writes about a pod is no news
    api.put("pods", pod("shop", "missed"));
    api.put("pods", pod("shop", "late"));
    await until("the next is told", () => api.events.size === 3);
    assert.equal(api.created, 3);
    // another controller takes over
    end.abort();
    await done;
    assert.deepEqual(await counts(metrics), []);
    begin(api, metrics);
    await until("it has told all", () => api.created === 6);
    assert.equal(api.events.size, 3);
  });

  it("says it of pods that were there when their namespace was labelled", async () => {
    const api = new Api();
    const metrics = new ControllerMetrics();
    api.put("pods", pod("shop", "older"));
    begin(api, metrics);
    await until("it watches", async () => (await counts(metrics)).includes("left 1"));
    assert.equal(api.events.size, 0);
    api.namespace("shop", "enabled");
    await until("it is told", () => api.events.size === 1);
    assert.deepEqual(api.told, ["older HoldfastInjectionMissed"]);
    assert.deepEqual(await counts(metrics), ["injected 0", "missed 1", "refused 0", "left 0"]);
  });
});
