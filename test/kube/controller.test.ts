/** Migrations in a real cluster: what the API server takes, and a Deployment's pod that moves while its clients notice nothing. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { customResourceDefinitions } from "#control/api/crd.ts";
import type { LabProcess } from "../lab/lab.ts";
import type { Load } from "../load/load.ts";
import { agentsOf } from "./agents.ts";
import type { Cluster, KubeObject } from "./cluster.ts";
import { HOLDFAST, migration, NAMESPACE, SESSIONS, Stage } from "./stage.ts";

describe("Migrations in a cluster", () => {
  let cluster: Cluster;
  let stage: Stage;
  let load: Load;

  before(async () => {
    stage = await Stage.build();
    ({ cluster } = stage);
  });
  after(() => stage?.close());

  const failedWithLogs = (what: unknown): Promise<never> => stage.failedWithLogs(what);
  const theOnlyPod = (node: string): Promise<KubeObject> => stage.theOnlyPod(node);
  const ended = (name: string): Promise<KubeObject> => stage.ended(name);
  const answered = (): Promise<void> => stage.answered();

  /** Command of the parent of the application's daemon: /proc/PID/stat names it behind the state. */
  function parentOfDaemon(pod: string): Promise<string> {
    const script = `
      const { readdirSync, readFileSync } = require("fs");
      const said = (pid, file) => { try { return readFileSync("/proc/" + pid + "/" + file, "utf8"); } catch { return ""; } };
      const daemon = readdirSync("/proc").find((pid) => said(pid, "comm") === "sleep\\n");
      const parent = said(daemon, "stat").split(") ").at(-1).split(" ")[1];
      process.stdout.write(said(parent, "cmdline").replaceAll("\\0", " ").trim());`;
    return cluster.kubectl(["exec", pod, "-c", "app", "--", "/usr/bin/node", "-e", script]);
  }

  /** What is in column after column of each line that a watch has printed. */
  function watch(...args: string[]): { lines(): string[][]; process: LabProcess } {
    const started = cluster.spawn("watch", ["kubectl", "get", ...args, "--watch", "--no-headers"]);
    return {
      process: started,
      lines: () =>
        started.stdout
          .split("\n")
          .filter((line) => line !== "")
          .map((line) => line.trim().split(/\s+/)),
    };
  }

  it("are admitted, and what contradicts itself or is changed afterwards is not", async () => {
    for (const { metadata } of customResourceDefinitions())
      await cluster.kubectl(["wait", "--for=condition=Established", `crd/${metadata.name}`, "--timeout=60s"]);
    const folder = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations`;
    const refused = (spec: object, message: RegExp) =>
      assert.rejects(cluster.api("POST", folder, migration("refused", spec)), message);
    await refused({}, /spec\.pod: Required value/);
    await refused({ pod: "A_B" }, /spec\.pod.*should match/s);
    await refused({ pod: "x", deadlineSeconds: 1 }, /greater than or equal to 5/);
    await refused(
      { pod: "x", target: { node: "b", nodeSelector: { a: "b" } } },
      /name a node or give a nodeSelector, not both/,
    );
    await cluster.apply(migration("kept", { pod: "nowhere", target: { nodeSelector: { disk: "ssd" } } }));
    const change = (spec: object) =>
      cluster.api("PATCH", `${folder}/kept`, { spec }, "application/merge-patch+json");
    await assert.rejects(change({ pod: "other" }), /pod cannot be changed/);
    await assert.rejects(change({ target: null }), /target cannot be changed/);
    await assert.rejects(change({ dryRun: true }), /dryRun cannot be changed/);
    await change({ abort: true });
    await assert.rejects(change({ abort: false }), /abort cannot be taken back/);
    const { status } = await ended("kept");
    assert.ok(["PodNotFound", "Aborted"].includes(status.reason), status.reason);
    await cluster.apply({
      apiVersion: "holdfast.dev/v1alpha1",
      kind: "ContinuityPolicy",
      metadata: { name: "default" },
      spec: { evictionStrategy: "LiveMigrate", movesPerNode: 1 },
    });
  });

  it("say what they would do", async () => {
    const { metadata } = await theOnlyPod("a");
    await cluster.kubectl(["uncordon", "b"]);
    await cluster.apply(migration("dry", { pod: metadata.name, target: { node: "b" }, dryRun: true }));
    const { status } = await ended("dry");
    assert.equal(status.reason, "DryRun");
    assert.match(status.plan.join("\n"), /for node b/);
    assert.equal((await stage.pods()).length, 1);
  });

  for (const [from, to] of [
    ["a", "b"],
    ["b", "a"],
  ] as const)
    it(`move a Deployment's pod from ${from} to ${to}: no client loses anything, and no pod more is made`, async () => {
      const source = await theOnlyPod(from);
      if (from === "a") {
        load = await stage.startClients();
      }
      const seen = watch("pods", "-o", "custom-columns=N:.metadata.name,U:.metadata.uid");
      const replicas = watch("replicasets", "-o", "custom-columns=R:.status.replicas,S:.spec.replicas");
      await cluster.until(
        "both are watched",
        async () => seen.lines().length > 0 && replicas.lines().length > 0,
      );
      await load.mark();
      await answered();

      await cluster.apply(migration(`to-${to}`, { pod: source.metadata.name, target: { node: to } }));
      const { status } = await ended(`to-${to}`);
      if (status.phase !== "Succeeded") await failedWithLogs(JSON.stringify(status));
      await answered();

      await stage.nobodyIsLost();
      const moved = await theOnlyPod(to);
      const uids = new Set(seen.lines().map(([, uid]) => uid));
      assert.deepEqual(uids, new Set([source.metadata.uid, moved.metadata.uid]));
      assert.deepEqual(
        replicas.lines().filter(([count]) => Number(count) < 1),
        [],
        "replicas never fall",
      );
      for (const { process } of [seen, replicas]) await process.stop("SIGTERM", 5_000);

      assert.equal(status.target.pod, moved.metadata.name);
      assert.equal(
        await parentOfDaemon(moved.metadata.name),
        "/usr/bin/node /app/chat.js",
        "it has its daemon",
      );
      assert.equal(status.move.sessions, SESSIONS);
      assert.ok(status.move.pauseMs > 0);
      const { labels, annotations, ownerReferences } = moved.metadata as unknown as {
        labels: object;
        annotations: Record<string, string>;
        ownerReferences: { kind: string }[];
      };
      assert.deepEqual(labels, source.metadata.labels);
      assert.deepEqual(ownerReferences, source.metadata.ownerReferences);
      for (const key of ["holdfast.dev/standby", "controller.kubernetes.io/pod-deletion-cost"])
        assert.equal(annotations[key], undefined);
      const events = await cluster.kubectl([
        "get",
        "events",
        "-o",
        "custom-columns=R:.reason,O:.involvedObject.name",
      ]);
      assert.match(events, new RegExp(`MigrationSucceeded\\s+to-${to}`));
      assert.match(events, new RegExp(`MigrationMoving\\s+${source.metadata.name}`));
    });

  it("keep clients when their node is drained, and its controller is killed in the middle", async () => {
    const source = await theOnlyPod("a");
    await stage.startWebhooks();
    await load.mark();
    await answered();
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", "a", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--pod-selector=app=chat",
    ]);
    const path = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations`;
    const made = async (): Promise<KubeObject | undefined> =>
      ((await cluster.api("GET", path)).items as KubeObject[]).find(
        ({ spec }) => spec.podUid === source.metadata.uid,
      );
    await cluster
      .until("it moves", async () => (await made())?.status?.phase === "Moving")
      .catch(failedWithLogs);
    await stage.controller.stop("SIGKILL");
    stage.startController();
    await cluster.until("the drain is over", async () => drain.exited).catch(failedWithLogs);
    if (drain.child.exitCode !== 0) await failedWithLogs(drain.stderr);
    assert.match(drain.stderr, /will retry after 5s.*holdfast: its application is (going to be|being) moved/);
    await answered();
    await stage.nobodyIsLost();
    const { status } = await ended((await made())?.metadata.name ?? "");
    assert.equal(status.phase, "Succeeded");
    assert.equal((await theOnlyPod("b")).metadata.name, status.target.pod);
  });

  it("are given up when the drain's node is uncordoned before they begin", async () => {
    const source = await theOnlyPod("b");
    const folder = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}`;
    // nothing begins where the application has just come from
    const patch = (spec: object) =>
      cluster.api("PATCH", `${folder}/continuitypolicies/default`, { spec }, "application/merge-patch+json");
    await patch({ cooldownSeconds: 3_600 });
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", "b", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--pod-selector=app=chat",
    ]);
    const made = async (): Promise<KubeObject | undefined> =>
      ((await cluster.api("GET", `${folder}/migrations`)).items as KubeObject[]).find(
        ({ spec }) => spec.podUid === source.metadata.uid,
      );
    await cluster
      .until("it waits", async () => (await made())?.status?.reason === "Cooldown")
      .catch(failedWithLogs);
    const { name, labels } = ((await made()) as KubeObject).metadata as { name: string; labels: object };
    assert.deepEqual(labels, { "holdfast.dev/cause": "drain" });
    await drain.stop();
    await cluster.kubectl(["uncordon", "b"]);
    const { status } = await ended(name);
    assert.deepEqual([status.phase, status.reason], ["Aborted", "Uncordoned"]);
    await patch({ cooldownSeconds: null });
    assert.equal((await theOnlyPod("b")).metadata.uid, source.metadata.uid);
  });

  it("begin by themselves where a node says that it is going away, and nobody disturbs them", async () => {
    await cluster.kubectl(["uncordon", "a"]);
    const source = await theOnlyPod("b");
    await load.mark();
    await answered();
    const seen = watch(
      "pods",
      "-o",
      "custom-columns=N:.metadata.name,A:.metadata.annotations.karpenter\\.sh/do-not-disrupt",
    );
    await cluster.kubectl(["taint", "node", "b", "karpenter.sh/disrupted:NoSchedule"]);
    const path = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations`;
    let made: KubeObject | undefined;
    await cluster
      .until("a Migration is made", async () => {
        made = ((await cluster.api("GET", path)).items as KubeObject[]).find(
          ({ metadata }) => (metadata.labels as Record<string, string>)?.["holdfast.dev/cause"] === "node",
        );
        return made !== undefined;
      })
      .catch(failedWithLogs);
    const { name, annotations } = (made as unknown as KubeObject).metadata as unknown as {
      name: string;
      annotations: Record<string, string>;
    };
    assert.equal(annotations["holdfast.dev/trigger"], "taint karpenter.sh/disrupted");
    assert.ok(Number(annotations["holdfast.dev/memory-bytes"]) > 10e6);
    const { status } = await ended(name);
    if (status.phase !== "Succeeded") await failedWithLogs(JSON.stringify(status));
    await answered();
    await stage.nobodyIsLost();
    const moved = await theOnlyPod("a");
    const kept = new Set(seen.lines().flatMap(([pod, said]) => (said === "true" ? [pod] : [])));
    assert.deepEqual(kept, new Set([source.metadata.name, moved.metadata.name]));
    assert.equal(
      (moved.metadata.annotations as Record<string, string>)["karpenter.sh/do-not-disrupt"],
      undefined,
    );
    await seen.process.stop("SIGTERM", 5_000);
    await cluster.kubectl(["taint", "node", "b", "karpenter.sh/disrupted-"]);
  });

  it("succeed when the agent of the source is killed in the middle, at another attempt if need be", async () => {
    const source = await theOnlyPod("a");
    const path = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations/again`;
    await load.mark();
    await answered();
    await cluster.apply(migration("again", { pod: source.metadata.name, target: { node: "b" } }));
    await cluster
      .until("it moves", async () => (await cluster.find(path))?.status?.move?.state === "Running")
      .catch(failedWithLogs);
    const agent = stage.agents.get("a")?.metadata.name ?? "";
    await cluster.kubectl(["-n", HOLDFAST, "delete", "pod", agent, "--force", "--grace-period=0"]);
    stage.agents = await agentsOf(cluster);
    const { status } = await ended("again");
    if (status.phase !== "Succeeded") await failedWithLogs(JSON.stringify(status));
    await answered();
    await stage.nobodyIsLost();
    assert.equal((await theOnlyPod("b")).metadata.name, status.target.pod);
  });
});
