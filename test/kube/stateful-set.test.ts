/**
 * A StatefulSet's pod moves in a real cluster, with clients behind a gateway: it keeps its name, and the other pod of the
 * StatefulSet, on a node of its own, is not touched. Node c is where the application waits meanwhile. Controller and webhooks run beside the
 * control plane.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { parse, stringify } from "yaml";
import { customResourceDefinitions } from "#control/api/crd.ts";
import { API_VERSION, isFinal } from "#control/api/resources.ts";
import { crdFileOf } from "../../scripts/crds.ts";
import { type LabProcess, projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { logsOf, startAgents } from "./agents.ts";
import { APP_PORT, appContainer, INJECT } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";

const NAMESPACE = "games";
const HOLDFAST = "holdfast";
const NAME = "chat-0";
const OTHER = "chat-1";
const LISTEN = 8080;
const GATEWAY = "g";
const SESSIONS = 20;
/** answers that each client has had before and after a move */
const ANSWERS = 5;
const MOVED_MS_MAX = 180_000;
const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;
const MIGRATIONS = `/apis/${API_VERSION}/namespaces/${NAMESPACE}/migrations`;
const FINE = { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] };

function statefulSet(): KubeObject {
  const labels = { app: "chat" };
  const annotations = {
    "holdfast.dev/ports": `${LISTEN}:${APP_PORT}/websocket`,
    "holdfast.dev/mode": "gateway",
  };
  return {
    apiVersion: "apps/v1",
    kind: "StatefulSet",
    metadata: { name: "chat", namespace: NAMESPACE },
    spec: {
      replicas: 1,
      serviceName: "chat",
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
          volumes: [{ name: "data", emptyDir: {} }],
        },
      },
    },
  };
}

