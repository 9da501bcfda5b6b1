/** Applications move between pods of a real cluster, and their clients notice nothing. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { inject } from "#control/kubernetes/inject/inject.ts";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { inAgent, injectFault, replaceAgent, startAgents } from "./agents.ts";
import { APP_PORT, appContainer, INJECT, nodePortService, waitingSpec } from "./applications.ts";
import { type Cluster, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";
import type { Image } from "./oci-archive.ts";
import { PodStage } from "./pod-stage.ts";

const NODES = ["a", "b"];
/** answers of a client that has just come */
const ANSWERS = 5;

interface Moved {
  name: string;
  /** where its clients come: to the pod, by a Service at this port of the nodes; null: to the node */
  nodePort: number | null;
  listen: number;
  kind: "ws" | "tcp";
  sessions: number;
  /** absent: the entrypoint of its image */
  command?: string[];
  args?: string[];
  /** its proxy is a container of its pod */
  sidecar?: boolean;
  /** it is the child of a first process that takes its daemons */
  subreaper?: boolean;
}

/** What moves: its pods are `NAME-a` and, as its standby, `NAME-b`. */
const CHAT: Moved = {
  name: "chat",
  nodePort: 30080,
  // the application's own: kubelet's probes come by the proxy, too
  listen: APP_PORT,
  kind: "ws",
  sessions: 20,
  command: ["/usr/bin/node", "/app/chat.js"],
};
const ECHO: Moved = {
  name: "echo",
  nodePort: null,
  listen: 8081,
  kind: "tcp",
  sessions: 10,
  args: ["/app/echo.js"],
};
/** Go listens with MPTCP, which CRIU cannot dump, where it finds it. */
const COUNTER: Moved = {
  ...ECHO,
  name: "counter",
  listen: 8082,
  args: [`0.0.0.0:${APP_PORT}`],
  subreaper: true,
};
const COUNTER_IMAGE: Image = {
  name: "localhost/holdfast/go-http:1",
  contents: () => {
    const server = join(projectRoot, ".cache/go-http");
    execFileSync("go", ["build", "-o", server, join(projectRoot, "test/apps/go-http/main.go")], {
      env: { ...process.env, CGO_ENABLED: "0", GOTOOLCHAIN: "local" },
    });
    return { files: { "/server": server } };
  },
  entrypoint: ["/server"],
};
const SIDE: Moved = { ...CHAT, name: "side", nodePort: 30081, sidecar: true };
const WORKLOADS = [CHAT, ECHO, SIDE];
/** Another cluster may be at work beside this one: anchors' answers took 270 ms then (seen), and each command here is to move at once. */
const LIMITS = JSON.stringify({ holdMsMax: 3_000 });

/** As agents call it: it came with the pod on a. */
const workloadOf = (name: string): string => `default.${name}-a`;

/** The same, as it is injected; its proxy is in it. */
function sidecarPod({ name, listen, command }: Moved, node: string): KubeObject {
  const standby = { "holdfast.dev/standby": "true", "holdfast.dev/workload": workloadOf(name) };
  const outcome = inject(
    {
      apiVersion: "v1",
      kind: "Pod",
      metadata: {
        ...{ name: `${name}-${node}`, namespace: "default", labels: { app: name } },
        annotations: {
          "holdfast.dev/ports": `${listen}:${APP_PORT}`,
          "holdfast.dev/limits": LIMITS,
          ...(node === "a" ? {} : standby),
        },
      },
      spec: {
        nodeName: node,
        terminationGracePeriodSeconds: 0,
        containers: [appContainer(command)],
      },
    },
    INJECT,
  );
  assert.ok(outcome.kind === "injected");
  return outcome.pod as KubeObject;
}

/** A pod that waits for its application, as the webhook is to make it. */
function pod(moved: Moved, node: string, image = APPS.name): KubeObject {
  if (moved.sidecar === true) return sidecarPod(moved, node);
  const { name, nodePort, listen, command, args } = moved;
  const annotations = {
    "holdfast.dev/injected": "1",
    "holdfast.dev/container": "app",
    "holdfast.dev/ports": `${listen}:${APP_PORT}`,
    ...(nodePort === null ? {} : { "holdfast.dev/listen": "pod" }),
    ...(command === undefined ? {} : { "holdfast.dev/command": JSON.stringify(command) }),
    "holdfast.dev/limits": LIMITS,
    ...(moved.subreaper === true ? { "holdfast.dev/subreaper": "true" } : {}),
    ...(node === "a" ? {} : { "holdfast.dev/standby": "true", "holdfast.dev/workload": workloadOf(name) }),
  };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: `${name}-${node}`, labels: { app: name }, annotations },
    spec: {
      ...waitingSpec({ ...appContainer(command, image), ...(args === undefined ? {} : { args }) }),
      nodeName: node,
    },
  };
}

