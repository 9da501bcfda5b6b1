/** Migrations in a real cluster: what the API server takes, and a Deployment's pod that moves while its clients notice nothing. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { parse, parseAllDocuments, stringify } from "yaml";
import { customResourceDefinitions } from "#control/api/crd.ts";
import { crdFileOf } from "../../scripts/crds.ts";
import { type LabProcess, projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { agentsOf, logsOf, startAgents } from "./agents.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";

const NAMESPACE = "default";
const HOLDFAST = "holdfast";
const ACCOUNT = "holdfast-controller";
const APP_PORT = 9000;
const LISTEN = 8080;
const SESSIONS = 20;
/** holds the clients' connections: a pod that has moved is deleted */
const GATEWAY = "g";
const WORKLOAD = `${NAMESPACE}.chat`;
/** answers that clients have had before and after a move, each */
const ANSWERS = 5;
const SERVING = "holdfast.dev/serving";

function migration(name: string, spec: object): KubeObject {
  return { apiVersion: "holdfast.dev/v1alpha1", kind: "Migration", metadata: { name }, spec };
}

/** Its pods are as the webhook makes them. */
function deployment(): KubeObject {
  const volume = { name: "holdfast", mountPath: "/.holdfast" };
  const labels = { app: "chat" };
  const annotations = {
    "holdfast.dev/injected": "1",
    "holdfast.dev/container": "app",
    "holdfast.dev/ports": `${LISTEN}:${APP_PORT}`,
    "holdfast.dev/workload": WORKLOAD,
    "holdfast.dev/mode": "gateway",
    "holdfast.dev/command": JSON.stringify(["/usr/bin/node", "/app/chat.js"]),
  };
  return {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "chat" },
    spec: {
      replicas: 1,
      selector: { matchLabels: labels },
      template: {
        metadata: { labels, annotations },
        spec: {
          terminationGracePeriodSeconds: 0,
          securityContext: { seccompProfile: { type: "RuntimeDefault" } },
          readinessGates: [{ conditionType: SERVING }],
          initContainers: [
            { name: "holdfast", image: INSIDE.name, imagePullPolicy: "Never", volumeMounts: [volume] },
          ],
          containers: [
            {
              name: "app",
              image: APPS.name,
              imagePullPolicy: "Never",
              command: ["/.holdfast/init", "-P"],
              env: [
                { name: "HOST", value: "0.0.0.0" },
                { name: "PORT", value: String(APP_PORT) },
              ],
              readinessProbe: { tcpSocket: { port: APP_PORT }, periodSeconds: 1 },
              volumeMounts: [
                { ...volume, readOnly: true },
                { name: "data", mountPath: "/data" },
              ],
            },
          ],
          volumes: ["holdfast", "data"].map((name) => ({ name, emptyDir: {} })),
        },
      },
    },
  };
}

