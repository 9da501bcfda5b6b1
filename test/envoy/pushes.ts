/**
 * Pushes of istiod, as changes of resources: of each kind that `holdfast envoy audit` knows at least one. What they do is said there
 * (envoy/audit/pushes.ts), and seen in `push-stage.ts`.
 */
import { PUSHES as AUDITED } from "#envoy/audit/pushes.ts";
import {
  endpoint,
  envoyFilter,
  hostOf,
  type IstioPort,
  istioPort,
  object,
  rendered,
  service,
} from "./istio-objects.ts";
import type { SessionKind } from "./long-sessions.ts";
import { LISTEN_FIRST, PORTS, SERVED } from "./several-workload.ts";

interface Pod {
  name: string;
  address: string;
}

/** A service that pushes are about, with one pod. */
export interface Subject {
  app: string;
  address: string;
  pod: Pod;
  /** by the ingress of a Sidecar that leads to Holdfast */
  isPinned: boolean;
}

export const [HELD, PLAIN, SPARE] = ["a", "plain", "spare"].map((name, index) => ({
  name,
  address: `10.99.0.${2 + index}`,
})) as [Pod, Pod, Pod];
export const SUBJECTS = {
  without: { app: "plain", address: "10.96.0.10", pod: PLAIN, isPinned: false },
  pinned: { app: "chat", address: "10.96.0.11", pod: HELD, isPinned: true },
} as const satisfies Record<string, Subject>;

/** The resources of a subject, by file. */
export interface Resources {
  service: object[];
  endpoints: object[];
  sidecar: object[];
  more: object[];
}

export interface Push {
  /** as `audit` calls its kind */
  id: string;
  what: string;
  /** It drains what a link of a gateway passes too. Such a link goes on over another connection, and its client notices nothing. */
  cutsLinks?: true;
  /** what of a subject is otherwise then */
  change?(subject: Subject): Partial<Resources>;
  /** keys of MeshConfig */
  meshConfig?: Record<string, unknown>;
  /** istiod itself ends, and comes back */
  restarts?: true;
}

/** What there is before a push. */
export function resourcesOf({ app, address, pod, isPinned }: Subject): Resources {
  return {
    service: [service(app, address, SERVED)],
    endpoints: [endpoint(app, pod)],
    sidecar: isPinned ? rendered(app, SERVED) : [],
    more: [],
  };
}

/** What of the sessions a push ends, as `audit` says. A stream of gRPC is as long as a WebSocket. */
export function cutBy({ id }: Push, isPinned: boolean): SessionKind[] {
  const said = AUDITED.find((one) => one.id === id);
  if (said === undefined) throw new Error(`audit knows no push ${id}`);
  const { tcp, websocket } = (isPinned ? said.pinned : null) ?? said.sessions;
  return [
    ...(tcp === "closed" ? (["tcp"] as const) : []),
    ...(websocket === "closed" ? (["websocket", "grpc"] as const) : []),
  ];
}

const withPorts = ({ app, address }: Subject, ports: readonly IstioPort[]): Partial<Resources> => ({
  service: [service(app, address, ports)],
});
const TYPES = "type.googleapis.com/envoy.extensions.filters";
const HCM = "envoy.filters.network.http_connection_manager";
const TCP_PROXY = "envoy.filters.network.tcp_proxy";
/** a filter that changes nothing */
const HTTP_FILTER = {
  name: "envoy.filters.http.buffer",
  typed_config: { "@type": `${TYPES}.http.buffer.v3.Buffer`, max_request_bytes: 1_000_000 },
};

/** Of the whole namespace, so it is written once. */
function patch(
  { app, isPinned }: Subject,
  applyTo: string,
  match: object,
  [operation, value]: ["MERGE" | "INSERT_FIRST", object],
): Partial<Resources> {
  const filter = { applyTo, match, patch: { operation, value } };
  return { more: isPinned ? [] : [envoyFilter(`${app}-patch`, null, [filter])] };
}

const ofFilter = (context: string, name: string): object => ({
  context,
  listener: { filterChain: { filter: { name } } },
});

function policy(kind: string, { app }: Subject, spec: object): Partial<Resources> {
  const whole = { selector: { matchLabels: { app } }, ...spec };
  return { more: [object(kind, app, whole, "security.istio.io/v1")] };
}

const otherService = ({ app, pod }: Subject): object =>
  service(`${app}-other`, `10.96.1.${lastOf(pod.address)}`, [{ number: 7_000, protocol: "tcp" }]);
const spare = (app: string): object => endpoint(app, SPARE, { account: null });
const lastOf = (address: string): string => address.split(".").at(-1) ?? "";

