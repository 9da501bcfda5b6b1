/** What `holdfast check` says of a cluster: each thing that is wrong is found, with its cure, and nothing else. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { parseAllDocuments } from "yaml";
import { findingsOf, type Installation, MADE } from "#control/cli/cluster-check.ts";
import { type ClusterView, type Part, type SeenPod, workloadOf } from "#control/cli/cluster-view.ts";
import type { Node } from "#control/kubernetes/client/objects.ts";
import { nameOf } from "#control/kubernetes/node/injected-pod.ts";

const INFO = {
  architecture: "amd64",
  kernelVersion: "6.18.5",
  operatingSystem: "linux",
  containerRuntimeVersion: "containerd://2.1.0",
  kubeletVersion: "v1.37.2",
};

function node(name: string, info: Partial<typeof INFO> = {}, ready = "True"): Node {
  return {
    metadata: { name, uid: name, resourceVersion: "1", creationTimestamp: "" },
    spec: {},
    status: {
      conditions: [{ type: "Ready", status: ready }],
      nodeInfo: { ...INFO, ...info },
    } as Node["status"],
  } as Node;
}

function part(component: string, on: string, isReady = true): Part {
  return { component, namespace: "holdfast", pod: `${component}-${on}`, node: on, isReady };
}

function pod(more: Partial<SeenPod>): SeenPod {
  return {
    ...{
      namespace: "games",
      pod: "chat",
      node: "a",
      workload: "games.chat",
      injection: "injected",
      message: "",
    },
    ...{ isStandby: false, isServing: true, movable: { isMovable: true, message: "" }, migration: null },
    ...more,
  };
}

const WHOLE: ClusterView = {
  version: "v1.37.2",
  namespace: "holdfast",
  nodes: [node("a"), node("b")],
  parts: ["webhook", "controller", "agent"].flatMap((one) => [part(one, "a"), part(one, "b")]),
  pods: [pod({})],
  migrations: [],
};
const INSTALLED: Installation = {
  namespace: {
    metadata: {
      ...{ name: "holdfast", uid: "", resourceVersion: "", creationTimestamp: "" },
      labels: { "pod-security.kubernetes.io/enforce": "privileged" },
    },
  },
  crds: new Map([
    ["migrations", true],
    ["continuitypolicies", true],
  ]),
  mutating: 1,
  validating: 1,
  forbidden: [],
  services: [],
};

/** "NODE ID", or "ID" of the cluster, errors with "!" before them */
function found(
  view: Partial<ClusterView>,
  installation: Partial<Installation> = {},
  isBefore = false,
): string[] {
  const request = { isBefore, namespace: "holdfast", allow: [] };
  const { findings, checked } = findingsOf({ ...WHOLE, ...view }, { ...INSTALLED, ...installation }, request);
  for (const { what, cure } of findings) assert.ok(what.length > 0 && cure.length > 0);
  for (const { category, node: of } of findings)
    assert.ok(
      checked.some((one) => one.category === category && one.node === of),
      `${category} of ${of}`,
    );
  return findings.map(
    (one) => `${one.severity === "error" ? "!" : ""}${one.node === undefined ? "" : `${one.node} `}${one.id}`,
  );
}

