/**
 * Pure: what to do next for one Migration. One action at a time; each may be done twice, fail, or be done without an answer, and
 * the next plan is made of what is there then. So nothing is remembered but what is in the objects.
 *
 *   Pending     nothing is made. Claims the source by a label, so that two Migrations never have the same pod
 *   Preparing   the standby is made, and waits until the agent of its node has found it. A retry begins here, without the old one
 *   Moving      the agents move the application; what comes of it is in `status.move`
 *   Adopting    the standby takes the source's place with its owner, in the order that was seen to keep every replica:
 *               the source is made the first to go, and is no longer Ready (its agent sees to that); the standby is Ready; no
 *               roll-out is under way; one patch gives the standby labels and owner; the source is deleted; and after a while
 *               the standby is looked at again
 *   Succeeded, Failed, Aborted: what is left over goes
 */
import {
  ANNOTATION,
  type Condition,
  DELETION_COST,
  FINALIZER,
  isFinal,
  MIGRATION_LABEL,
  type Migration,
  type MigrationPhase,
  type MigrationStatus,
  type MoveStatus,
  SERVING,
} from "../../api/resources.ts";
import { conditionOf, controllerOf, isActive, isTrue, type Pod } from "../client/objects.ts";
import { causeOf, TRIGGER_OVER, UNCORDONED } from "../triggers/caused.ts";
import { triggerOf } from "../triggers/node-triggers.ts";
import { disturbAgain, disturbNot } from "./disruption.ts";
import { isClaimedBy, type Observed, type Reason, sourceOf, standbyOf } from "./observed.ts";
import { refusalOf, rollout, waitOf } from "./obstacles.ts";
import { becomesOf, isStandby, type PodManifest, standbyName, standbyPod } from "./standby-pod.ts";

/** A pod as it was read. */
export interface PodRef {
  name: string;
  uid: string;
  resourceVersion: string;
}

export type Action =
  | { do: "status"; status: MigrationStatus }
  | { do: "finalizer"; present: boolean }
  | { do: "create-standby"; pod: PodManifest }
  /** @property isUnchanged only as it was read: what has changed since may be that it has the application */
  | { do: "delete-pod"; pod: PodRef; isUnchanged: boolean }
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

/** the source's agent does not begin: it does not run, or does not see the API server */
const TAKE_UP_MS = 30_000;
/** a target that serves while its source has not said so: figures are missing, nothing else */
const SETTLE_MS = 10_000;
/** for others' pods and roll-outs; the standby is not in its Service meanwhile */
const ADOPT_WAIT_MS = 30_000;
/** a ReplicaSet that chose the standby has said so by then: 4 ms when seen */
const RECHECK_MS = 2_000;
const RETRY_MS = 1_000;
const RETRY_MS_MAX = 60_000;
/** what is watched tells at once; this is for what is not */
const LOOK_AGAIN_MS = 5_000;
/** among equally ready pods the first that a ReplicaSet deletes */
const COST_LEAST = "-2147483648";
const ADOPTED = "Adopted";
/** waiting for these is in vain */
const HOPELESS = new Set(["CreateContainerConfigError", "InvalidImageName", "ErrImageNeverPull"]);

export function plan(observed: Observed, nowMs: number): Plan {
  const { migration } = observed;
  switch (migration.status.phase) {
    case undefined:
    case "Pending":
      return pending(observed, nowMs);
    case "Preparing":
      return preparing(observed, nowMs);
    case "Moving":
      return moving(observed, nowMs);
    case "Adopting":
      return adopting(observed, nowMs);
    case "Succeeded":
    case "Failed":
    case "Aborted":
      return clearUp(observed, nowMs);
  }
}

// ---- Pending ----

