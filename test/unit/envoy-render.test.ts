/**
 * What policies come to: golden files, and that what is made says the whole policy.
 *
 *   UPDATE_POLICIES=1 npm test -- test/unit/envoy-render.test.ts    writes them, to be read before they are committed
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import fc from "fast-check";
import { parseAllDocuments } from "yaml";
import { readPolicy } from "#control/cli/envoy.ts";
import { readRendered } from "#envoy/generate/read.ts";
import { render } from "#envoy/generate/render.ts";
import { jsonOf, yamlOf } from "#envoy/generate/text.ts";
import { type Mode, normalised, type Policy, policySchema } from "#envoy/policy.ts";

const folder = join(import.meta.dirname, "../policies");
const GOLDEN: [policy: string, modes: Mode[]][] = [
  ["chat", ["sidecar", "envoyfilter", "plain"]],
  ["by-address", ["sidecar", "plain", "gateway", "ambient"]],
  ["by-label", ["sidecar", "plain"]],
];

describe("a policy", () => {
  for (const [name, modes] of GOLDEN)
    for (const mode of modes)
      it(`${name} comes to ${name}.${mode}.yaml`, () => {
        const policy = readPolicy(join(folder, `${name}.yaml`));
        const adapted = mode === "gateway" || mode === "ambient" ? narrowed(policy, mode) : policy;
        const rendered = render(adapted, mode);
        const text = yamlOf(rendered, policy.namespace);
        const file = join(folder, `${name}.${mode}.yaml`);
        if (process.env.UPDATE_POLICIES === "1") writeFileSync(file, text);
        assert.equal(text, readFileSync(file, "utf8"));
        const objects = parseAllDocuments(text).map((document) => document.toJS() as unknown);
        assert.deepEqual(
          objects,
          rendered.documents.map(({ object }) => JSON.parse(JSON.stringify(object))),
          "the comments change nothing",
        );
        const json = JSON.parse(jsonOf(rendered)) as { kind?: string; items?: unknown[] };
        assert.deepEqual(json.kind === "List" ? json.items : [json], objects);
      });

  /** What cannot be had there is refused, see below. */
  function narrowed(policy: Policy, mode: "gateway" | "ambient"): Policy {
    if (mode === "gateway") return policy;
    return { ...policy, ports: policy.ports.map((port) => ({ ...port, identity: "none" as const })) };
  }

  it("is what is read of its resources", () => {
    for (const mode of ["sidecar", "envoyfilter", "plain"] as const)
      fc.assert(
        fc.property(policies(mode), (raw) => {
          const policy = policySchema.parse(raw);
          const { documents, marks } = render(policy, mode);
          const objects = parseAllDocuments(yamlOf({ documents, marks }, policy.namespace)).map(
            (document) => document.toJS() as unknown,
          );
          assert.deepEqual(readRendered(objects, marks, mode), normalised(policy));
        }),
        { numRuns: 60 },
      );
  });

  it("is to YAML 1.1, as kubectl reads it, what it is to 1.2: labels that look like truth or numbers are strings", () => {
    const selector = Object.fromEntries(
      ["yes", "on", "no", "off", "y", "n", "1_000", "0b1", "010", "1e3", "2001-01-01"].map((value) => [
        `label-${value}`,
        value,
      ]),
    );
    const policy = policySchema.parse({
      name: "chat",
      selector: { ...selector, y: "y" },
      ports: [{ port: 8080, protocol: "http" }],
    });
    for (const mode of ["sidecar", "envoyfilter", "plain"] as const) {
      const { documents, marks } = render(policy, mode);
      const read = parseAllDocuments(yamlOf({ documents, marks }, "default"), { version: "1.1" });
      assert.deepEqual(
        read.map((document) => document.toJS() as unknown),
        documents.map(({ object }) => JSON.parse(JSON.stringify(object))),
      );
    }
  });

  it("has no cookie whose name Envoy would take for a command", () => {
    const of = (cookie: string) =>
      policySchema.safeParse({
        name: "chat",
        selector: { app: "chat" },
        ports: [{ port: 8080, protocol: "http" }],
        stickiness: { cookie, key: "address" },
      });
    assert.equal(of("hf!#$&'*+-.^_`|~").success, true);
    assert.match(of("hf%1").error?.issues[0]?.message ?? "", /^expected the name of a cookie .*\(not %\)$/);
  });

  it("says what its pods may reach, in the Sidecar itself", () => {
    const reach = {
      egress: [{ hosts: ["./*"], port: { number: 443, protocol: "TLS", name: "tls" } }],
      outboundTrafficPolicy: { mode: "REGISTRY_ONLY" },
    };
    const policy = policySchema.parse({ name: "a", selector: { app: "a" }, ports: [port(80)], ...reach });
    const [{ object, reasons } = assert.fail()] = render(policy, "sidecar").documents;
    const { egress, outboundTrafficPolicy } = (object as { spec: Record<string, unknown> }).spec;
    assert.deepEqual({ egress, outboundTrafficPolicy }, reach);
    const tellsOfAll = (all: { text: string }[]) =>
      all.some(({ text }) => /reach all of the mesh/.test(text));
    assert.equal(tellsOfAll(reasons), false);
    const [without = assert.fail()] = render({ ...policy, egress: null }, "sidecar").documents;
    assert.equal(tellsOfAll(without.reasons), true);
  });

  it("is not read of resources that somebody has changed", () => {
    const { documents, marks } = render(readPolicy(join(folder, "chat.yaml")), "sidecar");
    const objects = structuredClone(documents.map(({ object }) => object)) as {
      spec: { ingress: { defaultEndpoint: string }[] };
    }[];
    (objects[0]?.spec.ingress[0] as { defaultEndpoint: string }).defaultEndpoint = "127.0.0.1:1";
    assert.throws(() => readRendered(objects, marks, "sidecar"), /somebody has changed Sidecar/);
  });

  it("selects, has a priority and is relative to nothing in each EnvoyFilter", () => {
    fc.assert(
      fc.property(fc.constantFrom("sidecar" as const, "envoyfilter" as const), fc.gen(), (mode, gen) => {
        const policy = policySchema.parse(gen(policies, mode));
        for (const { object } of render(policy, mode).documents) {
          if ((object as { kind: string }).kind !== "EnvoyFilter") continue;
          const { spec } = object as {
            spec: { priority: number; workloadSelector: object; configPatches: Patch[] };
          };
          assert.ok(spec.priority > 0 && Object.keys(spec.workloadSelector).length > 0);
          for (const { applyTo, match, patch } of spec.configPatches) {
            assert.ok(
              ["CLUSTER", "HTTP_FILTER"].includes(applyTo),
              "nothing of an HCM or of tcp_proxy is patched",
            );
            assert.ok(["MERGE", "INSERT_FIRST"].includes(patch.operation));
            assert.equal(JSON.stringify(match).includes("subFilter"), false);
            if (patch.value.transport_socket !== undefined)
              assert.deepEqual(Object.keys(patch.value), ["transport_socket"]);
            if (patch.value.type === "STATIC") assert.equal(patch.value.lb_policy, "LEAST_REQUEST");
          }
        }
      }),
    );
  });

  const refused: [what: string, change: object, mode: Mode, message: RegExp][] = [
    ["two ports of one number", { ports: [port(80), port(80)] }, "sidecar", /ports\.1\.port|port of its own/],
    [
      "two ports at one of the proxy",
      { ports: [{ ...port(80), proxy: 15_901 }, port(81)] },
      "sidecar",
      /own/,
    ],
    [
      "a cookie of TCP",
      { ports: [port(80, "tcp")], stickiness: { cookie: "a" } },
      "sidecar",
      /nothing of TCP/,
    ],
    [
      "workloads without labels",
      { stickiness: { cookie: "a" } },
      "sidecar",
      /stickiness\.workloads: expected/,
    ],
    [
      "sessions of everybody",
      { stickiness: { cookie: "a", key: "address" } },
      "sidecar",
      /stickiness\.clients/,
    ],
    [
      "egress that names no namespace",
      { egress: [{ hosts: ["shop"] }] },
      "sidecar",
      /egress\.0|hosts: \['\.\/\*'/,
    ],
    [
      "a policy for the rest that there is not",
      { outboundTrafficPolicy: { mode: "NONE" } },
      "sidecar",
      /REGISTRY_ONLY/,
    ],
    ["egress, and no Sidecar", { egress: [{ hosts: ["./*"] }] }, "envoyfilter", /a Sidecar's/],
    [
      "identity in ambient",
      { ports: [{ ...port(80), identity: "proxy-v2" }] },
      "ambient",
      /identity: expected none/,
    ],
    ["a gateway that is not named", {}, "gateway", /gateway: expected/],
    [
      "workloads of Envoy Gateway",
      { gateway: { name: "eg" }, stickiness: { cookie: "a" } },
      "gateway",
      /address/,
    ],
  ];
  for (const [what, change, mode, message] of refused)
    it(`with ${what} is refused, with the cure`, () => {
      const raw = { name: "a", selector: { app: "a" }, ports: [port(80)], ...change };
      assert.throws(() => render(policySchema.parse(raw), mode), message);
    });

  it("is refused for an istiod that is too old, or none", () => {
    const policy = policySchema.parse({ name: "a", selector: { app: "a" }, ports: [port(80)] });
    assert.throws(() => render(policy, "sidecar", "1.12.3"), /expected 1\.20 or newer/);
    assert.throws(() => render(policy, "sidecar", "latest"), /expected a version/);
  });
});

