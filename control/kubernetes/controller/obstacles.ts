/** Pure: why a pod is not moved at all, or not yet. */
import { ANNOTATION, isFinal, isUnderWay, MIGRATION_LABEL, type Migration } from "../../api/resources.ts";
import { isSelected, type Node, type Pod, type StatefulSet, type Volume } from "../client/objects.ts";
import { bySize, type Cause, causeOf } from "../triggers/caused.ts";
import type { Observed, Owner, Reason } from "./observed.ts";
import { canTake, isReachable, isReady } from "./places.ts";
import { isStandby, listensAtNode, schedulingOf } from "./standby-pod.ts";
import { REVISION, revisionAnew, waitedFor } from "./stateful-set.ts";

/** what kubelet mounts anew in the standby, what goes along (emptyDir), and what is the same from every node */
const VOLUMES_THAT_FOLLOW = new Set([
  "emptyDir",
  "configMap",
  "secret",
  "projected",
  "downwardAPI",
  "csi",
  "image",
  "nfs",
  "cephfs",
  "glusterfs",
  "azureFile",
]);
/** it waits for its turn, and for nothing else */
const QUEUED = "Queued";
const HOUR_MS = 3_600_000;
const SHARED_MODES = new Set(["ReadWriteMany", "ReadOnlyMany"]);

/** Nothing but another pod, or another Migration, changes it. */
export function refusalOf(observed: Observed): Reason | null {
  const { source, migration, claims, nodes } = observed;
  if (source === null)
    return { reason: "PodNotFound", message: `there is no pod ${migration.spec.pod} in this namespace` };
  return (
    podRefusal(source) ??
    ownerRefusal(observed) ??
    volumeRefusal(source, claims, nodes.get(migration.spec.target?.node ?? "") ?? null) ??
    targetRefusal(source, observed) ??
    placesRefusal(source, observed)
  );
}

function podRefusal(source: Pod): Reason | null {
  const { metadata, spec, status } = source;
  if (metadata.deletionTimestamp !== undefined)
    return { reason: "SourceDeleted", message: `pod ${metadata.name} is being deleted` };
  if (metadata.annotations?.["kubernetes.io/config.mirror"] !== undefined)
    return { reason: "StaticPod", message: `pod ${metadata.name} is a file of its node, and stays there` };
  if (metadata.annotations?.[ANNOTATION.injected] !== "1")
    return {
      reason: "NotInjected",
      message: `pod ${metadata.name} has no Holdfast in it: label it, or its namespace, holdfast.dev/inject=enabled and create it again`,
    };
  if (isStandby(source))
    return { reason: "IsStandby", message: `pod ${metadata.name} waits for an application and has none` };
  if (spec.hostNetwork === true)
    return { reason: "HostNetwork", message: `pod ${metadata.name} has the network of its node` };
  if (status?.phase === "Succeeded" || status?.phase === "Failed")
    return { reason: "PodEnded", message: `pod ${metadata.name} has ended (${status.phase})` };
  return null;
}

function ownerRefusal({ owner, source }: Observed): Reason | null {
  if (owner.kind === "none") return null;
  const { kind, name } = owner.reference;
  if (owner.kind === "other")
    return {
      reason: "OwnerUnknown",
      message: `pods of a ${kind} (${name}) are not moved: it would make another`,
    };
  if (owner.kind === "stateful-set") return statefulSetRefusal(owner, source);
  if (owner.replicaSet === null)
    return { reason: "OwnerDeleted", message: `ReplicaSet ${name} has gone, and takes its pods along` };
  const above = owner.replicaSet.metadata.ownerReferences?.find(({ controller }) => controller === true);
  if (above !== undefined && above.kind !== "Deployment")
    return {
      reason: "OwnerUnknown",
      message: `ReplicaSet ${name} is that of a ${above.kind} (${above.name}), whose roll-outs are not known here`,
    };
  return null;
}

type OfSet = Owner & { kind: "stateful-set" };

