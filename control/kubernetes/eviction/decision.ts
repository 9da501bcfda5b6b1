/**
 * Pure: what becomes of an eviction of a pod, whichever way it is asked for: `pods/eviction` (policy/v1), or an EvictionRequest
 * (`requests.ts`), where "denied" means that we are at work, and "allowed" that the next responder is to act. One that has an application with clients is denied while it moves:
 * kubectl drain says why, and asks again every five seconds. It is denied with 429 and without `retryAfterSeconds`: with it
 * client-go asks again by itself, silently; any other status ends the drain.
 *
 * Whoever asks again means the pod that was there at first, and says its name only. A StatefulSet's pod has the same name where it has
 * moved to: that one is not found (404), for which drains go on to the next.
 */
import {
  ANNOTATION,
  isFinal,
  MIGRATION_LABEL,
  type Migration,
  type Policy,
  SERVING,
} from "../../api/resources.ts";
import { conditionOf, isActive, type Node, type Pod } from "../client/objects.ts";
import {
  createdMs,
  endedMs,
  evictionCause,
  highestNumber,
  isAbout,
  isWithdrawn,
  type NewMigration,
  newMigration,
} from "../triggers/caused.ts";

export interface EvictionFacts {
  /** null: it is not there */
  pod: Pod | null;
  /** this very pod is meant, by its uid */
  isByUid: boolean;
  /** of its namespace */
  migrations: Migration[];
  policy: Policy;
  /** that it is on; null: not known */
  node: Node | null;
  /** that asks for it; null: a call of pods/eviction, of which each is the first */
  request: { eviction: string; sinceMs: number } | null;
}

export type EvictionDecision =
  | { isAllowed: true; reason: string }
  | {
      isAllowed: false;
      /** another pod was meant, which is no longer there */
      isGone: boolean;
      /** somebody else is to move it */
      isOthers: boolean;
      message: string;
      /** to be made; null: there is one, or none is wanted */
      migration: NewMigration | null;
      /** annotation of the pod: since when it has been evicted, and when last */
      evicted: string;
    };

export const EVICTED = "holdfast.dev/evicted";
/** kubectl asks every 5 s: after so long without a question another eviction begins */
const FORGOTTEN_MS = 120_000;
/** after one that was aborted; and after one that failed, where only a move will do */
const AGAIN_MS = 30_000;
/** before the first question: whoever asks seldom (the descheduler, every 5 min) begins anew each time, and is to be told once only */
const OLD_MS = 600_000;
/** whoever has asked for the pod of that name on another node asks no more after so long; kubectl does every 5 s */
const MOVED_MS = 60_000;

