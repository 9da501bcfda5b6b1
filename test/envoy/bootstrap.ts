/**
 * What a sidecar's Envoy starts with: its routes told by hand, or where istiod tells it, as Istio's agent writes it where that differs from Envoy's
 * defaults (tools/packaging/common/envoy_bootstrap.json of istio.io/istio). Pure.
 */
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Place } from "../lab/lab.ts";
import { HTTP2, SECRETS_CLUSTER, type SidecarRoutes, staticResources } from "./static-routes.ts";

export const ADMIN: Endpoint = { address: "127.0.0.1", port: 15_000 };
export const [OUTBOUND_PORT, INBOUND_PORT] = [15_001, 15_006];
const DISCOVERY_CLUSTER = "xds-grpc";
const EXTENSIONS = "type.googleapis.com/envoy.extensions";

/** Who a sidecar of istiod says it is. */
export interface Proxy {
  namespace: string;
  labels: Record<string, string>;
  account: string;
  /** of its node over these, as ISTIO_META_… of a pod's sidecar */
  metadata: Record<string, unknown>;
}

/** @param secrets path of the socket where its certificate is */
export function staticBootstrap({ name }: Place, routes: SidecarRoutes, secrets: string): object {
  const { listeners, clusters } = staticResources(routes, [OUTBOUND_PORT, INBOUND_PORT]);
  return {
    node: { id: name, cluster: "test" },
    admin: { address: socketAddress(ADMIN) },
    static_resources: { listeners, clusters: [...clusters, secretsCluster(secrets)] },
  };
}

/** @param istiod where it tells; @param secrets path of the socket where its certificate is */
export function istioBootstrap(place: Place, proxy: Proxy, istiod: Endpoint, secrets: string): object {
  const discovered = { ads: {}, initial_fetch_timeout: "0s", resource_api_version: "V3" };
  return {
    node: nodeOf(place, proxy),
    admin: { address: socketAddress(ADMIN) },
    bootstrap_extensions: [
      {
        name: "envoy.bootstrap.internal_listener",
        typed_config: { "@type": `${EXTENSIONS}.bootstrap.internal_listener.v3.InternalListener` },
      },
    ],
    dynamic_resources: {
      lds_config: discovered,
      cds_config: discovered,
      ads_config: {
        api_type: "DELTA_GRPC",
        set_node_on_first_message_only: true,
        transport_api_version: "V3",
        grpc_services: [{ envoy_grpc: { cluster_name: DISCOVERY_CLUSTER } }],
      },
    },
    static_resources: {
      clusters: [grpcCluster(DISCOVERY_CLUSTER, socketAddress(istiod)), secretsCluster(secrets)],
    },
  };
}

function nodeOf({ name, address }: Place, { namespace, labels, account, metadata }: Proxy): object {
  return {
    id: `sidecar~${address}~${name}.${namespace}~${namespace}.svc.cluster.local`,
    cluster: `${labels.app ?? name}.${namespace}`,
    metadata: {
      NAME: name,
      NAMESPACE: namespace,
      SERVICE_ACCOUNT: account,
      CLUSTER_ID: "Kubernetes",
      MESH_ID: "cluster.local",
      ISTIO_VERSION: "1.31.0",
      INTERCEPTION_MODE: "REDIRECT",
      INSTANCE_IPS: address,
      LABELS: labels,
      ...metadata,
    },
  };
}

function secretsCluster(path: string): object {
  return grpcCluster(SECRETS_CLUSTER, { pipe: { path } });
}

function grpcCluster(name: string, address: object): object {
  return {
    name,
    type: "STATIC",
    connect_timeout: "1s",
    ...HTTP2,
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address } }] }] },
  };
}

function socketAddress({ address, port }: Endpoint): object {
  return { socket_address: { address, port_value: port } };
}
