/**
 * What a move depends on is killed in each of its phases, in a real cluster with clients: none of them loses anything, the application is in one
 * pod afterwards, and the Migration ends.
 *
 *   HOLDFAST_CHAOS=1 npm test -- test/kube/faults.test.ts    everything in every phase; without it some of each
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isFinal } from "#control/api/resources.ts";
import { isThorough } from "../support/thorough.ts";
import { agentsOf, injectFault, pauseAt } from "./agents.ts";
import type { KubeObject } from "./cluster.ts";
import { HOLDFAST, migration, NAMESPACE, Stage } from "./stage.ts";

type Phase = "Preparing" | "Moving" | "Adopting";
const PHASES: Phase[] = ["Preparing", "Moving", "Adopting"];
/** one of them is met in its phase: what lasts some milliseconds may be over before it is seen */
const MOVES_MAX = 8;
/** what is gone stays so for a while: long enough that others notice */
const DOWN_MS = 1_500;
const MERGE = "application/merge-patch+json";
const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;
const MIGRATIONS = `/apis/holdfast.dev/v1alpha1/namespaces/${NAMESPACE}/migrations`;

/** A Migration, and the nodes that it goes between. */
interface Move {
  name: string;
  source: string;
  target: string;
}

interface Victim {
  kill(stage: Stage, place: { source: string; target: string }): Promise<() => Promise<void>>;
  /** those of `npm test` */
  phases: Phase[];
}

const VICTIMS: Record<string, Victim> = {
  "the controller": {
    async kill(stage) {
      await stage.controller.stop("SIGKILL");
      return async () => stage.startController();
    },
    // in phase Moving: controller.test.ts
    phases: ["Preparing"],
  },
  "the source's agent": { kill: (stage, { source }) => killAgent(stage, source), phases: [] },
  "the target's agent": { kill: (stage, { target }) => killAgent(stage, target), phases: ["Moving"] },
  "the API server": {
    async kill({ cluster }) {
      await cluster.killControl("kube-apiserver");
      return async () => {
        cluster.startControl("kube-apiserver");
        await cluster.until("it answers", () => cluster.api("GET", "/readyz").then(() => true, isReadyText));
      };
    },
    phases: ["Moving"],
  },
  "the API server, which falls silent,": {
    async kill({ cluster }) {
      cluster.pauseApi();
      return async () => cluster.resumeApi();
    },
    phases: [],
  },
  "the store": {
    async kill({ cluster: { lab } }) {
      await lab.redis.stop();
      return () => lab.redis.start();
    },
    phases: [],
  },
  "kubelet and the container runtime of the target": {
    async kill({ cluster }, { target }) {
      const restart = cluster.killDaemons(target);
      return async () => {
        restart();
        await isReady(cluster, target);
      };
    },
    // before the commit, and after it
    phases: ["Preparing", "Adopting"],
  },
  "kubelet and the container runtime of the source": {
    async kill({ cluster }, { source }) {
      const restart = cluster.killDaemons(source);
      return async () => {
        restart();
        await isReady(cluster, source);
      };
    },
    phases: [],
  },
};

/** Its kubelet has said so since it was started again: what it said before would be believed for 40 s. */
async function isReady(cluster: Stage["cluster"], node: string): Promise<void> {
  const since = Math.floor(Date.now() / 1_000) * 1_000;
  await cluster.until(`kubelet of ${node} is back`, async () => {
    const lease = await cluster.find(
      `/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/${node}`,
    );
    return Date.parse(lease?.spec.renewTime) >= since;
  });
}

/** It is no JSON, but an answer. */
function isReadyText(error: unknown): boolean {
  return error instanceof SyntaxError;
}

async function killAgent(stage: Stage, node: string): Promise<() => Promise<void>> {
  const { cluster } = stage;
  const { name } = (stage.agents.get(node) as KubeObject).metadata;
  await cluster.kubectl(["-n", HOLDFAST, "delete", "pod", name, "--force", "--grace-period=0"]);
  return async () => {
    stage.agents = await agentsOf(cluster);
  };
}

