/** How the controller moves a StatefulSet's pod, by example; `migration-properties.test.ts` has the rest. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type Migration, migration as migrationSchema, policyOf } from "#control/api/resources.ts";
import type { Node, OwnerReference, Pod, StatefulSet } from "#control/kubernetes/client/objects.ts";
import type { Plan } from "#control/kubernetes/controller/next.ts";
import type { Observed, Owner } from "#control/kubernetes/controller/observed.ts";
import { plan } from "#control/kubernetes/controller/plan.ts";
import { ordinalPod, standbyPod } from "#control/kubernetes/controller/standby-pod.ts";
import { revisionAnew, waitedFor } from "#control/kubernetes/controller/stateful-set.ts";
import { inject } from "#control/kubernetes/inject/inject.ts";
import { answerOrdinal } from "#control/kubernetes/webhook/ordinal.ts";
import { metaOf, NOW, START } from "#test/support/kube-objects.ts";
import { applied } from "../support/pod-shapes.ts";
import { reviewOf } from "../support/reviews.ts";

const DAY_MS = 86_400_000;
const SET: OwnerReference = {
  apiVersion: "apps/v1",
  kind: "StatefulSet",
  name: "db",
  uid: "set",
  controller: true,
};

function migration(spec: object = {}, status: object = {}): Migration {
  const metadata = metaOf("m", { finalizers: ["holdfast.dev/standby"] });
  return migrationSchema.parse({ metadata, spec: { pod: "db-1", target: { node: "b" }, ...spec }, status });
}

function pod(name = "db-1", metadata: object = {}, spec: object = {}, ready = "True"): Pod {
  return {
    metadata: metaOf(name, {
      labels: { app: "db", "controller-revision-hash": "1", "holdfast.dev/migration": "m-uid" },
      annotations: { "holdfast.dev/injected": "1" },
      ownerReferences: [SET],
      ...metadata,
    }),
    spec: { nodeName: "a", containers: [{ name: "app" }], ...spec },
    status: { phase: "Running", conditions: [{ type: "Ready", status: ready as "True" }] },
  };
}

function set(spec: object = {}, status: object = {}, metadata: object = {}): StatefulSet {
  const template = { spec: { containers: [{ name: "app" }] } };
  return {
    metadata: metaOf("db", metadata),
    spec: { replicas: 3, selector: { matchLabels: { app: "db" } }, template, ...spec },
    status: { observedGeneration: 1, currentRevision: "1", updateRevision: "1", ...status },
  };
}

function owned(statefulSet: StatefulSet | null = set(), more: object = {}): Owner {
  const pods = ["db-0", "db-1", "db-2"].map((name, at) => pod(name, {}, { nodeName: "dae"[at] }));
  return { kind: "stateful-set", reference: SET, statefulSet, pods, isInjected: true, isSeen: true, ...more };
}

function node(name: string, spec: object = {}, labels: Record<string, string> = {}): Node {
  return {
    metadata: metaOf(name, { labels }),
    spec,
    status: { conditions: [{ type: "Ready", status: "True" }] },
  };
}

const nodes = (...all: Node[]) => new Map(all.map((one) => [one.metadata.name, one]));
const ABC = nodes(node("a"), node("b"), node("c"));

function observed(more: Partial<Observed> = {}): Observed {
  return {
    migration: migration(),
    policy: policyOf([]),
    source: pod(),
    standby: null,
    strays: [],
    ordinal: null,
    owner: owned(),
    nodes: ABC,
    claims: new Map(),
    others: [],
    elsewhere: 0,
    isGuarded: true,
    isWithdrawn: false,
    ...more,
  };
}

const RETURNING = {
  phase: "Preparing",
  origin: { pod: "db-1", podUid: "db-1-uid", node: "a", attempt: 2 },
  source: { pod: "db-1-xxxxx", podUid: "db-1-xxxxx-uid", node: "c" },
  attempt: 2,
  serial: 2,
};

/** The application is in another pod, on node c. */
function returning(more: Partial<Observed> = {}, status: object = {}): Observed {
  const made = standbyPod(pod(), migration());
  const shadow = pod("db-1-xxxxx", { ...made.metadata, ...metaOf("db-1-xxxxx"), ownerReferences: [] });
  return observed({
    migration: migration({}, { ...RETURNING, ...status }),
    source: { ...shadow, spec: { ...made.spec, nodeName: "c" } },
    ordinal: pod(),
    ...more,
  });
}

