/** Reads what the plan for one Migration is made of: from the API server, not from what a watch has told, so that it is never old. */
import { isDeepStrictEqual } from "node:util";
import {
  ANNOTATION,
  FINALIZER,
  isFinal,
  isUnderWay,
  MIGRATION_LABEL,
  type Migration,
  migration as migrationSchema,
  migrationsIn,
  policiesIn,
  policyOf,
} from "../../api/resources.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import {
  controllerOf,
  type Deployment,
  type KubernetesObject,
  type LabelSelector,
  type Node,
  type OwnerReference,
  type PersistentVolume,
  type PersistentVolumeClaim,
  type Pod,
  type ReplicaSet,
  type StatefulSet,
} from "../client/objects.ts";
import { pathOf, selectorText } from "../client/paths.ts";
import { guardName } from "../eviction/guard.ts";
import { type Eviction, isOver } from "../eviction/requests.ts";
import { causeOf } from "../triggers/caused.ts";
import type { Action } from "./next.ts";
import { type Claim, isReturning, type Observed, type Owner } from "./observed.ts";
import { becomesOf, isStandby, isStatefulSet, standbyName } from "./standby-pod.ts";

/** What of the client it needs: tests have others. */
export type Calls = Pick<KubernetesApi, "find" | "list" | "create" | "patch" | "delete">;

/**
 * Side by side what does not depend on each other: one after the other they are most of the time until a move begins.
 * @returns null: the Migration is not there
 */
export async function gather(api: Calls, namespace: string, name: string): Promise<Observed | null> {
  const found = await api.find<object>(pathOf("migrations", { namespace, name }));
  if (found === null) return null;
  const migration = migrationSchema.parse(found);
  const { status, spec, metadata } = migration;
  const { origin } = status;
  const podNamed = (pod: string): Promise<Pod | null> =>
    api.find<Pod>(pathOf("pods", { namespace, name: pod }));
  const [labelled, source, policies, ordinal, isGuarded, isWithdrawn] = await Promise.all([
    api.list<Pod>(pathOf("pods", { namespace }), { labelSelector: `${MIGRATION_LABEL}=${metadata.uid}` }),
    podNamed(status.source?.pod ?? spec.pod),
    api.list<KubernetesObject>(pathOf("continuitypolicies", { namespace })),
    origin === undefined ? null : podNamed(origin.pod),
    guarded(api, migration),
    withdrawn(api, namespace, migration),
  ]);
  const candidates = labelled.items.filter(({ metadata: { uid } }) => uid !== source?.metadata.uid);
  // a pod between that is to stay an ordinary one says nothing of it any more
  const reference = ownerReferenceOf(source, candidates) ?? (ordinal === null ? null : controllerOf(ordinal));
  // about to be deleted, as it was left or was made anew in vain; or the source of a move that has not begun
  const isToBeAnew =
    (status.phase ?? "Pending") === "Pending" ||
    (status.phase === "Preparing" && ordinal !== null && !isStandby(ordinal));
  const ourStandby = chosen(migration, candidates);
  const [rivals, standby, owner, claims] = await Promise.all([
    // after the source: whoever has labelled it was there before
    rivalsOf(api, migration),
    ourStandby ?? namesake(api, namespace, migration, reference),
    ownerOf(api, namespace, reference, isToBeAnew),
    claimsOf(api, namespace, source),
  ]);
  const named = [source?.spec.nodeName, spec.target?.node, standby?.spec.nodeName, status.source?.node];
  return {
    migration,
    policy: policyOf(policiesIn(policies.items)),
    source,
    standby,
    strays: candidates.filter((pod) => pod !== standby),
    ordinal,
    owner,
    nodes: await nodesOf(api, owner.kind === "stateful-set" ? null : named),
    claims,
    ...rivals,
    isGuarded,
    isWithdrawn,
  };
}

