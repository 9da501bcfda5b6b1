/**
 * What a policy comes to for Envoy Gateway, in front of a Service of Holdfast's gateways or of pods. Pure. Its own policies have what is
 * needed; an EnvoyPatchPolicy is for what they have not: the limit of a request's time that its routes have.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { isHttp, type WholePolicy } from "../policy.ts";
import { metadataOf } from "./envoy-filter.ts";
import { type Document, duration, type Mark, type Rendered, type Resource } from "./resource.ts";

const API = "gateway.envoyproxy.io/v1alpha1";
const GATEWAY_API = "gateway.networking.k8s.io";

export function renderGateway(policy: WholePolicy): Rendered {
  const { gateway, stickiness, drainSeconds, ports } = policy;
  if (gateway === undefined)
    throw fail(
      "CONFIG_INVALID",
      "gateway: expected the Gateway that clients come to, as { name: eg }, got nothing",
    );
  if (drainSeconds !== null)
    throw fail(
      "CONFIG_INVALID",
      "drainSeconds: expected nothing: of Envoy Gateway it is shutdown.drainTimeout of the EnvoyProxy, for all of its Gateways",
    );
  if (stickiness?.key === "workload")
    throw fail(
      "CONFIG_INVALID",
      "stickiness.key: expected address: Envoy Gateway's endpoints do not say which application they are of. Or have Holdfast's gateways as the Service's endpoints, which know (holdfast.dev/session)",
    );
  const http = ports.filter(isHttp);
  const identities = new Set(http.map(({ identity }) => identity));
  if (identities.size > 1)
    throw fail(
      "CONFIG_INVALID",
      "ports.identity: expected the same of all HTTP ports, which share an HTTPRoute",
    );
  const route = gateway.route ?? policy.name;
  const tcp = ports.filter((port) => !isHttp(port));
  return {
    documents: [
      ...clientPolicy(policy, gateway.name),
      ...(http.length === 0
        ? []
        : [backendPolicy(policy, "HTTPRoute", route, http[0]?.identity === "proxy-v2")]),
      ...tcp.map(({ port, identity }) =>
        backendPolicy(policy, "TCPRoute", `${route}-${port}`, identity === "proxy-v2"),
      ),
    ],
    marks: persistence(policy, route),
  };
}

function attached(
  policy: WholePolicy,
  kind: string,
  suffix: string,
  to: { kind: string; name: string },
  spec: object,
): Resource {
  return {
    apiVersion: API,
    kind,
    metadata: metadataOf(policy, suffix),
    spec: { targetRefs: [{ group: GATEWAY_API, ...to }], ...spec },
  };
}

function clientPolicy(policy: WholePolicy, name: string): Document[] {
  const { idleSeconds } = policy;
  if (idleSeconds === null) return [];
  const idleTimeout = duration(idleSeconds);
  return [
    {
      object: attached(
        policy,
        "ClientTrafficPolicy",
        "",
        { kind: "Gateway", name },
        {
          timeout: { tcp: { idleTimeout }, http: { idleTimeout, streamIdleTimeout: "0s" } },
        },
      ),
      reasons: [
        {
          path: ["spec", "timeout"],
          text: "Silent connections stay. It changes listeners, and so ends sessions that there are, once: apply it before clients come.",
        },
      ],
    },
  ];
}

function backendPolicy(policy: WholePolicy, kind: string, route: string, withHeader: boolean): Document {
  const isTcp = kind === "TCPRoute";
  const spec = {
    tcpKeepalive: { idleTime: "60s", interval: "10s", probes: 3 },
    timeout: isTcp ? { tcp: { connectTimeout: "2s" } } : { http: { requestTimeout: "0s" } },
    ...(withHeader ? { proxyProtocol: { version: "V2" } } : {}),
  };
  return {
    object: attached(
      policy,
      "BackendTrafficPolicy",
      isTcp ? route.slice(route.lastIndexOf("-")) : "-http",
      { kind, name: route },
      spec,
    ),
    reasons: [
      {
        path: ["spec"],
        text: "Clusters and routes alone: no listener changes, so no session ends.",
      },
      ...(withHeader
        ? [
            {
              path: ["spec", "proxyProtocol"],
              text: isTcp
                ? "whose each connection is"
                : "the address is a client's; connections are shared among clients, so its port tells nobody",
            },
          ]
        : []),
    ],
  };
}

function persistence({ stickiness }: WholePolicy, route: string): Mark[] {
  if (stickiness === null) return [];
  const { cookie, ttlSeconds } = stickiness;
  return [
    {
      on: "route",
      name: route,
      fields: {
        sessionPersistence: {
          type: "Cookie",
          sessionName: cookie,
          ...(ttlSeconds === null
            ? {}
            : { absoluteTimeout: duration(ttlSeconds), cookieConfig: { lifetimeType: "Permanent" } }),
        },
      },
      why: "In each of its rules. The cookie is an address: when that has gone another endpoint gets the client.",
    },
  ];
}
