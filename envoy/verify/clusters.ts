/** EnvoyFilter patches of clusters, and where a Sidecar's ingress leads: are they in the proxy, and if not, why. Pure. */
import {
  asObject,
  type DumpedCluster,
  type DumpedProxy,
  type Json,
  type JsonObject,
  listAt,
  objectAt,
} from "../config-dump.ts";
import { type Difference, differences } from "./contains.ts";
import type { Found, Reason } from "./result.ts";
import { REMOVE, type Rival, removerOf, setterOf } from "./rivals.ts";

const ORIGINAL_DST = "ORIGINAL_DST";

/** `inbound|9000||`, `outbound|8080|v1|chat.demo.svc.cluster.local`; null: of neither kind */
export function keyOf(
  name: string,
): { direction: string; port: number; subset: string; host: string } | null {
  const match = /^(inbound|outbound)\|(\d+)\|([^|]*)\|([^|]*)$/.exec(name);
  if (match === null) return null;
  const [, direction = "", port, subset = "", host = ""] = match;
  return { direction, port: Number(port), subset, host };
}

/** That it has outbound clusters of, each once. @param prefix `chat.demo.svc.` */
export function hostsOf(proxy: DumpedProxy, prefix: string): string[] {
  const keys = proxy.clusters.map(({ name }) => keyOf(name));
  const hosts = keys.flatMap((key) => (key?.direction === "outbound" ? [key.host] : []));
  return [...new Set(hosts)].filter((host) => host.startsWith(prefix));
}

/** @param context of the patch: null for every one */
function isMatched(name: string, context: string, match: JsonObject): boolean {
  const key = keyOf(name);
  if (context === "SIDECAR_INBOUND" && key?.direction !== "inbound") return false;
  if ((context === "SIDECAR_OUTBOUND" || context === "GATEWAY") && key?.direction === "inbound") return false;
  const { name: wanted, portNumber, subset, service } = match;
  if (wanted !== undefined && wanted !== name) return false;
  if (portNumber !== undefined && portNumber !== key?.port) return false;
  if (subset !== undefined && subset !== key?.subset) return false;
  // an inbound cluster names no host, so istiod looks at its port alone
  return service === undefined || key?.direction === "inbound" || service === key?.host;
}

/** Those for this cluster. */
function rivalsAt(name: string, rivals: readonly Rival[]): Rival[] {
  return rivals.filter(({ context, patch }) => isMatched(name, context, objectAt(patch, "match", "cluster")));
}

export function lookAtCluster(
  proxy: DumpedProxy,
  context: string,
  configPatch: JsonObject,
  rivals: readonly Rival[],
): Found[] {
  const match = objectAt(configPatch, "match", "cluster");
  const { operation = "MERGE" } = objectAt(configPatch, "patch");
  const value = objectAt(configPatch, "patch", "value");
  const label = `CLUSTER ${operation}`;
  if (operation === "ADD") {
    const there = proxy.clusters.find(({ name }) => name === value.name);
    return [there === undefined ? missing(`${label} ${value.name}`, proxy) : whole(`${label} ${value.name}`)];
  }
  const all = proxy.clusters.filter(({ name, isStatic }) => !isStatic && isMatched(name, context, match));
  if (operation === REMOVE)
    return all.length === 0
      ? [whole(label)]
      : all.map(({ name }) => ({ what: `${label} ${name}`, reason: "not-pushed", why: `${name} is there` }));
  if (all.length === 0) {
    const wanted = match.name ?? match.portNumber ?? "any";
    const names = proxy.clusters.filter(({ name }) => keyOf(name) !== null).map(({ name }) => name);
    const shown = context === "SIDECAR_INBOUND" ? names.filter((name) => name.startsWith("inbound")) : names;
    const why = `no cluster matches ${JSON.stringify(match)}; there are ${shown.slice(0, 8).join(", ") || "none of istiod's"}`;
    const what = `${label} ${wanted}`;
    const remover = removerOf(rivals.filter(({ patch }) => isOfSame(match, patch)));
    if (remover !== null) return [{ what, reason: "other-value", why: `${why}: ${remover} takes it away` }];
    // Envoy has nothing to keep instead of a cluster whose first update it refuses
    const refused = proxy.rejected?.clusters ?? 0;
    if (refused === 0) return [{ what, reason: "no-target", why }];
    const orRefused = `${why}; Envoy has refused ${refused} updates of clusters since it started, and it may be one of those`;
    return [{ what, reason: "rejected", why: orRefused }];
  }
  return all.map((cluster) => ({
    what: `${label} ${cluster.name}`,
    ...merged(proxy, cluster, value, rivalsAt(cluster.name, rivals)),
  }));
}

