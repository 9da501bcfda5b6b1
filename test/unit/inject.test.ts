/**
 * What injection makes of pods: the shapes of `test/pods`, and the rules that hold for every pod.
 *
 *   UPDATE_PODS=1 npm test -- test/unit/inject.test.ts    writes what comes out into the files, to be read before it is committed
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { describe, it } from "node:test";
import fc from "fast-check";
import { stringify } from "yaml";
import { parseQuantity } from "#control/config/quantity.ts";
import { type InjectOptions, inject, type Outcome, uninject } from "#control/kubernetes/inject/inject.ts";
import { patchOf } from "#control/kubernetes/inject/json-patch.ts";
import { ANNOTATION_BYTES_MAX } from "#control/kubernetes/inject/obstacles.ts";
import { type Container, type Pod, podSchema } from "#control/kubernetes/inject/pod.ts";
import { applied, type Expected, type PodShape, podShapes } from "#test/support/pod-shapes.ts";

const OPTIONS: InjectOptions = {
  image: "localhost/holdfast/inside:1",
  imagePullPolicy: "IfNotPresent",
  proxy: { image: "localhost/holdfast/control:1", default: "auto" },
};
const PATCH_BYTES_MAX = 2_800;

function injected(pod: Pod): Pod {
  const outcome = inject(pod, OPTIONS);
  assert.equal(outcome.kind, "injected", JSON.stringify(outcome));
  return (outcome as Outcome & { kind: "injected" }).pod;
}

it("a mode that the cluster's gateways have said is taken out again", () => {
  const pod = podShapes().find(({ name }) => name === "bare")?.pod as Pod;
  const outcome = inject(pod, { ...OPTIONS, gateways: { isSelected: () => false } });
  assert.equal(outcome.kind, "injected");
  const made = (outcome as Outcome & { kind: "injected" }).pod;
  assert.equal(made.metadata?.annotations?.["holdfast.dev/mode"], "gateway");
  const back = uninject(made);
  assert.deepEqual((back as Outcome & { kind: "injected" }).pod, uninjectedOf(pod));
});

it("the controller is a responder to EvictionRequests where it is to be, beside the pod's own, and is taken out again", () => {
  const bare = podShapes().find(({ name }) => name === "bare")?.pod as Pod;
  const own = [{ name: "example.com/backup", priority: 30_000 }];
  const responders = (pod: Pod): unknown => {
    const outcome = inject(pod, { ...OPTIONS, evictionRequests: true });
    assert.equal(outcome.kind, "injected");
    const made = (outcome as Outcome & { kind: "injected" }).pod;
    const back = uninject(made) as Outcome & { kind: "injected" };
    assert.deepEqual(back.pod, uninjectedOf(pod));
    return made.spec.evictionResponders;
  };
  const ours = { name: "holdfast.dev/controller", priority: 20_000 };
  const withResponders = (evictionResponders: object[]): Pod =>
    ({ ...bare, spec: { ...bare.spec, evictionResponders } }) as Pod;
  assert.deepEqual(responders(bare), [ours]);
  assert.deepEqual(responders(withResponders(own)), [...own, ours]);
  // whoever has named it has its reasons
  const chosen = [{ ...ours, priority: 40_000 }];
  assert.deepEqual(responders(withResponders(chosen)), chosen);
  const full = Array.from({ length: 10 }, (_, at) => ({ name: `example.com/${at}`, priority: 1_000 + at }));
  assert.deepEqual(responders(withResponders(full)), full);
  const grouped = { ...bare, spec: { ...bare.spec, schedulingGroup: {} } } as Pod;
  assert.equal(responders(grouped), undefined);
  assert.equal(injected(bare).spec.evictionResponders, undefined);
});

it("the proxy is at the node where clients come to its address, whatever the others have", () => {
  const { pod } = podShapes().find(({ name }) => name === "bare") as PodShape;
  const options = {
    ...OPTIONS,
    proxy: { image: "localhost/holdfast/control:1", default: "sidecar" },
  } as const;
  const places = [{}, { "holdfast.dev/listen": "node" }, { "holdfast.dev/proxy": "node" }].map(
    (annotations) => {
      const outcome = inject({ ...pod, metadata: { name: "bare", annotations } }, options);
      assert.ok(outcome.kind === "injected");
      return (outcome.pod.spec.initContainers ?? []).map(({ name }) => name);
    },
  );
  assert.deepEqual(places, [["holdfast-proxy"], ["holdfast"], ["holdfast"]]);
});

it("the proxy is in pods in gateway mode alone where nothing is said of it, whoever says the mode", () => {
  const { pod } = podShapes().find(({ name }) => name === "bare") as PodShape;
  const placeOf = (annotations: Record<string, string>, hasGateways: boolean, isSelected = true): string => {
    const gateways = hasGateways ? { isSelected: () => isSelected } : null;
    const outcome = inject({ ...pod, metadata: { name: "bare", annotations } }, { ...OPTIONS, gateways });
    assert.ok(outcome.kind === "injected", JSON.stringify(outcome));
    const { initContainers = [] } = outcome.pod.spec;
    const said = outcome.pod.metadata?.annotations ?? {};
    const has = (initContainers ?? []).some(({ name }) => name === "holdfast-proxy");
    assert.equal(said["holdfast.dev/proxy"], has ? "sidecar" : annotations["holdfast.dev/proxy"]);
    return `${has ? "sidecar" : "node"}, ${said["holdfast.dev/mode"] ?? "forward"}`;
  };
  const mode = (value: string) => ({ "holdfast.dev/mode": value });
  const proxy = (value: string) => ({ "holdfast.dev/proxy": value });
  assert.deepEqual(
    [
      placeOf({}, true),
      // a Service may be labelled any time later
      placeOf({}, true, false),
      placeOf(mode("gateway"), false),
      placeOf({}, false),
      placeOf(mode("forward"), true),
      placeOf({ "holdfast.dev/listen": "pod" }, true),
      placeOf(proxy("node"), true),
      placeOf(proxy("sidecar"), true, false),
      placeOf({ ...mode("gateway"), "holdfast.dev/listen": "node" }, true),
    ],
    [
      ...["sidecar, gateway", "sidecar, gateway", "sidecar, gateway"],
      ...["node, forward", "node, forward", "node, forward"],
      ...["node, gateway", "sidecar, forward", "node, gateway"],
    ],
  );
});

it("a mesh is told of the sidecar's ports beside those that the pod names, unless it names none, and as before afterwards", () => {
  const { pod } = podShapes().find(({ name }) => name === "sidecar") as PodShape;
  const istio = "traffic.sidecar.istio.io/excludeInboundPorts";
  const saidOf = (own: Record<string, string>): string | undefined => {
    const annotations = { "holdfast.dev/proxy": "sidecar", ...own };
    const outcome = inject({ ...pod, metadata: { name: "sidecar", annotations } }, OPTIONS);
    assert.ok(outcome.kind === "injected");
    const back = uninject(outcome.pod);
    assert.ok(back.kind === "injected");
    assert.deepEqual(back.pod.metadata?.annotations, annotations);
    return outcome.pod.metadata?.annotations?.[istio];
  };
  assert.equal(saidOf({}), "15898,15899");
  assert.equal(saidOf({ [istio]: "25, 15899" }), "25,15899,15898");
  assert.equal(saidOf({ [istio]: "" }), "");
});

it("a pod whose proxy is to be in it is refused where it is not known what runs it", () => {
  const { pod } = podShapes().find(({ name }) => name === "gateway") as PodShape;
  const outcome = inject(pod, { ...OPTIONS, proxy: { image: null, default: "auto" } });
  assert.ok(outcome.kind === "refused");
  assert.match(
    outcome.problem.message,
    /give the injector one \(proxy\.image of the webhook, --proxy-image\)/,
  );
  assert.equal(inject(pod, { ...OPTIONS, proxy: null }).kind, "injected");
});

describe("what the containers of ours ask for", () => {
  type Amounts = Record<string, string | number>;
  type Sizes = { requests?: Amounts; limits?: Amounts };
  const SIDECAR = { "holdfast.dev/proxy": "sidecar" };

  function pod(own: Sizes, { whole, said }: { whole?: Sizes; said?: Sizes } = {}): Pod {
    const { pod: bare } = podShapes().find(({ name }) => name === "bare") as PodShape;
    const [container] = bare.spec.containers as [Container];
    const annotations = {
      ...SIDECAR,
      ...(said === undefined ? {} : { "holdfast.dev/proxy-resources": JSON.stringify(said) }),
    };
    return {
      metadata: { name: "sized", annotations },
      spec: {
        containers: [{ ...container, resources: own }],
        ...(whole === undefined ? {} : { resources: whole }),
      },
    };
  }

  function ours(from: Pod, options = OPTIONS): unknown {
    const outcome = inject(from, options);
    assert.ok(outcome.kind === "injected", JSON.stringify(outcome));
    return outcome.pod.spec.initContainers?.[0]?.resources;
  }

  it("has no limit above the largest of the pod's own, and none below what it requests", () => {
    const limits = (memory: string | number, ...more: string[]): unknown => {
      const from = pod({ limits: { memory } });
      const rest = more.map((one, at) => ({ name: `${at}`, resources: { limits: { memory: one } } }));
      from.spec.initContainers = rest;
      return (ours(from) as Sizes).limits;
    };
    assert.deepEqual(limits("256Mi"), { memory: "256Mi" });
    assert.deepEqual(limits(268435456), { memory: "268435456" });
    assert.deepEqual(limits("128Mi", "0.2Gi", "100M"), { memory: "0.2Gi" });
    assert.deepEqual(limits("64Mi"), { memory: "96Mi" });
    assert.deepEqual(limits("4Gi"), { memory: "512Mi" });
  });

  it("is all that it may have where what the pod gets is guaranteed, however its amounts are written", () => {
    assert.deepEqual(
      ours(pod({ requests: { cpu: 1, memory: "1Gi" }, limits: { cpu: "1000m", memory: "1024Mi" } })),
      {
        requests: { cpu: "1", memory: "512Mi" },
        limits: { cpu: "1", memory: "512Mi" },
      },
    );
    assert.deepEqual(ours(pod({ limits: { cpu: "0.25", memory: "200Mi" } })), {
      requests: { cpu: "0.25", memory: "200Mi" },
      limits: { cpu: "0.25", memory: "200Mi" },
    });
  });

  it("is of the sizes that the injector has, and the pod says", () => {
    const own = { requests: { memory: "1Gi" }, limits: { memory: "2Gi" } };
    const resources = {
      requests: { cpu: "10m", memory: "128Mi" },
      limits: { cpu: "2", memory: "1Gi" },
    };
    const sized = { ...OPTIONS, proxy: { image: "localhost/control", default: "auto" as const, resources } };
    assert.deepEqual(ours(pod(own), sized), {
      requests: { cpu: "10m", memory: "128Mi" },
      limits: { memory: "1Gi" },
    });
    const said = { requests: { memory: "160Mi" }, limits: { cpu: "500m", memory: "3Gi" } };
    assert.deepEqual(ours(pod(own, { said }), sized), {
      requests: { cpu: "10m", memory: "160Mi" },
      limits: { cpu: "500m", memory: "3Gi" },
    });
    // less than what the injector would have it request
    assert.deepEqual(ours(pod(own, { said: { limits: { memory: "64Mi" } } })), {
      requests: { cpu: "50m", memory: "64Mi" },
      limits: { memory: "64Mi" },
    });
    assert.equal(ours(pod({})), undefined);
    assert.deepEqual(ours(pod({}, { said })), {
      requests: { cpu: "50m", memory: "160Mi" },
      limits: { cpu: "500m", memory: "3Gi" },
    });
  });

  it("is added to what the pod says of all its containers, and taken out again", () => {
    const wholeOf = (from: Pod): unknown => {
      const made = injected(from);
      const back = uninject(made) as Outcome & { kind: "injected" };
      assert.deepEqual(back.pod, from);
      return made.spec.resources;
    };
    const own = { requests: { memory: "200Mi" } };
    assert.deepEqual(
      wholeOf(pod(own, { whole: { requests: { memory: "256Mi" }, limits: { memory: "0.5Gi" } } })),
      { requests: { memory: "352Mi" }, limits: { memory: "1024Mi" } },
    );
    // which is so guaranteed, and stays so
    assert.deepEqual(wholeOf(pod({}, { whole: { limits: { cpu: "250m", memory: "256Mi" } } })), {
      requests: { cpu: "500m", memory: "512Mi" },
      limits: { cpu: "500m", memory: "512Mi" },
    });
    // what it would be given for the limit is written, and what its containers request is added up as before
    assert.deepEqual(wholeOf(pod({}, { whole: { limits: { memory: "1Gi" } } })), {
      requests: { memory: "1120Mi" },
      limits: { memory: "1536Mi" },
    });
    assert.deepEqual(wholeOf(pod(own, { whole: { limits: { memory: "1Gi" } } })), {
      limits: { memory: "1536Mi" },
    });
    assert.deepEqual(wholeOf(pod(own, { whole: {} })), {});
  });

  it("is in the init container what the container that moves has, which a LimitRange lets in", () => {
    const own = {
      requests: { cpu: "10m", memory: "1Gi", "ephemeral-storage": "1Gi", "hugepages-2Mi": "2Mi" },
      limits: { memory: "2Gi", "hugepages-2Mi": "2Mi" },
    };
    const from = pod(own);
    from.metadata = { name: "sized" };
    assert.deepEqual(ours(from), {
      requests: { cpu: "10m", memory: "1Gi", "ephemeral-storage": "1Gi" },
      limits: { memory: "2Gi" },
    });
  });
});

/** Of one that was injected without. */
function uninjectedOf(pod: Pod): Pod {
  return (uninject(injected(pod)) as Outcome & { kind: "injected" }).pod;
}

