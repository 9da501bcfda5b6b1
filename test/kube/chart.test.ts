/**
 * The chart, rendered by helm without a cluster: what comes out is in `test/kube/chart/`.
 *
 *   UPDATE_CHART=1 npm test -- test/kube/chart.test.ts    writes it, to be read before it is committed
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { parse, parseAllDocuments, stringify } from "yaml";
import { parseConfig } from "#control/config/config.ts";
import { parseGatewayConfig } from "#control/config/gateway.ts";
import { DEFAULT_PROXY_RESOURCES } from "#control/config/proxy-resources.ts";
import { parseWebhookConfig } from "#control/config/webhook.ts";
import { projectRoot } from "../lab/lab.ts";
import { kubeTools } from "./kube-tools.ts";

const CHART = join(projectRoot, "charts/holdfast");
const GOLDEN = join(projectRoot, "test/kube/chart");
const folder = mkdtempSync(join(tmpdir(), "holdfast-chart-"));
after(() => rmSync(folder, { recursive: true }));

// biome-ignore lint/suspicious/noExplicitAny: objects of any kind, looked at in every place.
type Raw = any;

/** helm's caches and settings are the test's own. */
function helm(args: string[]): { status: number | null; stdout: string; stderr: string } {
  const own = { HOME: folder, HELM_CACHE_HOME: folder, HELM_CONFIG_HOME: folder, HELM_DATA_HOME: folder };
  return spawnSync(join(kubeTools().bin, "helm"), args, {
    encoding: "utf8",
    env: { ...process.env, ...own },
  });
}

function render(values: object): string {
  const file = join(folder, "values.yaml");
  writeFileSync(file, stringify(values));
  const argv = ["template", "holdfast", CHART, "--namespace", "holdfast", "--kube-version", "1.37.2"];
  const { status, stdout, stderr } = helm([...argv, "-f", file]);
  assert.equal(status, 0, stderr);
  return stdout;
}

function objectsIn(text: string): Raw[] {
  return parseAllDocuments(text)
    .map((document) => document.toJS() as Raw)
    .filter((object) => object !== null);
}

/** What is made anew each time. */
function withoutSecrets(text: string): string {
  return text
    .replaceAll(/^( *(?:ca\.crt|tls\.crt|tls\.key|caBundle|key|password): )[A-Za-z0-9+/]{20,}=*$/gm, "$1MADE")
    .replaceAll(/redis:\/\/:[^@]+@/g, "redis://:MADE@")
    .replaceAll(/^( *checksum\/config: ).*$/gm, "$1MADE");
}

