/** A cluster with the chart and two applications that keep their clients' state in memory: what `npm run demo:kube` shows. */
import { join } from "node:path";
import { API_VERSION, isFinal, type MigrationStatus, SERVING } from "#control/api/resources.ts";
import { APP_PORT, appContainer, nodePortService } from "../test/kube/applications.ts";
import { type Cluster, condition, type KubeObject } from "../test/kube/cluster.ts";
import { EDGE as EDGE_TAINT, installChart, makeEdge, stateOf } from "../test/kube/install.ts";
import { type LabProcess, projectRoot } from "../test/lab/lab.ts";
import type { LoadKind } from "../test/load/load.ts";

export const SYSTEM = "holdfast";
export const GAMES = "games";
const DRAIN_S_MAX = 420;
/** a machine that does much else beside */
const MOVED_MS_MAX = 300_000;

/** The node of gateways, where clients come, and of all parts of the chart but the agents. It stays. */
export const EDGE = "c";

export interface Application {
  name: string;
  owner: "Deployment" | "StatefulSet";
  kind: LoadKind;
  program: string;
  protocol: string;
  /** of its Service, at every node */
  nodePort: number;
}

/** Of one replica, each with a Service. */
export const APPLICATIONS: Application[] = [
  {
    ...{ name: "chat", owner: "Deployment", kind: "ws" },
    ...{ program: "/app/chat.js", protocol: "websocket", nodePort: 30_080 },
  },
  {
    ...{ name: "echo", owner: "StatefulSet", kind: "tcp" },
    ...{ program: "/app/echo.js", protocol: "tcp", nodePort: 30_081 },
  },
];

/** A pod that had an application before a drain or a command, and what came of it. */
export interface MovedPod {
  application: Application;
  /** null: none was made */
  migration: string | null;
  fromPod: string;
  fromNode: string;
  toPod: string;
  toNode: string;
  status: MigrationStatus;
}

export class Stage {
  readonly cluster: Cluster;
  /** what somebody would type, in order */
  readonly commands: string[] = [];

  constructor(cluster: Cluster) {
    this.cluster = cluster;
  }

  /** The chart, in a namespace that lets agents in. */
  async install(): Promise<void> {
    await this.kubectl("create", "namespace", SYSTEM);
    await this.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=privileged");
    const { command } = await installChart(this.cluster, SYSTEM, await makeEdge(this.cluster, EDGE));
    this.commands.push(command);
  }

  /** Both applications on `node`, and Services that lead clients to gateways. */
  async deploy(node: string): Promise<void> {
    await this.kubectl("create", "namespace", GAMES);
    await this.kubectl("label", "namespace", GAMES, "holdfast.dev/inject=enabled");
    const others = [...this.cluster.lab.nodes.keys()].filter((other) => other !== node);
    for (const other of others) await this.cluster.kubectl(["cordon", other]);
    await this.cluster.apply(
      ...APPLICATIONS.flatMap((one) => [
        ownerOf(one),
        nodePortService({ name: one.name, namespace: GAMES }, one.nodePort),
      ]),
    );
    const label = "holdfast.dev/gateway=enabled";
    for (const { name } of APPLICATIONS)
      await this.kubectl("label", "service", name, "--namespace", GAMES, label);
    for (const { name } of APPLICATIONS) await this.servingPod(name, node);
    for (const other of others) await this.cluster.kubectl(["uncordon", other]);
    const { address } = this.cluster.lab.place(EDGE);
    for (const { nodePort } of APPLICATIONS) await this.cluster.untilOpen(address, nodePort);
  }