describe("Migrations in a cluster", () => {
  let cluster: Cluster;
  let agents: Map<string, KubeObject>;
  let kubeconfig: string;
  let controller: LabProcess;
  let load: Load;

  before(async () => {
    cluster = await createCluster({ images: [AGENT, APPS, INSIDE], gateways: [GATEWAY] });
    await cluster.apply(
      ...customResourceDefinitions().map(
        (definition) => parse(readFileSync(crdFileOf(definition), "utf8")) as KubeObject,
      ),
    );
    await cluster.kubectl(["cordon", "b"]);
    await cluster.apply(deployment());
    agents = await startAgents(cluster);
    kubeconfig = await asController();
    controller = startController();
  });
  after(() => cluster?.close());

  /** A kubeconfig of the ServiceAccount that the chart makes, which may what the chart lets it, and nothing else. */
  async function asController(): Promise<string> {
    const golden = readFileSync(join(import.meta.dirname, "chart/default.yaml"), "utf8");
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

  function startController(): LabProcess {
    const program = join(projectRoot, "bin/holdfast");
    const argv = [program, "controller", "--namespace", HOLDFAST, "--kubeconfig", kubeconfig];
    return cluster.spawn("controller", argv);
  }

  async function failedWithLogs(what: unknown): Promise<never> {
    const pods = await cluster.kubectl(["get", "pods,migrations", "-o", "wide"]).catch(String);
    const logs = await logsOf(cluster, agents.values());
    assert.fail(`${String(what)}\n${pods}\n${controller.stderr.slice(-4_000)}\n${logs}`);
  }

  const pods = async (): Promise<KubeObject[]> =>
    (await cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/pods`)).items as KubeObject[];

  async function theOnlyPod(node: string): Promise<KubeObject> {
    let found: KubeObject[] = [];
    await cluster
      .until(`one pod is there, Ready on ${node}`, async () => {
        found = await pods();
        const [first] = found;
        return found.length === 1 && first?.spec.nodeName === node && condition(first, "Ready") === "True";
      })
      .catch(failedWithLogs);
    return found[0] as KubeObject;
  }

  async function ended(name: string): Promise<KubeObject> {
    const path = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations/${name}`;
    let found: KubeObject | null = null;
    await cluster
      .until(`Migration ${name} has ended`, async () => {
        found = await cluster.find(path);
        return found !== null && condition(found, "Finished") === "True" && !found.metadata.finalizers;
      })
      .catch(failedWithLogs);
    return found as unknown as KubeObject;
  }

  async function answered(): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await cluster.until("clients are answered", async () => load.messages >= wanted).catch(failedWithLogs);
  }

  /** What is in column after column of each line that a watch has printed. */
  function watch(...args: string[]): { lines(): string[][]; process: LabProcess } {
    const started = cluster.spawn("watch", ["kubectl", "get", ...args, "--watch", "--no-headers"]);
    return {
      process: started,
      lines: () =>
        started.stdout
          .split("\n")
          .filter((line) => line !== "")
          .map((line) => line.trim().split(/\s+/)),
    };
  }

  it("are admitted, and what contradicts itself or is changed afterwards is not", async () => {
    for (const { metadata } of customResourceDefinitions())
      await cluster.kubectl(["wait", "--for=condition=Established", `crd/${metadata.name}`, "--timeout=60s"]);
    const folder = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations`;
    const refused = (spec: object, message: RegExp) =>
      assert.rejects(cluster.api("POST", folder, migration("refused", spec)), message);
    await refused({}, /spec\.pod: Required value/);
    await refused({ pod: "A_B" }, /spec\.pod.*should match/s);
    await refused({ pod: "x", deadlineSeconds: 1 }, /greater than or equal to 5/);
    await refused(
      { pod: "x", target: { node: "b", nodeSelector: { a: "b" } } },
      /name a node or give a nodeSelector, not both/,
    );
    await cluster.apply(migration("kept", { pod: "nowhere", target: { nodeSelector: { disk: "ssd" } } }));
    const change = (spec: object) =>
      cluster.api("PATCH", `${folder}/kept`, { spec }, "application/merge-patch+json");
    await assert.rejects(change({ pod: "other" }), /pod cannot be changed/);
    await assert.rejects(change({ target: null }), /target cannot be changed/);
    await assert.rejects(change({ dryRun: true }), /dryRun cannot be changed/);
    await change({ abort: true });
    await assert.rejects(change({ abort: false }), /abort cannot be taken back/);
    const { status } = await ended("kept");
    assert.ok(["PodNotFound", "Aborted"].includes(status.reason), status.reason);
    await cluster.apply({
      apiVersion: "holdfast.dev/v1alpha1",
      kind: "ContinuityPolicy",
      metadata: { name: "default" },
      spec: { evictionStrategy: "LiveMigrate", movesPerNode: 1 },
    });
  });

  it("say what they would do", async () => {
    const { metadata } = await theOnlyPod("a");
    await cluster.kubectl(["uncordon", "b"]);
    await cluster.apply(migration("dry", { pod: metadata.name, target: { node: "b" }, dryRun: true }));
    const { status } = await ended("dry");
    assert.equal(status.reason, "DryRun");
    assert.match(status.plan.join("\n"), /for node b/);
    assert.equal((await pods()).length, 1);
  });

  for (const [from, to] of [
    ["a", "b"],
    ["b", "a"],
  ] as const)
    it(`move a Deployment's pod from ${from} to ${to}: no client loses anything, and no pod more is made`, async () => {
      const source = await theOnlyPod(from);
      if (from === "a") {
        const { address } = cluster.lab.place(GATEWAY);
        const target = { address, port: LISTEN };
        const listen = [{ address: `${address}:${LISTEN}`, workload: WORKLOAD, port: LISTEN }];
        await cluster.lab.startGateway(GATEWAY, { listen });
        load = await startLoad(cluster.lab, "ws", { target, sessions: SESSIONS, intervalMs: 20 });
      }
      const seen = watch("pods", "-o", "custom-columns=N:.metadata.name,U:.metadata.uid");
      const replicas = watch("replicasets", "-o", "custom-columns=R:.status.replicas,S:.spec.replicas");
      await cluster.until(
        "both are watched",
        async () => seen.lines().length > 0 && replicas.lines().length > 0,
      );
      await load.mark();
      await answered();

      await cluster.apply(migration(`to-${to}`, { pod: source.metadata.name, target: { node: to } }));
      const { status } = await ended(`to-${to}`);
      if (status.phase !== "Succeeded") await failedWithLogs(JSON.stringify(status));
      await answered();

      const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
      assert.deepEqual(
        { lost, repeated, corrupt, resets, alive, problems },
        { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] },
      );
      const moved = await theOnlyPod(to);
      const uids = new Set(seen.lines().map(([, uid]) => uid));
      assert.deepEqual(uids, new Set([source.metadata.uid, moved.metadata.uid]));
      assert.deepEqual(
        replicas.lines().filter(([count]) => Number(count) < 1),
        [],
        "replicas never fall",
      );
      for (const { process } of [seen, replicas]) await process.stop("SIGTERM", 5_000);

      assert.equal(status.target.pod, moved.metadata.name);
      assert.equal(status.move.sessions, SESSIONS);
      assert.ok(status.move.pauseMs > 0);
      const { labels, annotations, ownerReferences } = moved.metadata as unknown as {
        labels: object;
        annotations: Record<string, string>;
        ownerReferences: { kind: string }[];
      };
      assert.deepEqual(labels, source.metadata.labels);
      assert.deepEqual(ownerReferences, source.metadata.ownerReferences);
      for (const key of ["holdfast.dev/standby", "controller.kubernetes.io/pod-deletion-cost"])
        assert.equal(annotations[key], undefined);
      const events = await cluster.kubectl([
        "get",
        "events",
        "-o",
        "custom-columns=R:.reason,O:.involvedObject.name",
      ]);
      assert.match(events, new RegExp(`MigrationSucceeded\\s+to-${to}`));
      assert.match(events, new RegExp(`MigrationMoving\\s+${source.metadata.name}`));
    });

  it("keep clients when their node is drained, and its controller is killed in the middle", async () => {
    const source = await theOnlyPod("a");
    await startWebhook();
    await load.mark();
    await answered();
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", "a", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--pod-selector=app=chat",
    ]);
    const path = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations`;
    const made = async (): Promise<KubeObject | undefined> =>
      ((await cluster.api("GET", path)).items as KubeObject[]).find(
        ({ spec }) => spec.podUid === source.metadata.uid,
      );
    await cluster
      .until("it moves", async () => (await made())?.status?.phase === "Moving")
      .catch(failedWithLogs);
    await controller.stop("SIGKILL");
    controller = startController();
    await cluster.until("the drain is over", async () => drain.exited).catch(failedWithLogs);
    if (drain.child.exitCode !== 0) await failedWithLogs(drain.stderr);
    assert.match(drain.stderr, /will retry after 5s.*holdfast: its application is (going to be|being) moved/);
    await answered();
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    assert.deepEqual(
      { lost, repeated, corrupt, resets, alive, problems },
      { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] },
    );
    const { status } = await ended((await made())?.metadata.name ?? "");
    assert.equal(status.phase, "Succeeded");
    assert.equal((await theOnlyPod("b")).metadata.name, status.target.pod);
  });

  it("succeed when the agent of the source is killed in the middle, at another attempt if need be", async () => {
    await cluster.kubectl(["uncordon", "a"]);
    const source = await theOnlyPod("b");
    const path = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations/again`;
    await load.mark();
    await answered();
    await cluster.apply(migration("again", { pod: source.metadata.name, target: { node: "a" } }));
    await cluster
      .until("it moves", async () => (await cluster.find(path))?.status?.move?.state === "Running")
      .catch(failedWithLogs);
    const agent = agents.get("b")?.metadata.name ?? "";
    await cluster.kubectl(["-n", HOLDFAST, "delete", "pod", agent, "--force", "--grace-period=0"]);
    agents = await agentsOf(cluster);
    const { status } = await ended("again");
    if (status.phase !== "Succeeded") await failedWithLogs(JSON.stringify(status));
    await answered();
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    assert.deepEqual(
      { lost, repeated, corrupt, resets, alive, problems },
      { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] },
    );
    assert.equal((await theOnlyPod("a")).metadata.name, status.target.pod);
  });

  /** Beside the control plane, asked about evictions only. */
  async function startWebhook(): Promise<void> {
    const { address } = cluster.lab.switch;
    const { certificate, key, authority } = cluster.serverCertificate;
    const listen = `${address}:9443`;
    const file = join(cluster.lab.dir, "webhook.yaml");
    writeFileSync(file, stringify({ listen, certificate, key, image: INSIDE.name }));
    const webhook = cluster.spawn("webhook", [
      join(projectRoot, "bin/holdfast"),
      "webhook",
      "--config",
      file,
    ]);
    await webhook.waitFor(/asked from now on/, 60_000);
    await cluster.apply({
      apiVersion: "admissionregistration.k8s.io/v1",
      kind: "ValidatingWebhookConfiguration",
      metadata: { name: "holdfast-evictions" },
      webhooks: [
        {
          name: "evictions.holdfast.dev",
          admissionReviewVersions: ["v1"],
          sideEffects: "NoneOnDryRun",
          failurePolicy: "Ignore",
          timeoutSeconds: 5,
          clientConfig: {
            url: `https://${listen}/evict`,
            caBundle: readFileSync(authority).toString("base64"),
          },
          rules: [
            { apiGroups: [""], apiVersions: ["v1"], operations: ["CREATE"], resources: ["pods/eviction"] },
          ],
        },
      ],
    });
  }
});
