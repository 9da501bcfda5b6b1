/** Pure: which nodes can take a pod, as far as the scheduler would say so at once. */
import {
  isSelected,
  isTrue,
  type Node,
  type NodeSelectorRequirement,
  type NodeSelectorTerm,
  type PodSpec,
  type Taint,
  type Toleration,
} from "../client/objects.ts";
import type { Claim } from "./observed.ts";

export function isReady(node: Node | undefined): boolean {
  return isTrue(node ?? null, "Ready");
}

/** Ready, not cordoned, not tainted against it, with the labels that it asks for, and within reach of its volumes. */
export function canTake(node: Node, spec: PodSpec, claims: Iterable<Claim | null>): boolean {
  return (
    isReady(node) &&
    node.spec.unschedulable !== true &&
    (node.spec.taints ?? []).every((taint) => isTolerated(taint, spec.tolerations ?? [])) &&
    isSelected({ matchLabels: spec.nodeSelector ?? {} }, node.metadata.labels) &&
    [...claims].every((claim) => claim === null || isReachable(claim, node))
  );
}

/** The volume may be mounted there: a kubelet refuses others, and the pod would wait for ever. */
export function isReachable({ volume }: Claim, node: Node): boolean {
  const terms = volume?.spec.nodeAffinity?.required?.nodeSelectorTerms;
  return terms === undefined || terms.some((term) => holds(term, node));
}

/** A term without requirements matches nothing (core/v1, NodeSelectorTerm). */
function holds({ matchExpressions = [], matchFields = [] }: NodeSelectorTerm, { metadata }: Node): boolean {
  const fields = { "metadata.name": metadata.name };
  return (
    matchExpressions.length + matchFields.length > 0 &&
    matchExpressions.every((one) => meets(one, metadata.labels ?? {})) &&
    matchFields.every((one) => meets(one, fields))
  );
}

function meets(
  { key, operator, values = [] }: NodeSelectorRequirement,
  labels: Record<string, string>,
): boolean {
  const value = labels[key];
  switch (operator) {
    case "Gt":
      return Number(value) > Number(values[0]);
    case "Lt":
      return Number(value) < Number(values[0]);
    default:
      return isSelected({ matchExpressions: [{ key, operator, values }] }, labels);
  }
}

function isTolerated({ key, value = "", effect }: Taint, tolerations: readonly Toleration[]): boolean {
  if (effect === "PreferNoSchedule") return true;
  return tolerations.some(
    (one) =>
      (one.effect === undefined || one.effect === "" || one.effect === effect) &&
      (one.operator === "Exists"
        ? one.key === undefined || one.key === "" || one.key === key
        : one.key === key && (one.value ?? "") === value),
  );
}
