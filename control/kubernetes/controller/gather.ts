/** Reads what the plan for one Migration is made of: from the API server, not from what a watch has told, so that it is never old. */
import {
  continuityPolicy,
  isUnderWay,
  MIGRATION_LABEL,
  type Migration,
  migration as migrationSchema,
  policyOf,
} from "../../api/resources.ts";
import type { KubernetesApi } from "../client/api.ts";
import {
  controllerOf,
  type Deployment,
  type KubernetesObject,
  type Node,
  type OwnerReference,
  type PersistentVolumeClaim,
  type Pod,
  type ReplicaSet,
} from "../client/objects.ts";
import { pathOf, selectorText } from "../client/paths.ts";
import type { Observed, Owner } from "./observed.ts";
import { becomesOf, isStandby, standbyName } from "./standby-pod.ts";

/** What of the client it needs: tests have others. */
export type Calls = Pick<KubernetesApi, "find" | "list" | "create" | "patch" | "delete">;

/** @returns null: the Migration is not there */
export async function gather(api: Calls, namespace: string, name: string): Promise<Observed | null> {
  const found = await api.find<object>(pathOf("migrations", { namespace, name }));
  if (found === null) return null;
  const migration = migrationSchema.parse(found);
  const { status, spec, metadata } = migration;
  const labelled = await api.list<Pod>(pathOf("pods", { namespace }), {
    labelSelector: `${MIGRATION_LABEL}=${metadata.uid}`,
  });
  const source = await api.find<Pod>(pathOf("pods", { namespace, name: spec.pod }));
  // after the source: whoever has labelled it was there before
  const isBefore = status.phase === undefined || status.phase === "Pending";
  const all = await migrationsOf(api, isBefore ? null : namespace);
  const others = all.filter((one) => one.metadata.namespace === namespace);
  const policies = await api.list<KubernetesObject>(pathOf("continuitypolicies", { namespace }));

  const candidates = labelled.items.filter(({ metadata: { uid } }) => uid !== source?.metadata.uid);
  const reference = ownerReferenceOf(source, candidates);
  const standby =
    chosen(migration, candidates) ?? (await namesake(api, namespace, migration, reference?.name ?? null));
  const nodes = new Map<string, Node>();
  const named = [source?.spec.nodeName, spec.target?.node, standby?.spec.nodeName, status.source?.node];
  for (const node of new Set(named.filter((one) => one !== undefined))) {
    const read = await api.find<Node>(pathOf("nodes", { name: node }));
    if (read !== null) nodes.set(node, read);
  }
  return {
    migration,
    policy: policyOf(policies.items.map((policy) => continuityPolicy.parse(policy))),
    source,
    standby,
    strays: candidates.filter((pod) => pod !== standby),
    owner: await ownerOf(api, namespace, reference),
    nodes,
    claims: await claimsOf(api, namespace, source),
    others: others.filter((other) => other.metadata.uid !== metadata.uid),
    elsewhere: all.filter((one) => one.metadata.namespace !== namespace && isUnderWay(one)).length,
  };
}

/** @param namespace null: of all */
async function migrationsOf(api: Calls, namespace: string | null): Promise<Migration[]> {
  const { items } = await api.list<KubernetesObject>(pathOf("migrations", { namespace }));
  return items.flatMap((item) => {
    const parsed = migrationSchema.safeParse(item);
    return parsed.success ? [parsed.data] : [];
  });
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
  ownerName: string | null,
): Promise<Pod | null> {
  const { phase, target } = migration.status;
  if (phase !== "Preparing" || target !== undefined) return null;
  return await api.find<Pod>(pathOf("pods", { namespace, name: standbyName(migration, ownerName) }));
}

/** The source's; where it has gone, the one that the standby is to have. */
function ownerReferenceOf(source: Pod | null, candidates: Pod[]): OwnerReference | null {
  if (source !== null) return controllerOf(source);
  return (
    candidates.map((pod) => becomesOf(pod)?.owner ?? controllerOf(pod)).find((owner) => owner !== null) ??
    null
  );
}

async function ownerOf(api: Calls, namespace: string, reference: OwnerReference | null): Promise<Owner> {
  if (reference === null) return { kind: "none" };
  if (reference.kind !== "ReplicaSet" || !reference.apiVersion.startsWith("apps/"))
    return { kind: "other", reference };
  const read = await api.find<ReplicaSet>(pathOf("replicasets", { namespace, name: reference.name }));
  const replicaSet = read?.metadata.uid === reference.uid ? read : null;
  const above = replicaSet === null ? null : controllerOf(replicaSet);
  const deployment =
    above?.kind === "Deployment"
      ? await api.find<Deployment>(pathOf("deployments", { namespace, name: above.name }))
      : null;
  const pods =
    replicaSet === null
      ? []
      : (
          await api.list<Pod>(pathOf("pods", { namespace }), {
            labelSelector: selectorText(replicaSet.spec.selector),
          })
        ).items.filter((pod) => controllerOf(pod)?.uid === reference.uid);
  return { kind: "replica-set", reference, replicaSet, deployment, pods };
}

async function claimsOf(
  api: Calls,
  namespace: string,
  source: Pod | null,
): Promise<ReadonlyMap<string, PersistentVolumeClaim | null>> {
  const claims = new Map<string, PersistentVolumeClaim | null>();
  for (const { persistentVolumeClaim } of source?.spec.volumes ?? []) {
    const name = persistentVolumeClaim?.claimName;
    if (name === undefined) continue;
    claims.set(
      name,
      await api.find<PersistentVolumeClaim>(pathOf("persistentvolumeclaims", { namespace, name })),
    );
  }
  return claims;
}
