/**
 * Whatever fails, and in whatever order things happen: the application is in one pod that the controller does not delete, its
 * ReplicaSet keeps its replicas and makes no other, a StatefulSet's pod has its name afterwards and the others are not touched, every
 * Migration ends, and nothing is left of it.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { FINALIZER, isFinal, MIGRATION_LABEL } from "#control/api/resources.ts";
import { controllerOf, isActive } from "#control/kubernetes/client/objects.ts";
import { pathOf } from "#control/kubernetes/client/paths.ts";
import { isStandby } from "#control/kubernetes/controller/standby-pod.ts";
import { type ClusterOptions, MadeUpCluster, NAMESPACE } from "../support/made-up-cluster.ts";

/** What people and nodes do meanwhile. @property ends the application may end with it, as it would have without a move */
const DISTURBANCES: Record<string, { ends: boolean; does(cluster: MadeUpCluster): void }> = {
  "the source is deleted": { ends: true, does: (cluster) => cluster.deletePod("people", "chat-0") },
  "a standby is deleted": {
    ends: true,
    does: (cluster) => {
      const standby = cluster.pods().find(isStandby);
      if (standby !== undefined) cluster.deletePod("people", standby.metadata.name);
    },
  },
  "it is aborted": {
    ends: false,
    does: (cluster) =>
      cluster.change(pathOf("migrations", { namespace: NAMESPACE, name: "m" }), { spec: { abort: true } }),
  },
  "it is deleted": {
    ends: false,
    does: (cluster) =>
      cluster.change(pathOf("migrations", { namespace: NAMESPACE, name: "m" }), {
        metadata: { deletionTimestamp: new Date(cluster.nowMs).toISOString() },
      }),
  },
  "its time is up": {
    ends: false,
    does: (cluster) => {
      cluster.nowMs += 700_000;
    },
  },
  "the target is cordoned": {
    ends: false,
    does: (cluster) => cluster.change(pathOf("nodes", { name: "b" }), { spec: { unschedulable: true } }),
  },
  "the target's node goes": {
    ends: false,
    does: (cluster) => cluster.remove(pathOf("nodes", { name: "b" })),
  },
  "the source's agent is silent": {
    ends: false,
    does: (cluster) => {
      cluster.silentAgents.add("a");
      cluster.nowMs += 31_000;
    },
  },
  "another Migration is made": {
    ends: false,
    does: (cluster) => cluster.migrate("n", { pod: "chat-0", target: { node: "c" } }),
  },
  "a controller dies": { ends: false, does: (cluster) => cluster.killController() },
  "the pod that the application has left is deleted": {
    ends: false,
    does: (cluster) => {
      const pod = cluster.pod("chat-0");
      if (pod !== null && pod.metadata.uid !== cluster.application && !isStandby(pod))
        cluster.deletePod("people", "chat-0");
    },
  },
  "the StatefulSet has another template": {
    ends: true,
    does: (cluster) =>
      cluster.change(pathOf("statefulsets", { namespace: NAMESPACE, name: "chat" }), {
        status: { updateRevision: "2" },
      }),
  },
  "the StatefulSet is to have no pod": {
    ends: true,
    does: (cluster) =>
      cluster.change(pathOf("statefulsets", { namespace: NAMESPACE, name: "chat" }), {
        spec: { replicas: 0 },
      }),
  },
  "a replica less is wanted": {
    ends: true,
    does: (cluster) => {
      const path = (kind: "replicasets" | "deployments", name: string) =>
        pathOf(kind, { namespace: NAMESPACE, name });
      cluster.change(path("replicasets", "chat-1"), { spec: { replicas: 1 } });
      cluster.change(path("deployments", "chat"), {
        spec: { replicas: 1 },
        status: { replicas: 1, updatedReplicas: 1 },
      });
    },
  },
};

/** they only matter in the middle of a move */
const OFTEN = ["it is aborted", "its time is up", "it is deleted"];
const STEPS = 250;
const LATE_STEPS = 1_500;
const CALM_STEPS_MAX = 8_000;

const scenario = fc.record({
  seed: fc.integer(),
  replicas: fc.constantFrom(0, 1, 2, 3),
  owner: fc.constantFrom("deployment" as const, "stateful-set" as const),
  podManagementPolicy: fc.constantFrom("OrderedReady" as const, "Parallel" as const),
  gated: fc.boolean(),
  faults: fc.constantFrom(0, 0.02, 0.1),
  controllers: fc.constantFrom(1, 2),
  node: fc.constantFrom("b", undefined),
  disturbances: fc.array(
    fc.record({ at: fc.nat(STEPS), what: fc.constantFrom(...Object.keys(DISTURBANCES), ...OFTEN) }),
    { maxLength: 3 },
  ),
});
type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never;