function statefulSetRefusal({ reference: { name }, statefulSet }: OfSet, source: Pod | null): Reason | null {
  if (statefulSet === null)
    return { reason: "OwnerDeleted", message: `StatefulSet ${name} has gone, and takes its pods along` };
  if (
    source === null ||
    statefulSet.spec.updateStrategy?.type !== "OnDelete" ||
    isAsAnew(statefulSet, source)
  )
    return null;
  return {
    reason: "Outdated",
    message: `StatefulSet ${name} has another template since, and makes pod ${source.metadata.name} anew of it whenever it is deleted (updateStrategy OnDelete)`,
  };
}

/** Made anew, it is of the same template. */
function isAsAnew(set: StatefulSet, pod: Pod): boolean {
  return revisionAnew(set, pod.metadata.name) === pod.metadata.labels?.[REVISION];
}

/** @param target null: not known */
function volumeRefusal(source: Pod, claims: Observed["claims"], target: Node | null): Reason | null {
  for (const volume of source.spec.volumes ?? []) {
    const why = volumeProblem(volume, claims, target);
    if (why !== null)
      return { reason: "VolumeCannotFollow", message: `volume ${volume.name} cannot follow the pod: ${why}` };
  }
  return null;
}

/** What of a pod's own volumes keeps it on its node; claims are objects of their own, and not looked at. */
export function fixedVolume(pod: Pod): Reason | null {
  const volumes = (pod.spec.volumes ?? []).filter((volume) => volume.persistentVolumeClaim === undefined);
  return volumeRefusal({ ...pod, spec: { ...pod.spec, volumes } }, new Map(), null);
}

function volumeProblem(volume: Volume, claims: Observed["claims"], target: Node | null): string | null {
  const { name: _, persistentVolumeClaim, ...source } = volume;
  if (persistentVolumeClaim === undefined) {
    const [kind = "unknown"] = Object.keys(source);
    if (kind === "hostPath") return "it is a folder of the node (hostPath)";
    if (kind === "ephemeral") return "it is a claim of this pod alone (ephemeral)";
    return VOLUMES_THAT_FOLLOW.has(kind) ? null : `it is of the kind ${kind}`;
  }
  const claim = claims.get(persistentVolumeClaim.claimName);
  if (claim === undefined || claim === null) return `there is no claim ${persistentVolumeClaim.claimName}`;
  const modes = claim.spec.accessModes ?? [];
  if (target !== null && !isReachable(claim, target))
    return `claim ${claim.metadata.name} is bound to a volume that node ${target.metadata.name} does not reach (nodeAffinity)`;
  if (modes.some((mode) => SHARED_MODES.has(mode))) return null;
  return `claim ${claim.metadata.name} can be mounted by one node at a time (${modes.join(", ")}), and both pods need it`;
}

function targetRefusal(source: Pod, { migration, nodes }: Observed): Reason | null {
  const name = migration.spec.target?.node;
  if (name === undefined) return null;
  if (name === source.spec.nodeName)
    return { reason: "AlreadyThere", message: `pod ${source.metadata.name} is on node ${name}` };
  const node = nodes.get(name);
  if (node === undefined) return { reason: "TargetNotFound", message: `there is no node ${name}` };
  if (node.spec.unschedulable === true)
    return { reason: "TargetCordoned", message: `node ${name} is cordoned: kubectl uncordon ${name}` };
  return null;
}

/** Two pods of one name cannot be: the application has to be somewhere while its own pod is made anew. */
function placesRefusal(source: Pod, { owner, migration, nodes, claims }: Observed): Reason | null {
  if (owner.kind !== "stateful-set") return null;
  const { node: target, nodeSelector: matchLabels = {} } = migration.spec.target ?? {};
  const asWritten = { ...source.spec, nodeSelector: schedulingOf(source).nodeSelector ?? {} };
  const taken = new Set([source, ...(listensAtNode(source.metadata) ? owner.pods : [])].map(nodeOf));
  const able = [...nodes.values()].filter(
    (node) => !taken.has(node.metadata.name) && canTake(node, asWritten, claims.values()),
  );
  // a target that is not Ready may be so soon
  const targets =
    target === undefined
      ? able.filter(({ metadata }) => isSelected({ matchLabels }, metadata.labels))
      : [nodes.get(target)];
  if (targets.some((one) => able.some((other) => other !== one))) return null;
  const where = target === undefined ? "the one that it goes to" : `node ${target}`;
  return {
    reason: "NoThirdNode",
    message: `pod ${source.metadata.name} keeps its name, so its application waits on another node until the pod is made anew: there is none that can take it beside node ${source.spec.nodeName ?? "?"} and ${where} (Ready, and without another pod that listens at its ports)`,
  };
}