describe("a move with clients", () => {
  let stage: Stage;
  let count = 0;

  before(async () => {
    stage = await Stage.build();
    await stage.cluster.kubectl(["uncordon", "b"]);
    await stage.theOnlyPod("a");
    await stage.startClients();
    await stage.answered();
  });
  after(() => stage?.close());

  const failed = (what: unknown): Promise<never> => stage.failedWithLogs(what);
  const other = (node: string): string => (node === "a" ? "b" : "a");

  /** null: the API server does not say */
  async function statusOf(name: string): Promise<KubeObject["status"] | null> {
    return (await stage.cluster.find(`${MIGRATIONS}/${name}`).catch(() => null))?.status ?? null;
  }

  function isIn(status: KubeObject["status"] | null, phase: Phase): boolean {
    if (phase === "Moving") return status?.phase === "Moving" && status.move?.state === "Running";
    return status?.phase === phase;
  }

  async function begin(phase?: Phase): Promise<Move> {
    const pod = await stage.theOnlyPod();
    const source = String(pod.spec.nodeName);
    await stage.load.mark();
    await stage.answered();
    // it lasts no second by itself
    if (phase === "Moving")
      await injectFault(stage.cluster, stage.agents.get(source) as KubeObject, pauseAt("source:dump"));
    const name = `fault-${++count}`;
    const spec = { pod: pod.metadata.name, target: { node: other(source) }, attemptsMax: 5 };
    await stage.cluster.apply(migration(name, spec));
    return { name, source, target: other(source) };
  }

  /** A move that is seen in that phase: not before it, and not when it is over. */
  async function beginUntil(phase: Phase): Promise<Move> {
    for (let moves = 0; moves < MOVES_MAX; moves++) {
      const move = await begin(phase);
      let status: KubeObject["status"] | null = null;
      await stage.cluster
        .until(`it is in phase ${phase}`, async () => {
          status = await statusOf(move.name);
          return isIn(status, phase) || isFinal(status?.phase);
        })
        .catch(failed);
      if (isIn(status, phase)) return move;
      await isWhole(move);
    }
    return failed(`none of ${MOVES_MAX} moves was seen in phase ${phase}`);
  }

  /** The clients have noticed nothing, and the application is where the Migration says. */
  async function isWhole({ name, source, target }: Move): Promise<void> {
    const { status } = await stage.ended(name);
    await stage.answered().catch(failed);
    await stage.nobodyIsLost().catch(failed);
    const pod = await stage.theOnlyPod(status.phase === "Succeeded" ? target : source);
    if (status.phase === "Succeeded") assert.equal(pod.metadata.name, status.target.pod);
  }

  for (const [what, { kill, phases }] of Object.entries(VICTIMS))
    for (const phase of isThorough ? PHASES : phases)
      it(`loses nobody when ${what} is killed in phase ${phase}`, async () => {
        const move = await beginUntil(phase);
        const revive = await kill(stage, move);
        await sleep(DOWN_MS);
        await revive();
        await isWhole(move);
        const end = await statusOf(move.name);
        if (end?.phase !== "Succeeded") await failed(JSON.stringify(end));
      });

  it("loses nobody while others write to its pods, and to the Migration, all the time", async () => {
    const { cluster } = stage;
    const move = await begin();
    let writes = 0;
    let isOver = false;
    const writing = (async () => {
      while (!isOver) {
        const pods = (await stage.pods()).map(({ metadata }) => `${PODS}/${metadata.name}`);
        for (const path of [`${MIGRATIONS}/${move.name}`, ...pods]) {
          const body = { metadata: { annotations: { "example.com/writes": String(writes) } } };
          await cluster.api("PATCH", path, body, MERGE).then(
            () => (writes += 1),
            () => {}, // it has gone
          );
        }
      }
    })();
    await isWhole(move).finally(() => {
      isOver = true;
    });
    await writing;
    assert.equal((await statusOf(move.name))?.phase, "Succeeded");
    assert.ok(writes > 20, String(writes));
  });

  for (const [what, left] of [
    ["a webhook that is killed", 1],
    // the API server goes on without them, and keeps to the budget of what moves
    ["webhooks that are all killed when the move has begun", 0],
  ] as const)
    it(`loses nobody when a drain meets ${what}`, async () => {
      const { cluster } = stage;
      const webhooks = await stage.startWebhooks(left + 1);
      const pod = await stage.theOnlyPod();
      const source = String(pod.spec.nodeName);
      await stage.load.mark();
      await stage.answered();
      const drain = cluster.spawn("drain", [
        ...["kubectl", "drain", source, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"],
        "--pod-selector=app=chat",
      ]);
      await drain.waitFor(/will retry after 5s/, 60_000);
      if (left === 0) await cluster.until("its pod is guarded", isGuarded).catch(failed);
      await webhooks[0]?.stop("SIGKILL");
      // as drain does every 5 s, by when the move may be over
      if (left === 0) await assert.rejects(evict(pod), /: 429 .*would violate the pod's disruption budget/);
      await cluster.until("the drain is over", async () => drain.exited).catch(failed);
      if (drain.child.exitCode !== 0) await failed(drain.stderr);
      await stage.theOnlyPod(other(source));
      await stage.answered();
      await stage.nobodyIsLost();
      await cluster.until("nothing is guarded any more", async () => !(await isGuarded())).catch(failed);
      await cluster.kubectl(["uncordon", source]);
      for (const webhook of webhooks.slice(1)) await webhook.stop("SIGTERM");
    });

  async function evict({ metadata: { name } }: KubeObject): Promise<void> {
    const body = { apiVersion: "policy/v1", kind: "Eviction", metadata: { name } };
    await stage.cluster.api("POST", `${PODS}/${String(name)}/eviction`, body);
  }

  async function isGuarded(): Promise<boolean> {
    const path = `/apis/policy/v1/namespaces/${NAMESPACE}/poddisruptionbudgets`;
    return (await stage.cluster.api("GET", path)).items.length > 0;
  }
});
