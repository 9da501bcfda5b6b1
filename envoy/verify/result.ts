/** What comes of looking for one part of a resource in a proxy: shapes, and the catalogue of what goes wrong with its cure. Pure. */

/**
 *   applied    the proxy has it
 *   missing    it is for this proxy, which does not have it
 *   elsewhere  it is for other proxies
 *   unknown    this kind is not looked at
 */
export type State = "applied" | "missing" | "elsewhere" | "unknown";

export interface Result {
  /** `KIND NAMESPACE/NAME` */
  resource: string;
  /** of it: `configPatches[0]`, `ingress[1]` */
  part: string;
  /** what it would do: `CLUSTER MERGE inbound|9000||` */
  what: string;
  state: State;
  reason: Reason | null;
  /** a clause: what was found; null: nothing more to say */
  why: string | null;
  cure: string | null;
  /** true in what is applied, too: it stops being so without a word when something else changes */
  warnings: string[];
}

export type Reason = keyof typeof CURES;

export interface Found {
  what: string;
  /** null: it is there */
  reason: Reason | null;
  why: string | null;
  warnings?: string[];
}

/** @param general warnings, besides its own */
export function resultOf(
  resource: string,
  part: string,
  { what, reason, why, warnings = [] }: Found,
  general: string[] = [],
): Result {
  const state: State = reason === null ? "applied" : "missing";
  const cure = reason === null ? null : CURES[reason];
  return { resource, part, what, state, reason, why, cure, warnings: [...general, ...warnings] };
}

export function elsewhere(resource: string, part: string, what: string, why: string): Result {
  return { resource, part, what, state: "elsewhere", reason: null, why, cure: null, warnings: [] };
}

export function notLookedAt(resource: string, part: string, what: string, why: string): Result {
  return { ...elsewhere(resource, part, what, why), state: "unknown" };
}

export const CURES = {
  "auto-mtls":
    "leave the outbound cluster to istiod: its sockets are chosen by transport_socket_matches; say what is wanted at the server's side (SIDECAR_INBOUND), or DISABLE mTLS for that host in a DestinationRule",
  "beside-transport-socket": "put transport_socket into a patch of its own",
  "chain-name":
    "match by portNumber or filterChain.destinationPort: chains of a Service are called 0.0.0.0_PORT, those of a Sidecar PODADDRESS_PORT",
  "enum-zero":
    "take another value: a merge leaves out what is 0 in protobuf, and so cannot set it (of lb_policy: LEAST_REQUEST in the place of ROUND_ROBIN)",
  "lb-policy":
    "add lb_policy: LEAST_REQUEST: istiod's is CLUSTER_PROVIDED, with which Envoy refuses the cluster and keeps the one before (ROUND_ROBIN is 0, which is never merged)",
  "not-in-cluster":
    "apply what holdfast envoy render --from-cluster prints; or have the controller keep it: mesh.enabled of the chart, and the annotation holdfast.dev/mesh on the Service",
  "not-as-asked":
    "apply what holdfast envoy render --from-cluster prints; where the controller keeps it (it writes routes some seconds after their subsets) look at the Service's Events",
  "not-labelled":
    "label it as holdfast envoy render --from-cluster says; the controller labels no Service, it says so in the Service's Events",
  "no-endpoints":
    "see that holdfast envoy endpoints runs, and that it and Envoy name the same folder, or address",
  "no-listener": "look at the ports that the proxy has, with istioctl proxy-config listeners",
  "no-target": "look at the clusters that the proxy has, with istioctl proxy-config clusters",
  "no-sessions":
    "start istiod with PILOT_ENABLE_PERSISTENT_SESSION_FILTER=true, or say istio.persistentSessions: false and stickiness.clients",
  "not-pushed":
    "see that istiod has the resource (istioctl proxy-status; another of a later priority may undo it), and look for ACK ERROR in its log",
  "old-name": "use the name of today",
  "other-value":
    "look for another resource that sets it: of two Sidecars for one pod, and of two VirtualServices for one host, the older holds, of EnvoyFilters the last (by priority, then the younger); where there is none, see that istiod has pushed it (istioctl proxy-status)",
  rejected: "mend what Envoy says of it: until then it goes on with what it had before",
  relative: "use INSERT_FIRST, or set priority: a place beside a filter that is not there is none",
  "waypoint-selector":
    "attach it with targetRefs to the waypoint's Gateway: a waypoint takes nothing else, and workloadSelector means nothing to it",
  "restart-envoy": "start Envoy with what holdfast envoy render --mode plain prints",
  restart: "make the pods anew: a sidecar reads it when it starts",
} as const;

/** filters by the names they had once, which istiod takes without a word and finds nowhere */
const OLD_NAMES: Record<string, string> = {
  "envoy.http_connection_manager": "envoy.filters.network.http_connection_manager",
  "envoy.tcp_proxy": "envoy.filters.network.tcp_proxy",
  "envoy.router": "envoy.filters.http.router",
  "envoy.fault": "envoy.filters.http.fault",
  "envoy.cors": "envoy.filters.http.cors",
  "envoy.lua": "envoy.filters.http.lua",
  "envoy.buffer": "envoy.filters.http.buffer",
  "envoy.ext_authz": "envoy.filters.http.ext_authz",
  "envoy.rate_limit": "envoy.filters.http.ratelimit",
  "envoy.grpc_web": "envoy.filters.http.grpc_web",
  "envoy.health_check": "envoy.filters.http.health_check",
  "envoy.squash": "envoy.filters.http.squash",
  "envoy.redis_proxy": "envoy.filters.network.redis_proxy",
  "envoy.mongo_proxy": "envoy.filters.network.mongo_proxy",
  "envoy.client_ssl_auth": "envoy.filters.network.client_ssl_auth",
  "envoy.listener.tls_inspector": "envoy.filters.listener.tls_inspector",
  "envoy.listener.http_inspector": "envoy.filters.listener.http_inspector",
  "envoy.listener.original_dst": "envoy.filters.listener.original_dst",
  "envoy.listener.proxy_protocol": "envoy.filters.listener.proxy_protocol",
};

/** null: it is none of them */
export function nameOfToday(name: unknown): string | null {
  return typeof name === "string" ? (OLD_NAMES[name] ?? null) : null;
}