function nodeOf({ spec }: Pod): string | undefined {
  return spec.nodeName;
}

/** It may go on when something else has changed. */
export function waitOf(observed: Observed, nowMs: number): Reason | null {
  const { source, owner, migration, nodes } = observed;
  if (source === null) return null;
  if (source.spec.nodeName === undefined || source.status?.phase !== "Running")
    return { reason: "SourceNotRunning", message: `pod ${source.metadata.name} does not run yet` };
  const target = migration.spec.target?.node;
  if (target !== undefined && !isReady(nodes.get(target)))
    return { reason: "TargetNotReady", message: `node ${target} is not Ready` };
  return (
    anotherMigration(observed, source) ??
    tooOften(observed, source, nowMs) ??
    tooMany(observed, source.spec.nodeName) ??
    ownerWait(owner, source)
  );
}

/**
 * The label on the pod decides, also of the one that has just brought its application, and finds the pod by it until it is over; and of those
 * that have not begun, the older one goes first.
 */
function anotherMigration({ migration, others }: Observed, source: Pod): Reason | null {
  const claimed = source.metadata.labels?.[MIGRATION_LABEL];
  const first = others.find(
    (other) =>
      !isFinal(other.status.phase) &&
      (other.metadata.uid === claimed ||
        (claimed === undefined && other.spec.pod === migration.spec.pod && isBefore(other, migration))),
  );
  if (first === undefined) return null;
  return { reason: "AnotherMigration", message: `Migration ${first.metadata.name} is about the same pod` };
}

/** What nobody has asked for by hand waits until it is due. */
function tooOften({ migration, others, policy }: Observed, source: Pod, nowMs: number): Reason | null {
  if (causeOf(migration) === null) return null;
  const movedMs = Date.parse(source.metadata.annotations?.[ANNOTATION.moved] ?? "");
  const { cooldownSeconds, movesPerHour } = policy;
  if (nowMs < movedMs + cooldownSeconds * 1_000)
    return {
      reason: "Cooldown",
      message: `its application has moved already at ${new Date(movedMs).toISOString()}: not again within ${cooldownSeconds} s (cooldownSeconds of the policy)`,
    };
  const begun = others.filter((other) => nowMs - (begunMs(other) ?? Number.NEGATIVE_INFINITY) < HOUR_MS);
  if (begun.length < movesPerHour) return null;
  return {
    reason: "Budget",
    message: `${begun.length} moves of this namespace began within the last hour, as many as the policy allows`,
  };
}

function begunMs({ status: { phaseTransitionTimestamps = [] } }: Migration): number | null {
  const found = phaseTransitionTimestamps.find(({ phase }) => phase === "Preparing");
  return found === undefined ? null : Date.parse(found.timestamp);
}

/** Of those that have begun; and of those of a node that wait for nothing but their turn, the small ones go first. */
function tooMany(observed: Observed, sourceNode: string): Reason | null {
  const { migration, others, policy, elsewhere } = observed;
  const queued = (message: string): Reason => ({ reason: QUEUED, message });
  const underWay = others.filter(isUnderWay);
  if (underWay.length + elsewhere >= policy.movesPerCluster)
    return queued(
      `${underWay.length + elsewhere} moves are under way in the cluster, as many as the policy allows`,
    );
  const touching = (node: string): number =>
    underWay.filter(({ status: { source, target } }) => source?.node === node || target?.node === node)
      .length;
  for (const node of [sourceNode, migration.spec.target?.node])
    if (node !== undefined && touching(node) >= policy.movesPerNode)
      return queued(
        `${policy.movesPerNode} moves from or to node ${node} are under way, as many as the policy allows`,
      );
  const before = smallerOnes(observed, sourceNode).length;
  if (before < policy.movesPerNode - touching(sourceNode)) return null;
  return queued(`${before} smaller applications leave node ${sourceNode} first`);
}

