/**
 * Which pushes would cut which sessions at one proxy, and what cuts some already without any: time-outs. Pure. The proxy says how it is now;
 * resources, where they are given, say which of the pushes somebody is likely to make.
 */
import {
  chainsOf,
  type DumpedProxy,
  type JsonObject,
  listAt,
  objectAt,
  ROOT_NAMESPACE,
  secondsOf,
} from "../config-dump.ts";
import { HCM } from "../generate/envoy-filter.ts";
import { TCP_PROXY } from "../generate/plain.ts";
import { targetsOf, whyElsewhere, whyNotOfPatch } from "../selection.ts";
import { PUSHES, type Push, type Sessions } from "./pushes.ts";

/** of Istio, where nothing says otherwise (ProxyConfig.drainDuration) */
const DRAIN_SECONDS = 45;
/** of Envoy (tcp_proxy.proto, protocol.proto: idle_timeout) */
const IDLE_SECONDS = 3_600;
/** of Envoy (route_components.proto: timeout) */
const ROUTE_SECONDS = 15;
const DAY_SECONDS = 86_400;
const HTTP_INSPECTOR = "envoy.filters.listener.http_inspector";
const INBOUND_FIRST = 15_000;
/** istiod's, where nobody has a session: what was meant for its own port, and what is not allowed out */
const NOWHERE = "BlackHoleCluster";

export interface Facts {
  id: string;
  kind: DumpedProxy["kind"];
  /** inbound ports that have a filter chain of their own */
  ports: { port: number; http: boolean; tcp: boolean; endpoint: string | null; isPinned: boolean }[];
  /** by a Sidecar's ingress */
  isPinned: boolean;
  /** http_inspector's list is in the inbound listener */
  hasFilterDisabled: boolean;
  /** null: not known, 45 is Istio's */
  drainSeconds: number | null;
}

export interface AuditedPush extends Omit<Push, "sessions" | "pinned"> {
  sessions: Sessions;
  cuts: boolean;
}

export interface AuditFinding {
  id: string;
  /** what is at risk, or is cut already */
  severity: "warning" | "info";
  what: string;
  cure: string;
}

export interface Audit {
  facts: Facts;
  pushes: AuditedPush[];
  findings: AuditFinding[];
}

export function audit(proxy: DumpedProxy, objects: readonly JsonObject[]): Audit {
  const facts = factsOf(proxy);
  return {
    facts,
    // nobody pushes to a bootstrap
    pushes: proxy.kind === "plain" ? [] : PUSHES.map((push) => ofProxy(push, facts)),
    findings: [...findingsOf(proxy, facts), ...ofResources(proxy, facts, objects)],
  };
}

function factsOf(proxy: DumpedProxy): Facts {
  const inbound = chainsOf(proxy, "inbound", null);
  const numbers = [...new Set(inbound.map(({ port }) => port))].filter(
    (port): port is number => port !== null && (port < INBOUND_FIRST || port > INBOUND_FIRST + 99),
  );
  const ports = numbers
    .toSorted((one, other) => one - other)
    .map((port) => {
      const filters = inbound.filter((chain) => chain.port === port).flatMap((chain) => chain.filters);
      const has = (name: string) => filters.some((filter) => filter.name === name);
      // of a Service they are called 0.0.0.0_PORT, of a Sidecar's ingress by the pod's address
      const names = inbound
        .filter((chain) => chain.port === port)
        .map(({ config }) => String(config.name ?? ""));
      return {
        port,
        http: has(HCM),
        tcp: has(TCP_PROXY),
        endpoint: endpointOf(proxy, port),
        isPinned: names.every((name) => name !== "" && !/^(0\.0\.0\.0|::)_/.test(name)),
      };
    });
  const listeners = inbound.map(({ listener }) => listener.config);
  const inspectors = listeners
    .flatMap((config) => listAt(config, "listener_filters"))
    .filter(({ name }) => name === HTTP_INSPECTOR);
  return {
    id: proxy.id,
    kind: proxy.kind,
    ports,
    isPinned: ports.length > 0 && ports.every((one) => one.isPinned),
    hasFilterDisabled: inspectors.some((inspector) => inspector.filter_disabled !== undefined),
    drainSeconds: proxy.drainSeconds,
  };
}

