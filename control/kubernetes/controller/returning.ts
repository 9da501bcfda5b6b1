/**
 * Pods of StatefulSets keep their names, so their applications move twice, each time as any other does: into another pod (the
 * shadow), and from there into the pod that the StatefulSet makes anew on the target when its old one has been deleted. Pure.
 *
 * Here is what lies between. Nothing of it can lose the application, which runs in the shadow and is served there: so there is no way
 * back and no deadline, but as many attempts as it takes. It ends with the shadow only where it would have without a move: when the
 * StatefulSet wants no such pod any more, or only one of another template.
 *
 * The webhook at `/ordinal` makes the new pod the standby (`webhook/ordinal.ts`). One that it did not see is of no use here: nothing
 * runs in it, as the store says who owns the application, and it is deleted. But not where the next would not be seen either: a dry run
 * says so, and then nothing is deleted until the webhook is back. Where the dry run was seen and the pods were not, so many times in a row
 * and for so long, or somebody wants an end of the waiting, the application stays where it is, in a pod that is an ordinary one from then on.
 * That is for good, so no single answer decides it: the API server goes on without a webhook that is late, or is being rolled out.
 */
import { ANNOTATION, DELETION_COST, type Migration } from "../../api/resources.ts";
import { isActive, type Pod } from "../client/objects.ts";
import {
  askedToEnd,
  backOffMs,
  end,
  LOOK_AGAIN_MS,
  now,
  type Plan,
  refOf,
  timeText,
  to,
  waiting,
} from "./next.ts";
import { isClaimedBy, isReturning, type Observed, type Reason, sourceOf } from "./observed.ts";
import { anewWait, seenWait, templateWait, WHY_UNSEEN } from "./obstacles.ts";
import { becomesOf, isStandby } from "./standby-pod.ts";
import { isWanted, REVISION } from "./stateful-set.ts";

/** beyond its grace period; when seen a pod had gone 1.0 s after its last container */
const OVERDUE_MS = 10_000;
/** a pod made anew that cannot be used by then is made once more, anywhere */
const ANEW_MS_MAX = 60_000;
const LOOK_SOON_MS = 500;
/** pods made anew in a row that the webhook did not see, after which none comes… */
const UNSEEN_MAX = 3;
/** … and since the first of them: one of two controllers has gone, or a quota is full, for less */
const UNSEEN_MS = 300_000;
/** a webhook that is rolled out, or whose endpoint has gone, is asked again by then */
const SILENT_MS = 60_000;

/** The application is in the shadow: from now on that is the source. */
export function beginReturn(observed: Observed, nowMs: number, shadow: Pod): Plan {
  const { status, spec } = observed.migration;
  const { attempt = 1, serial = 1, source, move } = status;
  const { name: pod, uid: podUid } = shadow.metadata;
  const { nodeName: node } = shadow.spec;
  return to(observed, nowMs, "Preparing", {
    reason: "MadeAnew",
    message: `the application runs in pod ${pod} on node ${node ?? "?"} while pod ${spec.pod} is made anew`,
    origin: {
      ...(source ?? { pod: spec.pod }),
      // so that nothing that is said of the way here is taken for the next
      attempt: attempt + 1,
      ...(move === undefined ? {} : { move }),
    },
    source: { pod, podUid, ...(node === undefined ? {} : { node }) },
    target: undefined,
    move: undefined,
    retryAt: undefined,
    attempt: attempt + 1,
    serial: serial + 1,
  });
}

/** While no agent moves it. null: its pod is wanted, and the application not left where it is */
export function endWithSet(observed: Observed, nowMs: number): Plan | null {
  const { migration } = observed;
  if (!isReturning(migration)) return null;
  const shadow = sourceOf(observed);
  if (shadow === null) return null;
  // nobody's already: nothing is left that says whose it was, should the StatefulSet and its pod go now
  if (isActive(shadow) && !isStandby(shadow))
    return stay(observed, nowMs, shadow, askedToEnd(migration) ?? notSeen(observed, shadow));
  const why = unwanted(observed, shadow);
  if (why === null) return null;
  if (shadow.metadata.deletionTimestamp === undefined)
    return now({ do: "delete-pod", pod: refOf(shadow), isUnchanged: false });
  return end(observed, nowMs, "Failed", why);
}

