/** The chart in a cluster of this machine, with everything that it brings: controller, webhook, agents, and the store for trials. */
import { join } from "node:path";
import { projectRoot } from "../lab/lab.ts";
import type { Cluster } from "./cluster.ts";
import { REDIS } from "./images.ts";

const CHART = join(projectRoot, "charts/holdfast");
const INSTALL_MS_MAX = 240_000;
/** helm gives up first, and says why */
const SLACK_MS = 30_000;

/** What is not as in a cluster with a registry and a DNS. */
const VALUES: Record<string, string> = {
  registry: "localhost",
  imagePullPolicy: "Never",
  "redis.image": REDIS.name,
  "redis.clusterIP": "10.96.0.50",
};

/** the chart's own value */
const CRI = "/run/containerd/containerd.sock";

/** The label, and taint, of the node that all parts but agents are on: nodes that are drained, or switched off, are others. */
export const EDGE = "edge";
const PARTS = ["webhook", "controller", "gateway", "redis"];

/** A node for all parts of the chart but the agents. @returns values of the chart that put them there */
export async function makeEdge(cluster: Cluster, node: string): Promise<Record<string, string>> {
  await cluster.kubectl(["label", "node", node, `pool=${EDGE}`]);
  await cluster.kubectl(["taint", "node", node, `${EDGE}=:NoSchedule`]);
  const values = PARTS.flatMap((part) => [
    [`${part}.nodeSelector.pool`, EDGE],
    [`${part}.tolerations[0].operator`, "Exists"],
  ]);
  return Object.fromEntries(values);
}

/** It waits until all is ready. */
function helmInstall(namespace: string, values: Record<string, string>): string[] {
  const set = Object.entries({ ...VALUES, ...values }).flatMap(([key, value]) => [
    "--set",
    `${key}=${value}`,
  ]);
  const wait = ["--wait", "--timeout", `${INSTALL_MS_MAX / 1_000}s`];
  return ["helm", "install", "holdfast", CHART, "--namespace", namespace, ...set, ...wait];
}

/** @param values others than those, or more. @returns the command that did it. @throws Error with what helm says, and how the pods are */
export async function installChart(
  cluster: Cluster,
  namespace: string,
  values: Record<string, string> = {},
): Promise<{ command: string }> {
  const { cri } = cluster;
  const install = helmInstall(namespace, cri === CRI ? values : { "agent.cri": cri, ...values });
  await runHelm(cluster, namespace, install);
  return { command: install.join(" ").replace(`${projectRoot}/`, "") };
}

/** Values of what {@link installChart} has installed change. */
export async function upgradeChart(
  cluster: Cluster,
  namespace: string,
  values: Record<string, string>,
): Promise<void> {
  const set = Object.entries(values).flatMap(([key, value]) => ["--set", `${key}=${value}`]);
  const wait = ["--wait", "--timeout", `${INSTALL_MS_MAX / 1_000}s`];
  const upgrade = ["helm", "upgrade", "holdfast", CHART, "--namespace", namespace, "--reuse-values"];
  await runHelm(cluster, namespace, [...upgrade, ...set, ...wait]);
}

/** What {@link installChart} has installed goes again. */
export async function uninstallChart(cluster: Cluster, namespace: string): Promise<void> {
  await runHelm(cluster, namespace, ["helm", "uninstall", "holdfast", "--namespace", namespace, "--wait"]);
}

/** helm, whose caches and settings are the cluster's own. @throws Error with what it says, and how the namespace's pods are */
export async function runHelm(cluster: Cluster, namespace: string, command: string[]): Promise<void> {
  const home = join(cluster.lab.dir, "helm");
  const own = ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(
    (name) => `${name}=${home}`,
  );
  const argv = ["env", ...own, ...command];
  const { status, stderr } = await cluster.run(argv, { timeoutMs: INSTALL_MS_MAX + SLACK_MS });
  if (status === 0) return;
  throw new Error(`${command.slice(0, 2).join(" ")}: ${stderr}\n${await stateOf(cluster, namespace)}`);
}

/** Of what the chart has installed, for somebody who looks for the reason of a failure. */
export async function stateOf(cluster: Cluster, namespace: string): Promise<string> {
  const kubectl = async (...args: string[]): Promise<string> => {
    const { stdout, stderr } = await cluster.run(["kubectl", ...args]);
    return stdout || stderr;
  };
  const ours = ["-n", namespace, "logs", "--tail=20", "--prefix", "-l"];
  return [
    await kubectl("get", "pods,migrations", "-A", "-o", "wide"),
    (await kubectl("-n", namespace, "get", "events", "--sort-by=.lastTimestamp")).slice(-3_000),
    await kubectl(...ours, "app.kubernetes.io/name=holdfast"),
  ].join("\n");
}
