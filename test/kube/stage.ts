/**
 * A cluster with agents, a controller that may what the chart lets it, and a Deployment of one pod whose clients come by a gateway: for tests
 * of Migrations.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parse, parseAllDocuments, stringify } from "yaml";
import { customResourceDefinitions } from "#control/api/crd.ts";
import { inject } from "#control/kubernetes/inject/inject.ts";
import { crdFileOf } from "../../scripts/crds.ts";
import { type LabProcess, projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { logsOf, startAgents } from "./agents.ts";
import { APP_PORT, appContainer, INJECT } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";

export const NAMESPACE = "default";
export const HOLDFAST = "holdfast";
const ACCOUNT = "holdfast-controller";
/** with a daemon, which is orphaned at once */
const COMMAND = ["/bin/sh", "-c", "(/bin/sleep infinity &); exec /usr/bin/node /app/chat.js"];
const LISTEN = 8080;
export const SESSIONS = 20;
/** holds the clients' connections: a pod that has moved is deleted */
const GATEWAY = "g";
const WORKLOAD = `${NAMESPACE}.chat`;
/** answers that clients have had before and after a move, each */
const ANSWERS = 5;
const WEBHOOK_PORT = 9443;
const SERVING = "holdfast.dev/serving";

export function migration(name: string, spec: object): KubeObject {
  return { apiVersion: "holdfast.dev/v1alpha1", kind: "Migration", metadata: { name }, spec };
}

/** Of Migrations and policies, as the chart has them. */
export function definitions(): KubeObject[] {
  return customResourceDefinitions().map(
    (definition) => parse(readFileSync(crdFileOf(definition), "utf8")) as KubeObject,
  );
}

/** Its pods are as the webhook makes them. */
function deployment(evictionRequests: boolean): KubeObject {
  const labels = { app: "chat" };
  const container = { ...appContainer(COMMAND), volumeMounts: [{ name: "data", mountPath: "/data" }] };
  const outcome = inject(
    {
      metadata: {
        labels,
        annotations: {
          "holdfast.dev/ports": `${LISTEN}:${APP_PORT}`,
          "holdfast.dev/workload": WORKLOAD,
          "holdfast.dev/mode": "gateway",
        },
      },
      spec: {
        terminationGracePeriodSeconds: 0,
        containers: [container],
        volumes: [{ name: "data", emptyDir: {} }],
        readinessGates: [{ conditionType: SERVING }],
      },
    },
    { ...INJECT, evictionRequests },
  );
  assert.ok(outcome.kind === "injected");
  return {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "chat" },
    spec: { replicas: 1, selector: { matchLabels: labels }, template: outcome.pod },
  };
}

export class Stage {
  readonly cluster: Cluster;
  agents = new Map<string, KubeObject>();
  controller!: LabProcess;
  readonly #evictionRequests: boolean;
  #kubeconfig = "";
  #load: Load | null = null;

  private constructor(cluster: Cluster, evictionRequests: boolean) {
    this.cluster = cluster;
    this.#evictionRequests = evictionRequests;
  }

