/** Pure: what a StatefulSet does with one of its pods, as its controller has it (pkg/controller/statefulset of Kubernetes 1.37). */
import { isActive, isTrue, type Pod, type StatefulSet } from "../client/objects.ts";

/** label of its pods: of which template they are */
export const REVISION = "controller-revision-hash";

/** The number at the end of its pod's name. null: it has none */
export function ordinalOf(pod: string): number | null {
  const number = /-(\d+)$/.exec(pod)?.[1];
  return number === undefined ? null : Number(number);
}

/** It makes a pod of this name when there is none. */
export function isWanted({ metadata, spec }: StatefulSet, pod: string): boolean {
  const ordinal = ordinalOf(pod);
  const { start = 0 } = spec.ordinals ?? {};
  return (
    metadata.deletionTimestamp === undefined &&
    ordinal !== null &&
    ordinal >= start &&
    ordinal < start + (spec.replicas ?? 1)
  );
}

/** Of a pod of this name that it makes now (`newVersionedStatefulSetPod`). null: it has not said yet */
export function revisionAnew({ spec, status = {} }: StatefulSet, pod: string): string | null {
  const { type = "RollingUpdate", rollingUpdate } = spec.updateStrategy ?? {};
  const { start = 0 } = spec.ordinals ?? {};
  const isKept = type === "RollingUpdate" && (ordinalOf(pod) ?? 0) < start + (rollingUpdate?.partition ?? 0);
  return (isKept ? status.currentRevision : status.updateRevision) ?? null;
}

/** Names of those that have to be Ready before it makes this one. */
export function waitedFor({ metadata, spec }: StatefulSet, pods: readonly Pod[], pod: string): string[] {
  if (spec.podManagementPolicy === "Parallel") return [];
  const { start = 0 } = spec.ordinals ?? {};
  const ready = new Set(
    pods.filter((one) => isActive(one) && isTrue(one, "Ready")).map((one) => one.metadata.name),
  );
  const lower = Math.max(0, (ordinalOf(pod) ?? 0) - start);
  return Array.from({ length: lower }, (_, at) => `${metadata.name}-${start + at}`).filter(
    (name) => !ready.has(name),
  );
}