function smallerOnes({ migration, others }: Observed, node: string): Migration[] {
  const own = causeOf(migration);
  if (own === null) return [];
  const isFirst = (other: Migration, cause: Cause): boolean => {
    const difference = bySize(cause, own);
    return difference < 0 || (difference === 0 && isBefore(other, migration));
  };
  return others.filter((other) => {
    const { phase = "Pending", reason = QUEUED } = other.status;
    const cause = causeOf(other);
    return (
      // what waits for something else keeps nobody waiting
      phase === "Pending" &&
      reason === QUEUED &&
      other.spec.dryRun !== true &&
      cause !== null &&
      cause.node === node &&
      isFirst(other, cause)
    );
  });
}

function isBefore(one: Migration, other: Migration): boolean {
  const [a, b] = [one.metadata, other.metadata];
  return a.creationTimestamp === b.creationTimestamp
    ? a.name < b.name
    : Date.parse(a.creationTimestamp) < Date.parse(b.creationTimestamp);
}

function ownerWait(owner: Owner, source: Pod): Reason | null {
  if (owner.kind !== "stateful-set") return rollout(owner);
  return templateWait(owner, source) ?? anewWait(owner, source);
}

/** A StatefulSet would make this pod anew of another template. */
export function templateWait({ reference: { name }, statefulSet }: OfSet, pod: Pod): Reason | null {
  if (statefulSet === null) return null;
  const { metadata, status = {} } = statefulSet;
  const isSeen = (status.observedGeneration ?? 0) >= (metadata.generation ?? 0);
  if (isSeen && isAsAnew(statefulSet, pod)) return null;
  return { reason: "Rollout", message: `StatefulSet ${name} is being rolled out` };
}

/** It would not make it at all for now, or without what Holdfast needs in it. */
export function anewWait(owner: OfSet, pod: Pod): Reason | null {
  const {
    reference: { name },
    statefulSet,
    pods,
    isInjected,
  } = owner;
  if (statefulSet === null) return null;
  const [lower] = waitedFor(statefulSet, pods, pod.metadata.name);
  if (lower !== undefined)
    return {
      reason: "ReplicaNotReady",
      message: `pod ${lower} is not Ready, and StatefulSet ${name} makes no pod after it before it is (OrderedReady)`,
    };
  if (isInjected === false)
    return {
      reason: "WebhookSilent",
      message: `a pod that StatefulSet ${name} makes now would not be injected: does the webhook run?`,
    };
  return seenWait(owner);
}

/** Nobody would make it the standby of the application that is in another pod: it would be deleted, and made again, for ever. */
export function seenWait({ reference: { name }, isSeen }: OfSet): Reason | null {
  if (isSeen !== false) return null;
  return {
    reason: "OrdinalSilent",
    message: `the API server does not ask ordinals.holdfast.dev about a pod that StatefulSet ${name} makes now: ${WHY_UNSEEN}`,
  };
}

export const WHY_UNSEEN =
  "is its MutatingWebhookConfiguration there (that of the chart's controller), does the controller run, and is the namespace neither kube-system nor Holdfast's own?";

/** A ReplicaSet that is on its way out deletes what it is given, as it would have deleted the source. */
export function rollout(owner: Owner): Reason | null {
  if (owner.kind !== "replica-set" || owner.deployment === null) return null;
  const { metadata, spec, status = {} } = owner.deployment;
  const wanted = spec.replicas ?? 1;
  const isOver =
    (status.observedGeneration ?? 0) >= (metadata.generation ?? 0) &&
    status.updatedReplicas === wanted &&
    status.replicas === wanted &&
    (owner.replicaSet?.spec.replicas ?? 0) === wanted;
  return isOver ? null : { reason: "Rollout", message: `Deployment ${metadata.name} is being rolled out` };
}
