/**
 * A StatefulSet's pod moves in a real cluster, with clients behind a gateway: it keeps its name, and the other pod of the
 * StatefulSet, on a node of its own, is not touched. Node c is where the application waits meanwhile.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import type { LabProcess } from "../lab/lab.ts";
import type { Load } from "../load/load.ts";
import { isThorough } from "../support/thorough.ts";
import type { Cluster, KubeObject } from "./cluster.ts";
import { MIGRATIONS, MOVED_MS_MAX, NAMESPACE, PODS, SESSIONS, SetStage, statefulSet } from "./set-stage.ts";

const NAME = "chat-0";
const OTHER = "chat-1";
const RING = isThorough ? ["ring-0", "ring-1", "ring-2"] : ["ring-0", "ring-1"];

describe("a StatefulSet's pod", () => {
  let stage: SetStage;
  let cluster: Cluster;
  let load: Load;
  let other: KubeObject;
  let watch: LabProcess;

  before(async () => {
    stage = await SetStage.build([NAME, ...RING]);
    ({ cluster } = stage);
    for (const node of ["b", "c", "d"]) await cluster.kubectl(["cordon", node]);
    await cluster.apply(statefulSet("chat"));
    await isServing(NAME, "a");
    await cluster.kubectl(["cordon", "a"]);
    await cluster.kubectl(["uncordon", "d"]);
    await scale(2);
    other = await isServing(OTHER, "d");
    await cluster.kubectl(["cordon", "d"]);
    await cluster.kubectl(["uncordon", "a", "b", "c"]);
    load = await stage.startClients(NAME);
    watch = cluster.spawn("watch", [
      ...["kubectl", "-n", NAMESPACE, "get", "pods", "--watch", "--no-headers", "-o"],
      'custom-columns=N:.metadata.name,U:.metadata.uid,D:.metadata.deletionTimestamp,R:.status.conditions[?(@.type=="Ready")].status',
    ]);
    await cluster.until("pods are watched", async () => watch.stdout.includes(OTHER));
  });
  after(() => stage?.close());

  const failed = (what: unknown): Promise<never> => stage.failed(what);
  const scale = (replicas: number): Promise<void> => stage.scale("chat", replicas);
  const podOf = (name: string): Promise<KubeObject | null> => stage.podOf(name);
  const isServing = (name: string, node?: string): Promise<KubeObject> => stage.isServing(name, node);
  const migrate = (name: string, spec: object): Promise<void> => stage.migrate(name, spec);
  const until: SetStage["until"] = (...args) => stage.until(...args);
  const ended = (name: string): Promise<KubeObject> => stage.ended(name);
  const answered = (): Promise<void> => stage.answered(load);
  const areFine = (): Promise<void> => stage.areFine(load);

  function hasSidecar({ spec }: KubeObject): boolean {
    return (spec.initContainers as { name: string }[]).some(({ name }) => name === "holdfast-proxy");
  }

  /** Nothing is left of a move but the pod, which is the StatefulSet's as it was. */
  async function isAsBefore(source: KubeObject, moved: KubeObject): Promise<void> {
    await cluster
      .until("only the StatefulSet's pods are there, without marks", async () => {
        const pods = (await cluster.api("GET", PODS)).items as KubeObject[];
        const labels = pods.flatMap(({ metadata }) => Object.keys(metadata.labels ?? {}));
        return pods.length === 2 && !labels.includes("holdfast.dev/migration");
      })
      .catch(failed);
    assert.notEqual(moved.metadata.uid, source.metadata.uid);
    assert.deepEqual(moved.metadata.ownerReferences, source.metadata.ownerReferences);
    const { annotations = {} } = moved.metadata as { annotations?: Record<string, string> };
    assert.equal(annotations["holdfast.dev/standby"], undefined);
    assert.deepEqual([moved.spec.hostname, moved.spec.subdomain], [NAME, "chat"]);
    const seen = watch.stdout
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .filter(([name]) => name === OTHER);
    for (const [, uid, deleted, ready] of seen)
      assert.deepEqual(
        [uid, deleted, ready],
        [other.metadata.uid, "<none>", "True"],
        "the other pod is not touched",
      );
  }

  for (const [from, to] of [
    ["a", "b"],
    ["b", "a"],
  ] as const)
    it(`moves from ${from} to ${to} and keeps its name: no client loses anything, and it has its proxy in it`, async () => {
      const source = await isServing(NAME, from);
      assert.ok(hasSidecar(source));
      await load.mark();
      await answered();
      await migrate(`to-${to}`, { pod: NAME, target: { node: to } });
      const status = await ended(`to-${to}`);
      if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
      await areFine();
      const moved = await isServing(NAME, to);
      assert.deepEqual(
        [status.origin.node, status.source.node, status.target.node, status.target.pod],
        [from, "c", to, NAME],
      );
      assert.equal(status.move.sessions, SESSIONS);
      assert.ok(hasSidecar(moved));
      await isAsBefore(source, moved);
    });

  it("moves though the new pod is deleted in the middle", async () => {
    const source = await isServing(NAME, "a");
    await load.mark();
    await answered();
    await migrate("hard", { pod: NAME, target: { node: "b" } });
    await until("hard", "waits for the pod", ({ origin }) => origin !== undefined);
    await cluster
      .until("the pod is made anew", async () => {
        const pod = await podOf(NAME);
        return pod !== null && pod.metadata.uid !== source.metadata.uid;
      })
      .catch(failed);
    await cluster.kubectl(["-n", NAMESPACE, "delete", "pod", NAME, "--wait=false"]);
    const status = await ended("hard");
    if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
    await areFine();
    await isAsBefore(source, await isServing(NAME, "b"));
  });

  it("leaves its node when that is drained, once", async () => {
    const source = await isServing(NAME);
    const node = source.spec.nodeName as string;
    await load.mark();
    await answered();
    const before = (await cluster.api("GET", MIGRATIONS)).items.length;
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--pod-selector=app=chat",
    ]);
    await cluster.until("the drain is over", async () => drain.exited, MOVED_MS_MAX).catch(failed);
    if (drain.child.exitCode !== 0) await failed(drain.stderr);
    const migrations = (await cluster.api("GET", MIGRATIONS)).items as KubeObject[];
    assert.equal(migrations.length, before + 1);
    const made = migrations.find(({ spec }) => spec.podUid === source.metadata.uid);
    const status = await ended(made?.metadata.name ?? "");
    if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
    await areFine();
    const moved = await isServing(NAME, status.target.node);
    assert.notEqual(moved.spec.nodeName, node);
    await isAsBefore(source, moved);
    await cluster.kubectl(["uncordon", node]);
  });

  it("is not touched where its volume cannot follow, whatever else could", async () => {
    const volume = (name: string, mode: string, nodes: string[] | null): KubeObject[] => {
      const storage = { storageClassName: "", accessModes: [mode] };
      const term = { matchExpressions: [{ key: "kubernetes.io/hostname", operator: "In", values: nodes }] };
      return [
        {
          apiVersion: "v1",
          kind: "PersistentVolume",
          metadata: { name },
          spec: {
            ...storage,
            capacity: { storage: "1Gi" },
            hostPath: { path: join(cluster.lab.dir, `volume-${name}`), type: "DirectoryOrCreate" },
            claimRef: { namespace: NAMESPACE, name },
            ...(nodes === null ? {} : { nodeAffinity: { required: { nodeSelectorTerms: [term] } } }),
          },
        },
        {
          apiVersion: "v1",
          kind: "PersistentVolumeClaim",
          metadata: { name, namespace: NAMESPACE },
          spec: { ...storage, volumeName: name, resources: { requests: { storage: "1Gi" } } },
        },
      ];
    };
    const sets: [string, string, string[] | null][] = [
      ["near", "ReadWriteMany", ["a", "c"]],
      ["alone", "ReadWriteOnce", null],
      ["shared", "ReadWriteMany", null],
    ];
    const objects = sets.flatMap(([name, mode, nodes]) => {
      const claim = { persistentVolumeClaim: { claimName: name } };
      return [...volume(name, mode, nodes), statefulSet(name, { volume: claim })];
    });
    await cluster.kubectl(["cordon", "b", "c", "d"]);
    await cluster.apply(...objects);
    const pods = await Promise.all(sets.map(([name]) => isServing(`${name}-0`, "a")));
    await cluster.kubectl(["uncordon", "b", "c", "d"]);
    await migrate("near", { pod: "near-0", target: { node: "b" } });
    await migrate("near-anywhere", { pod: "near-0" });
    await migrate("alone", { pod: "alone-0", target: { node: "b" } });
    for (const [name, reason, message] of [
      ["near", "VolumeCannotFollow", /volume that node b does not reach \(nodeAffinity\)/],
      ["near-anywhere", "NoThirdNode", /none that can take it/],
      ["alone", "VolumeCannotFollow", /one node at a time \(ReadWriteOnce\)/],
    ] as const) {
      const status = await ended(name);
      assert.deepEqual([status.phase, status.reason], ["Failed", reason], name);
      assert.match(status.message, message);
    }
    for (const pod of pods) {
      const now = await podOf(pod.metadata.name);
      assert.equal(now?.metadata.uid, pod.metadata.uid);
      assert.equal(now?.metadata.deletionTimestamp, undefined);
    }
    await migrate("shared", { pod: "shared-0", target: { node: "b" } });
    const status = await ended("shared");
    if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
    await isServing("shared-0", "b");
    await cluster.kubectl(["-n", NAMESPACE, "delete", "statefulset", ...sets.map(([name]) => name)]);
  });

  it("leaves a drained node with all its siblings, one after the other, where they are made in order", async () => {
    await cluster.kubectl(["cordon", "a", "c", "d"]);
    await cluster.apply(statefulSet("ring", { replicas: RING.length }));
    for (const name of RING) await isServing(name, "b");
    const loads = await Promise.all(RING.map((name) => stage.startClients(name)));
    await cluster.kubectl(["uncordon", "a", "c", "d"]);
    for (const one of loads) await stage.answered(one);
    for (const one of loads) await one.mark();
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", "b", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--pod-selector=app=ring",
    ]);
    await cluster.until("the drain is over", async () => drain.exited, 2 * MOVED_MS_MAX).catch(failed);
    if (drain.child.exitCode !== 0) await failed(drain.stderr);
    for (const one of loads) await stage.areFine(one);
    for (const name of RING) assert.notEqual((await isServing(name)).spec.nodeName, "b", name);
    await Promise.all(loads.map((one) => one.stop()));
    await cluster.kubectl(["-n", NAMESPACE, "delete", "statefulset", "ring"]);
    await cluster.kubectl(["uncordon", "b"]);
  });

  it("ends with its application when the StatefulSet wants it no more in the middle, and starts anew when it does", async () => {
    await load.stop();
    const { spec } = await isServing(NAME);
    await migrate("unwanted", { pod: NAME, target: { node: spec.nodeName === "a" ? "b" : "a" } });
    await until("unwanted", "waits for the pod", ({ origin }) => origin !== undefined);
    await scale(0);
    const { phase, reason } = await ended("unwanted");
    assert.deepEqual([phase, reason], ["Failed", "ScaledDown"]);
    await cluster
      .until("no pod is left", async () => (await cluster.api("GET", PODS)).items.length === 0)
      .catch(failed);
    await scale(1);
    await isServing(NAME);
  });
});
