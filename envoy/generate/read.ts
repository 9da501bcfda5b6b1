/**
 * The way back: what policy resources were made of, so that a cluster's can be read, and changes by hand be seen. Pure. What is read is made
 * again and compared, so nothing that `render` would not make is taken for a policy's.
 */
import { isDeepStrictEqual } from "node:util";
import { fail } from "#proxy/contract/error-codes.ts";
import { type Mode, normalised, type Policy, policySchema, type WholePolicy } from "../policy.ts";
import { HCM } from "./envoy-filter.ts";
import { render } from "./render.ts";
import {
  type Mark,
  PERSISTENT_SESSION_LABEL,
  POLICY_LABEL,
  PORTS_ANNOTATION,
  PROXY_CONFIG_ANNOTATION,
} from "./resource.ts";
import { STATEFUL_SESSION_FILTER } from "./stickiness.ts";

// biome-ignore lint/suspicious/noExplicitAny: what is read is compared as a whole afterwards
type Any = any;

/** @throws HoldfastError `CONFIG_INVALID`: they are not what a policy comes to */
export function readRendered(
  objects: readonly unknown[],
  marks: readonly Mark[],
  mode: Extract<Mode, "sidecar" | "envoyfilter" | "plain">,
): WholePolicy {
  let policy: Policy;
  try {
    policy = policySchema.parse(mode === "plain" ? ofBootstrap(objects[0]) : ofIstio(objects, marks, mode));
  } catch (cause) {
    throw fail("CONFIG_INVALID", "these resources were not made of a policy, or somebody has changed them", {
      cause,
    });
  }
  const again = render(policy, mode);
  const made = again.documents.map(({ object }) => object);
  if (!isDeepStrictEqual(made, objects))
    throw fail(
      "CONFIG_INVALID",
      `somebody has changed ${made.find((one, index) => !isDeepStrictEqual(one, objects[index]))?.kind ?? "a resource"}: make it anew with holdfast envoy render`,
    );
  return normalised(policy);
}

function ofIstio(objects: readonly unknown[], marks: readonly Mark[], mode: string): unknown {
  const all = objects as Any[];
  const kind = (name: string, suffix = ""): Any =>
    all.find((one) => one.kind === name && one.metadata.name.endsWith(`-holdfast${suffix}`));
  const way = mode === "sidecar" ? kind("Sidecar") : kind("EnvoyFilter", "-endpoint");
  const { name: _, namespace, labels, annotations } = way.metadata;
  const identities = new Set<number>(
    (kind("EnvoyFilter", "-identity")?.spec.configPatches ?? []).map(
      (patch: Any) => patch.match.cluster.portNumber,
    ),
  );
  const config = JSON.parse(
    marks.find(({ on }) => on === "pods")?.annotations?.[PROXY_CONFIG_ANNOTATION] ?? "{}",
  );
  const native = marks.find(({ on }) => on === "service");
  const rule = kind("DestinationRule");
  const filter = kind("EnvoyFilter", "-session");
  const idle = config.proxyMetadata?.ISTIO_META_IDLE_TIMEOUT;
  const host = /^([^.]+)\./.exec(rule?.spec.host ?? "")?.[1] ?? native?.name;
  return {
    name: labels[POLICY_LABEL],
    namespace,
    selector: way.spec.workloadSelector.labels,
    ports: annotations[PORTS_ANNOTATION].split(",").map((text: string) => {
      const [, port, proxy, protocol, service = port] =
        /^(\d+):(\d+)\/([a-z0-9]+)(?:@(\d+))?$/.exec(text) ?? [];
      return {
        port: Number(port),
        proxy: Number(proxy),
        protocol,
        servicePort: Number(service),
        identity: identities.has(Number(port)) ? "proxy-v2" : "none",
      };
    }),
    ...(host === undefined ? {} : { service: host }),
    idleSeconds: idle === undefined ? null : secondsOf(idle),
    drainSeconds: config.drainDuration === undefined ? null : secondsOf(config.drainDuration),
    ...reachOf(way.spec),
    stickiness: native === undefined ? stickyOf(rule, kind("VirtualService"), filter) : nativeOf(native),
    istio: { persistentSessions: native !== undefined, mergesIngress: false },
  };
}

