/** Several Migrations that begin at once, where calls take their time: no more are under way than a policy lets. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { KubernetesApi } from "#control/kubernetes/client/api.ts";
import { mergePatch } from "#control/kubernetes/controller/act.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import { reconcile } from "#control/kubernetes/controller/reconcile.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { metaOf } from "#test/support/kube-objects.ts";
import { madeUpWatch, type Tell } from "#test/support/made-up-watch.ts";
import { until } from "#test/support/moved-program.ts";

const UNDER_WAY = ["Preparing", "Moving", "Adopting"];

interface Stored {
  metadata: ReturnType<typeof metaOf> & { [key in "labels" | "annotations"]?: Record<string, string> };
  spec: object;
  status: { phase?: string; reason?: string };
}

/** What the loop needs of an API server, each call of which takes up to some 20 ms. */
class SlowApi {
  readonly objects = new Map<string, Stored>();
  mostUnderWay = 0;
  readonly #watches: Tell[] = [];
  #version = 10;

  constructor(count: number, limits: object, nodeOf: (index: number) => string) {
    for (let index = 0; index < count; index++) {
      const pod = `chat-${index}`;
      this.#put(`migrations/m-${index}`, { spec: { pod, target: { node: "z" } } });
      const annotations = { "holdfast.dev/injected": "1" };
      const running = { status: { phase: "Running" }, spec: { nodeName: nodeOf(index), containers: [] } };
      this.#put(`pods/${pod}`, running, { annotations });
    }
    this.#put("continuitypolicies/default", { spec: limits });
  }

  get api(): KubernetesApi {
    const slowly = async <T>(deed: () => T): Promise<T> => {
      await sleep(3 + Math.random() * 10);
      return structuredClone(deed());
    };
    const api: Pick<KubernetesApi, "find" | "list" | "create" | "patch" | "delete" | "watch"> = {
      find: <T>(path: string) => slowly(() => this.#find(path) as T | null),
      list: (path: string, query?: { labelSelector?: unknown }) =>
        slowly(() => ({ items: this.#list(path, query?.labelSelector) as never[], resourceVersion: "1" })),
      create: <T>(path: string, body: object) =>
        slowly(() => {
          if (path.endsWith("/events")) return body as T;
          const { name } = (body as { metadata: { name: string } }).metadata;
          return this.#put(`${path.split("/").at(-1)}/${name}`, body) as T;
        }),
      patch: <T>(path: string, body: object) => slowly(() => this.#patch(path, body) as T),
      delete: () => slowly(() => true),
      watch: <T>(path: string, _query: object, signal: AbortSignal) =>
        madeUpWatch<T>(signal, (tell) => {
          if (path.endsWith("/migrations")) this.#watches.push(tell);
        }),
    };
    return api as KubernetesApi;
  }

  phases(): string[] {
    return this.#list("/migrations").map(({ status }) => status.phase ?? "");
  }

  #put(key: string, body: object, more: object = {}): Stored {
    const meta = { ...metaOf(key.split("/")[1] ?? "", more), creationTimestamp: new Date().toISOString() };
    const stored = { status: {}, ...body, metadata: { ...meta, ...(body as Stored).metadata } } as Stored;
    this.objects.set(key, stored);
    return stored;
  }

  #find(path: string): unknown {
    const [kind, name = ""] = path.split("/").slice(-2);
    if (kind === "nodes")
      return { metadata: { name }, spec: {}, status: { conditions: [{ type: "Ready", status: "True" }] } };
    return this.objects.get(`${kind}/${name}`) ?? null;
  }

  #list(path: string, selector?: unknown): Stored[] {
    const kind = path.split("/").at(-1) ?? "";
    const [label = "", value] = String(selector ?? "").split("=");
    return [...this.objects]
      .filter(
        ([key, { metadata }]) => key.startsWith(`${kind}/`) && (!value || metadata.labels?.[label] === value),
      )
      .map(([, stored]) => stored);
  }

  #patch(path: string, body: object): Stored {
    const [kind, name] = path
      .replace(/\/status$/, "")
      .split("/")
      .slice(-2);
    const key = `${kind}/${name}`;
    const before = this.objects.get(key);
    assert.ok(before, path);
    const { metadata, ...rest } = body as Stored;
    if (metadata.resourceVersion !== before.metadata.resourceVersion) throw fail("KUBERNETES_CONFLICT", path);
    const status = { ...before.status, ...rest.status };
    const annotations = { ...before.metadata.annotations, ...metadata.annotations };
    const own = { ...before.metadata, ...metadata, annotations, resourceVersion: String(this.#version++) };
    const after = { ...before, status, metadata: own };
    this.objects.set(key, after);
    assert.notDeepEqual(mergePatch(before, after), {});
    if (kind === "migrations") {
      const underWay = this.phases().filter((phase) => UNDER_WAY.includes(phase)).length;
      this.mostUnderWay = Math.max(this.mostUnderWay, underWay);
      for (const tell of this.#watches) tell({ type: "MODIFIED", object: structuredClone(after) } as never);
    }
    return after;
  }
}

describe("Migrations that begin at once", () => {
  for (const [what, limits, nodeOf] of [
    ["of a cluster", { movesPerCluster: 2, movesPerNode: 10 }, (index: number) => `n-${index}`],
    ["of a node", { movesPerCluster: 10, movesPerNode: 2 }, () => "n"],
  ] as const)
    it(`are as many as the policy lets, ${what}`, async () => {
      const slow = new SlowApi(6, limits, nodeOf);
      const end = new AbortController();
      const metrics = new ControllerMetrics();
      const options = {
        api: slow.api,
        metrics,
        onProblem: () => {},
        onTriggered: () => {},
        onAction: () => {},
      };
      const done = reconcile(options, end.signal);
      await until("all have been looked at", () => slow.phases().every((phase) => phase !== ""));
      await sleep(200); // for those that would begin too early
      end.abort();
      await done;
      assert.equal(slow.mostUnderWay, 2, slow.phases().join());
    });
});