export function decideEviction(facts: EvictionFacts, nowMs: number): EvictionDecision {
  const { pod, migrations, policy, node } = facts;
  if (pod === null) return allowed("there is no such pod");
  const { metadata, status } = pod;
  if (metadata.annotations?.[ANNOTATION.injected] !== "1") return allowed("it was not injected");
  if (!isActive(pod) || status?.phase === "Pending") return allowed("it does not run");
  const { evictionStrategy: strategy, evictionDeadlineSeconds: seconds } = policy;
  if (strategy === "None") return allowed("the policy says None");

  const sinceMs = Math.min(sinceOf(pod, nowMs), facts.request?.sinceMs ?? nowMs);
  if (nowMs - sinceMs >= seconds * 1_000) return allowed(`it was denied for ${seconds} s`);
  const deny = (
    message: string,
    migration: NewMigration | null = null,
  ): EvictionDecision & { isAllowed: false } => ({
    isAllowed: false,
    isGone: false,
    isOthers: false,
    message,
    migration,
    evicted: `${new Date(sinceMs).toISOString()} ${new Date(nowMs).toISOString()}`,
  });

  const cameBy = migrations.find((one) => hasBrought(one, pod, nowMs));
  if (cameBy !== undefined) {
    const { origin, target } = cameBy.status;
    const message = `pod ${metadata.name} has moved from node ${origin?.node ?? "?"} to node ${target?.node ?? "?"}`;
    // of the node that it has come to it is to go, too
    const isMeant = facts.isByUid || node?.spec.unschedulable === true;
    if (!isMeant) return { ...deny(message), isGone: true };
    if (!isFinal(cameBy.status.phase)) return deny(message);
  }
  const own = migrations
    .filter((one) => isAbout(one, pod))
    .sort((one, other) => createdMs(one) - createdMs(other));
  const active = own.find((one) => !isFinal(one.status.phase) && one.spec.dryRun !== true);
  if (metadata.annotations?.[ANNOTATION.standby] === "true") {
    const waited = migrations.find((one) => one.metadata.uid === metadata.labels?.[MIGRATION_LABEL]);
    return waited === undefined || isFinal(waited.status.phase)
      ? allowed("it waits for nothing")
      : deny(`it waits for the application of pod ${waited.spec.pod} (${shown(waited)})`);
  }
  if (active !== undefined) return deny(`its application is being moved (${shown(active)})`);
  const last = own.findLast((one) => one.spec.dryRun !== true);
  if (last?.status.phase === "Succeeded") return allowed("its application has moved");
  const serving = conditionOf(pod, SERVING);
  if (serving !== null && serving.status !== "True") return allowed("it has no application");
  if (strategy === "External")
    return { ...deny("somebody else is to move its application (policy: External)"), isOthers: true };
  const cause = evictionCause(pod, node, facts.request?.eviction ?? null);
  const made = (): NewMigration => newMigration(pod, highestNumber(pod, own), cause);
  if (last === undefined || isWithdrawn(last) || saysNothing(last, metadata.uid, sinceMs))
    return deny("its application is going to be moved", made());
  const isAgain = nowMs - endedMs(last) >= AGAIN_MS;
  // who does not want it moved does not want its clients cut off: the pod goes as it is with the policy None
  if (last.status.phase === "Aborted")
    return deny(
      `Migration ${last.metadata.name} was aborted, and another is made ${AGAIN_MS / 1_000} s after it while the eviction is asked for (policy None: the pod goes as it is)`,
      isAgain ? made() : null,
    );
  if (strategy === "LiveMigrateIfPossible")
    return allowed(`its application cannot be moved: ${last.status.reason}: ${last.status.message}`);
  const message = `its application cannot be moved, and the policy is LiveMigrate: ${last.status.reason}: ${last.status.message}`;
  return deny(message, isAgain ? made() : null);
}

function allowed(reason: string): EvictionDecision {
  return { isAllowed: true, reason };
}

/**
 * One that has not moved the application, and yet says nothing of whether it can be moved now: it ended long before anybody asked, or went
 * to where somebody had chosen, or was about whatever pod had the name before.
 */
function saysNothing(last: Migration, uid: string, sinceMs: number): boolean {
  if (last.spec.target !== undefined || endedMs(last) < sinceMs - OLD_MS) return true;
  return last.spec.podUid !== uid && createdMs(last) < sinceMs;
}

/** The pod has its name, and its application, of one that was on another node a moment ago. */
function hasBrought(migration: Migration, { metadata: { uid } }: Pod, nowMs: number): boolean {
  const { phase, origin, target } = migration.status;
  if (origin === undefined || target?.podUid !== uid) return false;
  return phase === "Adopting" || (phase === "Succeeded" && nowMs - endedMs(migration) < MOVED_MS);
}

function sinceOf({ metadata }: Pod, nowMs: number): number {
  const [since = "", last = ""] = (metadata.annotations?.[EVICTED] ?? "").split(" ");
  const isSame = nowMs - Date.parse(last) < FORGOTTEN_MS;
  return isSame && !Number.isNaN(Date.parse(since)) ? Date.parse(since) : nowMs;
}

function shown({ metadata: { name }, status: { phase = "Pending", target, message } }: Migration): string {
  const to = target?.node === undefined ? "" : ` to node ${target.node}`;
  return `Migration ${name}: ${phase}${to}${message === undefined ? "" : `: ${message}`}`;
}
