/** Agents as a DaemonSet, the only privileged part of Holdfast in a cluster. */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { stringify } from "yaml";
import { type StatusAnswer, statusSchema } from "#control/api/admin.ts";
import { AdminClient } from "#control/cli/admin-client.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Cluster, KubeObject } from "./cluster.ts";
import { AGENT } from "./images.ts";

const NAMESPACE = "holdfast";
const NAME = "holdfast-agent";
const CONFIG = "/etc/holdfast";
const STATE_DIR = "/var/lib/holdfast";
const FAULTS = `${STATE_DIR}/faults`;
const CGROUPS = "/sys/fs/cgroup";
const LOG_LINES = 20;
const STARTED_MS_MAX = 120_000;

/** Pods of the agents, by node; resolves when each answers. Their workloads are those of injected pods. */
export async function startAgents(cluster: Cluster): Promise<Map<string, KubeObject>> {
  const { lab } = cluster;
  const config = {
    store: lab.redis.url,
    cri: cluster.cri,
    key: `file:${CONFIG}/key/key`,
    stateDir: STATE_DIR,
    pods: true,
    agents: `app=${NAME}`,
    workloads: [],
  };
  const metadata = (name: string): KubeObject["metadata"] => ({ name, namespace: NAMESPACE });
  await cluster.apply(
    { apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE, labels: PRIVILEGED } },
    {
      apiVersion: "v1",
      kind: "ConfigMap",
      metadata: metadata(NAME),
      data: { "agent.yaml": stringify(config) },
    },
    {
      apiVersion: "v1",
      kind: "Secret",
      metadata: metadata(NAME),
      data: { key: readFileSync(join(lab.dir, "key")).toString("base64") },
    },
    ...ACCESS,
    { apiVersion: "apps/v1", kind: "DaemonSet", metadata: metadata(NAME), spec: spec(dirname(cluster.cri)) },
  );
  return agentsOf(cluster);
}

/** One is ended in order and made anew, as with a rollout. */
export async function replaceAgent(cluster: Cluster, agent: KubeObject | undefined): Promise<void> {
  if (agent === undefined) throw new Error("no agent on that node");
  await cluster.kubectl(["-n", NAMESPACE, "delete", "pod", agent.metadata.name]);
}

