/**
 * Pure: what becomes of an eviction (policy/v1) of a pod. One that has an application with clients is denied while it moves:
 * kubectl drain says why, and asks again every five seconds. It is denied with 429 and without `retryAfterSeconds`: with it
 * client-go asks again by itself, silently; any other status ends the drain.
 */
import {
  ANNOTATION,
  isFinal,
  MIGRATION_LABEL,
  type Migration,
  type MigrationSpec,
  type Policy,
  SERVING,
} from "../../api/resources.ts";
import { conditionOf, isActive, type Pod } from "../client/objects.ts";

export interface EvictionFacts {
  /** null: it is not there */
  pod: Pod | null;
  /** of its namespace */
  migrations: Migration[];
  policy: Policy;
}

export interface NewMigration {
  name: string;
  spec: MigrationSpec;
}

export type EvictionDecision =
  | { isAllowed: true; reason: string }
  | {
      isAllowed: false;
      message: string;
      /** to be made; null: there is one, or none is wanted */
      migration: NewMigration | null;
      /** annotation of the pod: since when it has been evicted, and when last */
      evicted: string;
    };

export const EVICTED = "holdfast.dev/evicted";
/** kubectl asks every 5 s: after so long without a question another eviction begins */
const FORGOTTEN_MS = 120_000;
/** where only a move will do, after one that failed */
const AGAIN_MS = 30_000;
const DAY_S = 86_400;
const NAME_MAX = 200;

export function decideEviction({ pod, migrations, policy }: EvictionFacts, nowMs: number): EvictionDecision {
  if (pod === null) return allowed("there is no such pod");
  const { metadata, status } = pod;
  if (metadata.annotations?.[ANNOTATION.injected] !== "1") return allowed("it was not injected");
  if (!isActive(pod) || status?.phase === "Pending") return allowed("it does not run");
  const { evictionStrategy: strategy, evictionDeadlineSeconds: seconds } = policy;
  if (strategy === "None") return allowed("the policy says None");

  const sinceMs = sinceOf(pod, nowMs);
  if (nowMs - sinceMs >= seconds * 1_000) return allowed(`it was denied for ${seconds} s`);
  const deny = (message: string, migration: NewMigration | null = null): EvictionDecision => ({
    isAllowed: false,
    message,
    migration,
    evicted: `${new Date(sinceMs).toISOString()} ${new Date(nowMs).toISOString()}`,
  });

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
  if (strategy === "External") return deny("somebody else is to move its application (policy: External)");
  if (last === undefined || (last.spec.podUid !== metadata.uid && createdMs(last) < sinceMs))
    return deny("its application is going to be moved", made(pod, own.length));
  if (strategy === "LiveMigrateIfPossible")
    return allowed(`its application cannot be moved: ${last.status.reason}: ${last.status.message}`);
  const message = `its application cannot be moved, and the policy is LiveMigrate: ${last.status.reason}: ${last.status.message}`;
  return deny(message, nowMs - endedMs(last) >= AGAIN_MS ? made(pod, own.length) : null);
}

function allowed(reason: string): EvictionDecision {
  return { isAllowed: true, reason };
}

/** The same name for the same pod, so that it is made once however often is asked. */
function made({ metadata: { name, uid } }: Pod, before: number): NewMigration {
  return {
    name: `evict-${name.slice(0, NAME_MAX)}-${uid.slice(0, 8)}${before === 0 ? "" : `-${before + 1}`}`,
    spec: { pod: name, podUid: uid, ttlSecondsAfterFinished: DAY_S },
  };
}

function isAbout({ spec, status }: Migration, { metadata: { name, uid } }: Pod): boolean {
  const meant = status.source?.podUid ?? spec.podUid;
  return spec.pod === name && (meant === undefined || meant === uid);
}

function sinceOf({ metadata }: Pod, nowMs: number): number {
  const [since = "", last = ""] = (metadata.annotations?.[EVICTED] ?? "").split(" ");
  const isSame = nowMs - Date.parse(last) < FORGOTTEN_MS;
  return isSame && !Number.isNaN(Date.parse(since)) ? Date.parse(since) : nowMs;
}

function createdMs({ metadata }: Migration): number {
  return Date.parse(metadata.creationTimestamp);
}

function endedMs({ status, metadata }: Migration): number {
  return Date.parse(status.phaseTransitionTimestamps?.at(-1)?.timestamp ?? metadata.creationTimestamp);
}

function shown({ metadata: { name }, status: { phase = "Pending", target, message } }: Migration): string {
  const to = target?.node === undefined ? "" : ` to node ${target.node}`;
  return `Migration ${name}: ${phase}${to}${message === undefined ? "" : `: ${message}`}`;
}