const anew = (metadata: object = {}, labels: object = {}): Pod =>
  pod("db-1", {
    uid: "new",
    annotations: { "holdfast.dev/injected": "1", "holdfast.dev/standby": "true" },
    labels: { app: "db", "controller-revision-hash": "1", "holdfast.dev/migration": "m-uid", ...labels },
    ...metadata,
  });

/** Made anew, and `/ordinal` was not asked. */
const plain = (uid = "new"): Pod =>
  anew({ uid, annotations: { "holdfast.dev/injected": "1" }, labels: { "controller-revision-hash": "1" } });

/** What the pod between remembers. */
function kept(annotations: Record<string, string>): { source: Pod } {
  const { source } = returning();
  assert.ok(source !== null);
  source.metadata.annotations = { ...source.metadata.annotations, ...annotations };
  return { source };
}

const unseen = (mark: string) => kept({ "holdfast.dev/unseen": mark });
const silentAbout = ({ metadata: { uid } }: Pod) => kept({ "holdfast.dev/silent": `${uid} ${START}` });

function statusOf({ action }: Plan) {
  assert.equal(action?.do, "status", JSON.stringify(action));
  return action?.do === "status" ? action.status : {};
}

describe("a StatefulSet's pod", () => {
  const data = { volumes: [{ name: "data", persistentVolumeClaim: { claimName: "data" } }] };
  const claim = (mode: string, values?: string[]) => {
    const required = {
      nodeSelectorTerms: [{ matchExpressions: [{ key: "rack", operator: "In", values: values ?? [] }] }],
    };
    const volume = {
      metadata: metaOf("pv"),
      spec: values === undefined ? {} : { nodeAffinity: { required } },
    };
    return new Map([["data", { metadata: metaOf("data"), spec: { accessModes: [mode] }, volume }]]);
  };
  const racks = nodes(
    node("a", {}, { rack: "1" }),
    node("b", {}, { rack: "2" }),
    node("c", {}, { rack: "1" }),
  );
  const refused: [string, Partial<Observed>, string, RegExp][] = [
    ["whose StatefulSet has gone", { owner: owned(null) }, "OwnerDeleted", /takes its pods along/],
    [
      "with a claim that one node at a time mounts",
      { source: pod("db-1", {}, data), claims: claim("ReadWriteOnce") },
      "VolumeCannotFollow",
      /one node at a time/,
    ],
    [
      "with a volume that its target does not reach",
      { source: pod("db-1", {}, data), claims: claim("ReadWriteMany", ["1"]), nodes: racks },
      "VolumeCannotFollow",
      /node b does not reach/,
    ],
    [
      "with a volume that no third node reaches",
      {
        migration: migration({ target: { node: "c" } }),
        source: pod("db-1", {}, data),
        claims: claim("ReadWriteMany", ["1"]),
        nodes: racks,
      },
      "NoThirdNode",
      /waits on another node/,
    ],
    [
      "in a cluster of two nodes",
      { nodes: nodes(node("a"), node("b")) },
      "NoThirdNode",
      /beside node a and node b/,
    ],
    [
      "where another of it listens on the third node",
      { owner: owned(set(), { pods: [pod("db-0", {}, { nodeName: "c" }), pod()] }) },
      "NoThirdNode",
      /without another pod that listens/,
    ],
    [
      "where a third node is cordoned",
      { nodes: nodes(node("a"), node("b"), node("c", { unschedulable: true })) },
      "NoThirdNode",
      /node b/,
    ],
    [
      "where a third node is tainted against it",
      { nodes: nodes(node("a"), node("b"), node("c", { taints: [{ key: "gpu", effect: "NoSchedule" }] })) },
      "NoThirdNode",
      /node b/,
    ],
    [
      "that is made anew of another template whenever it is deleted",
      { owner: owned(set({ updateStrategy: { type: "OnDelete" } }, { updateRevision: "2" })) },
      "Outdated",
      /OnDelete/,
    ],
  ];
  for (const [what, more, reason, message] of refused)
    it(`${what} is refused: ${reason}`, () => {
      const status = statusOf(plan(observed(more), NOW));
      assert.deepEqual([status.phase, status.reason], ["Failed", reason]);
      assert.match(status.message ?? "", message);
    });

  const waits: [string, Partial<Observed>, string][] = [
    ["while it is rolled out", { owner: owned(set({}, { updateRevision: "2" })) }, "Rollout"],
    ["until a new template is seen", { owner: owned(set({}, { observedGeneration: 0 })) }, "Rollout"],
    [
      "until the pods before it are Ready",
      { owner: owned(set(), { pods: [pod("db-0", {}, {}, "False"), pod("db-2")] }) },
      "ReplicaNotReady",
    ],
    ["while what is made is not injected", { owner: owned(set(), { isInjected: false }) }, "WebhookSilent"],
    ["while nobody would make it a standby", { owner: owned(set(), { isSeen: false }) }, "OrdinalSilent"],
  ];
  for (const [what, more, reason] of waits)
    it(`waits ${what}`, () => {
      const { reason: told, phase } = statusOf(plan(observed(more), NOW));
      assert.deepEqual([phase, told], ["Pending", reason]);
    });

  it("says the way that it goes", () => {
    const { plan: lines = [] } = statusOf(plan(observed({ migration: migration({ dryRun: true }) }), NOW));
    assert.match(
      lines.join("\n"),
      /create pod db-1-\w{5}, for a node between\n.*\ndelete pod db-1, .*node b\n/,
    );
  });

  it("goes into another pod first, which is neither on its node nor on the target", () => {
    const { metadata, spec } = standbyPod(pod(), migration());
    assert.match(metadata.name, /^db-1-\w{5}$/);
    assert.deepEqual(metadata.labels, { "holdfast.dev/migration": "m-uid" });
    const [term] =
      spec.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution?.nodeSelectorTerms ?? [];
    assert.deepEqual(
      term?.matchFields,
      ["a", "b"].map((name) => ({ key: "metadata.name", operator: "NotIn", values: [name] })),
    );
  });

  it("goes where no other of its StatefulSet listens, which its gateways do for it", () => {
    const apartOf = (more: object) => {
      const annotations = { "holdfast.dev/injected": "1", ...more };
      const one = pod("db-1", { annotations }, { affinity: { podAntiAffinity: { mine: "kept" } } });
      return [standbyPod(one, migration()), ordinalPod(one, migration({}, RETURNING), null)].map(
        ({ spec }) => spec.affinity?.podAntiAffinity,
      );
    };
    const required = { labelSelector: { matchLabels: { app: "db" } }, topologyKey: "kubernetes.io/hostname" };
    for (const apart of apartOf({}))
      assert.deepEqual(apart, {
        mine: "kept",
        requiredDuringSchedulingIgnoredDuringExecution: [required],
      });
    for (const listens of [{ "holdfast.dev/mode": "gateway" }, { "holdfast.dev/listen": "pod" }])
      for (const apart of apartOf(listens)) assert.deepEqual(apart, { mine: "kept" });
  });

  it("whose application is in another pod goes on from there, whatever its deadline says", () => {
    const source = { pod: "db-1", podUid: "db-1-uid", node: "a" };
    const move = { attempt: 1, state: "Moved", pauseMs: 20 };
    const target = { pod: "db-1-xxxxx", podUid: "db-1-xxxxx-uid", node: "c", attempt: 1 };
    const { source: shadow } = returning();
    const status = { phase: "Adopting", attempt: 1, serial: 1, source, target, move };
    const { origin, ...next } = statusOf(
      plan(observed({ migration: migration({ abort: true }, status), standby: shadow }), NOW + DAY_MS),
    );
    assert.deepEqual(origin, { ...source, attempt: 2, move });
    assert.deepEqual(
      [next.phase, next.attempt, next.target, next.move],
      ["Preparing", 2, undefined, undefined],
    );
    assert.deepEqual(next.source, { pod: "db-1-xxxxx", podUid: "db-1-xxxxx-uid", node: "c" });
  });

  const deleted = { do: "delete-pod", isUnchanged: false };
  const ref = (name: string, uid = `${name}-uid`) => ({ name, uid, resourceVersion: "7" });
  const steps: [string, Observed, object | null][] = [
    ["is deleted", returning(), { ...deleted, pod: ref("db-1") }],
    [
      "is not deleted while it would not be made anew",
      returning({ owner: owned(set(), { pods: [pod("db-2")] }) }),
      null,
    ],
    [
      "is deleted in a roll-out, which waits for it",
      returning({ owner: owned(set({}, { updateRevision: "2" })) }),
      { ...deleted, pod: ref("db-1") },
    ],
    ["that ends is waited for", returning({ ordinal: pod("db-1", { deletionTimestamp: START }) }), null],
    [
      "whose kubelet is silent frees its name all the same",
      returning({ ordinal: pod("db-1", { deletionTimestamp: "2025-12-31T23:59:00Z" }) }),
      { ...deleted, isForced: true, pod: ref("db-1") },
    ],
    [
      "that was made anew elsewhere than it should is made once more",
      returning({ ordinal: plain(), ...unseen(`2 new 1 ${START}`) }),
      { do: "delete-pod", isUnchanged: true, pod: ref("db-1", "new") },
    ],
    [
      "is not deleted while nobody would make the next one a standby",
      returning({ owner: owned(set(), { isSeen: false }), ...silentAbout(pod()) }),
      null,
    ],
    [
      "that was made anew elsewhere is not deleted either then",
      returning({
        ordinal: plain(),
        owner: owned(set(), { isSeen: false }),
        ...kept({ "holdfast.dev/unseen": `2 new 1 ${START}`, "holdfast.dev/silent": `new ${START}` }),
      }),
      null,
    ],
    ["that is a standby since a moment ago is not touched", returning({ ordinal: anew() }), null],
    [
      "that is wanted no more takes the application along",
      returning({ owner: owned(set({ replicas: 1 })), ordinal: null }),
      { ...deleted, pod: ref("db-1-xxxxx") },
    ],
    [
      "whose StatefulSet is deleted takes the application along",
      returning({ owner: owned(set({}, {}, { deletionTimestamp: START })), ordinal: null }),
      { ...deleted, pod: ref("db-1-xxxxx") },
    ],
    [
      "that was made anew of another template takes the application along",
      returning({ ordinal: anew({}, { "controller-revision-hash": "2" }) }),
      { ...deleted, pod: ref("db-1-xxxxx") },
    ],
  ];
  it("that is not seen each time it is made anew is left, and its application goes on where it is", () => {
    const made = (uid: string, ms: number): Pod => {
      const one = plain(uid);
      one.metadata.creationTimestamp = new Date(ms).toISOString();
      return one;
    };
    const marks: (string | null | undefined)[] = [];
    const waits: number[] = [];
    let next = returning();
    let nowMs = NOW;
    const look = (uid: string): void => {
      next = { ...next, ordinal: made(uid, nowMs) };
      const { action } = plan(next, nowMs);
      assert.ok(action?.do === "patch-pod" && action.pod.name === "db-1-xxxxx", JSON.stringify(action));
      const mark = action.metadata.annotations?.["holdfast.dev/unseen"] ?? "";
      marks.push(mark);
      next = { ...next, ...unseen(mark) };
    };
    for (const uid of ["one", "two", "three", "four"]) {
      look(uid);
      const wait = plan(next, nowMs);
      assert.deepEqual([statusOf(wait).phase, statusOf(wait).reason], ["Preparing", "OrdinalNotSeen"]);
      assert.ok(wait.wakeMs !== null);
      waits.push(wait.wakeMs - nowMs);
      nowMs = wait.wakeMs;
      assert.equal(plan(next, nowMs).action?.do, "delete-pod", "however many, it is not long yet");
    }
    assert.deepEqual(waits, [1_000, 2_000, 4_000, 8_000], "each later than the one before");
    look("five");
    const first = new Date(NOW).toISOString();
    assert.deepEqual(
      marks,
      ["one", "two", "three", "four", "five"].map((uid, at) => `2 ${uid} ${at + 1} ${first}`),
    );

    const early = plan(next, NOW + 299_999).action;
    assert.equal(early?.do, "delete-pod");
    const few = { ...next, ...unseen(`2 five 2 ${first}`) };
    assert.equal(plan(few, NOW + DAY_MS).action?.do, "delete-pod", "two are not enough, however long ago");
    const status = ends(next, { app: "db", "controller-revision-hash": "1" }, NOW + 300_000);
    assert.deepEqual([status.phase, status.reason], ["Failed", "OrdinalNotSeen"]);
    assert.match(status.message ?? "", /made anew 5 times.*goes on in pod db-1-xxxxx.*kubectl delete pod/s);
  });

  it("is not left while dry runs say that the next would not be seen either, as nobody is asked", () => {
    const { source } = kept({
      "holdfast.dev/unseen": `2 new 3 ${START}`,
      "holdfast.dev/silent": `new ${START}`,
    });
    const silent = returning({ ordinal: plain(), owner: owned(set(), { isSeen: false }), source });
    assert.equal(statusOf(plan(silent, NOW + DAY_MS)).reason, "OrdinalSilent");
  });

  it("counts from one again those that were not seen after one that was", () => {
    const { action } = plan(returning({ ordinal: plain() }, { attempt: 3 }), NOW);
    assert.ok(action?.do === "patch-pod");
    const mark = `3 new 1 ${new Date(NOW).toISOString()}`;
    assert.deepEqual(action.metadata.annotations, { "holdfast.dev/unseen": mark });
    // the last: by a controller that did not keep the time
    for (const before of [`2 new 3 ${START}`, "3 new 3"]) {
      const after = plan(returning({ ordinal: plain(), ...unseen(before) }, { attempt: 3 }), NOW).action;
      assert.deepEqual(after, action);
    }
  });

  it("may be given up while nobody would make it a standby, and leaves nothing behind", () => {
    const silent = { owner: owned(set(), { isSeen: false }) };
    for (const ordinal of [pod(), plain()]) {
      const strays = ordinal.metadata.uid === "new" ? [] : [ordinal];
      const seen = returning({ ordinal, strays, ...silent, ...silentAbout(ordinal) });
      for (const one of asked(seen))
        assert.equal(
          ends(one, { app: "db", "controller-revision-hash": "1" }, NOW + 60_000).phase,
          "Aborted",
        );
      // as long as it goes on by itself nothing stops it
      for (const one of asked(seen))
        assert.equal(plan({ ...one, owner: owned() }, NOW + 60_000).action?.do === "status", false);
    }
  });

  it("is not given up for a dry run, or a minute of them, that is not seen", () => {
    const lookAfter = (seen: Observed, ms: number) => plan(seen, NOW + ms);
    const seen = returning({ owner: owned(set(), { isSeen: false }) });
    for (const one of asked(seen)) {
      const { action } = lookAfter(one, 0);
      assert.ok(action?.do === "patch-pod" && action.pod.name === "db-1-xxxxx", JSON.stringify(action));
      const mark = `db-1-uid ${new Date(NOW).toISOString()}`;
      assert.deepEqual(action.metadata, { annotations: { "holdfast.dev/silent": mark } });
      const marked = { ...one, ...kept({ "holdfast.dev/silent": mark }) };
      const { phase, reason } = statusOf(lookAfter(marked, 59_999));
      assert.deepEqual([phase, reason], ["Preparing", "OrdinalSilent"]);

      // one that is seen ends the silence
      const heard = plan({ ...marked, owner: owned() }, NOW + 60_000).action;
      assert.ok(heard?.do === "patch-pod");
      assert.deepEqual(heard.metadata, { annotations: { "holdfast.dev/silent": null } });
      // so does another pod, about which it may have been asked
      const other = lookAfter({ ...marked, ordinal: plain() }, 60_000).action;
      assert.ok(other?.do === "patch-pod");
      assert.match(other.metadata.annotations?.["holdfast.dev/silent"] ?? "", /^new 2026-01-01T00:01:01/);
    }
  });

  it("that is nobody's already ends its Migration, whatever has become of its StatefulSet", () => {
    const { source } = returning();
    assert.ok(source !== null);
    const annotations = { "holdfast.dev/injected": "1" };
    const ordinary = { ...source, metadata: { ...source.metadata, annotations } };
    const gone: Partial<Observed> = { source: ordinary, ordinal: null, owner: { kind: "none" } };
    const scaled: Partial<Observed> = { source: ordinary, owner: owned(set({ replicas: 1 })) };
    for (const more of [gone, scaled, { source: ordinary }]) {
      const seen = returning(more);
      for (const one of asked(seen)) assert.equal(statusOf(plan(one, NOW)).phase, "Aborted");
      const { phase, reason } = statusOf(plan(seen, NOW));
      assert.deepEqual([phase, reason], ["Failed", "OrdinalNotSeen"]);
    }
  });

  /** As somebody wants an end of it, both ways. */
  function asked(seen: Observed): Observed[] {
    const { metadata, spec } = seen.migration;
    return [
      { ...seen, migration: { ...seen.migration, spec: { ...spec, abort: true } } },
      { ...seen, migration: { ...seen.migration, metadata: { ...metadata, deletionTimestamp: START } } },
    ];
  }

  /** What becomes of the pod between, and of the Migration. */
  function ends(seen: Observed, labels: object, nowMs: number) {
    const first = plan(seen, nowMs).action;
    assert.ok(first?.do === "patch-pod" && first.pod.name === "db-1-xxxxx", JSON.stringify(first));
    assert.deepEqual(first.metadata.labels, labels);
    const { annotations = {} } = first.metadata;
    assert.deepEqual(
      ["standby", "becomes", "between"].map((key) => annotations[`holdfast.dev/${key}`]),
      [null, null, null],
    );
    const { source } = seen;
    assert.ok(source !== null);
    const merged = Object.entries({ ...source.metadata.annotations, ...annotations });
    const ordinary: Pod = {
      ...source,
      metadata: {
        ...source.metadata,
        labels: { ...source.metadata.labels, ...first.metadata.labels } as Record<string, string>,
        annotations: Object.fromEntries(merged.filter(([, value]) => value !== null)) as Record<
          string,
          string
        >,
      },
    };
    const status = statusOf(plan({ ...seen, source: ordinary }, nowMs));
    // the label of the Migration is taken off each, and none is deleted
    const over = { ...seen.migration, status: { ...seen.migration.status, ...status } };
    let rest: Observed = { ...seen, migration: over, source: ordinary, isGuarded: false };
    for (const name of ["db-1-xxxxx", ...seen.strays.map(({ metadata }) => metadata.name)]) {
      const { action } = plan(rest, nowMs);
      assert.ok(action?.do === "patch-pod" && action.pod.name === name, JSON.stringify(action));
      assert.equal(action.metadata.labels?.["holdfast.dev/migration"], null);
      const freed = (one: Pod): Pod =>
        one.metadata.name === name ? { ...one, metadata: { ...one.metadata, labels: {} } } : one;
      rest = { ...rest, source: freed(rest.source as Pod), strays: rest.strays.map(freed) };
    }
    assert.equal(plan(rest, nowMs).action?.do, "finalizer");
    return status;
  }

  for (const [what, seen, action] of steps)
    it(what, () => {
      const next = plan(seen, NOW).action;
      assert.deepEqual(next?.do === "status" ? null : next, action);
    });

  it("that was made anew while the one before it is still on record is the next", () => {
    const target = { pod: "db-1", podUid: "before", attempt: 2 };
    const next = plan(returning({ strays: [anew()], ordinal: anew() }, { target, attempt: 3 }), NOW);
    assert.deepEqual([statusOf(next).target, statusOf(next).serial], [undefined, 3]);
  });

  it("that cannot be had on the target is made once more, and then anywhere but beside the application", () => {
    const standby = anew();
    delete standby.spec.nodeName;
    const target = { pod: "db-1", podUid: "new", attempt: 2 };
    const seen = returning({ standby, ordinal: standby }, { target });
    const early = plan(seen, NOW);
    assert.deepEqual([statusOf(early).reason, statusOf(early).attempt], ["StandbyPending", 2]);
    const late = statusOf(plan(seen, NOW + 60_000));
    assert.deepEqual([late.phase, late.attempt, late.target], ["Preparing", 3, target]);
    const pinOf = (status: object) =>
      ordinalPod(pod(), migration({}, { ...RETURNING, ...status }), null).spec.affinity?.nodeAffinity
        ?.requiredDuringSchedulingIgnoredDuringExecution?.nodeSelectorTerms[0]?.matchFields;
    const pin = (operator: string, name: string) => ({ key: "metadata.name", operator, values: [name] });
    assert.deepEqual(pinOf({}), [pin("In", "b")]);
    assert.deepEqual(pinOf({ attempt: 3 }), [pin("In", "b")]);
    assert.deepEqual(pinOf({ attempt: 4 }), [pin("NotIn", "c")]);
  });
});