function pending(observed: Observed, nowMs: number): Plan {
  const { migration, source } = observed;
  const stop = stopOf(observed, nowMs);
  if (stop !== null) return end(observed, nowMs, stop.phase, stop);
  const { podUid } = migration.spec;
  if (source !== null && podUid !== undefined && source.metadata.uid !== podUid)
    return end(observed, nowMs, "Failed", {
      reason: "PodReplaced",
      message: `pod ${source.metadata.name} is another now than that with uid ${podUid}`,
    });
  const refusal = refusalOf(observed);
  if (refusal !== null || source === null)
    return end(observed, nowMs, "Failed", refusal ?? { reason: "PodNotFound", message: "" });
  const wait = waitOf(observed, nowMs);
  if (migration.spec.dryRun === true) return dryRun(observed, nowMs, source, wait);
  if (wait !== null) return waiting(observed, nowMs, wait);
  if (!migration.metadata.finalizers.includes(FINALIZER)) return now({ do: "finalizer", present: true });
  if (!isClaimedBy(source, migration))
    return now({
      do: "patch-pod",
      pod: refOf(source),
      metadata: {
        labels: { [MIGRATION_LABEL]: migration.metadata.uid },
        annotations: disturbNot(source.metadata.annotations ?? {}),
      },
    });
  return to(observed, nowMs, "Preparing", {
    reason: "Preparing",
    message: `the standby of pod ${source.metadata.name} is made`,
    attempt: 1,
    serial: 1,
    source: {
      pod: source.metadata.name,
      podUid: source.metadata.uid,
      ...(source.spec.nodeName === undefined ? {} : { node: source.spec.nodeName }),
    },
  });
}

function dryRun(observed: Observed, nowMs: number, source: Pod, wait: Reason | null): Plan {
  const { migration, owner } = observed;
  const standby = standbyPod(source, migration);
  const { node, nodeSelector } = migration.spec.target ?? {};
  const labels = Object.entries(nodeSelector ?? {}).map(([key, value]) => `${key}=${value}`);
  const where =
    node !== undefined
      ? `node ${node}`
      : `any node but ${source.spec.nodeName ?? "its own"}${labels.length === 0 ? "" : ` with ${labels.join(", ")}`}`;
  const place =
    owner.kind === "none"
      ? `give it the labels of ${source.metadata.name}`
      : `give it to ${owner.reference.kind} ${owner.reference.name} in place of ${source.metadata.name}`;
  const lines = [
    ...(wait === null ? [] : [`wait: ${wait.message}`]),
    `create pod ${standby.metadata.name}, for ${where}`,
    `move the application of pod ${source.metadata.name} (node ${source.spec.nodeName ?? "none"}) to it`,
    `${place}, and delete pod ${source.metadata.name}`,
  ];
  return end(
    observed,
    nowMs,
    "Succeeded",
    { reason: "DryRun", message: "nothing was made or moved; see status.plan" },
    { plan: lines },
  );
}

// ---- Preparing ----

