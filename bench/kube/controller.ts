/**
 * The controller's memory with thousands of pods to watch: before they are there, when they are, and when it had to list them again, since the
 * API server was away and pods are others then. Each time it has to know exactly those that there are.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { KubeObject } from "#test/kube/cluster.ts";
import { SYSTEM } from "../../scripts/kube-stage.ts";
import type { BenchPiece, Run } from "../piece.ts";
import { KUBE } from "../report/kube-goals.ts";
import type { Figure } from "../results.ts";
import { Crowd } from "./crowd.ts";
import { type KubeLab, OPEN_SECONDS, type SharedLab } from "./laboratory.ts";

/** of the crowd's 50 */
const GROUPS_REMOVED = 5;
const LOOK_MS = 1_000;
const SETTLED_MS = 10_000;
const SEEN_MS_MAX = 180_000;

/** It leaves the pods there. */
export function controllerPiece(shared: SharedLab, pods: number): BenchPiece {
  return {
    name: `${KUBE}controller`,
    title: `The controller with ${pods.toLocaleString("en")} pods of kwok to watch`,
    isLast: true,
    estimateSeconds: () => OPEN_SECONDS + 60 + pods / 15,
    measure: async (run) => await measure(run, await shared.open(run), pods),
  };
}

async function measure(run: Run, lab: KubeLab, pods: number): Promise<Figure[]> {
  const { cluster } = lab;
  const watched = new Watched(lab);
  const figures: Figure[] = [];
  const look = async (when: string): Promise<void> => {
    await sleep(SETTLED_MS);
    const { bytes, counted } = await watched.look();
    run.say(`${when}: ${(bytes / 2 ** 20).toFixed(0)} MB, ${counted} injected pods known`);
    figures.push(figure(bytes, when));
  };
  const figure = (bytes: number, when: string): Figure => ({
    ...{ peer: "holdfast", parameters: { pods, when }, metric: "memoryBytes", rounds: [bytes] },
  });
  const before = (await watched.look()).counted;
  await look("before");
  const following = watched.follow();
  try {
    run.say(`making ${pods} pods`);
    const crowd = await Crowd.start(cluster, pods);
    await crowd.add(pods);
    await watched.until(before + pods);
    await look("with them");
    run.say("the API server is away, and comes back");
    await cluster.killControl("kube-apiserver");
    cluster.startControl("kube-apiserver");
    await cluster.until("the API server is back", () =>
      cluster.find("/api/v1/namespaces/default").catch(() => null),
    );
    const gone = await crowd.remove(GROUPS_REMOVED);
    await watched.until(before + pods - gone);
    await crowd.add(gone);
    await watched.until(before + pods);
    await look("listed again");
  } finally {
    await following.stop();
  }
  figures.push(figure(watched.bytesMax, "at most"));
  return figures;
}

interface Seen {
  /** resident */
  bytes: number;
  /** injected pods that it knows */
  counted: number;
}

/** What a controller's metrics say. null: it does not lead. @throws Error they do not say how much memory it has */
export function seenIn(metrics: string): Seen | null {
  const read = (pattern: RegExp): number => Number(pattern.exec(metrics)?.[1] ?? 0);
  if (read(/^holdfast_controller_leader (\d+)/m) !== 1) return null;
  const bytes = read(/^holdfast_controller_resident_memory_bytes (\S+)/m);
  if (bytes === 0) throw new Error("the controller's metrics do not say how much memory it has");
  return { bytes, counted: read(/^holdfast_controller_pods\{injection="injected"\} (\d+)/m) };
}

/** The controller that leads, by its metrics. */
class Watched {
  readonly #lab: KubeLab;
  bytesMax = 0;

  constructor(lab: KubeLab) {
    this.#lab = lab;
  }

  /** @throws Error none leads */
  async look(): Promise<Seen> {
    const { cluster } = this.#lab;
    const selector = encodeURIComponent("app.kubernetes.io/component=controller");
    const path = `/api/v1/namespaces/${SYSTEM}/pods?labelSelector=${selector}`;
    for (const { status } of (await cluster.api("GET", path)).items as KubeObject[]) {
      const { stdout } = await cluster.run([
        "curl",
        "-sS",
        "--max-time",
        "20",
        `http://${status.podIP}:9401/metrics`,
      ]);
      const seen = seenIn(stdout);
      if (seen === null) continue;
      this.bytesMax = Math.max(this.bytesMax, seen.bytes);
      return seen;
    }
    throw new Error("no controller leads");
  }

  /** It knows exactly so many injected pods. */
  async until(pods: number): Promise<void> {
    const isSo = async (): Promise<boolean> => {
      await sleep(LOOK_MS);
      return (await this.look().catch(() => null))?.counted === pods;
    };
    await this.#lab.cluster.until(`the controller knows ${pods} injected pods`, isSo, SEEN_MS_MAX);
  }

  /** Looks again and again, for {@link bytesMax}. */
  follow(): { stop(): Promise<void> } {
    const end = new AbortController();
    const following = (async () => {
      while (!end.signal.aborted) {
        // it may be another's turn, or nobody answers just now
        await this.look().catch(() => {});
        await sleep(LOOK_MS, undefined, { signal: end.signal }).catch(() => {});
      }
    })();
    return {
      async stop() {
        end.abort();
        await following;
      },
    };
  }
}
