/** EvictionRequests: when the controller is asked, what it says, and that it is never silent about what it does. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import type { KubernetesApi } from "#control/kubernetes/client/api.ts";
import type { KubernetesObject, Pod } from "#control/kubernetes/client/objects.ts";
import { Watches } from "#control/kubernetes/client/watches.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import type { EvictionDecision } from "#control/kubernetes/eviction/decision.ts";
import { RequestWatch } from "#control/kubernetes/eviction/request-watch.ts";
import { askedOf, type Eviction, isOver, sayOf } from "#control/kubernetes/eviction/requests.ts";
import { RESPONDER } from "#control/kubernetes/inject/names.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { madeUpWatch, type Tell } from "../support/made-up-watch.ts";
import { until } from "../support/moved-program.ts";

const NOW = Date.parse("2026-01-01T01:00:00.400Z");
const at = (agoS: number): string => `${new Date(NOW - agoS * 1_000).toISOString().slice(0, 19)}Z`;
type State = "Inactive" | "Active" | "Interrupted" | "Canceled" | "Completed";

function eviction(state: State, status: object = {}, conditions: object[] = []): Eviction {
  return {
    metadata: { name: "e-1", namespace: "shop", uid: "e", resourceVersion: "1", creationTimestamp: at(30) },
    spec: { target: { pod: { name: "chat-1", uid: "12345678-abcd" } } },
    status: {
      conditions: conditions as [],
      targetResponders: [
        { name: "other.example/first", priority: 30_000, state: "Completed" },
        { name: RESPONDER, priority: 20_000, state },
      ],
      responders: [{ name: "other.example/first" }, { name: RESPONDER, startTime: at(10), ...status }],
    },
  };
}

const denied = (more: object = {}): EvictionDecision => ({
  isAllowed: false,
  isGone: false,
  isOthers: false,
  message: "its application is being moved",
  migration: null,
  evicted: "",
  ...more,
});

describe("an Eviction of EvictionRequests", () => {
  it("asks the controller while that is its active responder and has not said that it is done", () => {
    assert.deepEqual(askedOf(eviction("Active"))?.pod, { name: "chat-1", uid: "12345678-abcd" });
    assert.equal(askedOf(eviction("Active"))?.sinceMs, Date.parse(at(10)));
    for (const state of ["Inactive", "Interrupted", "Canceled", "Completed"] as const)
      assert.equal(askedOf(eviction(state)), null, state);
    assert.equal(askedOf(eviction("Active", { completionTime: at(1) })), null);
    assert.equal(askedOf({ ...eviction("Active"), status: {} }), null, "it has not been set up yet");
    assert.equal(askedOf({ ...eviction("Active"), spec: { target: {} } }), null, "of no pod");
  });

  it("is over when it is cancelled or has gone, and not when others take over", () => {
    const failed = (reason: string) => [{ type: "Failed", status: "True", reason }];
    assert.ok(isOver(null));
    assert.ok(isOver(eviction("Canceled")));
    assert.ok(isOver(eviction("Active", {}, failed("CanceledDueToNoRequesters"))));
    assert.ok(!isOver(eviction("Interrupted", {}, failed("NoFurtherResponder"))));
    assert.ok(!isOver(eviction("Active")));
  });

  it("is told at once that something is done about it, and then as often as Kubernetes wants to hear it", () => {
    const first = sayOf(denied(), { name: RESPONDER, startTime: at(1) }, NOW);
    assert.deepEqual(first.status?.responders, [
      { name: RESPONDER, heartbeatTime: at(0), message: "its application is being moved" },
    ]);
    const said = { name: RESPONDER, startTime: at(60), message: "before" };
    assert.equal(sayOf(denied(), { ...said, heartbeatTime: at(20) }, NOW).status, null);
    const again = sayOf(denied(), { ...said, heartbeatTime: at(26) }, NOW);
    assert.ok(again.isHeartbeat);
    assert.equal(again.status?.responders[0]?.heartbeatTime, at(0));
  });

  it("is done when the pod may be deleted, has gone, or is somebody else's to move; the next responder is asked then", () => {
    const status = { name: RESPONDER, startTime: at(1), heartbeatTime: at(1), message: "before" };
    for (const [decision, message] of [
      [{ isAllowed: true, reason: "its application has moved" }, "its application has moved"],
      [denied({ isOthers: true, message: "External" }), "External"],
      [denied({ isGone: true, message: "gone" }), "gone"],
    ] as [EvictionDecision, string][])
      assert.deepEqual(sayOf(decision, status, NOW), {
        status: { responders: [{ name: RESPONDER, completionTime: at(0), message }] },
        isHeartbeat: false,
      });
  });

  it("gets no time before the one that its own controller has set by another clock", () => {
    const ahead = at(-5);
    const said = sayOf(denied(), { name: RESPONDER, startTime: ahead }, NOW);
    assert.equal(said.status?.responders[0]?.heartbeatTime, ahead);
  });
});

/** What the watch needs of an API server that serves one Eviction of one pod. */
class Api {
  readonly calls: string[] = [];
  readonly said: { heartbeatTime?: string; completionTime?: string; message?: string }[] = [];
  isServed = true;
  pod: Pod | null;
  migration: KubernetesObject | null = null;
  problem: Error | null = null;
  #eviction: Eviction;
  readonly #tell: Tell[] = [];

  constructor(one: Eviction, pod: Pod | null) {
    this.#eviction = one;
    this.pod = pod;
  }

