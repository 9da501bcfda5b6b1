/**
 * The proxy as a container of the pod, in pods as people have them: what else is in the pod, a move that fails, a container that ends, and what
 * Pod Security lets in. Whole moves by Migrations are in `controller.test.ts` and `faults.test.ts`, agents that are replaced in `move.test.ts`.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { inject } from "#control/kubernetes/inject/inject.ts";
import { nodeBinary } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { inAgent, injectFault, startAgents } from "./agents.ts";
import { APP_PORT, appContainer, INJECT, nodePortService } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";
import { PodStage } from "./pod-stage.ts";

const NODES = ["a", "b"] as const;
const NODE_PORT = 30080;
const SESSIONS = 20;
const WORKLOAD = "default.chat-a";
const PROXY = "holdfast-proxy";
const CHAT = ["/usr/bin/node", "/app/chat.js"];
const RESTRICTED = "restricted";
const AGENT_NODE = "/holdfast/node_modules/node/bin/node";

/** As the webhook makes it. */
function injected(pod: KubeObject): KubeObject {
  const outcome = inject(pod as Parameters<typeof inject>[0], INJECT);
  assert.ok(outcome.kind === "injected", JSON.stringify(outcome));
  return outcome.pod as KubeObject;
}

/** Beside the application another init container, one that stays, a proxy of a mesh, and one that nothing is lost with. */
function chat(node: (typeof NODES)[number]): KubeObject {
  const other = (name: string, port: number): object => ({
    ...{ name, image: APPS.name, imagePullPolicy: "Never", command: ["/usr/bin/node", "/app/echo.js"] },
    env: [{ name: "PORT", value: String(port) }],
  });
  const data = { name: "data", mountPath: "/data" };
  const waits = { "holdfast.dev/standby": "true", "holdfast.dev/workload": WORKLOAD };
  return injected({
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: `chat-${node}`,
      namespace: "default",
      labels: { app: "chat" },
      annotations: {
        "holdfast.dev/ports": `${APP_PORT}/websocket`,
        "holdfast.dev/stateless": "beside,metrics",
        ...(node === "a" ? {} : waits),
      },
    },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 0,
      initContainers: [
        {
          ...{ name: "before", image: APPS.name, imagePullPolicy: "Never", volumeMounts: [data] },
          command: ["/usr/bin/node", "-e", `require("fs").writeFileSync("/data/before", "")`],
        },
        { ...other("metrics", 9100), restartPolicy: "Always" },
      ],
      containers: [
        other("istio-proxy", 15001),
        {
          ...appContainer(CHAT),
          volumeMounts: [data],
          // each that fails shows: the pod is not Ready then
          readinessProbe: {
            httpGet: { path: "/", port: APP_PORT },
            ...{ periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20 },
          },
          securityContext: {
            readOnlyRootFilesystem: true,
            allowPrivilegeEscalation: false,
            capabilities: { drop: ["ALL"] },
          },
        },
        other("beside", 9101),
      ],
      volumes: [{ name: "data", emptyDir: {} }],
    },
  });
}

/** What Pod Security restricted lets in. */
const UNPRIVILEGED: KubeObject = injected({
  apiVersion: "v1",
  kind: "Pod",
  metadata: {
    ...{ name: "unprivileged", namespace: RESTRICTED },
    annotations: { "holdfast.dev/ports": `8080:${APP_PORT}` },
  },
  spec: {
    nodeName: "a",
    terminationGracePeriodSeconds: 0,
    securityContext: { runAsNonRoot: true, runAsUser: 1000, seccompProfile: { type: "RuntimeDefault" } },
    containers: [
      {
        ...appContainer(CHAT),
        securityContext: {
          readOnlyRootFilesystem: true,
          allowPrivilegeEscalation: false,
          capabilities: { drop: ["ALL"] },
        },
      },
    ],
  },
});