function problemOf(pod: Pod): string {
  const outcome = inject(pod, OPTIONS);
  assert.equal(outcome.kind, "refused", JSON.stringify(outcome));
  const { problem } = outcome as Outcome & { kind: "refused" };
  return `${problem.at}: ${problem.message}`;
}

function foundOf(pod: Pod): Expected {
  const outcome = inject(pod, OPTIONS);
  if (outcome.kind === "unchanged") return { unchanged: outcome.reason };
  if (outcome.kind === "refused") return { refused: `${outcome.problem.at}: ${outcome.problem.message}` };
  const { warnings } = outcome;
  return { patch: patchOf(pod, outcome.pod), ...(warnings.length === 0 ? {} : { warnings }) };
}

/** As the API server has it: what is empty is not there. */
function withoutEmpty<T>(value: T): T {
  if (Array.isArray(value)) return value.map(withoutEmpty) as T;
  if (typeof value !== "object" || value === null) return value;
  const kept = Object.entries(value)
    .map(([key, one]) => [key, withoutEmpty(one)] as const)
    .filter(([key, one]) => !(["emptyDir", "value"].includes(key) ? false : isEmpty(one)));
  return Object.fromEntries(kept) as T;
}

function isEmpty(value: unknown): boolean {
  return value == null || (typeof value === "object" && Object.keys(value).length === 0);
}

