/**
 * The cluster that pieces of `npm run bench:kube` share: two nodes whose pods move, a third with the chart's own parts, and applications whose
 * clients come to node a (forward mode). It is made when it is first asked for, and gone when the run is. One more, whose clients come to
 * gateways and whose proxy is in its pod, is there while it is measured.
 */
import { GATEWAY_ENABLED, GATEWAY_LABEL } from "#control/api/gateway-table.ts";
import { isFinal, type Migration, migrationsIn } from "#control/api/resources.ts";
import { APP_PORT, appContainer, nodePortService } from "#test/kube/applications.ts";
import { type Cluster, createCluster, type KubeObject } from "#test/kube/cluster.ts";
import { AGENT, APPS, INSIDE, REDIS } from "#test/kube/images.ts";
import { installChart, makeEdge } from "#test/kube/install.ts";
import type { LabProcess } from "#test/lab/lab.ts";
import { type Load, type LoadKind, startLoad } from "#test/load/load.ts";
import { GAMES, Stage, SYSTEM } from "../../scripts/kube-stage.ts";
import type { Run } from "../piece.ts";

export const NODES = ["a", "b"] as const;
export type Node = (typeof NODES)[number];
/** nobody moves there */
const EDGE = "c";
const PREFIX = "hfkbench";
const AGENT_PORT = 9402;
const MIGRATIONS = `/apis/holdfast.dev/v1alpha1/namespaces/${GAMES}/migrations`;
/** a machine that does much else beside */
const MOVED_MS_MAX = 300_000;
/** of a piece that opens it */
export const OPEN_SECONDS = 100;

export interface Application {
  name: string;
  kind: LoadKind;
  program: string;
  protocol: string;
  mode: "forward" | "gateway";
  /** where clients come: in forward mode at node a, in gateway mode at {@link EDGE}, where gateways are */
  listen: number;
  /** clients in a drain */
  sessions: number;
}

export const CHAT: Application = {
  ...{ name: "chat", kind: "ws", program: "/app/chat.js", protocol: "websocket", sessions: 50 },
  ...{ mode: "forward", listen: 8080 },
};
/** of no drain */
export const GATED: Application = { ...CHAT, name: "gated", mode: "gateway", listen: 30_080 };
export const APPLICATIONS: readonly Application[] = [
  CHAT,
  {
    ...{ name: "echo", kind: "tcp", program: "/app/echo.js", protocol: "tcp", sessions: 25 },
    ...{ mode: "forward", listen: 8081 },
  },
  { ...CHAT, name: "chat-2", listen: 8082, sessions: 25 },
];

/** A pod that has moved. */
export interface Moved {
  /** when its Migration was asked for, or first seen (Unix time) */
  createdMs: number;
  migration: Migration;
  /** how long its clients waited, by the agents */
  holdMs: number;
}

/** For the pieces of one run. */
export class SharedLab {
  #opened: Promise<KubeLab> | null = null;

  /** @throws Error it cannot be made, or could not before */
  open(run: Pick<Run, "stage" | "say">): Promise<KubeLab> {
    this.#opened ??= this.#open(run);
    return this.#opened;
  }

  async #open({ stage, say }: Pick<Run, "stage" | "say">): Promise<KubeLab> {
    say("a cluster of three nodes");
    const images = [AGENT, APPS, INSIDE, REDIS];
    const cluster = await createCluster({
      nodes: [...NODES, EDGE],
      images,
      prefix: PREFIX,
      redis: false,
    });
    stage.onClose(() => cluster.close());
    const lab = new KubeLab(cluster);
    try {
      say("helm install, and three applications");
      await lab.install();
      return lab;
    } catch (error) {
      if (!stage.closed) process.stderr.write(`${await lab.stage.state().catch(String)}\n`);
      throw error;
    }
  }
}

export class KubeLab {
  readonly cluster: Cluster;
  readonly stage: Stage;
  readonly #firstSeenMs = new Map<string, number>();
  #watch: LabProcess | null = null;
  #made = 0;

  constructor(cluster: Cluster) {
    this.cluster = cluster;
    this.stage = new Stage(cluster);
  }

  /** Part of {@link SharedLab.open}. */
  async install(): Promise<void> {
    const { cluster } = this;
    const namespace = (name: string, labels: object): KubeObject => ({
      ...{ apiVersion: "v1", kind: "Namespace" },
      metadata: { name, labels },
    });
    await cluster.apply(
      namespace(SYSTEM, { "pod-security.kubernetes.io/enforce": "privileged" }),
      namespace(GAMES, { "holdfast.dev/inject": "enabled" }),
    );
    await installChart(cluster, SYSTEM, {
      ...(await makeEdge(cluster, EDGE)),
      // all parts of the controller work
      "gateway.enabled": "true",
      // what agents do in a move is read there
      "monitoring.enabled": "true",
      "monitoring.agentPort": String(AGENT_PORT),
    });
    this.#watchMigrations();
    await cluster.kubectl(["cordon", "b"]);
    await cluster.apply(...APPLICATIONS.map(deploymentOf));
    for (const { name } of APPLICATIONS) await this.stage.servingPod(name, "a");
    await cluster.kubectl(["uncordon", "b"]);
  }

