/**
 * Pure: a PodDisruptionBudget for the pods of one Migration, which allows no eviction. Evictions are the webhook's to answer; where none answers
 * in time, the API server goes on without it, and would delete a pod in the middle of its move. The budget is the API server's own to keep
 * (`pods/eviction` is answered with 429, which drains ask again after), and where the webhook allows an eviction it takes the budget away first.
 */
import { API_VERSION, MIGRATION_LABEL, type Migration } from "../../api/resources.ts";

/** More than there can be. A share, or `maxUnavailable`, would have the owners of the pods looked up, and be in doubt where there is none. */
const MIN_AVAILABLE = 2 ** 31 - 1;

/** @param uid of the Migration, which its pods have as {@link MIGRATION_LABEL} */
export function guardName(uid: string): string {
  return `holdfast-${uid}`;
}

export function guardOf({ metadata: { name, uid } }: Migration): object {
  return {
    apiVersion: "policy/v1",
    kind: "PodDisruptionBudget",
    metadata: {
      name: guardName(uid),
      labels: { "app.kubernetes.io/managed-by": "holdfast", [MIGRATION_LABEL]: uid },
      // gone with it, whatever becomes of the controller
      ownerReferences: [{ apiVersion: API_VERSION, kind: "Migration", name, uid }],
    },
    spec: { minAvailable: MIN_AVAILABLE, selector: { matchLabels: { [MIGRATION_LABEL]: uid } } },
  };
}
