/** What both ways to evict a pod have in common: what the decision is made of is read, and what it says is done. */
import { MIGRATION_LABEL, migrationsIn, policiesIn, policyOf } from "../../api/resources.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import { isActive, type KubernetesObject, type Node, type Pod } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { manifestOf } from "../triggers/caused.ts";
import { decideEviction, EVICTED, type EvictionDecision, type EvictionFacts } from "./decision.ts";
import { guardName } from "./guard.ts";

export type EvictionCalls = Pick<KubernetesApi, "find" | "list" | "create" | "patch" | "delete">;

export interface Asked {
  namespace: string;
  name: string;
  /** that the pod is to have; absent: whichever has the name */
  uid?: string;
  request: EvictionFacts["request"];
}

/** @returns the pod that is meant, where it is there @throws HoldfastError of the client */
export async function ask(
  api: EvictionCalls,
  { namespace, name, uid, request }: Asked,
  nowMs: number,
): Promise<{ evicted: Pod | null; decision: EvictionDecision }> {
  const found = await api.find<Pod>(pathOf("pods", { namespace, name }));
  const evicted = uid === undefined || found?.metadata.uid === uid ? found : null;
  const migrations = await api.list<KubernetesObject>(pathOf("migrations", { namespace }));
  const policies = await api.list<KubernetesObject>(pathOf("continuitypolicies", { namespace }));
  const nodeName = evicted?.spec.nodeName;
  const decision = decideEviction(
    {
      pod: evicted,
      isByUid: uid !== undefined,
      migrations: migrationsIn(migrations.items),
      policy: policyOf(policiesIn(policies.items)),
      node: nodeName === undefined ? null : await api.find<Node>(pathOf("nodes", { name: nodeName })),
      request,
    },
    nowMs,
  );
  return { evicted, decision };
}

/** Makes the Migration, and notes in the pod that its eviction was denied. */
export async function carryOut(
  api: Pick<KubernetesApi, "create" | "patch">,
  { metadata: { namespace = "default", name, uid } }: Pod,
  { migration, evicted }: EvictionDecision & { isAllowed: false },
): Promise<void> {
  await api
    .patch(pathOf("pods", { namespace, name }), { metadata: { uid, annotations: { [EVICTED]: evicted } } })
    // it has gone, or is another: the next question finds that out
    .catch((error: unknown) => ignoring(error, "KUBERNETES_NOT_FOUND", "KUBERNETES_CONFLICT"));
  if (migration === null) return;
  await api
    .create(pathOf("migrations", { namespace }), manifestOf(migration))
    // asked twice at once
    .catch((error: unknown) => ignoring(error, "KUBERNETES_EXISTS"));
}

/** The API server is about to look at budgets: not for a pod that does not run, and the budget has others to keep. */
export async function unguard(api: Pick<KubernetesApi, "delete">, pod: Pod): Promise<void> {
  const { namespace = "default", labels } = pod.metadata;
  const uid = labels?.[MIGRATION_LABEL];
  if (uid === undefined || !isActive(pod) || pod.status?.phase === "Pending") return;
  await api.delete(pathOf("poddisruptionbudgets", { namespace, name: guardName(uid) }));
}

function ignoring(error: unknown, ...codes: string[]): void {
  if (!isCode(error, ...codes)) throw error;
}
