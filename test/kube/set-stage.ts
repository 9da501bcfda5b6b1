/**
 * A cluster of four nodes with agents, and a controller and a webhook beside the control plane that injects, sees what StatefulSets make and is asked about
 * evictions: for tests of StatefulSets' pods.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { API_VERSION, isFinal } from "#control/api/resources.ts";
import { type LabProcess, projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { logsOf, startAgents } from "./agents.ts";
import { APP_PORT, appContainer, INJECT } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";
import { definitions } from "./stage.ts";

export const NAMESPACE = "games";
const HOLDFAST = "holdfast";
const LISTEN = 8080;
/** of each pod */
export const SESSIONS = 20;
/** answers that each client of a load has had before and after a move */
const ANSWERS = 5;
export const MOVED_MS_MAX = 180_000;
export const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;
export const MIGRATIONS = `/apis/${API_VERSION}/namespaces/${NAMESPACE}/migrations`;
const FINE = { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] };
const GATEWAY = "g";

/** Its clients come by gateways. @param volume at /data */
export function statefulSet(
  name: string,
  { replicas = 1, volume = { emptyDir: {} } }: { replicas?: number; volume?: object } = {},
): KubeObject {
  const labels = { app: name };
  const annotations = {
    "holdfast.dev/ports": `${LISTEN}:${APP_PORT}/websocket`,
    "holdfast.dev/mode": "gateway",
  };
  return {
    apiVersion: "apps/v1",
    kind: "StatefulSet",
    metadata: { name, namespace: NAMESPACE },
    spec: {
      replicas,
      serviceName: name,
      selector: { matchLabels: labels },
      template: {
        metadata: { labels, annotations },
        spec: {
          containers: [
            {
              ...appContainer(["/usr/bin/node", "/app/chat.js"]),
              volumeMounts: [{ name: "data", mountPath: "/data" }],
            },
          ],
          volumes: [{ name: "data", ...volume }],
        },
      },
    },
  };
}

export class SetStage {
  readonly cluster: Cluster;
  agents = new Map<string, KubeObject>();
  controller!: LabProcess;
  readonly #served: string[];

  private constructor(cluster: Cluster, served: string[]) {
    this.cluster = cluster;
    this.#served = served;
  }

  /** @param served pods whose clients come by the gateway */
  static async build(served: string[]): Promise<SetStage> {
    const nodes = ["a", "b", "c", "d"];
    const cluster = await createCluster({ nodes, images: [AGENT, APPS, INSIDE], gateways: [GATEWAY] });
    const stage = new SetStage(cluster, served);
    try {
      await cluster.apply(...definitions());
      await cluster.kubectl(["create", "namespace", NAMESPACE]);
      await cluster.kubectl(["label", "namespace", NAMESPACE, "holdfast.dev/inject=enabled"]);
      stage.agents = await startAgents(cluster);
      await stage.#startWebhook();
      stage.#startController();
      await stage.#startGateway();
      return stage;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  close(): Promise<void> {
    return this.cluster.close();
  }

  #startController(): void {
    const { cluster } = this;
    const program = join(projectRoot, "bin/holdfast");
    const argv = ["controller", "--namespace", HOLDFAST, "--kubeconfig", cluster.kubeconfig];
    this.controller = cluster.spawn("controller", [program, ...argv]);
  }

  /** Injects, sees what StatefulSets make, and is asked about evictions: as the chart has it, but for where it is. */
  async #startWebhook(): Promise<void> {
    const { cluster } = this;
    const { certificate, key, authority } = cluster.serverCertificate;
    const listen = `${cluster.lab.switch.address}:9443`;
    const file = join(cluster.lab.dir, "webhook.yaml");
    const { image, imagePullPolicy } = INJECT;
    const proxy = { ...INJECT.proxy, default: "auto" };
    writeFileSync(file, stringify({ listen, certificate, key, image, imagePullPolicy, proxy }));
    const webhook = cluster.spawn("webhook", [
      ...[join(projectRoot, "bin/holdfast"), "webhook", "--config", file],
    ]);
    await webhook.waitFor(/asked from now on/, 60_000);
    const caBundle = readFileSync(authority).toString("base64");
    const configuration = (kind: string, path: string, resource: string, more: object): KubeObject => ({
      apiVersion: "admissionregistration.k8s.io/v1",
      kind,
      metadata: { name: `holdfast-${path}` },
      webhooks: [
        {
          name: `${path}.holdfast.dev`,
          admissionReviewVersions: ["v1"],
          sideEffects: "None",
          failurePolicy: "Ignore",
          timeoutSeconds: 5,
          clientConfig: { url: `https://${listen}/${path}`, caBundle },
          rules: [{ apiGroups: [""], apiVersions: ["v1"], operations: ["CREATE"], resources: [resource] }],
          ...more,
        },
      ],
    });
    const ofSet =
      'has(object.metadata.ownerReferences) && object.metadata.ownerReferences.exists(one, one.kind == "StatefulSet")';
    await cluster.apply(
      configuration("MutatingWebhookConfiguration", "inject", "pods", {
        namespaceSelector: { matchLabels: { "holdfast.dev/inject": "enabled" } },
        reinvocationPolicy: "IfNeeded",
      }),
      configuration("MutatingWebhookConfiguration", "ordinal", "pods", {
        matchConditions: [{ name: "of-a-stateful-set", expression: ofSet }],
      }),
      configuration("ValidatingWebhookConfiguration", "evict", "pods/eviction", {
        sideEffects: "NoneOnDryRun",
      }),
    );
  }

