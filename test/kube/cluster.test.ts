/** The cluster that tests run in: its nodes and Services are real, several run beside each other, and none leaves anything. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, it } from "node:test";
import { type CliResult, nodeBinary, projectRoot } from "../lab/lab.ts";
import { findLeftovers, isClean, sweepDeadLabs } from "../lab/sweep.ts";
import { nodePortService } from "./applications.ts";
import { type Cluster, createCluster, type KubeObject } from "./cluster.ts";
import { APPS } from "./images.ts";

const NODES = ["a", "b"];
const NODE_PORT = 30080;
/** folders of kubelet and the container runtime that a node must not make on this machine */
const HOST_FOLDERS = [
  "/var/lib/kubelet",
  "/var/lib/containerd",
  "/var/log/containers",
  "/etc/cni/net.d",
  "/opt/cni/bin",
];
/** what kubelet sets for the whole machine where it may */
const HOST_SETTINGS = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"];

/** Answers with its name. */
function server(node: string): KubeObject {
  const program = `require("node:http").createServer((_, to) => to.end("from ${node}")).listen(8080)`;
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: `server-${node}`, labels: { app: "server" } },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 0,
      containers: [
        {
          name: "server",
          image: APPS.name,
          imagePullPolicy: "Never",
          command: ["/usr/bin/node", "-e", program],
          readinessProbe: { httpGet: { port: 8080 }, periodSeconds: 1 },
        },
      ],
    },
  };
}

/** Asks a few times, and prints the different answers in order. */
function asking(url: string): string {
  return `(async () => {
    const answers = new Set();
    for (let i = 0; i < 20; i++) answers.add(await (await fetch("${url}", { headers: { connection: "close" }, signal: AbortSignal.timeout(5_000) })).text());
    console.log([...answers].sort().join(", "));
  })()`;
}

const settings = (): string[] =>
  HOST_SETTINGS.map((name) => readFileSync(`/proc/sys/${name}`, "utf8").trim());

describe("a cluster", () => {
  const had = HOST_FOLDERS.filter((folder) => existsSync(folder));
  const set = settings();
  let cluster: Cluster;
  before(async () => {
    cluster = await createCluster({ nodes: NODES, images: [APPS] });
  });
  after(() => cluster?.close());

  it("runs a pod on each node, and a Service leads to both from inside and outside", async () => {
    await cluster.apply(nodePortService({ name: "server" }, NODE_PORT, 8080), ...NODES.map(server));
    await Promise.all(NODES.map((node) => cluster.readyPod(`server-${node}`)));
    const { spec } = await cluster.api("GET", "/api/v1/namespaces/default/services/server");
    for (const node of NODES) {
      const inside = asking(`http://${spec.clusterIP}/`);
      await answersBoth(`from the pod on ${node}`, () =>
        cluster.run(["kubectl", "exec", `server-${node}`, "--", "/usr/bin/node", "-e", inside]),
      );
      const outside = asking(`http://${cluster.lab.place(node).address}:${NODE_PORT}/`);
      await answersBoth(`by node ${node}`, () => cluster.lab.run("client", [nodeBinary, "-e", outside]));
    }
  });

  /** Each node's kube-proxy learns of the pods in its own time. */
  async function answersBoth(where: string, ask: () => Promise<CliResult>): Promise<void> {
    let last: CliResult | undefined;
    const bothAnswer = async (): Promise<boolean> => {
      last = await ask();
      return last.stdout.trim() === "from a, from b";
    };
    await cluster.until("both pods answer", bothAnswer).catch((error: unknown) => {
      assert.fail(`${where}: ${String(error)}: ${last?.stdout} ${last?.stderr}`);
    });
  }

  it("runs beside another, which the next one sweeps away when its owner was killed", async () => {
    const owner = spawn(
      nodeBinary,
      [
        "--input-type=module",
        "-e",
        `import { createCluster } from ${JSON.stringify(join(projectRoot, "test/kube/cluster.ts"))};
         const cluster = await createCluster({ nodes: ["a"], prefix: "hfkdead", redis: false });
         console.log(cluster.lab.id);
         process.stdin.on("end", () => process.kill(process.pid, "SIGTERM")).resume(); // this test's process has ended`,
      ],
      { stdio: ["pipe", "pipe", "inherit"] },
    );
    const [id] = await once(createInterface({ input: owner.stdout as NodeJS.ReadableStream }), "line");
    const left = findLeftovers(String(id));
    assert.ok(left.processes.length > 5 && left.cgroups.length > 5, JSON.stringify(left));
    owner.kill("SIGKILL");
    await once(owner, "exit");
    assert.deepEqual(sweepDeadLabs("hfkdead"), [id]);
    assert.ok(isClean(findLeftovers(String(id))), JSON.stringify(findLeftovers(String(id))));
    await cluster.readyPod("server-a");
  });

  it("leaves nothing behind, and the machine as it was", async () => {
    const { lab } = cluster;
    assert.ok(lab.leftovers().processes.length > 10);
    await cluster.close();
    assert.ok(isClean(lab.leftovers()), JSON.stringify(lab.leftovers()));
    assert.deepEqual(
      HOST_FOLDERS.filter((folder) => existsSync(folder)),
      had,
    );
    assert.deepEqual(settings(), set);
  });
});
