/** The chart in a real cluster: its webhook injects pods of every shape, and they run. */
import assert from "node:assert/strict";
import { request } from "node:http";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { type InjectOptions, inject, uninject } from "#control/kubernetes/inject/inject.ts";
import type { Pod } from "#control/kubernetes/inject/pod.ts";
import { issueCertificate } from "#control/kubernetes/webhook/issue.ts";
import { podShapes } from "#test/support/pod-shapes.ts";
import { projectRoot } from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { holdfast, logsOf } from "./agents.ts";
import { appContainer, nodePortService } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, CONTROL, INSIDE } from "./images.ts";

const NAMESPACE = "holdfast";
const CHART = join(projectRoot, "charts/holdfast");
const OPTIONS: InjectOptions = {
  image: INSIDE.name,
  imagePullPolicy: "Never",
  proxy: { image: CONTROL.name, default: "auto" },
};
const CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/holdfast";
const WEBHOOK = "app.kubernetes.io/component=webhook";
const DAY_MS = 86_400_000;
const WITHOUT_GATEWAYS = ["--set", "gateway.enabled=false"];
const INSTALL_MS_MAX = 180_000;
/** an API server may shorten what is long */
const WARNING_CHARS = 200;
/** clients of the application that moves, where they come to, and answers that each has before and after */
const SESSIONS = 10;
const NODE_PORT = 30080;
const ANSWERS = 5;
const INJECT = { "holdfast.dev/inject": "enabled" };
const PRIVILEGED = { "pod-security.kubernetes.io/enforce": "privileged" };
const RESTRICTED = { "pod-security.kubernetes.io/enforce": "restricted" };
const NAMESPACES: Record<string, Record<string, string>> = {
  [NAMESPACE]: PRIVILEGED,
  shapes: INJECT,
  restricted: { ...INJECT, ...RESTRICTED },
  enforcing: { ...INJECT, "holdfast.dev/policy": "enforce" },
  plain: {},
  limited: INJECT,
  closed: { "holdfast.dev/inject": "disabled" },
};

interface Answer {
  status: number;
  object: KubeObject;
  warnings: string[];
}