/** @throws AssertionError at the first step after which something does not hold */
async function run({
  disturbances,
  node,
  ...options
}: Scenario & Pick<ClusterOptions, "othersWriteEvery">): Promise<string> {
  const cluster = new MadeUpCluster(options);
  const source = cluster.pod("chat-0");
  assert.ok(source !== null);
  cluster.migrate("m", { pod: "chat-0", ...(node === undefined ? {} : { target: { node } }) });
  const said = disturbances.map(({ what }) => DISTURBANCES[what]);
  const mayEnd = said.some((one) => one?.ends === true);
  const isOfSet = options.owner === "stateful-set" && options.replicas > 0;

  let looked = 0;
  const holds = (): void => {
    for (; looked < cluster.deeds.length; looked += 1) {
      const deed = cluster.deeds[looked] as (typeof cluster.deeds)[0];
      // what its StatefulSet wants no more ends with the pod that it is in meanwhile
      if (!(isOfSet && mayEnd))
        assert.ok(!(deed.who === "controller" && deed.hadApplication), `the controller deleted ${deed.pod}`);
      if (!mayEnd && deed.who === "stateful-set")
        assert.deepEqual(
          [deed.what, deed.pod],
          ["create", "chat-0"],
          "no other pod of the StatefulSet is touched",
        );
      if (mayEnd || deed.who !== "replica-set") continue;
      assert.notEqual(deed.what, "create", `a pod more was made: ${deed.pod}`);
      assert.equal(deed.uid, source.metadata.uid, `the ReplicaSet deleted ${deed.pod}`);
      assert.ok(!deed.hadApplication, `the ReplicaSet deleted ${deed.pod}`);
    }
    for (const { metadata, status } of cluster.migrations())
      if (["Preparing", "Moving", "Adopting"].includes(status.phase ?? ""))
        assert.ok(cluster.guarded().includes(metadata.uid), `${status.phase}, and its pods may be evicted`);
    if (mayEnd) return;
    assert.notEqual(cluster.application, null, "the application has ended");
    const owned = cluster.pods().filter((pod) => controllerOf(pod) !== null && isActive(pod));
    const least = options.replicas - (isOfSet ? 1 : 0);
    assert.ok(owned.length >= least, `${owned.length} of ${options.replicas} replicas`);
  };
  for (let at = 0; at < STEPS; at += 1) {
    for (const disturbance of disturbances)
      if (disturbance.at === at) DISTURBANCES[disturbance.what]?.does(cluster);
    await cluster.step();
    holds();
  }

  cluster.calm = true;
  cluster.silentAgents.clear();
  const left = (): string[] => [
    ...cluster
      .migrations()
      .filter(({ metadata, status }) => !isFinal(status.phase) || metadata.finalizers.includes(FINALIZER))
      .map(
        ({ metadata, status }) =>
          `Migration ${metadata.name}: ${status.phase}: ${status.reason} ${status.message}`,
      ),
    ...cluster
      .pods()
      .filter((pod) => isStandby(pod) || pod.metadata.labels?.[MIGRATION_LABEL] !== undefined)
      .map(({ metadata }) => `pod ${metadata.name}`),
    ...cluster
      .migrations()
      .filter(({ metadata }) => cluster.guarded().includes(metadata.uid))
      .map(({ metadata }) => `guard of ${metadata.name}`),
  ];
  for (let at = 0; left().length > 0; at += 1) {
    cluster.isLate = at > LATE_STEPS;
    assert.ok(at < CALM_STEPS_MAX, `left: ${left().join("; ")}`);
    await cluster.step();
    holds();
  }
  const [first] = cluster.migrations().filter(({ metadata }) => metadata.name === "m");
  if (!mayEnd) {
    const holder = cluster.byUid(cluster.application);
    assert.ok(holder !== null && isActive(holder), "the pod with the application is there");
    if (first?.status.phase === "Succeeded")
      assert.notEqual(cluster.application, source.metadata.uid, "it says that it has moved");
    if (options.replicas > 0) assert.notEqual(controllerOf(holder), null, "its owner has it");
    if (isOfSet) assert.equal(holder.metadata.name, "chat-0", "it has its name");
  }
  return first?.status.phase ?? "deleted";
}

