/** A config_dump as a sidecar of istiod's has it, as little of it as is looked at: what was seen of Envoy 1.40 with istiod 1.31. */

export interface MadeUpDump {
  node?: { id?: string; metadata?: object };
  clusters?: object[];
  listeners?: object[];
  /** of the bootstrap, with their routes in themselves */
  staticListeners?: object[];
  /** RouteConfigurations that istiod has pushed */
  routes?: object[];
  /** `error_state` of a listener, by its name */
  errors?: Record<string, string>;
}

const HCM = "envoy.filters.network.http_connection_manager";

export function dumpOf(made: MadeUpDump): object {
  const { node = {}, clusters = [], listeners = [], staticListeners = [], routes = [], errors = {} } = made;
  const { id = "sidecar~10.77.0.3~chat-1.demo~demo.svc.cluster.local", metadata = {} } = node;
  const labels = { app: "chat" };
  return {
    configs: [
      {
        "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
        bootstrap: { node: { id, metadata: { NAMESPACE: "demo", LABELS: labels, ...metadata } } },
      },
      {
        "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
        dynamic_active_clusters: clusters.map((cluster) => ({ cluster })),
      },
      {
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
        static_listeners: staticListeners.map((listener) => ({ listener })),
        dynamic_listeners: listeners.map((listener) => {
          const { name } = listener as { name: string };
          const details = errors[name];
          return {
            name,
            active_state: { listener },
            ...(details === undefined ? {} : { error_state: { details } }),
          };
        }),
      },
      {
        "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
        static_route_configs: staticListeners
          .flatMap(inlineRoutesOf)
          .map((route_config) => ({ route_config })),
        dynamic_route_configs: routes.map((route_config) => ({ route_config })),
      },
    ],
  };
}

interface WithChains {
  filter_chains: { filters: { typed_config: { route_config?: object } }[] }[];
}

/** What a listener has in itself Envoy shows once more, with its type. */
function inlineRoutesOf(listener: object): object[] {
  return (listener as WithChains).filter_chains
    .flatMap(({ filters }) => filters)
    .flatMap(({ typed_config: { route_config } }) =>
      route_config === undefined
        ? []
        : [{ "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", ...route_config }],
    );
}

/** One of pilot-agent's bootstrap, for metrics or probes: HTTP to a cluster of its own. */
export function bootstrapListener(port: number): object {
  const routes = [{ match: { prefix: "/stats/prometheus" }, route: { cluster: "prometheus_stats" } }];
  const route_config = { virtual_hosts: [{ name: "backend", domains: ["*"], routes }] };
  const typed_config = {
    stat_prefix: "stats",
    route_config,
    http_filters: [{ name: "envoy.filters.http.router" }],
  };
  return {
    name: `0.0.0.0_${port}`,
    address: { socket_address: { address: "0.0.0.0", port_value: port } },
    filter_chains: [{ filters: [{ name: HCM, typed_config }] }],
  };
}

/** As istiod makes it of a Service. */
export function inboundCluster(port: number, more: object = {}): object {
  return {
    name: `inbound|${port}||`,
    type: "ORIGINAL_DST",
    connect_timeout: "10s",
    lb_policy: "CLUSTER_PROVIDED",
    ...more,
  };
}

/** … of the ingress of a Sidecar with a defaultEndpoint */
export function pinnedCluster(port: number, proxy: number, more: object = {}): object {
  const name = `inbound|${port}||`;
  const socket_address = { address: "127.0.0.1", port_value: proxy };
  return {
    name,
    type: "STATIC",
    connect_timeout: "10s",
    load_assignment: {
      cluster_name: name,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address } } }] }],
    },
    ...more,
  };
}

/** of a host with automatic mTLS */
export function outboundCluster(port: number, host: string, more: object = {}): object {
  const tls = {
    name: "tlsMode-istio",
    match: { tlsMode: "istio" },
    transport_socket: { name: "envoy.transport_sockets.tls" },
  };
  return {
    name: `outbound|${port}||${host}`,
    type: "EDS",
    transport_socket_matches: [tls, { name: "tlsMode-disabled", match: {} }],
    ...more,
  };
}

export function httpChain(filters: object[], more: object = {}): object {
  const router = { name: "envoy.filters.http.router" };
  return {
    ...more,
    filters: [{ name: HCM, typed_config: { http_filters: [...filters, router] } }],
  };
}

export function tcpChain(config: object, more: object = {}): object {
  return { ...more, filters: [{ name: "envoy.filters.network.tcp_proxy", typed_config: config }] };
}

/** @param chains by port */
export function virtualInbound(chains: Record<number, object>, more: object = {}): object {
  return {
    name: "virtualInbound",
    traffic_direction: "INBOUND",
    address: { socket_address: { address: "0.0.0.0", port_value: 15_006 } },
    filter_chains: Object.entries(chains).map(([port, chain]) => ({
      filter_chain_match: { destination_port: Number(port) },
      ...chain,
    })),
    ...more,
  };
}

export function outboundListener(port: number, chain: object, more: object = {}): object {
  return {
    name: `0.0.0.0_${port}`,
    traffic_direction: "OUTBOUND",
    address: { socket_address: { address: "0.0.0.0", port_value: port } },
    filter_chains: [chain],
    ...more,
  };
}
