/** What tests of agents in a cluster ask of pods, of agents, and of clients. */
import assert from "node:assert/strict";
import { nodeBinary } from "../lab/lab.ts";
import type { Load } from "../load/load.ts";
import { agentsOf, askStatus, holdfast, logsOf } from "./agents.ts";
import { type Cluster, condition, type KubeObject } from "./cluster.ts";

/** answers that each client has had before and after a move */
const ANSWERS = 5;

interface Shown {
  name: string;
  epoch: number;
  state: string;
  container: string | null;
}

interface ContainerStatus {
  name: string;
  restartCount: number;
  state?: { running?: object; terminated?: { exitCode: number; reason: string; finishedAt: string } };
}

export class PodStage {
  readonly cluster: Cluster;
  /** pods, by node */
  agents: Map<string, KubeObject>;

  constructor(cluster: Cluster, agents: Map<string, KubeObject>) {
    this.cluster = cluster;
    this.agents = agents;
  }

  // ---- agents

  /** What an agent shows of its workloads, by name. */
  async shownOn(node: string): Promise<Map<string, Shown>> {
    let workloads: Shown[] = [];
    await this.until(`the agent of ${node} answers`, async () => {
      const status = await askStatus(this.cluster, node);
      workloads = (status?.workloads ?? []) as unknown as Shown[];
      return status !== null;
    });
    return new Map(workloads.map((shown) => [shown.name, shown]));
  }

  isServed(workload: string, node: string): Promise<void> {
    return this.until(`clients of ${workload} are served on ${node}`, async () => {
      return (await this.shownOn(node)).get(workload)?.state === "running";
    });
  }

  /**
   * The pod on a node has a container without an application. What the API says of containers is as old as kubelet's last look: for seconds it
   * shows the one that the application has left.
   */
  isStandby(workload: string, node: string, pod: string): Promise<void> {
    return this.until(`the standby on ${node} waits`, async () => {
      const shown = (await this.shownOn(node)).get(workload);
      if (shown?.state !== "elsewhere" || shown.container !== null) return false;
      // the container runtime is asked
      return this.inPod(pod, "true").catch(() => false);
    });
  }

  async agentsAgain(): Promise<void> {
    this.agents = await agentsOf(this.cluster);
  }

  /** @param more options @returns what comes of it */
  migrate(workload: string, from: string, to: string, ...more: string[]) {
    const args = ["migrate", workload, "--to", to, "--json", ...more];
    return holdfast(this.cluster, this.agents.get(from), args);
  }

  /** As {@link Cluster.until}, with the agents' logs where it does not come about. */
  until(what: string, holds: () => Promise<unknown>): Promise<void> {
    return this.cluster.until(what, holds).catch((error: unknown) => this.failed(error));
  }

  async failed(what: unknown): Promise<never> {
    assert.fail(`${String(what)}\n${await logsOf(this.cluster, this.agents.values())}`);
  }

  // ---- pods

  pod(name: string, namespace = "default"): Promise<KubeObject | null> {
    return this.cluster.find(`/api/v1/namespaces/${namespace}/pods/${name}`);
  }

  async isReady(name: string): Promise<boolean> {
    const found = await this.pod(name);
    return found !== null && condition(found, "Ready") === "True";
  }

  /** null: kubelet has not begun with it @param container of whatever kind */
  async statusOf(name: string, container = "app"): Promise<ContainerStatus | null> {
    const { initContainerStatuses = [], containerStatuses = [] } = (await this.pod(name))?.status ?? {};
    const all: ContainerStatus[] = [...initContainerStatuses, ...containerStatuses];
    return all.find((one) => one.name === container) ?? null;
  }

  /** How often kubelet has made its container anew; null: it does not run */
  async restartsOf(name: string, container?: string): Promise<number | null> {
    const found = await this.statusOf(name, container);
    return found?.state?.running === undefined ? null : found.restartCount;
  }

  /** Runs a program of Node.js in a pod's container; what it prints. */
  async inPod(name: string, program: string): Promise<string> {
    const said = await this.cluster.kubectl([
      "exec",
      name,
      "-c",
      "app",
      "--",
      "/usr/bin/node",
      "-p",
      program,
    ]);
    return said.trim();
  }

  /** What comes of a connection: "open", "silent" or the error's code. */
  async knock(from: string, address: string, port: number): Promise<string> {
    const program = `const socket = require("net").connect(${port}, "${address}");
      const end = (what) => { console.log(what); socket.destroy(); };
      socket.on("connect", () => end("open")).on("error", ({ code }) => end(code)).setTimeout(500, () => end("silent"));`;
    return (await this.cluster.lab.run(from, [nodeBinary, "-e", program])).stdout.trim();
  }

  // ---- clients

  /** Every client has had some more answers. */
  async answered(load: Load, sessions: number): Promise<void> {
    const wanted = load.messages + ANSWERS * sessions;
    await this.until("clients are answered", async () => load.messages >= wanted);
  }

  /** @throws AssertionError what clients have lost since the last mark */
  async nobodyIsLost(load: Load, sessions: number, name: string): Promise<void> {
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    assert.deepEqual(
      { name, lost, repeated, corrupt, resets, alive, problems },
      { name, lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: sessions, problems: [] },
    );
  }
}
