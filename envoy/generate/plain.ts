/**
 * What a policy comes to as the bootstrap of an Envoy of one's own, as an edge in front of nodes or pods that Holdfast moves applications
 * among. Where they are, `holdfast envoy endpoints` says: by files in a folder that Envoy watches, or over ADS. Pure.
 */
import { isHttp, type PolicyPort, type WholePolicy } from "../policy.ts";
import { HCM } from "./envoy-filter.ts";
import { duration, PROXY_V2_SOCKET, type Reason, type Rendered, socketAddress } from "./resource.ts";
import { cookiePattern, literal, type Sticky, statefulSession } from "./stickiness.ts";

export const TCP_PROXY = "envoy.filters.network.tcp_proxy";
export const SUBSET_KEY = "workload";
export const SUBSET_NAMESPACE = "envoy.lb";
/** none that an answer of Envoy's own has, which is of no endpoint ("-") */
const ANY_WORKLOAD = "[a-z0-9][^;]*";
const http2 = (http2_protocol_options: object) => ({
  "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    explicit_http_config: { http2_protocol_options },
  },
});
export const ADS_CLUSTER = "holdfast-ads";
/** Over ADS nobody may have anything to say for days: that the other side has gone without FIN or RST shows in a PING that is not answered. */
const ADS_KEEPALIVE = { interval: duration(30), timeout: duration(10) };

export function clusterName({ name }: WholePolicy, { port }: Pick<PolicyPort, "port">): string {
  return `${name}-${port}`;
}

export function renderPlain(policy: WholePolicy): Rendered {
  const { name, namespace, selector, drainSeconds, plain, ports } = policy;
  const ads = plain.ads === null ? null : endpointOf(plain.ads);
  const admin = endpointOf(plain.admin);
  const object = {
    node: {
      id: `${name}-holdfast`,
      cluster: `${name}.${namespace}`,
      metadata: { LABELS: selector, ...(drainSeconds === null ? {} : { DRAIN_SECONDS: drainSeconds }) },
    },
    admin: { address: socketAddress(admin.address, admin.port) },
    ...(ads === null
      ? {}
      : {
          dynamic_resources: {
            ads_config: {
              api_type: "GRPC",
              transport_api_version: "V3",
              set_node_on_first_message_only: true,
              grpc_services: [{ envoy_grpc: { cluster_name: ADS_CLUSTER } }],
            },
          },
        }),
    static_resources: {
      listeners: ports.map((one) => listenerOf(policy, one)),
      clusters: [
        ...ports.map((one) => clusterOf(policy, one)),
        ...(ads === null ? [] : [adsCluster(ads.address, ads.port)]),
      ],
    },
  };
  return { documents: [{ object, reasons: reasonsOf(policy) }], marks: [] };
}

function endpointOf(text: string): { address: string; port: number } {
  const [address = "", port] = text.split(":");
  return { address, port: Number(port) };
}

function listenerOf(policy: WholePolicy, port: PolicyPort): object {
  const { plain, idleSeconds } = policy;
  const name = clusterName(policy, port);
  const idle = idleSeconds === null ? null : duration(idleSeconds);
  const filter = isHttp(port)
    ? {
        name: HCM,
        typed_config: {
          "@type": `type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`,
          stat_prefix: name,
          use_remote_address: true,
          stream_idle_timeout: "0s",
          ...(idle === null ? {} : { common_http_protocol_options: { idle_timeout: idle } }),
          ...(port.protocol === "websocket" ? { upgrade_configs: [{ upgrade_type: "websocket" }] } : {}),
          http_filters: [
            ...stickyFilters(policy.stickiness),
            {
              name: "envoy.filters.http.router",
              typed_config: {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
              },
            },
          ],
          route_config: {
            name,
            virtual_hosts: [{ name, domains: ["*"], routes: routesOf(policy.stickiness, name) }],
          },
        },
      }
    : {
        name: TCP_PROXY,
        typed_config: {
          "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
          stat_prefix: name,
          cluster: name,
          ...(idle === null ? {} : { idle_timeout: idle }),
        },
      };
  return {
    name,
    address: socketAddress(plain.listen, port.port),
    filter_chains: [{ filters: [filter] }],
  };
}

