/** Which pods are moved since their node says that it is going away, in which order, and when that is over. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  type Migration,
  migration as migrationSchema,
  type Policy,
  policyOf,
} from "#control/api/resources.ts";
import type { Node, Pod } from "#control/kubernetes/client/objects.ts";
import { disturbAgain, disturbNot } from "#control/kubernetes/controller/disruption.ts";
import {
  bySize,
  causeFor,
  causeOf,
  highestNumber,
  manifestOf,
  newMigration,
} from "#control/kubernetes/triggers/caused.ts";
import { nodeMigrations, triggerOf } from "#control/kubernetes/triggers/node-triggers.ts";

const NOW = Date.parse("2026-01-01T01:00:00Z");
const at = (agoS: number): string => new Date(NOW - agoS * 1_000).toISOString();
const DISRUPTED = { key: "karpenter.sh/disrupted", effect: "NoSchedule" };

function node(
  taints: object[] = [DISRUPTED],
  conditions: object[] = [{ type: "Ready", status: "True" }],
): Node {
  return { metadata: { name: "a" }, spec: { taints }, status: { conditions } } as unknown as Node;
}

function pod(
  name: string,
  megabytes: number | null = null,
  more: { metadata?: object; status?: object } = {},
): Pod {
  const message = `clients would wait about 90 ms (40 to 200), with ${megabytes} MB of memory`;
  return {
    metadata: {
      name,
      namespace: "shop",
      uid: `${name}-uid-1234`,
      annotations: { "holdfast.dev/injected": "1" },
      ...more.metadata,
    },
    spec: { nodeName: "a", containers: [] },
    status: {
      phase: "Running",
      conditions: [
        { type: "holdfast.dev/serving", status: "True" },
        ...(megabytes === null
          ? []
          : [{ type: "holdfast.dev/movable", status: "True", reason: "Movable", message }]),
      ],
      ...more.status,
    },
  } as unknown as Pod;
}

function migration(podName: string, status: object = {}, metadata: object = {}): Migration {
  return migrationSchema.parse({
    metadata: {
      name: `m-${podName}`,
      namespace: "shop",
      uid: "m",
      resourceVersion: "1",
      creationTimestamp: at(60),
      ...metadata,
    },
    spec: { pod: podName, podUid: `${podName}-uid-1234` },
    status,
  });
}

function made(
  pods: Pod[],
  more: { node?: Node; migrations?: Migration[]; policy?: Partial<Policy> } = {},
): string[] {
  const policy = { ...policyOf([]), ...more.policy };
  const facts = {
    node: more.node ?? node(),
    pods,
    migrations: more.migrations ?? [],
    policyOf: () => policy,
  };
  return nodeMigrations(facts, NOW).map(({ spec }) => spec.pod);
}

describe("a node", () => {
  const { triggers } = policyOf([]);

  it("asks for moves by the taints and conditions that the policy names", () => {
    assert.equal(triggerOf(node(), triggers), "taint karpenter.sh/disrupted");
    assert.equal(triggerOf(node(), []), null);
    assert.equal(triggerOf(node([]), triggers), null);
    const planned = node([], [{ type: "MaintenancePlanned", status: "True" }]);
    assert.equal(triggerOf(planned, triggers), "condition MaintenancePlanned");
    assert.equal(triggerOf(node([], [{ type: "MaintenancePlanned", status: "False" }]), triggers), null);
    const unknown = [{ condition: { type: "Ready", status: "Unknown" as const } }];
    assert.equal(
      triggerOf(node([], [{ type: "Ready", status: "Unknown" }]), unknown),
      "condition Ready=Unknown",
    );
  });

  it("does so by value and effect of a taint where the policy names them", () => {
    const taints = [{ key: "spot", value: "reclaimed", effect: "NoExecute" }];
    const is = (taint: object) => triggerOf(node(taints), [{ taint: { key: "spot", ...taint } }]) !== null;
    assert.deepEqual(
      [
        is({}),
        is({ value: "reclaimed" }),
        is({ value: "" }),
        is({ effect: "NoExecute" }),
        is({ effect: "NoSchedule" }),
      ],
      [true, true, false, true, false],
    );
  });

  it("has nothing moved while it is not Ready: its agent is not there", () => {
    assert.deepEqual(made([pod("x")]), ["x"]);
    assert.deepEqual(
      made([pod("x")], { node: node([DISRUPTED], [{ type: "Ready", status: "Unknown" }]) }),
      [],
    );
  });

  it("is emptied of small applications first, some at a time", () => {
    const pods = [pod("large", 900), pod("unknown"), pod("small", 20), pod("middle", 300)];
    assert.deepEqual(made(pods, { policy: { movesPerNode: 10 } }), ["small", "middle", "large", "unknown"]);
    assert.deepEqual(made(pods), ["small", "middle"]);
    const underWay = migration("small", {
      phase: "Moving",
      source: { pod: "small", podUid: "small-uid-1234", node: "a" },
    });
    assert.deepEqual(made(pods, { migrations: [underWay] }), ["middle"]);
    const waiting = migration(
      "small",
      {},
      { labels: { "holdfast.dev/cause": "node" }, annotations: { "holdfast.dev/node": "a" } },
    );
    assert.deepEqual(made(pods, { migrations: [waiting] }), ["middle"]);
    assert.deepEqual(made(pods, { migrations: [migration("small", { phase: "Succeeded" })] }), [
      "middle",
      "large",
    ]);
  });

  it("has only applications moved that are there, and where the policy moves what is evicted", () => {
    const others = [
      pod("standby", 1, {
        metadata: { annotations: { "holdfast.dev/injected": "1", "holdfast.dev/standby": "true" } },
      }),
      pod("plain", 1, { metadata: { annotations: {} } }),
      pod("going", 1, {
        metadata: { annotations: { "holdfast.dev/injected": "1" }, deletionTimestamp: at(1) },
      }),
      pod("pending", 1, { status: { phase: "Pending" } }),
      pod("elsewhere", 1, {
        status: { phase: "Running", conditions: [{ type: "holdfast.dev/serving", status: "False" }] },
      }),
    ];
    assert.deepEqual(made(others), []);
    for (const evictionStrategy of ["None", "External"] as const)
      assert.deepEqual(made([pod("x")], { policy: { evictionStrategy } }), []);
    assert.deepEqual(made([pod("x")], { policy: { triggers: [] } }), []);
  });

  it("has one that could not be moved tried again, later each time", () => {
    const failed = (agoS: number, phase = "Failed", reason = "Why") =>
      migration("x", { phase, reason, phaseTransitionTimestamps: [{ phase, timestamp: at(agoS) }] });
    assert.deepEqual(made([pod("x")], { migrations: [failed(10)] }), []);
    assert.deepEqual(made([pod("x")], { migrations: [failed(31)] }), ["x"]);
    assert.deepEqual(made([pod("x")], { migrations: [failed(90), failed(31)] }), []);
    assert.deepEqual(made([pod("x")], { migrations: [failed(150), failed(61)] }), ["x"]);
    assert.deepEqual(made([pod("x")], { migrations: [failed(1, "Aborted", "TriggerOver")] }), ["x"]);
  });
});

describe("a Migration that nobody made by hand", () => {
  it("has a name that none of its pod's has, also when some have been removed", () => {
    const one = pod("x");
    const named = (...names: string[]) => names.map((name) => ({ metadata: { name } }));
    const own = one.metadata.uid.slice(0, 8);
    const before = (...names: string[]): number => highestNumber(one, named(...names));
    assert.equal(before(), 0);
    assert.equal(before("by-hand", "evict-x-0a1b2c3d-7"), 2);
    assert.equal(before(`evict-x-${own}`), 1);
    assert.equal(before(`evict-x-${own}-2`), 2);
    assert.equal(before(`node-x-${own}-10`, `evict-x-${own}-9`), 10);
    const last = newMigration(one, before(`evict-x-${own}-2`), causeFor(one, "drain", ""));
    assert.ok(last.name.endsWith(`-${own}-3`));
  });

  it("says why it is there, so that whoever reads it knows", () => {
    const cause = causeFor(pod("x", 20), "node", "taint spot");
    const created = manifestOf(newMigration(pod("x"), 1, cause)) as { metadata: object };
    const read = migration("x", {}, created.metadata);
    assert.equal(read.metadata.name, "node-x-x-uid-12-2");
    assert.deepEqual(causeOf(read), { kind: "node", node: "a", trigger: "taint spot", memoryBytes: 20e6 });
    assert.equal(causeOf(migration("x")), null);
  });

  it("knows what a pod asks for where its agent has not said how large it is", () => {
    const asking = (...quantities: object[]): number | null => {
      const one = pod("x");
      one.spec.containers = quantities.map((resources, index) => ({ name: String(index), resources }));
      return causeFor(one, "drain", "").memoryBytes;
    };
    assert.equal(asking({}), null);
    assert.equal(
      asking({ requests: { memory: "64Mi" } }, { limits: { memory: "1.5G" } }),
      64 * 2 ** 20 + 1.5e9,
    );
    assert.equal(asking({ requests: { memory: "a lot" } }), null);
    assert.ok(bySize({ memoryBytes: 1 }, { memoryBytes: null }) < 0);
  });
});

describe("a pod in a move", () => {
  const keys = ["karpenter.sh/do-not-disrupt", "cluster-autoscaler.kubernetes.io/safe-to-evict", "other"];
  const annotations = fc.dictionary(fc.constantFrom(...keys), fc.constantFrom("true", "false"));
  const apply = (to: Record<string, string>, patch: Record<string, string | null>): Record<string, string> =>
    Object.fromEntries(
      Object.entries({ ...to, ...patch }).filter((one): one is [string, string] => one[1] !== null),
    );

  it("is kept from being disrupted, and is as before afterwards", () => {
    fc.assert(
      fc.property(annotations, (before) => {
        const during = apply(before, disturbNot(before));
        assert.equal(during["karpenter.sh/do-not-disrupt"], "true");
        assert.equal(during["cluster-autoscaler.kubernetes.io/safe-to-evict"], "false");
        assert.deepEqual(apply(during, disturbNot(during)), during, "done twice it is the same");
        assert.deepEqual(apply(during, disturbAgain(during)), { ...before });
      }),
    );
  });

  it("keeps what somebody has changed meanwhile", () => {
    const during = { ...disturbNot({}), "karpenter.sh/do-not-disrupt": "false" };
    assert.deepEqual(apply(during, disturbAgain(during)), { "karpenter.sh/do-not-disrupt": "false" });
    assert.deepEqual(disturbAgain({ other: "x" }), {});
    assert.deepEqual(
      apply({ "holdfast.dev/undisturbed": "{" }, disturbAgain({ "holdfast.dev/undisturbed": "{" })),
      {},
    );
  });
});