/** A cluster that istiod makes of a Service has no endpoint of its own: it dials where the client wanted to go. */
function endpointOf(proxy: DumpedProxy, port: number): string | null {
  const cluster = proxy.clusters.find(({ name }) => name === `inbound|${port}||`);
  const [first] = listAt(cluster?.config, "load_assignment", "endpoints").flatMap((one) =>
    listAt(one, "lb_endpoints"),
  );
  if (first === undefined) return null;
  const { address, port_value: number } = objectAt(first, "endpoint", "address", "socket_address");
  return `${address}:${number}`;
}

function ofProxy({ sessions, pinned, ...push }: Push, { isPinned }: Facts): AuditedPush {
  const here = isPinned && pinned !== null ? pinned : sessions;
  return { ...push, sessions: here, cuts: Object.values(here).some((outcome) => outcome === "closed") };
}

function findingsOf(proxy: DumpedProxy, facts: Facts): AuditFinding[] {
  const found: AuditFinding[] = [];
  const warn = (id: string, what: string, cure: string) =>
    found.push({ id, severity: "warning", what, cure });
  if (proxy.kind === "sidecar" && facts.ports.length > 0 && !facts.isPinned)
    warn(
      "not-pinned",
      `the inbound listener follows the Service${facts.hasFilterDisabled ? "; http_inspector has the list of its ports (filter_disabled)" : ""}: a port with a protocol that is added ends TCP and WebSocket sessions`,
      "holdfast envoy render: a Sidecar with an ingress pins it",
    );
  const drain = facts.drainSeconds ?? DRAIN_SECONDS;
  if (proxy.kind !== "plain" && drain < DAY_SECONDS)
    warn(
      "drain-time",
      `what a push drains ends ${drain} s later${facts.drainSeconds === null ? " (Istio's default; a config_dump does not say it)" : ""}`,
      "annotation proxy.istio.io/config of the pods, here and at clients: drainDuration: 86400s (a policy's drainSeconds)",
    );
  for (const { listener, error } of proxy.listeners
    .filter((one) => one.error !== null)
    .map((one) => ({ listener: one.name, error: one.error })))
    warn(
      "refused",
      `Envoy refuses the listener ${listener} and goes on with the one before: ${error}`,
      "mend that first: once it is taken, sessions of the old one drain",
    );
  idleFindings(proxy, warn);
  durationFindings(proxy, warn);
  return found;
}

type Warn = (id: string, what: string, cure: string) => void;

const IDLE_CURE =
  "ISTIO_META_IDLE_TIMEOUT of the pods (a policy's idleSeconds), of clients' too; or a sign of life from client or application";

function idleFindings(proxy: DumpedProxy, warn: Warn): void {
  const times = new Map<string, Set<number>>();
  for (const { listener, filters } of chainsOf(proxy, null, null)) {
    if (listener.name.startsWith("virtual") && listener.name !== "virtualInbound") continue;
    for (const filter of filters) {
      const config = objectAt(filter, "typed_config");
      if (filter.name !== TCP_PROXY || config.cluster === NOWHERE) continue;
      const seconds = secondsOf(config.idle_timeout) ?? IDLE_SECONDS;
      if (seconds === 0 || seconds >= DAY_SECONDS) continue;
      const names = times.get(listener.name) ?? new Set();
      times.set(listener.name, names.add(seconds));
    }
  }
  for (const [name, seconds] of times)
    warn(
      "tcp-idle",
      `${name}: TCP sessions that are silent for ${[...seconds].join(" or ")} s end`,
      IDLE_CURE,
    );
  const streams = chainsOf(proxy, null, null).filter(({ filters }) =>
    filters.some((filter) => {
      const seconds = objectAt(filter, "typed_config").stream_idle_timeout;
      // Envoy's is 5 min, and Istio writes 0s
      return filter.name === HCM && secondsOf(seconds) !== 0 && (secondsOf(seconds) ?? 300) < DAY_SECONDS;
    }),
  );
  for (const name of new Set(streams.map(({ listener }) => listener.name)))
    warn(
      "stream-idle",
      `${name}: WebSockets and streams that are silent end (stream_idle_timeout)`,
      IDLE_CURE,
    );
}