function preparing(observed: Observed, nowMs: number): Plan {
  const { migration } = observed;
  const { status } = migration;
  const stop = stopOf(observed, nowMs) ?? sourceGone(observed);
  if (stop !== null) return end(observed, nowMs, stop.phase, stop);
  const standby = standbyOf(observed);
  const stray = observed.strays.find(
    (pod) => isStandby(pod) && !isTrue(pod, SERVING) && pod.metadata.deletionTimestamp === undefined,
  );
  if (stray !== undefined) return now({ do: "delete-pod", pod: refOf(stray), isUnchanged: true });
  if (status.target !== undefined && status.target.attempt !== status.attempt)
    return clearAttempt(observed, nowMs, standby);
  const retryMs = Date.parse(status.retryAt ?? "");
  if (nowMs < retryMs) return { action: null, wakeMs: retryMs };
  if (standby === null) {
    if (status.target !== undefined)
      return nextAttempt(observed, nowMs, {
        reason: "StandbyDeleted",
        message: `pod ${status.target.pod}, which was to take over, has been deleted`,
      });
    // somebody else's pod has the name
    if (observed.standby !== null)
      return to(observed, nowMs, "Preparing", { serial: (status.serial ?? 1) + 1 });
    const source = sourceOf(observed);
    if (source === null) return { action: null, wakeMs: nowMs + LOOK_AGAIN_MS };
    return now({ do: "create-standby", pod: standbyPod(source, migration) });
  }
  const { name: pod, uid: podUid } = standby.metadata;
  const { nodeName: node } = standby.spec;
  if (status.target?.podUid !== podUid || status.target.node !== node) {
    const target = { pod, podUid, attempt: status.attempt ?? 1, ...(node === undefined ? {} : { node }) };
    return to(observed, nowMs, "Preparing", { target });
  }
  const lost = standbyLost(observed, standby);
  if (lost !== null) return nextAttempt(observed, nowMs, lost);
  const wait = standbyWait(standby);
  if (wait !== null) return waiting(observed, nowMs, wait);
  return to(observed, nowMs, "Moving", {
    reason: "Moving",
    message: `the application moves from node ${status.source?.node ?? "?"} to pod ${pod} on node ${node ?? "?"}`,
    move: undefined,
    retryAt: undefined,
  });
}

/** The standby of the attempt before has to be gone: its name is found by the serial only. */
function clearAttempt(observed: Observed, nowMs: number, standby: Pod | null): Plan {
  const { serial = 1 } = observed.migration.status;
  if (standby === null)
    return to(observed, nowMs, "Preparing", { serial: serial + 1, target: undefined, move: undefined });
  if (standby.metadata.deletionTimestamp !== undefined)
    return { action: null, wakeMs: nowMs + LOOK_AGAIN_MS };
  return now({ do: "delete-pod", pod: refOf(standby), isUnchanged: true });
}

/** Nothing can move into it any more. */
function standbyLost({ nodes, migration }: Observed, standby: Pod): Reason | null {
  const { metadata, spec, status } = standby;
  if (metadata.deletionTimestamp !== undefined)
    return {
      reason: "StandbyDeleted",
      message: `pod ${metadata.name}, which was to take over, is being deleted`,
    };
  if (status?.phase === "Failed" || status?.phase === "Succeeded")
    return {
      reason: "StandbyFailed",
      message: `pod ${metadata.name}, which was to take over, has ended: ${status.reason ?? status.phase} ${status.message ?? ""}`,
    };
  const node = spec.nodeName ?? migration.spec.target?.node;
  if (node !== undefined && !nodes.has(node))
    return { reason: "TargetNotFound", message: `node ${node} has gone` };
  for (const { name, state } of statusesOf(standby))
    if (HOPELESS.has(state?.waiting?.reason ?? ""))
      return {
        reason: "StandbyFailed",
        message: `container ${name} of pod ${metadata.name} cannot be made: ${state?.waiting?.reason}: ${state?.waiting?.message ?? ""}`,
      };
  return null;
}

/** The agent of its node has found it, and everything that is to run before the application does. */
function standbyWait(standby: Pod): Reason | null {
  const { metadata, spec, status } = standby;
  const scheduled = conditionOf(standby, "PodScheduled");
  if (spec.nodeName === undefined)
    return {
      reason: scheduled?.reason === "Unschedulable" ? "StandbyUnschedulable" : "StandbyPending",
      message: `pod ${metadata.name} has no node yet: ${scheduled?.message ?? "it is not scheduled"}`,
    };
  const waits = statusesOf(standby).find(({ state }) => state?.waiting !== undefined);
  const containers = status?.containerStatuses ?? [];
  const run =
    containers.length >= spec.containers.length &&
    containers.every(({ state }) => state?.running !== undefined);
  if (status?.phase !== "Running" || !run)
    return {
      reason: "StandbyStarting",
      message: `pod ${metadata.name} starts${waits === undefined ? "" : `: container ${waits.name}: ${waits.state?.waiting?.reason ?? "waits"} ${waits.state?.waiting?.message ?? ""}`}`,
    };
  if (conditionOf(standby, SERVING) === null)
    return {
      reason: "TargetAgent",
      message: `the agent of node ${spec.nodeName} has not found pod ${metadata.name} yet: does it run?`,
    };
  return null;
}

