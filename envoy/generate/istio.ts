/**
 * What a policy comes to in Istio with sidecars. Pure.
 *
 * Which pushes cut which sessions was seen with istiod 1.31 and Envoy 1.40 (README.md). What is made here is applied once and changes by
 * clusters alone afterwards, but for egress, which changes as it would without ours: no patch of an HttpConnectionManager or of tcp_proxy
 * where the node's metadata serve.
 */
import type { WholePolicy } from "../policy.ts";
import { envoyFilter, inboundClusterPatch, metadataOf } from "./envoy-filter.ts";
import {
  type Document,
  duration,
  type Mark,
  PORTS_ANNOTATION,
  PROXY_CONFIG_ANNOTATION,
  PROXY_V2_SOCKET,
  type Rendered,
  socketAddress,
} from "./resource.ts";
import { stickinessOf } from "./stickiness.ts";

export const LOOPBACK = "127.0.0.1";

const ISTIO_PROTOCOL = { tcp: "TCP", http: "HTTP", websocket: "HTTP", h2: "HTTP2" } as const;

export function renderIstio(policy: WholePolicy, mode: "sidecar" | "envoyfilter"): Rendered {
  const { documents = [], marks = [] } = stickinessOf(policy);
  const way = mode === "sidecar" ? sidecar(policy) : endpointFilter(policy);
  return {
    documents: [way, ...identityFilter(policy), ...documents],
    marks: [...proxyConfig(policy), ...marks],
  };
}

/** `PORT:PROXY/PROTOCOL` of each, and `@SERVICEPORT` where that is another */
export function portsText({ ports }: WholePolicy): string {
  return ports
    .map(
      ({ port, proxy, protocol, servicePort }) =>
        `${port}:${proxy}/${protocol}${servicePort === port ? "" : `@${servicePort}`}`,
    )
    .join(",");
}

function sidecar(policy: WholePolicy): Document {
  const metadata = { ...metadataOf(policy, ""), annotations: { [PORTS_ANNOTATION]: portsText(policy) } };
  const { egress, outboundTrafficPolicy } = policy;
  const reasons = [
    {
      path: ["spec", "ingress"],
      text: "mTLS, authorization and telemetry stay Envoy's: only where it passes clients on to is another. And the listener of all inbound\nports is pinned: a port that is added to the Service no longer drains it, and what changes below is a cluster alone.\nApplied for the first time it drains that listener once: TCP and WebSocket sessions end a drain time later.",
    },
    ...policy.ports.map(({ port, proxy, protocol }, index) => ({
      path: ["spec", "ingress", index],
      text: `${protocol}: Holdfast's proxy takes port ${port} at ${LOOPBACK}:${proxy}`,
    })),
  ];
  if (egress === null)
    reasons.unshift({
      path: ["spec", "workloadSelector"],
      text: "These pods reach all of the mesh: what a Sidecar without a workloadSelector restricts, of their namespace or of istio-system, does not hold\nbeside this one. Where there is one, say its egress and outboundTrafficPolicy in the policy (render --from-cluster and the controller do).",
    });
  if (!policy.istio.mergesIngress)
    reasons.unshift({
      path: ["spec"],
      text: "Ports of the Service that are not here still work, but only passed through: without mTLS rules, metrics or routes of their own.\nPILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE=true on istiod keeps them as the Service has them.",
    });
  return {
    object: {
      apiVersion: "networking.istio.io/v1",
      kind: "Sidecar",
      metadata,
      spec: {
        workloadSelector: { labels: policy.selector },
        ingress: policy.ports.map(({ port, protocol, proxy }) => ({
          port: { number: port, protocol: ISTIO_PROTOCOL[protocol], name: `${protocol}-${port}` },
          defaultEndpoint: `${LOOPBACK}:${proxy}`,
        })),
        ...(egress === null ? {} : { egress }),
        ...(outboundTrafficPolicy === null ? {} : { outboundTrafficPolicy }),
      },
    },
    reasons,
  };
}

