/**
 * The chart's gateways in a real cluster: clients come to a Service of an application's own, and its pods move, and nodes end, without them.
 * Node c is where gateways, webhook and controller are; applications are on a and b.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { isFinal } from "#control/api/resources.ts";
import { projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { APP_PORT, appContainer, nodePortService } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";
import { installChart, makeEdge, stateOf, uninstallChart } from "./install.ts";

const HOLDFAST = "holdfast";
const GAMES = "games";
const EDGE = "c";
const NODE_PORT = 30080;
/** labelled when its pod runs, on the node that no test switches off */
const LATE = "late";
const LATE_PORT = 30081;
const EXTRA_PORT = 30082;
/** its Services, and pods that never have a node, fill the gateways' table */
const CROWD = "crowd";
/** of both: entries of 8 kB, of which 900 kB are for Services that are new */
const CROWD_COUNT = 120;
const SESSIONS = 20;
/** answers that clients have had before and after, each */
const ANSWERS = 5;
const SERVICES = `/api/v1/namespaces/${GAMES}/services`;
const SLICES = `/apis/discovery.k8s.io/v1/namespaces/${GAMES}/endpointslices`;
const MIGRATIONS = `/apis/holdfast.dev/v1alpha1/namespaces/${GAMES}/migrations`;

const SERVICE = nodePortService(
  { name: "chat", namespace: GAMES, labels: { "holdfast.dev/gateway": "enabled" } },
  NODE_PORT,
);