function statusesOf({ status }: Pod) {
  return [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? [])];
}

// ---- Moving ----

function moving(observed: Observed, nowMs: number): Plan {
  const { migration } = observed;
  const { status } = migration;
  const move = moveOf(migration);
  const standby = standbyOf(observed);
  const serving = standby === null ? null : conditionOf(standby, SERVING);
  const stop = stopOf(observed, nowMs);
  const adopt = (): Plan =>
    to(observed, nowMs, "Adopting", {
      reason: "Adopting",
      message: `the application runs in pod ${status.target?.pod ?? "?"}, which takes the place of ${migration.spec.pod}`,
      cancel: undefined,
    });
  if (move?.state === "Moved") return adopt();
  if (serving?.status === "True") {
    const sinceMs = Date.parse(serving.lastTransitionTime ?? "") || 0;
    if (move?.state !== "Running" || nowMs >= sinceMs + SETTLE_MS) return adopt();
    return { action: null, wakeMs: sinceMs + SETTLE_MS };
  }
  const gone = sourceGone(observed);
  const lost =
    standby === null
      ? { reason: "StandbyDeleted", message: `pod ${status.target?.pod ?? "?"} has been deleted` }
      : standbyLost(observed, standby);

  if (move?.state === "Running") {
    // neither pod is there: no agent has anything left to tell
    if (standby === null && sourceOf(observed) === null)
      return end(observed, nowMs, "Failed", {
        reason: "ApplicationLost",
        message: "source and standby have both been deleted in the middle of the move",
      });
    if (stop !== null && status.cancel === undefined)
      return to(observed, nowMs, "Moving", { ...reasonOf(stop), cancel: stop.cancel });
    return { action: null, wakeMs: stop === null ? deadlineMs(observed) : nowMs + LOOK_AGAIN_MS };
  }
  // no agent is at work, and none begins when the phase is another
  if (stop !== null) return end(observed, nowMs, stop.phase, stop);
  if (gone !== null) return end(observed, nowMs, "Failed", gone);
  if (move?.state === "Failed") {
    const reason = {
      reason: move.reason ?? "MoveFailed",
      message: move.message ?? "the agent gives no reason",
    };
    if (move.retryable !== true) return end(observed, nowMs, "Failed", reason);
    return nextAttempt(observed, nowMs, reason);
  }
  if (lost !== null) return nextAttempt(observed, nowMs, lost);
  const untilMs = phaseSinceMs(migration) + TAKE_UP_MS;
  if (nowMs >= untilMs)
    return nextAttempt(observed, nowMs, {
      reason: "SourceAgent",
      message: `the agent of node ${status.source?.node ?? "?"} has not begun the move: does it run?`,
    });
  return { action: null, wakeMs: Math.min(untilMs, deadlineMs(observed)) };
}

/** What an agent says of an attempt before is history. */
function moveOf({ status: { attempt, move } }: Migration): MoveStatus | null {
  return move !== undefined && move.attempt === attempt ? move : null;
}

// ---- Adopting ----