function durationFindings(proxy: DumpedProxy, warn: Warn): void {
  for (const { name, config } of proxy.clusters) {
    const options = Object.values(objectAt(config, "typed_extension_protocol_options"));
    const all = [config, ...options].map((one) =>
      secondsOf(objectAt(one, "common_http_protocol_options").max_connection_duration),
    );
    const seconds = all.find((one) => one !== null);
    if (seconds !== undefined && seconds !== null)
      warn(
        "connection-duration",
        `${name}: connections end ${seconds} s after they began, whatever passes`,
        "take maxConnectionDuration out of the DestinationRule",
      );
  }
  for (const { listener, filters } of chainsOf(proxy, null, null))
    for (const filter of filters) {
      const seconds = secondsOf(objectAt(filter, "typed_config").max_downstream_connection_duration);
      if (seconds !== null)
        warn(
          "connection-duration",
          `${listener.name}: TCP sessions end ${seconds} s after they began, whatever passes`,
          "take maxConnectionDuration out of the DestinationRule",
        );
    }
  const limited = routesOf(proxy).filter(([, seconds]) => seconds !== 0);
  for (const [name, seconds] of new Map(limited))
    warn(
      "route-timeout",
      `route ${name}: an answer that takes longer than ${seconds} s, as in a move's pause or a stream, is cut off with 504`,
      "timeout: 0s of the route (Istio's default; a VirtualService cannot say 0s, so leave it out)",
    );
}

/** by name of their virtual host: how long an answer may take */
function routesOf(proxy: DumpedProxy): [string, number][] {
  return proxy.routes.flatMap((config) =>
    listAt(config, "virtual_hosts").flatMap((host) =>
      listAt(host, "routes")
        .filter((route) => route.route !== undefined)
        .map((route): [string, number] => [
          `${config.name}/${host.name}`,
          secondsOf(objectAt(route, "route").timeout) ?? ROUTE_SECONDS,
        ]),
    ),
  );
}

// ---- resources

const PATCH_CUTS: Record<string, string> = {
  HTTP_FILTER: "WebSocket sessions",
  NETWORK_FILTER: "sessions of the chains that it changes",
  FILTER_CHAIN: "sessions of the chains that it changes",
  LISTENER: "TCP and WebSocket sessions",
  LISTENER_FILTER: "TCP and WebSocket sessions",
};

/** of istiod's PolicyTargetable: a waypoint takes those alone that are attached to it */
const ATTACHED = new Set([
  "EnvoyFilter",
  "AuthorizationPolicy",
  "RequestAuthentication",
  "Telemetry",
  "WasmPlugin",
]);

const FILTER_CURE = curesOf("http-filter-inbound");

type Info = (id: string, what: string, cure?: string) => AuditFinding[];

type Judge = (info: Info, spec: JsonObject, at: { proxy: DumpedProxy; facts: Facts }) => AuditFinding[];

/** by kind: what a change of one does */
const JUDGES: ReadonlyMap<string, Judge> = new Map<string, Judge>([
  ["EnvoyFilter", ofEnvoyFilter],
  ["Sidecar", ofSidecar],
  ["Telemetry", ofTelemetry],
  [
    "AuthorizationPolicy",
    (info) => info("authorization-policy", "a change of it ends TCP and WebSocket sessions"),
  ],
  [
    "PeerAuthentication",
    (info) => info("peer-authentication", "a change of its mode ends TCP and WebSocket sessions"),
  ],
  [
    "RequestAuthentication",
    (info) =>
      info(
        "request-authentication",
        "it is an HTTP filter: a change of it ends WebSocket sessions",
        FILTER_CURE,
      ),
  ],
  ["WasmPlugin", ofWasmPlugin],
]);

/** Those that are for this proxy, or for its clients: the DestinationRules. */
function ofResources(proxy: DumpedProxy, facts: Facts, objects: readonly JsonObject[]): AuditFinding[] {
  return objects.flatMap((object): AuditFinding[] => {
    if (typeof object.kind !== "string") return [];
    const { name, namespace } = objectAt(object, "metadata");
    const where = `${object.kind} ${namespace ?? "default"}/${name}`;
    const info: Info = (id, what, cure = curesOf(id)) => [
      { id, severity: "info", what: `${where}: ${what}`, cure },
    ];
    const spec = objectAt(object, "spec");
    if (object.kind === "DestinationRule") return ofDestinationRule(info, spec);
    const judge = JUDGES.get(object.kind);
    if (judge === undefined) return notLookedAt(info, `a ${object.kind} is not looked at`);
    return isFor(proxy, object) ? judge(info, spec, { proxy, facts }) : [];
  });
}