function unwanted({ owner, ordinal, migration }: Observed, shadow: Pod): Reason | null {
  const { origin } = migration.status;
  if (owner.kind !== "stateful-set" || origin === undefined) return null;
  const { statefulSet: set, reference } = owner;
  if (set === null || set.metadata.deletionTimestamp !== undefined)
    return { reason: "OwnerDeleted", message: `StatefulSet ${reference.name} has been deleted` };
  if (!isWanted(set, origin.pod))
    return {
      reason: "ScaledDown",
      message: `StatefulSet ${reference.name} does not have pod ${origin.pod} any more`,
    };
  const revision = becomesOf(shadow)?.labels[REVISION];
  const isAnew = ordinal !== null && ordinal.metadata.uid !== origin.podUid;
  if (isAnew && revision !== undefined && ordinal.metadata.labels?.[REVISION] !== revision)
    return {
      reason: "RolledOut",
      message: `pod ${origin.pod} has been made anew of another template: it starts without the application, as in every roll-out`,
    };
  return null;
}

/** Until the pod that is to take the application is there. */
export function madeAnew(observed: Observed, nowMs: number): Plan {
  const { ordinal, owner, migration } = observed;
  const { origin } = migration.status;
  if (origin === undefined || owner.kind !== "stateful-set")
    return { action: null, wakeMs: nowMs + LOOK_AGAIN_MS };
  if (ordinal === null)
    return waiting(observed, nowMs, {
      reason: "PodMissing",
      message: `StatefulSet ${owner.reference.name} has not made pod ${origin.pod} anew yet`,
    });
  const { uid, deletionTimestamp } = ordinal.metadata;
  if (deletionTimestamp !== undefined) return ending(observed, nowMs, ordinal, deletionTimestamp);
  // made since the standbys were looked for
  if (isClaimedBy(ordinal, migration) && isStandby(ordinal))
    return { action: null, wakeMs: nowMs + LOOK_SOON_MS };
  const shadow = sourceOf(observed);
  const silent = seenWait(owner);
  if (shadow !== null) {
    const heard = silence(observed, nowMs, shadow, uid, silent !== null);
    if (heard !== null) return heard;
    if (uid !== origin.podUid) return missed(observed, nowMs, shadow, ordinal, silent);
  }
  // a roll-out waits for this pod, which has no application and is not Ready, and so for us: it gets what it would get in the end
  const isInTurn = owner.statefulSet?.spec.updateStrategy?.type !== "OnDelete";
  const wait = (isInTurn ? null : templateWait(owner, ordinal)) ?? anewWait(owner, ordinal);
  if (wait !== null) return waiting(observed, nowMs, wait);
  return now({ do: "delete-pod", pod: refOf(ordinal), isUnchanged: false });
}

/** Keeps in mind since when `/ordinal` is not asked; the end where that is long enough and somebody wants one. null: go on */
function silence(
  observed: Observed,
  nowMs: number,
  shadow: Pod,
  ordinalUid: string,
  isSilent: boolean,
): Plan | null {
  const { [ANNOTATION.silent]: mark } = shadow.metadata.annotations ?? {};
  if (!isSilent) return mark === undefined ? null : annotated(shadow, { [ANNOTATION.silent]: null });
  // of each pod of that name on its own: it may have been asked since the one before
  const [uid, since = ""] = (mark ?? "").split(" ");
  const sinceMs = uid === ordinalUid ? Date.parse(since) : Number.NaN;
  if (Number.isNaN(sinceMs) || sinceMs > nowMs)
    return annotated(shadow, { [ANNOTATION.silent]: `${ordinalUid} ${timeText(nowMs)}` });
  const asked = nowMs < sinceMs + SILENT_MS ? null : askedToEnd(observed.migration);
  return asked === null ? null : stay(observed, nowMs, shadow, asked);
}