function adopting(observed: Observed, nowMs: number): Plan {
  const { migration } = observed;
  const { status } = migration;
  const source = sourceOf(observed);
  const standby = standbyOf(observed);
  const sourceStays = source !== null && source.metadata.deletionTimestamp === undefined;
  if (standby === null || (standby.metadata.deletionTimestamp !== undefined && isStandby(standby))) {
    // the application went with it; its ReplicaSet makes another pod when the empty one has gone
    if (sourceStays && controllerOf(source) !== null)
      return now({ do: "delete-pod", pod: refOf(source), isUnchanged: false });
    return end(observed, nowMs, "Failed", {
      reason: "ApplicationLost",
      message: `pod ${status.target?.pod ?? "?"} was deleted when it had the application`,
    });
  }
  if (isStandby(standby)) return adopt(observed, nowMs, standby, sourceStays ? source : null);
  if (sourceStays) return now({ do: "delete-pod", pod: refOf(source), isUnchanged: false });

  const adopted = status.conditions?.find(({ type }) => type === ADOPTED);
  if (adopted === undefined)
    return to(observed, nowMs, "Adopting", {
      message: `pod ${standby.metadata.name} has taken the place of ${migration.spec.pod}`,
      conditions: withCondition(status.conditions, {
        type: ADOPTED,
        status: "True",
        reason: "Adopted",
        message: `pod ${standby.metadata.name} has the labels and the owner of pod ${migration.spec.pod}`,
        lastTransitionTime: timeText(nowMs),
      }),
    });
  const recheckMs = Date.parse(adopted.lastTransitionTime) + RECHECK_MS;
  if (nowMs < recheckMs) return { action: null, wakeMs: recheckMs };
  if (standby.metadata.deletionTimestamp !== undefined)
    return end(observed, nowMs, "Failed", {
      reason: "ApplicationLost",
      message: `pod ${standby.metadata.name} is being deleted, with the application, since it took the place of ${migration.spec.pod}`,
    });
  if (standby.metadata.annotations?.[DELETION_COST] !== undefined)
    return now({
      do: "patch-pod",
      pod: refOf(standby),
      metadata: { annotations: { [DELETION_COST]: null } },
    });
  return end(observed, nowMs, "Succeeded", moved(observed));
}

function moved({ migration: { spec, status } }: Observed): Reason {
  const { source, target, move } = status;
  const pause = move?.pauseMs === undefined ? "" : `, clients waited ${Math.round(move.pauseMs)} ms`;
  const sessions = move?.sessions === undefined ? "" : ` with ${move.sessions} sessions`;
  return {
    reason: "Moved",
    message: `pod ${spec.pod} on node ${source?.node ?? "?"} is pod ${target?.pod ?? "?"} on node ${target?.node ?? "?"} now${sessions}${pause}`,
  };
}

/** @param source null: it has gone, or goes */
function adopt(observed: Observed, nowMs: number, standby: Pod, source: Pod | null): Plan {
  const { owner } = observed;
  const clients = source === null ? null : clientsOfSource(observed, nowMs);
  if (clients !== null) return waiting(observed, nowMs, clients);
  const becomes = becomesOf(standby) ?? { labels: {}, owner: null };
  if (becomes.owner !== null) {
    if (source !== null && source.metadata.annotations?.[DELETION_COST] !== COST_LEAST)
      return now({
        do: "patch-pod",
        pod: refOf(source),
        metadata: { annotations: { [DELETION_COST]: COST_LEAST } },
      });
    const sourceIsReady = source !== null && isTrue(source, "Ready");
    const isReady = isTrue(standby, "Ready");
    const wait = isReady ? othersWait(owner, source, sourceIsReady) : notReady(standby);
    const isOver = nowMs >= anchorEndMs(observed) + ADOPT_WAIT_MS;
    // the one that is not Ready goes first; of two that are not, the cheaper
    const isSafe = isReady || (source !== null && !sourceIsReady);
    if (wait !== null && !(isOver && isSafe)) return waiting(observed, nowMs, wait);
  }
  return now({
    do: "patch-pod",
    pod: refOf(standby),
    metadata: {
      labels: becomes.labels,
      annotations: {
        [ANNOTATION.standby]: null,
        [ANNOTATION.becomes]: null,
        [ANNOTATION.moved]: timeText(nowMs),
      },
      ...(becomes.owner === null ? {} : { ownerReferences: [becomes.owner] }),
    },
  });
}

