/**
 * How clients come back to the application that has their session, in Istio. Pure.
 *
 *   key: workload   the cookie names the application. Its pod has labels which go along when it moves (a StatefulSet's pod name, or one
 *                   of yours): subsets of a DestinationRule, and routes by the cookie. Nothing is patched
 *   key: address    istiod's own persistent sessions, or Envoy's filter: the cookie is the pod's address. When that has gone another
 *                   pod gets the client, with a new cookie
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { isHttp, type WholePolicy } from "../policy.ts";
import { envoyFilter, metadataOf, outboundFilterPatch } from "./envoy-filter.ts";
import { type Document, duration, type Mark, PERSISTENT_SESSION_LABEL, type Resource } from "./resource.ts";

export const STATEFUL_SESSION_FILTER = "envoy.filters.http.stateful_session";
const WEIGHTS = 100;

export type Sticky = NonNullable<WholePolicy["stickiness"]>;

export function stickinessOf(policy: WholePolicy): { documents?: Document[]; marks?: Mark[] } {
  const { stickiness } = policy;
  if (stickiness === null) return {};
  if (stickiness.key === "workload") return { documents: byWorkload(policy, stickiness) };
  // a label's value may have no ":" and no "/", so istiod's own way is for the whole site
  const { cookie, path, ttlSeconds } = stickiness;
  const isLabel = /^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/.test(cookie);
  if (policy.istio.persistentSessions && path === "/" && ttlSeconds === null && isLabel)
    return { marks: [nativeLabel(policy, cookie)] };
  return { documents: [sessionFilter(policy, stickiness)] };
}

function nativeLabel({ service }: WholePolicy, cookie: string): Mark {
  return {
    on: "service",
    name: service,
    labels: { [PERSISTENT_SESSION_LABEL]: cookie },
    why: "istiod makes the filter itself, and goes on leading sessions to pods with the label istio.io/draining, which get no new ones.\nThe cookie is an address: key: workload follows an application that moves.",
  };
}

export function hostOf({ service, namespace }: WholePolicy): string {
  return `${service}.${namespace}.svc.cluster.local`;
}

/** Of a Cookie header, for RE2, as a whole. @param value a pattern */
export function cookiePattern(cookie: string, value: string): string {
  return `(.*; *)?${literal(cookie)}=${value}(;.*)?`;
}

export function literal(text: string): string {
  return text.replace(/[.*+?^$|{}()[\]\\]/g, "\\$&");
}

/** @throws HoldfastError `CONFIG_INVALID` */
export function byWorkload(policy: WholePolicy, { cookie, path, workloads }: Sticky): Document[] {
  if (workloads.length === 0 || workloads.some(({ labels }) => labels === undefined))
    throw fail(
      "CONFIG_INVALID",
      "stickiness.workloads: expected each application of the Service with the labels of its pod, as [{ name: chat-0, labels: { statefulset.kubernetes.io/pod-name: chat-0 } }]; or say key: address",
    );
  const dotted = workloads.find(({ name }) => name.includes("."));
  if (dotted !== undefined)
    throw fail(
      "CONFIG_INVALID",
      `stickiness.workloads: expected names without dots, which are none for subsets of Istio, got ${dotted.name}`,
    );
  const host = hostOf(policy);
  const ports = policy.ports.filter(isHttp);
  const rule: Resource = {
    apiVersion: "networking.istio.io/v1",
    kind: "DestinationRule",
    metadata: metadataOf(policy, ""),
    spec: { host, subsets: workloads.map(({ name, labels }) => ({ name, labels })) },
  };
  const to = (name: string, servicePort: number) => ({
    destination: { host, subset: name, port: { number: servicePort } },
  });
  const routes = ports.flatMap(({ servicePort }) => [
    ...workloads.map(({ name }) => ({
      name: `${name}-${servicePort}`,
      match: [{ port: servicePort, headers: { cookie: { regex: cookiePattern(cookie, literal(name)) } } }],
      route: [to(name, servicePort)],
    })),
    {
      name: `new-${servicePort}`,
      match: [{ port: servicePort }],
      route: workloads.map(({ name }, index) => ({
        ...to(name, servicePort),
        weight: share(index, workloads.length),
        headers: { response: { add: { "set-cookie": `${cookie}=${name}; Path=${path}; HttpOnly` } } },
      })),
    },
  ]);
  const service: Resource = {
    apiVersion: "networking.istio.io/v1",
    kind: "VirtualService",
    metadata: metadataOf(policy, ""),
    spec: { hosts: [host], http: routes },
  };
  const first = workloads.length;
  return [
    {
      object: rule,
      reasons: [
        {
          path: ["spec", "subsets"],
          text: "An application each: these labels are on the pod where it is, and go along when it moves. Apply a new one some seconds before\nroutes that lead to it: else Envoys answer 503 until they have heard of its endpoints.",
        },
      ],
    },
    {
      object: service,
      reasons: [
        {
          path: ["spec", "http"],
          text: "Routes and clusters alone: no listener changes, so no session ends. A Service may have one VirtualService for its sidecars: put\nthese routes before those of another.",
        },
        { path: ["spec", "http", 0], text: "whoever has the cookie comes to the application that it names" },
        { path: ["spec", "http", first], text: "whoever has none gets one, and an application in turn" },
      ],
    },
  ];
}

/** in percent, which are to be 100 together */
function share(index: number, count: number): number {
  return Math.floor((WEIGHTS * (index + 1)) / count) - Math.floor((WEIGHTS * index) / count);
}

function sessionFilter(policy: WholePolicy, { cookie, path, ttlSeconds, clients }: Sticky): Document {
  if (clients === undefined)
    throw fail(
      "CONFIG_INVALID",
      "stickiness.clients: expected labels of the pods whose sidecars keep clients to an address; without them the patch would be for every sidecar of the namespace. Or say istio.persistentSessions: true with path / and no ttlSeconds, if istiod has PILOT_ENABLE_PERSISTENT_SESSION_FILTER, or key: workload",
    );
  const ports = policy.ports.filter(isHttp);
  return {
    object: envoyFilter(
      metadataOf(policy, "-session"),
      { selector: clients },
      ports.map(({ servicePort }) =>
        outboundFilterPatch(servicePort, statefulSession(cookie, path, ttlSeconds)),
      ),
    ),
    reasons: [
      {
        path: ["spec"],
        text: "At clients' sidecars, for every HTTP service at these ports. Applied for the first time it ends their WebSocket sessions, a drain time\nlater. The cookie is an address: when that has gone another pod gets the client, with a new cookie.",
      },
      {
        path: ["spec", "configPatches", 0],
        text: "INSERT_FIRST: a place beside another filter is lost, silently, where that filter is not",
      },
    ],
  };
}

export function statefulSession(cookie: string, path: string, ttlSeconds: number | null): object {
  return {
    name: STATEFUL_SESSION_FILTER,
    typed_config: {
      "@type": "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
      session_state: {
        name: "envoy.http.stateful_session.cookie",
        typed_config: {
          "@type":
            "type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
          cookie: { name: cookie, path, ...(ttlSeconds === null ? {} : { ttl: duration(ttlSeconds) }) },
        },
      },
    },
  };
}
