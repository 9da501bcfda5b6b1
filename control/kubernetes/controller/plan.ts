/**
 * Pure: what to do next for one Migration. One action at a time; each may be done twice, fail, or be done without an answer, and
 * the next plan is made of what is there then. So nothing is remembered but what is in the objects.
 *
 *   Pending     nothing is made. Claims the source by a label, so that two Migrations never have the same pod, and guards its pods (`guard.ts`)
 *   Preparing   the standby is made, and waits until the agent of its node has found it. A retry begins here, without the old one
 *   Moving      the agents move the application; what comes of it is in `status.move`
 *   Adopting    the standby takes the source's place with its owner, in the order that was seen to keep every replica:
 *               the source is made the first to go, and is no longer Ready (its agent sees to that); the standby is Ready; no
 *               roll-out is under way; one patch gives the standby labels and owner; the source is deleted; and after a while
 *               the standby is looked at again
 *   Succeeded, Failed, Aborted: what is left over goes
 *
 * A StatefulSet's pod goes through Preparing, Moving and Adopting twice, see `returning.ts`.
 */
import { FINALIZER, MIGRATION_LABEL, type Migration, type MoveStatus, SERVING } from "../../api/resources.ts";
import { conditionOf, isTrue, type Pod } from "../client/objects.ts";
import { adopting } from "./adopting.ts";
import { disturbAgain, disturbNot } from "./disruption.ts";
import {
  deadlineMs,
  deadlineSeconds,
  end,
  LOOK_AGAIN_MS,
  nextAttempt,
  now,
  type Plan,
  phaseSinceMs,
  reasonOf,
  refOf,
  sourceGone,
  stopOf,
  to,
  waiting,
} from "./next.ts";
import { isClaimedBy, isReturning, type Observed, type Reason, sourceOf, standbyOf } from "./observed.ts";
import { refusalOf, waitOf } from "./obstacles.ts";
import { endWithSet, isInVain, madeAnew } from "./returning.ts";
import { isStandby, standbyPod } from "./standby-pod.ts";

/** the source's agent does not begin: it does not run, or does not see the API server */
const TAKE_UP_MS = 30_000;
/** a target that serves while its source has not said so: figures are missing, nothing else */
const SETTLE_MS = 10_000;
/** after the time that a move may take, for a target that goes on without its source */
const UNTOLD_MS = 60_000;
/** an agent finds a pod's container at once; saying that it has not costs more time than it takes */
const FIND_MS = 2_000;
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
  if (!observed.isGuarded) return now({ do: "create-guard" });
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
  const lines = [...(wait === null ? [] : [`wait: ${wait.message}`]), ...stepsOf(observed, source)];
  return end(
    observed,
    nowMs,
    "Succeeded",
    { reason: "DryRun", message: "nothing was made or moved; see status.plan" },
    { plan: lines },
  );
}

function stepsOf({ migration, owner }: Observed, source: Pod): string[] {
  const standby = standbyPod(source, migration);
  const { node, nodeSelector } = migration.spec.target ?? {};
  const labels = Object.entries(nodeSelector ?? {}).map(([key, value]) => `${key}=${value}`);
  const where =
    node !== undefined
      ? `node ${node}`
      : `any node but ${source.spec.nodeName ?? "its own"}${labels.length === 0 ? "" : ` with ${labels.join(", ")}`}`;
  if (owner.kind === "stateful-set") {
    const { name } = source.metadata;
    const final =
      node !== undefined
        ? `node ${node}`
        : `another node${labels.length === 0 ? "" : ` with ${labels.join(", ")}`}`;
    return [
      `create pod ${standby.metadata.name}, for a node between`,
      `move the application of pod ${name} (node ${source.spec.nodeName ?? "none"}) to it`,
      `delete pod ${name}, which StatefulSet ${owner.reference.name} makes anew, on ${final}`,
      `move the application to that, and delete pod ${standby.metadata.name}`,
    ];
  }
  const place =
    owner.kind === "none"
      ? `give it the labels of ${source.metadata.name}`
      : `give it to ${owner.reference.kind} ${owner.reference.name} in place of ${source.metadata.name}`;
  return [
    `create pod ${standby.metadata.name}, for ${where}`,
    `move the application of pod ${source.metadata.name} (node ${source.spec.nodeName ?? "none"}) to it`,
    `${place}, and delete pod ${source.metadata.name}`,
  ];
}

// ---- Preparing ----

