/**
 * Others act on a Deployment's pod in a real cluster, before it moves and in the middle of it: somebody asks for its eviction by an
 * EvictionRequest and takes that back, or drains the node that it goes to. Clients lose nothing.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { isFinal } from "#control/api/resources.ts";
import { type Cluster, condition, type KubeObject } from "./cluster.ts";
import { EvictionController } from "./eviction-controller.ts";
import { migration, NAMESPACE, Stage } from "./stage.ts";

const FOLDER = "/apis/holdfast.dev/v1alpha1/namespaces";
const RESPONDER = "holdfast.dev/controller";

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
    await cluster.apply(migration("into-a-drain", { pod: pod.metadata.name, target: { node: target } }));
    await moving("into-a-drain");
    const drain = cluster.spawn("drain", [
      ...["kubectl", "drain", target, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
      "--pod-selector=app=chat",
    ]);
    const { status } = await stage.ended("into-a-drain");
    assert.equal(status.phase, "Succeeded", JSON.stringify(status));
    await until("the drain is over", async () => drain.exited);
    if (drain.child.exitCode !== 0) await failed(drain.stderr);
    await cluster.kubectl([
      "drain",
      target,
      "--ignore-daemonsets",
      "--delete-emptydir-data",
      "--timeout=300s",
    ]);
    await stage.theOnlyPod(nodeOf(pod));
    await nobodyIsLost();
    await cluster.kubectl(["uncordon", target]);
  });
});