/** In forward mode, and where they came to the pod's own address, they are connected to the source: it stays for them, in its time. */
function clientsOfSource(observed: Observed, nowMs: number): Reason | null {
  const { spec, status } = observed.migration;
  const count = status.move?.anchored ?? status.move?.sessions ?? 0;
  const endMs = anchorEndMs(observed);
  if (!areAtSource(observed) || count === 0 || nowMs >= endMs) return null;
  return {
    reason: "ClientsOfSource",
    message: `${count} clients are connected by pod ${spec.pod}, which stays for them until ${timeText(endMs)} (anchorSeconds of the policy)`,
  };
}

function anchorEndMs(observed: Observed): number {
  const { migration, policy } = observed;
  return phaseSinceMs(migration) + (areAtSource(observed) ? policy.anchorSeconds * 1_000 : 0);
}

/** Clients of a node's address are led on by its agent's proxy, which stays when the pod goes. */
function areAtSource({ migration, source, standby }: Observed): boolean {
  const isAtPod = [source, standby].some((pod) => pod?.metadata.annotations?.[ANNOTATION.listen] === "pod");
  return isAtPod && migration.status.move?.downstream === "forward";
}

function notReady({ metadata }: Pod): Reason {
  return {
    reason: "StandbyNotReady",
    message: `pod ${metadata.name} has the application and is not Ready yet`,
  };
}

function othersWait(owner: Observed["owner"], source: Pod | null, sourceIsReady: boolean): Reason | null {
  if (source !== null && sourceIsReady && hasGate(source))
    return {
      reason: "SourceReady",
      message: `the agent of node ${source.spec.nodeName ?? "?"} has not said yet that the application has left`,
    };
  const siblings = owner.kind === "replica-set" ? owner.pods : [];
  const pendingPod = siblings.find(
    (pod) => pod.metadata.uid !== source?.metadata.uid && isActive(pod) && pod.status?.phase !== "Running",
  );
  // a ReplicaSet with a pod too many deletes that one, and not the source
  if (pendingPod !== undefined)
    return {
      reason: "ReplicaPending",
      message: `pod ${pendingPod.metadata.name} of the same ReplicaSet does not run yet`,
    };
  return rollout(owner);
}

function hasGate({ spec }: Pod): boolean {
  return (spec.readinessGates ?? []).some(({ conditionType }) => conditionType === SERVING);
}

// ---- the end ----

function clearUp(observed: Observed, nowMs: number): Plan {
  const { migration, source, strays } = observed;
  const { metadata, spec, status } = migration;
  const standby = standbyOf(observed);
  const left = [...strays, ...(standby === null ? [] : [standby])].filter(
    // one that has the application is not thrown away, whatever the status says
    (pod) => isStandby(pod) && !isTrue(pod, SERVING),
  );
  const first = left.find((pod) => pod.metadata.deletionTimestamp === undefined);
  if (first !== undefined) return now({ do: "delete-pod", pod: refOf(first), isUnchanged: true });
  if (left.length > 0) return { action: null, wakeMs: nowMs + LOOK_AGAIN_MS };
  const labelled = [source, standby].find(
    (pod) => pod !== null && isClaimedBy(pod, migration) && !isStandby(pod),
  );
  if (labelled)
    return now({
      do: "patch-pod",
      pod: refOf(labelled),
      metadata: {
        labels: { [MIGRATION_LABEL]: null },
        annotations: disturbAgain(labelled.metadata.annotations ?? {}),
      },
    });
  if (metadata.finalizers.includes(FINALIZER)) return now({ do: "finalizer", present: false });
  if (spec.ttlSecondsAfterFinished === undefined || metadata.deletionTimestamp !== undefined)
    return { action: null, wakeMs: null };
  const endMs = phaseSinceMs(migration) + spec.ttlSecondsAfterFinished * 1_000;
  if (status.phase !== undefined && nowMs >= endMs) return now({ do: "delete-migration" });
  return { action: null, wakeMs: endMs };
}

