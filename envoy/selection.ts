/**
 * Which proxies a resource of Istio is for, as istiod chooses them. Pure.
 * Source: pilot/pkg/model/policyattachment.go (ShouldAttachPolicy), envoyfilter.go (proxyMatch) of istiod 1.31
 */
import { type DumpedProxy, type JsonObject, listAt, objectAt, ROOT_NAMESPACE } from "./config-dump.ts";

/** of pods that are a Gateway's */
const GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name";
const WAYPOINT_CLASS = "istio-waypoint";
/** of a proxyVersion: of a longer one istiod makes nothing */
const VERSION_LENGTH_MAX = 1_024;

/** null: it is for this proxy. @param rootNamespace whose resources are for every namespace; null: none is */
export function whyElsewhere(
  proxy: DumpedProxy,
  object: JsonObject,
  rootNamespace: string | null,
): string | null {
  const { namespace = "default" } = objectAt(object, "metadata");
  if (proxy.kind === "plain") return "this Envoy is none of istiod's";
  if (namespace !== proxy.namespace && namespace !== rootNamespace)
    return `it is of namespace ${namespace}, this proxy of ${proxy.namespace}`;
  const spec = objectAt(object, "spec");
  const targets = targetsOf(spec);
  if (targets.length > 0) return whyNotAttached(proxy, String(namespace), targets);
  const wanted = Object.entries({
    ...objectAt(spec, "workloadSelector", "labels"),
    ...objectAt(spec, "selector", "matchLabels"),
  });
  const other = wanted.find(([key, value]) => proxy.labels[key] !== value);
  return other === undefined
    ? null
    : `it selects ${other[0]}=${other[1]}, this pod has ${proxy.labels[other[0]] ?? "none"}`;
}

/** Gateways, waypoints or Services that it is attached to: then no selector holds. */
export function targetsOf(spec: JsonObject): JsonObject[] {
  const all = listAt(spec, "targetRefs");
  return all.length === 0 && spec.targetRef !== undefined ? [objectAt(spec, "targetRef")] : all;
}

function whyNotAttached(proxy: DumpedProxy, namespace: string, targets: JsonObject[]): string | null {
  const gateway = proxy.labels[GATEWAY_LABEL];
  const isOf = ({ kind, name }: JsonObject): boolean => {
    if (kind === "Gateway") return name === gateway && namespace === proxy.namespace;
    if (proxy.kind !== "waypoint") return false;
    if (kind === "GatewayClass") return name === WAYPOINT_CLASS && namespace === ROOT_NAMESPACE;
    return kind === "Service" || kind === "ServiceEntry";
  };
  if (gateway !== undefined && targets.some(isOf)) return null;
  const shown = targets.map(({ kind, name }) => `${kind} ${name}`).join(", ");
  return `it is attached to ${shown}, this proxy is ${gateway === undefined ? "no Gateway's" : `of Gateway ${gateway}`}`;
}

/** Of an EnvoyFilter's patch, whose EnvoyFilter is for this proxy; null: so is the patch. */
export function whyNotOfPatch(
  proxy: DumpedProxy,
  patch: JsonObject,
): { elsewhere: string } | { unknown: string } | null {
  const context = contextOf(patch);
  if (context === "GATEWAY" && proxy.kind !== "router") return { elsewhere: "it is for gateways" };
  if (context.startsWith("SIDECAR") && proxy.kind === "router") return { elsewhere: "it is for sidecars" };
  const { proxyVersion } = objectAt(patch, "match", "proxy");
  if (typeof proxyVersion === "string" && proxyVersion !== "") {
    const version = String(proxy.metadata.ISTIO_VERSION ?? "");
    const pattern = patternOf(proxyVersion);
    if (pattern === null) return { unknown: `its proxyVersion ${proxyVersion} is not understood here` };
    if (version === "" || proxyVersion.length > VERSION_LENGTH_MAX || !pattern.test(version))
      return { elsewhere: `it is for proxies of ${proxyVersion}, this one is of ${version || "no version"}` };
  }
  const other = Object.entries(objectAt(patch, "match", "proxy", "metadata")).find(
    ([key, value]) => proxy.metadata[key] !== value,
  );
  return other === undefined
    ? null
    : { elsewhere: `it is for proxies whose metadata have ${other[0]}: ${other[1]}` };
}

export function contextOf(patch: JsonObject): string {
  return String(objectAt(patch, "match").context ?? "ANY");
}

/** istiod's are RE2's, of which JavaScript has almost all; null: not this one */
function patternOf(text: string): RegExp | null {
  try {
    return new RegExp(text);
  } catch {
    return null;
  }
}