const DEFAULT = {};
const WITHOUT_GATEWAYS = { gateway: { enabled: false } };
const EVERYTHING_ELSE = {
  registry: "registry.example/team",
  imagePullPolicy: "Always",
  imagePullSecrets: ["registry"],
  images: {
    control: { repository: "control", tag: "1" },
    agent: { repository: "agent", tag: "2" },
    inside: { repository: "inside", tag: "3" },
  },
  logLevel: "debug",
  webhook: {
    replicas: 1,
    proxy: "sidecar",
    proxyResources: { requests: { cpu: 0.02, memory: "128Mi" }, limits: { memory: "1Gi" } },
    failurePolicy: "Fail",
    timeoutSeconds: 2,
    excludedNamespaces: ["monitoring"],
    certificate: { existingSecret: "webhook-tls" },
    annotations: { "cert-manager.io/inject-ca-from": "holdfast/webhook" },
    nodeSelector: { pool: "system" },
    tolerations: [{ key: "system", operator: "Exists" }],
    priorityClassName: "system-cluster-critical",
  },
  controller: {
    replicas: 1,
    evictionRequests: true,
    evictions: {
      timeoutSeconds: 3,
      failurePolicy: "Fail",
      certificate: { existingSecret: "evictions-tls" },
      annotations: { "cert-manager.io/inject-ca-from": "holdfast/evictions" },
    },
    nodeSelector: { pool: "system" },
    tolerations: [{ key: "system", operator: "Exists" }],
    priorityClassName: "system-cluster-critical",
  },
  agent: {
    cri: "/run/crio/crio.sock",
    stateDir: "/srv/holdfast",
    existingKeySecret: "agents-key",
    config: { limits: { heldMbMax: 128 } },
    nodeSelector: { pool: "games" },
    tolerations: [],
    priorityClassName: "",
  },
  gateway: {
    replicas: 1,
    drainSeconds: 3600,
    existingKeySecret: "links-key",
    config: { limits: { ownerMsMax: 10_000 } },
    nodeSelector: { pool: "edge" },
    tolerations: [{ key: "edge", operator: "Exists" }],
    priorityClassName: "system-cluster-critical",
  },
  mesh: { enabled: true },
  store: { url: "redis://10.0.0.1:6379" },
  networkPolicy: { enabled: false },
  priorityClass: { create: false },
  monitoring: {
    enabled: true,
    agentPort: 9999,
    serviceMonitor: { enabled: true, labels: { release: "prometheus" } },
    prometheusRule: { enabled: true, labels: { release: "prometheus" } },
    dashboard: { enabled: true },
  },
};
const WITHOUT_EVICTIONS = { controller: { evictions: { enabled: false } } };
const WITHOUT_CONTROLLER = { controller: { enabled: false } };
const WITH_ALL = { mesh: { enabled: true } };
const WEBHOOK_ALONE = {
  agent: { enabled: false },
  controller: { enabled: false },
  webhook: { certificate: { existingSecret: "webhook-tls", caBundle: "PEM" } },
};
const CASES: Record<string, object> = {
  default: DEFAULT,
  "without-gateways": WITHOUT_GATEWAYS,
  "with-everything-else": EVERYTHING_ELSE,
  "webhook-alone": WEBHOOK_ALONE,
};

function agentFile(objects: Raw[]): string {
  const secret = objects.find(({ stringData }) => stringData?.["agent.yaml"] !== undefined);
  return secret.stringData["agent.yaml"];
}

