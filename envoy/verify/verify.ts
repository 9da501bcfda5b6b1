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
} from "../config-dump.ts";
import { contextOf, targetsOf, whyElsewhere, whyNotOfPatch } from "../selection.ts";
import { lookAtCluster, lookAtIngress } from "./clusters.ts";
import { lookAtFilters } from "./filters.ts";
import { type Asked, lookAtMark, ownPrefix } from "./marks.ts";
import { elsewhere, notLookedAt, type Reason, type Result, resultOf } from "./result.ts";
import { isBefore, type Rival } from "./rivals.ts";
import { lookAtRoutes, lookAtSubsets, type Part } from "./subsets.ts";

const LOOKED_AT = new Set(["CLUSTER", "HTTP_FILTER", "NETWORK_FILTER"]);

/** those of a waypoint's targets whose filter chains it shares with other Services */
const OF_SERVICES: readonly unknown[] = ["Service", "ServiceEntry"];

/**
 * @param objects of Kubernetes: Sidecars, EnvoyFilters, subsets of DestinationRules and routes of VirtualServices are looked at
 * @param asked the policy that they are of; null: of none, then nobody knows which proxies have to know their hosts
 * @param others Sidecars and EnvoyFilters of somebody else: where one of them has its way, it is named
 */
export function verify(
  proxy: DumpedProxy,
  objects: readonly JsonObject[],
  asked: Asked | null = null,
  others: readonly JsonObject[] = [],
): Result[] {
  const rivals = others.flatMap((object) => rivalsOf(proxy, object));
  const own = asked === null ? null : ownPrefix(proxy, asked.policy);
  return [
    ...objects.flatMap((object) => {
      if (object.kind === "EnvoyFilter") return envoyFilter(proxy, object, rivals);
      if (object.kind === "Sidecar") return sidecar(proxy, object, others, rivals);
      if (object.kind === "DestinationRule") return parts(proxy, object, lookAtSubsets(proxy, object, own));
      if (object.kind === "VirtualService") return parts(proxy, object, lookAtRoutes(proxy, object, own));
      if (typeof object.kind !== "string") return [];
      return [notLookedAt(nameOf(object), "spec", object.kind, `a ${object.kind} is not looked at`)];
    }),
    ...(asked === null ? [] : asked.marks.flatMap((mark) => lookAtMark(proxy, mark, asked))),
  ];
}

function nameOf(object: JsonObject): string {
  const { namespace, name } = objectAt(object, "metadata");
  return `${object.kind} ${namespace ?? "default"}/${name}`;
}

/** Its patches of clusters, if it is for this proxy. */
function rivalsOf(proxy: DumpedProxy, object: JsonObject): Rival[] {
  if (object.kind !== "EnvoyFilter" || whyElsewhere(proxy, object, ROOT_NAMESPACE) !== null) return [];
  return listAt(object, "spec", "configPatches")
    .filter(({ applyTo }) => applyTo === "CLUSTER")
    .filter((patch) => whyNotOfPatch(proxy, patch) === null)
    .map((patch) => ({ resource: nameOf(object), context: contextOf(patch), patch }));
}

function envoyFilter(proxy: DumpedProxy, object: JsonObject, rivals: readonly Rival[]): Result[] {
  const resource = nameOf(object);
  const spec = objectAt(object, "spec");
  const selects = spec.workloadSelector !== undefined;
  const targets = targetsOf(spec);
  const general = warningsOf(spec, selects || targets.length > 0);
  const other = whyElsewhere(proxy, object, ROOT_NAMESPACE);
  return listAt(spec, "configPatches").flatMap((patch, index) => {
    const part = `configPatches[${index}]`;
    const applyTo = String(patch.applyTo ?? "");
    const context = contextOf(patch);
    if (other !== null) return [elsewhere(resource, part, applyTo, other)];
    if (proxy.kind === "waypoint" && targets.length === 0)
      return [missing(resource, part, applyTo, "waypoint-selector", "this proxy is a waypoint")];
    const not = whyNotOfPatch(proxy, patch);
    if (not !== null)
      return [
        "unknown" in not
          ? notLookedAt(resource, part, applyTo, not.unknown)
          : elsewhere(resource, part, applyTo, not.elsewhere),
      ];
    if (targets.length > 0 && targets.every(({ kind }) => OF_SERVICES.includes(kind)))
      return [
        notLookedAt(
          resource,
          part,
          applyTo,
          "which filter chains of a waypoint are a Service's is not looked at",
        ),
      ];
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
function parts(proxy: DumpedProxy, object: JsonObject, all: Part[]): Result[] {
  const resource = nameOf(object);
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

/** of JSON or YAML that somebody wrote: those that are objects */
export function objectsOf(documents: readonly unknown[]): JsonObject[] {
  return documents.flatMap((one) => {
    const object = asObject(one);
    if (object === null) return [];
    return object.kind === "List" ? listAt(object, "items") : [object];
  });
}
