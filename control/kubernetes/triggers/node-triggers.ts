/** Pure: which pods of a node are to be moved since its taints or conditions say so, smallest first and some at a time. */
import {
  ANNOTATION,
  isFinal,
  type Migration,
  type Policy,
  SERVING,
  type Trigger,
} from "../../api/resources.ts";
import { isActive, isTrue, type Node, type Pod } from "../client/objects.ts";
import {
  againMs,
  bySize,
  causeFor,
  causeOf,
  highestNumber,
  isAbout,
  isWithdrawn,
  type NewMigration,
  newMigration,
} from "./caused.ts";

export interface NodeFacts {
  node: Node;
  /** on it, of all namespaces */
  pods: Pod[];
  /** of all namespaces */
  migrations: Migration[];
  /** of a namespace */
  policyOf(namespace: string): Policy;
}

/** The first that holds, for people, e.g. "taint karpenter.sh/disrupted"; null: none */
export function triggerOf(node: Node, triggers: readonly Trigger[]): string | null {
  for (const { taint, condition } of triggers) {
    const found = (node.spec.taints ?? []).find(
      ({ key, value = "", effect }) =>
        key === taint?.key &&
        (taint.value === undefined || taint.value === value) &&
        (taint.effect === undefined || taint.effect === effect),
    );
    if (found !== undefined) return `taint ${found.key}`;
    const { type, status = "True" } = condition ?? {};
    if ((node.status?.conditions ?? []).some((one) => one.type === type && one.status === status))
      return `condition ${type}${status === "True" ? "" : `=${status}`}`;
  }
  return null;
}

/**
 * Those to be made now. The next ones are made when these have ended, so that a node is emptied in order.
 * Nothing of a node that is not Ready: its agent is not there to move anything.
 */
export function nodeMigrations(
  { node, pods, migrations, policyOf }: NodeFacts,
  nowMs: number,
): NewMigration[] {
  if (!isTrue(node, "Ready")) return [];
  const open = migrations.filter(({ status }) => !isFinal(status.phase));
  const wanted: NewMigration[] = [];
  for (const pod of pods) {
    const { namespace = "default" } = pod.metadata;
    const policy = policyOf(namespace);
    const trigger = movesBefore(policy) ? triggerOf(node, policy.triggers) : null;
    if (trigger === null || !hasApplication(pod)) continue;
    const own = migrations.filter((one) => one.metadata.namespace === namespace && isAbout(one, pod));
    const tried = own.filter(({ spec }) => spec.dryRun !== true);
    if (tried.some(({ status: { phase } }) => !isFinal(phase) || phase === "Succeeded")) continue;
    const failed = tried.filter((one) => !isWithdrawn(one));
    const last = failed.at(-1);
    if (last !== undefined && nowMs < Math.max(...failed.map((one) => againMs(one, failed.length)))) continue;
    wanted.push(newMigration(pod, highestNumber(pod, own), causeFor(pod, "node", trigger)));
  }
  wanted.sort((one, other) => bySize(one.cause, other.cause));
  const free = new Map<string, number>();
  return wanted.filter(({ namespace }) => {
    const left = free.get(namespace) ?? policyOf(namespace).movesPerNode - touching(open, namespace, node);
    free.set(namespace, left - 1);
    return left > 0;
  });
}

/** What the policy does with an eviction it does before one, too. */
function movesBefore({ evictionStrategy }: Policy): boolean {
  return evictionStrategy === "LiveMigrate" || evictionStrategy === "LiveMigrateIfPossible";
}

function hasApplication(pod: Pod): boolean {
  const { annotations = {} } = pod.metadata;
  return (
    annotations[ANNOTATION.injected] === "1" &&
    annotations[ANNOTATION.standby] !== "true" &&
    isActive(pod) &&
    pod.status?.phase === "Running" &&
    isTrue(pod, SERVING)
  );
}

function touching(open: Migration[], namespace: string, { metadata: { name } }: Node): number {
  return open.filter(
    (one) =>
      one.metadata.namespace === namespace &&
      (one.status.source?.node === name || one.status.target?.node === name || causeOf(one)?.node === name),
  ).length;
}