/** When each answers. */
export async function agentsOf(cluster: Cluster): Promise<Map<string, KubeObject>> {
  let pods: KubeObject[] = [];
  await cluster.until(
    "every agent answers",
    async () => {
      const found = await cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/pods`);
      pods = found.items as KubeObject[];
      return (
        pods.length === cluster.lab.nodes.size &&
        pods.every(({ status }) => status.containerStatuses?.[0].ready)
      );
    },
    STARTED_MS_MAX,
  );
  return new Map(pods.map((pod) => [pod.spec.nodeName as string, pod]));
}

/** Runs a program beside an agent; what it prints. */
export function inAgent(cluster: Cluster, agent: KubeObject | undefined, program: string[]): Promise<string> {
  if (agent === undefined) throw new Error("no agent on that node");
  return cluster.kubectl(["-n", NAMESPACE, "exec", agent.metadata.name, "--", ...program]);
}

/** Its next move goes wrong there, see control/migration/faults.ts. */
export async function injectFault(cluster: Cluster, agent: KubeObject, fault: string): Promise<void> {
  await inAgent(cluster, agent, ["/bin/sh", "-c", `printf %s '${fault}' >${FAULTS}`]);
}

/** At that point of a move an agent does nothing for three seconds. Its image has no sleep(1). */
export function pauseAt(point: string): string {
  return `exec@${point}=/holdfast/node_modules/node/bin/node -e "setTimeout(Object, 3000)"`;
}

/** Resolves when the one fault that was asked for has begun. */
export function faultBegan(cluster: Cluster, agent: KubeObject): Promise<void> {
  const look = ["/bin/sh", "-c", `[ -s ${FAULTS} ] && echo waits || :`];
  return cluster.until("the fault begins", async () => (await inAgent(cluster, agent, look)) === "");
}

/** Runs `holdfast ARGS` beside a node's agent. */
export function holdfast(cluster: Cluster, agent: KubeObject | undefined, args: string[]) {
  if (agent === undefined) throw new Error("no agent on that node");
  const program = ["/holdfast/bin/holdfast", ...args, "--agent", `${STATE_DIR}/agent.sock`];
  return cluster.run(["kubectl", "-n", NAMESPACE, "exec", agent.metadata.name, "--", ...program]);
}

/** What a node's agent shows of its workloads, asked as its command line asks, without a process for each time; null: it does not answer. */
export async function askStatus(cluster: Cluster, node: string): Promise<StatusAnswer | null> {
  const path = cluster.pathOn(node, `${STATE_DIR}/agent.sock`);
  const client = new AdminClient({ type: "socket", path });
  try {
    return await client.ask("GET", "/v1/status", statusSchema);
  } catch (error) {
    if (error instanceof HoldfastError && error.code === "AGENT_UNREACHABLE") return null;
    throw error;
  } finally {
    await client.close();
  }
}

/** The last lines that agents have logged, for a test that fails. */
export async function logsOf(cluster: Cluster, agents: Iterable<KubeObject>): Promise<string> {
  const logs: string[] = [];
  for (const { metadata } of agents)
    logs.push(await cluster.kubectl(["-n", NAMESPACE, "logs", metadata.name, `--tail=${LOG_LINES}`]));
  return logs.join("\n");
}

/** What an agent may: see the pods of its node, of which it takes those that were injected, and carry out Migrations. */
const ACCESS: KubeObject[] = [
  { apiVersion: "v1", kind: "ServiceAccount", metadata: { name: NAME, namespace: NAMESPACE } },
  {
    apiVersion: "rbac.authorization.k8s.io/v1",
    kind: "ClusterRole",
    metadata: { name: NAME },
    rules: [
      { apiGroups: [""], resources: ["pods"], verbs: ["list", "watch"] },
      { apiGroups: [""], resources: ["pods/status"], verbs: ["patch"] },
      { apiGroups: ["holdfast.dev"], resources: ["migrations"], verbs: ["get", "list", "watch"] },
      { apiGroups: ["holdfast.dev"], resources: ["migrations/status"], verbs: ["patch"] },
    ],
  },
  {
    apiVersion: "rbac.authorization.k8s.io/v1",
    kind: "ClusterRoleBinding",
    metadata: { name: NAME },
    roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: NAME },
    subjects: [{ kind: "ServiceAccount", name: NAME, namespace: NAMESPACE }],
  },
];

const PRIVILEGED = { "pod-security.kubernetes.io/enforce": "privileged" };

/** @param runtime folder of the container runtime's socket */
function spec(runtime: string): unknown {
  const labels = { app: NAME };
  const mount = (name: string, mountPath: string) => ({ name, mountPath });
  const host = (name: string, path: string, type = "Directory") => ({ name, hostPath: { path, type } });
  return {
    selector: { matchLabels: labels },
    template: {
      metadata: { labels },
      spec: {
        // it looks at, freezes and restores processes of pods, and is reached by other agents at the node's address
        hostPID: true,
        hostNetwork: true,
        serviceAccountName: NAME,
        terminationGracePeriodSeconds: 5,
        containers: [
          {
            name: "agent",
            image: AGENT.name,
            imagePullPolicy: "Never",
            command: ["/holdfast/bin/holdfast", "agent", "--config", `${CONFIG}/agent.yaml`],
            env: [
              { name: "HOLDFAST_NODE", valueFrom: { fieldRef: { fieldPath: "spec.nodeName" } } },
              { name: "HOLDFAST_ADDRESS", valueFrom: { fieldRef: { fieldPath: "status.hostIP" } } },
              { name: "HOLDFAST_FAULT", value: `file:${FAULTS}` },
            ],
            securityContext: { privileged: true },
            // a pod that asks for nothing has next to nothing on a busy node (cpu.shares 2)
            resources: { requests: { cpu: "100m", memory: "128Mi" } },
            startupProbe: {
              exec: { command: ["/bin/sh", "-c", `test -S ${STATE_DIR}/agent.sock`] },
              periodSeconds: 1,
              failureThreshold: 120,
            },
            volumeMounts: [
              mount("config", CONFIG),
              mount("key", `${CONFIG}/key`),
              // instances have a tmpfs there, which the next agent's container is to have too
              { ...mount("state", STATE_DIR), mountPropagation: "Bidirectional" },
              // its socket, in a folder: the container runtime makes it anew
              mount("runtime", runtime),
              // of the node: restored processes join their container's groups
              mount("cgroups", CGROUPS),
            ],
          },
        ],
        volumes: [
          { name: "config", configMap: { name: NAME } },
          { name: "key", secret: { secretName: NAME, defaultMode: 0o400 } },
          host("state", STATE_DIR, "DirectoryOrCreate"),
          host("runtime", runtime),
          host("cgroups", CGROUPS),
        ],
      },
    },
  };
}
