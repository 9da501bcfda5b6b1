/**
 * What each kind of push does to the sessions that pass a proxy: seen with istiod 1.31 and Envoy 1.40 (test/envoy/pushes.test.ts: TCP and WebSocket
 * sessions; what becomes of HTTP keep-alive was seen by hand, but for last-endpoint-removed: test/envoy/kubernetes.test.ts). Pure.
 *
 * Envoy updates filter chains in place: connections of chains that are the same stay. Whatever else of a listener changes (a listener filter,
 * as http_inspector with its list of ports that it leaves alone) drains all of it. Drained is what is left a drain time later.
 */

/** closed: a drain time after the push. retried: a request or connection fails once, and the next goes well */
export type Outcome = "stays" | "closed" | "retried" | "reconnects";

export interface Sessions {
  tcp: Outcome;
  websocket: Outcome;
  http: Outcome;
}

/** Where what is changed is: at the application's sidecar, at its clients', or at both. */
export type Side = "server" | "client" | "both" | "none";

export interface Push {
  id: string;
  what: string;
  side: Side;
  /** of an inbound listener that istiod makes of Services */
  sessions: Sessions;
  /** … with the ingress of a Sidecar in force; null: the same */
  pinned: Sessions | null;
  why: string;
  /** null: nothing is to be cured */
  cure: string | null;
}

const STAY: Sessions = { tcp: "stays", websocket: "stays", http: "stays" };
const LISTENER: Sessions = { tcp: "closed", websocket: "closed", http: "stays" };

const PIN = "holdfast envoy render: with a Sidecar's ingress in force the inbound listener stays as it is";
const ONCE =
  "apply it once, before clients come, and change it when there are none; or drainDuration of the pods (annotation proxy.istio.io/config)";
const DRAIN = "a long drainDuration of the pods at both ends (annotation proxy.istio.io/config)";

export const PUSHES: readonly Push[] = [
  {
    id: "endpoints",
    what: "endpoints are added, removed or labelled istio.io/draining",
    side: "client",
    sessions: STAY,
    pinned: null,
    why: "EDS alone; a session stays with the endpoint that it has",
    cure: null,
  },
  {
    id: "workload-entry-removed",
    what: "the application's own WorkloadEntry is removed (a VM's; a pod is known by its labels)",
    side: "server",
    sessions: LISTENER,
    pinned: STAY,
    why: "by it istiod knows of which Services a sidecar's ports are: without it their filter chains go, at once or with a later push",
    cure: PIN,
  },
  {
    id: "last-endpoint-removed",
    what: "the last endpoint is removed",
    side: "client",
    sessions: { ...STAY, http: "retried" },
    pinned: null,
    why: "EDS alone; new requests are answered 503 until there is one",
    cure: "have the new place take clients before the old one goes, as a move does",
  },
  {
    id: "other-service",
    what: "another service comes, changes or goes",
    side: "both",
    sessions: STAY,
    pinned: null,
    why: "other clusters, other listeners",
    cure: null,
  },
  {
    id: "cluster-patch",
    what: "an EnvoyFilter of clusters, PROXY protocol, or a Sidecar's defaultEndpoint",
    side: "server",
    sessions: STAY,
    pinned: null,
    why: "CDS alone; connections that are open stay as they are",
    cure: null,
  },
  {
    id: "istiod-restart",
    what: "istiod ends and comes back",
    side: "both",
    sessions: STAY,
    pinned: null,
    why: "the same configuration comes again",
    cure: null,
  },
  {
    id: "port-without-protocol",
    what: "a port without a protocol is added to the Service",
    side: "server",
    sessions: STAY,
    pinned: null,
    why: "http_inspector looks at such ports as at all: its list of others is the same",
    cure: null,
  },
  {
    id: "port-added",
    what: "a port with a declared protocol is added to the Service",
    side: "server",
    sessions: LISTENER,
    pinned: STAY,
    why: "the list of ports that http_inspector leaves alone (filter_disabled) is a listener filter's: the whole listener drains",
    cure: PIN,
  },
  {
    id: "port-removed",
    what: "the sessions' port is removed from the Service, or the Service",
    side: "both",
    sessions: { tcp: "closed", websocket: "closed", http: "retried" },
    // at the client's side its listener goes all the same
    pinned: null,
    why: "its listener goes at clients' sidecars, and its filter chains at the application's",
    cure: DRAIN,
  },
  {
    id: "protocol-changed",
    what: "the protocol of a TCP port becomes HTTP",
    side: "both",
    sessions: { ...STAY, tcp: "closed" },
    pinned: null,
    why: "its filter chains are others",
    cure: "declare the protocol when the port is made",
  },
  {
    id: "http-filter-inbound",
    what: "an EnvoyFilter of HTTP filters, inbound",
    side: "server",
    sessions: { ...STAY, websocket: "closed" },
    pinned: null,
    why: "the chains of HTTP ports change",
    cure: ONCE,
  },
  {
    id: "http-filter-outbound",
    what: "an EnvoyFilter of HTTP filters, outbound",
    side: "client",
    sessions: { tcp: "stays", websocket: "closed", http: "reconnects" },
    pinned: null,
    why: "the client's listener of that port changes",
    cure: `${ONCE}; or istio.io/persistent-session in the place of a filter, or a policy's stickiness by workload, which is of routes alone`,
  },
  {
    id: "tcp-proxy",
    what: "an EnvoyFilter of tcp_proxy, as idle_timeout",
    side: "both",
    sessions: { ...STAY, tcp: "closed" },
    pinned: null,
    why: "the chains of TCP ports change",
    cure: "ISTIO_META_IDLE_TIMEOUT of the pods in its place (a policy's idleSeconds)",
  },
  {
    id: "destination-rule-tcp",
    what: "a DestinationRule with connectionPool.tcp.idleTimeout",
    side: "client",
    sessions: { ...STAY, tcp: "closed" },
    pinned: null,
    why: "the time-out is in the client's tcp_proxy, which is of its listener",
    cure: "ISTIO_META_IDLE_TIMEOUT of clients' pods in its place",
  },
  {
    id: "sidecar-first",
    what: "a Sidecar with an ingress, for the first time",
    side: "server",
    sessions: LISTENER,
    pinned: STAY,
    why: "every chain of the inbound listener is made anew",
    cure: "apply it before clients come: it is the last that does so",
  },
  {
    id: "authorization-policy",
    what: "an AuthorizationPolicy comes, changes or goes",
    side: "server",
    sessions: LISTENER,
    pinned: null,
    why: "its rules are filters of every chain",
    cure: `${ONCE}; or one that is there from the beginning and names who may come by what does not change`,
  },
  {
    id: "peer-authentication",
    what: "a PeerAuthentication changes the mode of mTLS",
    side: "server",
    sessions: LISTENER,
    pinned: null,
    why: "chains with and without TLS come and go",
    cure: ONCE,
  },
  {
    id: "access-log",
    what: "the mesh's accessLogFile, or a Telemetry of logs",
    side: "both",
    sessions: { tcp: "closed", websocket: "closed", http: "reconnects" },
    pinned: null,
    why: "it is in every listener",
    cure: ONCE,
  },
];
