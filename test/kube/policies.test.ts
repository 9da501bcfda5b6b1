/**
 * The chart's NetworkPolicies, and those of an application's namespace as control/kubernetes/README.md asks for them, where they are enforced: drained pods
 * keep their clients, and what no policy allows does not come through. The verdicts are those of kube-network-policies (sigs.k8s.io), which
 * `scripts/setup.sh policies` builds.
 *
 *   HOLDFAST_CHAOS=1 npm test -- test/kube/policies.test.ts
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { nodeBinary } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { APP_PORT, appContainer, nodePortService } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE, REDIS } from "./images.ts";
import { installChart, makeEdge, stateOf } from "./install.ts";
import { findEnforcer } from "./kube-tools.ts";
import type { Image } from "./oci-archive.ts";

const HOLDFAST = "holdfast";
const GAMES = "games";
const ENFORCER = "policies";
const EDGE = "c";
const NODE_PORT = 30080;
const LINK_PORT = 15_898;
const SESSIONS = 20;
const ANSWERS = 5;
const QUEUE = "100";
const PODS = `/api/v1/namespaces/${GAMES}/pods?labelSelector=app=chat`;

const IMAGE: Image = {
  name: "localhost/holdfast/policies:1",
  contents: () => ({ files: { "/kube-network-policies": findEnforcer().program } }),
  entrypoint: ["/kube-network-policies", `--nfqueue-id=${QUEUE}`],
};

/** Nobody comes in but gateways, to the proxy in the pod. */
const ONLY_GATEWAYS: KubeObject = {
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: "only-gateways", namespace: GAMES },
  spec: {
    podSelector: {},
    policyTypes: ["Ingress"],
    ingress: [
      {
        from: [
          {
            namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": HOLDFAST } },
            podSelector: { matchLabels: { "app.kubernetes.io/component": "gateway" } },
          },
        ],
        ports: [{ port: LINK_PORT }],
      },
    ],
  },
};

describe("NetworkPolicies that are enforced", { skip: process.env.HOLDFAST_CHAOS !== "1" }, () => {
  let cluster: Cluster;
  let load: Load;

  before(async () => {
    cluster = await createCluster({ nodes: ["a", "b", EDGE], images: [AGENT, APPS, INSIDE, REDIS, IMAGE] });
    const onEdge = await makeEdge(cluster, EDGE);
    await cluster.apply(
      namespace(HOLDFAST, { "pod-security.kubernetes.io/enforce": "privileged" }),
      namespace(GAMES, { "holdfast.dev/inject": "enabled" }),
      ...enforcer(),
    );
    await installChart(cluster, HOLDFAST, { "webhook.replicas": "1", "controller.replicas": "1", ...onEdge });
    await cluster.kubectl(["cordon", "b"]);
    await cluster.apply(
      nodePortService(
        { name: "chat", namespace: GAMES, labels: { "holdfast.dev/gateway": "enabled" } },
        NODE_PORT,
      ),
      deployment(),
      ONLY_GATEWAYS,
    );
    await theOnlyPod("a");
    await cluster.kubectl(["uncordon", "b"]);
    await cluster.kubectl([
      ...["-n", ENFORCER, "rollout", "status", `daemonset/${ENFORCER}`, "--timeout=120s"],
    ]);
    await cluster.untilOpen(cluster.lab.place(EDGE).address, NODE_PORT);
    const target = { address: cluster.lab.place(EDGE).address, port: NODE_PORT };
    load = await startLoad(cluster.lab, "ws", { target, sessions: SESSIONS, intervalMs: 20, restMs: 200 });
  });
  after(() => cluster?.close());

  async function failed(what: unknown): Promise<never> {
    const said = await cluster
      .kubectl(["-n", ENFORCER, "logs", "-l", "app=policies", "--tail=20"])
      .catch(String);
    return assert.fail(`${String(what)}\n${await stateOf(cluster, HOLDFAST).catch(String)}\n${said}`);
  }

  async function theOnlyPod(node: string): Promise<KubeObject> {
    let found: KubeObject[] = [];
    await cluster
      .until(`one pod of chat is Ready on ${node}`, async () => {
        found = (await cluster.api("GET", PODS)).items as KubeObject[];
        const [first] = found;
        return found.length === 1 && first?.spec.nodeName === node && condition(first, "Ready") === "True";
      })
      .catch(failed);
    return found[0] as KubeObject;
  }

  /** What comes of a connection from there: "open", "silent" or the error's code. */
  async function knock(from: string, address: string, port: number): Promise<string> {
    const { stdout } = await cluster.lab.run(from, [nodeBinary, "-e", knocking(address, port)]);
    return stdout.trim();
  }

  /** … from a pod of the chart. */
  async function knockFrom(
    component: string,
    container: string,
    address: string,
    port: number,
  ): Promise<string> {
    const program = "/holdfast/node_modules/node/bin/node";
    const pods = `deployment/holdfast-${component}`;
    const said = await cluster.kubectl([
      ...["-n", HOLDFAST, "exec", pods, "-c", container, "--", program, "-e", knocking(address, port)],
    ]);
    return said.trim();
  }

  async function answered(): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await cluster.until("clients are answered", async () => load.messages >= wanted).catch(failed);
  }

  /** From now on the first packet of each connection through a node is asked about, as its own rules would have it (`syncNFTablesRules`). */
  async function enforce(): Promise<void> {
    const { iptables } = findEnforcer();
    const rule = [...iptables, "-w", "-t", "mangle", "-A", "POSTROUTING"];
    for (const node of ["a", "b", EDGE])
      for (const what of [
        // kubelet's probes, and what else of the node's own
        ["-m", "owner", "--uid-owner", "0", "-j", "ACCEPT"],
        ["-p", "tcp", "-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE", "--queue-num", QUEUE],
      ]) {
        const { status, stderr } = await cluster.lab.run(node, [...rule, ...what]);
        assert.equal(status, 0, stderr);
      }
  }

  it("let nobody to a pod but gateways, which without them anybody reaches", async () => {
    const pod = await theOnlyPod("a");
    const { podIP } = pod.status;
    const strangers = async (): Promise<string[]> => [
      await knock("b", podIP, APP_PORT),
      await knock("b", podIP, LINK_PORT),
      await knockFrom("controller", "controller", podIP, LINK_PORT),
      await knockFrom("webhook", "webhook", podIP, APP_PORT),
    ];
    assert.deepEqual(await strangers(), ["open", "open", "open", "open"]);
    await enforce();
    assert.deepEqual(await strangers(), ["silent", "silent", "silent", "silent"]);
    assert.equal(await knockFrom("gateway", "gateway", podIP, LINK_PORT), "open");
    assert.equal(await knockFrom("gateway", "gateway", podIP, APP_PORT), "silent");
    await answered();
  });

  it("let a node be drained, there and back, and no client loses anything", async () => {
    for (const [from, to] of [
      ["a", "b"],
      ["b", "a"],
    ] as const) {
      await theOnlyPod(from);
      await load.mark();
      await answered();
      const args = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"];
      await cluster.kubectl(["drain", from, ...args], { timeoutMs: 310_000 }).catch(failed);
      await theOnlyPod(to);
      await answered();
      const { lost, repeated, corrupt, resets, alive } = await load.report();
      assert.deepEqual(
        { lost, repeated, corrupt, resets, alive },
        { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS },
      );
      await cluster.kubectl(["uncordon", from]);
    }
  });

  it("let who comes now come, and the parts of the chart to each other", async () => {
    const target = { address: cluster.lab.place(EDGE).address, port: NODE_PORT };
    const more = await startLoad(cluster.lab, "ws", { target, sessions: 2, intervalMs: 20, restMs: 200 });
    const wanted = more.messages + 2 * ANSWERS;
    await cluster.until("they are answered", async () => more.messages >= wanted).catch(failed);
    await more.stop();
    await cluster.kubectl(["-n", GAMES, "rollout", "restart", "deployment/chat"]);
    await cluster.kubectl(["-n", GAMES, "rollout", "status", "deployment/chat", "--timeout=120s"]);
    const [pod] = (await cluster.api("GET", PODS)).items as KubeObject[];
    const annotations = pod?.metadata.annotations as Record<string, string>;
    assert.equal(annotations["holdfast.dev/proxy"], "sidecar");
  });
});