/** Of a cluster that is not there only the matches are known. */
function isOfSame(match: JsonObject, patch: JsonObject): boolean {
  const { name, portNumber } = objectAt(patch, "match", "cluster");
  const port = match.portNumber ?? keyOf(String(match.name ?? ""))?.port;
  return (name === undefined || keyOf(String(name))?.port === port) && (portNumber ?? port) === port;
}

function whole(what: string): Found {
  return { what, reason: null, why: null };
}

function missing(what: string, proxy: DumpedProxy): Found {
  return { what, ...refusedOr(proxy, null, "it is not there") };
}

function merged(
  proxy: DumpedProxy,
  cluster: DumpedCluster,
  value: JsonObject,
  rivals: readonly Rival[],
): Omit<Found, "what"> {
  const found = differences(value, cluster.config);
  const others = value.type === undefined ? [] : otherPlaces(cluster.config, placesOf(value));
  if (isKept(proxy, cluster, value, rivals))
    return {
      reason: "lb-policy",
      why: `its ${cluster.config.lb_policy} is not of this patch, and Envoy has refused ${proxy.rejected?.clusters} updates of clusters since it started: it is the one before`,
    };
  if (found.length === 0)
    return others.length === 0
      ? { reason: null, why: null, warnings: refusalsBeside(proxy, rivals) }
      : { reason: "other-value", why: alsoLeads(cluster, others, rivals) };
  const { transport_socket: socket, ...rest } = value;
  const matches = listAt(cluster.config, "transport_socket_matches");
  const isOfMatch = matches.some(({ name }) => name === asObject(socket)?.name);
  if (socket !== undefined && matches.length > 0 && !isOfMatch)
    return {
      reason: "auto-mtls",
      why: "istiod chooses its socket by transport_socket_matches (automatic mTLS), and dropped the whole patch",
    };
  const ofSocket = found.filter(({ path }) => path.startsWith("transport_socket"));
  if (socket !== undefined && ofSocket.length === 0 && Object.keys(rest).length > 0)
    return {
      reason: "beside-transport-socket",
      why: `beside transport_socket istiod dropped ${fieldsOf(found)}`,
    };
  if (isLbMissing(cluster, value))
    return {
      reason: "lb-policy",
      why: `it is still ${ORIGINAL_DST}: Envoy refused "cluster provided LB specified but cluster did not provide one"`,
    };
  const zeros = found.filter(({ isZero }) => isZero);
  if (zeros.length === found.length) return { reason: "enum-zero", why: valuesOf(zeros) };
  for (const one of found) {
    const setter = setterOf(rivals, one.path, one.found);
    if (setter !== null) return { reason: "other-value", why: `${valuesOf([one])}: ${setter} sets it` };
  }
  return refusedOr(
    proxy,
    cluster.error,
    `${fieldsOf(found)} ${found.length === 1 ? "is" : "are"} not as the patch has it`,
  );
}

/**
 * A cluster of an earlier patch, which Envoy keeps instead of one that it refuses for its lb_policy: this patch sets none, and what istiod
 * makes without it (CLUSTER_PROVIDED, and ROUND_ROBIN of a Sidecar) is another.
 */
function isKept(
  { rejected }: DumpedProxy,
  { name, config }: DumpedCluster,
  { type, lb_policy: policy = "ROUND_ROBIN" }: JsonObject,
  rivals: readonly Rival[],
): boolean {
  const has = config.lb_policy ?? "ROUND_ROBIN";
  return (
    (rejected?.clusters ?? 0) > 0 &&
    keyOf(name)?.direction === "inbound" &&
    type !== undefined &&
    type !== ORIGINAL_DST &&
    policy === "ROUND_ROBIN" &&
    has !== "ROUND_ROBIN" &&
    has !== "CLUSTER_PROVIDED" &&
    setterOf(rivals, "lb_policy", has) === null
  );
}

function alsoLeads({ name }: DumpedCluster, others: string[], rivals: readonly Rival[]): string {
  const setter = rivals.find(({ patch }) => {
    const theirs = placesOf(objectAt(patch, "patch", "value"));
    return others.some((place) => theirs.includes(place));
  });
  return `${name} also leads to ${others.join(", ")}${setter === undefined ? "" : `: ${setter.resource} sets it`}`;
}

/** What is there may be what Envoy had before somebody else's patch. */
function refusalsBeside({ rejected }: DumpedProxy, rivals: readonly Rival[]): string[] {
  const count = rejected?.clusters ?? 0;
  const whose = [...new Set(rivals.map(({ resource }) => resource))].join(", ");
  return count === 0 || whose === ""
    ? []
    : [
        `Envoy has refused ${count} updates of clusters since it started, and ${whose} is for this one, too: if it refused that, an Envoy that starts anew has none of it`,
      ];
}