  /** An application is there, on node a, until `use` is over. */
  async having<T>(application: Application, use: () => Promise<T>): Promise<T> {
    const { cluster, stage } = this;
    const { name, mode, listen } = application;
    const deployment = deploymentOf(application);
    const service = nodePortService(
      { name, namespace: GAMES, labels: { [GATEWAY_LABEL]: GATEWAY_ENABLED } },
      listen,
    );
    const there = mode === "gateway" ? [deployment, service] : [deployment];
    await cluster.kubectl(["cordon", "b"]);
    try {
      await cluster.apply(...there);
      await stage.servingPod(name, "a");
      await cluster.kubectl(["uncordon", "b"]);
      if (mode === "gateway") await cluster.untilOpen(cluster.lab.place(EDGE).address, listen);
      return await use();
    } finally {
      await cluster.kubectl(["uncordon", "b"]);
      const objects = [`deployment/${name}`, `service/${name}`];
      // with its pods
      const all = ["--cascade=foreground", "--ignore-not-found", "--namespace", GAMES];
      await cluster.kubectl(["delete", ...objects, ...all]);
    }
  }

  /** Clients of an application, outside of the cluster. */
  clientsOf({ kind, mode, listen }: Application, options: object): Promise<Load> {
    const { lab } = this.cluster;
    const { address } = lab.place(mode === "gateway" ? EDGE : "a");
    return startLoad(lab, kind, {
      ...{ target: { address, port: listen }, sessions: 1, drainMsMax: 30_000 },
      ...options,
    });
  }

  /** @throws Error it did not move */
  async migrate({ name }: Application, from: Node, to: Node): Promise<Moved> {
    const { metadata } = await this.stage.servingPod(name, from);
    this.#made += 1;
    const own = `bench-${this.#made}`;
    const createdMs = performance.timeOrigin + performance.now();
    await this.cluster.api("POST", MIGRATIONS, {
      ...{ apiVersion: "holdfast.dev/v1alpha1", kind: "Migration", metadata: { name: own } },
      spec: { pod: metadata.name, target: { node: to } },
    });
    const moved = await this.#moved(own, createdMs);
    await this.stage.servingPod(name, to);
    return moved;
  }

  /** Of all that have been seen since a moment, once each has ended. @throws Error one did not move */
  async migrationsSince(sinceMs: number): Promise<Moved[]> {
    if (this.#watch?.exited !== false)
      throw new Error(`Migrations are not watched any more: ${this.#watch?.stderr}`);
    const seen = [...this.#firstSeenMs].filter(([, atMs]) => atMs > sinceMs);
    const moved: Moved[] = [];
    for (const [name, createdMs] of seen) moved.push(await this.#moved(name, createdMs));
    return moved;
  }

  async #moved(name: string, createdMs: number): Promise<Moved> {
    let found: Migration | undefined;
    const isOver = async (): Promise<boolean> => {
      [found] = migrationsIn([await this.cluster.api("GET", `${MIGRATIONS}/${name}`)]);
      return isFinal(found?.status.phase);
    };
    await this.cluster.until(`Migration ${name} has ended`, isOver, MOVED_MS_MAX);
    return movedBy(found as unknown as Migration, createdMs);
  }

  /** When each is first seen: its creationTimestamp has whole seconds. */
  #watchMigrations(): void {
    const argv = ["kubectl", "get", "migrations", "--namespace", GAMES, "--watch", "--output"];
    this.#watch = this.cluster.spawn("watch", [...argv, 'jsonpath={.metadata.name}{"\\n"}']);
    this.#watch.child.stdout?.on("data", (text: Buffer) => {
      for (const name of String(text).split("\n").filter(Boolean))
        if (!this.#firstSeenMs.has(name))
          this.#firstSeenMs.set(name, performance.timeOrigin + performance.now());
    });
  }

  /** How long a node's agent was in each phase of moves, in sum. */
  async phases(node: Node): Promise<Map<string, number>> {
    const url = `http://${this.cluster.lab.place(node).address}:${AGENT_PORT}/metrics`;
    const { status, stdout, stderr } = await this.cluster.run(["curl", "-fsS", url]);
    if (status !== 0) throw new Error(`metrics of node ${node}'s agent: ${stderr}`);
    const lines = stdout.matchAll(/^holdfast_agent_phase_seconds_sum\{phase="(\w+)"\} (\S+)/gm);
    return new Map([...lines].map(([, phase = "", seconds]) => [phase, Number(seconds) * 1_000]));
  }
}

/** @throws Error it has not moved, or does not say how long clients waited: an agent that was started again does not know */
export function movedBy(migration: Migration, createdMs: number): Moved {
  const { spec, status } = migration;
  if (status.phase !== "Succeeded")
    throw new Error(`pod ${spec.pod} has not moved: ${status.reason}: ${status.message}`);
  const holdMs = status.move?.pauseMs;
  if (holdMs === undefined)
    throw new Error(`pod ${spec.pod} has moved, and its agent does not say how long clients waited`);
  return { createdMs, migration, holdMs };
}

function deploymentOf({ name, listen, program, protocol, mode }: Application): KubeObject {
  const labels = { app: name };
  const port = mode === "forward" ? `${listen}:${APP_PORT}` : APP_PORT;
  const annotations = { "holdfast.dev/ports": `${port}/${protocol}`, "holdfast.dev/mode": mode };
  // one that asks for nothing has next to nothing on a busy node (cpu.shares 2)
  const resources = { requests: { cpu: "200m", memory: "64Mi" } };
  return {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name, namespace: GAMES },
    spec: {
      replicas: 1,
      selector: { matchLabels: labels },
      template: {
        metadata: { labels, annotations },
        spec: { containers: [{ ...appContainer(["/usr/bin/node", program]), resources }] },
      },
    },
  };
}
