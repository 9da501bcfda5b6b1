/** What the controller decides for one Migration, by example; `migration-properties.test.ts` has the rest. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  ANNOTATION,
  MIGRATION_LABEL,
  type Migration,
  migration as migrationSchema,
  policyOf,
} from "#control/api/resources.ts";
import type {
  Deployment,
  Node,
  OwnerReference,
  Pod,
  ReplicaSet,
} from "#control/kubernetes/client/objects.ts";
import { mergePatch } from "#control/kubernetes/controller/act.ts";
import type { Plan } from "#control/kubernetes/controller/next.ts";
import type { Observed } from "#control/kubernetes/controller/observed.ts";
import { plan } from "#control/kubernetes/controller/plan.ts";
import { standbyName, standbyPod } from "#control/kubernetes/controller/standby-pod.ts";
import { metaOf, NOW, START } from "#test/support/kube-objects.ts";

const SET: OwnerReference = {
  apiVersion: "apps/v1",
  kind: "ReplicaSet",
  name: "chat-5d",
  uid: "set",
  controller: true,
};

const STANDBY = {
  "holdfast.dev/injected": "1",
  "holdfast.dev/container": "app",
  "holdfast.dev/standby": "true",
};

function migration(spec: object = {}, status: object = {}, metadata: object = {}): Migration {
  return migrationSchema.parse({
    metadata: metaOf("m", metadata),
    spec: { pod: "chat-5d-x", target: { node: "b" }, ...spec },
    status,
  });
}

function pod(spec: object = {}, metadata: object = {}): Pod {
  return {
    metadata: metaOf("chat-5d-x", {
      labels: { app: "chat", "pod-template-hash": "5d" },
      annotations: { "holdfast.dev/injected": "1", "holdfast.dev/container": "app" },
      ...metadata,
    }),
    spec: { nodeName: "a", containers: [{ name: "app", image: "chat" }], ...spec },
    status: { phase: "Running" },
  };
}

function node(name: string, spec: object = {}, ready = "True"): Node {
  return {
    metadata: metaOf(name),
    spec,
    status: { conditions: [{ type: "Ready", status: ready as "True" }] },
  };
}

function deployment(status: object = {}): Observed["owner"] {
  const selector = { matchLabels: { app: "chat" } };
  const above = { apiVersion: "apps/v1", kind: "Deployment", name: "chat", uid: "d", controller: true };
  return {
    kind: "replica-set",
    reference: SET,
    replicaSet: {
      metadata: metaOf("chat-5d", { ownerReferences: [above] }),
      spec: { replicas: 2, selector },
    } as ReplicaSet,
    deployment: {
      metadata: metaOf("chat"),
      spec: { replicas: 2, selector },
      status: { observedGeneration: 1, replicas: 2, updatedReplicas: 2, ...status },
    } as Deployment,
    pods: [],
  };
}

function observed(more: Partial<Observed> = {}): Observed {
  return {
    migration: migration(),
    policy: policyOf([]),
    source: pod(),
    standby: null,
    strays: [],
    ordinal: null,
    owner: { kind: "none" },
    nodes: new Map([
      ["a", node("a")],
      ["b", node("b")],
    ]),
    claims: new Map(),
    others: [],
    elsewhere: 0,
    isGuarded: true,
    isWithdrawn: false,
    ...more,
  };
}

function statusOf({ action }: Plan) {
  assert.equal(action?.do, "status");
  return action?.do === "status" ? action.status : {};
}

describe("a pod", () => {
  const claim = (...accessModes: string[]) =>
    new Map([["data", { metadata: metaOf("data"), spec: { accessModes } }]]);
  const data = { volumes: [{ name: "data", persistentVolumeClaim: { claimName: "data" } }] };
  const volume = (source: object) => ({ source: pod({ volumes: [{ name: "v", ...source }] }) });
  const owned = (kind: string): Partial<Observed> => ({
    owner: { kind: "other", reference: { ...SET, kind, name: "db" } },
  });
  const refused: [string, Partial<Observed>, string, RegExp][] = [
    ["that is not there", { source: null }, "PodNotFound", /no pod chat-5d-x/],
    [
      "of another uid than was meant",
      { migration: migration({ podUid: "old" }) },
      "PodReplaced",
      /another now/,
    ],
    ["that was not injected", { source: pod({}, { annotations: {} }) }, "NotInjected", /label it/],
    [
      "that is a standby itself",
      { source: pod({}, { annotations: { "holdfast.dev/injected": "1", "holdfast.dev/standby": "true" } }) },
      "IsStandby",
      /waits for an application/,
    ],
    [
      "that is being deleted",
      { source: pod({}, { deletionTimestamp: START }) },
      "SourceDeleted",
      /being deleted/,
    ],
    ["with its node's network", { source: pod({ hostNetwork: true }) }, "HostNetwork", /network of its node/],
    ["of a Job", owned("Job"), "OwnerUnknown", /it would make another/],
    ["with a folder of the node", volume({ hostPath: { path: "/x" } }), "VolumeCannotFollow", /hostPath/],
    ["with an ephemeral volume", volume({ ephemeral: {} }), "VolumeCannotFollow", /this pod alone/],
    ["with a volume of a kind that is not known", volume({ iscsi: {} }), "VolumeCannotFollow", /iscsi/],
    [
      "with a claim for one node",
      { source: pod(data), claims: claim("ReadWriteOnce") },
      "VolumeCannotFollow",
      /one node at a time \(ReadWriteOnce\)/,
    ],
    ["with a claim that is not there", { source: pod(data) }, "VolumeCannotFollow", /no claim data/],
    [
      "that is there already",
      { migration: migration({ target: { node: "a" } }) },
      "AlreadyThere",
      /on node a/,
    ],
    [
      "whose target is not there",
      { migration: migration({ target: { node: "z" } }) },
      "TargetNotFound",
      /no node z/,
    ],
    [
      "whose target is cordoned",
      { nodes: new Map([["b", node("b", { unschedulable: true })]]) },
      "TargetCordoned",
      /kubectl uncordon b/,
    ],
  ];
  for (const [what, more, reason, message] of refused)
    it(`${what} is refused: ${reason}`, () => {
      const status = statusOf(plan(observed(more), NOW));
      assert.deepEqual([status.phase, status.reason], ["Failed", reason]);
      assert.match(status.message ?? "", message);
      assert.equal(status.conditions?.find(({ type }) => type === "Finished")?.status, "True");
    });

  for (const [what, more] of [
    ["with a claim for all nodes", { source: pod(data), claims: claim("ReadWriteMany") }],
    ["with emptyDirs, secrets and tokens", volume({ emptyDir: {} })],
    ["of a Deployment at rest", { owner: deployment() }],
  ] as const)
    it(`${what} is moved`, () => {
      assert.deepEqual(plan(observed(more), NOW).action, { do: "finalizer", present: true });
    });

  const other = (status: object): Migration =>
    migration({}, status, { name: "other", uid: "other", creationTimestamp: "2025-01-01T00:00:00Z" });
  const waits: [string, Partial<Observed>, string][] = [
    ["until its target is Ready", { nodes: new Map([["b", node("b", {}, "Unknown")]]) }, "TargetNotReady"],
    ["until its Deployment is rolled out", { owner: deployment({ updatedReplicas: 1 }) }, "Rollout"],
    ["until the rollout is seen", { owner: deployment({ observedGeneration: 0 }) }, "Rollout"],
    ["for an older Migration of it", { others: [other({})] }, "AnotherMigration"],
    [
      "for a Migration that has claimed it",
      {
        source: pod(
          {},
          { labels: { [MIGRATION_LABEL]: "other" }, annotations: { "holdfast.dev/injected": "1" } },
        ),
        others: [other({ phase: "Moving" })],
      },
      "AnotherMigration",
    ],
    [
      "until the Migration is over that has brought its application, of a pod of another name",
      {
        source: pod(
          {},
          { labels: { [MIGRATION_LABEL]: "other" }, annotations: { "holdfast.dev/injected": "1" } },
        ),
        others: [migration({ pod: "before" }, { phase: "Adopting" }, { name: "other", uid: "other" })],
      },
      "AnotherMigration",
    ],
    [
      "while as many go from its node as may",
      {
        others: ["x", "y"].map((name) =>
          migration(
            { pod: name },
            { phase: "Moving", source: { pod: name, node: "a" } },
            { name, uid: name },
          ),
        ),
      },
      "Queued",
    ],
  ];
  for (const [what, more, reason] of waits)
    it(`waits ${what}, says so once, and not for ever`, () => {
      const status = statusOf(plan(observed(more), NOW));
      assert.deepEqual([status.phase, status.reason], ["Pending", reason]);
      const again = observed({ ...more, migration: migration({}, status) });
      assert.equal(plan(again, NOW).action, null);
      const late = statusOf(plan(again, NOW + 600_000));
      assert.deepEqual([late.phase, late.reason], ["Failed", "Deadline"]);
      assert.match(late.message ?? "", /within 600 s \(.+\)/);
    });
});

describe("a standby whose container runs", () => {
  it("is waited for in silence while its agent looks for it, and goes on at its word", () => {
    const made = migration(
      {},
      {
        ...{ phase: "Preparing", attempt: 1, serial: 1 },
        source: { pod: "chat-5d-x", podUid: "chat-5d-x-uid", node: "a" },
        target: { pod: "chat-5d-y", podUid: "chat-5d-y-uid", node: "b", attempt: 1 },
      },
    );
    const labels = { "holdfast.dev/migration": made.metadata.uid };
    const standby = pod({ nodeName: "b" }, metaOf("chat-5d-y", { labels, annotations: STANDBY }));
    const at = (afterMs: number, serving?: "False"): Plan => {
      const conditions = serving === undefined ? [] : [{ type: "holdfast.dev/serving", status: serving }];
      const state = { running: { startedAt: new Date(NOW - afterMs).toISOString() } };
      const status = { phase: "Running", conditions, containerStatuses: [{ name: "app", state }] };
      return plan(observed({ migration: made, standby: { ...standby, status } }), NOW);
    };
    assert.deepEqual(at(500), { action: null, wakeMs: NOW + 1_500 });
    assert.equal(statusOf(at(2_000)).reason, "TargetAgent");
    assert.equal(statusOf(at(500, "False")).phase, "Moving");

    // kubelet says up to a second later that it runs
    const early = (spec: object): string | undefined => {
      const conditions = [{ type: "holdfast.dev/serving", status: "False" as const }];
      const status = { phase: "Pending", conditions };
      const found = pod({ nodeName: "b", ...spec }, metaOf("chat-5d-y", { labels, annotations: STANDBY }));
      return statusOf(plan(observed({ migration: made, standby: { ...found, status } }), NOW)).phase;
    };
    const hook = { lifecycle: { postStart: { exec: { command: ["wait"] } } } };
    assert.deepEqual(
      [
        early({}),
        early({ containers: [{ name: "app" }, { name: "other" }] }),
        early({ containers: [{ name: "app", ...hook }] }),
      ],
      ["Moving", "Preparing", "Preparing"],
    );

    const starting = (spec: object): string => {
      const status = { phase: "Pending", conditions: [], containerStatuses: [{ name: "app", state: {} }] };
      const hooked = pod({ nodeName: "b", ...spec }, metaOf("chat-5d-y", { labels, annotations: STANDBY }));
      const { reason, message } = statusOf(
        plan(observed({ migration: made, standby: { ...hooked, status } }), NOW),
      );
      assert.equal(reason, "StandbyStarting");
      return message ?? "";
    };
    assert.equal(starting({}), "pod chat-5d-y starts");
    const lifecycle = { postStart: { exec: { command: ["until", "curl", "localhost"] } } };
    assert.match(
      starting({ containers: [{ name: "app", lifecycle }] }),
      / starts; postStart of app runs there/,
    );
  });
});

describe("a Migration that nobody made by hand", () => {
  const caused = (kind: string, annotations: object = {}, more: object = {}) => ({
    labels: { "holdfast.dev/cause": kind },
    annotations: { "holdfast.dev/node": "a", ...annotations },
    ...more,
  });
  const cordoned = new Map([
    ["a", node("a", { unschedulable: true })],
    ["b", node("b")],
  ]);
  const tainted = new Map([
    ["a", node("a", { taints: [{ key: "karpenter.sh/disrupted", effect: "NoSchedule" }] })],
    ["b", node("b")],
  ]);
  const open = new Map([
    ["a", node("a")],
    ["b", node("b")],
  ]);

  for (const [kind, asked, reason] of [
    ["drain", cordoned, "Uncordoned"],
    ["node", tainted, "TriggerOver"],
  ] as const)
    it(`is given up when what asked for it (${kind}) is over, unless the application moves already`, () => {
      const at = (phase: string | undefined, nodes: Map<string, Node>) => {
        const status = phase === undefined ? {} : { phase, attempt: 1, source: { pod: "x", node: "a" } };
        const made = migration({}, status, caused(kind));
        return plan(observed({ migration: made, nodes, source: phase === undefined ? pod() : null }), NOW);
      };
      assert.equal(statusOf(at(undefined, open)).reason, reason);
      assert.equal(statusOf(at("Preparing", open)).phase, "Aborted");
      assert.notEqual(
        at("Moving", open).action?.do === "status" && statusOf(at("Moving", open)).reason,
        reason,
      );
      const goesOn = at(undefined, asked).action;
      assert.ok(goesOn?.do !== "status" || goesOn.status.phase !== "Aborted");
    });

  it("is given up when its EvictionRequests are withdrawn, as long as the application has not moved", () => {
    const cause = caused("request", { "holdfast.dev/trigger": "e-1" });
    const at = (phase: string | undefined, isWithdrawn: boolean, move?: object) => {
      const source = { pod: "x", node: "a" };
      const status = phase === undefined ? {} : { phase, attempt: 1, source, ...(move ? { move } : {}) };
      const facts = { isWithdrawn, source: phase === undefined ? pod() : null };
      return plan(observed({ migration: migration({}, status, cause), ...facts }), NOW);
    };
    for (const phase of [undefined, "Preparing"]) {
      const { phase: now, reason, message } = statusOf(at(phase, true));
      assert.deepEqual([now, reason], ["Aborted", "Withdrawn"]);
      assert.match(message ?? "", /Eviction e-1/);
    }
    const running = { attempt: 1, state: "Running" };
    const standby = pod({}, { uid: "s", labels: { "holdfast.dev/migration": "m-uid" } });
    const moving = migration(
      {},
      {
        phase: "Moving",
        attempt: 1,
        source: { pod: "x", podUid: "u" },
        target: { pod: "s", podUid: "s", attempt: 1 },
        move: running,
      },
      cause,
    );
    const cancelled = statusOf(plan(observed({ migration: moving, standby, isWithdrawn: true }), NOW));
    assert.deepEqual([cancelled.phase, cancelled.cancel], ["Moving", "Aborted"]);
    assert.equal(statusOf(at("Moving", true, { attempt: 1, state: "Moved" })).phase, "Adopting");
    assert.notEqual(at(undefined, false).action?.do, "status");
  });

  it("waits while its pod has moved a moment ago, or the hour's moves are used up; one by hand does not", () => {
    const moved = { annotations: { "holdfast.dev/injected": "1", "holdfast.dev/moved": START } };
    const begun = migration(
      { pod: "x" },
      { phase: "Succeeded", phaseTransitionTimestamps: [{ phase: "Preparing", timestamp: START }] },
    );
    for (const [more, policy, reason] of [
      [{ source: pod({}, moved) }, { cooldownSeconds: 60 }, "Cooldown"],
      [{ others: [begun] }, { movesPerHour: 1 }, "Budget"],
    ] as const) {
      const facts = { ...more, policy: { ...policyOf([]), ...policy }, nodes: cordoned };
      const one = observed({ ...facts, migration: migration({}, {}, caused("drain")) } as Partial<Observed>);
      assert.equal(statusOf(plan(one, NOW)).reason, reason);
      assert.equal(plan(observed(facts as Partial<Observed>), NOW).action?.do, "finalizer");
      const later = plan(one, NOW + 60_000).action;
      assert.ok(later?.do === "finalizer" || (later?.do === "status" && later.status.reason === "Budget"));
    }
  });

  it("lets smaller ones of its node go first, as far as those wait for nothing but their turn", () => {
    const sized = (bytes: number, name: string, status: object = {}, spec: object = {}) =>
      migration({ pod: name, ...spec }, status, {
        ...caused("drain", { "holdfast.dev/memory-bytes": String(bytes) }),
        name,
        uid: name,
      });
    const reasonOf = (others: Migration[], movesPerNode = 1): string | undefined => {
      const own = sized(500, "own", {}, { pod: "chat-5d-x" });
      const policy = { ...policyOf([]), movesPerNode };
      const { action } = plan(observed({ migration: own, others, policy, nodes: cordoned }), NOW);
      return action?.do === "status" ? action.status.reason : action?.do;
    };
    assert.equal(reasonOf([sized(100, "small")]), "Queued");
    assert.equal(reasonOf([sized(900, "large")]), "finalizer");
    assert.equal(reasonOf([sized(100, "small", { phase: "Pending", reason: "Rollout" })]), "finalizer");
    assert.equal(reasonOf([sized(100, "small", { phase: "Succeeded" })]), "finalizer");
    assert.equal(reasonOf([sized(100, "small")], 2), "finalizer");
    assert.equal(reasonOf([sized(100, "small"), sized(200, "other")], 2), "Queued");
    const elsewhere = {
      ...sized(100, "small"),
      metadata: { ...sized(100, "small").metadata, annotations: {} },
    };
    assert.equal(reasonOf([elsewhere]), "finalizer");
  });

  it("waits while the cluster has enough to do", () => {
    const busy = observed({ elsewhere: 5 });
    assert.match(statusOf(plan(busy, NOW)).message ?? "", /5 moves are under way in the cluster/);
    assert.equal(plan(observed({ elsewhere: 4 }), NOW).action?.do, "finalizer");
  });
});

describe("a move whose node has gone, with the agent that would say how it ended", () => {
  const TARGET = { pod: "standby", podUid: "standby-uid", node: "b", attempt: 1 };
  const made = standbyPod(pod(), migration());
  const waits: Pod = {
    metadata: { ...metaOf("standby"), ...made.metadata, uid: "standby-uid" },
    spec: { ...made.spec, nodeName: "b" },
    status: { phase: "Running" },
  };
  const left = (more: Partial<Observed> = {}): Observed =>
    observed({
      source: null,
      standby: waits,
      migration: migration(
        {},
        {
          phase: "Moving",
          attempt: 1,
          phaseTransitionTimestamps: [{ phase: "Moving", timestamp: START }],
          source: { pod: "chat-5d-x", podUid: "chat-5d-x-uid", node: "a" },
          target: TARGET,
          move: { attempt: 1, state: "Running" },
          cancel: "Deadline",
        },
      ),
      ...more,
    });
  const overMs = Date.parse(START) + policyOf([]).deadlineSeconds * 1_000 + 60_000;

  it("is waited for as long as the target may go on by itself, and then its standby goes", () => {
    assert.deepEqual(plan(left(), overMs - 1), { action: null, wakeMs: overMs });
    const { action } = plan(left(), overMs);
    assert.ok(action?.do === "delete-pod" && action.pod.uid === "standby-uid" && action.isUnchanged);
    const status = statusOf(plan(left({ standby: null }), overMs));
    assert.deepEqual([status.phase, status.reason], ["Failed", "ApplicationLost"]);
  });

  it("goes on where its pod is still there: kubelet, or its agent, may come back", () => {
    assert.equal(plan(left({ source: pod() }), overMs).action, null);
  });
});

describe("a pod whose application has moved", () => {
  const standby = (source: Pod, listen: string): Pod => {
    const made = standbyPod(source, migration());
    const status = { phase: "Running", conditions: [{ type: "Ready", status: "True" }] } as NonNullable<
      Pod["status"]
    >;
    return {
      metadata: {
        ...metaOf("standby"),
        ...made.metadata,
        annotations: { ...made.metadata.annotations, [ANNOTATION.listen]: listen },
      },
      spec: { ...made.spec, nodeName: "b" },
      status,
    };
  };
  const adopting = (move: object, listen = "pod", source = pod()): Observed =>
    observed({
      standby: standby(source, listen),
      migration: migration(
        {},
        {
          phase: "Adopting",
          attempt: 1,
          phaseTransitionTimestamps: [{ phase: "Adopting", timestamp: START }],
          source: { pod: "chat-5d-x", podUid: "chat-5d-x-uid", node: "a" },
          target: { pod: "standby", podUid: "standby-uid", node: "b", attempt: 1 },
          move: { attempt: 1, state: "Moved", sessions: 2, ...move },
        },
      ),
    });

  it("stays for clients that are connected to it, and no longer than the policy says", () => {
    const status = statusOf(plan(adopting({ downstream: "forward" }), NOW));
    assert.deepEqual([status.phase, status.reason], ["Adopting", "ClientsOfSource"]);
    assert.match(status.message ?? "", /^2 clients .* until 2026-01-01T00:01:00/);
    for (const [move, nowMs] of [
      [{ downstream: "forward" }, NOW + 60_000],
      [{ downstream: "forward", anchored: 0 }, NOW],
      [{ downstream: "gateway" }, NOW],
    ] as const)
      assert.equal(plan(adopting(move), nowMs).action?.do, "patch-pod", JSON.stringify(move));
    // they are connected to the node
    assert.equal(plan(adopting({ downstream: "forward" }, "node"), NOW).action?.do, "patch-pod");
  });

  it("has its place taken when the roll-out of its Deployment is over, or leaves its ReplicaSet none", () => {
    const source = pod({}, { ownerReferences: [SET] });
    const rolledOut = (replicas: number, status: object = {}) => {
      const owner = deployment(status);
      if (owner.kind === "replica-set" && owner.replicaSet !== null)
        owner.replicaSet.spec.replicas = replicas;
      return plan({ ...adopting({ downstream: "gateway" }, "node", source), source: null, owner }, NOW);
    };
    assert.equal(statusOf(rolledOut(1, { updatedReplicas: 1 })).reason, "Rollout");
    for (const one of [rolledOut(2), rolledOut(0), rolledOut(0, { updatedReplicas: 1, replicas: 1 })])
      assert.equal(one.action?.do, "patch-pod", JSON.stringify(one));
  });
});

describe("a dry run", () => {
  it("says what would be done, and makes nothing", () => {
    const status = statusOf(
      plan(observed({ migration: migration({ dryRun: true }), owner: deployment() }), NOW),
    );
    assert.deepEqual([status.phase, status.reason], ["Succeeded", "DryRun"]);
    assert.match(
      status.plan?.join("\n") ?? "",
      /create pod chat-5d-x-\w+, for node b\n.*\n.*ReplicaSet chat-5d in place/,
    );
  });
});

describe("a standby", () => {
  const source = pod(
    {
      nodeSelector: { disk: "ssd" },
      affinity: {
        podAntiAffinity: { kept: true },
        nodeAffinity: {
          requiredDuringSchedulingIgnoredDuringExecution: {
            nodeSelectorTerms: [
              { matchExpressions: [{ key: "x", operator: "Exists" }] },
              { matchFields: [{ key: "metadata.name", operator: "NotIn", values: ["c"] }] },
            ],
          },
        },
      },
      ephemeralContainers: [{ name: "debug" }],
      tolerations: [{ key: "t" }],
    },
    {
      ownerReferences: [SET],
      annotations: {
        "holdfast.dev/injected": "1",
        "cni.projectcalico.org/podIP": "1.2.3.4",
        "controller.kubernetes.io/pod-deletion-cost": "5",
        mine: "kept",
        "holdfast.dev/evicted": "2026-01-01T00:00:00Z 2026-01-01T00:00:01Z",
      },
    },
  );

  it("asks of the network what the source asks, and says nothing of what that was given", () => {
    const asked = {
      "k8s.v1.cni.cncf.io/networks": '[{"name":"storage"}]',
      "v1.multus-cni.io/default-network": "kube-system/fast",
      "cni.projectcalico.org/ipv4pools": '["games"]',
      "k8s.ovn.org/routing-namespaces": "shop",
    };
    const given = {
      "k8s.v1.cni.cncf.io/network-status": "[]",
      "k8s.v1.cni.cncf.io/networks-status": "[]",
      "k8s.ovn.org/pod-networks": "{}",
      "cni.projectcalico.org/podIP": "1.2.3.4/32",
      "cni.projectcalico.org/podIPs": "1.2.3.4/32",
      "cni.projectcalico.org/containerID": "1234",
      // both pods are there for a while, and one of them has it
      "cni.projectcalico.org/ipAddrs": '["1.2.3.4"]',
      "cni.projectcalico.org/ipAddrsNoIpam": '["1.2.3.4"]',
      "holdfast.dev/unseen": "2 uid 1",
      "kubernetes.io/config.source": "api",
    };
    const { annotations } = standbyPod(
      pod({}, { annotations: { ...asked, ...given } }),
      migration(),
    ).metadata;
    const kept = Object.keys(annotations).filter((key) => key in asked || key in given);
    assert.deepEqual(kept.toSorted(), Object.keys(asked).toSorted());
  });

  it("is the source on another node, and no selector sees it", () => {
    const { metadata, spec } = standbyPod(source, migration());
    assert.deepEqual(metadata.labels, { [MIGRATION_LABEL]: "m-uid" });
    assert.match(metadata.name, /^chat-5d-[a-z0-9]{5}$/);
    const {
      "holdfast.dev/becomes": becomes,
      "holdfast.dev/scheduling": _,
      ...annotations
    } = metadata.annotations;
    assert.deepEqual(annotations, {
      "holdfast.dev/injected": "1",
      mine: "kept",
      "holdfast.dev/standby": "true",
      "holdfast.dev/workload": "shop.chat-5d-x",
      "controller.kubernetes.io/pod-deletion-cost": "2147483647",
    });
    assert.deepEqual(JSON.parse(becomes ?? ""), { labels: source.metadata.labels, owner: SET });
    assert.equal(spec.nodeName, undefined);
    assert.equal(spec.ephemeralContainers, undefined);
    assert.deepEqual(spec.tolerations, [{ key: "t" }]);
    assert.deepEqual(spec.nodeSelector, { disk: "ssd" });
    assert.deepEqual(spec.readinessGates, [{ conditionType: "holdfast.dev/serving" }]);
    const pin = { key: "metadata.name", operator: "In", values: ["b"] };
    assert.deepEqual(spec.affinity, {
      podAntiAffinity: { kept: true },
      nodeAffinity: {
        requiredDuringSchedulingIgnoredDuringExecution: {
          nodeSelectorTerms: [
            { matchExpressions: [{ key: "x", operator: "Exists" }], matchFields: [pin] },
            { matchFields: [{ key: "metadata.name", operator: "NotIn", values: ["c"] }, pin] },
          ],
        },
      },
    });
  });

  it("goes anywhere else where no node is named, by the labels that are asked for", () => {
    const { spec } = standbyPod(source, migration({ target: { nodeSelector: { zone: "2" } } }));
    assert.deepEqual(spec.nodeSelector, { disk: "ssd", zone: "2" });
    const terms =
      spec.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution?.nodeSelectorTerms;
    assert.deepEqual(terms?.[0]?.matchFields, [{ key: "metadata.name", operator: "NotIn", values: ["a"] }]);
  });

  it("of a pod that was moved before is not pinned to where that went", () => {
    const first = standbyPod(source, migration({ target: { node: "b", nodeSelector: undefined } }));
    const moved: Pod = {
      metadata: metaOf("moved", { annotations: first.metadata.annotations }),
      spec: { ...first.spec, nodeName: "b" },
    };
    const back = standbyPod(moved, migration({ target: { node: "a" } }));
    const again = standbyPod(source, migration({ target: { node: "a" } }));
    assert.deepEqual(back.spec.affinity, again.spec.affinity);
    const labelled = standbyPod(source, migration({ target: { nodeSelector: { zone: "2" } } }));
    const there: Pod = {
      metadata: metaOf("there", { annotations: labelled.metadata.annotations }),
      spec: labelled.spec,
    };
    assert.deepEqual(standbyPod(there, migration()).spec.nodeSelector, { disk: "ssd" });
  });

  it("has the hostname that the application knows, and hands it on", () => {
    const named = (name: string, spec: object = {}): string | undefined =>
      standbyPod(
        { ...source, metadata: { ...source.metadata, name }, spec: { ...source.spec, ...spec } },
        migration(),
      ).spec.hostname;
    assert.equal(named("chat-5d-x"), "chat-5d-x");
    assert.equal(named("chat-5d-bcdfg", { hostname: "chat-5d-x" }), "chat-5d-x");
    // as kubelet cuts it
    assert.equal(named(`${"a".repeat(62)}-x`), "a".repeat(62));
    assert.equal(named("chat.5d"), undefined);
  });

  it("has the same name for the same attempt only, which does not grow with each move", () => {
    const named = (name: string, serial: number) =>
      standbyName(migration({ pod: name }, { serial }, { uid: `${name.slice(-20)}/${serial}` }), null);
    assert.equal(named("chat", 1), named("chat", 1));
    assert.notEqual(named("chat", 1), named("chat", 2));
    assert.equal(named(named("chat", 1), 1).length, "chat".length + 6);
    assert.ok(named("x".repeat(253), 1).length <= 253);
  });
});

describe("a status", () => {
  it("is written as what has changed in it", () => {
    const before = { phase: "Moving", move: { attempt: 1, state: "Failed" }, same: [1], gone: 1 };
    const after = { phase: "Preparing", move: { attempt: 2, state: "Failed" }, same: [1], gone: undefined };
    assert.deepEqual(mergePatch(before, after), { phase: "Preparing", move: { attempt: 2 }, gone: null });
  });
});