  get api(): KubernetesApi {
    const done = async <T>(call: string, deed: () => unknown): Promise<T> => {
      this.calls.push(call);
      return deed() as T;
    };
    const api: Pick<KubernetesApi, "find" | "list" | "create" | "patch" | "watch"> = {
      find: (path: string) =>
        done(`find ${path}`, () => {
          if (path === "/apis/lifecycle.k8s.io/v1alpha1") return this.isServed ? {} : null;
          return path.includes("/pods/") ? this.pod : null;
        }),
      list: (path: string) =>
        done(`list ${path}`, () => {
          const items = path.endsWith("/evictions") ? [this.#eviction] : [];
          const made = path.endsWith("/migrations") && this.migration !== null ? [this.migration] : [];
          return { items: [...items, ...made], resourceVersion: "1" };
        }),
      create: (path: string, body: object) =>
        done(`create ${path}`, () => {
          const { metadata } = body as KubernetesObject;
          const own = { uid: "m", resourceVersion: "1", creationTimestamp: new Date().toISOString() };
          this.migration = { ...body, metadata: { ...metadata, ...own } };
        }),
      patch: (path: string, body: object) =>
        done(`patch ${path}`, () => {
          if (!path.includes("/evictions/")) return;
          const { problem } = this;
          this.problem = null;
          if (problem !== null) throw problem;
          const [said = {}] = (body as { status: { responders: object[] } }).status.responders;
          this.said.push(said);
          const { status } = this.#eviction;
          const responders = status?.responders?.map((one) =>
            one.name === RESPONDER ? { ...one, ...said } : one,
          );
          this.change({ ...this.#eviction, status: { ...status, ...(responders ? { responders } : {}) } });
        }),
      watch: <T>(path: string, _query: object, signal: AbortSignal) => {
        assert.match(path, /evictions$/);
        return madeUpWatch<T>(signal, (tell) => this.#tell.push(tell));
      },
    };
    return api as KubernetesApi;
  }

  change(next: Eviction): void {
    const resourceVersion = String(Number(this.#eviction.metadata.resourceVersion) + 1);
    this.#eviction = { ...next, metadata: { ...next.metadata, resourceVersion } };
    for (const tell of this.#tell) tell({ type: "MODIFIED", object: this.#eviction });
  }
}

describe("the responder", () => {
  let watch: RequestWatch | null = null;
  let watches: Watches | null = null;
  const problems: string[] = [];
  const seen: string[] = [];
  const begin = (api: Api): Api => {
    problems.length = 0;
    seen.length = 0;
    const told = (what: string, error: unknown): void => void problems.push(`${what}: ${String(error)}`);
    watches = new Watches({ api: api.api, silent: new ControllerMetrics().silent, onProblem: told });
    watch = new RequestWatch({
      api: api.api,
      watches,
      onEviction: (namespace, name) => void seen.push(`${namespace}/${name}`),
      onDone: () => {},
      onProblem: told,
    });
    return api;
  };
  afterEach(() => Promise.all([watch?.close(), watches?.close()]));

  const pod = (uid = "12345678-abcd"): Pod => ({
    metadata: {
      ...{ name: "chat-1", namespace: "shop", uid, resourceVersion: "1" },
      creationTimestamp: new Date().toISOString(),
      annotations: { "holdfast.dev/injected": "1" },
    },
    spec: { containers: [] },
    status: { phase: "Running", conditions: [{ type: "holdfast.dev/serving", status: "True" }] },
  });
  const now = (state: State): Eviction => eviction(state, { startTime: new Date().toISOString() });

  it("makes a Migration, says so, and says that it is done when the application has moved", async () => {
    const api = begin(new Api(now("Active"), pod()));
    await until("it has said so", () => api.said.length > 0);
    assert.match(api.said[0]?.message ?? "", /going to be moved/);
    assert.ok(api.said[0]?.heartbeatTime !== undefined);
    const { labels, annotations } = api.migration?.metadata ?? {};
    assert.deepEqual(labels, { "holdfast.dev/cause": "request" });
    assert.deepEqual(annotations, { "holdfast.dev/trigger": "e-1" });
    Object.assign(api.migration ?? {}, { status: { phase: "Succeeded" } });
    watch?.look("shop", "chat-1");
    await until("it is done", () => api.said.some(({ completionTime }) => completionTime !== undefined));
    assert.match(api.said.at(-1)?.message ?? "", /has moved/);
    assert.deepEqual(problems, []);
  });

  it("has nothing to do with another pod of that name", async () => {
    const api = begin(new Api(now("Active"), pod("another")));
    await until("it is done", () => api.said.some(({ completionTime }) => completionTime !== undefined));
    assert.match(api.said[0]?.message ?? "", /no such pod/);
    assert.equal(api.migration, null);
  });

  it("leaves one alone that does not ask it, and has its Migrations looked at when it is cancelled", async () => {
    const api = begin(new Api(now("Inactive"), pod()));
    await until("it is seen", () => seen.length > 0);
    api.change(now("Canceled"));
    await until("it is seen again", () => seen.length > 1);
    assert.deepEqual([api.said, api.migration], [[], null]);
  });

  it("says that it could not answer, and tries again when something has changed", async () => {
    const api = new Api(now("Active"), pod());
    api.problem = fail("KUBERNETES_INVALID", "must be set to the present time");
    begin(api);
    await until("it is told", () => problems.length > 0);
    assert.match(problems[0] ?? "", /Eviction shop\/e-1 is answered later: .*present time/);
    watch?.look("shop", "chat-1");
    await until("it has said so", () => api.said.length > 0);
  });

  it("does nothing where the cluster serves none, and says so once", async () => {
    const api = new Api(now("Active"), pod());
    api.isServed = false;
    begin(api);
    await until("it is told", () => problems.length > 0);
    assert.match(problems.join(), /does not serve/);
    assert.deepEqual(api.calls, ["find /apis/lifecycle.k8s.io/v1alpha1"]);
  });
});