function reachOf({ egress = null, outboundTrafficPolicy = null }: Any): object {
  return { egress, outboundTrafficPolicy };
}

function nativeOf({ labels }: Mark): unknown {
  return { cookie: labels?.[PERSISTENT_SESSION_LABEL], key: "address" };
}

function stickyOf(rule: Any, service: Any, filter: Any): unknown {
  if (filter !== undefined)
    return {
      ...sessionOf(filter.spec.configPatches[0].patch.value),
      clients: filter.spec.workloadSelector.labels,
    };
  if (rule === undefined) return null;
  const [first] = service.spec.http.findLast(({ name }: Any) => name.startsWith("new-")).route;
  return {
    ...cookieOf(first.headers.response.add["set-cookie"]),
    key: "workload",
    workloads: rule.spec.subsets,
  };
}

function sessionOf(filter: Any): object {
  const { cookie } = filter.typed_config.session_state.typed_config;
  const { name, path, ttl } = cookie;
  return { key: "address", cookie: name, path, ttlSeconds: ttl === undefined ? null : secondsOf(ttl) };
}

/** `NAME=VALUE; Path=PATH; HttpOnly` */
function cookieOf(text: string): object {
  const [, cookie, path] = /^([^=]+)=.*; Path=([^;]+); HttpOnly$/.exec(text) ?? [];
  return { cookie, path };
}

function secondsOf(text: string): number {
  return Number(/^(\d+)s$/.exec(text)?.[1]);
}

function ofBootstrap(object: unknown): unknown {
  const { node, admin, static_resources, dynamic_resources } = object as Any;
  const { listeners, clusters } = static_resources;
  const filterOf = (listener: Any): Any => listener.filter_chains[0].filters[0];
  const text = ({ socket_address: { address, port_value } }: Any): string => `${address}:${port_value}`;
  const filters = listeners.map(filterOf);
  const http = filters.find(({ name }: Any) => name === HCM)?.typed_config;
  const idle =
    http?.common_http_protocol_options?.idle_timeout ??
    filters.find(({ name }: Any) => name !== HCM)?.typed_config.idle_timeout;
  const [first] = clusters;
  const folder = first.eds_cluster_config.eds_config.path_config_source?.watched_directory.path;
  const [name, namespace] = node.cluster.split(".");
  return {
    name,
    namespace,
    selector: node.metadata.LABELS,
    ports: listeners.map((listener: Any, index: number) => {
      const { typed_config } = filterOf(listener);
      return {
        port: listener.address.socket_address.port_value,
        protocol: filterOf(listener).name === HCM ? httpOf(typed_config, clusters[index]) : "tcp",
        identity: clusters[index].transport_socket === undefined ? "none" : "proxy-v2",
      };
    }),
    idleSeconds: idle === undefined ? null : secondsOf(idle),
    drainSeconds: node.metadata.DRAIN_SECONDS ?? null,
    stickiness: http === undefined ? null : plainStickiness(http),
    plain: {
      listen: listeners[0].address.socket_address.address,
      ...(folder === undefined ? {} : { folder }),
      admin: text(admin.address),
      ads:
        dynamic_resources === undefined
          ? null
          : text(clusters.at(-1).load_assignment.endpoints[0].lb_endpoints[0].endpoint.address),
    },
  };
}

function httpOf({ upgrade_configs }: Any, { typed_extension_protocol_options }: Any): string {
  if (typed_extension_protocol_options !== undefined) return "h2";
  return upgrade_configs === undefined ? "http" : "websocket";
}

function plainStickiness({ http_filters, route_config }: Any): unknown {
  const [first] = http_filters;
  if (first.name === STATEFUL_SESSION_FILTER) return sessionOf(first);
  if (http_filters.length === 1) return null;
  const [known, fresh] = route_config.virtual_hosts[0].routes;
  const { regex } = known.match.headers[0].string_match.safe_regex;
  const names = /=\(([^()]*)\)\(;/.exec(regex)?.[1];
  return {
    ...cookieOf(fresh.response_headers_to_add[0].header.value),
    key: "workload",
    workloads:
      names === undefined ? [] : names.split("|").map((one: string) => ({ name: one.replaceAll("\\", "") })),
  };
}
