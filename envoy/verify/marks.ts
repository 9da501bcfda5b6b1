/** What is to be on objects that somebody else made, and has come to a proxy: what its sidecar was started with, sessions of istiod's own. Pure. */
import { type DumpedProxy, type JsonObject, listAt, objectAt, secondsOf } from "../config-dump.ts";
import { type Mark, PERSISTENT_SESSION_LABEL, PROXY_CONFIG_ANNOTATION } from "../generate/resource.ts";
import { STATEFUL_SESSION_FILTER } from "../generate/stickiness.ts";
import type { Policy } from "../policy.ts";
import { hostsOf, keyOf } from "./clusters.ts";
import { elsewhere, notLookedAt, type Result, resultOf } from "./result.ts";
import { clustersOf } from "./routes.ts";
import { tablesOf, unknownHost } from "./subsets.ts";

/** A policy, and what it comes to beside resources. */
export interface Asked {
  policy: Pick<Policy, "name" | "namespace" | "selector" | "service">;
  marks: readonly Mark[];
}

/** How hosts of the policy's Service begin, where this proxy is one of its pods': those have to know it. null: it is another's */
export function ownPrefix(proxy: DumpedProxy, policy: Asked["policy"]): string | null {
  const isOwn =
    proxy.kind === "sidecar" &&
    proxy.namespace === policy.namespace &&
    Object.entries(policy.selector).every(([key, value]) => proxy.labels[key] === value);
  return isOwn ? prefixOf(policy.service ?? policy.name, policy) : null;
}

/** Whatever the cluster's domain is. */
function prefixOf(service: string, { namespace }: Asked["policy"]): string {
  return `${service}.${namespace}.svc.`;
}

export function lookAtMark(proxy: DumpedProxy, mark: Mark, { policy }: Asked): Result[] {
  if (proxy.kind !== "sidecar") return [];
  if (mark.on === "pods") return nodeMetadata(proxy, mark);
  return mark.on === "service" ? nativeSession(proxy, mark, policy) : [];
}

/** What a pod's annotation has its sidecar started with. */
function nodeMetadata(proxy: DumpedProxy, { name, selector = {}, annotations = {} }: Mark): Result[] {
  const text = annotations[PROXY_CONFIG_ANNOTATION];
  if (text === undefined) return [];
  const config = JSON.parse(text) as { proxyMetadata?: Record<string, string>; drainDuration?: string };
  const resource = `pods of ${name}`;
  const part = PROXY_CONFIG_ANNOTATION;
  if (Object.entries(selector).some(([key, value]) => proxy.labels[key] !== value))
    return [elsewhere(resource, part, part, "this pod is none of them")];
  const told = (key: string, wanted: string, found: unknown): Result => {
    const isThere = secondsOf(found) === secondsOf(wanted);
    const why = isThere
      ? null
      : `it was started with ${found === undefined ? "none" : JSON.stringify(found)}`;
    return resultOf(resource, part, { what: `${key} ${wanted}`, reason: isThere ? null : "restart", why });
  };
  const idle = config.proxyMetadata?.ISTIO_META_IDLE_TIMEOUT;
  const { drainDuration } = config;
  const drain = (wanted: string): Result =>
    proxy.drainSeconds === null
      ? notLookedAt(
          resource,
          part,
          `drainDuration ${wanted}`,
          "a config_dump does not say it: ask with --admin",
        )
      : told("drainDuration", wanted, `${proxy.drainSeconds}s`);
  return [
    ...(idle === undefined ? [] : [told("IDLE_TIMEOUT", idle, proxy.metadata.IDLE_TIMEOUT)]),
    ...(drainDuration === undefined ? [] : [drain(drainDuration)]),
  ];
}

/** istiod's own persistent sessions are in its clients' sidecars: in the Service's virtual hosts, or in the routes that lead to it. */
function nativeSession(proxy: DumpedProxy, { name, labels = {} }: Mark, policy: Asked["policy"]): Result[] {
  const cookie = labels[PERSISTENT_SESSION_LABEL];
  const resource = `Service ${policy.namespace}/${name}`;
  const part = PERSISTENT_SESSION_LABEL;
  const what = `${STATEFUL_SESSION_FILTER} ${cookie}`;
  const prefix = prefixOf(name, policy);
  const [host] = hostsOf(proxy, prefix);
  if (host === undefined) {
    const found = unknownHost(proxy, `${prefix}*`, ownPrefix(proxy, policy), what);
    return [
      "elsewhere" in found
        ? elsewhere(resource, part, what, found.elsewhere)
        : resultOf(resource, part, found),
    ];
  }
  const has = (one: JsonObject): boolean => {
    const session = objectAt(one, "typed_per_filter_config", STATEFUL_SESSION_FILTER, "stateful_session");
    return objectAt(session, "session_state", "typed_config", "cookie").name === cookie;
  };
  const leads = (route: JsonObject): boolean =>
    clustersOf(route).some((cluster) => keyOf(cluster)?.host === host);
  const hosts = tablesOf(proxy, [host]).map(({ virtualHost }) => virtualHost);
  const isThere = (one: JsonObject): boolean => {
    const routes = listAt(one, "routes").filter(leads);
    return has(one) || (routes.length > 0 && routes.every(has));
  };
  const isWhole = hosts.length > 0 && hosts.every(isThere);
  return [
    resultOf(resource, part, {
      what,
      reason: isWhole ? null : "no-sessions",
      why: isWhole ? null : `no route to ${host} has ${STATEFUL_SESSION_FILTER} with the cookie ${cookie}`,
    }),
  ];
}