/** A patch that makes an ORIGINAL_DST cluster another, and leaves CLUSTER_PROVIDED. */
function isLbMissing({ config }: DumpedCluster, { type, lb_policy: policy }: JsonObject): boolean {
  return (
    type !== undefined &&
    type !== config.type &&
    config.type === ORIGINAL_DST &&
    (policy ?? "ROUND_ROBIN") === "ROUND_ROBIN"
  );
}

function valuesOf(found: Difference[]): string {
  return found
    .map(({ path, wanted, found: has }) => `${path} is ${JSON.stringify(has)}, not ${JSON.stringify(wanted)}`)
    .join(", ");
}

function fieldsOf(found: Difference[]): string {
  return found.map(({ path }) => path).join(", ");
}

/**
 * Envoy keeps what it had before when an update cannot be taken.
 * @param error what it says of it, if it does. @param kinds whose refusals may be of it
 */
export function refusedOr(
  { rejected }: DumpedProxy,
  error: string | null,
  otherwise: string,
  kinds: readonly (keyof NonNullable<DumpedProxy["rejected"]>)[] = ["clusters", "listeners"],
): { reason: Reason; why: string } {
  if (error !== null)
    return { reason: "rejected", why: `Envoy refused it and goes on with the one before: ${error}` };
  const count = kinds.reduce((sum, kind) => sum + (rejected?.[kind] ?? 0), 0);
  return count > 0
    ? { reason: "rejected", why: `${otherwise}, and Envoy has refused ${count} updates since it started` }
    : { reason: "not-pushed", why: otherwise };
}

/** @param endpoint `127.0.0.1:15900`. @param earlier Sidecar that selects the proxy, too, and was made before; null: none */
export function lookAtIngress(
  proxy: DumpedProxy,
  port: number,
  endpoint: string,
  { earlier, rivals }: { earlier: string | null; rivals: readonly Rival[] },
): Found {
  const name = `inbound|${port}||`;
  const what = `${name} → ${endpoint}`;
  const cluster = proxy.clusters.find((one) => one.name === name);
  const here = rivalsAt(name, rivals);
  const none = (why: string, whose: string | null): Found =>
    whose === null
      ? { what, ...refusedOr(proxy, null, why) }
      : { what, reason: "other-value", why: `${why}: ${whose}` };
  const holds = earlier === null ? null : `${earlier} holds`;
  if (cluster === undefined) {
    const remover = removerOf(here);
    return none(`there is no cluster ${name}`, remover === null ? holds : `${remover} takes it away`);
  }
  const places = placesOf(cluster.config);
  const others = otherPlaces(cluster.config, [endpoint]);
  if (places.includes(endpoint))
    return others.length === 0
      ? { what, reason: null, why: null, warnings: refusalsBeside(proxy, here) }
      : { what, reason: "other-value", why: alsoLeads(cluster, others, here) };
  if (cluster.error !== null) return { what, ...refusedOr(proxy, cluster.error, "") };
  if (places.length === 0) {
    const why = `${name} is ${cluster.config.type}, as istiod makes it of a Service`;
    return none(holds === null ? `${why}: no Sidecar holds` : why, holds);
  }
  const setter = setterOf(here, "load_assignment.endpoints", endpointsOf(cluster.config));
  const by = holds ?? (setter === null ? null : `${setter} sets it`);
  const why = `${name} leads to ${places.join(", ")}${by === null ? "" : `: ${by}`}`;
  return { what, reason: "other-value", why };
}

function endpointsOf(config: JsonObject): Json | undefined {
  return objectAt(config, "load_assignment").endpoints;
}

/** `127.0.0.1:15900`, `unix:///run/it.sock` */
function placesOf(config: JsonObject): string[] {
  return listAt(config, "load_assignment", "endpoints")
    .flatMap((one) => listAt(one, "lb_endpoints"))
    .map((one) => {
      const { address, port_value: number } = objectAt(one, "endpoint", "address", "socket_address");
      const { path } = objectAt(one, "endpoint", "address", "pipe");
      return path === undefined ? `${address}:${number}` : `unix://${path}`;
    });
}

/** Where it leads besides. @param wanted none: wherever it leads */
function otherPlaces(config: JsonObject, wanted: readonly string[]): string[] {
  return wanted.length === 0 ? [] : placesOf(config).filter((place) => !wanted.includes(place));
}
