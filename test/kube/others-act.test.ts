/**
 * Others act on a Deployment's pod in a real cluster, before it moves and in the middle of it: somebody asks for its eviction by an
 * EvictionRequest and takes that back, its node's successor is drained, it is deleted by force, its Deployment is rolled out. Clients lose nothing, except
 * where the application would have ended without a move; then it ends once, and nothing is left of the move.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { isFinal } from "#control/api/resources.ts";
import { faultBegan, injectFault, pauseAt } from "./agents.ts";
import { type Cluster, condition, type KubeObject } from "./cluster.ts";
import { EvictionController } from "./eviction-controller.ts";
import { migration, NAMESPACE, Stage } from "./stage.ts";

const FOLDER = "/apis/holdfast.dev/v1alpha1/namespaces";
const RESPONDER = "holdfast.dev/controller";
const ROLLED = "rolled";

describe("a Deployment's pod that others act on", () => {
  let cluster: Cluster;
  let stage: Stage;
  let requests: EvictionController;

  before(async () => {
    stage = await Stage.build({ evictionRequests: true });
    ({ cluster } = stage);
    requests = new EvictionController(cluster, NAMESPACE);
    await stage.startWebhooks();
    await cluster.kubectl(["uncordon", "b"]);
    await stage.theOnlyPod("a");
    await stage.startClients();
    await policy({ evictionStrategy: "LiveMigrateIfPossible" });
  });
  after(async () => {
    const closed = requests?.close();
    await closed?.catch(() => {});
    await stage?.close();
    await closed;
  });

  const failed = (what: unknown): Promise<never> => stage.failedWithLogs(what);
  const other = (node: string): string => (node === "a" ? "b" : "a");
  const nodeOf = ({ spec }: KubeObject): string => String(spec.nodeName);

  async function policy(spec: object): Promise<void> {
    const metadata = { name: "default", namespace: NAMESPACE };
    await cluster.apply({
      apiVersion: "holdfast.dev/v1alpha1",
      kind: "ContinuityPolicy",
      metadata,
      spec,
    });
  }

  /** The newest Migration of that pod. */
  async function madeFor(pod: KubeObject): Promise<KubeObject | undefined> {
    const { items } = await cluster.api("GET", `${FOLDER}/${NAMESPACE}/migrations`);
    const own = (items as KubeObject[]).filter(({ spec }) => spec.podUid === pod.metadata.uid);
    return own.sort((one, two) => String(one.metadata.name).localeCompare(String(two.metadata.name))).at(-1);
  }

  async function until(what: string, holds: () => Promise<unknown>): Promise<void> {
    await cluster.until(what, holds).catch(failed);
  }

  /** The pod, whose clients have had answers since the last mark. */
  async function marked(): Promise<KubeObject> {
    const pod = await stage.theOnlyPod();
    await stage.load.mark();
    await stage.answered();
    return pod;
  }

  async function nobodyIsLost(): Promise<void> {
    await stage.answered();
    await stage.nobodyIsLost().catch(failed);
  }

  async function moving(name: string, namespace = NAMESPACE): Promise<void> {
    await until(`Migration ${name} moves`, async () => {
      const { phase, move } = (await cluster.find(`${FOLDER}/${namespace}/migrations/${name}`))?.status ?? {};
      if (isFinal(phase)) await failed(`Migration ${name} is over: ${phase}`);
      return phase === "Moving" && move?.state === "Running";
    });
  }

  /** What the controller has said of it. */
  async function saidOf(pod: KubeObject): Promise<{ state?: string; said: KubeObject["status"] }> {
    const { targetResponders = [], responders = [] } = (await requests.of(pod))?.status ?? {};
    const own = ({ name }: { name: string }): boolean => name === RESPONDER;
    return { state: targetResponders.find(own)?.state, said: responders.find(own) ?? {} };
  }

  it("moves where an EvictionRequest asks for its eviction, though the controller is killed in the middle", async () => {
    const pod = await marked();
    await requests.request("first", pod);
    await until("it moves", async () => (await madeFor(pod))?.status?.phase === "Moving");
    await stage.controller.stop("SIGKILL");
    const { said } = await saidOf(pod);
    assert.ok(said.heartbeatTime !== undefined);
    assert.match(said.message, /its application is (going to be|being) moved/);
    stage.startController();
    const made = (await madeFor(pod)) as KubeObject;
    assert.deepEqual(made.metadata.labels, { "holdfast.dev/cause": "request" });
    const { status } = await stage.ended(made.metadata.name);
    if (status.phase !== "Succeeded") await failed(JSON.stringify(status));
    await until("its target is evicted", async () => {
      return condition((await requests.of(pod)) as KubeObject, "TargetEvicted") === "True";
    });
    const moved = await stage.theOnlyPod(other(nodeOf(pod)));
    assert.equal(moved.metadata.name, status.target.pod);
    // it may be evicted in its turn
    assert.deepEqual(moved.spec.evictionResponders, pod.spec.evictionResponders);
    await nobodyIsLost();
  });

  it("stays where all requests are withdrawn before it moves, and moves when it is asked for again", async () => {
    const pod = await marked();
    // nothing begins where the application has just come from
    await policy({ cooldownSeconds: 3_600 });
    await requests.request("by-one", pod);
    await requests.request("by-another", pod, "example.com/other");
    await until("it waits", async () => (await madeFor(pod))?.status?.reason === "Cooldown");
    const { name } = ((await madeFor(pod)) as KubeObject).metadata;
    await requests.withdraw("by-one");
    await until(
      "the controller says that it waits",
      async () => (await saidOf(pod)).said.message !== undefined,
    );
    assert.equal((await madeFor(pod))?.status.phase, "Pending", "another asks for it still");
    await requests.withdraw("by-another");
    const { status } = await stage.ended(name);
    assert.deepEqual([status.phase, status.reason], ["Aborted", "Withdrawn"]);
    await until("it is cancelled", async () => (await saidOf(pod)).state === "Canceled");
    assert.equal((await stage.theOnlyPod()).metadata.uid, pod.metadata.uid);
    await policy({ cooldownSeconds: 0 });
    await requests.request("again", pod);
    await until("another Migration is made", async () => {
      const made = await madeFor(pod);
      return made !== undefined && made.metadata.name !== name;
    });
    const again = await stage.ended(((await madeFor(pod)) as KubeObject).metadata.name);
    assert.equal(again.status.phase, "Succeeded", JSON.stringify(again.status));
    await stage.theOnlyPod(other(nodeOf(pod)));
    await nobodyIsLost();
  });

  it("has one owner and its clients when its request is withdrawn in the middle", async () => {
    const pod = await marked();
    await requests.request("regretted", pod);
    await until("it moves", async () => (await madeFor(pod))?.status?.move?.state === "Running");
    await requests.withdraw("regretted");
    const { status } = await stage.ended(((await madeFor(pod)) as KubeObject).metadata.name);
    const isMoved = status.phase === "Succeeded";
    if (!isMoved) assert.deepEqual([status.phase, status.reason], ["Aborted", "Withdrawn"]);
    await stage.theOnlyPod(isMoved ? other(nodeOf(pod)) : nodeOf(pod));
    await nobodyIsLost();
  });

  it("goes on to a third place when the node that it goes to is drained in the middle", async () => {
    const pod = await marked();
    const target = other(nodeOf(pod));
    const agent = stage.agents.get(nodeOf(pod)) as KubeObject;
    await injectFault(cluster, agent, pauseAt("source:dump"));
    await cluster.apply(migration("into-a-drain", { pod: pod.metadata.name, target: { node: target } }));
    await faultBegan(cluster, agent).catch(failed);
    // a pod that an application goes to has neither labels of its Deployment's yet nor an owner: kubectl asks for its eviction by force only
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", target, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--force",
    ]);
    await drain.waitFor(/evicting pod default\/chat-/, 60_000).catch(failed);
    const { phase } = (await cluster.api("GET", `${FOLDER}/${NAMESPACE}/migrations/into-a-drain`)).status;
    assert.equal(phase, "Moving", "the drain has met the move");
    const { status } = await stage.ended("into-a-drain");
    assert.equal(status.phase, "Succeeded", JSON.stringify(status));
    await until("the drain is over", async () => drain.exited);
    if (drain.child.exitCode !== 0) await failed(drain.stderr);
    await stage.theOnlyPod(nodeOf(pod));
    await nobodyIsLost();
    await cluster.kubectl(["uncordon", target]);
  });

  /** Deleted by force when the agent of its node has come to `point`. */
  async function forced(name: string, point: string): Promise<KubeObject> {
    const pod = await stage.theOnlyPod();
    const agent = stage.agents.get(nodeOf(pod)) as KubeObject;
    await injectFault(cluster, agent, pauseAt(point));
    await cluster.apply(migration(name, { pod: pod.metadata.name, target: { node: other(nodeOf(pod)) } }));
    await faultBegan(cluster, agent).catch(failed);
    await cluster.kubectl(["delete", "pod", pod.metadata.name, "--force", "--grace-period=0"]);
    const { status } = await stage.ended(name);
    const left = await stage.theOnlyPod();
    assert.notEqual(left.metadata.uid, pod.metadata.uid);
    assert.equal(condition(left, "holdfast.dev/serving"), "True");
    return { ...status, left: left.metadata.name };
  }

  it("keeps its clients when it is deleted by force right after its application has left", async () => {
    await marked();
    const { phase, target, left } = await forced("forced-late", "source:committed");
    assert.deepEqual([phase, left], ["Succeeded", target.pod]);
    await nobodyIsLost();
  });

  it("is not kept from going when it cannot be moved: the next responder deletes it", async () => {
    await stage.load.stop();
    const pod = await stage.theOnlyPod();
    await cluster.kubectl(["cordon", "a", "b"]);
    await policy({ evictionDeadlineSeconds: 10 });
    await requests.request("in-vain", pod);
    await until("the controller says that it is done", async () => {
      return (await saidOf(pod)).said.completionTime !== undefined;
    });
    const { said } = await saidOf(pod);
    assert.match(said.message, /denied for 10 s/);
    await until("its target is evicted", async () => {
      return condition((await requests.of(pod)) as KubeObject, "TargetEvicted") === "True";
    });
    await cluster.kubectl(["uncordon", "a", "b"]);
    assert.notEqual((await stage.theOnlyPod()).metadata.uid, pod.metadata.uid);
  });

  it("ends when it is deleted by force before its application has left, and starts anew in one pod", async () => {
    const { phase } = await forced("forced-early", "source:prepare");
    assert.equal(phase, "Failed");
  });

  it("gives way to the roll-out of its Deployment in the middle: that ends, and nothing is left of the move", async () => {
    const chat = await cluster.api("GET", `/apis/apps/v1/namespaces/${NAMESPACE}/deployments/chat`);
    const { template } = chat.spec;
    const {
      "holdfast.dev/workload": _,
      "holdfast.dev/mode": __,
      ...annotations
    } = template.metadata.annotations;
    const rolled: KubeObject = {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: { name: "rolled", namespace: ROLLED },
      spec: {
        selector: { matchLabels: { app: "rolled" } },
        template: {
          ...template,
          metadata: {
            labels: { app: "rolled" },
            annotations: { ...annotations, "holdfast.dev/listen": "pod" },
          },
        },
      },
    };
    await cluster.apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: ROLLED } }, rolled);
    const ready = ["-n", ROLLED, "rollout", "status", "deployment/rolled", "--timeout=120s"];
    await cluster.kubectl(ready, { timeoutMs: 130_000 });
    const pods = async (): Promise<KubeObject[]> =>
      (await cluster.api("GET", `/api/v1/namespaces/${ROLLED}/pods`)).items as KubeObject[];
    const [pod] = await pods();
    const target = other(nodeOf(pod as KubeObject));
    const move = migration("rolled", { pod: pod?.metadata.name, target: { node: target } });
    await cluster.apply({ ...move, metadata: { ...move.metadata, namespace: ROLLED } });
    await moving("rolled", ROLLED);
    await cluster.kubectl(["-n", ROLLED, "set", "env", "deployment/rolled", "--containers=app", "VERSION=2"]);
    await cluster.kubectl(ready, { timeoutMs: 130_000 });
    let end: KubeObject | null = null;
    await until("the Migration has ended", async () => {
      end = await cluster.find(`${FOLDER}/${ROLLED}/migrations/rolled`);
      return end !== null && condition(end, "Finished") === "True" && !end.metadata.finalizers;
    });
    await until("one pod is left, of the new template, with the application", async () => {
      const left = await pods();
      const [only] = left;
      return (
        left.length === 1 &&
        only !== undefined &&
        only.spec.containers[0].env.some(({ name }: { name: string }) => name === "VERSION") &&
        ["Ready", "holdfast.dev/serving"].every((type) => condition(only, type) === "True")
      );
    });
  });
});