  async failed(what: unknown): Promise<never> {
    const { cluster, controller, agents } = this;
    const objects = await cluster
      .kubectl(["-n", NAMESPACE, "get", "pods,migrations", "-o", "wide"])
      .catch(String);
    const logs = await logsOf(cluster, agents.values()).catch(String);
    assert.fail(`${String(what)}\n${objects}\n${controller.stderr.slice(-4_000)}\n${logs}`);
  }

  async scale(name: string, replicas: number): Promise<void> {
    await this.cluster.kubectl(["-n", NAMESPACE, "scale", "statefulset", name, `--replicas=${replicas}`]);
  }

  podOf(name: string): Promise<KubeObject | null> {
    return this.cluster.find(`${PODS}/${name}`);
  }

  /** The pod of that name is Ready there, and has its application. */
  async isServing(name: string, node?: string): Promise<KubeObject> {
    let pod: KubeObject | null = null;
    const holds = async (): Promise<boolean> => {
      pod = await this.podOf(name);
      return (
        pod !== null &&
        (node === undefined || pod.spec.nodeName === node) &&
        ["Ready", "holdfast.dev/serving"].every((type) => condition(pod as KubeObject, type) === "True")
      );
    };
    await this.cluster
      .until(`pod ${name} serves on ${node ?? "a node"}`, holds, MOVED_MS_MAX)
      .catch((error: unknown) => this.failed(error));
    return pod as unknown as KubeObject;
  }

  async migrate(name: string, spec: object): Promise<void> {
    const metadata = { name, namespace: NAMESPACE };
    await this.cluster.apply({ apiVersion: API_VERSION, kind: "Migration", metadata, spec });
  }

  async until(name: string, what: string, holds: (status: KubeObject) => unknown): Promise<KubeObject> {
    let status: KubeObject = {} as KubeObject;
    const look = async (): Promise<unknown> => {
      const found = await this.cluster.find(`${MIGRATIONS}/${name}`);
      status = found?.status ?? {};
      return holds(status);
    };
    await this.cluster
      .until(`Migration ${name} ${what}`, look, MOVED_MS_MAX)
      .catch((error: unknown) => this.failed(error));
    return status;
  }

  ended(name: string): Promise<KubeObject> {
    return this.until(name, "has ended", ({ phase }) => isFinal(phase));
  }

  async answered(load: Load): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await this.cluster
      .until("clients are answered", async () => load.messages >= wanted)
      .catch((error: unknown) => this.failed(error));
  }

  /** Since the last mark. */
  async areFine(load: Load): Promise<void> {
    await this.answered(load);
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    assert.deepEqual({ lost, repeated, corrupt, resets, alive, problems }, FINE);
  }

  /** Clients of one of the pods that the gateway leads to. */
  startClients(pod: string): Promise<Load> {
    const { lab } = this.cluster;
    const target = { address: lab.place(GATEWAY).address, port: LISTEN + this.#served.indexOf(pod) };
    return startLoad(lab, "ws", { target, sessions: SESSIONS, intervalMs: 40, restMs: 200 });
  }

  /** Each pod has a port of it. */
  async #startGateway(): Promise<void> {
    const { lab } = this.cluster;
    const { address } = lab.place(GATEWAY);
    const listen = this.#served.map((pod, index) => ({
      address: `${address}:${LISTEN + index}`,
      workload: `${NAMESPACE}.${pod}`,
      port: LISTEN,
    }));
    await lab.startGateway(GATEWAY, { listen });
  }
}