/** https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, of what our pods can say */
function isRestricted({ spec }: Pod): boolean {
  const all = spec.securityContext as Container["securityContext"];
  return [...spec.containers, ...(spec.initContainers ?? [])].every(({ securityContext: own }) => {
    const capabilities = (own as { capabilities?: { drop?: string[]; add?: string[] } } | null)?.capabilities;
    return (
      own?.allowPrivilegeEscalation === false &&
      (own.runAsNonRoot ?? all?.runAsNonRoot) === true &&
      (own.runAsUser ?? all?.runAsUser) !== 0 &&
      (own.seccompProfile ?? all?.seccompProfile)?.type === "RuntimeDefault" &&
      capabilities?.drop?.includes("ALL") === true &&
      (capabilities.add ?? []).every((name) => name === "NET_BIND_SERVICE")
    );
  });
}

function amountOf(quantity: string | number | undefined): bigint {
  return parseQuantity(quantity ?? "") ?? assert.fail(`${quantity} is no quantity`);
}

/** As the API server has it (pkg/apis/core/v1/helper/qos/qos.go). */
function classOf({ spec }: Pod): string {
  const asks = (one: Container["resources"]): boolean =>
    Object.keys({ ...one?.requests, ...one?.limits }).length > 0;
  const all = [...spec.containers, ...(spec.initContainers ?? [])].map(({ resources }) => resources);
  const deciding = asks(spec.resources) ? [spec.resources] : all;
  if (!deciding.some(asks)) return "BestEffort";
  const isEven = deciding.every((one) =>
    ["cpu", "memory"].every((name) => {
      const limit = one?.limits?.[name];
      return limit !== undefined && amountOf(one?.requests?.[name] ?? limit) === amountOf(limit);
    }),
  );
  return isEven ? "Guaranteed" : "Burstable";
}

