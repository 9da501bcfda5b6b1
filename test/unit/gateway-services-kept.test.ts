/** The controller keeps Services of gateways: what it writes, in which order, and what it does where the API server refuses. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Watches } from "#control/kubernetes/client/watches.ts";
import { watchAllPods } from "#control/kubernetes/controller/all-pods.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import { detachServices } from "#control/kubernetes/services/detach.ts";
import { keepServices } from "#control/kubernetes/services/keep.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { ApiInMemory, type Raw } from "../support/api-in-memory.ts";
import { until } from "../support/moved-program.ts";

const TABLE = "/api/v1/namespaces/holdfast/configmaps/gateways";
const POD = "/api/v1/namespaces/games/pods/chat-a";
const SERVICE = "/api/v1/namespaces/games/services/chat";
const SLICES = "/apis/discovery.k8s.io/v1/namespaces/games/endpointslices";
const SHOP_SLICES = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const SHOP_SLICE = `${SHOP_SLICES}/web-holdfast`;
const NAMED = { "kubernetes.io/service-name": "chat" };

const KUBERNETES = { "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" };

describe("Services of gateways, kept by the controller", () => {
  const end: AbortController[] = [];
  const running: Promise<void>[] = [];
  const problems: string[] = [];
  let metrics = new ControllerMetrics();
  beforeEach(() => {
    metrics = new ControllerMetrics();
  });
  afterEach(async () => {
    for (const one of end.splice(0)) one.abort();
    await Promise.all(running.splice(0));
    problems.length = 0;
  });

  function start(change: (api: ApiInMemory) => void = () => {}): ApiInMemory {
    const api = new ApiInMemory();
    const conditions = [{ type: "Ready", status: "True" }];
    api.put(TABLE, {});
    api.put(SERVICE, {
      metadata: {
        labels: { "holdfast.dev/gateway": "enabled" },
        annotations: { "holdfast.dev/selector": "app=chat" },
      },
      spec: { clusterIP: "10.96.0.9", ports: [{ port: 80, targetPort: 9000 }] },
    });
    const annotations = {
      "holdfast.dev/injected": "1",
      "holdfast.dev/container": "app",
      "holdfast.dev/ports": "9000",
      "holdfast.dev/mode": "gateway",
    };
    api.put(POD, {
      metadata: { labels: { app: "chat" }, annotations },
      spec: { containers: [{ name: "app" }] },
      status: { phase: "Running", conditions },
    });
    api.put("/api/v1/namespaces/holdfast/pods/g1", {
      metadata: { labels: { "holdfast.dev/gateway-table": "gateways" } },
      spec: { containers: [{ name: "gateway" }] },
      status: { phase: "Running", podIP: "10.244.3.2", conditions },
    });
    change(api);
    const abort = new AbortController();
    end.push(abort);
    const shared = {
      api: api.api,
      silent: metrics.silent,
      onProblem: (what: string, error: unknown) => problems.push(`${what}: ${String(error)}`),
    };
    const watches = new Watches(shared);
    const options = { ...shared, pods: watchAllPods(watches), namespace: "holdfast", table: "gateways" };
    running.push(keepServices(options, abort.signal).then(() => watches.close()));
    return api;
  }

  const slice = (api: ApiInMemory): Raw => api.objects.get(`${SLICES}/chat-holdfast`);
  const table = (api: ApiInMemory): Raw => api.objects.get(TABLE).data ?? {};

  it("tells gateways first, and then leads clients to them", async () => {
    const api = start();
    await until("clients are led", () => slice(api) !== undefined);
    assert.deepEqual(api.calls, [`PATCH ${TABLE}`, `POST ${SLICES}`]);
    assert.deepEqual(JSON.parse(table(api)["games.chat"]).workloads, ["games.chat-a"]);
    assert.deepEqual(slice(api).endpoints[0].addresses, ["10.244.3.2"]);
  });

  it("remembers the number that was given out last, in the write that gives it out", async () => {
    const api = start();
    await until("clients are led", () => slice(api) !== undefined);
    assert.equal(api.objects.get(TABLE).metadata.annotations["holdfast.dev/last-port"], "20000");
    const { metadata, spec } = api.objects.get(SERVICE);
    api.remove(SERVICE);
    await until("gateways know", () => Object.keys(table(api)).length === 0);
    api.put(SERVICE, { metadata: { ...metadata, uid: "another" }, spec });
    await until("clients are led again", () => slice(api) !== undefined);
    assert.equal(JSON.parse(table(api)["games.chat"]).ports[0].listen, 20_001);
  });

  it("writes nothing where nothing is to be other than it is", async () => {
    const api = start();
    await until("clients are led", () => slice(api) !== undefined);
    const pod = api.objects.get(POD);
    api.put(POD, { ...pod, status: { ...pod.status, message: "something else" } });
    api.put("/api/v1/namespaces/games/pods/other", { spec: { containers: [] } });
    api.remove(POD);
    await until("nobody is led", () => slice(api).endpoints.length === 0);
    assert.deepEqual(api.calls.slice(2), [`PATCH ${TABLE}`, `PUT ${SLICES}/chat-holdfast`]);
  });

  it("takes out what Kubernetes had made for the selector, and what it would be made of again", async () => {
    const own = { ...NAMED, ...KUBERNETES };
    const others = { ...NAMED, "endpointslice.kubernetes.io/managed-by": "somebody.example" };
    const api = start((one) => {
      one.put(`${SLICES}/chat-x2x4z`, { metadata: { labels: own } });
      one.put(`${SLICES}/chat-by-hand`, { metadata: { labels: others } });
      one.put(`${SLICES}/other`, { metadata: { labels: { ...own, "kubernetes.io/service-name": "other" } } });
      one.put("/api/v1/namespaces/games/endpoints/chat", {});
    });
    await until("it has gone", () => !api.objects.has(`${SLICES}/chat-x2x4z`));
    assert.deepEqual(api.calls.slice(2), [
      "DELETE /api/v1/namespaces/games/endpoints/chat",
      `DELETE ${SLICES}/chat-x2x4z`,
    ]);
    assert.deepEqual([...api.objects.keys()].filter((path) => path.startsWith(SLICES)).length, 3);
  });

  it("leads nobody when the Service goes, and says so to gateways", async () => {
    const api = start();
    await until("clients are led", () => slice(api) !== undefined);
    api.remove(SERVICE);
    await until("nobody is led", () => slice(api) === undefined);
    await until("gateways know", () => Object.keys(table(api)).length === 0);
  });

  it("leads clients to gateways until Kubernetes leads them, when the Service says so no more", async () => {
    const api = start();
    await until("clients are led", () => slice(api) !== undefined);
    const before = table(api);
    // with its selector back, as the webhook has it
    const { metadata, spec } = api.objects.get(SERVICE);
    api.remove(SERVICE);
    api.objects.set(SERVICE, {
      metadata: { ...metadata, labels: {} },
      spec: { ...spec, selector: { app: "chat" } },
    });
    // one more comes meanwhile, and gets another number
    api.put("/api/v1/namespaces/shop/services/web", {
      metadata: { ...metadata, name: "web", namespace: "shop" },
      spec,
    });
    await until("the other is led", () => api.objects.has(SHOP_SLICE));
    assert.notEqual(slice(api), undefined);
    assert.equal(table(api)["games.chat"], before["games.chat"]);
    api.put(`${SLICES}/chat-x2x4z`, { metadata: { labels: { ...NAMED, ...KUBERNETES } } });
    await until("gateways know", () => table(api)["games.chat"] === undefined);
    assert.deepEqual(api.calls.slice(-2), [`DELETE ${SLICES}/chat-holdfast`, `PATCH ${TABLE}`]);
    assert.ok(api.objects.has(`${SLICES}/chat-x2x4z`));
  });

  it("leads clients of others where those of a Service cannot be written", async () => {
    const api = start((one) => {
      const { metadata, spec } = one.objects.get(SERVICE);
      one.put("/api/v1/namespaces/shop/services/web", {
        metadata: { ...metadata, name: "web", namespace: "shop" },
        spec,
      });
      one.problem = [`POST ${SLICES}`, fail("KUBERNETES_FORBIDDEN", "its namespace is being terminated")];
    });
    await until("the one is led", () => slice(api) !== undefined, 10_000);
    assert.deepEqual(
      api.calls.filter((call) => call.startsWith("POST /apis/discovery")),
      [`POST ${SLICES}`, `POST ${SHOP_SLICES}`, `POST ${SLICES}`],
    );
    assert.match(problems.join("\n"), /^Services of gateways are not as they are to be: .*terminated/);
  });

  it("says what is wrong with a Service while the table cannot be written", async () => {
    const api = start((one) => {
      one.put("/api/v1/namespaces/games/pods/plain", {
        metadata: { labels: { app: "chat" } },
        spec: { containers: [] },
      });
      one.problem = [`PATCH ${TABLE}`, fail("KUBERNETES_INVALID", "it has too many bytes")];
    });
    await until("said", () => [...api.objects.values()].some(({ reason }) => reason === "NotInjected"));
    assert.deepEqual(api.calls, [`PATCH ${TABLE}`, "POST /api/v1/namespaces/games/events"]);
    assert.match(problems.join("\n"), /^Services of gateways are not as they are to be: .*too many bytes/);
  });

  it("plans anew where the table has changed since it was read, and tries again what was refused", async () => {
    const conflict = start((api) => {
      api.problem = [`PATCH ${TABLE}`, fail("KUBERNETES_CONFLICT", "it has changed")];
    });
    await until("clients are led", () => slice(conflict) !== undefined, 10_000);
    assert.deepEqual(problems, []);
    const refused = start((api) => {
      api.problem = [`POST ${SLICES}`, fail("KUBERNETES_FORBIDDEN", "not yet")];
    });
    await until("clients are led", () => slice(refused) !== undefined, 10_000);
    assert.match(problems.join("\n"), /^Services of gateways are not as they are to be: .*not yet/);
  });

  it("has each of its watches among the metrics, for as long as it works", async () => {
    const api = start();
    await until("clients are led", () => slice(api) !== undefined);
    const watched = async (): Promise<string[]> =>
      [...(await metrics.registry.metrics()).matchAll(/^\w+_silent_seconds\{objects="([^"]+)"/gm)].map(
        ([, objects = ""]) => objects,
      );
    assert.deepEqual((await watched()).sort(), [
      ...["all pods", "endpointslices", "services of gateways", "tables of gateways"],
    ]);
    end.pop()?.abort();
    await running.pop();
    assert.deepEqual(await watched(), []);
  });

  it("ends also while it does not know yet what there is", async () => {
    const asked = Promise.withResolvers<void>();
    const pods = {
      objects: new Map(),
      get synced(): Promise<void> {
        asked.resolve();
        return new Promise(() => {});
      },
      follow: () => () => {},
    };
    const abort = new AbortController();
    const api = new ApiInMemory();
    api.put(TABLE, {});
    const shared = { api: api.api, silent: metrics.silent, onProblem: () => {} };
    const keeping = keepServices({ ...shared, pods, namespace: "holdfast", table: "gateways" }, abort.signal);
    await asked.promise;
    abort.abort();
    await keeping;
  });

  it("leads clients to pods themselves that are not its own, and to gateways as soon as there are others", async () => {
    const api = start((one) => {
      const { metadata, ...pod } = one.objects.get(POD);
      const annotations = { ...metadata.annotations, "holdfast.dev/mode": "forward" };
      one.put(POD, {
        ...pod,
        metadata: { ...metadata, annotations },
        status: { ...pod.status, podIP: "10.244.1.2" },
      });
    });
    const direct = `${SLICES}/chat-holdfast-pods-0`;
    await until("clients are led", () => api.objects.has(direct));
    assert.deepEqual(api.objects.get(direct).endpoints[0].addresses, ["10.244.1.2"]);
    assert.deepEqual(slice(api).endpoints, []);
    const { metadata, ...pod } = api.objects.get(POD);
    const annotations = { ...metadata.annotations, "holdfast.dev/mode": "gateway" };
    api.put(`${POD}-2`, { ...pod, metadata: { labels: metadata.labels, annotations } });
    await until("nobody is led to the other", () => !api.objects.has(direct));
    assert.deepEqual(slice(api).endpoints[0].addresses, ["10.244.3.2"]);
    // nobody was led nowhere meanwhile
    assert.deepEqual(api.calls.filter((call) => !call.endsWith("/events")).slice(-3), [
      `PATCH ${TABLE}`,
      `PUT ${SLICES}/chat-holdfast`,
      `DELETE ${direct}`,
    ]);
    // … nor when there is none of its own any more
    api.remove(`${POD}-2`);
    await until("clients are led to the other", () => slice(api).endpoints.length === 0);
    assert.deepEqual(api.calls.filter((call) => !call.endsWith("/events")).slice(-3), [
      `PATCH ${TABLE}`,
      `POST ${SLICES}`,
      `PUT ${SLICES}/chat-holdfast`,
    ]);
  });

  it("are detached with and without a controller: pods first, then ours away", async () => {
    for (const isKept of [true, false]) {
      const api = start((one) => {
        // the webhook that keeps Services has not seen this one
        const labels = { "holdfast.dev/gateway": "enabled" };
        one.put(`${SERVICE}-2`, { metadata: { labels }, spec: { selector: { app: "x" }, ports: [] } });
        one.put(`${SERVICE}-3`, { metadata: { labels }, spec: { ports: [] } });
      });
      await until("clients are led", () => slice(api) !== undefined);
      if (!isKept) {
        for (const one of end.splice(0)) one.abort();
        await Promise.all(running.splice(0));
      }
      api.calls.length = 0;
      api.problem = [`PATCH ${SERVICE}`, fail("KUBERNETES_CONFLICT", "it has changed")];
      const done: string[] = [];
      const left: string[] = [];
      const detaching = detachServices(api.api, {
        namespace: null,
        onDetached: (service) => done.push(service),
        onLeft: (service) => left.push(service),
      });
      await until("it has its selector", () => api.objects.get(SERVICE).spec.selector !== undefined);
      // the controller looks at what has changed, too
      api.put("/api/v1/namespaces/games/pods/other", { spec: { containers: [] } });
      if (isKept) await until("it has looked", () => api.finds.includes(SERVICE));
      assert.notEqual(slice(api), undefined);
      api.problem = [`DELETE ${SLICES}/chat-holdfast`, fail("KUBERNETES_CONFLICT", "it is another")];
      api.put(`${SLICES}/chat-x2x4z`, { metadata: { labels: { ...NAMED, ...KUBERNETES } } });
      await detaching;
      assert.deepEqual([done.toSorted(), left], [["games/chat", "games/chat-2"], ["games/chat-3"]]);
      assert.deepEqual(
        ["", "-2"].map((one) => {
          const { metadata, spec } = api.objects.get(`${SERVICE}${one}`);
          return [metadata.labels, metadata.annotations ?? {}, spec.selector];
        }),
        [
          [{}, {}, { app: "chat" }],
          [{}, {}, { app: "x" }],
        ],
      );
      assert.deepEqual(
        [...api.objects.keys()].filter((path) => path.startsWith(SLICES)),
        [`${SLICES}/chat-x2x4z`],
      );
      for (const one of end.splice(0)) one.abort();
    }
  });

  it("says once why a pod gets no client", async () => {
    const api = start((one) =>
      one.put("/api/v1/namespaces/games/pods/plain", {
        metadata: { labels: { app: "chat" } },
        spec: { containers: [] },
      }),
    );
    const events = () => [...api.objects.values()].filter(({ kind }) => kind === "Event");
    await until("it is said", () => events().length === 1);
    const [event] = events();
    assert.deepEqual(
      [event?.reason, event?.type, event?.involvedObject.name],
      ["NotInjected", "Warning", "chat"],
    );
    assert.match(event?.message, /to plain: not injected/);
    api.remove(POD);
    await until("another round has been", () => slice(api).endpoints.length === 0);
    assert.equal(events().length, 1);
  });
});