describe("a Migration of a StatefulSet's pod that nobody would make a standby", () => {
  const build = (): MadeUpCluster => {
    const options = { seed: 1, replicas: 2, gated: true, faults: 0, controllers: 1 };
    const cluster = new MadeUpCluster({ ...options, owner: "stateful-set" });
    cluster.calm = true;
    cluster.migrate("m", { pod: "chat-0", target: { node: "b" } });
    return cluster;
  };
  const statusOf = (cluster: MadeUpCluster) => cluster.migrations()[0]?.status ?? {};
  const until = async (cluster: MadeUpCluster, holds: () => boolean): Promise<void> => {
    for (let at = 0; !holds(); at += 1) {
      assert.ok(at < CALM_STEPS_MAX, JSON.stringify(statusOf(cluster)));
      await cluster.step();
    }
  };

  it("does not begin, and its pod is left alone", async () => {
    const cluster = build();
    cluster.asksOrdinal = false;
    await until(cluster, () => statusOf(cluster).reason === "OrdinalSilent");
    cluster.nowMs += 700_000;
    await until(cluster, () => isFinal(statusOf(cluster).phase));
    assert.equal(statusOf(cluster).reason, "Deadline");
    assert.match(statusOf(cluster).message ?? "", /does not ask ordinals\.holdfast\.dev/);
    assert.deepEqual(cluster.deeds, []);
  });

  /** The API server stops asking when the application is in the pod between. */
  const between = async (): Promise<MadeUpCluster> => {
    const cluster = build();
    await until(cluster, () => statusOf(cluster).origin !== undefined);
    cluster.asksOrdinal = false;
    await until(cluster, () => statusOf(cluster).reason === "OrdinalSilent");
    return cluster;
  };

  it("waits with its application served while nobody is asked, and goes on by itself then", async () => {
    const cluster = await between();
    const made = cluster.deeds.length;
    for (let at = 0; at < LATE_STEPS; at += 1) await cluster.step();
    assert.deepEqual([statusOf(cluster).phase, statusOf(cluster).reason], ["Preparing", "OrdinalSilent"]);
    assert.deepEqual(cluster.deeds.slice(made), []);
    cluster.asksOrdinal = true;
    await until(cluster, () => isFinal(statusOf(cluster).phase));
    assert.equal(statusOf(cluster).phase, "Succeeded");
    assert.equal(cluster.byUid(cluster.application)?.metadata.name, "chat-0");
  });

  const abort = (cluster: MadeUpCluster): void =>
    cluster.change(pathOf("migrations", { namespace: NAMESPACE, name: "m" }), { spec: { abort: true } });
  const isOver = (cluster: MadeUpCluster): boolean =>
    isFinal(statusOf(cluster).phase) &&
    cluster.migrations().every(({ metadata }) => !metadata.finalizers.includes(FINALIZER));

  it("is not given up for as long as a webhook takes to be rolled out, be an end of it wanted", async () => {
    const cluster = await between();
    const silentMs = cluster.nowMs;
    abort(cluster);
    for (let at = 0; at < LATE_STEPS; at += 1) await cluster.step();
    assert.ok(cluster.nowMs - silentMs < 60_000);
    cluster.asksOrdinal = true;
    await until(cluster, () => isOver(cluster));
    assert.equal(statusOf(cluster).phase, "Succeeded");
    assert.equal(cluster.byUid(cluster.application)?.metadata.name, "chat-0");
  });

  it("ends, given up, where its StatefulSet goes in the instant after its application is nobody's", async () => {
    const cluster = await between();
    abort(cluster);
    const holder = () => cluster.byUid(cluster.application);
    await until(cluster, () => holder()?.metadata.annotations?.["holdfast.dev/standby"] === undefined);
    assert.equal(statusOf(cluster).phase, "Preparing");
    cluster.remove(pathOf("statefulsets", { namespace: NAMESPACE, name: "chat" }));
    cluster.remove(pathOf("pods", { namespace: NAMESPACE, name: "chat-0" }));
    await until(cluster, () => isOver(cluster));
    assert.equal(statusOf(cluster).phase, "Aborted");
    const pod = holder();
    assert.ok(pod !== null && isActive(pod) && !isStandby(pod));
    assert.equal(pod.metadata.labels?.[MIGRATION_LABEL], undefined);
  });

  /** Nobody is asked about pods that are made, and a quota refuses what would say so. */
  const unknown = async (): Promise<MadeUpCluster> => {
    const cluster = build();
    await until(cluster, () => statusOf(cluster).origin !== undefined);
    cluster.asksOrdinal = false;
    cluster.refusesDryRuns = true;
    return cluster;
  };
  const pods = (cluster: MadeUpCluster): number =>
    cluster.deeds.filter(({ who, what }) => who === "stateful-set" && what === "create").length;

  it("goes on where many were not seen within a short time, when the next is", async () => {
    const cluster = await unknown();
    const beganMs = cluster.nowMs;
    await until(cluster, () => pods(cluster) > 4);
    assert.ok(cluster.nowMs - beganMs < 300_000);
    cluster.asksOrdinal = true;
    await until(cluster, () => isOver(cluster));
    assert.equal(statusOf(cluster).phase, "Succeeded");
    assert.equal(cluster.byUid(cluster.application)?.metadata.name, "chat-0");
  });

  it("ends by itself where none was seen for long, of which few were made", async () => {
    const cluster = await unknown();
    const beganMs = cluster.nowMs;
    while (!isFinal(statusOf(cluster).phase)) {
      assert.ok(cluster.nowMs - beganMs < 900_000, JSON.stringify(statusOf(cluster)));
      await cluster.step();
    }
    assert.deepEqual([statusOf(cluster).phase, statusOf(cluster).reason], ["Failed", "OrdinalNotSeen"]);
    assert.ok(cluster.nowMs - beganMs >= 300_000);
    assert.ok(pods(cluster) <= 10, `${pods(cluster)} pods`);
    const holder = cluster.byUid(cluster.application);
    assert.ok(holder !== null && isActive(holder) && !isStandby(holder));
  });

  it("waits, too, where its pod was deleted by others, and lets the one that is made then be", async () => {
    const cluster = await between();
    const { uid } = cluster.pod("chat-0")?.metadata ?? {};
    cluster.deletePod("people", "chat-0");
    await until(cluster, () => ![undefined, uid].includes(cluster.pod("chat-0")?.metadata.uid));
    const made = cluster.deeds.length;
    for (let at = 0; at < LATE_STEPS; at += 1) await cluster.step();
    assert.deepEqual(cluster.deeds.slice(made), []);
    cluster.asksOrdinal = true;
    await until(cluster, () => isFinal(statusOf(cluster).phase));
    assert.equal(statusOf(cluster).phase, "Succeeded");
  });

  it("is given up when somebody wants that, with its application in an ordinary pod", async () => {
    const cluster = await between();
    const made = cluster.deeds.length;
    abort(cluster);
    await until(cluster, () => isOver(cluster));
    assert.equal(statusOf(cluster).phase, "Aborted");
    assert.deepEqual(cluster.deeds.slice(made), []);
    const holder = cluster.byUid(cluster.application);
    assert.ok(holder !== null && isActive(holder) && !isStandby(holder));
    assert.equal(holder.metadata.labels?.app, "chat");
    for (const { metadata } of cluster.pods()) assert.equal(metadata.labels?.[MIGRATION_LABEL], undefined);
    assert.deepEqual(cluster.guarded(), []);
  });
});