function endpointFilter(policy: WholePolicy): Document {
  const metadata = {
    ...metadataOf(policy, "-endpoint"),
    annotations: { [PORTS_ANNOTATION]: portsText(policy) },
  };
  return {
    object: envoyFilter(
      metadata,
      policy,
      policy.ports.map(({ port, proxy }) => inboundClusterPatch(port, staticCluster(port, proxy))),
    ),
    reasons: [
      {
        path: ["spec"],
        text: "In the place of a Sidecar resource, where another has the pods already. The inbound listener is not pinned by it: a port with a\ndeclared protocol that is added to the Service ends TCP and WebSocket sessions (holdfast envoy audit).",
      },
      ...policy.ports.map(({ port, proxy, protocol }, index) => ({
        path: ["spec", "configPatches", index],
        text: `${protocol}: Holdfast's proxy takes port ${port} at ${LOOPBACK}:${proxy}. lb_policy is needed: istiod's is CLUSTER_PROVIDED, with which Envoy\nrefuses a STATIC cluster and keeps the one before; ROUND_ROBIN is 0 in protobuf, which a merge leaves out.`,
      })),
    ],
  };
}

function staticCluster(port: number, proxy: number): object {
  return {
    type: "STATIC",
    lb_policy: "LEAST_REQUEST",
    load_assignment: {
      cluster_name: `inbound|${port}||`,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: socketAddress(LOOPBACK, proxy) } }] }],
    },
  };
}

/** One patch for the transport socket alone: istiod leaves out what else a patch has beside it. */
function identityFilter(policy: WholePolicy): Document[] {
  const ports = policy.ports.filter(({ identity }) => identity === "proxy-v2");
  if (ports.length === 0) return [];
  return [
    {
      object: envoyFilter(
        metadataOf(policy, "-identity"),
        policy,
        ports.map(({ port }) => inboundClusterPatch(port, { transport_socket: PROXY_V2_SOCKET })),
      ),
      reasons: [
        {
          path: ["spec"],
          text: "Each connection to Holdfast begins with a header of the PROXY protocol, version 2: give the workload's ports proxyProtocol with\nfrom: [127.0.0.1/32]. Connections that are open stay as they are.",
        },
        ...ports.map(({ port, protocol }, index) => ({
          path: ["spec", "configPatches", index],
          text:
            protocol === "tcp"
              ? `port ${port}: the address is the client's, its port that of the client's own connection. Nothing else may be in this patch:\nbeside a transport_socket istiod drops it.`
              : `port ${port}: the address is the client's; the port is that of a connection which its sidecar shares among clients, so it tells pods apart\nand not clients. Nothing else may be in this patch: beside a transport_socket istiod drops it.`,
        })),
      ],
    },
  ];
}

function proxyConfig({ idleSeconds, drainSeconds, name, selector }: WholePolicy): Mark[] {
  if (idleSeconds === null && drainSeconds === null) return [];
  const config = {
    ...(idleSeconds === null ? {} : { proxyMetadata: { ISTIO_META_IDLE_TIMEOUT: duration(idleSeconds) } }),
    ...(drainSeconds === null ? {} : { drainDuration: duration(drainSeconds) }),
  };
  const why = [
    ...(idleSeconds === null
      ? []
      : [
          "ISTIO_META_IDLE_TIMEOUT reaches tcp_proxy and HTTP of this sidecar without a patch, which would end the sessions that there are",
        ]),
    ...(drainSeconds === null
      ? []
      : [
          "drainDuration is how long sessions go on that a changed listener had; clients' sidecars need it as well, for changes of their own",
        ]),
  ].join(";\n");
  const annotations = { [PROXY_CONFIG_ANNOTATION]: JSON.stringify(config) };
  return [{ on: "pods", name, selector, annotations, why }];
}
