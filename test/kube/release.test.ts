/**
 * The chart as somebody has it who runs it: what it may do, what its metrics are called, what its own test says, what its
 * diagnostics hold, and an upgrade while clients are connected. One cluster; the parts build on each other in this order.
 */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { parseAllDocuments, stringify } from "yaml";
import type { CliResult } from "../lab/lab.ts";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { APP_PORT, appContainer } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE, REDIS } from "./images.ts";
import { stateOf } from "./install.ts";

const NAMESPACE = "holdfast";
const CHART = join(projectRoot, "charts/holdfast");
const INSTALL_MS_MAX = 240_000;
const LISTEN = 8080;
const SESSIONS = 10;
const ANSWERS = 5;
const SECRET = "hunter2-in-the-environment";
/** Objects of the Prometheus operator, which the cluster has not. */
const OPERATOR = "monitoring.coreos.com/v1";

/** As somebody would who has neither registry nor DNS, with all that can be had. */
const VALUES = {
  registry: "localhost",
  imagePullPolicy: "Never",
  redis: { image: REDIS.name, clusterIP: "10.96.0.50" },
  webhook: { replicas: 1 },
  controller: { replicas: 2 },
  gateway: { replicas: 1 },
  monitoring: { enabled: true, dashboard: { enabled: true } },
};

// biome-ignore lint/suspicious/noExplicitAny: objects of any kind, looked at in every place.
type Raw = any;