describe("a Migration, whatever happens", () => {
  it("keeps the application in one pod and its replicas, ends, and leaves nothing behind", async () => {
    const ends = new Map<string, number>();
    await fc.assert(
      fc.asyncProperty(scenario, async (one) => {
        const end = await run(one);
        const kind = one.replicas > 0 ? one.owner : "nobody";
        for (const key of [end, `${end} of ${kind}`]) ends.set(key, (ends.get(key) ?? 0) + 1);
      }),
      { numRuns: 200, endOnFailure: false },
    );
    const some = ["deployment", "stateful-set", "nobody"].map((kind) => `Succeeded of ${kind}`);
    for (const end of ["Succeeded", "Failed", "Aborted", ...some])
      assert.ok((ends.get(end) ?? 0) > 0, `${end}: ${JSON.stringify([...ends])}`);
  });

  it("ends while others write to its objects more often than it reads them all", async () => {
    await fc.assert(
      fc.asyncProperty(scenario, fc.integer({ min: 5, max: 8 }), async (one, othersWriteEvery) => {
        const end = await run({ ...one, controllers: 1, faults: 0, disturbances: [], othersWriteEvery });
        assert.ok(["Succeeded", "Failed"].includes(end), end);
      }),
      { numRuns: 30 },
    );
  });

  it("succeeds where nothing is in its way, whatever the API server does to calls", async () => {
    await fc.assert(
      fc.asyncProperty(scenario, async (one) => {
        const kind = /controller dies/;
        const disturbances = one.disturbances.filter(({ what }) => kind.test(what));
        const end = await run({ ...one, disturbances });
        assert.ok(["Succeeded", "Failed"].includes(end), end);
      }),
      { numRuns: 30 },
    );
  });
});