describe("a StatefulSet", () => {
  it("makes a pod of the template that its partition says", () => {
    const rolling = (partition: number) =>
      set(
        { updateStrategy: { type: "RollingUpdate", rollingUpdate: { partition } } },
        { updateRevision: "2" },
      );
    assert.deepEqual([revisionAnew(rolling(2), "db-1"), revisionAnew(rolling(1), "db-1")], ["1", "2"]);
    assert.equal(
      revisionAnew(set({ updateStrategy: { type: "OnDelete" } }, { updateRevision: "2" }), "db-1"),
      "2",
    );
  });

  it("waits for lower pods, unless it makes all at once", () => {
    const pods = [pod("db-0"), pod("db-1", {}, {}, "False")];
    assert.deepEqual(waitedFor(set(), pods, "db-3"), ["db-1", "db-2"]);
    assert.deepEqual(waitedFor(set({ podManagementPolicy: "Parallel" }), pods, "db-3"), []);
    assert.deepEqual(waitedFor(set({ ordinals: { start: 3 } }), pods, "db-3"), []);
  });

  it("leaves nothing of the way when its new pod is deleted with the application that has just come", () => {
    const target = { pod: "db-1", podUid: "new", node: "b", attempt: 2 };
    const came = { phase: "Adopting", target, move: { attempt: 2, state: "Moved" } };
    const again = pod("db-1", { ...anew().metadata, uid: "newer" });
    const lost = returning({ standby: null, strays: [again], ordinal: again }, came);
    const { action } = plan(lost, NOW);
    assert.ok(action?.do === "delete-pod" && action.pod.name === "db-1-xxxxx");
    const gone = plan({ ...lost, source: null }, NOW).action;
    assert.ok(gone?.do === "status");
    assert.deepEqual([gone.status.phase, gone.status.reason], ["Failed", "ApplicationLost"]);
  });
});

