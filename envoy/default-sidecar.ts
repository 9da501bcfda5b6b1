/**
 * What pods may reach before a Sidecar of ours selects them. Pure. istiod takes one Sidecar for a pod: one that selects it, else the first of the
 * namespace without a workloadSelector, else the first such of the root namespace; and fills nothing of the one from another
 * (pilot/pkg/model/push_context.go: initSidecarScopes, doGetSidecarScope). So ours has to say what those two had said.
 */
import { ROOT_NAMESPACE } from "./config-dump.ts";
import type { Policy } from "./policy.ts";

export type Reach = Pick<Policy, "egress" | "outboundTrafficPolicy">;

/** Of Istio, as far as it is looked at. */
export interface SidecarObject {
  metadata: { name: string; namespace?: string; creationTimestamp?: string };
  spec?: { workloadSelector?: object } & Partial<Reach>;
}

/** @param sidecars of the namespace and of istiod's own, or of all. @returns null each: that there is none, or it leaves it out */
export function reachIn(namespace: string, sidecars: readonly SidecarObject[]): Reach {
  const first = (of: string): SidecarObject | undefined =>
    sidecars
      .filter(({ metadata, spec }) => metadata.namespace === of && spec?.workloadSelector === undefined)
      .toSorted((one, other) => (isBefore(one, other) ? -1 : 1))[0];
  const { egress = null, outboundTrafficPolicy = null } =
    (first(namespace) ?? first(ROOT_NAMESPACE))?.spec ?? {};
  // none at all is all of the mesh, as where it is left out
  return { egress: egress?.length === 0 ? null : egress, outboundTrafficPolicy };
}

/** By age, those of one second by name. */
function isBefore(one: SidecarObject, other: SidecarObject): boolean {
  const [mine, theirs] = [one, other].map(
    ({ metadata: { creationTimestamp = "" } }) => creationTimestamp,
  ) as [string, string];
  return mine === theirs ? one.metadata.name < other.metadata.name : mine < theirs;
}