describe("the chart", () => {
  it("has nothing that helm lint knows better", () => {
    const { status, stdout } = helm(["lint", CHART, "--strict"]);
    assert.equal(status, 0, stdout);
  });

  for (const [name, values] of Object.entries(CASES))
    it(`renders ${name}`, () => {
      // as objects: how many empty lines there are differs between versions of helm
      const written = objectsIn(render(values)).map((object) => stringify(object, { lineWidth: 120 }));
      const text = withoutSecrets(written.join("---\n"));
      const file = join(GOLDEN, `${name}.yaml`);
      if (process.env.UPDATE_CHART === "1") {
        mkdirSync(GOLDEN, { recursive: true });
        writeFileSync(file, text);
      }
      assert.ok(existsSync(file), file);
      assert.equal(text, readFileSync(file, "utf8"));
    });

  it("has what says where a StatefulSet's pod is made anew, also where evictions are not looked at", () => {
    const objects = objectsIn(render(WITHOUT_EVICTIONS));
    const named = (kind: string): Raw =>
      objects.find((one) => one.kind === kind && one.metadata.name === "holdfast-controller");
    assert.equal(named("ValidatingWebhookConfiguration"), undefined);
    const [hook, ...others] = named("MutatingWebhookConfiguration").webhooks;
    assert.deepEqual([hook.clientConfig.service.path, others], ["/ordinal", []]);
    // who answers there: a Service, a container with its file, and a certificate that is trusted and renewed
    assert.deepEqual(
      named("Service").spec.ports.map(({ targetPort }: Raw) => targetPort),
      ["https"],
    );
    const { containers, volumes } = named("Deployment").spec.template.spec;
    const ports = containers.flatMap((one: Raw) => one.ports.map(({ name }: Raw) => name));
    assert.ok(ports.includes("https"), ports);
    assert.deepEqual(
      volumes.map((one: Raw) => one.configMap?.name ?? one.secret?.secretName),
      ["holdfast-controller", "holdfast-controller"],
    );
    assert.equal(hook.clientConfig.caBundle, named("Secret").data["ca.crt"]);
    const { renewal } = parseWebhookConfig(named("ConfigMap").data["webhook.yaml"], "evictions.yaml");
    assert.deepEqual(renewal?.kinds, ["MutatingWebhookConfiguration"]);
    const rules = named("ClusterRole").rules.filter(({ apiGroups }: Raw) =>
      apiGroups.includes("admissionregistration.k8s.io"),
    );
    assert.deepEqual(
      rules.map(({ resources }: Raw) => resources),
      [["mutatingwebhookconfigurations"]],
    );
    const open = named("NetworkPolicy").spec.ingress[0].ports.map(({ port }: Raw) => port);
    assert.ok(open.includes("https"), open);
  });

  it("is asked about evictions in excluded namespaces, too, but keeps nobody there from them when it is away", () => {
    const policies = (failurePolicy: string, excludedNamespaces: string[]): Record<string, string[]> => {
      const { webhooks } = objectsIn(
        render({ webhook: { excludedNamespaces }, controller: { evictions: { failurePolicy } } }),
      ).find(({ kind }) => kind === "ValidatingWebhookConfiguration");
      const isMeant = (namespace: string, { operator, values }: Raw): boolean =>
        values.includes(namespace) === (operator === "In");
      return Object.fromEntries(
        ["games", "monitoring", "kube-system", "holdfast"].map((namespace) => [
          namespace,
          webhooks
            .filter(({ namespaceSelector }: Raw) =>
              namespaceSelector.matchExpressions.every((one: Raw) => isMeant(namespace, one)),
            )
            .map((one: Raw) => one.failurePolicy),
        ]),
      );
    };
    const never = { "kube-system": [], holdfast: [] };
    const everywhere = (policy: string) => ({ games: [policy], monitoring: [policy], ...never });
    assert.deepEqual(policies("Fail", []), everywhere("Fail"));
    assert.deepEqual(policies("Ignore", ["monitoring"]), everywhere("Ignore"));
    assert.deepEqual(policies("Fail", ["monitoring", "kube-system"]), {
      games: ["Fail"],
      monitoring: ["Ignore"],
      ...never,
    });
  });

  it("detaches before a rollback to what does not keep it, whatever there was when that was installed", () => {
    const jobs = (values: object): Record<string, string> =>
      Object.fromEntries(
        objectsIn(render(values))
          .filter(({ kind }) => kind === "Job")
          .map(({ metadata, spec }) => [
            metadata.annotations["helm.sh/hook"],
            spec.template.spec.containers[0].args.join(" "),
          ]),
      );
    // without a cluster: nothing is looked up, as when the first revision is installed
    const kept = jobs(WITH_ALL);
    assert.deepEqual(kept, { "pre-delete": "detach --migrations --mesh --injected" });
    for (const [values, args] of [
      [DEFAULT, "detach --keep-gateways --mesh=made"],
      [WITHOUT_GATEWAYS, "detach --mesh=made"],
      [{ ...WITHOUT_GATEWAYS, ...WITH_ALL }, "detach"],
      [WITHOUT_CONTROLLER, "detach --migrations --mesh=made"],
    ] as const)
      assert.equal(jobs(values)["pre-rollback"], args, JSON.stringify(values));
    // what is left over is named, whatever there is
    assert.equal(jobs(WITHOUT_CONTROLLER)["pre-delete"], "detach --keep-gateways --injected");
  });

  it("lets each detaching do what it is told to, and no more", () => {
    const objects = objectsIn(render(WITHOUT_CONTROLLER));
    const mayDo = (name: string): string[] =>
      objects
        .find(({ kind, metadata }) => kind === "ClusterRole" && metadata.name === name)
        .rules.flatMap(({ resources, verbs }: Raw) => resources.map((one: string) => `${verbs} ${one}`));
    assert.deepEqual(mayDo("holdfast-detach"), ["list pods"]);
    assert.deepEqual(mayDo("holdfast-detach-rollback"), [
      "list,patch services",
      "list,delete endpointslices",
      ...["sidecars", "envoyfilters", "destinationrules", "virtualservices"].map(
        (one) => `list,delete ${one}`,
      ),
      "list,patch migrations",
    ]);
  });

  it("gives a reason for each rule of each role", () => {
    const folder = join(CHART, "templates");
    const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((file) =>
      file.endsWith(".yaml"),
    );
    let rules = 0;
    for (const file of files) {
      const lines = readFileSync(join(folder, file), "utf8").split("\n");
      for (const [index, line] of lines.entries()) {
        if (!/^ +- (\{ )?apiGroups: /.test(line) || !/verbs:/.test(lines.slice(index, index + 4).join("\n")))
          continue;
        // of a webhook's rules operations are asked for
        if (/operations:/.test(line)) continue;
        rules++;
        const before = lines.slice(0, index).findLast((one) => !/^ *(\{\{.*\}\})?$/.test(one)) ?? "";
        assert.match(before, /^ *#|^ +- \{ apiGroups: .*verbs/, `${file}:${index + 1}`);
      }
    }
    assert.ok(rules > 15, String(rules));
  });

  it("writes files that the agent and the webhook read", () => {
    writeFileSync(join(folder, "key"), Buffer.alloc(32, 1), { mode: 0o600 });
    for (const values of [DEFAULT, EVERYTHING_ELSE]) {
      const objects = objectsIn(render(values));
      const text = agentFile(objects);
      const raw = parse(text);
      assert.equal(raw.key, "file:/etc/holdfast-key/key");
      const env = { HOLDFAST_NODE: "a", HOLDFAST_ADDRESS: "10.99.0.2" };
      const keys = { key: "file:key", gatewayKey: "file:key" };
      const config = parseConfig(stringify({ ...raw, ...keys }), join(folder, "agent.yaml"), env);
      assert.deepEqual([config.node, config.listen.address], ["a", "10.99.0.2"]);
      const { spec } = objects.find(({ kind }) => kind === "DaemonSet");
      const labels = Object.entries(spec.selector.matchLabels).map(([key, value]) => `${key}=${value}`);
      assert.deepEqual(raw.agents.split(",").toSorted(), labels.toSorted());
      const webhook = objects.find(
        ({ data, metadata }) => data?.["webhook.yaml"] !== undefined && metadata.name === "holdfast-webhook",
      );
      const evictions = objects.find(
        ({ data, metadata }) =>
          data?.["webhook.yaml"] !== undefined && metadata.name === "holdfast-controller",
      );
      const { renewal } = parseWebhookConfig(evictions.data["webhook.yaml"], "evictions.yaml");
      const isRenewed = values === DEFAULT;
      // all that lead to it: an authority that one of them does not have is not trusted there
      const hooks = objects.filter(
        ({ kind, webhooks = [] }) =>
          /WebhookConfiguration$/.test(kind) &&
          webhooks.some(
            (one: { clientConfig: { service: { name: string } } }) =>
              one.clientConfig.service.name === "holdfast-controller",
          ),
      );
      assert.deepEqual(
        renewal?.kinds.toSorted(),
        isRenewed ? hooks.map(({ kind }) => kind).toSorted() : undefined,
      );
      assert.equal(hooks.length, 2);
      assert.equal(renewal?.configuration, isRenewed ? "holdfast-controller" : undefined);
      const { admin, gateways, proxy } = parseWebhookConfig(webhook.data["webhook.yaml"], "webhook.yaml");
      assert.deepEqual([admin?.port, gateways], [9400, true]);
      assert.deepEqual(
        proxy?.resources,
        values === DEFAULT
          ? DEFAULT_PROXY_RESOURCES
          : { requests: { cpu: "0.02", memory: "128Mi" }, limits: { cpu: "1", memory: "1Gi" } },
      );
      const secret = objects.find(({ stringData }) => stringData?.["gateway.yaml"] !== undefined);
      const led = parse(secret.stringData["gateway.yaml"]);
      assert.equal(led.key, raw.gatewayKey);
      const { services, store } = parseGatewayConfig(
        stringify({ ...led, key: "file:key" }),
        join(folder, "gateway.yaml"),
        { HOLDFAST_GATEWAY: "g1", HOLDFAST_ADDRESS: "10.244.3.2" },
      );
      assert.deepEqual(services, { configMap: "holdfast-gateway", address: "10.244.3.2" });
      assert.equal(store, raw.store);
    }
  });

  it("says nothing of the proxy's sizes where no value does, as with those of a version that had none", () => {
    const fileOf = (webhook: object): string =>
      objectsIn(render({ webhook })).find(
        ({ data, metadata }) => data?.["webhook.yaml"] !== undefined && metadata.name === "holdfast-webhook",
      ).data["webhook.yaml"];
    // an older webhook, which is there yet in an upgrade, does not know the key
    for (const webhook of [{}, { proxyResources: null }]) {
      const text = fileOf(webhook);
      assert.deepEqual(Object.keys(parse(text).proxy), ["image", "default"]);
      assert.deepEqual(parseWebhookConfig(text, "webhook.yaml").proxy?.resources, DEFAULT_PROXY_RESOURCES);
    }
    const text = fileOf({ proxyResources: { requests: { memory: "1Gi" } } });
    assert.deepEqual(parseWebhookConfig(text, "webhook.yaml").proxy?.resources.limits, {
      cpu: "1",
      memory: "1Gi",
    });
  });

  it("makes a certificate of the Service that its authority has signed, and one key for all agents", () => {
    const objects = objectsIn(render(DEFAULT));
    const certificateOf = (part: string) =>
      objects.find(
        ({ type, metadata }) => type === "kubernetes.io/tls" && metadata.name === `holdfast-${part}`,
      );
    const { data } = certificateOf("webhook");
    const [authority, certificate] = ["ca.crt", "tls.crt"].map(
      (name) => new X509Certificate(Buffer.from(data[name], "base64")),
    ) as [X509Certificate, X509Certificate];
    assert.ok(certificate.verify(authority.publicKey));
    assert.equal(certificate.checkHost("holdfast-webhook.holdfast.svc"), "holdfast-webhook.holdfast.svc");
    const { webhooks } = objects.find(
      ({ kind, metadata }) => kind === "MutatingWebhookConfiguration" && metadata.name === "holdfast",
    );
    for (const { clientConfig } of webhooks) assert.equal(clientConfig.caBundle, data["ca.crt"]);
    const evictions = objects.find(({ kind }) => kind === "ValidatingWebhookConfiguration");
    const ordinals = objects.find(
      ({ kind, metadata }) =>
        kind === "MutatingWebhookConfiguration" && metadata.name === "holdfast-controller",
    );
    for (const { webhooks: beside } of [evictions, ordinals])
      assert.equal(beside[0].clientConfig.caBundle, certificateOf("controller").data["ca.crt"]);
    const key = objects.find(({ kind, metadata }) => kind === "Secret" && metadata.name === "holdfast-key");
    assert.equal(Buffer.from(key.data.key, "base64").length, 32);
  });

  it("gives all who need it the same password of the store", () => {
    const objects = objectsIn(render(DEFAULT));
    const { password } = objects.find(({ stringData }) => stringData?.password !== undefined).stringData;
    const text = agentFile(objects);
    assert.equal(parse(text).store, `redis://:${password}@holdfast-redis.holdfast.svc:6379`);
  });

  it("gives the store an address where the cluster has no DNS", () => {
    const objects = objectsIn(render({ redis: { clusterIP: "10.96.0.50" } }));
    assert.match(parse(agentFile(objects)).store, /@10\.96\.0\.50:6379$/);
    const services = objects.filter(({ kind, spec }) => kind === "Service" && spec.clusterIP !== undefined);
    assert.deepEqual(
      services.map(({ metadata, spec }) => [metadata.name, spec.clusterIP]),
      [["holdfast-redis", "10.96.0.50"]],
    );
  });

  it("refuses values that it does not know", () => {
    for (const [set, told] of [
      ["webhook.replica=3", /replica/],
      ["webhook.failurePolicy=ignore", /failurePolicy/],
      ["webhook.proxyResources.limits.gpu=1", /gpu/],
      ["redis.clusterIP=none", /clusterIP/],
      ["store.url=memory:", /url/],
      ["agent.cri=containerd.sock", /cri/],
    ] as const) {
      const { status, stderr } = helm(["template", "holdfast", CHART, "--set", set]);
      assert.notEqual(status, 0, set);
      assert.match(stderr, told);
    }
  });
});