/** @param names null: all there are */
async function nodesOf(
  api: Calls,
  names: readonly (string | undefined)[] | null,
): Promise<ReadonlyMap<string, Node>> {
  const wanted = [...new Set(names ?? [])].filter((one) => one !== undefined);
  const found =
    names === null
      ? (await api.list<Node>(pathOf("nodes"))).items
      : await Promise.all(wanted.map((name) => api.find<Node>(pathOf("nodes", { name }))));
  return new Map(found.flatMap((node) => (node === null ? [] : [[node.metadata.name, node]])));
}

/**
 * As it was read, with the object of an action that came too late as it is now. The rest is as old as it would be had this been read last.
 * @returns null: more has changed than that, so all is to be read
 */
export async function gatherAgain(api: Calls, observed: Observed, action: Action): Promise<Observed | null> {
  const { migration } = observed;
  const { namespace, name } = migration.metadata;
  const isOfPod = action.do === "patch-pod" || action.do === "delete-pod";
  if (!isOfPod && action.do !== "status" && action.do !== "finalizer") return null;
  // also for a pod: another controller may have gone on with it
  const found = await api.find<object>(pathOf("migrations", { namespace, name }));
  const newer = found === null ? null : migrationSchema.parse(found);
  if (newer === null || !isDeepStrictEqual(chooses(newer), chooses(migration))) return null;
  if (!isOfPod) return { ...observed, migration: newer };
  const { uid } = action.pod;
  const now = await api.find<Pod>(pathOf("pods", { namespace, name: action.pod.name }));
  const { source, standby, strays, ordinal, owner } = observed;
  const owned = "pods" in owner ? owner.pods : [];
  const before = [source, standby, ordinal, ...strays, ...owned].find((pod) => pod?.metadata.uid === uid);
  if (now === null || !before || !isDeepStrictEqual(belongs(now), belongs(before))) return null;
  const fresh = <P extends Pod | null>(pod: P): P | Pod => (pod?.metadata.uid === uid ? now : pod);
  return {
    ...observed,
    migration: newer,
    source: fresh(source),
    standby: fresh(standby),
    strays: strays.map(fresh),
    ordinal: fresh(ordinal),
    owner: "pods" in owner ? { ...owner, pods: owned.map(fresh) } : owner,
    // after the pod, as ever
    ...(await rivalsOf(api, newer)),
  };
}

/**
 * After an action on the way to a standby: with what was written as the answer has it, and what else depends on that read again. The rest is as
 * old as it would be had this been read last; nothing is deleted on its word.
 * @param written the answer @returns null: all is to be read
 */
export async function gatherAfter(
  api: Calls,
  observed: Observed,
  action: Action,
  written: KubernetesObject | null,
): Promise<Observed | null> {
  const { migration, source } = observed;
  if (written === null || isReturning(migration)) return null;
  switch (action.do) {
    case "finalizer": {
      const newer = migrationSchema.parse(written);
      if (!isBegun(newer, "Pending")) return null;
      const [isGuarded, rivals] = await Promise.all([guarded(api, newer), rivalsOf(api, newer)]);
      return { ...observed, migration: newer, isGuarded, ...rivals };
    }
    case "patch-pod":
      if (!isBegun(migration, "Pending") || written.metadata.uid !== source?.metadata.uid) return null;
      // after the pod, as ever
      return { ...observed, source: written as Pod, ...(await rivalsOf(api, migration)) };
    case "create-guard":
      return { ...observed, isGuarded: true, ...(await rivalsOf(api, migration)) };
    case "status": {
      const newer = migrationSchema.parse(written);
      const { namespace } = newer.metadata;
      if (observed.standby !== null || !isBegun(newer, "Preparing")) return null;
      const standby = await namesake(api, namespace, newer, ownerReferenceOf(source, []));
      return standby === null ? { ...observed, migration: newer, isGuarded: false } : null;
    }
    default:
      return null;
  }
}

function isBegun({ metadata, status }: Migration, phase: "Pending" | "Preparing"): boolean {
  return metadata.deletionTimestamp === undefined && (status.phase ?? "Pending") === phase;
}

