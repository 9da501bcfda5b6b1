/**
 * Pure: evictions that are asked for by EvictionRequests (KEP-4563; k8s.io/api/lifecycle/v1alpha1/types.go). The eviction-request controller makes an
 * Eviction of all requests for a pod, and asks the responders that the pod names (`spec.evictionResponders`) one after another to
 * do something about it. We are one of them. What we do is what is done about a call of pods/eviction; here is how it is said.
 */
import type { KubernetesObject, PodCondition } from "../client/objects.ts";
import { RESPONDER } from "../inject/names.ts";
import type { EvictionDecision } from "./decision.ts";

export interface Eviction extends KubernetesObject {
  spec: { target: { pod?: { name: string; uid: string } } };
  status?: {
    /** Failed: withdrawn, or nobody could; TargetEvicted */
    conditions?: PodCondition[];
    targetResponders?: { name: string; priority: number; state: ResponderState }[];
    responders?: ResponderStatus[];
  };
}

type ResponderState = "Inactive" | "Active" | "Interrupted" | "Canceled" | "Completed";

/** Times are to the second. The API server takes none that is more than 30 s off. */
export interface ResponderStatus {
  name: string;
  startTime?: string;
  heartbeatTime?: string;
  completionTime?: string;
  message?: string;
}

/** A status to be merged into the Eviction's (strategic: responders go by their names). null: nothing is to be said yet */
export interface Said {
  status: { responders: ResponderStatus[] } | null;
  /** the pod is to show that it was asked for; not at every look */
  isHeartbeat: boolean;
}

/** Kubernetes asks for no more than one in 20 s; after 20 min without the next responder is asked, which deletes the pod. */
const HEARTBEAT_MS = 25_000;
const MESSAGE_MAX = 4_000;

/** null: it is not our turn, or we have said that we are done */
export function askedOf(
  eviction: Eviction,
): { pod: { name: string; uid: string }; sinceMs: number; status: ResponderStatus } | null {
  const { pod } = eviction.spec.target;
  const status = eviction.status?.responders?.find(({ name }) => name === RESPONDER);
  if (pod === undefined || status === undefined || stateOf(eviction) !== "Active") return null;
  if (status.completionTime !== undefined) return null;
  return {
    pod,
    sinceMs: timeOf(status.startTime) ?? Date.parse(eviction.metadata.creationTimestamp),
    status,
  };
}

/** Nobody asks for it any more. null: the object has gone, as it does when all its requests have */
export function isOver(eviction: Eviction | null): boolean {
  if (eviction === null || stateOf(eviction) === "Canceled") return true;
  const failed = eviction.status?.conditions?.find(({ type }) => type === "Failed");
  return failed?.status === "True" && failed.reason === "CanceledDueToNoRequesters";
}

/** What is to be said of a decision. Where the eviction is allowed, or somebody else's, we are done: the next responder is asked. */
export function sayOf(decision: EvictionDecision, status: ResponderStatus, nowMs: number): Said {
  const { startTime, heartbeatTime, message: before } = status;
  const lastMs = Math.max(timeOf(heartbeatTime) ?? 0, timeOf(startTime) ?? 0);
  // another's clock set the start
  const time = textOf(Math.max(nowMs, lastMs));
  const isDone = decision.isAllowed || decision.isGone || decision.isOthers;
  const message = (decision.isAllowed ? decision.reason : decision.message).slice(0, MESSAGE_MAX);
  if (isDone)
    return {
      status: { responders: [{ name: RESPONDER, completionTime: time, message }] },
      isHeartbeat: false,
    };
  const isDue = heartbeatTime === undefined || nowMs - lastMs >= HEARTBEAT_MS || before === undefined;
  if (!isDue) return { status: null, isHeartbeat: false };
  return { status: { responders: [{ name: RESPONDER, heartbeatTime: time, message }] }, isHeartbeat: true };
}

function stateOf({ status }: Eviction): ResponderState | null {
  return status?.targetResponders?.find(({ name }) => name === RESPONDER)?.state ?? null;
}

function timeOf(text: string | undefined): number | null {
  const ms = Date.parse(text ?? "");
  return Number.isNaN(ms) ? null : ms;
}

function textOf(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}
