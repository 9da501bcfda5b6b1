/**
 * Keeps the condition `holdfast.dev/movable` of this node's injected pods current. One application is looked at at a time, each when it
 * comes and then every few minutes; a condition is written only when it says something new. Nobody is held, nothing is started.
 */
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import { ANNOTATION, MOVABLE } from "../api/resources.ts";
import { isCode, type KubernetesApi } from "../kubernetes/client/api.ts";
import { conditionOf, isActive, type Pod } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { fixedVolume } from "../kubernetes/controller/obstacles.ts";
import { isNews, type MovableFacts, movableCondition } from "../kubernetes/node/movable-condition.ts";
import type { Movability } from "../workload/movability.ts";
import type { AssessedPod } from "./metrics.ts";

/** of a Workload, what is needed here */
export interface AssessedWorkload {
  readonly journal: { readonly role: string };
  readonly runsHere: boolean;
  /** null: it is neither moved nor restarted */
  readonly busyWith: string | null;
  readonly isStarting: boolean;
  movability(): Promise<Movability>;
}

export interface MovablePodsOptions {
  api: Pick<KubernetesApi, "patch">;
  log: Logger;
  /** of the pod with this uid, on this node; null: it has none, or not yet */
  workloadOf(podUid: string): AssessedWorkload | null;
  isRecovering(workload: AssessedWorkload): boolean;
  /** for tests; default {@link EVERY_MS} */
  everyMs?: number;
  /** … and {@link LOOK_MS} */
  lookMs?: number;
}

const EVERY_MS = 300_000;
const LOOK_MS = 1_000;

interface Known {
  /** by performance.now(); when it is looked at again */
  dueMs: number;
  hadApplication: boolean;
  isMovable: boolean;
}

export class MovablePods {
  readonly #options: Required<MovablePodsOptions>;
  readonly #known = new Map<string, Known>();
  #pods: Pod[] = [];
  #isLooking = false;
  readonly #timer: NodeJS.Timeout;

  constructor(options: MovablePodsOptions) {
    this.#options = { everyMs: EVERY_MS, lookMs: LOOK_MS, ...options };
    this.#timer = setInterval(() => void this.#look(), this.#options.lookMs).unref();
  }

  /** @param pods all of this node */
  seePods(pods: Pod[]): void {
    this.#pods = pods.filter(
      (pod) => isActive(pod) && pod.metadata.annotations?.[ANNOTATION.injected] === "1",
    );
    const uids = new Set(this.#pods.map(({ metadata }) => metadata.uid));
    for (const uid of this.#known.keys()) if (!uids.has(uid)) this.#known.delete(uid);
  }

  /** For metrics: those that have been looked at. */
  *assessed(): Generator<AssessedPod> {
    for (const { metadata } of this.#pods) {
      const known = this.#known.get(metadata.uid);
      // a standby is not expected to have anything to move
      if (known?.hadApplication)
        yield { namespace: metadata.namespace ?? "", pod: metadata.name, isMovable: known.isMovable };
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    for (const pod of this.#pods) {
      try {
        await this.#assess(pod);
      } catch (error) {
        if (!isCode(error, "KUBERNETES_CONFLICT", "KUBERNETES_NOT_FOUND"))
          this.#options.log.warn(
            { pod: pod.metadata.name, reason: messageOf(error) },
            "whether it can be moved is not said; tried again",
          );
      }
    }
    this.#isLooking = false;
  }

  async #assess(pod: Pod): Promise<void> {
    const { api, workloadOf, isRecovering, everyMs } = this.#options;
    const { uid, namespace = "default", name } = pod.metadata;
    const workload = workloadOf(uid);
    // a move or a restart changes everything soon
    if (workload === null || isRecovering(workload) || workload.isStarting || workload.busyWith !== null)
      return;
    const hasApplication = workload.journal.role === "owner" && workload.runsHere;
    const known = this.#known.get(uid);
    const nowMs = performance.now();
    if (known !== undefined && known.hadApplication === hasApplication && nowMs < known.dueMs) return;
    const facts: MovableFacts = {
      application: hasApplication ? await workload.movability() : null,
      volume: fixedVolume(pod),
    };
    if (workload.busyWith !== null) return; // what was seen is half of it
    const condition = movableCondition(facts);
    const before = conditionOf(pod, MOVABLE);
    if (isNews(condition, before)) {
      const lastTransitionTime =
        before?.status === condition.status ? before.lastTransitionTime : new Date().toISOString();
      const written = await api.patch<Pod>(
        `${pathOf("pods", { namespace, name })}/status`,
        // not to another pod of this name
        { metadata: { uid }, status: { conditions: [{ ...condition, lastTransitionTime }] } },
        "strategic",
      );
      this.#pods = this.#pods.map((one) => (one.metadata.uid === uid ? written : one));
    }
    this.#known.set(uid, {
      // not all of a node's at once
      dueMs: nowMs + everyMs * (0.75 + Math.random() / 2),
      hadApplication: hasApplication,
      isMovable: condition.status === "True",
    });
  }
}
