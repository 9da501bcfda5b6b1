/**
 * Pure: source and standby of a move are not to be disrupted by what makes nodes fewer meanwhile (Karpenter, Cluster Autoscaler): neither begins
 * to empty a node with such a pod on it. What the pod said of it before is kept, and put back afterwards.
 */
import { ANNOTATION } from "../../api/resources.ts";

const UNDISTURBED: Record<string, string> = {
  "karpenter.sh/do-not-disrupt": "true",
  "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
};

type Annotations = Record<string, string>;

/** To be merged into a pod's annotations. Where it is so already: nothing. */
export function disturbNot(annotations: Annotations): Annotations {
  if (annotations[ANNOTATION.undisturbed] !== undefined) return {};
  const before = Object.keys(UNDISTURBED).map((key) => [key, annotations[key] ?? null]);
  return { ...UNDISTURBED, [ANNOTATION.undisturbed]: JSON.stringify(Object.fromEntries(before)) };
}

/** … when the move is over. null: taken away */
export function disturbAgain(annotations: Annotations): Record<string, string | null> {
  const kept = annotations[ANNOTATION.undisturbed];
  if (kept === undefined) return {};
  const before = readBefore(kept);
  const own = Object.keys(UNDISTURBED)
    // somebody has changed it since: it is theirs
    .filter((key) => annotations[key] === UNDISTURBED[key])
    .map((key) => [key, before[key] ?? null]);
  return { ...Object.fromEntries(own), [ANNOTATION.undisturbed]: null };
}

function readBefore(text: string): Record<string, string | null> {
  try {
    return JSON.parse(text) as Record<string, string | null>;
  } catch {
    return {}; // somebody has written it
  }
}