describe("a pod's shape", () => {
  for (const { name, file, pod, expected } of podShapes())
    it(name, () => {
      const found = foundOf(pod);
      if (process.env.UPDATE_PODS === "1") {
        const [described = ""] = readFileSync(file, "utf8").split(/^---$/m);
        writeFileSync(file, `${described.trimEnd()}\n---\n${stringify(found, { lineWidth: 120 })}`);
        return;
      }
      assert.deepEqual(found, expected);
      assert.ok(JSON.stringify(found).length < PATCH_BYTES_MAX, "patches are small");
    });
});

describe("injection", () => {
  const shapes = podShapes()
    .map(({ pod }) => pod)
    .filter((pod) => inject(pod, OPTIONS).kind === "injected");

  const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });
  const words = fc.array(fc.string(), { minLength: 1, maxLength: 4 });
  const profile = fc.constantFrom("RuntimeDefault", "Unconfined").map((type) => ({ type }));
  const user = { runAsNonRoot: maybe(fc.boolean()), runAsUser: maybe(fc.nat({ max: 2 })) };
  const securityContext = fc.record({
    ...user,
    allowPrivilegeEscalation: maybe(fc.boolean()),
    capabilities: maybe(fc.constantFrom({ drop: ["ALL"] }, { add: ["NET_ADMIN"] })),
    readOnlyRootFilesystem: maybe(fc.boolean()),
    seccompProfile: maybe(profile),
  });
  const sizes: fc.Arbitrary<NonNullable<Container["resources"]>> = fc.constantFrom(
    { requests: { cpu: "1" } },
    { limits: { memory: "64Mi" } },
    { limits: { cpu: "500m", memory: "64Mi" } },
    { requests: { cpu: 1, memory: "1.5Gi" }, limits: { cpu: "1000m", memory: "1536Mi" } },
  );
  const container = fc.record({
    command: maybe(words),
    args: maybe(words),
    ports: fc.constantFrom([{ containerPort: 8080 }], [{ name: "x", containerPort: 80 }]),
    env: maybe(fc.constant([{ name: "A", value: "1" }])),
    livenessProbe: maybe(fc.constant({ tcpSocket: { port: 80 } })),
    startupProbe: maybe(fc.constant({ exec: { command: ["x"] } })),
    readinessProbe: maybe(fc.constant({ httpGet: { port: 80 } })),
    resources: maybe(sizes),
    securityContext: maybe(securityContext),
    volumeMounts: maybe(
      fc.constantFrom([{ name: "v", mountPath: "/data" }], [{ name: "v", mountPath: "/tmp" }]),
    ),
  });
  const beside = fc.constantFrom("istio-proxy", "one", "two");
  const anyPod = fc
    .record({
      moving: container,
      others: fc.uniqueArray(fc.tuple(beside, container), { selector: ([name]) => name, maxLength: 3 }),
      at: fc.nat({ max: 3 }),
      init: maybe(fc.array(container, { minLength: 1, maxLength: 2 })),
      annotations: maybe(fc.dictionary(fc.constantFrom("a", "b.c/d~e"), fc.string(), { minKeys: 1 })),
      ports: fc.boolean(),
      sidecar: fc.boolean(),
      whole: maybe(sizes),
      all: maybe(fc.record({ ...user, seccompProfile: maybe(profile) })),
      volumes: fc.constantFrom([{ name: "v", emptyDir: {} }], [{ name: "v", hostPath: { path: "/x" } }]),
    })
    .map(({ moving, others, at, init, annotations, ports, sidecar, whole, all, volumes }): Pod => {
      const containers = others.map(([name, one]) => ({ name: name as string, ...one }));
      containers.splice(at, 0, { name: "app", ...moving });
      const stateless = others.map(([name]) => name).join(",");
      const pod = {
        metadata: {
          name: "pod",
          annotations: {
            ...annotations,
            ...(stateless === "" ? {} : { "holdfast.dev/stateless": stateless }),
            ...(ports ? { "holdfast.dev/ports": "1/tcp" } : {}),
            ...(sidecar ? { "holdfast.dev/proxy": "sidecar" } : {}),
          },
        },
        spec: {
          containers,
          initContainers: init?.map((one, index) => ({ name: `init-${index}`, ...one })),
          securityContext: all,
          resources: whole,
          volumes,
        },
      };
      return podSchema.parse(withoutEmpty(JSON.parse(JSON.stringify(pod))));
    });
  /** for the shapes as well */
  const holds = (rule: (pod: Pod) => void): void => {
    for (const pod of shapes) rule(pod);
    fc.assert(fc.property(anyPod, rule), { numRuns: 300 });
  };

  it("of an injected pod changes nothing", () => {
    holds((pod) =>
      assert.deepEqual(inject(injected(pod), OPTIONS), {
        kind: "unchanged",
        reason: "it is injected already",
      }),
    );
  });

  it("leaves what it is given as it is", () => {
    holds((pod) => {
      const before = structuredClone(pod);
      uninject(injected(pod));
      assert.deepEqual(pod, before);
    });
  });

  it("is undone by uninject", () => {
    holds((pod) => {
      const made = injected(pod);
      const undone = uninject(made);
      assert.ok(undone.kind === "injected");
      assert.deepEqual(withoutEmpty(undone.pod), withoutEmpty(pod));
      assert.deepEqual(applied(made, patchOf(made, undone.pod)), undone.pod);
    });
  });

  it("is what its patch makes of the pod", () => {
    holds((pod) => assert.deepEqual(applied(pod, patchOf(pod, injected(pod))), injected(pod)));
  });

  it("keeps what Pod Security restricted lets in, let in", () => {
    let restricted = 0;
    holds((pod) => {
      if (!isRestricted(pod)) return;
      restricted++;
      assert.ok(isRestricted(injected(pod)), JSON.stringify(injected(pod)));
    });
    assert.ok(restricted >= 3);
  });

  it("keeps the class of service, and lets the pod have what it said of all its containers beside ours", () => {
    const classes = new Set<string>();
    holds((pod) => {
      const made = injected(pod);
      const before = classOf(pod);
      classes.add(before);
      assert.equal(classOf(made), before, JSON.stringify(made));
      const first = made.spec.initContainers?.[0];
      for (const kind of ["requests", "limits"] as const)
        for (const [name, amount] of Object.entries(pod.spec.resources?.[kind] ?? {})) {
          const added = first?.name === "holdfast-proxy" ? first.resources?.[kind]?.[name] : "0";
          const sum = amountOf(amount) + amountOf(added);
          assert.equal(amountOf(made.spec.resources?.[kind]?.[name]), sum, JSON.stringify(made));
        }
    });
    assert.equal(classes.size, 3);
  });

  it("changes no other container, and gives none more than it had", () => {
    holds((pod) => {
      const others = ({ spec }: Pod) =>
        [...spec.containers, ...(spec.initContainers ?? [])].filter(
          ({ name }) => !["holdfast", "holdfast-proxy", "app", "chat", "db"].includes(name),
        );
      assert.deepEqual(others(injected(pod)), others(pod));
    });
  });

  it("goes on where others have changed the pod after it", () => {
    // a mesh's injector that is called later, and the ServiceAccount plug-in that is called again
    for (const pod of shapes) {
      const made = injected(pod);
      made.spec.containers.unshift({ name: "istio-proxy", image: "localhost/istio" });
      made.spec.initContainers?.unshift({ name: "istio-init", image: "localhost/istio" });
      for (const one of made.spec.initContainers ?? [])
        one.volumeMounts = [...(one.volumeMounts ?? []), { name: "token", mountPath: "/var/run/secrets" }];
      assert.equal(inject(made, OPTIONS).kind, "unchanged");
      const undone = uninject(made);
      assert.ok(undone.kind === "injected");
      assert.deepEqual(
        undone.pod.spec.containers.map(({ name }) => name),
        ["istio-proxy", ...pod.spec.containers.map(({ name }) => name)],
      );
    }
  });

  it("is refused where the annotations would grow larger than the API server takes", () => {
    const [pod] = shapes as [Pod];
    const large = structuredClone(pod);
    (large.spec.containers[0] as Container).args = ["x".repeat(ANNOTATION_BYTES_MAX)];
    assert.match(problemOf(large), /^metadata\.annotations: .* put it into a script$/);
  });

  it("has a pod stand for one of its own namespace only", () => {
    const { pod } = podShapes().find(({ name }) => name === "bare") ?? assert.fail();
    const of = (workload: string) => ({
      ...pod,
      metadata: { name: "x", namespace: "games", annotations: { "holdfast.dev/workload": workload } },
    });
    injected(of("games.chat"));
    for (const other of ["shop.chat", "games", "gamesx.chat"])
      assert.match(
        problemOf(of(other)),
        /\[holdfast\.dev\/workload\]: expected a name that begins with "games\."/,
      );
  });

  it("has the protocol said once", () => {
    const { pod } = podShapes().find(({ name }) => name === "bare") ?? assert.fail();
    const of = (annotations: Record<string, string>) => ({ ...pod, metadata: { name: "x", annotations } });
    const ports = injected(of({ "holdfast.dev/protocol": "http" })).metadata?.annotations;
    assert.equal(ports?.["holdfast.dev/ports"], "8080/http");
    assert.match(
      problemOf(of({ "holdfast.dev/protocol": "http", "holdfast.dev/ports": "8080" })),
      /^metadata\.annotations\[holdfast\.dev\/protocol\]: expected it without holdfast\.dev\/ports/,
    );
  });

  it("refuses each mistake in an annotation with what is expected", () => {
    const mistakes: [annotation: string, value: string, expected: RegExp][] = [
      ["ports", "", /expected ports as/],
      ["ports", "0", /expected port numbers 1-65535/],
      ["ports", "70000", /expected port numbers 1-65535/],
      ["ports", "80,80", /expected port 80 once/],
      ["ports", "80/quic", /expected one of the protocols auto, tcp, http, websocket, h2, tls/],
      ["ports", Array.from({ length: 65 }, (_, index) => index + 1).join(), /expected at most 64 ports/],
      ["protocol", "quic", /expected auto, tcp, http, websocket, h2 or tls/],
      ["continuity", "always", /expected none or replay/],
      ["mode", "takeover", /expected forward or gateway/],
      ["listen", "host", /expected node or pod/],
      ["proxy-resources", "1", /expected resources as \{"requests"/],
      ["proxy-resources", "{", /expected resources as .*JSON/],
      ["proxy-resources", '{"request":{}}', /expected resources as \{"requests"/],
      ["proxy-resources", '{"requests":{"memory":"x"}}', /requests\.memory: expected an amount above 0/],
      ["proxy-resources", '{"limits":{"gpu":"1"}}', /expected resources as \{"requests"/],
      [
        "proxy-resources",
        '{"requests":{"cpu":"1"},"limits":{"cpu":"500m"}}',
        /requests\.cpu: expected at most the limit \(500m\)/,
      ],
      ["limits", "10", /expected limits as/],
      ["limits", "{", /expected limits as .*JSON/],
      ["limits", '{"deadlineMs":1}', /expected deadlineMs as a number of ms 100-3600000/],
      ["limits", '{"verifyMemory":1}', /expected verifyMemory as true or false/],
      ["stateless", "A", /expected names of containers/],
      ["stateless", "app", /app is the container that moves|no container is left/],
      ["stateless", "other", /expected containers of this pod \(app\), got other/],
      ["workload", "Chat", /expected a name of 1-63/],
      ["standby", "yes", /expected true or false/],
    ];
    const [pod] = shapes.filter(({ metadata }) => metadata?.name === "bare") as [Pod];
    for (const [name, value, expected] of mistakes) {
      const annotation = `holdfast.dev/${name}`;
      const told = problemOf({ ...pod, metadata: { name: "x", annotations: { [annotation]: value } } });
      assert.match(told, expected);
      assert.ok(told.startsWith(`metadata.annotations[${annotation}]: `), told);
    }
  });
});

describe("uninject", () => {
  const pod = podShapes().find(({ name }) => name === "probes") as PodShape;

  it("changes nothing that is not injected", () => {
    assert.deepEqual(uninject(pod.pod), { kind: "unchanged", reason: "it is not injected" });
  });

  it("refuses a pod of which it cannot know what it was", () => {
    for (const noted of [undefined, "", "{}", "null", '{"added":[1]}']) {
      const made = injected(pod.pod);
      const annotations = made.metadata?.annotations as Record<string, string>;
      if (noted === undefined) delete annotations["holdfast.dev/replaced"];
      else annotations["holdfast.dev/replaced"] = noted;
      const outcome = uninject(made);
      assert.equal(outcome.kind, "refused", String(noted));
    }
    const without = injected(pod.pod);
    without.spec.initContainers = [];
    assert.equal(uninject(without).kind, "refused");
  });
});
