/** Applications move between pods of a real cluster, and their clients notice nothing. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { type Load, startLoad } from "../load/load.ts";
import { holdfast, logsOf, startAgents } from "./agents.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";

const NODES = ["a", "b"];
const APP_PORT = 9000;
/** answers that clients have had before and after a move, each */
const ANSWERS = 5;

/** What moves: its pods are `NAME-a` and `NAME-b`, and clients come to node a. */
const WORKLOADS = [
  { name: "chat", listen: 8080, kind: "ws" as const, sessions: 20 },
  { name: "echo", listen: 8081, kind: "tcp" as const, sessions: 10 },
];

/** A pod that waits for its application, as the webhook is to make it. */
function pod(name: string, node: string): KubeObject {
  const volume = { name: "holdfast", mountPath: "/.holdfast" };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: `${name}-${node}` },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 0,
      securityContext: { seccompProfile: { type: "RuntimeDefault" } },
      initContainers: [
        { name: "holdfast", image: INSIDE.name, imagePullPolicy: "Never", volumeMounts: [volume] },
      ],
      containers: [
        {
          name: "app",
          image: APPS.name,
          imagePullPolicy: "Never",
          command: ["/.holdfast/init", "-P"],
          env: [
            { name: "HOST", value: "0.0.0.0" },
            { name: "PORT", value: String(APP_PORT) },
          ],
          readinessProbe: { tcpSocket: { port: APP_PORT }, periodSeconds: 1 },
          volumeMounts: [
            { ...volume, readOnly: true },
            { name: "data", mountPath: "/data" },
          ],
        },
      ],
      volumes: ["holdfast", "data"].map((name) => ({ name, emptyDir: {} })),
    },
  };
}

function workloadsOf(node: string): unknown[] {
  return WORKLOADS.map(({ name, listen }) => ({
    name,
    start: node === "a",
    pod: { name: `${name}-${node}`, container: "app", command: ["/usr/bin/node", `/app/${name}.js`] },
    ports: [{ listen, upstream: `127.0.0.1:${APP_PORT}` }],
  }));
}

describe("an application in a pod", () => {
  let cluster: Cluster;
  let agents: Map<string, KubeObject>;
  const loads: Load[] = [];

  before(async () => {
    cluster = await createCluster({ nodes: NODES, images: [AGENT, APPS, INSIDE] });
    const pods = WORKLOADS.flatMap(({ name }) => NODES.map((node) => pod(name, node)));
    await cluster.apply(...pods);
    for (const { metadata } of pods)
      await cluster.until(`pod ${metadata.name} runs`, async () => {
        const found = await cluster.find(`/api/v1/namespaces/default/pods/${metadata.name}`);
        return found?.status?.phase === "Running";
      });
    agents = await startAgents(cluster, workloadsOf);
    await cluster.until("clients are served", async () => {
      const { json } = await holdfast(cluster, agents.get("a"), ["status", "--json"]);
      const shown = (json as { workloads: { state: string }[] } | undefined)?.workloads ?? [];
      return shown.length === WORKLOADS.length && shown.every(({ state }) => state === "running");
    });
    const { address } = cluster.lab.place("a");
    for (const { kind, listen, sessions } of WORKLOADS)
      loads.push(
        await startLoad(cluster.lab, kind, { target: { address, port: listen }, sessions, intervalMs: 20 }),
      );
  });
  after(() => cluster?.close());

  /** Every client has had some more answers. */
  async function answered(): Promise<void> {
    for (const [at, load] of loads.entries()) {
      const wanted = load.messages + ANSWERS * (WORKLOADS[at]?.sessions ?? 0);
      await cluster.until("clients are answered", async () => load.messages >= wanted);
    }
  }

  async function isReady(name: string): Promise<boolean> {
    const found = await cluster.find(`/api/v1/namespaces/default/pods/${name}`);
    return found !== null && condition(found, "Ready") === "True";
  }

  /** Runs a program of Node.js in a pod's container; what it prints. */
  async function inPod(name: string, program: string): Promise<string> {
    const said = await cluster.kubectl(["exec", name, "-c", "app", "--", "/usr/bin/node", "-p", program]);
    return said.trim();
  }

  /** How often kubelet has made its container anew; null: it does not run */
  async function restartsOf(name: string): Promise<number | null> {
    const found = await cluster.find(`/api/v1/namespaces/default/pods/${name}`);
    const [app] = found?.status?.containerStatuses ?? [];
    return app?.state?.running === undefined ? null : app.restartCount;
  }

  it("has written and deleted files", async () => {
    const program = `const fs = require("fs");
      fs.rmSync("/app/echo.js");
      fs.rmSync("/app/node_modules/ws", { recursive: true });
      fs.mkdirSync("/app/node_modules/ws");
      fs.writeFileSync("/app/node_modules/ws/mine", "written");
      fs.writeFileSync("/data/mine", "kept");`;
    await inPod("chat-a", program);
    await inPod("chat-b", `require("fs").writeFileSync("/data/template", "of an init container")`);
  });

  for (const [from, to] of [
    ["a", "b"],
    ["b", "a"],
  ] as const) {
    it(`goes from ${from} to ${to} with its clients' connections, and kubelet finds it ready there`, async () => {
      for (const { name } of WORKLOADS)
        await cluster.until(`${name}-${to} waits`, async () => (await restartsOf(`${name}-${to}`)) !== null);
      for (const load of loads) await load.mark();
      await answered();
      for (const { name } of WORKLOADS) {
        const { status, stderr, json } = await holdfast(cluster, agents.get(from), [
          "migrate",
          name,
          "--to",
          to,
          "--json",
        ]);
        if (status !== 0) assert.fail(`${stderr}\n${await logsOf(cluster, agents.values())}`);
        assert.equal((json as { outcome: string }).outcome, "moved");
      }
      await answered();
      for (const [at, { name, sessions }] of WORKLOADS.entries()) {
        const report = await loads[at]?.report();
        assert.ok(report !== undefined);
        const { lost, repeated, corrupt, resets, alive, problems } = report;
        assert.deepEqual(
          { name, lost, repeated, corrupt, resets, alive, problems },
          { name, lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: sessions, problems: [] },
        );
        await cluster.until(`${name} is ready on ${to} alone`, async () => {
          return (await isReady(`${name}-${to}`)) && !(await isReady(`${name}-${from}`));
        });
        // where it came from is a standby again; where it is now, kubelet has done nothing since
        await cluster.until(`${name}-${from} is made anew`, async () => {
          return (await restartsOf(`${name}-${from}`)) === 1;
        });
        assert.equal(await restartsOf(`${name}-${to}`), from === "a" ? 0 : 1);
      }
      const files = `const fs = require("fs");
        [fs.existsSync("/app/echo.js"), fs.readdirSync("/app/node_modules/ws"), fs.readdirSync("/data")].join()`;
      assert.equal(await inPod(`chat-${to}`, files), "false,mine,mine");
    });
  }
});