  /** Its pod is on a; b is cordoned. @param evictionRequests are served, and answered by the controller */
  static async build({ evictionRequests = false } = {}): Promise<Stage> {
    const images = [AGENT, APPS, INSIDE];
    const cluster = await createCluster({ images, gateways: [GATEWAY], evictionRequests });
    const stage = new Stage(cluster, evictionRequests);
    try {
      await cluster.apply(...definitions());
      await cluster.kubectl(["cordon", "b"]);
      await cluster.apply(deployment(evictionRequests));
      stage.agents = await startAgents(cluster);
      stage.#kubeconfig = await stage.#asController();
      stage.startController();
      return stage;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  close(): Promise<void> {
    return this.cluster.close();
  }

  /** A kubeconfig of the ServiceAccount that the chart makes, which may what the chart lets it, and nothing else. */
  async #asController(): Promise<string> {
    const { cluster } = this;
    const values = this.#evictionRequests ? "with-everything-else" : "default";
    const golden = readFileSync(join(import.meta.dirname, `chart/${values}.yaml`), "utf8");
    const rights = /^(ServiceAccount|(Cluster)?Role(Binding)?)$/;
    const objects = parseAllDocuments(golden)
      .map((document) => document.toJS() as KubeObject | null)
      .filter((object) => object !== null)
      .filter(({ kind, metadata }) => metadata.name === ACCOUNT && rights.test(kind ?? ""));
    assert.equal(objects.length, 5);
    await cluster.apply(...objects);
    const token = await cluster.kubectl(["-n", HOLDFAST, "create", "token", ACCOUNT, "--duration=1h"]);
    const admin = parse(readFileSync(cluster.kubeconfig, "utf8")) as { users: { user: object }[] };
    const own = {
      ...admin,
      users: admin.users.map((user) => ({ ...user, user: { token: token.trim() } })),
    };
    const file = join(cluster.lab.dir, "controller.kubeconfig");
    writeFileSync(file, stringify(own), { mode: 0o600 });
    return file;
  }

  startController(): void {
    const program = join(projectRoot, "bin/holdfast");
    const argv = [program, "controller", "--namespace", HOLDFAST, "--kubeconfig", this.#kubeconfig];
    if (this.#evictionRequests) argv.push("--eviction-requests");
    this.controller = this.cluster.spawn("controller", argv);
  }

  async startClients(): Promise<Load> {
    const { lab } = this.cluster;
    const { address } = lab.place(GATEWAY);
    const target = { address, port: LISTEN };
    const listen = [{ address: `${address}:${LISTEN}`, workload: WORKLOAD, port: LISTEN }];
    await lab.startGateway(GATEWAY, { listen });
    this.#load = await startLoad(lab, "ws", { target, sessions: SESSIONS, intervalMs: 20, restMs: 200 });
    return this.#load;
  }

  async failedWithLogs(what: unknown): Promise<never> {
    const { cluster, controller, agents } = this;
    const pods = await cluster.kubectl(["get", "pods,migrations", "-o", "wide"]).catch(String);
    const logs = await logsOf(cluster, agents.values()).catch(String);
    assert.fail(`${String(what)}\n${pods}\n${controller.stderr.slice(-4_000)}\n${logs}`);
  }

  async pods(): Promise<KubeObject[]> {
    return (await this.cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/pods`)).items as KubeObject[];
  }

  /** @param node null: whichever it is */
  async theOnlyPod(node: string | null = null): Promise<KubeObject> {
    let found: KubeObject[] = [];
    await this.cluster
      .until(`one pod is there, Ready on ${node ?? "a node"}`, async () => {
        found = await this.pods();
        const [first] = found;
        const isThere = node === null || first?.spec.nodeName === node;
        return found.length === 1 && first !== undefined && isThere && condition(first, "Ready") === "True";
      })
      .catch((error: unknown) => this.failedWithLogs(error));
    return found[0] as KubeObject;
  }

  async ended(name: string): Promise<KubeObject> {
    const path = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations/${name}`;
    let found: KubeObject | null = null;
    await this.cluster
      .until(`Migration ${name} has ended`, async () => {
        found = await this.cluster.find(path);
        return found !== null && condition(found, "Finished") === "True" && !found.metadata.finalizers;
      })
      .catch((error: unknown) => this.failedWithLogs(error));
    return found as unknown as KubeObject;
  }

  /** Every client has had some more answers. */
  async answered(): Promise<void> {
    const wanted = this.load.messages + ANSWERS * SESSIONS;
    await this.cluster
      .until("clients are answered", async () => this.load.messages >= wanted)
      .catch((error: unknown) => this.failedWithLogs(error));
  }

  /** @throws AssertionError what clients have lost since the last mark */
  async nobodyIsLost(): Promise<void> {
    const { lost, repeated, corrupt, resets, alive, problems } = await this.load.report();
    assert.deepEqual(
      { lost, repeated, corrupt, resets, alive, problems },
      { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] },
    );
  }

  get load(): Load {
    assert.ok(this.#load !== null, "there are no clients yet");
    return this.#load;
  }

  /**
   * Webhooks beside the control plane, asked about evictions only, one after the other: one that denies is enough.
   * @param count of processes, each with a name of its own
   */
  async startWebhooks(count = 1): Promise<LabProcess[]> {
    const { cluster } = this;
    const { address } = cluster.lab.switch;
    const { authority } = cluster.serverCertificate;
    const ports = Array.from({ length: count }, (_, index) => WEBHOOK_PORT + index);
    const started = await Promise.all(ports.map((port) => this.#startWebhook(port)));
    await cluster.apply({
      apiVersion: "admissionregistration.k8s.io/v1",
      kind: "ValidatingWebhookConfiguration",
      metadata: { name: "holdfast-evictions" },
      webhooks: ports.map((port) => ({
        name: `evictions-${port}.holdfast.dev`,
        admissionReviewVersions: ["v1"],
        sideEffects: "NoneOnDryRun",
        failurePolicy: "Ignore",
        timeoutSeconds: 5,
        clientConfig: {
          url: `https://${address}:${port}/evict`,
          caBundle: readFileSync(authority).toString("base64"),
        },
        rules: [
          { apiGroups: [""], apiVersions: ["v1"], operations: ["CREATE"], resources: ["pods/eviction"] },
        ],
      })),
    });
    return started;
  }

  async #startWebhook(port: number): Promise<LabProcess> {
    const { cluster } = this;
    const { certificate, key } = cluster.serverCertificate;
    const listen = `${cluster.lab.switch.address}:${port}`;
    const file = join(cluster.lab.dir, `webhook-${port}.yaml`);
    writeFileSync(file, stringify({ listen, certificate, key, image: INSIDE.name }));
    const program = join(projectRoot, "bin/holdfast");
    const webhook = cluster.spawn(`webhook-${port}`, [program, "webhook", "--config", file]);
    await webhook.waitFor(/asked from now on/, 60_000);
    return webhook;
  }
}
