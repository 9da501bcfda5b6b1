/** How every EnvoyFilter of ours begins: with a selector and an explicit priority, and nothing relative to what may not be there. Pure. */
import type { Policy } from "../policy.ts";
import { POLICY_LABEL, PRIORITY, type Resource } from "./resource.ts";

export const HCM = "envoy.filters.network.http_connection_manager";
/** of a waypoint: istiod gives it no direction, and patches it as an inbound one */
export const WAYPOINT_LISTENER = "main_internal";

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

/** First of the HTTP filters of a sidecar's listener for a Service's port. */
export function outboundFilterPatch(servicePort: number, value: object): object {
  return firstFilterPatch("SIDECAR_OUTBOUND", { portNumber: servicePort }, {}, value);
}

/**
 * First of the HTTP filters of a waypoint's chain for a Service's port. istiod patches a waypoint's listeners as inbound ones, and compares
 * portNumber with the address of the listener, which has none: it is internal (listener_builder.go: patchListeners; listener_patch.go:
 * listenerMatch; listener_waypoint.go: buildWaypointInternal). The context WAYPOINT of its API it does not know yet.
 */
export function waypointFilterPatch(host: string, servicePort: number, value: object): object {
  const name = `inbound-vip|${servicePort}|http|${host}`;
  return firstFilterPatch("SIDECAR_INBOUND", { name: WAYPOINT_LISTENER }, { name }, value);
}

function firstFilterPatch(context: string, listener: object, chain: object, value: object): object {
  return {
    applyTo: "HTTP_FILTER",
    match: { context, listener: { ...listener, filterChain: { ...chain, filter: { name: HCM } } } },
    patch: { operation: "INSERT_FIRST", value },
  };
}