function knocking(address: string, port: number): string {
  return `const socket = require("net").connect(${port}, "${address}");
    const end = (what) => { console.log(what); socket.destroy(); };
    socket.on("connect", () => end("open")).on("error", ({ code }) => end(code)).setTimeout(1500, () => end("silent"));`;
}

function namespace(name: string, labels: Record<string, string>): KubeObject {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

function deployment(): KubeObject {
  const labels = { app: "chat" };
  const container = {
    ...appContainer(["/usr/bin/node", "/app/chat.js"]),
    ports: [{ containerPort: APP_PORT }],
  };
  return {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "chat", namespace: GAMES },
    spec: {
      replicas: 1,
      selector: { matchLabels: labels },
      template: { metadata: { labels }, spec: { terminationGracePeriodSeconds: 0, containers: [container] } },
    },
  };
}

/** On each node, in its network. */
function enforcer(): KubeObject[] {
  const metadata = { name: ENFORCER, namespace: ENFORCER };
  const labels = { app: ENFORCER };
  const rbac = "rbac.authorization.k8s.io";
  return [
    namespace(ENFORCER, { "pod-security.kubernetes.io/enforce": "privileged" }),
    { apiVersion: "v1", kind: "ServiceAccount", metadata },
    {
      apiVersion: `${rbac}/v1`,
      kind: "ClusterRole",
      metadata: { name: ENFORCER },
      rules: [
        { apiGroups: [""], resources: ["pods", "namespaces", "nodes"], verbs: ["list", "watch"] },
        { apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: ["list", "watch"] },
      ],
    },
    {
      apiVersion: `${rbac}/v1`,
      kind: "ClusterRoleBinding",
      metadata: { name: ENFORCER },
      roleRef: { apiGroup: rbac, kind: "ClusterRole", name: ENFORCER },
      subjects: [{ kind: "ServiceAccount", ...metadata }],
    },
    {
      apiVersion: "apps/v1",
      kind: "DaemonSet",
      metadata,
      spec: {
        selector: { matchLabels: labels },
        template: {
          metadata: { labels },
          spec: {
            hostNetwork: true,
            serviceAccountName: ENFORCER,
            tolerations: [{ operator: "Exists" }],
            containers: [
              {
                ...{ name: ENFORCER, image: IMAGE.name, imagePullPolicy: "Never" },
                args: ["--hostname-override=$(NODE)"],
                env: [{ name: "NODE", valueFrom: { fieldRef: { fieldPath: "spec.nodeName" } } }],
                securityContext: { privileged: true },
              },
            ],
          },
        },
      },
    },
  ];
}