describe("a release of the chart", () => {
  let cluster: Cluster;
  let values = "";

  before(async () => {
    cluster = await createCluster({ nodes: ["a", "b"], images: [AGENT, APPS, INSIDE, REDIS] });
    values = join(cluster.lab.dir, "values.yaml");
    writeFileSync(values, stringify({ ...VALUES, agent: { cri: cluster.cri } }));
    // before Holdfast is there
    await cluster.apply(
      namespace(NAMESPACE, { "pod-security.kubernetes.io/enforce": "privileged" }),
      namespace("games", { "holdfast.dev/inject": "enabled" }),
    );
    await cluster.until("it has a ServiceAccount", () =>
      cluster.find("/api/v1/namespaces/games/serviceaccounts/default"),
    );
  });
  after(() => cluster?.close());

  async function helm(...args: string[]): Promise<string> {
    const home = join(cluster.lab.dir, "helm");
    const own = ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(
      (name) => `${name}=${home}`,
    );
    const argv = ["env", ...own, "helm", ...args, "--namespace", NAMESPACE];
    const { status, stdout, stderr } = await cluster.run(argv, { timeoutMs: INSTALL_MS_MAX + 30_000 });
    if (status !== 0)
      assert.fail(`helm ${args.join(" ")}: ${stderr}\n${stdout}\n${await stateOf(cluster, NAMESPACE)}`);
    return stdout;
  }

  /** `holdfast ARGS`, or `kubectl holdfast ARGS`, with the administrator's kubeconfig. */
  async function holdfast(args: string[], plugin = false): Promise<CliResult> {
    const bin = join(projectRoot, "bin");
    const argv = plugin ? ["kubectl", "holdfast", ...args] : [join(bin, "holdfast"), ...args];
    return await cluster.run(["sh", "-c", 'PATH="$0:$PATH" exec "$@"', bin, ...argv]);
  }

  async function rendered(more: string[] = []): Promise<Raw[]> {
    const text = await helm("template", "holdfast", CHART, "--values", values, "--include-crds", ...more);
    return parseAllDocuments(text)
      .map((document) => document.toJS() as Raw)
      .filter((object) => object !== null);
  }

  it("would work here, says a check before it", async () => {
    const { status, stdout, stderr } = await holdfast(["check", "--pre", "-o", "json"]);
    assert.equal(status, 0, stdout + stderr);
    const { findings, checked } = JSON.parse(stdout);
    assert.deepEqual(findings, []);
    assert.deepEqual(
      checked.filter(({ node }: Raw) => node !== undefined).map(({ node }: Raw) => node),
      ["a", "b"],
    );
  });

  it("has every object admitted by the API server", async () => {
    // a pod is not admitted without its account: that of helm test is made below
    const objects = (await rendered()).filter(
      ({ apiVersion, kind }) => apiVersion !== OPERATOR && kind !== "Pod",
    );
    const file = join(cluster.lab.dir, "rendered.json");
    writeFileSync(file, JSON.stringify({ apiVersion: "v1", kind: "List", items: objects }));
    const crds = objects.filter(({ kind }) => kind === "CustomResourceDefinition");
    const said = await cluster.kubectl([
      "apply",
      "--server-side",
      "--dry-run=server",
      "-n",
      NAMESPACE,
      "-f",
      file,
    ]);
    const admitted = said.trim().split("\n");
    assert.equal(admitted.length, objects.length, said);
    for (const line of admitted) assert.match(line, / serverside-applied \(server dry run\)$/);
    assert.equal(crds.length, 2);
    // without the operator's definitions nothing of its is made, with them all of it
    const kinds = async (set: string[]): Promise<string[]> =>
      (await rendered(set)).filter(({ apiVersion }) => apiVersion === OPERATOR).map(({ kind }) => kind);
    assert.deepEqual(await kinds([]), []);
    const enabled = ["serviceMonitor", "prometheusRule"].flatMap((one) => [
      "--set",
      `monitoring.${one}.enabled=true`,
    ]);
    assert.deepEqual(await kinds(enabled), ["PrometheusRule", "ServiceMonitor"]);
  });

  it("is installed, while a pod is there that nobody has injected", async () => {
    await cluster.apply(early);
    await cluster.readyPod("early", { namespace: "games" });
    await helm(
      "install",
      "holdfast",
      CHART,
      "--values",
      values,
      "--wait",
      "--timeout",
      `${INSTALL_MS_MAX / 1_000}s`,
    );
    await cluster.kubectl(["cordon", "b"]);
    await cluster.apply(chat);
    await serving("chat");
    await cluster.kubectl(["uncordon", "b"]);
  });

  it("allows each of its accounts what its rules give reasons for, and nothing else", async () => {
    const objects = await rendered();
    const named = (kind: string): Map<string, Raw> =>
      new Map(
        objects.filter((object) => object.kind === kind).map((object) => [object.metadata.name, object]),
      );
    const roles = { ClusterRole: named("ClusterRole"), Role: named("Role") };
    const nobody = await allowed("default");
    for (const [account, { metadata }] of named("ServiceAccount")) {
      const bindings = objects.filter(
        ({ kind, subjects }) => /Binding$/.test(kind) && subjects.some(({ name }: Raw) => name === account),
      );
      const isForHook = metadata.annotations?.["helm.sh/hook"] !== undefined;
      const rules = bindings.flatMap(({ roleRef }) => (roles as Raw)[roleRef.kind].get(roleRef.name).rules);
      const justified = new Set<string>();
      for (const { apiGroups, resources, resourceNames = [""], verbs } of rules)
        for (const group of apiGroups)
          for (const resource of resources)
            for (const name of resourceNames)
              for (const verb of verbs)
                justified.add([verb, combined(resource, group), name].join(" ").trim());
      const given = [...(await allowed(account))].filter((one) => !nobody.has(one));
      // there while the hook runs
      assert.deepEqual(given.toSorted(), isForHook ? [] : [...justified].toSorted(), account);
    }
  });

  /** As kubectl shows it. */
  function combined(resource: string, group: string): string {
    const [kind, subresource] = resource.split("/");
    return `${kind}${group === "" ? "" : `.${group}`}${subresource === undefined ? "" : `/${subresource}`}`;
  }

  /** "VERB RESOURCE.GROUP/SUBRESOURCE NAME" of `kubectl auth can-i --list`, in the chart's namespace */
  async function allowed(account: string): Promise<Set<string>> {
    const who = `--as=system:serviceaccount:${NAMESPACE}:${account}`;
    const text = await cluster.kubectl(["auth", "can-i", "--list", who, "-n", NAMESPACE, "--no-headers"]);
    const found = new Set<string>();
    for (const line of text.trimEnd().split("\n")) {
      const [, resource = "", , names = "", verbs = ""] =
        /^(\S*)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]$/.exec(line) ?? assert.fail(line);
      for (const verb of verbs.split(" "))
        for (const name of names === "" ? [""] : names.split(" "))
          found.add(`${verb} ${resource}${name === "" ? "" : ` ${name}`}`);
    }
    return found;
  }

  it("exposes every metric that its rules and its dashboard use", async () => {
    const enabled = ["--set", "monitoring.prometheusRule.enabled=true"];
    const objects = await rendered(enabled);
    const rules = objects.find(({ kind }) => kind === "PrometheusRule").spec.groups[0].rules as Raw[];
    assert.deepEqual(
      rules.map(({ alert }) => alert.replace(/^Holdfast/, "")),
      [
        ...["MoveFailed", "MoveStuck", "WorkloadNotMovable", "SidecarMissing", "PauseBudgetBurn"],
        ...["WatchSilent", "CertificateExpires"],
      ],
    );
    const dashboard = objects.find(
      ({ kind, data }) => kind === "ConfigMap" && data?.["holdfast.json"] !== undefined,
    );
    const panels = JSON.parse(dashboard.data["holdfast.json"]).panels as Raw[];
    const asked = [
      ...rules.map(({ expr }) => expr),
      ...panels.flatMap(({ targets }) => targets.map(({ expr }: Raw) => expr)),
    ];
    const names = new Set(asked.flatMap((expr) => (expr as string).match(/\bholdfast_\w+/g) ?? []));
    assert.ok(names.size > 12);
    const exposed = new Set<string>();
    const { items } = await cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/pods`);
    for (const { metadata, spec, status } of items as KubeObject[])
      for (const { ports = [] } of spec.containers)
        for (const { name, containerPort } of ports as { name: string; containerPort: number }[])
          if (["admin", "controller", "metrics"].includes(name)) {
            const at = `http://${status.podIP}:${containerPort}/metrics`;
            const text = await metricsAt(spec.nodeName, at);
            assert.match(text, /^# TYPE /m, `${metadata.name} ${at}`);
            for (const [, metric = "", type] of text.matchAll(/^# TYPE (\S+) (\S+)/gm)) {
              exposed.add(metric);
              if (type === "histogram")
                for (const part of ["bucket", "sum", "count"]) exposed.add(`${metric}_${part}`);
            }
          }
    assert.deepEqual(
      [...names].filter((name) => !exposed.has(name)),
      [],
    );
  });

  /** Whoever reaches the pod: its node. */
  async function metricsAt(node: string, url: string): Promise<string> {
    const program = `fetch(${JSON.stringify(url)}).then((it) => it.text()).then((text) => process.stdout.write(text))`;
    const { stdout, stderr } = await cluster.lab.run(node, [nodeBinary, "-e", program]);
    assert.equal(stderr, "", url);
    return stdout;
  }

  it("says of the pod that was there before that it was not injected", async () => {
    let events: KubeObject[] = [];
    await cluster.until("an Event says so", async () => {
      const path = "/api/v1/namespaces/games/events?fieldSelector=reason%3DHoldfastInjectionMissed";
      events = (await cluster.api("GET", path)).items as KubeObject[];
      return events.length > 0;
    });
    assert.deepEqual(
      events.map((event) => event.involvedObject.name),
      ["early"],
    );
    assert.match(events[0]?.message, /delete it, and what made it makes it anew, injected/);
    const { status, stdout } = await holdfast(["check"], true);
    assert.equal(status, 0, stdout);
    assert.match(stdout, /! pod games\/early is to be injected and is not → .* {2}\[pod\.missed\]/);
  });

  it("passes its own test, which leaves nothing", async () => {
    const said = await helm("test", "holdfast", "--logs", "--timeout", "120s");
    assert.match(said, /Phase:\s+Succeeded/);
    const left = await cluster.kubectl([
      "get",
      "pods,serviceaccounts,clusterroles,clusterrolebindings",
      "-A",
      "-o",
      "name",
    ]);
    assert.doesNotMatch(left, /holdfast-check/);
  });

  it("fails its own test where something is missing, and says what", async () => {
    await cluster.kubectl(["-n", NAMESPACE, "scale", "deployment/holdfast-controller", "--replicas=0"]);
    await cluster.kubectl([
      "-n",
      NAMESPACE,
      "wait",
      "--for=delete",
      "pods",
      "-l",
      "app.kubernetes.io/component=controller",
      "--timeout=120s",
    ]);
    const { status, stdout } = await holdfast(["check", "--cluster"]);
    assert.equal(status, 1);
    assert.match(stdout, /✖ there is no controller: no Migration is carried out → /);
    await assert.rejects(helm("test", "holdfast", "--timeout", "120s"), /holdfast-check/);
    await cluster.kubectl(["-n", NAMESPACE, "scale", "deployment/holdfast-controller", "--replicas=2"]);
    await cluster.kubectl(["-n", NAMESPACE, "rollout", "status", "deployment/holdfast-controller"]);
    await helm("test", "holdfast", "--timeout", "120s");
  });

  it("writes diagnostics, and nothing secret is in them", async () => {
    const file = join(cluster.lab.dir, "diagnostics.tar.gz");
    const { status, stdout, stderr } = await holdfast(["diagnostics", "-f", file]);
    assert.equal(status, 0, stderr);
    assert.equal(stderr, "");
    assert.equal(stdout.trim(), file);
    const folder = join(cluster.lab.dir, "diagnostics");
    mkdirSync(folder);
    await cluster.run(["tar", "-xzf", file, "-C", folder]);
    const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) =>
      entry.isFile(),
    );
    const names = files.map(({ name }) => name);
    for (const name of ["cluster.json", "events.json", "a.json", "b.json"])
      assert.ok(names.includes(name), String(names));
    assert.ok(names.some((name) => /^holdfast-agent-\w+_agent\.log$/.test(name)));
    const { items } = await cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/secrets`);
    const secrets = (items as KubeObject[])
      .flatMap(({ data = {} }) => Object.values(data as Record<string, string>))
      .flatMap((value) => [
        value,
        Buffer.from(value, "base64").toString("hex"),
        Buffer.from(value, "base64").toString(),
      ])
      // the agent's file is more than a secret: what is one in it is the password, another of them
      .filter((value) => value.length >= 16 && !value.includes("\n"));
    assert.ok(secrets.length >= 4);
    for (const { name, parentPath } of files) {
      const text = readFileSync(join(parentPath, name), "utf8");
      for (const secret of [SECRET, ...secrets]) assert.ok(!text.includes(secret), name);
    }
  });

  it("is upgraded in all its parts while clients are connected, and none notices", async () => {
    const load = await clients();
    await answered(load);
    const ofBefore = await podsOf();
    const changed = ["--set", "logLevel=debug", "--set", "agent.config.limits.heldMbMax=300"];
    await helm(
      "upgrade",
      "holdfast",
      CHART,
      "--values",
      values,
      ...changed,
      "--wait",
      "--timeout",
      `${INSTALL_MS_MAX / 1_000}s`,
    );
    const stay = (await podsOf()).filter((pod) => ofBefore.includes(pod));
    assert.deepEqual(
      stay.filter((pod) => !pod.startsWith("holdfast-redis")),
      [],
    );
    await answered(load);
    // what is new moves what is old
    const { name } = (await serving("chat")).metadata;
    const checked = await holdfast(["check", `pod/${name}`, "-n", "games", "--to", "b"], true);
    assert.match(checked.stdout, /\[target\.no-standby\]/);
    assert.equal(checked.status, 0, checked.stdout + checked.stderr);
    const moved = await holdfast(["migrate", `pod/${name}`, "-n", "games", "--to", "b"], true);
    assert.equal(moved.status, 0, moved.stdout + moved.stderr);
    await answered(load);
    await assertWhole(load);
  });

  async function podsOf(): Promise<string[]> {
    const { items } = await cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/pods`);
    return (items as KubeObject[])
      .filter(({ metadata }) => metadata.deletionTimestamp === undefined)
      .map(({ metadata }) => metadata.name);
  }

  // ---- the application ----

  async function clients(): Promise<Load> {
    const target = { address: cluster.lab.place("a").address, port: LISTEN };
    await cluster.untilOpen(target.address, target.port);
    return await startLoad(cluster.lab, "ws", { target, sessions: SESSIONS, intervalMs: 20 });
  }

  /** Every client has had some more answers. */
  async function answered(load: Load): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await cluster.until("clients are answered", async () => load.messages >= wanted);
  }

  async function assertWhole(load: Load): Promise<void> {
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    assert.deepEqual(
      { lost, repeated, corrupt, resets, alive, problems },
      { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] },
    );
  }

  async function serving(app: string): Promise<KubeObject> {
    let pod: KubeObject | undefined;
    await cluster
      .until(`${app} is served`, async () => {
        const { items } = await cluster.api(
          "GET",
          `/api/v1/namespaces/games/pods?labelSelector=app%3D${app}`,
        );
        pod = (items as KubeObject[]).find((one) => condition(one, "holdfast.dev/serving") === "True");
        return pod !== undefined && condition(pod, "Ready") === "True";
      })
      .catch(async (error: unknown) => assert.fail(`${String(error)}\n${await stateOf(cluster, NAMESPACE)}`));
    return pod as KubeObject;
  }

  function namespace(name: string, labels: Record<string, string>): KubeObject {
    return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
  }

  const app = appContainer(["/usr/bin/node", "/app/chat.js"]);
  const container = {
    ...app,
    env: [...app.env, { name: "PASSWORD", value: SECRET }],
    ports: [{ containerPort: APP_PORT }],
  };
  const early: KubeObject = {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "early", namespace: "games" },
    spec: { terminationGracePeriodSeconds: 0, containers: [container] },
  };
  const chat: KubeObject = {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "chat", namespace: "games" },
    spec: {
      selector: { matchLabels: { app: "chat" } },
      template: {
        metadata: {
          labels: { app: "chat" },
          // clients of gateways are reset when an upgrade replaces these
          annotations: {
            "holdfast.dev/mode": "forward",
            "holdfast.dev/ports": `${LISTEN}:${APP_PORT}/websocket`,
          },
        },
        spec: { terminationGracePeriodSeconds: 0, containers: [container] },
      },
    },
  };
});