/** Says what it is sent, and takes its time to end; stays to be looked at when its container has ended. */
const ENDING: KubeObject = (() => {
  const program = `
    const server = require("net").createServer().listen(${APP_PORT}, "0.0.0.0");
    for (const signal of ["SIGHUP", "SIGTERM"]) process.on(signal, () => console.log(signal));
    process.on("SIGTERM", () => setTimeout(() => { console.log("ends"); server.close(); }, 700));`;
  const command = ["/usr/bin/node", "-e", program];
  const made = pod({ name: "ending", nodePort: null, listen: 8082, kind: "tcp", sessions: 0, command }, "a");
  const preStop = ["/usr/bin/node", "-e", 'require("fs").writeFileSync("/proc/1/fd/1", "preStop\\n")'];
  made.metadata = { ...made.metadata, name: "ending", finalizers: ["holdfast.test/looked-at"] };
  made.spec.terminationGracePeriodSeconds = 30;
  made.spec.containers[0].lifecycle = { preStop: { exec: { command: preStop } } };
  return made;
})();

/** Leads to whichever of its pods is ready. */
function serviceOf({ name, listen, nodePort }: Moved): KubeObject {
  return nodePortService({ name }, nodePort as number, listen);
}

describe("an application in a pod", () => {
  let cluster: Cluster;
  let stage: PodStage;
  const loads: Load[] = [];

  before(async () => {
    cluster = await createCluster({ nodes: NODES, images: [AGENT, APPS, INSIDE, COUNTER_IMAGE] });
    const pods = WORKLOADS.flatMap((moved) => NODES.map((node) => pod(moved, node)));
    await cluster.apply(...pods, serviceOf(CHAT), serviceOf(SIDE));
    for (const { metadata } of pods)
      await cluster.until(`pod ${metadata.name} runs`, async () => {
        const found = await cluster.find(`/api/v1/namespaces/default/pods/${metadata.name}`);
        return found?.status?.phase === "Running";
      });
    stage = new PodStage(cluster, await startAgents(cluster));
    for (const { name } of WORKLOADS) await stage.isServed(workloadOf(name), "a");
    const { address } = cluster.lab.place("a");
    for (const { kind, listen, nodePort, sessions } of WORKLOADS) {
      const port = nodePort ?? listen;
      const isOpen = async (): Promise<boolean> => (await stage.knock("client", address, port)) === "open";
      await stage.until(`clients come by port ${port} of the node`, isOpen);
      loads.push(
        await startLoad(cluster.lab, kind, {
          target: { address, port },
          sessions,
          intervalMs: 20,
          restMs: 200,
        }),
      );
    }
  });
  after(() => cluster?.close());

  async function answered(): Promise<void> {
    for (const [at, load] of loads.entries()) await stage.answered(load, WORKLOADS[at]?.sessions ?? 0);
  }

  async function nobodyIsLost(): Promise<void> {
    await answered();
    for (const [at, { name, sessions }] of WORKLOADS.entries())
      await stage.nobodyIsLost(loads[at] as Load, sessions, name);
  }

  it("is said to be movable, and its standby to have no application", async () => {
    interface Said {
      type: string;
      status: string;
      reason: string;
      message: string;
    }
    const said = async (name: string): Promise<Said | undefined> => {
      const found = await cluster.find(`/api/v1/namespaces/default/pods/${name}`);
      const conditions: Said[] = found?.status.conditions ?? [];
      return conditions.find(({ type }) => type === "holdfast.dev/movable");
    };
    for (const { name } of WORKLOADS) {
      await stage.until(`it is said of ${name}`, async () => (await said(`${name}-a`))?.status === "True");
      assert.match(
        (await said(`${name}-a`))?.message ?? "",
        /^clients would wait about \d+ ms .* \d+ MB of memory$/,
      );
      await stage.until(
        "… of its standby",
        async () => (await said(`${name}-b`))?.reason === "NoApplication",
      );
    }
  });

  it("has written and deleted files", async () => {
    const program = `const fs = require("fs");
      fs.rmSync("/app/echo.js");
      fs.rmSync("/app/node_modules/ws", { recursive: true });
      fs.mkdirSync("/app/node_modules/ws");
      fs.writeFileSync("/app/node_modules/ws/mine", "written");
      fs.writeFileSync("/data/mine", "kept");
      fs.writeFileSync("/data/part/mine", "kept");
      fs.chmodSync("/data", 0o750);
      fs.chownSync("/data/part", 33, 33);`;
    await stage.inPod("chat-a", program);
    const template = `for (const folder of ["/data", "/data/part"])
      require("fs").writeFileSync(folder + "/template", "of an init container");`;
    await stage.inPod("chat-b", template);
  });

  for (const [from, to] of [
    ["a", "b"],
    ["b", "a"],
  ] as const) {
    it(`goes from ${from} to ${to} with its clients' connections, and kubelet finds it ready there`, async () => {
      for (const { name } of WORKLOADS)
        await stage.until(
          `${name}-${to} waits`,
          async () => (await stage.restartsOf(`${name}-${to}`)) !== null,
        );
      for (const load of loads) await load.mark();
      await answered();
      for (const { name } of WORKLOADS) {
        const { status, stderr, json } = await stage.migrate(workloadOf(name), from, to);
        if (status !== 0) await stage.failed(stderr);
        assert.equal((json as { outcome: string }).outcome, "moved");
      }
      await nobodyIsLost();
      for (const { name } of WORKLOADS) {
        await stage.until(`${name} is ready on ${to}`, () => stage.isReady(`${name}-${to}`));
        // where it came from is a standby again; where it is now, kubelet has done nothing since
        await stage.until(`${name}-${from} is made anew`, async () => {
          return (await stage.restartsOf(`${name}-${from}`)) === 1;
        });
        assert.equal(await stage.restartsOf(`${name}-${to}`), from === "a" ? 0 : 1);
      }
      // where they come by the proxy, kubelet's probes are forwarded like everybody else
      await stage.until(`echo is not ready on ${from}`, async () => !(await stage.isReady(`echo-${from}`)));
      const files = `const fs = require("fs");
        const folders = ["/app/node_modules/ws", "/data", "/data/part", "/read", "/whole/part"];
        [fs.existsSync("/app/echo.js"), ...folders.map((folder) => fs.readdirSync(folder).join("+"))].join()`;
      const found = "false,mine,mine+part+prepared,mine,mine+part+prepared,mine";
      assert.equal(await stage.inPod(`chat-${to}`, files), found);
      const owners = `const fs = require("fs");
        [fs.statSync("/data").mode & 0o7777, fs.statSync("/data/part").uid, fs.statSync("/whole/part").uid].join()`;
      assert.equal(await stage.inPod(`chat-${to}`, owners), `${0o750},33,33`);
    });
  }

  for (const [side, node, fault] of [
    ["source", "a", "crash@source:dump"],
    ["target", "b", "crash@target:restored"],
  ] as const)
    it(`stays with its clients, and is reached at its pod, when the agent of the ${side} dies in the middle of a move`, async () => {
      for (const load of loads) await load.mark();
      await stage.isStandby(workloadOf("echo"), "b", "echo-b");
      const agent = stage.agents.get(node) as KubeObject;
      await injectFault(cluster, agent, fault);
      // a machine that is slow must not end the move before the fault does
      const slow = ["--deadline", "60000"];
      const { status, stdout, stderr } = await stage.migrate(workloadOf("echo"), "a", "b", ...slow);
      assert.notEqual(status, 0);
      const isStarted = async (): Promise<boolean> => {
        await stage.agentsAgain();
        const restarts = (of?: KubeObject): number => of?.status.containerStatuses[0].restartCount ?? 0;
        return restarts(stage.agents.get(node)) > restarts(agent);
      };
      await stage
        .until("the agent is started again", isStarted)
        .catch((error: unknown) => stage.failed(`${error}\n${stdout}${stderr}`));
      await stage.isServed(workloadOf("echo"), "a");
      await nobodyIsLost();
      await stage.until("the application answers", async () => (await knockAt("echo-a")) === "open");
      await stage.until("nobody is kept out", async () => (await knockAt("echo-b")) === "ECONNREFUSED");
    });

  it("does not notice that agents are replaced", async () => {
    for (const load of loads) await load.mark();
    for (const node of NODES) await replaceAgent(cluster, stage.agents.get(node));
    await stage.agentsAgain();
    for (const { name } of WORKLOADS) await stage.isServed(workloadOf(name), "a");
    await nobodyIsLost();
    // where images are kept is memory, for this agent too
    assert.match(
      await inAgent(cluster, stage.agents.get("a"), ["cat", "/proc/self/mountinfo"]),
      / - tmpfs holdfast /,
    );
  });

  it("stops when its pod is deleted, and starts in one that comes in its place", async () => {
    await loads[1]?.stop();
    const workload = workloadOf("echo");
    const before = (await stage.shownOn("a")).get(workload);
    await cluster.kubectl(["delete", "pod", "echo-a"]);
    await stage.until("the agent knows it no more", async () => !(await stage.shownOn("a")).has(workload));
    await cluster.apply(pod(ECHO, "a"));
    await stage.isServed(workload, "a");
    const epoch = (await stage.shownOn("a")).get(workload)?.epoch ?? 0;
    assert.ok(epoch > (before?.epoch ?? 0), `${epoch} after ${before?.epoch}`);
  });

  it("is asked to end after preStop when its pod is deleted, has its time, and ends its container as it ended", async () => {
    const path = `/api/v1/namespaces/default/pods/${ENDING.metadata.name}`;
    await cluster.apply(ENDING);
    // its container is Ready sooner, and what that is sent before its agent looks at it is lost
    await stage.isServed("default.ending", "a");
    // kubelet removes a container of a deleted pod soon, and its log with it
    const log = cluster.spawn("logs", ["kubectl", "logs", "-f", ENDING.metadata.name, "-c", "app"]);
    const hangUp = ["/usr/bin/node", "-e", "process.kill(1, 'SIGHUP')"];
    await cluster.kubectl(["exec", ENDING.metadata.name, "-c", "app", "--", ...hangUp]);
    await stage.until("it is given what its container was sent", async () => {
      assert.ok(!log.exited, `kubectl logs has ended: ${log.stderr}`);
      return log.stdout.includes("SIGHUP");
    });
    await cluster.kubectl(["delete", "pod", ENDING.metadata.name, "--wait=false"]);
    let end: { exitCode: number; reason: string } | undefined;
    await stage.until("its container has ended", async () => {
      end = (await cluster.find(path))?.status.containerStatuses[0].state.terminated;
      return end !== undefined;
    });
    await stage.until("all of its log is there", async () => log.exited || log.stdout.includes("ends"));
    assert.deepEqual(log.stdout.trim().split("\n"), ["SIGHUP", "preStop", "SIGTERM", "ends"]);
    assert.equal(end?.exitCode, 0);
    assert.equal((await cluster.find(path))?.status.containerStatuses[0].restartCount, 0);
    const unfinished = { metadata: { finalizers: null } };
    await cluster.api("PATCH", path, unfinished, "application/merge-patch+json");
    await stage.until(
      "the agent knows it no more",
      async () => !(await stage.shownOn("a")).has("default.ending"),
    );
  });

  it("moves where it is a Go program that listens as the language does by default", async () => {
    const pods = NODES.map((node) => pod(COUNTER, node, COUNTER_IMAGE.name));
    await cluster.apply(...pods);
    const workload = workloadOf(COUNTER.name);
    await stage.isServed(workload, "a");
    const { address } = cluster.lab.place("a");
    const count = async (): Promise<string> => {
      const program = `process.stdout.write(await (await fetch("http://${address}:${COUNTER.listen}/count")).text())`;
      const argv = [nodeBinary, "--input-type=module", "-e", program];
      return (await cluster.lab.run("client", argv)).stdout;
    };
    assert.equal(await count(), "1 1");
    await stage.until(
      "its standby waits",
      async () => (await stage.restartsOf(`${COUNTER.name}-b`)) !== null,
    );
    const { status, stderr } = await stage.migrate(workload, "a", "b");
    if (status !== 0) await stage.failed(stderr);
    assert.equal(await count(), "1 2");
  });

  it("has its proxy back where that ends in its pod", async () => {
    await loads[WORKLOADS.indexOf(SIDE)]?.stop();
    const runs = (): Promise<number | null> => stage.restartsOf("side-a", "holdfast-proxy");
    const before = (await runs()) ?? 0;
    const journal = `/var/lib/holdfast/workloads/${workloadOf(SIDE.name)}/journal.json`;
    const program = `const { proxy } = JSON.parse(require("fs").readFileSync("${journal}"));
      process.kill(proxy.process.pid, "SIGKILL");`;
    await inAgent(cluster, stage.agents.get("a"), ["/holdfast/node_modules/node/bin/node", "-e", program]);
    await stage.until("kubelet starts it again", async () => (await runs()) === before + 1);
    const target = { address: cluster.lab.place("a").address, port: SIDE.nodePort as number };
    const isOpen = async (): Promise<boolean> =>
      (await stage.knock("client", target.address, target.port)) === "open";
    await stage.until("clients come in", isOpen);
    // who comes by the other pod is forwarded, as soon as that is told where to
    let load: Load | null = null;
    const begun = async (): Promise<boolean> => {
      const started = startLoad(cluster.lab, SIDE.kind, { target, sessions: 1, intervalMs: 20, restMs: 200 });
      load = await started.catch(() => null);
      return load !== null;
    };
    await stage.until("they are served", begun);
    const { messages } = load as unknown as Load;
    const isAnswered = async (): Promise<boolean> => (load?.messages ?? 0) >= messages + ANSWERS;
    await stage.until("they are answered", isAnswered);
    await (load as unknown as Load).stop();
  });

  /** What comes of a connection to its application's port, from a node. */
  async function knockAt(name: string): Promise<string> {
    const found = await cluster.find(`/api/v1/namespaces/default/pods/${name}`);
    return stage.knock("a", String(found?.status?.podIP), APP_PORT);
  }
});
