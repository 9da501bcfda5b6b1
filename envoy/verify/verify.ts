/**
 * Whether resources of Istio have come to what they say in one proxy, part by part; and if not, why. Pure. What istioctl's analyze and
 * validate say nothing of was seen with istiod 1.31 and Envoy 1.40: see README.md.
 */
import {
  asObject,
  type DumpedProxy,
  type JsonObject,
  listAt,
  objectAt,
  ROOT_NAMESPACE,
  secondsOf,
} from "../config-dump.ts";
import { type Mark, PERSISTENT_SESSION_LABEL, PROXY_CONFIG_ANNOTATION } from "../generate/resource.ts";
import { STATEFUL_SESSION_FILTER } from "../generate/stickiness.ts";
import { lookAtCluster, lookAtIngress } from "./clusters.ts";
import { lookAtFilters } from "./filters.ts";
import { type Reason, type Result, resultOf } from "./result.ts";
import { isBefore, type Rival } from "./rivals.ts";
import { lookAtRoutes, lookAtSubsets, type Part } from "./subsets.ts";

const LOOKED_AT = new Set(["CLUSTER", "HTTP_FILTER", "NETWORK_FILTER"]);

/**
 * @param objects of Kubernetes: Sidecars, EnvoyFilters, subsets of DestinationRules and routes of VirtualServices are looked at
 * @param others Sidecars and EnvoyFilters of somebody else: where one of them has its way, it is named
 */
export function verify(
  proxy: DumpedProxy,
  objects: readonly JsonObject[],
  marks: readonly Mark[] = [],
  others: readonly JsonObject[] = [],
): Result[] {
  const rivals = others.flatMap((object) => rivalsOf(proxy, object));
  return [
    ...objects.flatMap((object) => {
      if (object.kind === "EnvoyFilter") return envoyFilter(proxy, object, rivals);
      if (object.kind === "Sidecar") return sidecar(proxy, object, others, rivals);
      if (object.kind === "DestinationRule") return parts(proxy, object, lookAtSubsets);
      if (object.kind === "VirtualService") return parts(proxy, object, lookAtRoutes);
      if (typeof object.kind !== "string") return [];
      return [notLookedAt(nameOf(object), "spec", object.kind, `a ${object.kind} is not looked at`)];
    }),
    ...marks.flatMap((mark) => lookAtMark(proxy, mark)),
  ];
}

function nameOf(object: JsonObject): string {
  const { namespace, name } = objectAt(object, "metadata");
  return `${object.kind} ${namespace ?? "default"}/${name}`;
}

function elsewhere(resource: string, part: string, what: string, why: string): Result {
  return { resource, part, what, state: "elsewhere", reason: null, why, cure: null, warnings: [] };
}

function notLookedAt(resource: string, part: string, what: string, why: string): Result {
  return { ...elsewhere(resource, part, what, why), state: "unknown" };
}

/** null: it is for this proxy */
function whyElsewhere(proxy: DumpedProxy, object: JsonObject, rootNamespace: string | null): string | null {
  const { namespace = "default" } = objectAt(object, "metadata");
  if (proxy.kind === "plain") return "this Envoy is none of istiod's";
  if (namespace !== proxy.namespace && namespace !== rootNamespace)
    return `it is of namespace ${namespace}, this proxy of ${proxy.namespace}`;
  const wanted = Object.entries(objectAt(object, "spec", "workloadSelector", "labels"));
  const other = wanted.find(([key, value]) => proxy.labels[key] !== value);
  return other === undefined
    ? null
    : `it selects ${other[0]}=${other[1]}, this pod has ${proxy.labels[other[0]] ?? "none"}`;
}

/** Its patches of clusters, if it is for this proxy. */
function rivalsOf(proxy: DumpedProxy, object: JsonObject): Rival[] {
  if (object.kind !== "EnvoyFilter" || whyElsewhere(proxy, object, ROOT_NAMESPACE) !== null) return [];
  return listAt(object, "spec", "configPatches")
    .filter(({ applyTo }) => applyTo === "CLUSTER")
    .map((patch) => ({ resource: nameOf(object), context: contextOf(patch), patch }))
    .filter(({ context }) => whyNotOfContext(proxy, context) === null);
}

function contextOf(patch: JsonObject): string {
  return String(objectAt(patch, "match").context ?? "ANY");
}

function envoyFilter(proxy: DumpedProxy, object: JsonObject, rivals: readonly Rival[]): Result[] {
  const resource = nameOf(object);
  const spec = objectAt(object, "spec");
  const selects = spec.workloadSelector !== undefined;
  const targets = listAt(spec, "targetRefs");
  const general = warningsOf(spec, selects || targets.length > 0);
  const other = whyElsewhere(proxy, object, ROOT_NAMESPACE);
  return listAt(spec, "configPatches").flatMap((patch, index) => {
    const part = `configPatches[${index}]`;
    const applyTo = String(patch.applyTo ?? "");
    const context = contextOf(patch);
    if (other !== null) return [elsewhere(resource, part, applyTo, other)];
    if (proxy.kind === "waypoint" && selects)
      return [missing(resource, part, applyTo, "waypoint-selector", "this proxy is a waypoint")];
    const not = whyNotOfContext(proxy, context);
    if (not !== null) return [elsewhere(resource, part, applyTo, not)];
    const warnings = [...general, ...relativeWarnings(patch)];
    if (!LOOKED_AT.has(applyTo))
      return [
        { ...notLookedAt(resource, part, applyTo, `patches of ${applyTo} are not looked at`), warnings },
      ];
    const found =
      applyTo === "CLUSTER"
        ? lookAtCluster(proxy, context, patch, rivals)
        : lookAtFilters(proxy, context, patch);
    return found.map((one) => resultOf(resource, part, one, warnings));
  });
}

