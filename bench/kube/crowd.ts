/** Pods that nobody runs, so that a controller has many to watch: kwok says of them what a kubelet would. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Cluster, KubeObject } from "#test/kube/cluster.ts";
import { findKwok } from "#test/kube/kube-tools.ts";

const NAMESPACE = "crowd";
const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;
const PODS_PER_NODE = 100;
const GROUPS = 50;
const AT_A_TIME = 8;
const READY_MS_MAX = 900_000;
const LOOK_MS = 1_000;
/** as kwok knows what is its own */
const FAKE = { "kwok.x-k8s.io/node": "fake" };

export class Crowd {
  readonly #cluster: Cluster;
  readonly #nodes: readonly string[];
  #made = 0;

  private constructor(cluster: Cluster, nodes: readonly string[]) {
    this.#cluster = cluster;
    this.#nodes = nodes;
  }

  /** kwok, and nodes for so many pods. */
  static async start(cluster: Cluster, pods: number): Promise<Crowd> {
    const { program, stages } = findKwok();
    cluster.spawn("kwok", [
      ...[program, "--kubeconfig", cluster.kubeconfig, "--config", stages],
      ...["--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake"],
      ...["--node-lease-duration-seconds=40", "--v=4"],
    ]);
    const names = Array.from({ length: Math.ceil(pods / PODS_PER_NODE) }, (_, index) => `nowhere-${index}`);
    const room = { cpu: "64", memory: "256Gi", pods: "1000" };
    await cluster.apply(
      { apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE } },
      ...names.map((name) => ({
        ...{ apiVersion: "v1", kind: "Node", metadata: { name, annotations: FAKE } },
        spec: { taints: [{ key: "kwok", value: "fake", effect: "NoSchedule" }] },
        status: { capacity: room, allocatable: room },
      })),
    );
    await cluster.until("there is a default ServiceAccount", () =>
      cluster.find(`/api/v1/namespaces/${NAMESPACE}/serviceaccounts/default`),
    );
    return new Crowd(cluster, names);
  }

  /** So many more, each injected and of the size of a real one; resolves when all that there are are Ready. */
  async add(pods: number): Promise<void> {
    const last = this.#made + pods;
    const make = async (): Promise<void> => {
      while (this.#made < last) {
        const index = this.#made++;
        const node = this.#nodes[index % this.#nodes.length] ?? "";
        await this.#cluster.api("POST", PODS, podOf(index, node));
      }
    };
    await Promise.all(Array.from({ length: AT_A_TIME }, make));
    // kwok makes them Running and Ready in one
    await this.#untilNone("all pods run", { fieldSelector: "status.phase!=Running" });
  }

  /** Those of some of the {@link GROUPS}. @returns how many there were */
  async remove(groups: number): Promise<number> {
    const names = Array.from({ length: groups }, (_, group) => `app-${group}`);
    const selector = { labelSelector: `app in (${names.join(",")})` };
    const { items } = await this.#cluster.api("GET", `${PODS}?${new URLSearchParams(selector)}`);
    await this.#cluster.api("DELETE", `${PODS}?${new URLSearchParams(selector)}`);
    await this.#untilNone("they have gone", selector);
    return items.length;
  }

  async #untilNone(what: string, selector: Record<string, string>): Promise<void> {
    const path = `${PODS}?${new URLSearchParams({ ...selector, limit: "1" })}`;
    const isSo = async (): Promise<boolean> => {
      await sleep(LOOK_MS);
      return (await this.#cluster.api("GET", path)).items.length === 0;
    };
    await this.#cluster.until(what, isSo, READY_MS_MAX);
  }
}

function podOf(index: number, nodeName: string): KubeObject {
  const env = Array.from({ length: 20 }, (_, one) => ({
    name: `VARIABLE_${one}`,
    value: `value ${one} of pod ${index}`.repeat(3),
  }));
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: `pod-${index}`,
      labels: { app: `app-${index % GROUPS}`, "pod-template-hash": "6d5f7c9b8" },
      annotations: {
        "holdfast.dev/injected": "1",
        "holdfast.dev/container": "app",
        "holdfast.dev/ports": "80:8080/http",
        "holdfast.dev/command": '["/usr/bin/node","/app/server.js"]',
      },
    },
    spec: {
      nodeName,
      tolerations: [{ operator: "Exists" }],
      automountServiceAccountToken: false,
      containers: ["app", "exporter"].map((name) => ({
        ...{ name, image: "registry.example/team/app:1.2.3", env },
        ports: [{ name: "http", containerPort: 8080 }],
      })),
    },
  };
}
