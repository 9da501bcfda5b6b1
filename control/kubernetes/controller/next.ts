/** What the phases of a plan share: what can be done next, and how a Migration goes from phase to phase. Pure. */
import {
  type Condition,
  isFinal,
  type Migration,
  type MigrationPhase,
  type MigrationStatus,
} from "../../api/resources.ts";
import { isActive, type Pod } from "../client/objects.ts";
import { causeOf, TRIGGER_OVER, UNCORDONED, WITHDRAWN } from "../triggers/caused.ts";
import { triggerOf } from "../triggers/node-triggers.ts";
import { isReturning, type Observed, type Reason, sourceOf } from "./observed.ts";
import { type PodManifest, standbyName } from "./standby-pod.ts";

/** A pod as it was read. */
export interface PodRef {
  name: string;
  uid: string;
  resourceVersion: string;
}

export type Action =
  | { do: "status"; status: MigrationStatus }
  | { do: "finalizer"; present: boolean }
  | { do: "create-guard" }
  | { do: "delete-guard" }
  | { do: "create-standby"; pod: PodManifest }
  /**
   * @property isUnchanged only as it was read: what has changed since may be that it has the application
   * @property isForced its name is free at once, whether or not kubelet says that it has ended
   */
  | { do: "delete-pod"; pod: PodRef; isUnchanged: boolean; isForced?: boolean }
  /** merged into the pod, as it was read; null: taken away */
  | { do: "patch-pod"; pod: PodRef; metadata: MetadataPatch }
  | { do: "delete-migration" };

export interface MetadataPatch {
  labels?: Record<string, string | null>;
  annotations?: Record<string, string | null>;
  ownerReferences?: unknown[];
}

export interface Plan {
  /** null: wait for something to change */
  action: Action | null;
  /** look again at the latest then, of the same clock as `nowMs`; null: when something changes */
  wakeMs: number | null;
}

const RETRY_MS = 1_000;
const RETRY_MS_MAX = 60_000;
/** with more the delay is as long as it gets */
const RETRIES_MAX = 16;
/** what is watched tells at once; this is for what is not */
export const LOOK_AGAIN_MS = 5_000;

export interface Stop extends Reason {
  phase: "Failed" | "Aborted";
  cancel: "Aborted" | "Deadline";
}

/** Somebody wants it to end, or its time is up. It goes on all the same where the application has left its pod. */
export function stopOf(observed: Observed, nowMs: number): Stop | null {
  const { status } = observed.migration;
  if (isReturning(observed.migration)) return null;
  const asked = askedToEnd(observed.migration);
  if (asked !== null) return asked;
  const over = causeOver(observed);
  if (over !== null) return { phase: "Aborted", cancel: "Aborted", ...over };
  if (nowMs < deadlineMs(observed)) return null;
  const last = status.phase === "Pending" || status.phase === "Preparing" ? ` (${status.message ?? ""})` : "";
  return {
    phase: "Failed",
    cancel: "Deadline",
    reason: "Deadline",
    message: `it has not moved within ${deadlineSeconds(observed)} s${status.reason === "Deadline" ? "" : last}`,
  };
}

/** By somebody, and not by its time or its cause. */
export function askedToEnd({ metadata, spec }: Migration): Stop | null {
  if (metadata.deletionTimestamp !== undefined)
    return { phase: "Aborted", cancel: "Aborted", reason: "Deleted", message: "this Migration was deleted" };
  if (spec.abort === true)
    return { phase: "Aborted", cancel: "Aborted", reason: "Aborted", message: "spec.abort was set" };
  return null;
}

/** What asked for it has been taken back, and it has not begun to move; a request may be withdrawn as long as it has not moved. */
function causeOver(observed: Observed): Reason | null {
  const { migration, policy, nodes, source } = observed;
  const { phase = "Pending" } = migration.status;
  const cause = causeOf(migration);
  if (cause?.kind === "request" && observed.isWithdrawn)
    return {
      reason: WITHDRAWN,
      message: `nobody asks for it any more (Eviction ${cause.trigger})`,
    };
  if (cause === null || (phase !== "Pending" && phase !== "Preparing")) return null;
  const node = nodes.get(migration.status.source?.node ?? source?.spec.nodeName ?? "");
  if (node === undefined) return null;
  const { name } = node.metadata;
  if (cause.kind === "drain" && node.spec.unschedulable !== true)
    return { reason: UNCORDONED, message: `node ${name} was uncordoned before the application had moved` };
  if (cause.kind === "node" && triggerOf(node, policy.triggers) === null)
    return {
      reason: TRIGGER_OVER,
      message: `node ${name} has nothing any more that asks for it (${cause.trigger})`,
    };
  return null;
}

export function reasonOf({ reason, message }: Reason): Reason {
  return { reason, message };
}

/** The application ended with it. */
export function sourceGone(observed: Observed): Stop | null {
  const source = sourceOf(observed);
  if (source !== null && isActive(source)) return null;
  const { spec, status } = observed.migration;
  return {
    phase: "Failed",
    cancel: "Aborted",
    reason: "SourceDeleted",
    message: `pod ${status.source?.pod ?? spec.pod} was deleted before its application had moved`,
  };
}

