/** The controller keeps what Services ask of Istio: what it makes, what it leaves alone, and when it takes it away. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { Watches } from "#control/kubernetes/client/watches.ts";
import { watchAllPods } from "#control/kubernetes/controller/all-pods.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import { detachMesh } from "#control/kubernetes/mesh/detach.ts";
import { keepMesh } from "#control/kubernetes/mesh/keep.ts";
import { TELL_AGAIN_MS } from "#control/kubernetes/services/findings.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { ApiInMemory, type Raw } from "../support/api-in-memory.ts";
import { until } from "../support/moved-program.ts";

const POD = "/api/v1/namespaces/games/pods/chat-a";
const SERVICE = "/api/v1/namespaces/games/services/chat";
const EVENTS = "POST /api/v1/namespaces/games/events";
const SIDECARS = "/apis/networking.istio.io/v1/namespaces/games/sidecars";
const SIDECAR = `${SIDECARS}/chat-holdfast`;
const IDENTITY = "/apis/networking.istio.io/v1alpha3/namespaces/games/envoyfilters/chat-holdfast-identity";

const SETTLE_MS = 300;

describe("what Services ask of a mesh, kept by the controller", () => {
  const end: AbortController[] = [];
  const running: Promise<void>[] = [];
  const problems: string[] = [];
  afterEach(async () => {
    for (const one of end.splice(0)) one.abort();
    await Promise.all(running.splice(0));
    problems.length = 0;
  });

  /** @param also what else is there */
  function start(
    mesh: string | null = "{}",
    problem: ApiInMemory["problem"] = null,
    also: (api: ApiInMemory) => void = () => {},
  ): ApiInMemory {
    const api = new ApiInMemory();
    api.problem = problem;
    putService(api, mesh);
    putPod(api);
    also(api);
    keep(api);
    return api;
  }

  function putPod(api: ApiInMemory, path = POD, ports = "9000/tcp"): void {
    api.put(path, {
      metadata: {
        labels: { app: "chat" },
        annotations: {
          "holdfast.dev/injected": "1",
          "holdfast.dev/ports": ports,
          "holdfast.dev/proxy": "sidecar",
          "sidecar.istio.io/status": "{}",
        },
      },
      spec: { containers: [{ name: "app" }] },
      status: { phase: "Running" },
    });
  }

  function keep({ api }: ApiInMemory): void {
    const { silent } = new ControllerMetrics();
    const stop = new AbortController();
    end.push(stop);
    const options = {
      api,
      silent,
      onProblem: (what: string) => void problems.push(what),
      settleMs: SETTLE_MS,
    };
    const watches = new Watches(options);
    const pods = watchAllPods(watches);
    running.push(keepMesh({ ...options, pods }, stop.signal).then(() => watches.close()));
  }

  function putService(api: ApiInMemory, mesh: string | null, path = SERVICE): void {
    const annotations = mesh === null ? {} : { "holdfast.dev/mesh": mesh };
    api.put(path, {
      metadata: { annotations },
      spec: { selector: { app: "chat" }, ports: [{ port: 9000 }] },
    });
  }

  const has = (api: ApiInMemory, path: string, is = true) =>
    until(`${path} ${is}`, () => api.objects.has(path) === is);
  const events = (api: ApiInMemory): string[] =>
    [...api.objects.values()]
      .filter(({ reason }: Raw) => reason !== undefined)
      .map(({ reason }: Raw) => reason);

  it("is the Sidecar of the Service's policy, owned by the Service, and nothing of Services that do not ask", async () => {
    const api = start();
    await has(api, SIDECAR);
    const { metadata, spec } = api.objects.get(SIDECAR) as Raw;
    assert.deepEqual(metadata.ownerReferences, [
      { apiVersion: "v1", kind: "Service", name: "chat", uid: "uid-chat" },
    ]);
    assert.equal(spec.ingress[0].defaultEndpoint, "127.0.0.1:15900");
    putService(api, null);
    await has(api, SIDECAR, false);
    putService(api, "{}");
    await has(api, SIDECAR);
    assert.deepEqual(api.calls, [`POST ${SIDECARS}`, `DELETE ${SIDECAR}`, `POST ${SIDECARS}`]);
  });

  it("is written once, changed when the Service asks for something else, and put back when somebody changes it", async () => {
    const api = start();
    await has(api, SIDECAR);
    api.put(SIDECAR, { ...(api.objects.get(SIDECAR) as Raw), spec: { ingress: [] } });
    await until("put back", () => (api.objects.get(SIDECAR) as Raw).spec.ingress.length === 1);
    assert.deepEqual(api.calls, [`POST ${SIDECARS}`, `PUT ${SIDECAR}`]);
    putService(api, '{"idleSeconds":86400}');
    await until("how pods are to be annotated is said", () => events(api).includes("AnnotatePods"));
  });

  it("stays while the pods are away, and goes when the Service does not ask any more", async () => {
    const api = start();
    await has(api, SIDECAR);
    api.remove(POD);
    await until("that nobody is there is said", () => events(api).includes("NotInjected"));
    assert.ok(api.objects.has(SIDECAR));
    putService(api, null);
    await has(api, SIDECAR, false);
  });

  it("comes, changes and goes in an order in which no route leads to a subset that Envoys have not got", async () => {
    const asking = (...names: string[]): string => {
      const workloads = names.map((name) => ({ name, labels: { app: name } }));
      return JSON.stringify({ stickiness: { cookie: "hf", workloads } });
    };
    const api = start(asking("chat-0"), null, (there) => putPod(there, POD, "9000/http"));
    const [routes, subsets] = ["virtualservices", "destinationrules"].map((kind) =>
      SIDECAR.replace("sidecars", kind),
    ) as [string, string];
    /** … one after the other, each some time after the one before */
    const isWritten = async (...calls: string[]): Promise<void> => {
      const ofBoth = () => api.calls.filter((call) => !call.includes("sidecars"));
      const began = performance.now();
      await until(calls.join(), () => ofBoth().length === calls.length);
      assert.deepEqual(ofBoth(), calls);
      assert.ok(performance.now() - began >= (calls.length - 1) * SETTLE_MS, calls.join());
      api.calls.length = 0;
    };
    const [newRoutes, newSubsets] = [routes, subsets].map((path) => path.replace(/\/[^/]*$/, ""));
    await isWritten(`POST ${newSubsets}`, `POST ${newRoutes}`);
    putService(api, asking("chat-0", "chat-1"));
    await isWritten(`PUT ${subsets}`, `PUT ${routes}`);
    // what goes and what comes at once: the one stays until the routes lead to the other
    putService(api, asking("chat-0", "chat-2"));
    await isWritten(`PUT ${subsets}`, `PUT ${routes}`, `PUT ${subsets}`);
    const { subsets: left } = (api.objects.get(subsets) as Raw).spec;
    assert.deepEqual(
      left.map(({ name }: { name: string }) => name),
      ["chat-0", "chat-2"],
    );
    putService(api, asking("chat-0"));
    await isWritten(`PUT ${routes}`, `PUT ${subsets}`);
    putService(api, "{}");
    await isWritten(`DELETE ${routes}`, `DELETE ${subsets}`);
  });

  it("leads nobody to subsets of a rule that the API server does not take", async () => {
    const workloads = [{ name: "chat-0", labels: { app: "chat-0" } }];
    const asked = JSON.stringify({ stickiness: { cookie: "hf", workloads } });
    const [rules, routes] = ["destinationrules", "virtualservices"].map((kind) =>
      SIDECARS.replace("sidecars", kind),
    ) as [string, string];
    const refusal = fail("KUBERNETES_FORBIDDEN", "exceeded quota");
    const api = start(asked, [`POST ${rules}`, refusal], (there) => putPod(there, POD, "9000/http"));
    await until("said", () => events(api).includes("Refused"));
    await has(api, `${routes}/chat-holdfast`);
    const made = api.calls.filter((call) => call === `POST ${rules}` || call === `POST ${routes}`);
    assert.deepEqual(made, [`POST ${rules}`, `POST ${rules}`, `POST ${routes}`]);
  });

  it("leaves alone what somebody else has made by that name, and says so", async () => {
    const api = start("{}", [`POST ${SIDECARS}`, fail("KUBERNETES_EXISTS", "it is there")]);
    await until("said", () => events(api).includes("MadeByAnother"));
    assert.deepEqual(
      api.calls.filter((call) => !call.startsWith(EVENTS)),
      [`POST ${SIDECARS}`],
    );
    assert.deepEqual(problems, []);
  });

  it("is not taken for somebody else's when the watch has not told of it yet", async () => {
    const api = start('{"idleSeconds":86400}', [
      `POST ${SIDECARS}`,
      fail("KUBERNETES_EXISTS", "it is there"),
    ]);
    // after the list, and no watch says so
    api.objects.set(SIDECAR, {
      metadata: { labels: { "app.kubernetes.io/managed-by": "holdfast-controller" } },
    });
    await until("said", () => events(api).includes("AnnotatePods"));
    assert.deepEqual(events(api), ["AnnotatePods"]);
    assert.ok(api.calls.includes(`POST ${SIDECARS}`));
  });

  it("is the Service's of that name that there is now", async () => {
    const api = start();
    await has(api, SIDECAR);
    api.put(SERVICE, {
      ...(api.objects.get(SERVICE) as Raw),
      metadata: { annotations: { "holdfast.dev/mesh": "{}" }, uid: "uid-anew" },
    });
    const owner = () => (api.objects.get(SIDECAR) as Raw).metadata.ownerReferences[0].uid;
    await until("owned by the other", () => owner() === "uid-anew");
    assert.deepEqual(api.calls, [`POST ${SIDECARS}`, `PUT ${SIDECAR}`]);
  });

  it("is made for others while the API server refuses that of one, whose Service is told", async () => {
    const other = (path: string): string => path.replaceAll("games", "other");
    const refusal = fail("KUBERNETES_FORBIDDEN", "exceeded quota");
    const api = start("{}", [`POST ${SIDECARS}`, refusal], (there) => {
      putPod(there, other(POD));
      putService(there, "{}", other(SERVICE));
    });
    await until("said", () => events(api).includes("Refused"));
    assert.deepEqual(api.calls.slice(0, 2), [`POST ${SIDECARS}`, `POST ${other(SIDECARS)}`]);
    assert.deepEqual(problems, ["the mesh is not as it is asked to be"]);
    await has(api, SIDECAR);
  });

  it("goes from others while the API server does not let that of one go, whose Service is told", async () => {
    const other = (path: string): string => path.replaceAll("games", "other");
    const api = start("{}", null, (there) => {
      putPod(there, other(POD));
      putService(there, "{}", other(SERVICE));
    });
    await has(api, SIDECAR);
    await has(api, other(SIDECAR));
    api.calls.length = 0;
    api.problem = [`DELETE ${SIDECAR}`, fail("KUBERNETES_FORBIDDEN", "a policy of the cluster")];
    putService(api, null);
    putService(api, null, other(SERVICE));
    await until("said", () => events(api).includes("Refused"));
    assert.deepEqual(api.calls.filter((call) => call.startsWith("DELETE")).slice(0, 2), [
      `DELETE ${SIDECAR}`,
      `DELETE ${other(SIDECAR)}`,
    ]);
    assert.ok(api.calls.includes(EVENTS));
    assert.deepEqual(problems, ["the mesh is not as it is asked to be"]);
    await has(api, SIDECAR, false);
  });

  it("is changed for others in the round in which that of one has changed since it was read", async () => {
    const other = (path: string): string => path.replaceAll("games", "other");
    const api = start("{}", null, (there) => {
      putPod(there, other(POD));
      putService(there, "{}", other(SERVICE));
    });
    await has(api, SIDECAR);
    await has(api, other(SIDECAR));
    api.calls.length = 0;
    api.problem = [`PUT ${SIDECAR}`, fail("KUBERNETES_CONFLICT", "it has changed")];
    for (const path of [SIDECAR, other(SIDECAR)])
      api.put(path, { ...(api.objects.get(path) as Raw), spec: { ingress: [] } });
    // of the same round, which an error would have ended
    putService(api, '{"stickiness":{"cookie":"hf"}}', SERVICE.replace("chat", "chat-2"));
    await until("said", () => events(api).includes("PolicyInvalid"));
    assert.deepEqual(api.calls.filter((call) => call.startsWith("PUT")).slice(0, 2), [
      `PUT ${SIDECAR}`,
      `PUT ${other(SIDECAR)}`,
    ]);
    assert.deepEqual(problems, []);
    await until("put back", () => (api.objects.get(SIDECAR) as Raw).spec.ingress.length === 1);
  });

  it("lets pods reach what they may by the Sidecar that holds without it, and follows that, and what the Service asks for", async () => {
    const DEFAULT = `${SIDECARS}/default`;
    const ROOT = DEFAULT.replace("games", "istio-system");
    const egress = (...hosts: string[]) => ({ egress: [{ hosts }] });
    const outboundTrafficPolicy = { mode: "REGISTRY_ONLY" };
    const reach = (api: ApiInMemory) => {
      const { workloadSelector: _, ingress: __, ...rest } = (api.objects.get(SIDECAR) as Raw).spec;
      return rest;
    };
    const comes = (api: ApiInMemory, wanted: object) =>
      until(JSON.stringify(wanted), () => isDeepStrictEqual(reach(api), wanted));
    const api = start("{}", null, (there) => {
      there.put(DEFAULT, { spec: { ...egress("./*"), outboundTrafficPolicy } });
      there.put(ROOT, { spec: egress("istio-system/*") });
      there.put(`${SIDECARS}/selects`, {
        spec: { workloadSelector: { labels: { app: "web" } }, ...egress("shop/*") },
      });
    });
    await has(api, SIDECAR);
    assert.deepEqual(reach(api), { ...egress("./*"), outboundTrafficPolicy });
    api.put(DEFAULT, { spec: egress("./*", "shop/*") });
    await comes(api, egress("./*", "shop/*"));
    putService(api, JSON.stringify(egress("*/*")));
    await comes(api, egress("*/*"));
    putService(api, "{}");
    await comes(api, egress("./*", "shop/*"));
    api.remove(DEFAULT);
    await comes(api, egress("istio-system/*"));
    api.remove(ROOT);
    await comes(api, {});
    assert.ok(!api.calls.some((call) => call.startsWith("DELETE")), "what is somebody else's is left alone");
  });

  it("is told of again after half an hour, when nothing has changed", async (t) => {
    t.mock.timers.enable({ apis: ["setInterval"] });
    // nothing is made, of which a watch would tell
    const api = start('{"stickiness":{"cookie":"hf"}}');
    const told = () => events(api).filter((reason) => reason === "PolicyInvalid").length;
    await until("told", () => told() === 1);
    const now = performance.now.bind(performance);
    t.mock.method(performance, "now", () => now() + TELL_AGAIN_MS);
    t.mock.timers.tick(TELL_AGAIN_MS);
    await until("told again", () => told() === 2);
  });

  it("is tried again when the API server refuses, and says what is wrong with what is asked", async () => {
    const api = start('{"stickiness":{"cookie":"hf"}}', [
      `POST ${SIDECARS}`,
      fail("KUBERNETES_BUSY", "not now"),
    ]);
    await until("said", () => events(api).includes("PolicyInvalid"));
    assert.equal(api.objects.has(SIDECAR), false);
    putService(api, "{}");
    await has(api, SIDECAR);
    assert.deepEqual(problems, ["the mesh is not as it is asked to be"]);
    assert.equal(api.objects.has(IDENTITY), false);
  });

  it("is taken away for good with and without a controller, routes first, and leaves what is somebody else's", async () => {
    const RULE = "/apis/networking.istio.io/v1/namespaces/games/destinationrules/chat-holdfast";
    const ROUTES = "/apis/networking.istio.io/v1/namespaces/games/virtualservices/chat-holdfast";
    const THEIRS = `${SIDECARS}/theirs`;
    for (const isKept of [true, false]) {
      const workloads = [{ name: "a", labels: { app: "chat" } }];
      const asked = JSON.stringify({ stickiness: { cookie: "hf", workloads } });
      const api = start(asked, null, (one) => putPod(one, POD, "9000/http"));
      api.put(THEIRS, { metadata: { labels: { "holdfast.dev/policy": "chat" } }, spec: {} });
      for (const path of [SIDECAR, RULE, ROUTES]) await has(api, path);
      if (!isKept) {
        for (const one of end.splice(0)) one.abort();
        await Promise.all(running.splice(0));
      }
      api.calls.length = 0;
      api.problem = [`PATCH ${SERVICE}`, fail("KUBERNETES_CONFLICT", "it has changed")];
      const done: string[] = [];
      const onDetached = (service: string): void => void done.push(service);
      await detachMesh(api.api, { namespace: null, of: "all", settleMs: SETTLE_MS, onDetached });
      assert.deepEqual(done, ["games/chat"]);
      assert.equal((api.objects.get(SERVICE) as Raw).metadata.annotations?.["holdfast.dev/mesh"], undefined);
      assert.deepEqual(
        [SIDECAR, RULE, ROUTES, THEIRS].map((path) => api.objects.has(path)),
        [false, false, false, true],
      );
      const gone = api.calls.filter((call) => call.startsWith("DELETE"));
      assert.ok(gone.indexOf(`DELETE ${ROUTES}`) < gone.indexOf(`DELETE ${RULE}`), gone.join("\n"));
      assert.ok(!api.calls.some((call) => call.startsWith("POST") && !call.endsWith("/events")));
      for (const one of end.splice(0)) one.abort();
      await Promise.all(running.splice(0));
    }
  });

  it("leaves the annotation of who has nothing of it, where nobody may have kept it", async () => {
    const OTHER = "/api/v1/namespaces/games/services/by-hand";
    const rendered = `${SIDECARS}/by-hand`;
    const asks = (api: ApiInMemory, path: string): boolean =>
      (api.objects.get(path) as Raw).metadata.annotations?.["holdfast.dev/mesh"] !== undefined;
    for (const which of ["made", "all"] as const) {
      const api = start();
      await has(api, SIDECAR);
      for (const one of end.splice(0)) one.abort();
      await Promise.all(running.splice(0));
      putService(api, "{}", OTHER);
      api.put(rendered, { metadata: { labels: { "holdfast.dev/policy": "by-hand" } }, spec: {} });
      const done: string[] = [];
      const onDetached = (service: string): void => void done.push(service);
      await detachMesh(api.api, { namespace: null, of: which, settleMs: 0, onDetached });
      assert.deepEqual(done.toSorted(), which === "made" ? ["games/chat"] : ["games/by-hand", "games/chat"]);
      assert.deepEqual([asks(api, SERVICE), asks(api, OTHER)], [false, which === "made"]);
      assert.deepEqual(
        [SIDECAR, rendered].map((path) => api.objects.has(path)),
        [false, true],
      );
    }
  });

  it("is taken away where Istio is not there any more", async () => {
    const api = new ApiInMemory();
    putService(api, "{}");
    const list: typeof api.api.list = async (path, query) => {
      if (path.startsWith("/apis/networking.istio.io"))
        throw fail("KUBERNETES_NOT_FOUND", "no such resource");
      return await api.api.list(path, query);
    };
    const patch = api.api.patch.bind(api.api);
    const remove = api.api.delete.bind(api.api);
    const done: string[] = [];
    const onDetached = (service: string): void => void done.push(service);
    await detachMesh(
      { list, patch, delete: remove },
      { namespace: null, of: "all", settleMs: 0, onDetached },
    );
    assert.deepEqual(done, ["games/chat"]);
  });
});