/** A pod made anew that is no standby. */
function missed(observed: Observed, nowMs: number, shadow: Pod, ordinal: Pod, silent: Reason | null): Plan {
  const { uid, creationTimestamp } = ordinal.metadata;
  const { migration } = observed;
  const unseen = unseenOf(shadow, migration);
  if (unseen?.uid !== uid) {
    const { count, sinceMs } = unseen ?? { count: 0, sinceMs: nowMs };
    const mark = `${migration.status.attempt ?? 1} ${uid} ${count + 1} ${timeText(sinceMs)}`;
    return annotated(shadow, { [ANNOTATION.unseen]: mark });
  }
  if (silent !== null) return waiting(observed, nowMs, silent);
  const why = notSeen(observed, shadow);
  if (unseen.count >= UNSEEN_MAX && nowMs >= unseen.sinceMs + UNSEEN_MS)
    return stay(observed, nowMs, shadow, why);
  const madeMs = Date.parse(creationTimestamp);
  const againMs = madeMs + backOffMs(unseen.count - 1);
  // the API server's clock may be ahead of ours
  if (nowMs < againMs && madeMs <= nowMs) return { ...waiting(observed, nowMs, why), wakeMs: againMs };
  return now({ do: "delete-pod", pod: refOf(ordinal), isUnchanged: true });
}

/** In a row, by the shadow, as definitions of before drop fields. @property uid of the last @property sinceMs when the first was looked at */
interface Unseen {
  uid: string;
  count: number;
  sinceMs: number;
}

/** null: none, or those of an attempt before; one that was seen began another, by which it is counted from 1 again */
function unseenOf({ metadata }: Pod, { status: { attempt = 1 } }: Migration): Unseen | null {
  const [of, uid = "", count, since = ""] = (metadata.annotations?.[ANNOTATION.unseen] ?? "").split(" ");
  const sinceMs = Date.parse(since);
  return of === String(attempt) && !Number.isNaN(sinceMs) ? { uid, count: Number(count), sinceMs } : null;
}

function annotated(pod: Pod, annotations: Record<string, string | null>): Plan {
  return now({ do: "patch-pod", pod: refOf(pod), metadata: { annotations } });
}

function notSeen({ migration }: Observed, shadow: Pod): Reason & { phase: "Failed" } {
  const { spec, status } = migration;
  const { count = 0 } = unseenOf(shadow, migration) ?? {};
  return {
    phase: "Failed",
    reason: "OrdinalNotSeen",
    message: `the API server did not ask ordinals.holdfast.dev about pod ${status.origin?.pod ?? spec.pod}, which was made anew ${count} times (${WHY_UNSEEN})`,
  };
}

/**
 * It ends with the application where it is. That pod is no standby any more before the Migration has ended: an eviction of it is one of an
 * ordinary pod, and moves it. Its StatefulSet does not take it for its own, by its name.
 */
function stay(
  observed: Observed,
  nowMs: number,
  shadow: Pod,
  { phase, reason, message }: Reason & { phase: "Failed" | "Aborted" },
): Plan {
  const { name } = shadow.metadata;
  const pod = observed.migration.status.origin?.pod ?? observed.migration.spec.pod;
  if (isStandby(shadow))
    return now({
      do: "patch-pod",
      pod: refOf(shadow),
      metadata: {
        labels: becomesOf(shadow)?.labels ?? {},
        annotations: {
          [ANNOTATION.standby]: null,
          [ANNOTATION.becomes]: null,
          [ANNOTATION.between]: null,
          [ANNOTATION.silent]: null,
          [DELETION_COST]: null,
          [ANNOTATION.moved]: timeText(nowMs),
        },
      },
    });
  return end(observed, nowMs, phase, {
    reason,
    message: `${message}; the application goes on in pod ${name}, which is nobody's from now on, and pod ${pod} waits: kubectl delete pod ${name} ends it there, and pod ${pod} begins anew, without what it had in memory`,
  });
}

/**
 * Where its kubelet is silent, its name is freed without it: the pod that the application has left has none in it, and what
 * kubelet starts there again waits for one in vain, as the store says who owns it.
 */
function ending(observed: Observed, nowMs: number, ordinal: Pod, deletionTimestamp: string): Plan {
  const overdueMs = Date.parse(deletionTimestamp) + OVERDUE_MS;
  const isLeft = ordinal.metadata.uid === observed.migration.status.origin?.podUid;
  if (isLeft && nowMs >= overdueMs)
    return now({ do: "delete-pod", pod: refOf(ordinal), isUnchanged: false, isForced: true });
  return { action: null, wakeMs: isLeft ? overdueMs : nowMs + LOOK_AGAIN_MS };
}

/** It has been there for long, and cannot be used. */
export function isInVain({ migration }: Observed, standby: Pod, nowMs: number): boolean {
  return isReturning(migration) && nowMs >= Date.parse(standby.metadata.creationTimestamp) + ANEW_MS_MAX;
}
