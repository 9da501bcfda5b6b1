/** How every EnvoyFilter of ours begins: with a selector and an explicit priority, and nothing relative to what may not be there. Pure. */
import type { Policy } from "../policy.ts";
import { POLICY_LABEL, PRIORITY, type Resource } from "./resource.ts";

export const HCM = "envoy.filters.network.http_connection_manager";

export function metadataOf({ name, namespace }: Policy, suffix: string): Resource["metadata"] {
  return { name: `${name}-holdfast${suffix}`, namespace, labels: { [POLICY_LABEL]: name } };
}

/** @param to which proxies: by the labels of their pods, or a waypoint's Gateway */
export function envoyFilter(
  metadata: Resource["metadata"],
  to: { selector: Record<string, string> } | { gateway: string },
  configPatches: object[],
): Resource {
  const which =
    "selector" in to
      ? { workloadSelector: { labels: to.selector } }
      : { targetRefs: [{ group: "gateway.networking.k8s.io", kind: "Gateway", name: to.gateway }] };
  return {
    apiVersion: "networking.istio.io/v1alpha3",
    kind: "EnvoyFilter",
    metadata,
    spec: { priority: PRIORITY, ...which, configPatches },
  };
}

export function inboundClusterPatch(port: number, value: object): object {
  return {
    applyTo: "CLUSTER",
    match: { context: "SIDECAR_INBOUND", cluster: { portNumber: port } },
    patch: { operation: "MERGE", value },
  };
}

/** First of the HTTP filters of a sidecar's (or waypoint's) listener for a Service's port. */
export function outboundFilterPatch(servicePort: number, value: object): object {
  return {
    applyTo: "HTTP_FILTER",
    match: {
      context: "SIDECAR_OUTBOUND",
      listener: { portNumber: servicePort, filterChain: { filter: { name: HCM } } },
    },
    patch: { operation: "INSERT_FIRST", value },
  };
}
