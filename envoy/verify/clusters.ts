/** EnvoyFilter patches of clusters, and where a Sidecar's ingress leads: are they in the proxy, and if not, why. Pure. */
import {
  asObject,
  type DumpedCluster,
  type DumpedProxy,
  type JsonObject,
  listAt,
  objectAt,
} from "../config-dump.ts";
import { type Difference, differences } from "./contains.ts";
import type { Found, Reason } from "./result.ts";

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

export function lookAtCluster(proxy: DumpedProxy, context: string, configPatch: JsonObject): Found[] {
  const match = objectAt(configPatch, "match", "cluster");
  const { operation = "MERGE" } = objectAt(configPatch, "patch");
  const value = objectAt(configPatch, "patch", "value");
  const label = `CLUSTER ${operation}`;
  if (operation === "ADD") {
    const there = proxy.clusters.find(({ name }) => name === value.name);
    return [there === undefined ? missing(`${label} ${value.name}`, proxy) : whole(`${label} ${value.name}`)];
  }
  const all = proxy.clusters.filter(({ name, isStatic }) => !isStatic && isMatched(name, context, match));
  if (operation === "REMOVE")
    return all.length === 0
      ? [whole(label)]
      : all.map(({ name }) => ({ what: `${label} ${name}`, reason: "not-pushed", why: `${name} is there` }));
  if (all.length === 0) {
    const wanted = match.name ?? match.portNumber ?? "any";
    const names = proxy.clusters.filter(({ name }) => keyOf(name) !== null).map(({ name }) => name);
    const shown = context === "SIDECAR_INBOUND" ? names.filter((name) => name.startsWith("inbound")) : names;
    return [
      {
        what: `${label} ${wanted}`,
        reason: "no-target",
        why: `no cluster matches ${JSON.stringify(match)}; there are ${shown.slice(0, 8).join(", ") || "none of istiod's"}`,
      },
    ];
  }
  return all.map((cluster) => ({ what: `${label} ${cluster.name}`, ...merged(proxy, cluster, value) }));
}

function whole(what: string): Found {
  return { what, reason: null, why: null };
}

function missing(what: string, proxy: DumpedProxy): Found {
  return { what, ...refusedOr(proxy, null, "it is not there") };
}

function merged(proxy: DumpedProxy, cluster: DumpedCluster, value: JsonObject): Omit<Found, "what"> {
  const found = differences(value, cluster.config);
  if (found.length === 0) return { reason: null, why: null };
  const { transport_socket: socket, ...others } = value;
  const matches = listAt(cluster.config, "transport_socket_matches");
  const isOfMatch = matches.some(({ name }) => name === asObject(socket)?.name);
  if (socket !== undefined && matches.length > 0 && !isOfMatch)
    return {
      reason: "auto-mtls",
      why: "istiod chooses its socket by transport_socket_matches (automatic mTLS), and dropped the whole patch",
    };
  const ofSocket = found.filter(({ path }) => path.startsWith("transport_socket"));
  if (socket !== undefined && ofSocket.length === 0 && Object.keys(others).length > 0)
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
  if (zeros.length === found.length)
    return {
      reason: "enum-zero",
      why: `${zeros.map(({ path, wanted, found: has }) => `${path} is ${JSON.stringify(has)}, not ${JSON.stringify(wanted)}`).join(", ")}`,
    };
  return refusedOr(
    proxy,
    cluster.error,
    `${fieldsOf(found)} ${found.length === 1 ? "is" : "are"} not as the patch has it`,
  );
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

function fieldsOf(found: Difference[]): string {
  return found.map(({ path }) => path).join(", ");
}

/** Envoy keeps what it had before when an update cannot be taken. @param error what it says of it, if it does */
export function refusedOr(
  { rejected }: DumpedProxy,
  error: string | null,
  otherwise: string,
): { reason: Reason; why: string } {
  if (error !== null)
    return { reason: "rejected", why: `Envoy refused it and goes on with the one before: ${error}` };
  const count = (rejected?.clusters ?? 0) + (rejected?.listeners ?? 0);
  return count > 0
    ? { reason: "rejected", why: `${otherwise}, and Envoy has refused ${count} updates since it started` }
    : { reason: "not-pushed", why: otherwise };
}

/** @param endpoint `127.0.0.1:15900` */
export function lookAtIngress(proxy: DumpedProxy, port: number, endpoint: string): Found {
  const name = `inbound|${port}||`;
  const what = `${name} → ${endpoint}`;
  const cluster = proxy.clusters.find((one) => one.name === name);
  if (cluster === undefined) return { what, ...refusedOr(proxy, null, `there is no cluster ${name}`) };
  const places = listAt(cluster.config, "load_assignment", "endpoints")
    .flatMap((one) => listAt(one, "lb_endpoints"))
    .map((one) => {
      const { address, port_value: number } = objectAt(one, "endpoint", "address", "socket_address");
      const { path } = objectAt(one, "endpoint", "address", "pipe");
      return path === undefined ? `${address}:${number}` : `unix://${path}`;
    });
  if (places.includes(endpoint)) return { what, reason: null, why: null };
  if (cluster.error !== null) return { what, ...refusedOr(proxy, cluster.error, "") };
  if (places.length > 0) return { what, reason: "other-value", why: `${name} leads to ${places.join(", ")}` };
  return {
    what,
    ...refusedOr(
      proxy,
      null,
      `${name} is ${cluster.config.type}, as istiod makes it of a Service: no Sidecar holds`,
    ),
  };
}