/** Of a DestinationRule without subsets nothing is looked at. */
function parts(
  proxy: DumpedProxy,
  object: JsonObject,
  look: (proxy: DumpedProxy, object: JsonObject) => Part[],
): Result[] {
  const resource = nameOf(object);
  const all = look(proxy, object);
  if (all.length === 0)
    return [
      notLookedAt(
        resource,
        "spec",
        String(object.kind),
        "it has no subsets and no routes of HTTP to look at",
      ),
    ];
  return all.map(({ part, what, found }) => {
    if (proxy.kind === "plain") return elsewhere(resource, part, what, "this Envoy is none of istiod's");
    if ("elsewhere" in found) return elsewhere(resource, part, what, found.elsewhere);
    if ("unknown" in found) return notLookedAt(resource, part, what, found.unknown);
    return resultOf(resource, part, found);
  });
}

function missing(resource: string, part: string, what: string, reason: Reason, why: string): Result {
  return resultOf(resource, part, { what, reason, why });
}

function whyNotOfContext(proxy: DumpedProxy, context: string): string | null {
  if (context === "GATEWAY" && proxy.kind !== "router") return "it is for gateways";
  if (context.startsWith("SIDECAR") && proxy.kind === "router") return "it is for sidecars";
  return null;
}

function warningsOf(spec: JsonObject, isBound: boolean): string[] {
  return [
    ...(spec.priority === undefined
      ? ["no priority: which of several EnvoyFilters comes first then depends on when they were made"]
      : []),
    ...(isBound ? [] : ["no workloadSelector: it is for every proxy of its namespace"]),
  ];
}

function relativeWarnings(patch: JsonObject): string[] {
  const { operation } = objectAt(patch, "patch");
  const beside = objectAt(patch, "match", "listener", "filterChain", "filter", "subFilter").name;
  return operation === "INSERT_BEFORE" || operation === "INSERT_AFTER"
    ? [`its place is beside ${beside ?? "another filter"}: without that it is lost, silently`]
    : [];
}

function sidecar(
  proxy: DumpedProxy,
  object: JsonObject,
  others: readonly JsonObject[],
  rivals: readonly Rival[],
): Result[] {
  const resource = nameOf(object);
  const other = whyElsewhere(proxy, object, null);
  const earlier = others.find(
    (one) =>
      one.kind === "Sidecar" &&
      objectAt(one, "spec").workloadSelector !== undefined &&
      whyElsewhere(proxy, one, null) === null &&
      isBefore(one, object),
  );
  const beside = { earlier: earlier === undefined ? null : nameOf(earlier), rivals };
  return listAt(object, "spec", "ingress").map((ingress, index) => {
    const part = `ingress[${index}]`;
    const { number } = objectAt(ingress, "port");
    const { defaultEndpoint } = ingress;
    const what = `inbound|${number}||`;
    if (other !== null) return elsewhere(resource, part, what, other);
    if (typeof number !== "number" || typeof defaultEndpoint !== "string")
      return missing(resource, part, what, "other-value", "it has no port or no defaultEndpoint");
    return resultOf(resource, part, lookAtIngress(proxy, number, defaultEndpoint, beside));
  });
}

function lookAtMark(proxy: DumpedProxy, mark: Mark): Result[] {
  if (proxy.kind !== "sidecar") return [];
  if (mark.on === "pods") return nodeMetadata(proxy, mark);
  return mark.on === "service" ? nativeSession(proxy, mark) : [];
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

/** istiod's own persistent sessions are in its clients' sidecars. */
function nativeSession(proxy: DumpedProxy, { name, labels = {} }: Mark): Result[] {
  const cookie = labels[PERSISTENT_SESSION_LABEL];
  const resource = `Service ${name}`;
  const part = PERSISTENT_SESSION_LABEL;
  const what = `${STATEFUL_SESSION_FILTER} ${cookie}`;
  const isClient = proxy.clusters.some(
    (one) => one.name.startsWith("outbound|") && one.name.includes(`||${name}.`),
  );
  if (!isClient) return [elsewhere(resource, part, what, "this proxy has no cluster of that Service")];
  const configs = [...proxy.routes, ...proxy.listeners.map(({ config }) => config)];
  const isThere = configs.some((one) => {
    const text = JSON.stringify(one);
    return text.includes(STATEFUL_SESSION_FILTER) && text.includes(`"name":"${cookie}"`);
  });
  return [
    resultOf(resource, part, {
      what,
      reason: isThere ? null : "no-sessions",
      why: isThere ? null : `no route has ${STATEFUL_SESSION_FILTER} with the cookie ${cookie}`,
    }),
  ];
}

/** of JSON or YAML that somebody wrote: those that are objects */
export function objectsOf(documents: readonly unknown[]): JsonObject[] {
  return documents.flatMap((one) => {
    const object = asObject(one);
    if (object === null) return [];
    return object.kind === "List" ? listAt(object, "items") : [object];
  });
}