export const PUSHES: readonly Push[] = [
  {
    id: "other-service",
    what: "an unrelated service is added",
    change: (subject) => ({ more: [otherService(subject)] }),
  },
  {
    id: "endpoints",
    what: "an endpoint is added",
    change: ({ app, pod }) => ({ endpoints: [endpoint(app, pod), spare(app)] }),
  },
  {
    id: "endpoints",
    what: "the endpoint in use is labelled `istio.io/draining`",
    change: ({ app, pod }) => ({
      endpoints: [endpoint(app, pod, { labels: { "istio.io/draining": "true" } }), spare(app)],
    }),
  },
  {
    id: "last-endpoint-removed",
    what: "the last endpoint is labelled `istio.io/draining`: clients have none",
    // an entry that goes does more, below
    change: ({ app, pod }) => ({
      endpoints: [endpoint(app, pod, { labels: { "istio.io/draining": "true" } })],
    }),
  },
  {
    id: "workload-entry-removed",
    what: "the `WorkloadEntry` in use is removed, another stays; a service is added",
    // the service is for a push of everything: istiod may read a sidecar's own entry just before it goes, and not look again until then
    change: (subject) => ({ endpoints: [spare(subject.app)], more: [otherService(subject)] }),
  },
  {
    id: "port-without-protocol",
    what: "a port without a protocol is added to the service",
    change: (subject) => withPorts(subject, [...SERVED, { number: 9_300 }]),
  },
  {
    id: "port-added",
    what: "a port with a protocol is added to the service",
    change: (subject) => withPorts(subject, [...SERVED, { number: 9_301, protocol: "tcp" }]),
  },
  {
    id: "protocol-changed",
    what: "the protocol of the TCP port is changed to HTTP",
    change: (subject) => withPorts(subject, [PORTS.http, { ...PORTS.tcp, protocol: "http" }, PORTS.grpc]),
  },
  {
    id: "port-removed",
    what: "the ports in use are removed from the service",
    change: (subject) => withPorts(subject, [{ number: 9_302, protocol: "tcp" }]),
  },
  {
    id: "port-removed",
    what: "the service is removed",
    change: () => ({ service: [], endpoints: [] }),
  },
  {
    id: "cluster-patch",
    what: "`EnvoyFilter`: a cluster patch, at the server",
    change: (subject) =>
      patch(subject, "CLUSTER", { context: "SIDECAR_INBOUND", cluster: { portNumber: PORTS.tcp.number } }, [
        "MERGE",
        { connect_timeout: "7s" },
      ]),
  },
  {
    id: "http-filter-outbound",
    what: "`EnvoyFilter`: an HTTP filter, at clients",
    change: (subject) =>
      patch(subject, "HTTP_FILTER", ofFilter("SIDECAR_OUTBOUND", HCM), ["INSERT_FIRST", HTTP_FILTER]),
  },
  {
    id: "http-filter-inbound",
    what: "`EnvoyFilter`: an HTTP filter, at the server",
    change: (subject) =>
      patch(subject, "HTTP_FILTER", ofFilter("SIDECAR_INBOUND", HCM), ["INSERT_FIRST", HTTP_FILTER]),
  },
  {
    id: "tcp-proxy",
    what: "`EnvoyFilter`: `tcp_proxy`, at both",
    cutsLinks: true,
    change: (subject) => {
      const typed = { "@type": `${TYPES}.network.tcp_proxy.v3.TcpProxy`, idle_timeout: "7200s" };
      return patch(subject, "NETWORK_FILTER", ofFilter("ANY", TCP_PROXY), [
        "MERGE",
        { name: TCP_PROXY, typed_config: typed },
      ]);
    },
  },
  {
    id: "destination-rule-tcp",
    what: "`DestinationRule` with `tcp.idleTimeout`",
    change: ({ app }) => ({
      more: [
        object("DestinationRule", app, {
          host: hostOf(app),
          trafficPolicy: { connectionPool: { tcp: { idleTimeout: "7200s" } } },
        }),
      ],
    }),
  },
  {
    id: "sidecar-first",
    what: "`Sidecar` ingress: added; Holdfast's: its endpoints changed",
    change: ({ app, isPinned }) => ({
      sidecar: isPinned
        ? rendered(app, SERVED, { proxyFirst: LISTEN_FIRST + SERVED.length })
        : [object("Sidecar", app, { workloadSelector: { labels: { app } }, ingress: ingressToItself() })],
    }),
  },
  {
    id: "authorization-policy",
    what: "`AuthorizationPolicy` that allows all is added",
    change: (subject) => policy("AuthorizationPolicy", subject, { action: "ALLOW", rules: [{}] }),
  },
  {
    id: "peer-authentication",
    what: "`PeerAuthentication`: mutual TLS switched off",
    change: (subject) => policy("PeerAuthentication", subject, { mtls: { mode: "DISABLE" } }),
  },
  {
    id: "access-log",
    what: "the mesh's access log is switched on",
    cutsLinks: true,
    meshConfig: { accessLogFile: "/dev/null" },
  },
  { id: "istiod-restart", what: "istiod ends, and is started again", restarts: true },
];

/** of the application, at its pod's address */
function ingressToItself(): object[] {
  return SERVED.map((port) => ({ port: istioPort(port), defaultEndpoint: `0.0.0.0:${port.number}` }));
}
