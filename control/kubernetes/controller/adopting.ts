/** The phase Adopting: the standby, which has the application, takes the source's place with its owner. Pure. */
import { ANNOTATION, DELETION_COST, SERVING } from "../../api/resources.ts";
import { controllerOf, isActive, isTrue, type Pod } from "../client/objects.ts";
import { end, now, type Plan, phaseSinceMs, refOf, timeText, to, waiting, withCondition } from "./next.ts";
import { isReturning, type Observed, type Reason, sourceOf, standbyOf } from "./observed.ts";
import { rollout } from "./obstacles.ts";
import { beginReturn } from "./returning.ts";
import { becomesOf, isStandby } from "./standby-pod.ts";

/** for others' pods and roll-outs; the standby is not in its Service meanwhile */
const ADOPT_WAIT_MS = 30_000;
/** a ReplicaSet that chose the standby has said so by then: 4 ms when seen */
const RECHECK_MS = 2_000;
/** among equally ready pods the first that a ReplicaSet deletes */
const COST_LEAST = "-2147483648";
const ADOPTED = "Adopted";

export function adopting(observed: Observed, nowMs: number): Plan {
  const { migration } = observed;
  const { status } = migration;
  const source = sourceOf(observed);
  const standby = standbyOf(observed);
  const sourceStays = source !== null && source.metadata.deletionTimestamp === undefined;
  if (standby === null || (standby.metadata.deletionTimestamp !== undefined && isStandby(standby))) {
    // the application went with it; its ReplicaSet makes another pod when the empty one has gone, and one between two moves is ours
    if (sourceStays && (controllerOf(source) !== null || isReturning(migration)))
      return now({ do: "delete-pod", pod: refOf(source), isUnchanged: false });
    return end(observed, nowMs, "Failed", {
      reason: "ApplicationLost",
      message: `pod ${status.target?.pod ?? "?"} was deleted when it had the application`,
    });
  }
  if (observed.owner.kind === "stateful-set" && !isReturning(migration))
    return clientsWait(observed, nowMs, sourceStays ? source : null) ?? beginReturn(observed, nowMs, standby);
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
  const { source, target, move, origin } = status;
  const pauses = [origin?.move, move].flatMap((one) =>
    one?.pauseMs === undefined ? [] : [`${Math.round(one.pauseMs)} ms`],
  );
  const pause = pauses.length === 0 ? "" : `, clients waited ${pauses.join(" and ")}`;
  const sessions = move?.sessions === undefined ? "" : ` with ${move.sessions} sessions`;
  return {
    reason: "Moved",
    message: `pod ${spec.pod} on node ${(origin ?? source)?.node ?? "?"} is pod ${target?.pod ?? "?"} on node ${target?.node ?? "?"} now${sessions}${pause}`,
  };
}

/** @param source null: it has gone, or goes */
function adopt(observed: Observed, nowMs: number, standby: Pod, source: Pod | null): Plan {
  const { owner } = observed;
  const clients = clientsWait(observed, nowMs, source);
  if (clients !== null) return clients;
  const becomes = becomesOf(standby) ?? { labels: {}, owner: null };
  if (becomes.owner !== null && wantsPods(owner)) {
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

function clientsWait(observed: Observed, nowMs: number, source: Pod | null): Plan | null {
  const clients = source === null ? null : clientsOfSource(observed, nowMs);
  return clients === null ? null : waiting(observed, nowMs, clients);
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

/** A ReplicaSet that a roll-out, or a scale-down, has left none deletes the standby as it would have deleted the source: nobody waits for that. */
function wantsPods(owner: Observed["owner"]): boolean {
  return owner.kind !== "replica-set" || owner.replicaSet?.spec.replicas !== 0;
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