  /** Resolves when the application has one pod, which is Ready and has it. @param node where it is to be */
  async servingPod(application: string, node?: string): Promise<KubeObject> {
    const path = `/api/v1/namespaces/${GAMES}/pods?labelSelector=app%3D${application}`;
    let pods: KubeObject[] = [];
    await this.#until(
      `one pod of ${application} is Ready${node === undefined ? "" : ` on ${node}`}`,
      async () => {
        pods = (await this.cluster.api("GET", path)).items as KubeObject[];
        const [pod] = pods;
        if (pods.length !== 1 || pod === undefined) return false;
        if (node !== undefined && pod.spec.nodeName !== node) return false;
        return condition(pod, "Ready") === "True" && condition(pod, SERVING) === "True";
      },
    );
    return pods[0] as KubeObject;
  }

  /** Those whose pods are there. */
  async applicationsOn(node: string): Promise<Application[]> {
    const { items } = await this.cluster.api("GET", `/api/v1/namespaces/${GAMES}/pods`);
    const there = (items as KubeObject[]).filter(({ spec }) => spec.nodeName === node);
    const names = there.map(({ metadata }) => (metadata.labels as { app?: string } | undefined)?.app);
    return APPLICATIONS.filter(({ name }) => names.includes(name));
  }

  /** Begins to drain a node of all its pods but the agents. */
  drain(node: string): LabProcess {
    const argv = ["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data"];
    this.commands.push(argv.join(" "));
    return this.cluster.spawn("drain", [...argv, `--timeout=${DRAIN_S_MAX}s`]);
  }

  /** `holdfast migrate pod/POD --to NODE`, with what it prints. */
  migrate(pod: string, node: string): LabProcess {
    const args = ["migrate", `pod/${pod}`, "--namespace", GAMES, "--to", node];
    this.commands.push(`npx holdfast ${args.join(" ")}`);
    return this.cluster.spawn("migrate", [join(projectRoot, "bin/holdfast"), ...args]);
  }

  async kubectl(...args: string[]): Promise<string> {
    this.commands.push(`kubectl ${args.join(" ")}`);
    return await this.cluster.kubectl(args);
  }

  /** The list of Migrations, as kubectl prints it. */
  async migrations(): Promise<string[]> {
    return (await this.kubectl("get", "migrations", "--namespace", GAMES)).trimEnd().split("\n");
  }

  /** How a process that moves pods is going; resolves with its exit status. @param onLine each line that it prints */
  async ended(started: LabProcess, onLine: (line: string) => void): Promise<number | null> {
    const shown = { stdout: 0, stderr: 0 };
    const show = (): void => {
      for (const stream of ["stdout", "stderr"] as const) {
        const lines = started[stream].split("\n").slice(0, -1);
        for (const line of lines.slice(shown[stream])) onLine(line);
        shown[stream] = lines.length;
      }
    };
    await this.#until("it is over", async () => {
      show();
      return started.exited;
    });
    show();
    return started.child.exitCode;
  }

  /** What came of the last Migration of each pod. */
  async movesOf(sources: Map<Application, KubeObject>): Promise<MovedPod[]> {
    const moved: MovedPod[] = [];
    for (const [application, source] of sources) {
      // a command that is over has made it, or will not
      let found = await this.#migrationOf(source);
      if (found !== undefined)
        await this.#until(`${application.name} has moved`, async () => {
          found = await this.#migrationOf(source);
          return found === undefined || isFinal(found.status?.phase);
        });
      const { metadata, status = {} } = found ?? ({} as Partial<KubeObject>);
      moved.push({
        application,
        migration: metadata?.name ?? null,
        fromPod: source.metadata.name,
        fromNode: source.spec.nodeName,
        toPod: status.target?.pod ?? "",
        toNode: status.target?.node ?? "",
        status,
      });
    }
    return moved;
  }

  async #migrationOf({ metadata: { uid } }: KubeObject): Promise<KubeObject | undefined> {
    const { items } = await this.cluster.api("GET", `/apis/${API_VERSION}/namespaces/${GAMES}/migrations`);
    return (items as KubeObject[]).findLast(({ spec }) => spec.podUid === uid);
  }

  /** For somebody who looks for the reason of a failure. */
  state(): Promise<string> {
    return stateOf(this.cluster, SYSTEM);
  }

  #until(what: string, holds: () => Promise<unknown>): Promise<void> {
    return this.cluster.until(what, holds, MOVED_MS_MAX);
  }
}

function ownerOf({ name, owner, program, protocol }: Application): KubeObject {
  const labels = { app: name };
  const annotations = { "holdfast.dev/ports": `${APP_PORT}/${protocol}` };
  return {
    apiVersion: "apps/v1",
    kind: owner,
    metadata: { name, namespace: GAMES },
    spec: {
      replicas: 1,
      selector: { matchLabels: labels },
      ...(owner === "StatefulSet" ? { serviceName: name } : {}),
      template: {
        metadata: { labels, annotations },
        spec: {
          containers: [appContainer(["/usr/bin/node", program])],
          ...(owner === "StatefulSet" ? WAITS_AT_THE_EDGE : {}),
        },
      },
    },
  };
}

/** A third node, where its application is while its pod is made anew. */
const WAITS_AT_THE_EDGE = {
  tolerations: [{ key: EDGE_TAINT, operator: "Exists" }],
  affinity: {
    nodeAffinity: {
      preferredDuringSchedulingIgnoredDuringExecution: [
        {
          weight: 100,
          preference: { matchFields: [{ key: "metadata.name", operator: "In", values: [EDGE] }] },
        },
      ],
    },
  },
};
