/** The policies of a cluster's Services, and why others have none. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Pod, Service } from "#control/kubernetes/client/objects.ts";
import { policiesOf } from "#envoy/from-cluster.ts";
import { render } from "#envoy/generate/render.ts";

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