function stickyFilters(stickiness: Sticky | null): object[] {
  if (stickiness === null) return [];
  const { key, cookie, path, ttlSeconds } = stickiness;
  if (key === "address") return [statefulSession(cookie, path, ttlSeconds)];
  return [
    {
      name: "envoy.filters.http.header_to_metadata",
      typed_config: {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
        request_rules: [
          {
            cookie,
            on_header_present: { metadata_namespace: SUBSET_NAMESPACE, key: SUBSET_KEY, type: "STRING" },
          },
        ],
      },
    },
  ];
}

function routesOf(stickiness: Sticky | null, cluster: string): object[] {
  const route = {
    cluster,
    timeout: "0s",
    retry_policy: { retry_on: "connect-failure,refused-stream,reset-before-request", num_retries: 3 },
  };
  if (stickiness?.key !== "workload") return [{ match: { prefix: "/" }, route }];
  const { cookie, path, workloads } = stickiness;
  const names = workloads.map(({ name }) => literal(name)).join("|");
  const has = {
    name: "cookie",
    string_match: {
      safe_regex: { regex: cookiePattern(cookie, names === "" ? ANY_WORKLOAD : `(${names})`) },
    },
  };
  const value = `${cookie}=%UPSTREAM_METADATA(${SUBSET_NAMESPACE}:${SUBSET_KEY})%; Path=${path}; HttpOnly`;
  return [
    { match: { prefix: "/", headers: [has] }, route },
    {
      match: { prefix: "/" },
      route,
      response_headers_to_add: [
        { header: { key: "set-cookie", value }, append_action: "APPEND_IF_EXISTS_OR_ADD" },
      ],
    },
  ];
}

function clusterOf(policy: WholePolicy, port: PolicyPort): object {
  const { plain, stickiness } = policy;
  const name = clusterName(policy, port);
  const eds_config =
    plain.ads === null
      ? {
          path_config_source: {
            path: `${plain.folder}/${name}.json`,
            watched_directory: { path: plain.folder },
          },
          resource_api_version: "V3",
        }
      : { ads: {}, resource_api_version: "V3" };
  return {
    name,
    type: "EDS",
    connect_timeout: "2s",
    lb_policy: "LEAST_REQUEST",
    eds_cluster_config: { service_name: name, eds_config },
    ...(port.protocol === "h2" ? { typed_extension_protocol_options: http2({}) } : {}),
    upstream_connection_options: { tcp_keepalive: { keepalive_time: 60, keepalive_interval: 10 } },
    ...(isHttp(port) && stickiness?.key === "workload"
      ? {
          lb_subset_config: {
            fallback_policy: "ANY_ENDPOINT",
            subset_selectors: [{ keys: [SUBSET_KEY] }],
          },
        }
      : {}),
    ...(port.identity === "proxy-v2" ? { transport_socket: PROXY_V2_SOCKET } : {}),
  };
}

function adsCluster(address: string, port: number): object {
  return {
    name: ADS_CLUSTER,
    type: "STATIC",
    connect_timeout: "1s",
    typed_extension_protocol_options: http2({ connection_keepalive: ADS_KEEPALIVE }),
    load_assignment: {
      cluster_name: ADS_CLUSTER,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: socketAddress(address, port) } }] }],
    },
  };
}

function reasonsOf({ ports, drainSeconds, plain, stickiness }: WholePolicy): Reason[] {
  const at = (list: "listeners" | "clusters", index: number) => ["static_resources", list, index];
  const firstHttp = ports.findIndex(isHttp);
  return [
    ...(drainSeconds === null
      ? []
      : [
          {
            path: ["node", "metadata", "DRAIN_SECONDS"],
            text: `start Envoy with --drain-time-s ${drainSeconds}: so long sessions go on that a changed listener had`,
          },
        ]),
    ...(firstHttp < 0
      ? []
      : [
          {
            path: at("listeners", firstHttp),
            text: "No time limits of streams and requests (Envoy's: 5 min, 15 s): a move is a pause, and no answer of 504.",
          },
        ]),
    {
      path: at("clusters", 0),
      text: `Endpoints are where each application is: ${plain.ads === null ? "a file, which holdfast envoy endpoints replaces by rename(2) when it has moved" : "holdfast envoy endpoints pushes them when it has moved"}.\nSessions that are open stay where they are, with the proxy that they have.`,
    },
    ...(stickiness?.key === "workload" && firstHttp >= 0
      ? [
          {
            path: [...at("clusters", firstHttp), "lb_subset_config"],
            text: "The cookie names the application, and endpoints say whose they are: so it holds wherever the application is.",
          },
        ]
      : []),
  ];
}
