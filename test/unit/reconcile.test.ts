/** The controller's loop: when it looks, what it says where the cluster refuses, and what it sweeps up. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import { type MigrationStatus, migration as migrationSchema } from "#control/api/resources.ts";
import type { KubernetesApi } from "#control/kubernetes/client/api.ts";
import type { KubernetesObject, Pod } from "#control/kubernetes/client/objects.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import { reconcile, sweepStrays } from "#control/kubernetes/controller/reconcile.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { madeUpWatch, type Tell } from "../support/made-up-watch.ts";
import { until } from "../support/moved-program.ts";

const START = new Date().toISOString();
const MIGRATIONS = "/apis/holdfast.dev/v1alpha1/namespaces/shop/migrations";

function pod(name: string, more: { annotations?: object; labels?: object; metadata?: object } = {}): Pod {
  return {
    metadata: {
      name,
      namespace: "shop",
      uid: `${name}-uid`,
      resourceVersion: "1",
      creationTimestamp: START,
      annotations: { "holdfast.dev/injected": "1", ...more.annotations },
      labels: { ...more.labels },
      ...more.metadata,
    },
    spec: { nodeName: "a", containers: [] },
    status: { phase: "Running" },
  };
}

/** What the loop needs of an API server. */
class Api {
  readonly calls: string[] = [];
  readonly events: { reason: string; involvedObject: { kind: string } }[] = [];
  migration: { metadata: Record<string, unknown>; spec: object; status: MigrationStatus };
  policies: object[] = [];
  /** thrown by the next calls that begin so, one after the other */
  problems: [string, Error][] = [];
  #guard: object | null = null;
  #version = 1;
  readonly #watches: Tell[] = [];

  constructor(status: MigrationStatus = {}, metadata: object = {}) {
    const own = {
      name: "m",
      namespace: "shop",
      uid: "m-uid",
      resourceVersion: "1",
      creationTimestamp: START,
    };
    this.migration = {
      metadata: { ...own, ...metadata },
      spec: { pod: "chat-0", target: { node: "b" } },
      status,
    };
  }

  get api(): KubernetesApi {
    const done = async <T>(call: string, deed: () => T): Promise<T> => {
      this.calls.push(call);
      const at = this.problems.findIndex(([begins]) => call.startsWith(begins));
      if (at >= 0) throw this.problems.splice(at, 1)[0]?.[1];
      return deed();
    };
    const node = (name: string) => ({
      metadata: { name },
      spec: {},
      status: { conditions: [{ type: "Ready", status: "True" }] },
    });
    const api: Pick<KubernetesApi, "find" | "list" | "create" | "patch" | "delete" | "watch"> = {
      find: <T>(path: string) =>
        done(`find ${path}`, () => {
          if (path === `${MIGRATIONS}/m`) return this.migration as T;
          if (path.endsWith("/pods/chat-0"))
            return pod("chat-0", { labels: { "holdfast.dev/migration": "m-uid" } }) as T;
          if (path.includes("/poddisruptionbudgets/")) return this.#guard as T | null;
          return path.includes("/nodes/") ? (node(path.slice(-1)) as T) : null;
        }),
      list: <T extends KubernetesObject>(path: string) =>
        done(`list ${path}`, () => ({
          items: (path.endsWith("/migrations")
            ? [this.migration]
            : path.endsWith("/continuitypolicies")
              ? this.policies
              : []) as T[],
          resourceVersion: "1",
        })),
      create: <T>(path: string, body: object) =>
        done(`create ${path}`, () => {
          if (path.endsWith("/poddisruptionbudgets")) this.#guard = body;
          if (path.endsWith("/events")) this.events.push(body as Api["events"][0]);
          return body as T;
        }),
      patch: <T>(path: string, body: object) =>
        done(`patch ${path}`, () => {
          const { status, metadata } = body as { status?: MigrationStatus; metadata: object };
          if (path.startsWith(MIGRATIONS)) this.change({ ...this.migration.status, ...status }, metadata);
          return this.migration as T;
        }),
      delete: (path: string) =>
        done(`delete ${path}`, () => {
          if (path.includes("/poddisruptionbudgets/")) this.#guard = null;
          return true;
        }),
      watch: <T>(path: string, _query: object, signal: AbortSignal) =>
        madeUpWatch<T>(signal, (tell) => {
          if (path.endsWith("/migrations")) this.#watches.push(tell);
        }),
    };
    return api as KubernetesApi;
  }

