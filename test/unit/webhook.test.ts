/** What the webhook answers the API server, and its file. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { stringify } from "yaml";
import { loadWebhookConfig, parseWebhookConfig } from "#control/config/webhook.ts";
import { answerReview, answerService } from "#control/kubernetes/webhook/review.ts";
import { applied, podShapes } from "#test/support/pod-shapes.ts";
import { reviewOf } from "#test/support/reviews.ts";

const OPTIONS = {
  image: "localhost/holdfast/inside:1",
  imagePullPolicy: "IfNotPresent",
  proxy: { image: "localhost/holdfast/control:1", default: "auto" },
} as const;

// biome-ignore lint/suspicious/noExplicitAny: an answer is looked at in every place.
type Raw = any;

describe("an AdmissionReview's answer", () => {
  for (const { name, pod, expected } of podShapes())
    it(`of ${name} is the patch, or a warning, and under enforce a refusal`, () => {
      for (const enforce of [false, true]) {
        const { verdict, review } = answerReview(JSON.stringify(reviewOf(pod)), OPTIONS, enforce);
        const { response, ...rest } = review as Raw;
        assert.deepEqual(rest, { apiVersion: "admission.k8s.io/v1", kind: "AdmissionReview" });
        assert.equal(response.uid, "u-1");
        assert.equal(response.allowed, verdict !== "denied");
        if (expected?.patch !== undefined) {
          assert.equal(verdict, "injected");
          assert.equal(response.patchType, "JSONPatch");
          const patch = JSON.parse(Buffer.from(response.patch, "base64").toString("utf8")) as Raw;
          assert.deepEqual(applied(pod, patch), applied(pod, expected.patch));
          assert.equal(response.warnings?.length, expected.warnings?.length);
        } else if (expected?.unchanged !== undefined) {
          assert.equal(verdict, "unchanged");
          assert.equal(response.patch, undefined);
        } else {
          assert.equal(verdict, enforce ? "denied" : "refused");
          const told = `holdfast: not injected: ${expected?.refused}`;
          if (enforce) assert.deepEqual(response.status, { code: 403, reason: "Forbidden", message: told });
          else assert.deepEqual(response.warnings, [told]);
          assert.equal(response.patch, undefined);
        }
      }
    });

  it("puts a pod in gateway mode where there are gateways, unless it says otherwise; with the proxy in it for their Services alone", () => {
    const bare = podShapes().find(({ name }) => name === "bare")?.pod as Raw;
    const asked: unknown[] = [];
    const modeOf = (annotations: object, isSelected: boolean | null): unknown => {
      const pod = { ...bare, metadata: { ...bare.metadata, labels: { app: "chat" }, annotations } };
      const select = (namespace: string, labels: object): boolean => {
        asked.push([namespace, labels]);
        return isSelected === true;
      };
      const gateways = isSelected === null ? null : { select };
      const review = reviewOf(pod, { namespace: "games" });
      const { response } = answerReview(JSON.stringify(review), { ...OPTIONS, gateways }, false)
        .review as Raw;
      const patch = JSON.parse(Buffer.from(response.patch, "base64").toString("utf8")) as Raw;
      return (applied(pod, patch) as Raw).metadata.annotations["holdfast.dev/mode"];
    };
    assert.equal(modeOf({}, null), undefined);
    assert.equal(modeOf({}, false), "gateway");
    assert.equal(modeOf({ "holdfast.dev/mode": "forward" }, false), "forward");
    assert.equal(modeOf({ "holdfast.dev/listen": "pod" }, true), undefined);
    assert.deepEqual(asked, []);
    const inside = { "holdfast.dev/proxy": "sidecar" };
    assert.equal(modeOf(inside, true), "gateway");
    assert.equal(modeOf(inside, false), undefined);
    assert.deepEqual(asked, [
      ["games", { app: "chat" }],
      ["games", { app: "chat" }],
    ]);
  });

  it("of a Service takes its selector, and gives it back", () => {
    const labels = { "holdfast.dev/gateway": "enabled" };
    const service = { metadata: { name: "chat", labels }, spec: { selector: { app: "chat" } } };
    const of = (object: object, oldObject: object | null): [string, unknown] => {
      const kind = { group: "", version: "v1", kind: "Service" };
      const { verdict, review } = answerService(JSON.stringify(reviewOf(object, { kind, oldObject })));
      const { response } = review as Raw;
      assert.equal(response.allowed, true);
      if (response.patch === undefined) return [verdict, null];
      const patch = JSON.parse(Buffer.from(response.patch, "base64").toString("utf8")) as Raw;
      return [verdict, applied(object, patch)];
    };
    const annotations = { "holdfast.dev/selector": "app=chat" };
    const adopted = { metadata: { name: "chat", labels, annotations }, spec: {} };
    assert.deepEqual(of(service, null), ["adopted", adopted]);
    assert.deepEqual(of(adopted, service), ["unchanged", null]);
    const without = { ...adopted, metadata: { name: "chat", annotations } };
    assert.equal(of(without, adopted)[0], "returned");
    assert.deepEqual(((of(without, adopted)[1] as Raw).spec as Raw).selector, { app: "chat" });
    assert.deepEqual(of({ metadata: { name: "chat" }, spec: {} }, null), ["unchanged", null]);
  });

  it("says whose pod it was, named or not yet", () => {
    const bare = podShapes().find(({ name }) => name === "bare")?.pod as Raw;
    const of = (metadata: object, more: object = {}) =>
      answerReview(JSON.stringify(reviewOf({ ...bare, metadata }, more)), OPTIONS, false).pod;
    assert.equal(of({ name: "bare" }), "default/bare");
    assert.equal(of({ generateName: "chat-6c9f7b5d4-" }), "default/chat-6c9f7b5d4-*");
    assert.equal(of({}, { name: "asked", namespace: "games" }), "games/asked");
  });

  it("to what is no creation of a pod changes nothing, and says that the rules are wrong", () => {
    const { pod } = podShapes()[0] ?? assert.fail();
    for (const more of [
      { operation: "UPDATE" },
      { kind: { group: "apps", version: "v1", kind: "Deployment" } },
      { kind: { group: "example.com", version: "v1", kind: "Pod" } },
      { subResource: "eviction" },
    ]) {
      const { verdict, review } = answerReview(JSON.stringify(reviewOf(pod, more)), OPTIONS, true);
      assert.equal(verdict, "unchanged");
      assert.match((review as Raw).response.warnings[0], /the rules of the webhook configuration/);
    }
  });

  it("to a pod that is none is a refusal that names the field", () => {
    for (const [object, field] of [
      [null, "expected a pod"],
      [{ spec: {} }, "spec.containers: expected a list of containers"],
      [{ spec: { containers: [{ name: 1 }] } }, "spec.containers.0.name: expected text"],
    ] as const) {
      const { verdict, reason } = answerReview(JSON.stringify(reviewOf(object)), OPTIONS, false);
      assert.equal(verdict, "refused");
      assert.ok(reason?.includes(field), `${reason}`);
    }
  });

  it("to what is no AdmissionReview is an error with the reason", () => {
    const whole = reviewOf(podShapes()[0]?.pod) as Raw;
    for (const [body, told] of [
      ["", /as JSON/],
      ["{", /as JSON/],
      ["null", /AdmissionReview of admission\.k8s\.io\/v1/],
      ["[]", /AdmissionReview/],
      [JSON.stringify({ ...whole, apiVersion: "admission.k8s.io/v1beta1" }), /apiVersion/],
      [JSON.stringify({ ...whole, kind: "Pod" }), /kind/],
      [JSON.stringify({ ...whole, request: undefined }), /request/],
      [JSON.stringify({ ...whole, request: { ...whole.request, uid: "" } }), /request\.uid/],
      [JSON.stringify({ ...whole, request: { ...whole.request, kind: "Pod" } }), /request\.kind/],
    ] as const)
      assert.throws(() => answerReview(body, OPTIONS, false), { code: "REQUEST_INVALID", message: told });
  });
});

describe("the webhook's configuration", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-webhook-config-"));
  after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, "webhook.yaml");
  const good = {
    listen: "0.0.0.0:8443",
    certificate: "tls.crt",
    key: "/etc/tls/tls.key",
    image: "registry.example/holdfast/inside:1",
    imagePullPolicy: "Always",
    proxy: {
      image: "registry.example/holdfast/control:1",
      default: "sidecar",
      resources: {
        requests: { cpu: "20m", memory: "128Mi" },
        limits: { cpu: "2", memory: "1Gi" },
      },
    },
    admin: "0.0.0.0:9400",
    renewal: {
      namespace: "holdfast",
      secret: "holdfast-webhook",
      kinds: ["ValidatingWebhookConfiguration"],
      configuration: "holdfast",
      names: ["holdfast-webhook.holdfast.svc"],
      days: 90,
    },
    gateways: true,
    evictionRequests: true,
    drainMs: 100,
  };

  it("is the documented file, with its defaults", () => {
    writeFileSync(file, stringify(good));
    assert.deepEqual(loadWebhookConfig(file), {
      ...good,
      listen: { address: "0.0.0.0", port: 8443 },
      admin: { address: "0.0.0.0", port: 9400 },
      certificate: join(folder, "tls.crt"),
    });
    const { listen, certificate, key, image } = good;
    const least = parseWebhookConfig(stringify({ listen, certificate, key, image }), file);
    assert.deepEqual(
      [least.admin, least.imagePullPolicy, least.renewal, least.gateways, least.drainMs, least.proxy],
      [null, null, null, false, 5_000, null],
    );
    const proxy = { image: "control:1", resources: { limits: { cpu: 2 } } };
    const sized = parseWebhookConfig(stringify({ listen, certificate, key, image, proxy }), file);
    assert.deepEqual(sized.proxy, {
      image: "control:1",
      default: "auto",
      resources: { requests: { cpu: "50m", memory: "96Mi" }, limits: { cpu: "2", memory: "512Mi" } },
    });
  });

  it("lets the proxy have what it asks for, where no limit is named; one that is named holds", () => {
    const { listen, certificate, key, image } = good;
    const sized = (resources: object) => {
      const proxy = { image: "control:1", resources };
      return parseWebhookConfig(stringify({ listen, certificate, key, image, proxy }), "w.yaml").proxy
        ?.resources;
    };
    assert.deepEqual(sized({ requests: { memory: "1Gi" } }), {
      requests: { cpu: "50m", memory: "1Gi" },
      limits: { cpu: "1", memory: "1Gi" },
    });
    assert.deepEqual(sized({ requests: { cpu: 4 }, limits: { memory: "1Gi" } }), {
      requests: { cpu: "4", memory: "96Mi" },
      limits: { cpu: "4", memory: "1Gi" },
    });
    assert.throws(() => sized({ requests: { memory: "1Gi" }, limits: { memory: "512Mi" } }), {
      message: /requests\.memory: expected at most the limit \(512Mi\)/,
    });
  });

  it("has every mistake as one line", () => {
    for (const [change, told] of [
      [{ listen: "8443" }, 'listen: expected IP:PORT ([IP]:PORT for IPv6), got "8443"'],
      [{ certificate: "" }, 'certificate: expected the path of a PEM file, got ""'],
      [{ key: undefined }, "key: expected the path of a PEM file, got nothing"],
      [
        { image: "a b" },
        'image: expected the name of an image, as registry.example/holdfast/inside:1, got "a b"',
      ],
      [{ imagePullPolicy: "never" }, 'imagePullPolicy: expected Always, IfNotPresent or Never, got "never"'],
      [{ admin: "0.0.0.0:8443" }, "admin: expected an address of its own, got that of listen"],
      [{ drainMs: -1 }, "drainMs: expected milliseconds 0-60000, got -1"],
      [
        { renewal: { ...good.renewal, names: [] } },
        "renewal.names: expected a list of 1-10 names of the Service, got an empty list",
      ],
      [
        { renewal: { ...good.renewal, kinds: ["Webhook"] } },
        'renewal.kinds[0]: expected MutatingWebhookConfiguration or ValidatingWebhookConfiguration, got "Webhook"',
      ],
      [{ renewal: { ...good.renewal, days: 0 } }, "renewal.days: expected days 1-3650, got 0"],
      [
        { proxy: { image: "registry.example/holdfast/control:1", default: "pod" } },
        'proxy.default: expected auto, node or sidecar, got "pod"',
      ],
      [
        { proxy: { image: "control:1", resources: { requests: { memory: "96 MB" } } } },
        'proxy.resources.requests.memory: expected an amount above 0 as Kubernetes writes it, as 50m or 96Mi, got "96 MB"',
      ],
      [
        { proxy: { image: "control:1", resources: { limits: { memory: "64Mi" } } } },
        "proxy.resources.requests.memory: expected at most the limit (64Mi), got nothing",
      ],
      [{ images: 1 }, "images: unknown key"],
    ] as const)
      assert.throws(() => parseWebhookConfig(stringify({ ...good, ...change }), "w.yaml"), {
        code: "CONFIG_INVALID",
        message: `w.yaml: ${told}`,
      });
  });
});