describe("the chart in a cluster", () => {
  let cluster: Cluster;

  before(async () => {
    cluster = await createCluster({ nodes: ["a", "b"], images: [AGENT, APPS, INSIDE] });
    await cluster.apply(
      ...Object.entries(NAMESPACES).map(([name, labels]) => ({
        apiVersion: "v1",
        kind: "Namespace",
        metadata: { name, labels },
      })),
    );
    for (const name of Object.keys(NAMESPACES))
      await cluster.until("it has a ServiceAccount", () =>
        cluster.find(`/api/v1/namespaces/${name}/serviceaccounts/default`),
      );
  });
  after(() => cluster?.close());

  async function helm(args: string[]): Promise<string> {
    const home = join(cluster.lab.dir, "helm");
    const own = ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(
      (name) => `${name}=${home}`,
    );
    const argv = ["env", ...own, "helm", ...args, "--namespace", NAMESPACE];
    const { status, stdout, stderr } = await cluster.run(argv, { timeoutMs: INSTALL_MS_MAX + 30_000 });
    if (status === 0) return stdout;
    const shown = await cluster.run(["kubectl", "-n", NAMESPACE, "describe", "pods"]);
    const logs = await cluster.run([
      "kubectl",
      "-n",
      NAMESPACE,
      "logs",
      "--tail=20",
      "--prefix",
      "-l",
      "app.kubernetes.io/name=holdfast",
    ]);
    return assert.fail(`helm ${args.join(" ")}: ${stderr}\n${shown.stdout.slice(-4_000)}\n${logs.stdout}`);
  }

  async function install(...more: string[]): Promise<void> {
    const values = {
      imagePullPolicy: "Never",
      "agent.cri": cluster.cri,
      "store.url": cluster.lab.redis.url,
      "webhook.replicas": 1,
      "controller.replicas": 1,
      "gateway.replicas": 1,
    };
    const set = Object.entries(values).flatMap(([key, value]) => ["--set", `${key}=${value}`]);
    await helm(["upgrade", "--install", "holdfast", CHART, ...set, ...more]);
  }

  /** What the API server would make of a pod, and with which warnings; nothing is made. */
  function tryPod(namespace: string, pod: unknown): Promise<Answer> {
    const path = `/api/v1/namespaces/${namespace}/pods?dryRun=All`;
    const headers = { "content-type": "application/json" };
    return new Promise((resolve, reject) => {
      const asked = request(
        { socketPath: join(cluster.lab.dir, "api.sock"), method: "POST", path, headers },
        (response) => {
          let text = "";
          response.setEncoding("utf8").on("data", (chunk: string) => {
            text += chunk;
          });
          response.on("error", reject);
          response.on("end", () => {
            const { rawHeaders } = response;
            const warnings = rawHeaders
              .filter((_, index) => index % 2 === 1 && /^warning$/i.test(rawHeaders[index - 1] ?? ""))
              // 299 - "text"
              .map((one) => one.replace(/^\d+ \S+ "(.*)"$/s, "$1").replaceAll(/\\(.)/g, "$1"));
            resolve({ status: response.statusCode ?? 0, object: JSON.parse(text) as KubeObject, warnings });
          });
        },
      );
      asked.on("error", reject);
      asked.end(JSON.stringify(pod));
    });
  }

  function isInjected({ object }: Answer): boolean {
    return "holdfast.dev/injected" in ((object.metadata.annotations ?? {}) as Record<string, string>);
  }

  function podOf(shape: string): Pod {
    return podShapes().find(({ name }) => name === shape)?.pod ?? assert.fail(shape);
  }

  it("is installed, and its webhook and agent are ready", async () => {
    await install("--wait", "--timeout", `${INSTALL_MS_MAX / 1_000}s`);
    const { items } = await cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/pods`);
    const parts = (items as KubeObject[]).map(
      ({ metadata }) => (metadata.labels as Record<string, string>)["app.kubernetes.io/component"],
    );
    assert.deepEqual(parts.toSorted(), ["agent", "agent", "controller", "gateway", "webhook"]);
    await cluster.until("pods are injected", async () => isInjected(await tryPod("shapes", podOf("bare"))));
  });

  for (const { name, pod, expected } of podShapes())
    it(`admits ${name} as it is expected to be`, async () => {
      const answer = await tryPod("shapes", pod);
      const { status, object, warnings } = answer;
      assert.equal(status, 201, JSON.stringify(object));
      if (expected?.patch === undefined) {
        const containers: { name: string }[] = object.spec.initContainers ?? [];
        assert.ok(containers.every((one) => one.name !== "holdfast"));
        const told = warnings.filter((one) => one.startsWith("holdfast: not injected: "));
        assert.equal(told.length, expected?.refused === undefined ? 0 : 1);
        for (const one of told)
          assert.ok(
            `holdfast: not injected: ${expected?.refused}`.startsWith(one.slice(0, WARNING_CHARS)),
            one,
          );
        return;
      }
      assert.ok(isInjected(answer));
      // asked again about what the API server has made of it, defaults and all: nothing more
      assert.equal(inject(object as unknown as Pod, OPTIONS).kind, "unchanged");
      const { name: called, generateName, labels, annotations, ownerReferences } = object.metadata;
      const metadata = { name: called, generateName, labels, annotations, ownerReferences };
      assert.deepEqual(named((await tryPod("shapes", { ...object, metadata })).object), named(object));
      const undone = uninject(object as unknown as Pod);
      assert.ok(undone.kind === "injected");
      const plain = (await tryPod("closed", pod)).object;
      assert.deepEqual(named(undone.pod), named(plain));
      assert.equal(object.status.qosClass, plain.status.qosClass);
    });

  /** A pod's spec without the name that the volume of its token gets each time. */
  function named({ spec }: { [key: string]: unknown }): unknown {
    const text = JSON.stringify(spec).replaceAll(/kube-api-access-[a-z0-9]{5}/g, "kube-api-access");
    return JSON.parse(text);
  }

  it("lets into a namespace with Pod Security restricted what it let in before, and nothing else", async () => {
    for (const shape of ["restricted", "restricted-by-container", "restricted-by-image", "sidecar"]) {
      const answer = await tryPod("restricted", podOf(shape));
      assert.equal(answer.status, 201, JSON.stringify(answer.object));
      assert.ok(isInjected(answer));
    }
    const { status, object } = await tryPod("restricted", podOf("bare"));
    assert.equal(status, 403);
    assert.match(object.message, /violates PodSecurity/);
  });

  it("lets into a namespace with a LimitRange what it let in before, by sizes of the proxy's where they have to be others", async () => {
    const least = "64Mi";
    const sized = (annotations: object, labels = {}, requests = {}): Promise<Answer> => {
      const { spec } = podOf("bare");
      const containers = spec.containers.map((one) => ({ ...one, resources: { requests } }));
      const metadata = { name: "sized", labels, annotations };
      return tryPod("limited", { ...podOf("bare"), metadata, spec: { ...spec, containers } });
    };
    const apart = { "holdfast.dev/inject": "disabled" };
    /** LimitRanger is told by a watch. */
    const limit = async (limits: object, isThere: (answer: Answer) => boolean): Promise<void> => {
      await cluster.apply({
        apiVersion: "v1",
        kind: "LimitRange",
        metadata: { name: "limits", namespace: "limited" },
        spec: { limits: [{ type: "Container", ...limits }] },
      });
      await cluster.until("it holds", async () => isThere(await sized({}, apart, { memory: least })));
    };
    const admitted = async (annotations: object): Promise<KubeObject> => {
      const answer = await sized(annotations);
      assert.equal(answer.status, 201, answer.object.message);
      assert.ok(isInjected(answer));
      return answer.object.spec.initContainers[0];
    };
    const [atNode, inPod] = ["node", "sidecar"].map((place) => ({ "holdfast.dev/proxy": place }));
    const most = { memory: "256Mi" };
    await limit(
      { max: most },
      ({ object }) => object.spec?.containers[0].resources.limits?.memory === most.memory,
    );
    assert.deepEqual((await admitted(inPod as object)).resources, {
      requests: { cpu: "50m", memory: "96Mi" },
      limits: most,
    });
    await admitted(atNode as object);
    await limit({ max: most, min: { memory: "128Mi" } }, ({ status }) => status === 403);
    await admitted(atNode as object);
    const { status, object } = await sized(inPod as object);
    assert.equal(status, 403);
    assert.match(object.message, /minimum memory usage per Container is 128Mi, but request is 96Mi/);
    await admitted({ ...inPod, "holdfast.dev/proxy-resources": '{"requests":{"memory":"128Mi"}}' });
  });

  it("keeps out what cannot be injected where the namespace enforces it", async () => {
    assert.ok(isInjected(await tryPod("enforcing", podOf("bare"))));
    const { status, object } = await tryPod("enforcing", podOf("host-network"));
    assert.equal(status, 403);
    assert.match(object.message, /denied the request: holdfast: not injected: spec\.hostNetwork: /);
    assert.equal((await tryPod("enforcing", podOf("left-out"))).status, 201);
    // whoever may make pods in one namespace is nobody in another
    const bare = podOf("bare");
    const metadata = { name: "bare", annotations: { "holdfast.dev/workload": "shapes.chat" } };
    const foreign = await tryPod("enforcing", { ...bare, metadata });
    assert.match(foreign.object.message, /expected a name that begins with "enforcing\."/);
  });

  it("looks at the pods that it is to look at", async () => {
    const bare = podOf("bare");
    const labelled = { ...bare, metadata: { name: "bare", labels: INJECT } };
    const found: Record<string, boolean> = {};
    for (const [what, namespace, pod] of [
      ["neither", "plain", bare],
      ["the pod", "plain", labelled],
      ["the namespace", "shapes", bare],
      ["both", "shapes", labelled],
      ["not the namespace", "closed", labelled],
      ["ours", NAMESPACE, labelled],
      ["the system's", "kube-system", labelled],
    ] as const) {
      // kube-system gets its ServiceAccount in its own time
      await cluster.until("it has a ServiceAccount", () =>
        cluster.find(`/api/v1/namespaces/${namespace}/serviceaccounts/default`),
      );
      found[what] = isInjected(await tryPod(namespace, pod));
    }
    assert.deepEqual(found, {
      neither: false,
      "the pod": true,
      "the namespace": true,
      both: true,
      "not the namespace": false,
      ours: false,
      "the system's": false,
    });
  });

  it("has a Deployment's pod run with an init that waits, under Pod Security restricted", async () => {
    await cluster.apply(waiting);
    const pod = await onePod("waiting", "restricted");
    const program = `const fs = require("fs");
      fs.writeFileSync("/tmp/mine", "");
      [process.getuid(), ...fs.readFileSync("/proc/1/cmdline", "utf8").split("\\0").slice(0, -1)].join(" ")`;
    const exec = ["-n", "restricted", "exec", pod.metadata.name, "-c", "app", "--"];
    const said = await cluster.kubectl([...exec, "/usr/bin/node", "-p", program]);
    assert.equal(said.trim(), "1000 /.holdfast/init -P -- /usr/bin/node /app/chat.js --at=restricted 9000");
    const annotations = pod.metadata.annotations as Record<string, string>;
    assert.equal(
      annotations["holdfast.dev/command"],
      '["/usr/bin/node","/app/chat.js","--at=$(AT)","$(PORT)"]',
    );
    assert.equal(pod.status.containerStatuses[0].restartCount, 0);
  });

  const labels = { app: "waiting" };
  const waiting: KubeObject = {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "waiting", namespace: "restricted" },
    spec: {
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: {
          securityContext: {
            runAsNonRoot: true,
            runAsUser: 1000,
            seccompProfile: { type: "RuntimeDefault" },
          },
          terminationGracePeriodSeconds: 0,
          containers: [
            {
              name: "app",
              image: APPS.name,
              imagePullPolicy: "Never",
              command: ["/usr/bin/node", "/app/chat.js", "--at=$(AT)"],
              args: ["$(PORT)"],
              env: [
                { name: "PORT", value: "9000" },
                { name: "AT", valueFrom: { fieldRef: { fieldPath: "metadata.namespace" } } },
              ],
              ports: [{ containerPort: 9000 }],
              livenessProbe: { tcpSocket: { port: 9000 }, periodSeconds: 1, failureThreshold: 1 },
              securityContext: {
                allowPrivilegeEscalation: false,
                readOnlyRootFilesystem: true,
                capabilities: { drop: ["ALL"] },
              },
            },
          ],
        },
      },
    },
  };

  it("moves a Deployment's application to a standby, and its clients notice nothing", async () => {
    await cluster.apply(chat, service);
    const source = await onePod("chat");
    const { name } = source.metadata;
    const workload = `shapes.${name}`;
    const annotations = { "holdfast.dev/standby": "true", "holdfast.dev/workload": workload };
    const { spec: template, metadata } = chat.spec.template;
    await cluster.apply({
      apiVersion: "v1",
      kind: "Pod",
      metadata: {
        ...{ name: "chat-standby", namespace: "shapes" },
        annotations: { ...metadata.annotations, ...annotations },
      },
      spec: { ...template, nodeName: "b" },
    });
    const { items } = await cluster.api(
      "GET",
      `/api/v1/namespaces/${NAMESPACE}/pods?labelSelector=app.kubernetes.io%2Fcomponent%3Dagent`,
    );
    const agents = new Map((items as KubeObject[]).map((pod) => [pod.spec.nodeName as string, pod]));
    const failed = async (what: unknown): Promise<never> =>
      assert.fail(`${String(what)}\n${await logsOf(cluster, agents.values())}`);
    const stateOn = async (node: string): Promise<string | undefined> => {
      const { json } = await holdfast(cluster, agents.get(node), ["status", "--json"]);
      const { workloads = [] } = (json ?? {}) as { workloads?: { name: string; state: string }[] };
      return workloads.find((shown) => shown.name === workload)?.state;
    };
    await cluster.until("it runs", async () => (await stateOn("a")) === "running").catch(failed);
    await cluster.until("the standby waits", async () => (await stateOn("b")) !== undefined).catch(failed);
    const target = { address: cluster.lab.place("a").address, port: NODE_PORT };
    await cluster.untilOpen(target.address, target.port).catch(failed);
    const load = await startLoad(cluster.lab, "ws", { target, sessions: SESSIONS, intervalMs: 20 });
    await answered(load);
    const moved = await holdfast(cluster, agents.get("a"), ["migrate", workload, "--to", "b", "--json"]);
    if (moved.status !== 0) await failed(moved.stderr);
    await answered(load);
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    assert.deepEqual(
      { lost, repeated, corrupt, resets, alive, problems },
      { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] },
    );
    await cluster.until("kubelet finds the standby ready", async () => {
      const standby = await findPod("chat-standby");
      return standby !== null && condition(standby, "Ready") === "True";
    });
  });

  function findPod(name: string): Promise<KubeObject | null> {
    return cluster.find(`/api/v1/namespaces/shapes/pods/${name}`);
  }

  /** Every client has had some more answers. */
  async function answered(load: Load): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await cluster.until("clients are answered", async () => load.messages >= wanted);
  }

  /** The pod of a Deployment, when its container runs. */
  async function onePod(app: string, namespace = "shapes", selector = `app=${app}`): Promise<KubeObject> {
    let pod: KubeObject | undefined;
    await cluster.until(`the pod of ${app} runs`, async () => {
      const path = `/api/v1/namespaces/${namespace}/pods?labelSelector=${encodeURIComponent(selector)}`;
      const { items } = await cluster.api("GET", path);
      pod = (items as KubeObject[]).find(({ metadata }) => metadata.deletionTimestamp === undefined);
      return pod?.status.containerStatuses?.[0].state.running !== undefined;
    });
    return pod as KubeObject;
  }

  const service = nodePortService({ name: "chat", namespace: "shapes" }, NODE_PORT);

  const chat: KubeObject = {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "chat", namespace: "shapes" },
    spec: {
      selector: { matchLabels: { app: "chat" } },
      template: {
        metadata: { labels: { app: "chat" }, annotations: { "holdfast.dev/listen": "pod" } },
        spec: {
          nodeName: "a",
          terminationGracePeriodSeconds: 0,
          containers: [
            { ...appContainer(["/usr/bin/node", "/app/chat.js"]), ports: [{ containerPort: 9000 }] },
          ],
        },
      },
    },
  };

  it("keeps certificate and keys when it is upgraded, and leads clients to pods before gateways go", async () => {
    const secrets = async (): Promise<string[]> => {
      const all = ["holdfast-webhook", "holdfast-key"].map((name) =>
        cluster.api("GET", `/api/v1/namespaces/${NAMESPACE}/secrets/${name}`),
      );
      return (await Promise.all(all)).map(({ data }) => JSON.stringify(data));
    };
    const ofChat = (): Promise<KubeObject> => cluster.api("GET", "/api/v1/namespaces/shapes/services/chat");
    await cluster.kubectl(["-n", "shapes", "label", "service", "chat", "holdfast.dev/gateway=enabled"]);
    assert.equal((await ofChat()).spec.selector, undefined);
    const before = await secrets();
    await install(...WITHOUT_GATEWAYS);
    assert.deepEqual(await secrets(), before);
    const { metadata, spec } = await ofChat();
    assert.deepEqual([metadata.labels, spec.selector], [undefined, { app: "chat" }]);
    assert.equal(await cluster.kubectl(["-n", NAMESPACE, "get", "jobs", "-o", "name"]), "");
  });

  it("renews its certificate before it expires, while pods are injected all the time", async () => {
    const status = ["-n", NAMESPACE, "rollout", "status", "deployment/holdfast-webhook"];
    // a webhook of an upgrade before that starts only now would look at what is put there
    await install(...WITHOUT_GATEWAYS);
    await cluster.kubectl(status);
    const path = `/api/v1/namespaces/${NAMESPACE}/secrets/holdfast-webhook`;
    const { days, service } = { days: 30, service: `holdfast-webhook.${NAMESPACE}.svc` };
    // made so long ago that a fifth of its time is left
    const old = issueCertificate([service], days, Date.now() - days * 0.8 * DAY_MS);
    const encode = (text: string): string => Buffer.from(text).toString("base64");
    const data = { "ca.crt": encode(old.authority), "tls.crt": encode(old.cert), "tls.key": encode(old.key) };
    await cluster.api("PATCH", path, { data }, "application/merge-patch+json");
    // as it is installed, which has the API server trust what is in the Secret; no other webhook starts, which would look at it
    await install(...WITHOUT_GATEWAYS);
    const restart = ["-n", NAMESPACE, "rollout", "restart", "deployment/holdfast-webhook"];
    await cluster.kubectl(restart); // … and a webhook that starts looks at it
    await cluster.kubectl(status);
    let asked = 0;
    const shown = async (): Promise<boolean> => {
      const answer = await tryPod("enforcing", podOf("bare"));
      assert.equal(answer.status, 201, answer.object.message);
      asked++;
      const { data: now } = await cluster.api("GET", path);
      return now["tls.crt"] !== data["tls.crt"] && now["next.crt"] === undefined;
    };
    await cluster.until("it is renewed", shown);
    const { data: now } = await cluster.api("GET", path);
    const { webhooks } = await cluster.api("GET", CONFIGURATION);
    for (const { clientConfig } of webhooks) assert.equal(clientConfig.caBundle, now["ca.crt"]);
    const { name } = (await onePod("holdfast", NAMESPACE, WEBHOOK)).metadata;
    await cluster.until("it shows the new one", async () => {
      await shown();
      // kubelet brings a Secret within a minute or two, or when the pod changes; each time, since it may not have been told of the Secret yet
      const seen = `seen=${asked}`;
      await cluster.kubectl(["-n", NAMESPACE, "annotate", "--overwrite", "pod", name, seen]);
      return /the certificate was read again/.test(await cluster.kubectl(["-n", NAMESPACE, "logs", name]));
    });
    for (let more = 0; more < 20; more++) await shown();
    assert.ok(asked > 20);
    await install(...WITHOUT_GATEWAYS);
    assert.deepEqual((await cluster.api("GET", path)).data, now);
  });

  it("has its own store admitted, too", async () => {
    const rendered = join(cluster.lab.dir, "rendered.yaml");
    // hooks: the pod of its test has an account that a dry run does not make
    const set = "imagePullPolicy=Never";
    const template = `helm template holdfast ${CHART} --no-hooks --namespace ${NAMESPACE} --set ${set} >${rendered}`;
    const { status, stderr } = await cluster.run(["sh", "-c", template]);
    assert.equal(status, 0, stderr);
    const said = await cluster.kubectl(["apply", "-n", NAMESPACE, "--dry-run=server", "-f", rendered]);
    assert.match(said, /deployment\.apps\/holdfast-redis created \(server dry run\)/);
  });

  it("has pods made without it, but for those that it has to inject", async () => {
    await cluster.kubectl(["-n", NAMESPACE, "scale", "deployment/holdfast-webhook", "--replicas=0"]);
    await cluster.until("nobody answers", async () => !isInjected(await tryPod("shapes", podOf("bare"))));
    assert.equal((await tryPod("shapes", podOf("bare"))).status, 201);
    const { status, object } = await tryPod("enforcing", podOf("bare"));
    assert.equal(status, 500);
    assert.match(object.message, /failed calling webhook/);
  });

  it("leaves nothing when it is uninstalled", async () => {
    await helm(["uninstall", "holdfast", "--wait"]);
    const kinds =
      "deployment,daemonset,service,secret,configmap,serviceaccount,networkpolicy,poddisruptionbudget,role,rolebinding";
    const here = await cluster.kubectl(["-n", NAMESPACE, "get", kinds, "-o", "name"]);
    assert.deepEqual(here.trim().split("\n").toSorted(), [
      "configmap/kube-root-ca.crt",
      "serviceaccount/default",
    ]);
    const everywhere = await cluster.kubectl([
      ...[
        "get",
        "clusterrole,clusterrolebinding,mutatingwebhookconfiguration,validatingwebhookconfiguration",
      ],
      ...["-l", "app.kubernetes.io/name=holdfast", "-o", "name"],
    ]);
    assert.equal(everywhere.trim(), "");
    assert.equal((await tryPod("enforcing", podOf("bare"))).status, 201);
  });
});