interface Patch {
  applyTo: string;
  match: object;
  patch: { operation: string; value: Record<string, unknown> };
}

function port(number: number, protocol = "http"): object {
  return { port: number, protocol };
}

/** Those that the mode can say all of. */
function policies(mode: "sidecar" | "envoyfilter" | "plain"): fc.Arbitrary<object> {
  const word = fc.stringMatching(/^[a-z]([-a-z0-9]{0,20}[a-z0-9])?$/);
  const labels = fc.dictionary(word, word, { minKeys: 1, maxKeys: 3 });
  const seconds = fc.option(fc.integer({ min: 1, max: 31_536_000 }));
  const path = fc.constantFrom("/", "/cart", "/a/b.c");
  const cookie = fc.constantFrom("hf", "__Host-a.b", "a+b|c", "$x");
  const isPlain = mode === "plain";
  const workloads = fc.uniqueArray(isPlain ? fc.oneof(word, fc.constant("games.chat-0")) : word, {
    minLength: 1,
    maxLength: 5,
  });
  const byWorkload = fc.tuple(cookie, path, workloads, labels).map(([cookie, path, names, labels]) => ({
    stickiness: {
      cookie,
      path,
      key: "workload",
      workloads: names.map((name) => (isPlain ? { name } : { name, labels })),
    },
  }));
  const byAddress = fc.tuple(cookie, path, seconds, labels).map(([cookie, path, ttlSeconds, clients]) => ({
    stickiness: { cookie, path, key: "address", ttlSeconds, ...(isPlain ? {} : { clients }) },
  }));
  const byLabel = fc.constant({
    stickiness: { cookie: "hf", key: "address" },
    istio: { persistentSessions: true },
  });
  const sticky = isPlain ? fc.oneof(byWorkload, byAddress) : fc.oneof(byWorkload, byAddress, byLabel);
  const numbers = fc.uniqueArray(fc.integer({ min: 1, max: 15_000 }), { minLength: 1, maxLength: 6 });
  const one = fc.tuple(
    fc.constantFrom("tcp", "http", "websocket", "h2"),
    fc.constantFrom("none", "proxy-v2"),
    fc.boolean(),
  );
  return fc
    .record({
      name: word,
      namespace: word,
      selector: labels,
      numbers,
      kinds: fc.array(one, { minLength: 6, maxLength: 6 }),
      idleSeconds: seconds,
      drainSeconds: seconds,
      sticky: fc.option(sticky),
      ads: fc.constantFrom(null, "127.0.0.1:18000"),
      reach: fc.record({
        egress: fc.constantFrom(null, [{ hosts: ["./*", "istio-system/*"] }]),
        outboundTrafficPolicy: fc.constantFrom(null, { mode: "REGISTRY_ONLY" }),
      }),
    })
    .map(({ numbers, kinds, sticky, ads, reach, ...policy }) => {
      const ports = numbers.map((number, index) => {
        const [protocol, identity, isOther] = kinds[index] as [string, string, boolean];
        const other = isOther && !isPlain ? { proxy: 20_000 + number, servicePort: 30_000 } : {};
        return { port: number, protocol, identity, ...other };
      });
      const isSticky = ports.some(({ protocol }) => protocol !== "tcp");
      return {
        ...policy,
        ports,
        ...(isSticky ? sticky : {}),
        ...(isPlain ? { plain: { ads } } : {}),
        ...(mode === "sidecar" ? reach : {}),
      };
    });
}