  change(status: MigrationStatus, metadata: object = {}): void {
    this.#version += 1;
    const resourceVersion = String(this.#version);
    const own = { ...this.migration.metadata, ...metadata, resourceVersion };
    // null takes away
    const kept = Object.entries(status).filter(([, value]) => value !== null);
    this.migration = { ...this.migration, metadata: own, status: Object.fromEntries(kept) };
    for (const tell of this.#watches) tell({ type: "MODIFIED", object: this.migration });
  }

  get status(): MigrationStatus {
    return migrationSchema.parse(this.migration).status;
  }
}

describe("the controller", () => {
  let end = new AbortController();
  let done: Promise<void> = Promise.resolve();
  const problems: string[] = [];
  const metrics = new ControllerMetrics();
  const begin = (api: Api): Api => {
    end = new AbortController();
    problems.length = 0;
    const options = {
      api: api.api,
      metrics,
      onProblem: (what: string) => void problems.push(what),
      onTriggered: () => {},
      onAction: () => {},
    };
    done = reconcile(options, end.signal);
    return api;
  };
  afterEach(async () => {
    end.abort();
    await done;
  });

  it("goes on with a Migration, says so in Events of it and of its pod, and counts it", async () => {
    const api = begin(new Api());
    await until("it is prepared", () =>
      api.calls.some((call) => call.startsWith("create /api/v1/namespaces/shop/pods")),
    );
    assert.equal(api.status.phase, "Preparing");
    assert.deepEqual(api.migration.metadata.finalizers, ["holdfast.dev/standby"]);
    await until("Events are there", () => api.events.length >= 2);
    assert.deepEqual(
      api.events.slice(0, 2).map(({ reason, involvedObject }) => [reason, involvedObject.kind]),
      [
        ["MigrationPreparing", "Migration"],
        ["MigrationPreparing", "Pod"],
      ],
    );
    assert.match(await metrics.registry.metrics(), /holdfast_controller_migrations\{phase="Preparing"\} 1/);
  });

  it("reads all there is once until a standby is made, and after each step only what depends on it", async () => {
    const api = begin(new Api());
    const isMade = (call: string): boolean => call.startsWith("create /api/v1/namespaces/shop/pods");
    await until("it is prepared", () => api.calls.some(isMade));
    const calls = api.calls.slice(0, api.calls.findIndex(isMade));
    const reads = (of: string): number => calls.filter((call) => call === of).length;
    assert.equal(reads(`find ${MIGRATIONS}/m`), 1);
    assert.equal(reads("list /apis/holdfast.dev/v1alpha1/namespaces/shop/continuitypolicies"), 1);
    // who else is about to move is never from before
    const writes = calls.filter((call) => /^(create|patch)/.test(call) && !call.endsWith("/events"));
    assert.ok(reads("list /apis/holdfast.dev/v1alpha1/migrations") >= writes.length, calls.join("\n"));
  });

  it("looks again when somebody has changed it, and after a failure", async () => {
    const api = new Api();
    api.problems.push([`find ${MIGRATIONS}`, fail("KUBERNETES_BUSY", "not now")]);
    begin(api);
    await until("it is tried again", () => api.status.phase === "Preparing");
    assert.equal(problems[0], "Migration shop/m is tried again");
    api.change({
      phase: "Moving",
      attempt: 1,
      move: { attempt: 1, state: "Failed", retryable: false, reason: "No" },
    });
    await until("it is seen", () => api.status.phase === "Failed");
    assert.equal(api.status.reason, "No");
  });

  it("goes by the default where a policy is of a later version", async () => {
    const api = new Api();
    const { metadata } = pod("default");
    api.policies = [{ metadata, spec: { evictionStrategy: "Teleport" } }];
    begin(api);
    await until("it is prepared", () => api.status.phase === "Preparing");
    assert.deepEqual(problems, []);
  });

  it("says why the cluster does not take a standby", async () => {
    const api = new Api({
      phase: "Preparing",
      attempt: 1,
      serial: 1,
      source: { pod: "chat-0", podUid: "chat-0-uid", node: "a" },
    });
    api.problems.push([
      "create /api/v1/namespaces/shop/pods",
      fail("KUBERNETES_FORBIDDEN", "exceeded quota"),
    ]);
    begin(api);
    await until("it is said", () => api.status.reason === "StandbyRefused");
    assert.equal(api.status.message, "exceeded quota");
    const creates = () => api.calls.filter((call) => call === "create /api/v1/namespaces/shop/pods").length;
    await until("it is tried again", () => creates() > 1);
  });

  it("says why the cluster does not take the budget that guards a move, and does not begin without it", async () => {
    const api = new Api();
    const path = "create /apis/policy/v1/namespaces/shop/poddisruptionbudgets";
    const refused = (): [string, Error] => [path, fail("KUBERNETES_FORBIDDEN", "exceeded quota")];
    api.problems.push(refused(), refused());
    begin(api);
    await until("it is said", () => api.status.reason === "GuardRefused");
    assert.deepEqual([api.status.message, api.status.phase], ["exceeded quota", undefined]);
    await until("it is tried again", () => api.status.phase === "Preparing");
  });

  it("leaves alone what has ended and left nothing", async () => {
    const api = begin(new Api({ phase: "Succeeded" }));
    await until("it is listed", () => api.calls.length >= 2);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(
      api.calls.filter((call) => call.startsWith("find")),
      [],
    );
  });
});

describe("the sweep", () => {
  const later = Date.parse(START) + 60_000;
  const standby = (
    name: string,
    more: { conditions?: object[]; uid?: string; metadata?: object } = {},
  ): Pod => ({
    ...pod(name, {
      annotations: { "holdfast.dev/standby": "true" },
      labels: { "holdfast.dev/migration": more.uid ?? "gone" },
      ...(more.metadata === undefined ? {} : { metadata: more.metadata }),
    }),
    status: { phase: "Running", conditions: (more.conditions ?? []) as never },
  });

  it("takes standbys of no Migration, as they were seen, and nothing else", async () => {
    const deleted: unknown[] = [];
    const api = {
      list: async () => ({ items: [{ metadata: { uid: "there" } }], resourceVersion: "1" }) as never,
      delete: async (path: string, options: object = {}) => {
        deleted.push([path, options]);
        return true;
      },
    };
    const pods = [
      standby("stray"),
      standby("known", { uid: "there" }),
      standby("serving", { conditions: [{ type: "holdfast.dev/serving", status: "True" }] }),
      standby("going", { metadata: { deletionTimestamp: START } }),
      pod("ordinary"),
    ];
    await sweepStrays(api, pods, Date.parse(START) + 1_000);
    assert.deepEqual(deleted, [], "not what was made a moment ago");
    await sweepStrays(api, pods, later);
    assert.deepEqual(deleted, [
      ["/api/v1/namespaces/shop/pods/stray", { preconditions: { uid: "stray-uid", resourceVersion: "1" } }],
    ]);
  });
});