describe("gateways of the chart", () => {
  let cluster: Cluster;
  let load: Load;

  before(async () => {
    cluster = await createCluster({ nodes: ["a", "b", EDGE], images: [AGENT, APPS, INSIDE] });
    const onEdge = await makeEdge(cluster, EDGE);
    await cluster.apply(
      namespace(HOLDFAST, { "pod-security.kubernetes.io/enforce": "privileged" }),
      ...[GAMES, CROWD].map((name) => namespace(name, { "holdfast.dev/inject": "enabled" })),
      namespace("restricted", { "pod-security.kubernetes.io/enforce": "restricted" }),
    );
    await installChart(cluster, HOLDFAST, {
      "store.url": cluster.lab.redis.url,
      "webhook.replicas": "1",
      "controller.replicas": "1",
      "gateway.drainSeconds": "2",
      ...onEdge,
    });
  });
  after(() => cluster?.close());

  async function failed(what: unknown): Promise<never> {
    return assert.fail(`${String(what)}\n${await stateOf(cluster, HOLDFAST).catch(String)}`);
  }
  const until = (what: string, holds: () => Promise<unknown>): Promise<void> =>
    cluster.until(what, holds).catch(failed);

  async function list(path: string): Promise<KubeObject[]> {
    return (await cluster.api("GET", path)).items as KubeObject[];
  }
  const gateways = (): Promise<KubeObject[]> =>
    list(`/api/v1/namespaces/${HOLDFAST}/pods?labelSelector=app.kubernetes.io/component=gateway`);

  async function theOnlyPod(node: string): Promise<KubeObject> {
    let found: KubeObject[] = [];
    await until(`one pod of chat is Ready on ${node}`, async () => {
      found = await list(`/api/v1/namespaces/${GAMES}/pods?labelSelector=app=chat`);
      const [first] = found;
      return found.length === 1 && first?.spec.nodeName === node && condition(first, "Ready") === "True";
    });
    return found[0] as KubeObject;
  }

  /** Where the Service's clients come, as kube-proxy has it. */
  async function endpoints(service: string): Promise<string[]> {
    const slices = await list(`${SLICES}?labelSelector=kubernetes.io/service-name=${service}`);
    return slices
      .flatMap((slice) => (slice.endpoints ?? []) as { addresses: string[] }[])
      .flatMap(({ addresses }) => addresses)
      .toSorted();
  }

  /** They come to that port of the node that stays. */
  function startClients(port: number, sessions = 2): Promise<Load> {
    const { address } = cluster.lab.place(EDGE);
    return startLoad(cluster.lab, "ws", { target: { address, port }, sessions, intervalMs: 20 });
  }

  /** Has lost nothing, and is answered; then it ends. */
  async function isWhole(one: Load): Promise<void> {
    const wanted = one.messages + 2 * ANSWERS;
    await until("clients are answered", async () => one.messages >= wanted);
    const { lost, repeated, corrupt, resets, alive } = await one.report();
    assert.deepEqual(
      { lost, repeated, corrupt, resets, alive },
      { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: 2 },
    );
    await one.stop();
  }

  async function isSaid(event: RegExp): Promise<void> {
    await until("an Event says so", async () => {
      const columns = "custom-columns=R:.reason,M:.message";
      return event.test(await cluster.kubectl(["-n", GAMES, "get", "events", "-o", columns]));
    });
  }

  async function leadsToGateways(service: string): Promise<void> {
    await until("the Service leads to gateways alone", async () => {
      const addresses = (await gateways()).map(({ status }) => status.podIP as string).toSorted();
      return JSON.stringify(await endpoints(service)) === JSON.stringify(addresses);
    });
  }

  async function answered(): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await until("clients are answered", async () => load.messages >= wanted);
  }

  async function nobodyNoticed(wanted = { alive: SESSIONS, lost: 0 }): Promise<void> {
    await answered();
    const { alive, lost, repeated, corrupt, resets, problems } = await load.report();
    const found = { alive, lost, repeated, corrupt, resets };
    const expected = { ...wanted, repeated: 0, corrupt: 0, resets: 0 };
    if (JSON.stringify(found) !== JSON.stringify(expected)) await failed(problems.join("; "));
    assert.deepEqual(found, expected);
    await load.mark();
  }

  async function migrate(name: string, pod: KubeObject, node: string): Promise<KubeObject> {
    await cluster.apply(migration(name, pod, node));
    return await ended(name);
  }

  async function ended(name: string): Promise<KubeObject> {
    let found: KubeObject | null = null;
    await until(`Migration ${name} has ended`, async () => {
      found = await cluster.find(`${MIGRATIONS}/${name}`);
      return found !== null && condition(found, "Finished") === "True";
    });
    const ofIt = found as unknown as KubeObject;
    if (ofIt.status.phase !== "Succeeded") await failed(JSON.stringify(ofIt.status));
    return ofIt;
  }

  it("take over a Service that says so, and its pods are in gateway mode, with their proxy in them", async () => {
    await cluster.apply(SERVICE);
    const { metadata, spec } = await cluster.api("GET", `${SERVICES}/chat`);
    assert.equal(spec.selector, undefined);
    assert.equal((metadata.annotations as Record<string, string>)["holdfast.dev/selector"], "app=chat");
    await cluster.kubectl(["cordon", "b"]);
    await cluster.apply(deployment("chat"));
    const pod = await theOnlyPod("a");
    const { "holdfast.dev/mode": mode, "holdfast.dev/proxy": proxy } = pod.metadata.annotations as Record<
      string,
      string
    >;
    assert.deepEqual([mode, proxy], ["gateway", "sidecar"]);
    assert.equal((await gateways()).length, 2);
    await leadsToGateways("chat");
    load = await startClients(NODE_PORT, SESSIONS);
    await load.mark();
    await nobodyNoticed();
  });

  it("keep the clients of a pod that moves", async () => {
    await cluster.kubectl(["uncordon", "b"]);
    const { status } = await migrate("to-b", await theOnlyPod("a"), "b");
    assert.deepEqual([status.move.downstream, status.move.sessions], ["gateway", SESSIONS]);
    await theOnlyPod("b");
    await nobodyNoticed();
  });

  it("may see what they are told and nothing else of the cluster, and are restricted pods", async () => {
    const can = async (...what: string[]): Promise<string> => {
      const as = `--as=system:serviceaccount:${HOLDFAST}:holdfast-gateway`;
      return (await cluster.run(["kubectl", "auth", "can-i", ...what, "-n", HOLDFAST, as])).stdout.trim();
    };
    assert.equal(await can("watch", "configmaps/holdfast-gateway"), "yes");
    for (const what of ["secrets", "configmaps", "pods", "services"])
      assert.equal(await can("list", what), "no", what);
    assert.equal(await can("patch", "configmaps/holdfast-gateway"), "no");
    const [{ metadata, spec } = assert.fail()] = await gateways();
    const { serviceAccountName: _, serviceAccount: __, nodeName: ___, ...rest } = spec;
    const pod = { apiVersion: "v1", kind: "Pod", metadata: { name: metadata.name }, spec: rest };
    await cluster.api("POST", "/api/v1/namespaces/restricted/pods?dryRun=All", pod);
  });

  it("serve clients as well when one more is there, and it may start in the middle of a move", async () => {
    const scaled = cluster.kubectl(["-n", HOLDFAST, "scale", "deployment/holdfast-gateway", "--replicas=3"]);
    await migrate("to-a", await theOnlyPod("b"), "a");
    await scaled;
    await until("the Service leads to all three", async () => (await endpoints("chat")).length === 3);
    await nobodyNoticed();
    const [third] = (await gateways()).toSorted((one, other) =>
      String(other.metadata.creationTimestamp).localeCompare(String(one.metadata.creationTimestamp)),
    );
    await clientOf(third as KubeObject);
  });

  /** One that comes to that gateway, and is answered. */
  async function clientOf({ metadata, status }: KubeObject): Promise<void> {
    const { data } = await cluster.api("GET", `/api/v1/namespaces/${HOLDFAST}/configmaps/holdfast-gateway`);
    const [{ listen }] = (JSON.parse(data["games.chat"]) as { ports: [{ listen: number }] }).ports;
    const { status: exit, stdout } = await cluster.run(
      ["curl", "-sS", "--max-time", "10", `http://${status.podIP}:${listen}/`],
      { timeoutMs: 15_000 },
    );
    if (exit !== 0) await failed(`${metadata.name} does not lead a client: ${stdout}`);
  }

  it("go on without API server and store, for new clients too", async () => {
    const [one] = await gateways();
    cluster.pauseApi();
    cluster.lab.redis.pause();
    await answered();
    const more = await startClients(NODE_PORT);
    while (more.messages < ANSWERS) await new Promise((resolve) => more.onProgress(resolve));
    await more.stop();
    cluster.lab.redis.resume();
    cluster.resumeApi();
    await nobodyNoticed();
    await clientOf(one as KubeObject);
  });

  it("lead nobody to a pod that is not injected, and share clients among the others", async () => {
    const plain = { "holdfast.dev/inject": "disabled" };
    await cluster.apply(podOf("plain", plain), podOf("second"));
    await cluster.kubectl([
      "-n",
      GAMES,
      "wait",
      "pod/plain",
      "pod/second",
      "--for=condition=Ready",
      "--timeout=60s",
    ]);
    await until("it is known", async () => (await workloads()).length === 2);
    assert.ok((await workloads()).includes(`${GAMES}.second`));
    const events = await cluster.kubectl([
      "-n",
      GAMES,
      "get",
      "events",
      "-o",
      "custom-columns=R:.reason,M:.message",
    ]);
    assert.match(events, /NotInjected\s+no client is led to plain:/);
    await cluster.kubectl(["-n", GAMES, "delete", "pod", "plain", "second", "--grace-period=0", "--force"]);
    await until("the other is alone again", async () => (await workloads()).length === 1);
    await nobodyNoticed();
  });

  async function workloads(): Promise<string[]> {
    const { data } = await cluster.api("GET", `/api/v1/namespaces/${HOLDFAST}/configmaps/holdfast-gateway`);
    return (JSON.parse(data?.["games.chat"] ?? "{}") as { workloads?: string[] }).workloads ?? [];
  }

  it("let sessions go on when their Service goes, and serve it when it comes again", async () => {
    await cluster.kubectl(["-n", GAMES, "delete", "service", "chat"]);
    await until("nobody is led any more", async () => (await workloads()).length === 0);
    await until("its slice has gone", async () => (await list(SLICES)).length === 0);
    await answered();
    await cluster.apply(SERVICE);
    await until("clients are led again", async () => (await endpoints("chat")).length === 3);
    const [one] = await gateways();
    await clientOf(one as KubeObject);
    await nobodyNoticed();
  });

  it("let clients come to pods that are not theirs, as without them, until those are made anew", async () => {
    const name = LATE;
    const { metadata, spec } = deployment(name);
    spec.template.spec.nodeName = "b";
    const forward = structuredClone(spec);
    forward.template.metadata.annotations = { "holdfast.dev/mode": "forward" };
    const service = nodePortService({ name, namespace: GAMES }, LATE_PORT);
    await cluster.apply(service, { apiVersion: "apps/v1", kind: "Deployment", metadata, spec: forward });
    await cluster.untilOpen(cluster.lab.place(EDGE).address, LATE_PORT);
    const before = await startClients(LATE_PORT);
    await cluster.kubectl(["-n", GAMES, "label", "service", name, "holdfast.dev/gateway=enabled"]);
    const [old] = await list(`/api/v1/namespaces/${GAMES}/pods?labelSelector=app=${name}`);
    const own = [`${name}-holdfast`, `${name}-holdfast-pods-0`];
    await until("its pod is led to by the controller, and by nobody else", async () => {
      const slices = await list(`${SLICES}?labelSelector=kubernetes.io/service-name=${name}`);
      const names = slices.map((slice) => slice.metadata.name).toSorted();
      return JSON.stringify(names) === JSON.stringify(own);
    });
    assert.deepEqual(await endpoints(name), [old?.status.podIP]);
    const since = await startClients(LATE_PORT);
    for (const one of [before, since]) await isWhole(one);
    await isSaid(/NotGateway\s+clients come to late-\S+ without a gateway, as without the label:/);
    const check = [join(projectRoot, "bin/holdfast"), "check", "--cluster"];
    const { status: found, stdout } = await cluster.run(check);
    assert.equal(found, 0, stdout);
    assert.match(stdout, /! service games\/late: clients come to .* {2}\[service\.not-gateway\]/);
    await cluster.apply({ apiVersion: "apps/v1", kind: "Deployment", metadata, spec });
    await leadsToGateways(name);
    await nobodyNoticed();
  });

  it("let clients of a Service that has no room in the table come to its pods, until there is room", async () => {
    const names = Array.from({ length: CROWD_COUNT }, (_, index) => `crowd-${index}`);
    const { metadata, spec } = deployment(CROWD.padEnd(49, "-x"));
    spec.replicas = CROWD_COUNT;
    spec.template.spec.nodeSelector = { pool: "nowhere" };
    await cluster.apply({
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: { ...metadata, namespace: CROWD },
      spec,
    });
    const pods = `/api/v1/namespaces/${CROWD}/pods`;
    await until("the pods are there", async () => (await list(pods)).length === CROWD_COUNT);
    await cluster.apply(
      ...names.map((name) => ({
        ...SERVICE,
        metadata: { ...SERVICE.metadata, name, namespace: CROWD },
        spec: { selector: spec.selector.matchLabels, ports: [{ port: APP_PORT }] },
      })),
    );
    // those that are in it have room for more
    await until("no Service more has room", async () => (await tableBytes()) > 880_000);
    const { name } = metadata;
    const more = String(CROWD_COUNT + 10);
    await cluster.kubectl(["-n", CROWD, "scale", "deployment", name, `--replicas=${more}`]);
    await until("no Service at all has room", async () => (await tableBytes()) > 900_000);
    const extra = nodePortService({ ...SERVICE.metadata, name: "extra" }, EXTRA_PORT);
    await cluster.apply({ ...extra, spec: { ...extra.spec, selector: { app: LATE } } });
    const [pod] = await list(`/api/v1/namespaces/${GAMES}/pods?labelSelector=app=${LATE}`);
    await until("it leads to the pod", async () => (await endpoints("extra")).join() === pod?.status.podIP);
    await cluster.untilOpen(cluster.lab.place(EDGE).address, EXTRA_PORT);
    const direct = await startClients(EXTRA_PORT);
    await isSaid(/TooManyServices\s+clients come to the pods themselves/);
    await leadsToGateways(LATE);
    await cluster.kubectl(["-n", CROWD, "delete", "service,deployment", "--all", "--wait=false"]);
    await leadsToGateways("extra");
    const led = await startClients(EXTRA_PORT);
    for (const one of [direct, led]) await isWhole(one);
    await cluster.kubectl(["-n", GAMES, "delete", "service/extra", "--wait=false"]);
    await nobodyNoticed();
  });

  async function tableBytes(): Promise<number> {
    const { data = {} } = await cluster.api(
      "GET",
      `/api/v1/namespaces/${HOLDFAST}/configmaps/holdfast-gateway`,
    );
    return Object.values(data as Record<string, string>).reduce((sum, text) => sum + text.length, 0);
  }

  it("give a Service back its selector when it says so no more, and its pods to Kubernetes", async () => {
    await cluster.kubectl(["-n", GAMES, "label", "service", "chat", "holdfast.dev/gateway-"]);
    const pod = await theOnlyPod("a");
    await until("it leads to the pod", async () => (await endpoints("chat")).join() === pod.status.podIP);
    assert.deepEqual((await cluster.api("GET", `${SERVICES}/chat`)).spec.selector, { app: "chat" });
    await cluster.kubectl(["-n", GAMES, "label", "service", "chat", "holdfast.dev/gateway=enabled"]);
    await until("it leads to gateways alone", async () => {
      const found = await endpoints("chat");
      return found.length === 3 && !found.includes(pod.status.podIP as string);
    });
    await nobodyNoticed();
  });

  it("keep the clients when the source's node ends right after the release, with all that is on it", async () => {
    const source = await theOnlyPod("a");
    const [workload] = await workloads();
    const record = [
      "redis-cli",
      "-s",
      cluster.lab.redis.socketPath,
      "HMGET",
      `hf:{${workload}}:owner`,
      "owner",
      "state",
    ];
    await cluster.apply(migration("off", source, "b"));
    await until("it has been released at the target", async () => {
      const { stdout } = await cluster.run(record);
      return stdout.split("\n").slice(0, 2).join() === "b,released";
    });
    await cluster.switchOff("a");
    await nobodyNoticed();
  });

  it("reset their own clients alone when one is replaced, after it has waited for them", async () => {
    const all = await gateways();
    const counts = await Promise.all(all.map(sessionsAt));
    const sessions = Math.max(...counts);
    const one = all[counts.indexOf(sessions)];
    assert.ok(sessions > 0 && sessions < SESSIONS, `${sessions} of ${SESSIONS}`);
    await cluster.kubectl(["-n", HOLDFAST, "delete", "pod", (one as KubeObject).metadata.name]);
    await until("there is another", async () => {
      const pods = await gateways();
      return (
        pods.length === 3 &&
        pods.every((pod) => pod.metadata.name !== one?.metadata.name && condition(pod, "Ready") === "True")
      );
    });
    await answered();
    const { alive, lost, resets, repeated, corrupt } = await load.report();
    const left = SESSIONS - sessions;
    assert.deepEqual(
      { alive, resets, repeated, corrupt },
      { alive: left, resets: sessions, repeated: 0, corrupt: 0 },
    );
    // what those had sent, and will not be answered, counts as lost now and ever after
    await load.mark();
    await nobodyNoticed({ alive: left, lost });
  });

  it("lead clients to pods again before the chart is uninstalled, and no Migration is left in the middle", async () => {
    await load.stop();
    const [late] = await list(`/api/v1/namespaces/${GAMES}/pods?labelSelector=app=${LATE}`);
    const there = `/apis/holdfast.dev/v1alpha1/namespaces/${GAMES}/migrations/cut-off`;
    await cluster.apply(migration("cut-off", late as KubeObject, late?.spec.nodeName === "a" ? "b" : "a"));
    await until("it has begun", async () => "finalizers" in (await cluster.api("GET", there)).metadata);
    await uninstallChart(cluster, HOLDFAST);
    const ended = await cluster.api("GET", there);
    assert.ok(!("finalizers" in ended.metadata), JSON.stringify(ended));
    assert.ok(isFinal(ended.status.phase), ended.status.phase);
    const { metadata, spec } = await cluster.api("GET", `${SERVICES}/${LATE}`);
    const { labels = {}, annotations = {} } = metadata as Record<string, Record<string, string>>;
    assert.deepEqual([labels, annotations["holdfast.dev/selector"]], [{}, undefined]);
    assert.deepEqual(spec.selector, { app: LATE });
    const [pod] = await list(`/api/v1/namespaces/${GAMES}/pods?labelSelector=app=${LATE}`);
    assert.deepEqual(await endpoints(LATE), [pod?.status.podIP]);
    await isWhole(await startClients(LATE_PORT));
    const left = await cluster.kubectl([
      ...["get", "jobs,serviceaccounts,configmaps,clusterroles,clusterrolebindings", "-A"],
      ...["-l", "app.kubernetes.io/name=holdfast", "-o", "name"],
    ]);
    assert.equal(left.trim(), "");
  });

  async function sessionsAt({ status }: KubeObject): Promise<number> {
    const { stdout } = await cluster.run([
      "curl",
      "-sS",
      "--max-time",
      "10",
      `http://${status.podIP}:9400/healthz`,
    ]);
    const { workloads: all } = JSON.parse(stdout) as { workloads: { sessions: number }[] };
    return all.reduce((sum, { sessions }) => sum + sessions, 0);
  }
});

function migration(name: string, pod: KubeObject, node: string): KubeObject {
  return {
    apiVersion: "holdfast.dev/v1alpha1",
    kind: "Migration",
    metadata: { name, namespace: GAMES },
    spec: { pod: pod.metadata.name, target: { node } },
  };
}

function namespace(name: string, labels: Record<string, string>): KubeObject {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

function deployment(name: string): KubeObject {
  const { metadata, spec } = podOf(name, { app: name });
  return {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name, namespace: GAMES },
    spec: {
      replicas: 1,
      selector: { matchLabels: metadata.labels },
      template: { metadata: { labels: metadata.labels }, spec },
    },
  };
}

/** That Service chat selects, if nothing else is said. */
function podOf(name: string, more: Record<string, string> = {}): KubeObject {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: GAMES, labels: { app: "chat", ...more } },
    spec: {
      terminationGracePeriodSeconds: 0,
      containers: [
        { ...appContainer(["/usr/bin/node", "/app/chat.js"]), ports: [{ containerPort: APP_PORT }] },
      ],
    },
  };
}
