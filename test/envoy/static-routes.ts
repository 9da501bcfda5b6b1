/**
 * What a sidecar's Envoy does: one listener for what comes and one for what goes, each with a chain for each port,
 * and mutual TLS between them. Pure.
 */
import { PROXY_V2_SOCKET } from "#envoy/generate/resource.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";

export interface Route {
  /** where the connection was going, before it was led to Envoy */
  port: number;
  protocol: "tcp" | "http" | "h2";
  to: Endpoint;
  /** outbound: without TLS, to what has no sidecar */
  plain?: true;
  /** inbound: each connection begins with a header of the PROXY protocol */
  header?: true;
}

export interface SidecarRoutes {
  outbound?: Route[];
  /** over mutual TLS */
  inbound?: Route[];
}

export interface StaticResources {
  listeners: object[];
  clusters: object[];
}

const FILTERS = "type.googleapis.com/envoy.extensions.filters";
const TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
/** of the workload's certificate and the mesh's authority */
export const SECRETS_CLUSTER = "sds-grpc";
const OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/** of a cluster */
export const HTTP2 = {
  typed_extension_protocol_options: {
    [OPTIONS]: {
      "@type": `type.googleapis.com/${OPTIONS}`,
      explicit_http_config: { http2_protocol_options: {} },
    },
  },
};
type Direction = "outbound" | "inbound";

/** @param ports where the two listen */
export function staticResources(
  { outbound = [], inbound = [] }: SidecarRoutes,
  [outboundPort, inboundPort]: readonly [number, number],
): StaticResources {
  const sides = [
    ["outbound", outboundPort, outbound],
    ["inbound", inboundPort, inbound],
  ] as const;
  const used = sides.filter(([, , routes]) => routes.length > 0);
  return {
    listeners: used.map(([direction, port, routes]) => listener(direction, port, routes)),
    clusters: used.flatMap(([direction, , routes]) => routes.map((route) => cluster(direction, route))),
  };
}

function nameOf(direction: Direction, { port }: Route): string {
  return `${direction}|${port}||static`;
}

function listener(direction: Direction, port: number, routes: readonly Route[]): object {
  return {
    name: direction,
    address: { socket_address: { address: "0.0.0.0", port_value: port } },
    listener_filters: [
      {
        name: "envoy.filters.listener.original_dst",
        typed_config: { "@type": `${FILTERS}.listener.original_dst.v3.OriginalDst` },
      },
    ],
    filter_chains: routes.map((route) => ({
      filter_chain_match: { destination_port: route.port },
      filters: [route.protocol === "tcp" ? tcpProxy(direction, route) : connectionManager(direction, route)],
      ...(direction === "inbound"
        ? { transport_socket: tls("DownstreamTlsContext", { require_client_certificate: true }) }
        : {}),
    })),
  };
}

function tcpProxy(direction: Direction, route: Route): object {
  const name = nameOf(direction, route);
  return {
    name: "envoy.filters.network.tcp_proxy",
    typed_config: {
      "@type": `${FILTERS}.network.tcp_proxy.v3.TcpProxy`,
      stat_prefix: name,
      cluster: name,
    },
  };
}

function connectionManager(direction: Direction, route: Route): object {
  const to = { cluster: nameOf(direction, route), timeout: "0s" };
  return {
    name: "envoy.filters.network.http_connection_manager",
    typed_config: {
      "@type": `${FILTERS}.network.http_connection_manager.v3.HttpConnectionManager`,
      stat_prefix: `${direction}_${route.port}`,
      upgrade_configs: [{ upgrade_type: "websocket" }],
      stream_idle_timeout: "0s",
      http_filters: [
        {
          name: "envoy.filters.http.router",
          typed_config: { "@type": `${FILTERS}.http.router.v3.Router` },
        },
      ],
      route_config: {
        virtual_hosts: [{ name: "all", domains: ["*"], routes: [{ match: { prefix: "/" }, route: to }] }],
      },
    },
  };
}

function cluster(direction: Direction, route: Route): object {
  const name = nameOf(direction, route);
  const { address, port } = route.to;
  const endpoint = { address: { socket_address: { address, port_value: port } } };
  return {
    name,
    type: "STATIC",
    connect_timeout: "5s",
    ...(route.protocol === "h2" ? HTTP2 : {}),
    ...(direction === "outbound" && !route.plain ? { transport_socket: tls("UpstreamTlsContext", {}) } : {}),
    ...(route.header ? { transport_socket: PROXY_V2_SOCKET } : {}),
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint }] }] },
  };
}

/** By the names that istiod asks for them. */
function tls(type: "DownstreamTlsContext" | "UpstreamTlsContext", more: object): object {
  const secret = (name: string): object => ({
    name,
    sds_config: {
      resource_api_version: "V3",
      api_config_source: {
        api_type: "GRPC",
        transport_api_version: "V3",
        grpc_services: [{ envoy_grpc: { cluster_name: SECRETS_CLUSTER } }],
      },
    },
  });
  return {
    name: "envoy.transport_sockets.tls",
    typed_config: {
      "@type": `${TLS}.${type}`,
      common_tls_context: {
        tls_certificate_sds_secret_configs: [secret("default")],
        validation_context_sds_secret_config: secret("ROOTCA"),
      },
      ...more,
    },
  };
}