describe("a check of a cluster", () => {
  it("finds nothing where all is there", () => {
    assert.deepEqual(found({}), []);
    assert.deepEqual(found({ parts: [], namespace: null, pods: [] }, {}, true), []);
  });

  it("finds parts that are missing or not ready", () => {
    const parts = WHOLE.parts.filter(({ component }) => component !== "webhook");
    assert.deepEqual(found({ parts }), ["!cluster.webhook"]);
    assert.deepEqual(found({ parts: [...parts, part("webhook", "a"), part("webhook", "b", false)] }), [
      "cluster.webhook.replicas",
    ]);
    assert.deepEqual(found({}, { crds: new Map([["migrations", false]]), mutating: 0, validating: 0 }), [
      "!cluster.crd.migrations",
      "!cluster.crd.continuitypolicies",
      "!cluster.admission",
      "cluster.evictions",
    ]);
  });

  it("finds Services whose clients do not come to gateways", () => {
    const service = {
      metadata: {
        ...{ name: "chat", namespace: "games", uid: "" },
        resourceVersion: "",
        creationTimestamp: "",
      },
      spec: {},
    };
    const finding = (reason: string) => ({ service, reason, message: "clients come to the pods themselves" });
    assert.deepEqual(found({}, { services: [finding("NotGateway"), finding("TooManyServices")] }), [
      "service.not-gateway",
      "service.too-many-services",
    ]);
    const many = found({}, { services: Array.from({ length: 30 }, () => finding("NotInjected")) });
    assert.deepEqual([many.length, many.at(-1)], [21, "service.more"]);
  });

  it("finds nodes without an agent, or that cannot have one", () => {
    const parts = WHOLE.parts.filter(({ component, node: on }) => component !== "agent" || on === "a");
    assert.deepEqual(found({ parts }), ["!b node.no-agent"]);
    assert.deepEqual(found({ parts: [...parts, part("agent", "b", false)] }), ["!b node.agent"]);
    const odd = [
      node("a"),
      node("b", { kernelVersion: "5.10.0", kubeletVersion: "v1.29.0" }, "False"),
      node("c", { architecture: "s390x" }),
      node("d", { containerRuntimeVersion: "docker://27" }),
      node("w", { operatingSystem: "windows" }),
    ];
    assert.deepEqual(found({ nodes: odd }, {}, true), [
      "b node.not-ready",
      "b node.kernel",
      "b node.kubelet",
      "!c node.architecture",
      "!d node.runtime",
      "w node.os",
    ]);
    assert.deepEqual(found({ nodes: [node("a"), node("b", { architecture: "arm64" })] }), ["!cluster.nodes"]);
  });

  it("finds what keeps the chart from being installed", () => {
    const namespace = structuredClone(INSTALLED.namespace);
    if (namespace !== null)
      namespace.metadata.labels = { "pod-security.kubernetes.io/enforce": "restricted" };
    assert.deepEqual(
      found(
        { version: "v1.29.3" },
        { namespace, forbidden: ["clusterroles.rbac.authorization.k8s.io"] },
        true,
      ),
      ["!cluster.version", "!cluster.pod-security", "!cluster.access"],
    );
    assert.deepEqual(found({}, { namespace: null }, true), ["cluster.namespace"]);
  });

  it("asks before an installation about each kind that the chart makes, and about no other", () => {
    const root = join(import.meta.dirname, "../..");
    const made = new Set<string>();
    for (const folder of ["charts/holdfast/crds", "test/kube/chart"])
      for (const file of readdirSync(join(root, folder)))
        for (const document of parseAllDocuments(readFileSync(join(root, folder, file), "utf8"))) {
          const { apiVersion, kind, metadata } = document.toJS() as {
            apiVersion: string;
            kind: string;
            metadata: { namespace?: string; annotations?: Record<string, string> };
          };
          // what helm test makes is not needed; what is the Prometheus operator's is made where values ask for it alone
          if (metadata.annotations?.["helm.sh/hook"] === "test") continue;
          if (apiVersion.startsWith("monitoring.coreos.com/")) continue;
          const plural = kind.toLowerCase().replace(/y$/, "ie").replace(/s$/, "se").concat("s");
          const group = apiVersion.includes("/") ? apiVersion.replace(/\/.*/, "") : "";
          made.add(JSON.stringify([group, plural, metadata.namespace !== undefined]));
        }
    assert.ok(made.size > 10, [...made].join());
    assert.deepEqual(MADE.map((one) => JSON.stringify(one)).toSorted(), [...made].toSorted());
  });

  it("finds pods that do not move, not all of thousands", () => {
    const missed = Array.from({ length: 30 }, (_, index) =>
      pod({ pod: `chat-${index}`, injection: "missed" }),
    );
    const ids = found({
      pods: [
        ...missed,
        pod({ injection: "refused", message: "spec.hostNetwork: it has the node's network" }),
        pod({ movable: { isMovable: false, message: "io_uring" } }),
        pod({ movable: null }),
      ],
    });
    assert.deepEqual(ids, [...Array(20).fill("pod.missed"), "pod.refused", "pod.not-movable", "pod.more"]);
  });
});

it("an agent is asked of a pod by the name that it knows the pod by", () => {
  const named = (name: string, workload?: string): string => {
    const annotations = workload === undefined ? {} : { "holdfast.dev/workload": workload };
    const metadata = {
      name,
      namespace: "games",
      uid: "1",
      resourceVersion: "1",
      creationTimestamp: "",
      annotations,
    };
    return workloadOf({ metadata, spec: { containers: [] } });
  };
  assert.equal(named("chat"), "games.chat");
  assert.equal(named("chat-x2x4z", "games.chat"), "games.chat");
  const long = "checkout-sessions-of-all-customers-in-europe-7d9c5b8f6d-x2x4z";
  assert.equal(named(long), nameOf({ namespace: "games", name: long, annotations: {} }));
  // people write annotations, and this one becomes an argument of a command
  for (const hostile of ["--agent=/tmp/theirs", "other.chat"])
    assert.equal(named("chat", hostile), "games.chat");
});