function preparing(observed: Observed, nowMs: number): Plan {
  const { migration } = observed;
  const { status } = migration;
  const over = endWithSet(observed, nowMs);
  if (over !== null) return over;
  const stop = stopOf(observed, nowMs) ?? sourceGone(observed);
  if (stop !== null) return end(observed, nowMs, stop.phase, stop);
  const standby = standbyOf(observed);
  const stray = observed.strays.find(
    (pod) =>
      isStandby(pod) &&
      !isTrue(pod, SERVING) &&
      pod.metadata.deletionTimestamp === undefined &&
      // of that name there is one at a time
      pod.metadata.name !== status.origin?.pod,
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
    if (isReturning(migration)) return madeAnew(observed, nowMs);
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
  // by the node's clock: one that is ahead says nothing of how long it is ago
  const sinceMs = nowMs - lastStartedMs(standby);
  if (wait?.reason === "TargetAgent" && sinceMs >= 0 && sinceMs < FIND_MS)
    return { action: null, wakeMs: nowMs + FIND_MS - sinceMs };
  if (wait !== null)
    return isInVain(observed, standby, nowMs)
      ? nextAttempt(observed, nowMs, wait)
      : waiting(observed, nowMs, wait);
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
  if ((status?.phase !== "Running" || !run) && !isFoundEarly(standby))
    return {
      reason: "StandbyStarting",
      message: `pod ${metadata.name} starts${waits === undefined ? "" : `: container ${waits.name}: ${waits.state?.waiting?.reason ?? "waits"} ${waits.state?.waiting?.message ?? ""}`}${hookNote(standby)}`,
    };
  if (conditionOf(standby, SERVING) === null)
    return {
      reason: "TargetAgent",
      message: `the agent of node ${spec.nodeName} has not found pod ${metadata.name} yet: does it run?`,
    };
  return null;
}

/**
 * Its agent has found its container running before kubelet says so, which takes up to a second. Not where something else is to run before the
 * application comes: other containers, or a hook, whose processes would be in its way.
 */
function isFoundEarly(standby: Pod): boolean {
  const { containers } = standby.spec;
  const [known] = standby.status?.containerStatuses ?? [];
  const hasEnded = known?.state?.terminated !== undefined || (known?.restartCount ?? 0) > 0;
  return (
    containers.length === 1 &&
    containers[0]?.lifecycle?.postStart == null &&
    !hasEnded &&
    conditionOf(standby, SERVING) !== null
  );
}

/** kubelet says of no container that it runs before its hook has ended. */
function hookNote(standby: Pod): string {
  const running = statusesOf(standby).filter(({ state }) => state?.running !== undefined);
  const hooked = standby.spec.containers.find(
    ({ name, lifecycle }) => lifecycle?.postStart != null && !running.some((one) => one.name === name),
  );
  return hooked === undefined
    ? ""
    : `; postStart of ${hooked.name} runs there before the application does: one that waits for it never ends`;
}

/** -Infinity: kubelet does not say */
function lastStartedMs(standby: Pod): number {
  const started = statusesOf(standby).map(({ state }) => Date.parse(state?.running?.startedAt ?? ""));
  return Math.max(...started.filter((ms) => !Number.isNaN(ms)));
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
  const isOnItsWay = observed.owner.kind === "stateful-set" && !isReturning(migration);
  const adopt = (): Plan =>
    to(observed, nowMs, "Adopting", {
      reason: "Adopting",
      message: `the application runs in pod ${status.target?.pod ?? "?"}${isOnItsWay ? "" : `, which takes the place of ${migration.spec.pod}`}`,
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
    if (standby !== null && sourceOf(observed) === null) {
      // its node has gone: nobody is left to say how the move ended, and what had come would be served by now
      const overMs = phaseSinceMs(migration) + deadlineSeconds(observed) * 1_000 + UNTOLD_MS;
      if (nowMs < overMs) return { action: null, wakeMs: overMs };
      if (standby.metadata.deletionTimestamp !== undefined)
        return { action: null, wakeMs: nowMs + LOOK_AGAIN_MS };
      return now({ do: "delete-pod", pod: refOf(standby), isUnchanged: true });
    }
    return { action: null, wakeMs: stop === null ? deadlineMs(observed) : nowMs + LOOK_AGAIN_MS };
  }
  // no agent is at work, and none begins when the phase is another
  const over = endWithSet(observed, nowMs);
  if (over !== null) return over;
  if (stop !== null) return end(observed, nowMs, stop.phase, stop);
  if (gone !== null) return end(observed, nowMs, "Failed", gone);
  if (move?.state === "Failed") {
    const reason = {
      reason: move.reason ?? "MoveFailed",
      message: move.message ?? "the agent gives no reason",
    };
    if (move.retryable !== true && !isReturning(migration)) return end(observed, nowMs, "Failed", reason);
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

// ---- the end ----

function clearUp(observed: Observed, nowMs: number): Plan {
  const { migration, source, strays } = observed;
  const { metadata, spec, status } = migration;
  const standby = standbyOf(observed);
  if (observed.isGuarded) return now({ do: "delete-guard" });
  const left = [...strays, ...(standby === null ? [] : [standby])].filter(
    // one that has the application is not thrown away, whatever the status says
    (pod) => isStandby(pod) && !isTrue(pod, SERVING),
  );
  const first = left.find((pod) => pod.metadata.deletionTimestamp === undefined);
  if (first !== undefined) return now({ do: "delete-pod", pod: refOf(first), isUnchanged: true });
  if (left.length > 0) return { action: null, wakeMs: nowMs + LOOK_AGAIN_MS };
  const labelled = [source, standby, ...strays].find(
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