describe("a StatefulSet's pod", () => {
  let cluster: Cluster;
  let load: Load;
  let other: KubeObject;
  let watch: LabProcess;
  let controller: LabProcess;
  let agents: Map<string, KubeObject>;

  before(async () => {
    cluster = await createCluster({
      nodes: ["a", "b", "c", "d"],
      images: [AGENT, APPS, INSIDE],
      gateways: [GATEWAY],
    });
    await cluster.apply(
      ...customResourceDefinitions().map(
        (definition) => parse(readFileSync(crdFileOf(definition), "utf8")) as KubeObject,
      ),
    );
    await cluster.kubectl(["create", "namespace", NAMESPACE]);
    await cluster.kubectl(["label", "namespace", NAMESPACE, "holdfast.dev/inject=enabled"]);
    agents = await startAgents(cluster);
    await startWebhook();
    const program = join(projectRoot, "bin/holdfast");
    const argv = ["controller", "--namespace", HOLDFAST, "--kubeconfig", cluster.kubeconfig];
    controller = cluster.spawn("controller", [program, ...argv]);
    for (const node of ["b", "c", "d"]) await cluster.kubectl(["cordon", node]);
    await cluster.apply(statefulSet());
    await isServing(NAME, "a");
    await cluster.kubectl(["cordon", "a"]);
    await cluster.kubectl(["uncordon", "d"]);
    await scale(2);
    other = await isServing(OTHER, "d");
    await cluster.kubectl(["cordon", "d"]);
    for (const node of ["a", "b", "c"]) await cluster.kubectl(["uncordon", node]);
    const { address } = cluster.lab.place(GATEWAY);
    const target = { address, port: LISTEN };
    const listen = [{ address: `${address}:${LISTEN}`, workload: `${NAMESPACE}.${NAME}`, port: LISTEN }];
    await cluster.lab.startGateway(GATEWAY, { listen });
    load = await startLoad(cluster.lab, "ws", { target, sessions: SESSIONS, intervalMs: 20 });
    watch = cluster.spawn("watch", [
      ...["kubectl", "-n", NAMESPACE, "get", "pods", "--watch", "--no-headers", "-o"],
      'custom-columns=N:.metadata.name,U:.metadata.uid,D:.metadata.deletionTimestamp,R:.status.conditions[?(@.type=="Ready")].status',
    ]);
    await cluster.until("pods are watched", async () => watch.stdout.includes(OTHER));
  });
  after(() => cluster?.close());

  /** Injects, sees what StatefulSets make, and is asked about evictions: as the chart has it, but for where it is. */
  async function startWebhook(): Promise<void> {
    const { certificate, key, authority } = cluster.serverCertificate;
    const listen = `${cluster.lab.switch.address}:9443`;
    const file = join(cluster.lab.dir, "webhook.yaml");
    const { image, imagePullPolicy, proxy } = INJECT;
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

  async function failed(what: unknown): Promise<never> {
    const objects = await cluster
      .kubectl(["-n", NAMESPACE, "get", "pods,migrations", "-o", "wide"])
      .catch(String);
    const logs = await logsOf(cluster, agents.values()).catch(String);
    assert.fail(`${String(what)}\n${objects}\n${controller.stderr.slice(-4_000)}\n${logs}`);
  }

  async function scale(replicas: number): Promise<void> {
    await cluster.kubectl(["-n", NAMESPACE, "scale", "statefulset", "chat", `--replicas=${replicas}`]);
  }

  const podOf = (name: string): Promise<KubeObject | null> => cluster.find(`${PODS}/${name}`);

  /** The pod of that name is Ready there, and has its application. */
  async function isServing(name: string, node?: string): Promise<KubeObject> {
    let pod: KubeObject | null = null;
    const holds = async (): Promise<boolean> => {
      pod = await podOf(name);
      return (
        pod !== null &&
        (node === undefined || pod.spec.nodeName === node) &&
        ["Ready", "holdfast.dev/serving"].every((type) => condition(pod as KubeObject, type) === "True")
      );
    };
    await cluster.until(`pod ${name} serves on ${node ?? "a node"}`, holds, MOVED_MS_MAX).catch(failed);
    return pod as unknown as KubeObject;
  }

  async function migrate(name: string, spec: object): Promise<void> {
    const metadata = { name, namespace: NAMESPACE };
    await cluster.apply({ apiVersion: API_VERSION, kind: "Migration", metadata, spec });
  }

  async function until(
    name: string,
    what: string,
    holds: (status: KubeObject) => unknown,
  ): Promise<KubeObject> {
    let status: KubeObject = {} as KubeObject;
    const look = async (): Promise<unknown> => {
      const found = await cluster.find(`${MIGRATIONS}/${name}`);
      status = found?.status ?? {};
      return holds(status);
    };
    await cluster.until(`Migration ${name} ${what}`, look, MOVED_MS_MAX).catch(failed);
    return status;
  }

  const ended = (name: string) => until(name, "has ended", ({ phase }) => isFinal(phase));

  async function answered(): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await cluster.until("clients are answered", async () => load.messages >= wanted).catch(failed);
  }

  /** Since the last mark. */
  async function areFine(): Promise<void> {
    await answered();
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    assert.deepEqual({ lost, repeated, corrupt, resets, alive, problems }, FINE);
  }

  /** Nothing is left of a move but the pod, which is the StatefulSet's as it was. */
  async function isAsBefore(source: KubeObject, moved: KubeObject): Promise<void> {
    await cluster
      .until("only the StatefulSet's pods are there, without marks", async () => {
        const pods = (await cluster.api("GET", PODS)).items as KubeObject[];
        const labels = pods.flatMap(({ metadata }) => Object.keys(metadata.labels ?? {}));
        return pods.length === 2 && !labels.includes("holdfast.dev/migration");
      })
      .catch(failed);
    assert.notEqual(moved.metadata.uid, source.metadata.uid);
    assert.deepEqual(moved.metadata.ownerReferences, source.metadata.ownerReferences);
    const { annotations = {} } = moved.metadata as { annotations?: Record<string, string> };
    assert.equal(annotations["holdfast.dev/standby"], undefined);
    assert.deepEqual([moved.spec.hostname, moved.spec.subdomain], [NAME, "chat"]);
    const seen = watch.stdout
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .filter(([name]) => name === OTHER);
    for (const [, uid, deleted, ready] of seen)
      assert.deepEqual(
        [uid, deleted, ready],
        [other.metadata.uid, "<none>", "True"],
        "the other pod is not touched",
      );
  }

  for (const [from, to] of [
    ["a", "b"],
    ["b", "a"],
  ] as const)
    it(`moves from ${from} to ${to} and keeps its name: no client loses anything`, async () => {
      const source = await isServing(NAME, from);
      await load.mark();
      await answered();
      await migrate(`to-${to}`, { pod: NAME, target: { node: to } });
      const status = await ended(`to-${to}`);
      if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
      await areFine();
      const moved = await isServing(NAME, to);
      assert.deepEqual(
        [status.origin.node, status.source.node, status.target.node, status.target.pod],
        [from, "c", to, NAME],
      );
      assert.equal(status.move.sessions, SESSIONS);
      await isAsBefore(source, moved);
    });

  it("moves though the new pod is deleted in the middle", async () => {
    const source = await isServing(NAME, "a");
    await load.mark();
    await answered();
    await migrate("hard", { pod: NAME, target: { node: "b" } });
    await until("hard", "waits for the pod", ({ origin }) => origin !== undefined);
    await cluster
      .until("the pod is made anew", async () => {
        const pod = await podOf(NAME);
        return pod !== null && pod.metadata.uid !== source.metadata.uid;
      })
      .catch(failed);
    await cluster.kubectl(["-n", NAMESPACE, "delete", "pod", NAME, "--wait=false"]);
    const status = await ended("hard");
    if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
    await areFine();
    await isAsBefore(source, await isServing(NAME, "b"));
  });

  it("leaves its node when that is drained, once", async () => {
    const source = await isServing(NAME);
    const node = source.spec.nodeName as string;
    await load.mark();
    await answered();
    const before = (await cluster.api("GET", MIGRATIONS)).items.length;
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--pod-selector=app=chat",
    ]);
    await cluster.until("the drain is over", async () => drain.exited, MOVED_MS_MAX).catch(failed);
    if (drain.child.exitCode !== 0) await failed(drain.stderr);
    const migrations = (await cluster.api("GET", MIGRATIONS)).items as KubeObject[];
    assert.equal(migrations.length, before + 1);
    const made = migrations.find(({ spec }) => spec.podUid === source.metadata.uid);
    const status = await ended(made?.metadata.name ?? "");
    if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
    await areFine();
    const moved = await isServing(NAME, status.target.node);
    assert.notEqual(moved.spec.nodeName, node);
    await isAsBefore(source, moved);
    await cluster.kubectl(["uncordon", node]);
  });

  it("ends with its application when the StatefulSet wants it no more in the middle, and starts anew when it does", async () => {
    await load.stop();
    const { spec } = await isServing(NAME);
    await migrate("unwanted", { pod: NAME, target: { node: spec.nodeName === "a" ? "b" : "a" } });
    await until("unwanted", "waits for the pod", ({ origin }) => origin !== undefined);
    await scale(0);
    const { phase, reason } = await ended("unwanted");
    assert.deepEqual([phase, reason], ["Failed", "ScaledDown"]);
    await cluster
      .until("no pod is left", async () => (await cluster.api("GET", PODS)).items.length === 0)
      .catch(failed);
    await scale(1);
    await isServing(NAME);
  });
});
