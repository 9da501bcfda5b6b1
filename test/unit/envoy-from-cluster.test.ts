/** The policies of a cluster's Services, and why others have none. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { policiesInCluster } from "#control/cli/envoy.ts";
import type { KubernetesApi } from "#control/kubernetes/client/api.ts";
import type { Pod, Service } from "#control/kubernetes/client/objects.ts";
import type { SidecarObject } from "#envoy/default-sidecar.ts";
import { policiesOf } from "#envoy/from-cluster.ts";
import { render } from "#envoy/generate/render.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { ApiInMemory } from "../support/api-in-memory.ts";

const META = { uid: "1", resourceVersion: "1", creationTimestamp: "2026-01-01T00:00:00Z" };

function service(annotations: Record<string, string> = {}, more: object = {}): Service {
  return {
    metadata: { ...META, name: "chat", namespace: "games", annotations },
    spec: {
      selector: { app: "chat" },
      ports: [
        { name: "http3", port: 443, targetPort: "web", protocol: "UDP" },
        { name: "ws-web", port: 80, targetPort: "web" },
        { name: "grpc", port: 90, targetPort: 9090 },
        { name: "tcp-raw", port: 9000 },
      ],
      ...more,
    },
  };
}

const LED = {
  "holdfast.dev/injected": "1",
  "holdfast.dev/ports": "8080, 9000/tcp, 9090, 7000/http",
  "holdfast.dev/proxy": "sidecar",
  "sidecar.istio.io/status": "{}",
};

function pod(name: string, annotations: Record<string, string> = LED, labels = { app: "chat" }): Pod {
  return {
    metadata: { ...META, name, namespace: "games", labels, annotations },
    spec: { containers: [{ name: "app", ports: [{ name: "web", containerPort: 8080 }] }] },
    status: { phase: "Running" },
  };
}

describe("a Service's policy", () => {
  it("has its selector and ports, in the order in which Holdfast's proxy listens, by Istio's word of their protocols", () => {
    const asked = {
      "holdfast.dev/mesh": '{"idleSeconds":86400,"stickiness":{"cookie":"hf","key":"address"}}',
    };
    const { policies, leftOut } = policiesOf([service(asked)], [pod("chat-a"), pod("chat-b")]);
    assert.deepEqual(leftOut, []);
    const [one] = policies;
    assert.deepEqual(one?.policy.ports, [
      { port: 8080, proxy: 15_900, protocol: "websocket", servicePort: 80, identity: "none" },
      { port: 9000, proxy: 15_901, protocol: "tcp", servicePort: 9000, identity: "none" },
      { port: 9090, proxy: 15_902, protocol: "h2", servicePort: 90, identity: "none" },
      { port: 7000, proxy: 15_903, protocol: "http", identity: "none" },
    ]);
    const { name, namespace, selector, idleSeconds } = one?.policy ?? {};
    assert.deepEqual([name, namespace, selector, idleSeconds], ["chat", "games", { app: "chat" }, 86_400]);
    assert.ok(
      one !== undefined && render({ ...one.policy, stickiness: null }, "sidecar").documents.length === 1,
    );
  });

  it("is had beside pods that Istio has not injected, to which no Sidecar is applied", () => {
    assert.equal(policiesOf([service()], [pod("chat-a"), pod("chat-b", {})]).policies.length, 1);
  });

  it("may not say otherwise what the cluster says", () => {
    const asked = { "holdfast.dev/mesh": '{"name":"x","selector":{"app":"other"}}' };
    const [one] = policiesOf([service(asked)], [pod("chat-a")]).policies;
    assert.deepEqual([one?.policy.name, one?.policy.selector], ["chat", { app: "chat" }]);
  });

  describe("on what its pods may reach", () => {
    const OPEN = { egress: null, outboundTrafficPolicy: null };
    const own = { egress: [{ hosts: ["./*"] }], outboundTrafficPolicy: { mode: "REGISTRY_ONLY" as const } };
    const root = { egress: [{ hosts: ["./*", "istio-system/*"] }] };
    const sidecar = (
      namespace: string,
      spec: SidecarObject["spec"] = {},
      more: object = {},
    ): SidecarObject => ({
      metadata: { name: "default", namespace, creationTimestamp: "2026-01-02T00:00:00Z", ...more },
      spec,
    });
    const OWN = sidecar("games", own);
    const ROOT = sidecar("istio-system", root);
    const says: [what: string, sidecars: SidecarObject[], mesh: object, reach: object][] = [
      ["is all where no Sidecar says otherwise", [sidecar("shop", own)], {}, OPEN],
      ["is the namespace's Sidecar's, and nothing of istiod's own beside it", [ROOT, OWN], {}, own],
      [
        "is that of istiod's own namespace where theirs has none without a selector",
        [ROOT, sidecar("games", { workloadSelector: { labels: { app: "chat" } }, ...own })],
        {},
        { ...OPEN, ...root },
      ],
      [
        "is the first's of two",
        [sidecar("games", root), sidecar("games", own, { creationTimestamp: "2026-01-01T00:00:00Z" })],
        {},
        own,
      ],
      ["is the first's by name of two of one second", [sidecar("games", root, { name: "z" }), OWN], {}, own],
      [
        "is what the Service asks for, and the rest as it is without",
        [OWN],
        { egress: [{ hosts: ["shop/*"] }] },
        { ...own, egress: [{ hosts: ["shop/*"] }] },
      ],
      ["is all where that Sidecar leaves it out", [ROOT, sidecar("games", { egress: [] })], {}, OPEN],
    ];
    for (const [what, sidecars, mesh, reach] of says)
      it(what, () => {
        const asked = service({ "holdfast.dev/mesh": JSON.stringify(mesh) });
        const [{ policy } = assert.fail()] = policiesOf([asked], [pod("chat-a")], sidecars).policies;
        const { egress, outboundTrafficPolicy } = policy;
        assert.deepEqual({ egress, outboundTrafficPolicy }, reach);
      });

    const inCluster = async (mode: "sidecar" | "envoyfilter", mayList: boolean) => {
      const api = new ApiInMemory();
      api.put("/api/v1/namespaces/games/services/chat", service({}));
      api.put("/api/v1/namespaces/games/pods/chat-a", pod("chat-a"));
      const { api: whole } = api;
      for (const one of [OWN, ROOT])
        api.put(
          `/apis/networking.istio.io/v1/namespaces/${one.metadata.namespace}/sidecars/${one.metadata.name}`,
          one,
        );
      const list: typeof whole.list = async (path, ...more) => {
        if (!mayList && path.endsWith("/sidecars")) throw fail("KUBERNETES_FORBIDDEN", "not yours");
        return whole.list(path, ...more);
      };
      let told = "";
      const terminal = { out: { write: () => true }, err: { write: (text: string) => (told += text) } };
      const request = { namespace: "games", services: [], mode };
      const { policies } = await policiesInCluster({ ...whole, list } as KubernetesApi, request, terminal);
      const [{ egress, outboundTrafficPolicy } = assert.fail()] = policies;
      return { egress, outboundTrafficPolicy, told };
    };

    it("is looked up for render, where a Sidecar is what it makes", async () => {
      assert.deepEqual(await inCluster("sidecar", true), { ...own, told: "" });
      assert.deepEqual(await inCluster("envoyfilter", true), { ...OPEN, told: "" });
    });

    it("is not known where Sidecars may not be listed, which is said", async () => {
      const { told, ...reach } = await inCluster("sidecar", false);
      assert.deepEqual(reach, OPEN);
      assert.match(told, /^Sidecars of namespace games may not be listed: .*egress.*not yours/);
    });
  });

  const MESH = { "holdfast.dev/mesh": "{}" };
  const { "sidecar.istio.io/status": _, ...unmeshed } = LED;
  const { "holdfast.dev/proxy": __, ...atNode } = LED;
  const none: [what: string, service: Service, pods: Pod[], reason: string | null][] = [
    ["pods that nobody has injected", service(), [pod("a", {})], null],
    [
      "pods that only Istio has injected, though it is asked for",
      service(MESH),
      [pod("a", { "sidecar.istio.io/status": "{}" })],
      "NotInjected",
    ],
    ["pods without Istio's sidecar", service(MESH), [pod("a", unmeshed)], "NoSidecar"],
    ["pods whose clients come to their node", service(), [pod("a", atNode)], "NotInPod"],
    ["pods in gateway mode", service(), [pod("a", { ...LED, "holdfast.dev/mode": "gateway" })], "NotInPod"],
    [
      "pods of different ports",
      service(),
      [pod("a"), pod("b", { ...LED, "holdfast.dev/ports": "80" })],
      "PortsDiffer",
    ],
    [
      "a pod that Istio has injected and Holdfast has not, beside one of both",
      service(MESH),
      [pod("a"), pod("b", { "sidecar.istio.io/status": "{}" })],
      "NotInjected",
    ],
    [
      "a mistake in what it asks for",
      service({ "holdfast.dev/mesh": '{"idleSeconds":0}' }),
      [pod("a")],
      "PolicyInvalid",
    ],
    ["no JSON", service({ "holdfast.dev/mesh": "idle" }), [pod("a")], "PolicyInvalid"],
    ["no selector", service(MESH, { selector: {} }), [pod("a")], null],
    ["pods of another application", service(), [pod("a", LED, { app: "web" })], null],
  ];
  for (const [what, one, pods, reason] of none)
    it(`is none with ${what}`, () => {
      const { policies, leftOut } = policiesOf([one], pods);
      assert.deepEqual(policies, []);
      assert.deepEqual(
        leftOut.map((left) => left.reason),
        reason === null ? [] : [reason],
        JSON.stringify(leftOut.map(({ message }) => message)),
      );
    });

  it("is none with a key that it has not, which is named", () => {
    const asked = service({ "holdfast.dev/mesh": '{"idleSecond":1}' });
    const [{ message } = assert.fail()] = policiesOf([asked], [pod("a")]).leftOut;
    assert.equal(message, "annotation holdfast.dev/mesh: idleSecond: unknown key");
  });
});