export function deadlineSeconds({ migration, policy }: Observed): number {
  return migration.spec.deadlineSeconds ?? policy.deadlineSeconds;
}

/** Infinity: it has none any more */
export function deadlineMs(observed: Observed): number {
  if (isReturning(observed.migration)) return Number.POSITIVE_INFINITY;
  return Date.parse(observed.migration.metadata.creationTimestamp) + deadlineSeconds(observed) * 1_000;
}

export function nextAttempt(observed: Observed, nowMs: number, { reason, message }: Reason): Plan {
  const { migration, policy } = observed;
  const { attempt = 1, origin } = migration.status;
  const before = attempt - (origin?.attempt ?? 1);
  // an application that is in another pod than its own does not stay there
  const most = origin === undefined ? (migration.spec.attemptsMax ?? policy.attemptsMax) : Infinity;
  if (attempt >= most) {
    const times = most === 1 ? "" : `, as did ${most - 1} attempts before it`;
    return end(observed, nowMs, "Failed", { reason, message: `${message}${times}` });
  }
  const { target } = migration.status;
  return to(observed, nowMs, "Preparing", {
    reason,
    message: `attempt ${before + 1}${most === Infinity ? "" : ` of ${most}`} failed: ${message}`,
    attempt: attempt + 1,
    move: undefined,
    retryAt: timeText(nowMs + backOffMs(before)),
    // of the attempt before, so that it goes first
    target: target ?? (origin === undefined ? { pod: standbyName(migration, null), attempt } : undefined),
  });
}

/** Milliseconds until the next try. @param before how many failed before the one that has just failed */
export function backOffMs(before: number): number {
  return Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** Math.min(before, RETRIES_MAX));
}

export function end(
  observed: Observed,
  nowMs: number,
  phase: "Succeeded" | "Failed" | "Aborted",
  reason: Reason,
  more: Partial<MigrationStatus> = {},
): Plan {
  return to(observed, nowMs, phase, { ...reasonOf(reason), ...more });
}

/** @param change undefined: taken away */
export function to(
  { migration }: Observed,
  nowMs: number,
  phase: MigrationPhase,
  change: { [Key in keyof MigrationStatus]?: MigrationStatus[Key] | undefined },
): Plan {
  const { status, metadata } = migration;
  const next: MigrationStatus = Object.fromEntries(
    Object.entries({
      ...status,
      ...change,
      phase,
      observedGeneration: metadata.generation,
      ...(change.message === undefined ? {} : { message: change.message.slice(0, MESSAGE_MAX) }),
    }).filter(([, value]) => value !== undefined),
  );
  if (status.phase !== phase) {
    const before = (status.phaseTransitionTimestamps ?? []).slice(-TRANSITIONS_MAX + 1);
    next.phaseTransitionTimestamps = [...before, { phase, timestamp: timeText(nowMs) }];
  }
  if (isFinal(phase) || phase === "Moving")
    next.conditions = withCondition(next.conditions, finishedCondition(next, nowMs));
  return now({ do: "status", status: next });
}

const MESSAGE_MAX = 2_000;
const TRANSITIONS_MAX = 64;

/** `kubectl wait --for=condition=Finished` */
function finishedCondition({ phase, reason = "", message = "" }: MigrationStatus, nowMs: number): Condition {
  const isOver = isFinal(phase);
  return {
    type: "Finished",
    status: isOver ? "True" : "False",
    reason: isOver ? reason || "Finished" : "UnderWay",
    message,
    lastTransitionTime: timeText(nowMs),
  };
}

export function withCondition(conditions: Condition[] = [], next: Condition): Condition[] {
  const before = conditions.find(({ type }) => type === next.type);
  const kept = before?.status === next.status ? { lastTransitionTime: before.lastTransitionTime } : {};
  return [...conditions.filter(({ type }) => type !== next.type), { ...next, ...kept }];
}

/** Says why; nothing else changes. */
export function waiting(observed: Observed, nowMs: number, why: Reason): Plan {
  const { phase = "Pending", reason, message } = observed.migration.status;
  const wakeMs = Math.min(nowMs + LOOK_AGAIN_MS, Math.max(nowMs + 1, deadlineMs(observed)));
  if (
    observed.migration.status.phase !== undefined &&
    reason === why.reason &&
    message === why.message.slice(0, MESSAGE_MAX)
  )
    return { action: null, wakeMs };
  return { ...to(observed, nowMs, phase, reasonOf(why)), wakeMs };
}

export function now(action: Action): Plan {
  return { action, wakeMs: null };
}

/** of the phase it is in */
export function phaseSinceMs({ status, metadata }: Migration): number {
  return Date.parse(status.phaseTransitionTimestamps?.at(-1)?.timestamp ?? metadata.creationTimestamp);
}

export function timeText(ms: number): string {
  return new Date(ms).toISOString();
}

export function refOf({ metadata: { name, uid, resourceVersion } }: Pod): PodRef {
  return { name, uid, resourceVersion };
}