describe("the webhook that sees what StatefulSets make", () => {
  let waiting: Pod | null = null;
  async function ask(made: Pod, ...items: Migration[]) {
    const list = async <T>() => ({ items: items as T[], resourceVersion: "1" });
    const find = async <T>(path: string) => {
      assert.equal(path, "/api/v1/namespaces/shop/pods/db-1-xxxxx");
      return waiting as T | null;
    };
    const { review } = await answerOrdinal(
      { list, find },
      JSON.stringify(reviewOf(made, { namespace: "shop" })),
    );
    // biome-ignore lint/suspicious/noExplicitAny: an answer is looked at in every place.
    const { response } = review as any;
    assert.equal(response.allowed, true);
    if (response.patch === undefined) return null;
    return applied(made, JSON.parse(Buffer.from(response.patch, "base64").toString("utf8"))) as Pod;
  }
  const made = pod("db-1", { labels: { app: "db" } });
  delete made.spec.nodeName;

  it("makes a pod whose application waits the standby of that, on the target", async () => {
    const standby = await ask(made, migration({}, { phase: "Pending" }), migration({}, RETURNING));
    assert.deepEqual(standby?.metadata.labels, { app: "db", "holdfast.dev/migration": "m-uid" });
    assert.equal(standby?.metadata.annotations?.["holdfast.dev/standby"], "true");
    assert.deepEqual(standby?.spec.readinessGates, [{ conditionType: "holdfast.dev/serving" }]);
    assert.deepEqual(standby, ordinalPod(made, migration({}, RETURNING), null));
  });

  it("marks a pod of the controller's dry run, which asks whether it is seen, and no other", async () => {
    const asking = pod("db-1", { name: undefined, annotations: { "holdfast.dev/seen": "false" } });
    const marked = await ask(asking, migration({}, { phase: "Pending" }));
    assert.deepEqual(marked, {
      ...asking,
      metadata: { ...asking.metadata, annotations: { "holdfast.dev/seen": "true" } },
    });
    assert.equal(await ask(made, migration({}, { phase: "Pending" })), null);
  });

  it("leaves it as it is who holds clients' sockets, whatever pods are made like today", async () => {
    const today = pod("db-1", { annotations: { "holdfast.dev/mode": "gateway" } });
    for (const [annotations, mode] of [
      [{}, "forward"],
      [{ "holdfast.dev/mode": "forward" }, "forward"],
      [{ "holdfast.dev/mode": "gateway" }, "gateway"],
    ] as const) {
      waiting = pod("db-1-xxxxx", { annotations });
      const standby = await ask(today, migration({}, RETURNING));
      assert.equal(standby?.metadata.annotations?.["holdfast.dev/mode"], mode);
      assert.equal(standby?.spec.affinity?.podAntiAffinity === undefined, mode === "gateway");
    }
    waiting = null;
  });

  it("has the proxy where it was, whatever pods are made like today", async () => {
    const containers = ["holdfast", "holdfast-proxy", "own"].map((name) => ({ name }));
    const inside = { "holdfast.dev/mode": "gateway", "holdfast.dev/proxy": "sidecar" };
    const today = pod("db-1", { annotations: inside }, { initContainers: containers });
    for (const [annotations, expected] of [
      [{}, { mode: "forward", proxy: "node", has: false }],
      // by a chart that had no sidecars
      [{ "holdfast.dev/mode": "gateway" }, { mode: "gateway", proxy: "node", has: false }],
      [
        { "holdfast.dev/proxy": "sidecar", "holdfast.dev/listen": "pod" },
        { mode: "forward", proxy: "sidecar", has: true },
      ],
      [inside, { mode: "gateway", proxy: "sidecar", has: true }],
    ] as const) {
      waiting = pod("db-1-xxxxx", { annotations });
      const { metadata, spec } = (await ask(today, migration({}, RETURNING))) as Pod;
      const said = metadata.annotations ?? {};
      const names = (spec.initContainers ?? []).map(({ name }) => name);
      assert.deepEqual(
        {
          mode: said["holdfast.dev/mode"],
          proxy: said["holdfast.dev/proxy"],
          has: names.includes("holdfast-proxy"),
        },
        expected,
      );
      assert.ok(names.includes("own"));
    }
    waiting = null;
  });

  it("has the init that waits all the same where the proxy that would bring it is left out", async () => {
    const asked = pod("db-1", { annotations: { "holdfast.dev/mode": "gateway", "holdfast.dev/ports": "1" } });
    const outcome = inject(asked as never, {
      image: "inside:1",
      imagePullPolicy: null,
      proxy: { image: "control:1", default: "auto" },
    });
    assert.ok(outcome.kind === "injected", JSON.stringify(outcome));
    waiting = pod("db-1-xxxxx", { annotations: { "holdfast.dev/mode": "gateway" } });
    const { spec } = (await ask(outcome.pod as unknown as Pod, migration({}, RETURNING))) as Pod;
    const [first, ...others] = spec.initContainers ?? [];
    assert.deepEqual(
      [first?.name, first?.image, first?.restartPolicy, first?.lifecycle, first?.volumeMounts],
      ["holdfast", "control:1", undefined, undefined, [{ name: "holdfast", mountPath: "/.holdfast" }]],
    );
    const copies = ["/bin/cp", "-r", "--remove-destination", "/holdfast/inside/.", "/.holdfast"];
    assert.deepEqual(first?.command, copies);
    assert.deepEqual(others, []);
    waiting = null;
  });

  it("changes no other pod", async () => {
    const way = migration({}, RETURNING);
    assert.equal(await ask(made), null);
    assert.equal(await ask(made, migration({}, { ...RETURNING, phase: "Succeeded" })), null);
    assert.equal(await ask(pod("db-2"), way), null);
    assert.equal(await ask(pod("db-1", { ownerReferences: [] }), way), null);
    assert.equal(await ask(pod("db-1", { ownerReferences: [{ ...SET, kind: "ReplicaSet" }] }), way), null);
  });
});