/** What of a Migration says which other objects are read, and what becomes of it. */
function chooses({ metadata: { uid, deletionTimestamp, finalizers }, spec, status }: Migration): object {
  return { uid, deletionTimestamp, finalizers, spec, status };
}

/** What of a pod says what it is to a Migration. */
function belongs({ metadata: { uid, labels, ownerReferences } }: Pod): object {
  return { uid, labels, ownerReferences };
}

async function rivalsOf(
  api: Calls,
  { metadata: { namespace, uid }, status }: Migration,
): Promise<Pick<Observed, "others" | "elsewhere">> {
  const isBefore = status.phase === undefined || status.phase === "Pending";
  const all = await migrationsOf(api, isBefore ? null : namespace);
  return {
    others: all.filter(({ metadata }) => metadata.namespace === namespace && metadata.uid !== uid),
    elsewhere: all.filter((one) => one.metadata.namespace !== namespace && isUnderWay(one)).length,
  };
}

/** Nothing is made before its finalizer is there, and nothing is left when that has gone. */
async function guarded(
  api: Calls,
  { metadata: { namespace, uid, finalizers }, status: { phase = "Pending" } }: Migration,
): Promise<boolean> {
  if (!finalizers.includes(FINALIZER) || !(phase === "Pending" || isFinal(phase))) return false;
  const path = pathOf("poddisruptionbudgets", { namespace, name: guardName(uid) });
  const found = await api.find<KubernetesObject>(path);
  return found !== null && found.metadata.deletionTimestamp === undefined;
}

async function withdrawn(api: Calls, namespace: string, migration: Migration): Promise<boolean> {
  const cause = causeOf(migration);
  if (cause?.kind !== "request" || isFinal(migration.status.phase)) return false;
  try {
    const path = pathOf("evictions", { namespace, name: cause.trigger });
    return isOver(await api.find<Eviction>(path));
  } catch (error) {
    // not looked at any more, since somebody has changed the setting: then it is not known
    if (isCode(error, "KUBERNETES_FORBIDDEN")) return false;
    throw error;
  }
}

/** @param namespace null: of all */
async function migrationsOf(api: Calls, namespace: string | null): Promise<Migration[]> {
  const { items } = await api.list<KubernetesObject>(pathOf("migrations", { namespace }));
  return migrationsIn(items);
}

function chosen({ status }: Migration, candidates: Pod[]): Pod | null {
  const uid = status.target?.podUid;
  if (uid !== undefined) return candidates.find((pod) => pod.metadata.uid === uid) ?? null;
  return candidates.find(isStandby) ?? null;
}

/** A pod that has the name of the standby that is to be made next: somebody else's, or ours since a moment ago. */
async function namesake(
  api: Calls,
  namespace: string,
  migration: Migration,
  owner: OwnerReference | null,
): Promise<Pod | null> {
  const { phase, target, origin } = migration.status;
  if (phase !== "Preparing" || target !== undefined || origin !== undefined) return null;
  return await api.find<Pod>(pathOf("pods", { namespace, name: standbyName(migration, owner) }));
}

/** The source's, or that of the pod whose application the source keeps; where it has gone, the one that the standby is to have. */
function ownerReferenceOf(source: Pod | null, candidates: Pod[]): OwnerReference | null {
  if (source !== null) return controllerOf(source) ?? becomesOf(source)?.owner ?? null;
  return (
    candidates.map((pod) => becomesOf(pod)?.owner ?? controllerOf(pod)).find((owner) => owner !== null) ??
    null
  );
}