function notLookedAt(info: Info, what: string): AuditFinding[] {
  return info(
    "not-looked-at",
    what,
    "what a change of it ends is not known here: change it when there are no clients",
  );
}

function ofEnvoyFilter(...[info, spec, { proxy }]: Parameters<Judge>): AuditFinding[] {
  const patches = listAt(spec, "configPatches").filter((patch) => {
    const not = whyNotOfPatch(proxy, patch);
    return not === null || "unknown" in not;
  });
  // clusters come by CDS alone: row cluster-patch
  const kinds = [...new Set(patches.map(({ applyTo }) => String(applyTo)))].filter(
    (one) => one !== "CLUSTER",
  );
  return kinds.flatMap((applyTo) =>
    PATCH_CUTS[applyTo] === undefined
      ? notLookedAt(info, `its patches of ${applyTo} are not looked at`)
      : info("envoy-filter", `a change of its ${applyTo} patches ends ${PATCH_CUTS[applyTo]}`, FILTER_CURE),
  );
}

function ofSidecar(...[info, spec, { facts }]: Parameters<Judge>): AuditFinding[] {
  const ofEgress = spec.egress === undefined ? [] : notLookedAt(info, "its egress is not looked at");
  if (listAt(spec, "ingress").length === 0) return ofEgress;
  const when = facts.isPinned ? "taken away" : "applied for the first time";
  return [...info("sidecar-first", `when it is ${when} TCP and WebSocket sessions end`), ...ofEgress];
}

/** Its configuration comes by ECDS, past listeners. */
function ofWasmPlugin(info: Info, { type }: JsonObject): AuditFinding[] {
  const [filter, sessions] =
    type === "NETWORK" ? ["a network filter", "TCP"] : ["an HTTP filter", "WebSocket"];
  return info("wasm-plugin", `it is ${filter}: when it comes or goes ${sessions} sessions end`, FILTER_CURE);
}

function ofTelemetry(info: Info, spec: JsonObject): AuditFinding[] {
  const others = ["metrics", "tracing"].filter((key) => spec[key] !== undefined);
  return [
    ...(spec.accessLogging === undefined
      ? []
      : info("access-log", "a change of its accessLogging ends TCP and WebSocket sessions")),
    ...(others.length === 0 ? [] : notLookedAt(info, `its ${others.join(" and ")} are not looked at`)),
  ];
}

/** Source: networkfilter.go of istiod 1.31: tcp_proxy has times of the rule's own policy; those of ports and subsets are in clusters. */
function ofDestinationRule(info: Info, spec: JsonObject): AuditFinding[] {
  const tcpOf = (policy: unknown) => objectAt(policy, "connectionPool", "tcp");
  const policy = objectAt(spec, "trafficPolicy");
  const times = ["idleTimeout", "maxConnectionDuration"].filter((key) => tcpOf(policy)[key] !== undefined);
  const narrower = [spec, ...listAt(spec, "subsets")].flatMap((one) => {
    const own = objectAt(one, "trafficPolicy");
    return [...(one === spec ? [] : [own]), ...listAt(own, "portLevelSettings")];
  });
  return [
    ...times.flatMap((key) => info("destination-rule-tcp", `a change of its tcp.${key} ends TCP sessions`)),
    ...(narrower.some((one) => tcpOf(one).idleTimeout !== undefined)
      ? info(
          "destination-rule-clusters",
          "tcp.idleTimeout of its ports or subsets is in clusters alone: a change of it ends nothing, and TCP sessions have none of it",
          curesOf("destination-rule-tcp"),
        )
      : []),
  ];
}

function curesOf(id: string): string {
  return PUSHES.find((push) => push.id === id)?.cure ?? "";
}

function isFor(proxy: DumpedProxy, object: JsonObject): boolean {
  const isAttached = proxy.kind !== "waypoint" || targetsOf(objectAt(object, "spec")).length > 0;
  return (
    (isAttached || !ATTACHED.has(String(object.kind))) && whyElsewhere(proxy, object, ROOT_NAMESPACE) === null
  );
}
