/** `holdfast inject` and `uninject`: manifests on their way to kubectl. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { parse, parseAllDocuments } from "yaml";
import { runProgram } from "#control/cli/program.ts";
import { podShapes } from "#test/support/pod-shapes.ts";

const folder = mkdtempSync(join(tmpdir(), "holdfast-manifest-"));
after(() => rmSync(folder, { recursive: true }));

interface Done {
  status: number;
  out: string;
  err: string;
}

async function holdfast(args: string[], input: string): Promise<Done> {
  let [out, err] = ["", ""];
  const status = await runProgram(args, {
    out: { write: (text) => (out += text) },
    err: { write: (text) => (err += text) },
    env: {},
    runAgent: async () => assert.fail("an agent"),
    runGateway: async () => assert.fail("a gateway"),
    runWebhook: async () => assert.fail("a webhook"),
    runController: async () => assert.fail("a controller"),
    runEndpoints: async () => assert.fail("endpoints"),
    readInput: async () => input,
    onInterrupt: () => () => {},
  });
  return { status, out, err };
}

const inject = (text: string, ...more: string[]) =>
  holdfast(["inject", "--image", "localhost/holdfast/inside:1", "-f", "-", ...more], text);
const uninject = (text: string, ...more: string[]) => holdfast(["uninject", "-f", "-", ...more], text);

const MANIFEST = `# what clients know
apiVersion: v1
kind: Service
metadata: {name: chat}   # as it was written
spec:
    ports: [ {port: 80,   targetPort: 8080} ]
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat
spec:
  replicas: 2
  selector: { matchLabels: { app: chat } }
  template:
    metadata:
      labels: { app: chat }
    spec:
      containers:
        - name: chat # the only one
          image: "localhost/chat"
          command: [node, server.js]
          ports: [{ containerPort: 8080 }]
          env:
            - { name: ANSWER, value: "yes" } # a word
      volumes:
        - name: files
          secret: { secretName: files, defaultMode: 0640 }
---
# no pods
apiVersion: example.com/v1
kind: Deployment
metadata: { name: of-somebody-else }
spec: { template: { spec: { containers: none } } }
`;

describe("holdfast inject", () => {
  it("changes templates, and leaves other objects and every comment as they are written", async () => {
    const { status, out, err } = await inject(MANIFEST);
    assert.equal(status, 0, err);
    assert.equal(err, "");
    const [service, , other] = MANIFEST.split("---\n");
    const [first, second, third] = out.split("---\n");
    assert.equal(first, service);
    assert.equal(third, other);
    for (const comment of ["# the only one", "# a word", "defaultMode: 0640", '"localhost/chat"'])
      assert.ok(second?.includes(comment), comment);
    const { spec } = parse(second ?? "") as { spec: { template: { metadata: object; spec: object } } };
    const { containers, initContainers, volumes } = spec.template.spec as Record<string, { name: string }[]>;
    assert.deepEqual(
      initContainers?.map(({ name }) => name),
      ["holdfast"],
    );
    assert.deepEqual(
      volumes?.map(({ name }) => name),
      ["files", "holdfast"],
    );
    const [container] = containers as unknown as [{ command: string[] }];
    assert.deepEqual(container.command, ["/.holdfast/init", "-P", "--", "node", "server.js"]);
  });

  it("prints one object with --json, whose numbers and words are what kubectl takes them for", async () => {
    const { out } = await inject(MANIFEST, "--json");
    const list = JSON.parse(out) as { kind: string; items: Record<string, never>[] };
    assert.equal(list.kind, "List");
    assert.deepEqual(
      list.items.map(({ kind }) => kind),
      ["Service", "Deployment", "Deployment"],
    );
    const { volumes } = (list.items[1] as never as { spec: { template: { spec: { volumes: object[] } } } })
      .spec.template.spec;
    assert.deepEqual(volumes[0], { name: "files", secret: { secretName: "files", defaultMode: 0o640 } });
    const [one] = MANIFEST.split("---\n");
    assert.equal(JSON.parse((await inject(one ?? "", "-o", "json")).out).kind, "Service");
  });

  it("is undone by uninject, and changes nothing the second time", async () => {
    const { out: once } = await inject(MANIFEST);
    const again = await inject(once);
    assert.equal(again.out, once);
    assert.match(again.err, /^document 2, Deployment chat: it is injected already$/m);
    const back = await uninject(once);
    assert.equal(back.status, 0);
    const values = (text: string) => parseAllDocuments(text).map((document) => document.toJS() as unknown);
    assert.deepEqual(values(back.out), values(MANIFEST));
    assert.ok(back.out.includes("# the only one"));
  });

  it("does pods, every kind with a template, and Lists of them", async () => {
    const { pod } = podShapes().find(({ name }) => name === "bare") ?? assert.fail();
    const template = { metadata: { labels: { app: "x" } }, spec: pod.spec };
    const of = (apiVersion: string, kind: string) => ({
      apiVersion,
      kind,
      metadata: { name: "x" },
      spec: { template },
    });
    const items = [
      pod,
      of("apps/v1", "Deployment"),
      of("apps/v1", "StatefulSet"),
      of("apps/v1", "ReplicaSet"),
      of("v1", "ReplicationController"),
      of("apps/v1", "DaemonSet"),
      of("batch/v1", "Job"),
      { ...of("batch/v1", "CronJob"), spec: { jobTemplate: { spec: { template } } } },
    ];
    const list = {
      apiVersion: "v1",
      kind: "List",
      items: [{ apiVersion: "apps/v1", kind: "DeploymentList", items }],
    };
    const { status, out, err } = await inject(JSON.stringify(list), "-o", "json");
    assert.equal(status, 0, err);
    const [inner] = (JSON.parse(out) as { items: [{ items: object[] }] }).items;
    const changed = inner.items.map((item, index) => JSON.stringify(item) !== JSON.stringify(items[index]));
    assert.deepEqual(changed, [true, true, true, true, true, false, false, false]);
    assert.equal(err.trim().split("\n").length, 3);
    assert.match(err, /^document 1, CronJob x: nothing of a CronJob is moved, as its pods end/m);
  });

  it("changes what an alias stands for where it stands only", async () => {
    const text = `apiVersion: v1
kind: List
items:
  - &pod { apiVersion: v1, kind: Pod, metadata: { name: a }, spec: { containers: [{ name: x, image: y, command: [z], ports: [{ containerPort: 1 }] }] } }
  - { <<: *pod, kind: PodTemplate }
`;
    const { out } = await inject(text);
    const [pod, template] = (parse(out) as { items: [{ spec: object }, { spec: object }] }).items;
    assert.ok("initContainers" in pod.spec);
    assert.ok(!("initContainers" in template.spec));
  });

  it("prints nothing where one of several is refused, and says which, and the field", async () => {
    const refused = `---\napiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {hostNetwork: true, containers: [{name: x}]}\n`;
    const { status, out, err } = await inject(MANIFEST + refused);
    assert.equal(status, 1);
    assert.equal(out, "");
    assert.match(err, /nothing is printed.*: document 4, Pod bad: spec\.hostNetwork: /);
    const json = await inject(MANIFEST + refused, "--json");
    assert.equal(JSON.parse(json.out).error.code, "INJECT_REFUSED");
  });

  it("names document and field of what is not as Kubernetes has it", async () => {
    const deployment = (spec: string) =>
      `apiVersion: v1\nkind: ConfigMap\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: ${spec}\n`;
    const wrong: [text: string, told: RegExp][] = [
      ["a: [", /document 1: not YAML: /],
      ["a: 1\na: 2", /document 1: not YAML: /],
      ["- 1", /document 1: expected an object of Kubernetes with apiVersion and kind/],
      ["kind: List\nitems: [{}]", /document 1: items\[0\]: expected an object of Kubernetes/],
      [deployment("{}"), /document 2, Deployment x: spec\.template: expected a pod/],
      [
        deployment("{template: {spec: {containers: []}}}"),
        /document 2, Deployment x: spec\.template\.spec\.containers: expected at least one container/,
      ],
      [
        deployment("{template: {spec: {containers: [{name: x, command: node}]}}}"),
        /document 2, Deployment x: spec\.template\.spec\.containers\[0\]\.command: expected a list of words/,
      ],
    ];
    for (const [text, told] of wrong) {
      const { status, out, err } = await inject(text);
      assert.equal(status, 2, text);
      assert.equal(out, "");
      assert.match(err, told);
    }
  });

  it("reads a file, and says what it cannot read", async () => {
    const file = join(folder, "chat.yaml");
    writeFileSync(file, MANIFEST);
    const args = ["inject", "--image", "localhost/holdfast/inside:1", "-f"];
    assert.equal((await holdfast([...args, file], "")).out, (await inject(MANIFEST)).out);
    const { status, err } = await holdfast([...args, join(folder, "none.yaml")], "");
    assert.equal(status, 2);
    assert.match(err, /none\.yaml: cannot be read: ENOENT/);
  });

  it("puts pods in gateway mode where the cluster has gateways, with the proxy in them unless it is to be at the node", async () => {
    const image = ["--proxy-image", "localhost/holdfast/control:1"];
    const { out } = await inject(MANIFEST, "--gateways", ...image);
    assert.match(out, /holdfast\.dev\/mode: "?gateway/);
    assert.match(out, /name: holdfast-proxy\n\s*image: localhost\/holdfast\/control:1/);
    const atNode = (await inject(MANIFEST, "--gateways", "--proxy", "node")).out;
    assert.match(atNode, /holdfast\.dev\/mode: "?gateway/);
    for (const one of [atNode, (await inject(MANIFEST, ...image)).out])
      assert.doesNotMatch(one, /holdfast-proxy/);
    assert.doesNotMatch((await inject(MANIFEST)).out, /holdfast\.dev\/mode/);
    const without = await inject(MANIFEST, "--gateways");
    assert.equal(without.out, "");
    assert.match(without.err, /no image of the proxy is known here: .*--proxy-image/);
  });

  it("gives the image a policy, and asks for the image", async () => {
    const { out } = await inject(MANIFEST, "--image-pull-policy", "Always");
    assert.match(out, /imagePullPolicy: Always/);
    const { status, err } = await holdfast(["inject", "-f", "-"], MANIFEST);
    assert.equal(status, 2);
    assert.match(err, /--image <image>/);
  });
});