describe("a proxy in the pod", () => {
  let cluster: Cluster;
  let stage: PodStage;
  let load: Load;

  before(async () => {
    cluster = await createCluster({ nodes: [...NODES], images: [AGENT, APPS, INSIDE] });
    const labels = { "pod-security.kubernetes.io/enforce": "restricted" };
    await cluster.apply(...NODES.map(chat), nodePortService({ name: "chat" }, NODE_PORT), {
      apiVersion: "v1",
      kind: "Namespace",
      metadata: { name: RESTRICTED, labels },
    });
    stage = new PodStage(cluster, await startAgents(cluster));
    await stage.isServed(WORKLOAD, "a");
    await waits("b");
    load = await clients(SESSIONS);
  });
  after(() => cluster?.close());

  async function clients(sessions: number): Promise<Load> {
    const target = { address: cluster.lab.place("a").address, port: NODE_PORT };
    const isOpen = async (): Promise<boolean> =>
      (await stage.knock("client", target.address, target.port)) === "open";
    await stage.until("clients come in", isOpen);
    return await startLoad(cluster.lab, "ws", { target, sessions, intervalMs: 20, restMs: 200 });
  }

  const waits = (node: string): Promise<void> => stage.isStandby(WORKLOAD, node, `chat-${node}`);

  /** Since when the pod is Ready; it is. */
  async function readySince(name: string): Promise<string> {
    const pod = await stage.pod(name);
    assert.ok(pod !== null && condition(pod, "Ready") === "True", `${name} is not Ready`);
    const conditions: { type: string; lastTransitionTime: string }[] = pod.status.conditions;
    return conditions.find(({ type }) => type === "Ready")?.lastTransitionTime ?? "";
  }

  async function nobodyIsLost(): Promise<void> {
    await stage.answered(load, SESSIONS);
    await stage.nobodyIsLost(load, SESSIONS, "chat");
  }

  async function moved(from: string, to: string): Promise<void> {
    await waits(to);
    await load.mark();
    await stage.answered(load, SESSIONS);
    const { status, stderr } = await stage.migrate(WORKLOAD, from, to);
    if (status !== 0) await stage.failed(stderr);
    await nobodyIsLost();
    await stage.until(`it is Ready on ${to}`, () => stage.isReady(`chat-${to}`));
  }

  const OTHERS = [PROXY, "metrics", "istio-proxy", "beside"];

  for (const [from, to] of [
    ["a", "b"],
    ["b", "a"],
  ] as const)
    it(`is left from ${from} to ${to} by the application alone, and its clients lose nothing`, async () => {
      await moved(from, to);
      for (const node of NODES)
        for (const name of OTHERS) assert.equal(await stage.restartsOf(`chat-${node}`, name), 0, name);
    });

  it("goes on with its clients, and kubelet finds it Ready all the time, in a move that fails", async () => {
    await waits("b");
    await load.mark();
    await stage.answered(load, SESSIONS);
    const since = await readySince("chat-a");
    await injectFault(cluster, stage.agents.get("a") as KubeObject, "fail@source:dump");
    const { status, stdout } = await stage.migrate(WORKLOAD, "a", "b");
    assert.notEqual(status, 0, stdout);
    await stage.isServed(WORKLOAD, "a");
    await nobodyIsLost();
    assert.equal(await readySince("chat-a"), since);
    // kubelet's probe comes by the proxy, which waited for the application, and this pod has no gate of the controller's
    await stage.until("the standby is not Ready", async () => !(await stage.isReady("chat-b")));
  });

  it("stays when kubelet makes the application's container anew, and serves who comes then", async () => {
    await load.stop();
    const journal = `/var/lib/holdfast/workloads/${WORKLOAD}/journal.json`;
    const program = `process.kill(JSON.parse(require("fs").readFileSync("${journal}")).container.init.pid, "SIGKILL")`;
    const before = (await stage.statusOf("chat-a"))?.restartCount ?? 0;
    await inAgent(cluster, stage.agents.get("a"), [AGENT_NODE, "-e", program]);
    await stage.until("the container is made anew", async () => {
      return ((await stage.restartsOf("chat-a")) ?? 0) > before;
    });
    await stage.until("it is Ready", () => stage.isReady("chat-a"));
    assert.equal(await stage.restartsOf("chat-a", PROXY), 0);
    const later = await clients(2);
    await stage.answered(later, 2);
    await later.stop();
  });

  it("is restricted where its pod is, and serves", async () => {
    await stage.until("the namespace has a ServiceAccount", () =>
      cluster.find(`/api/v1/namespaces/${RESTRICTED}/serviceaccounts/default`),
    );
    await cluster.apply(UNPRIVILEGED);
    const pod = await cluster
      .readyPod("unprivileged", { namespace: RESTRICTED })
      .catch((error: unknown) => stage.failed(error));
    const answer = async (): Promise<string> => {
      const program = `fetch("http://${pod.status.podIP}:8080/").then((it) => it.text()).then(console.log, console.log)`;
      return (await cluster.lab.run("b", [nodeBinary, "-e", program])).stdout;
    };
    await stage.until("it answers", async () => /"messages":0/.test(await answer()));
  });
});