async function ownerOf(
  api: Calls,
  namespace: string,
  reference: OwnerReference | null,
  isToBeAnew: boolean,
): Promise<Owner> {
  if (reference === null) return { kind: "none" };
  if (isStatefulSet(reference)) {
    const found = await api.find<StatefulSet>(pathOf("statefulsets", { namespace, name: reference.name }));
    const statefulSet = found?.metadata.uid === reference.uid ? found : null;
    const pods =
      statefulSet === null ? [] : await podsOf(api, namespace, reference, statefulSet.spec.selector);
    const admitted =
      statefulSet !== null && isToBeAnew ? await wouldBe(api, namespace, statefulSet, reference) : UNKNOWN;
    return { kind: "stateful-set", reference, statefulSet, pods, ...admitted };
  }
  if (reference.kind !== "ReplicaSet" || !reference.apiVersion.startsWith("apps/"))
    return { kind: "other", reference };
  const read = await api.find<ReplicaSet>(pathOf("replicasets", { namespace, name: reference.name }));
  const replicaSet = read?.metadata.uid === reference.uid ? read : null;
  const above = replicaSet === null ? null : controllerOf(replicaSet);
  const [deployment, pods] = await Promise.all([
    above?.kind === "Deployment"
      ? api.find<Deployment>(pathOf("deployments", { namespace, name: above.name }))
      : null,
    replicaSet === null ? [] : podsOf(api, namespace, reference, replicaSet.spec.selector),
  ]);
  return { kind: "replica-set", reference, replicaSet, deployment, pods };
}

async function podsOf(
  api: Calls,
  namespace: string,
  { uid }: OwnerReference,
  selector: LabelSelector,
): Promise<Pod[]> {
  const { items } = await api.list<Pod>(pathOf("pods", { namespace }), {
    labelSelector: selectorText(selector),
  });
  return items.filter((pod) => controllerOf(pod)?.uid === uid);
}

type Admitted = Pick<Owner & { kind: "stateful-set" }, "isInjected" | "isSeen">;
const UNKNOWN: Admitted = { isInjected: null, isSeen: null };

/**
 * A pod of its template is admitted, and not kept. Unknown: it is refused (a quota has no room for one more), which says nothing of
 * webhooks
 */
async function wouldBe(
  api: Calls,
  namespace: string,
  { metadata, spec: { template, volumeClaimTemplates = [] } }: StatefulSet,
  { apiVersion, kind, name, uid }: OwnerReference,
): Promise<Admitted> {
  const claims = volumeClaimTemplates.map(({ metadata: { name } }) => ({ name, emptyDir: {} }));
  const pod = {
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      ...template.metadata,
      generateName: `${metadata.name}-`,
      annotations: { ...template.metadata?.annotations, [ANNOTATION.seen]: "false" },
      // without blockOwnerDeletion, which would ask for a right to the StatefulSet's finalizers
      ownerReferences: [{ apiVersion, kind, name, uid, controller: true }],
    },
    spec: { ...template.spec, volumes: [...(template.spec.volumes ?? []), ...claims] },
  };
  try {
    const made = await api.create<Pod>(pathOf("pods", { namespace }), pod, { dryRun: "All" });
    const { annotations = {} } = made.metadata;
    return {
      isInjected: annotations[ANNOTATION.injected] !== undefined,
      isSeen: annotations[ANNOTATION.seen] === "true",
    };
  } catch (error) {
    if (isCode(error, "KUBERNETES_FORBIDDEN", "KUBERNETES_INVALID")) return UNKNOWN;
    throw error;
  }
}

async function claimsOf(
  api: Calls,
  namespace: string,
  source: Pod | null,
): Promise<ReadonlyMap<string, Claim | null>> {
  const claims = new Map<string, Claim | null>();
  for (const { persistentVolumeClaim } of source?.spec.volumes ?? []) {
    const name = persistentVolumeClaim?.claimName;
    if (name === undefined) continue;
    const claim = await api.find<PersistentVolumeClaim>(
      pathOf("persistentvolumeclaims", { namespace, name }),
    );
    const { volumeName } = claim?.spec ?? {};
    const volume =
      volumeName === undefined
        ? null
        : await api.find<PersistentVolume>(pathOf("persistentvolumes", { name: volumeName }));
    claims.set(name, claim === null ? null : { ...claim, volume });
  }
  return claims;
}