// ---- what they share ----

interface Stop extends Reason {
  phase: "Failed" | "Aborted";
  cancel: "Aborted" | "Deadline";
}

/** Somebody wants it to end, or its time is up. */
function stopOf(observed: Observed, nowMs: number): Stop | null {
  const { metadata, spec, status } = observed.migration;
  if (metadata.deletionTimestamp !== undefined)
    return { phase: "Aborted", cancel: "Aborted", reason: "Deleted", message: "this Migration was deleted" };
  if (spec.abort === true)
    return { phase: "Aborted", cancel: "Aborted", reason: "Aborted", message: "spec.abort was set" };
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

/** What asked for it has been taken back, and it has not begun to move. */
function causeOver(observed: Observed): Reason | null {
  const { migration, policy, nodes, source } = observed;
  const { phase = "Pending" } = migration.status;
  const cause = causeOf(migration);
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

function reasonOf({ reason, message }: Reason): Reason {
  return { reason, message };
}

/** The application ended with it. */
function sourceGone(observed: Observed): Stop | null {
  const source = sourceOf(observed);
  if (source !== null && isActive(source)) return null;
  return {
    phase: "Failed",
    cancel: "Aborted",
    reason: "SourceDeleted",
    message: `pod ${observed.migration.spec.pod} was deleted before its application had moved`,
  };
}

function deadlineSeconds({ migration, policy }: Observed): number {
  return migration.spec.deadlineSeconds ?? policy.deadlineSeconds;
}

function deadlineMs(observed: Observed): number {
  return Date.parse(observed.migration.metadata.creationTimestamp) + deadlineSeconds(observed) * 1_000;
}

function nextAttempt(observed: Observed, nowMs: number, { reason, message }: Reason): Plan {
  const { migration, policy } = observed;
  const { attempt = 1 } = migration.status;
  const most = migration.spec.attemptsMax ?? policy.attemptsMax;
  if (attempt >= most) {
    const times = most === 1 ? "" : `, as did ${most - 1} attempts before it`;
    return end(observed, nowMs, "Failed", { reason, message: `${message}${times}` });
  }
  const { target } = migration.status;
  return to(observed, nowMs, "Preparing", {
    reason,
    message: `attempt ${attempt} of ${most} failed: ${message}`,
    attempt: attempt + 1,
    move: undefined,
    retryAt: timeText(nowMs + Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** (attempt - 1))),
    // of the attempt before, so that it goes first
    target: target ?? { pod: standbyName(migration, null), attempt },
  });
}

function end(
  observed: Observed,
  nowMs: number,
  phase: "Succeeded" | "Failed" | "Aborted",
  reason: Reason,
  more: Partial<MigrationStatus> = {},
): Plan {
  return to(observed, nowMs, phase, { ...reasonOf(reason), ...more });
}

/** @param change undefined: taken away */
function to(
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

function withCondition(conditions: Condition[] = [], next: Condition): Condition[] {
  const before = conditions.find(({ type }) => type === next.type);
  const kept = before?.status === next.status ? { lastTransitionTime: before.lastTransitionTime } : {};
  return [...conditions.filter(({ type }) => type !== next.type), { ...next, ...kept }];
}

/** Says why; nothing else changes. */
function waiting(observed: Observed, nowMs: number, why: Reason): Plan {
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

function now(action: Action): Plan {
  return { action, wakeMs: null };
}

/** of the phase it is in */
function phaseSinceMs({ status, metadata }: Migration): number {
  return Date.parse(status.phaseTransitionTimestamps?.at(-1)?.timestamp ?? metadata.creationTimestamp);
}

function timeText(ms: number): string {
  return new Date(ms).toISOString();
}

function refOf({ metadata: { name, uid, resourceVersion } }: Pod): PodRef {
  return { name, uid, resourceVersion };
}
