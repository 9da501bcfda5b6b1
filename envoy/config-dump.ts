/**
 * What an Envoy says of itself: /config_dump, as a file or of its admin interface, and there /server_info and /stats too. Everything in it
 * is read loosely: versions add fields, and extensions have their own.
 * Source: envoy/admin/v3/config_dump.proto, config_dump_shared.proto
 */
import { readFileSync, statSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { WAYPOINT_LISTENER } from "./generate/envoy-filter.ts";

const DUMP_BYTES_MAX = 268_435_456;
const ANSWER_MS_MAX = 30_000;

/** where istiod looks for what is for every namespace, unless its mesh says otherwise */
export const ROOT_NAMESPACE = "istio-system";

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type JsonObject = { [key: string]: Json };

export interface DumpedCluster {
  name: string;
  config: JsonObject;
  /** of the bootstrap */
  isStatic: boolean;
  /** why the last update of it was refused; Envoy does not tell it of every kind */
  error: string | null;
}

export interface DumpedListener {
  name: string;
  /** null: the first one was refused */
  config: JsonObject | null;
  /** of the bootstrap */
  isStatic: boolean;
  error: string | null;
  /** an earlier one whose connections have not ended yet */
  isDraining: boolean;
}

export interface DumpedProxy {
  /** sidecar, router or waypoint, as istiod calls it; plain: none of istiod's */
  kind: "sidecar" | "router" | "waypoint" | "plain";
  id: string;
  namespace: string | null;
  labels: Record<string, string>;
  metadata: JsonObject;
  clusters: DumpedCluster[];
  listeners: DumpedListener[];
  /** RouteConfigurations; behind istiod none of the bootstrap's */
  routes: JsonObject[];
  /** by cluster: how many endpoints it has been told; null: the dump was made without them */
  endpoints: Map<string, number> | null;
  /** of its command line; null: not known */
  drainSeconds: number | null;
  /** updates refused since it started; null: not known. Of routes 0, too, where Envoy does not count them, as Istio's does not unless it is told to */
  rejected: { clusters: number; listeners: number; routes: number } | null;
}

/** @throws HoldfastError `CONFIG_INVALID` */
export function readDumpFile(file: string): DumpedProxy {
  let text: string;
  try {
    const { size } = statSync(file);
    if (size > DUMP_BYTES_MAX) throw new Error(`it has ${size} bytes, at most ${DUMP_BYTES_MAX} are read`);
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw fail("CONFIG_INVALID", `${file}: cannot be read: ${messageOf(cause)}`, { cause });
  }
  return readDump(parsed(text, file), file);
}

/** @param base of the admin interface, as http://127.0.0.1:15000. @throws HoldfastError `ENVOY_UNREACHABLE`, `CONFIG_INVALID` */
export async function askEnvoy(base: string): Promise<DumpedProxy> {
  if (!/^https?:\/\//.test(base) || !URL.canParse(base))
    throw fail(
      "CONFIG_INVALID",
      `expected the URL of Envoy's admin interface, as http://127.0.0.1:15000, got ${base}`,
    );
  const ask = (path: string) => get(new URL(path, base.endsWith("/") ? base : `${base}/`));
  const proxy = readDump(parsed(await ask("config_dump?include_eds"), base), base);
  const info = parsed(await ask("server_info"), base) as { command_line_options?: { drain_time?: string } };
  const stats = await ask("stats?filter=update_rejected$");
  return {
    ...proxy,
    drainSeconds: secondsOf(info.command_line_options?.drain_time) ?? proxy.drainSeconds,
    rejected: {
      clusters: statOf(stats, "cluster_manager.cds"),
      listeners: statOf(stats, "listener_manager.lds"),
      // one of each route configuration: http.PREFIX.rds.NAME
      routes: statOf(stats, "http\\..*\\.rds\\..*"),
    },
  };
}

async function get(url: URL): Promise<string> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(ANSWER_MS_MAX) });
    if (!response.ok) throw new Error(`it answers ${response.status}`);
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    for await (const chunk of response.body ?? []) {
      bytes += chunk.length;
      if (bytes > DUMP_BYTES_MAX) throw new Error(`more than ${DUMP_BYTES_MAX} bytes`);
      chunks.push(chunk);
    }
    return Buffer.concat(chunks).toString("utf8");
  } catch (cause) {
    const why = messageOf((cause as { cause?: unknown }).cause ?? cause);
    throw fail("ENVOY_UNREACHABLE", `no answer from Envoy's admin interface at ${url.href}: ${why}`, {
      cause,
    });
  }
}

/** @param prefix a pattern: the sum of all that it matches */
function statOf(text: string, prefix: string): number {
  const found = text.matchAll(new RegExp(`^${prefix}\\.update_rejected: (\\d+)$`, "gm"));
  return [...found].reduce((sum, [, count]) => sum + Number(count), 0);
}

function parsed(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw fail("CONFIG_INVALID", `${where}: expected JSON, as of /config_dump: ${messageOf(cause)}`, {
      cause,
    });
  }
}

/** @param where for messages. @throws HoldfastError `CONFIG_INVALID` */
export function readDump(dump: unknown, where: string): DumpedProxy {
  const configs = asObject(dump)?.configs;
  if (!Array.isArray(configs))
    throw fail(
      "CONFIG_INVALID",
      `${where}: expected what Envoy answers to GET /config_dump, with its list "configs"`,
    );
  const all = configs.map(asObject).filter((one) => one !== null);
  const of = (type: string): JsonObject[] =>
    all.filter((one) => String(one["@type"] ?? "").endsWith(`.${type}`));
  const node = objectAt(of("BootstrapConfigDump")[0], "bootstrap", "node");
  const metadata = objectAt(node, "metadata");
  const id = String(node.id ?? "");
  const word = id.split("~")[0];
  const kind = word === "sidecar" || word === "router" || word === "waypoint" ? word : "plain";
  const listeners = of("ListenersConfigDump").flatMap(listenersOf);
  const unpushed =
    kind === "plain" ? [] : listeners.filter(({ isStatic }) => isStatic).flatMap(inlineRoutesOf);
  return {
    kind,
    id,
    namespace: typeof metadata.NAMESPACE === "string" ? metadata.NAMESPACE : null,
    labels: stringsOf(metadata.LABELS),
    metadata,
    clusters: of("ClustersConfigDump").flatMap(clustersOf),
    listeners,
    routes: of("RoutesConfigDump")
      .flatMap((one) => [...listAt(one, "static_route_configs"), ...listAt(one, "dynamic_route_configs")])
      .map((route) => objectAt(route, "route_config"))
      .filter(({ "@type": _, ...route }) => !unpushed.some((one) => isDeepStrictEqual(one, route))),
    endpoints: endpointsOf(of("EndpointsConfigDump")),
    drainSeconds: drainOf(metadata),
    rejected: null,
  };
}

function clustersOf(dump: JsonObject): DumpedCluster[] {
  const read = (list: string, isStatic: boolean) =>
    listAt(dump, list).map((one): DumpedCluster => {
      const config = objectAt(one, "cluster");
      return { name: String(config.name ?? ""), config, isStatic, error: errorOf(one) };
    });
  return [
    ...read("static_clusters", true),
    ...read("dynamic_active_clusters", false),
    ...read("dynamic_warming_clusters", false),
  ];
}

function listenersOf(dump: JsonObject): DumpedListener[] {
  const fixed = listAt(dump, "static_listeners").map((one) => objectAt(one, "listener"));
  return [
    ...fixed.map((config): DumpedListener => {
      const name = String(config.name ?? "");
      return { name, config, isStatic: true, error: null, isDraining: false };
    }),
    ...listAt(dump, "dynamic_listeners").map((one): DumpedListener => {
      const state = asObject(one.active_state ?? one.warming_state ?? null);
      return {
        name: String(one.name ?? ""),
        config: state === null ? null : objectAt(state, "listener"),
        isStatic: false,
        error: errorOf(one),
        isDraining: one.draining_state !== undefined,
      };
    }),
  ];
}

/** Envoy calls static what any listener has in itself, also one that was pushed. */
function inlineRoutesOf({ config }: DumpedListener): JsonObject[] {
  return listAt(config, "filter_chains")
    .flatMap((chain) => listAt(chain, "filters"))
    .map((filter) => objectAt(filter, "typed_config", "route_config"));
}

/** Envoy shows a cluster that has been told nothing with no endpoints at all. */
function endpointsOf(dumps: JsonObject[]): Map<string, number> | null {
  if (dumps.length === 0) return null;
  const all = dumps.flatMap((one) => [
    ...listAt(one, "static_endpoint_configs"),
    ...listAt(one, "dynamic_endpoint_configs"),
  ]);
  return new Map(
    all.map((one) => {
      const assignment = objectAt(one, "endpoint_config");
      const count = listAt(assignment, "endpoints").flatMap((group) => listAt(group, "lb_endpoints")).length;
      return [String(assignment.cluster_name ?? ""), count];
    }),
  );
}

function errorOf(one: JsonObject): string | null {
  const { details } = objectAt(one, "error_state");
  return typeof details === "string" ? details : null;
}

/** pilot-agent puts what the pod's annotation says there */
function drainOf(metadata: JsonObject): number | null {
  return secondsOf(objectAt(metadata, "PROXY_CONFIG").drainDuration) ?? null;
}

/** "86400s" */
export function secondsOf(text: unknown): number | null {
  const match = typeof text === "string" ? /^(\d+(?:\.\d+)?)s$/.exec(text) : null;
  return match === null ? null : Number(match[1]);
}

export function asObject(value: unknown): JsonObject | null {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : null;
}

/** {} where there is none */
export function objectAt(value: unknown, ...path: string[]): JsonObject {
  let at = asObject(value);
  for (const key of path) at = asObject(at?.[key]);
  return at ?? {};
}

/** of objects; [] where there is none */
export function listAt(value: unknown, ...path: string[]): JsonObject[] {
  const list = objectAt(value, ...path.slice(0, -1))[path.at(-1) as string];
  return Array.isArray(list) ? list.map(asObject).filter((one) => one !== null) : [];
}

function stringsOf(value: unknown): Record<string, string> {
  const all = Object.entries(asObject(value) ?? {});
  return Object.fromEntries(all.filter((pair): pair is [string, string] => typeof pair[1] === "string"));
}

// ---- listeners

/** where a virtual listener takes all that comes in (istio: 15006) */
const INBOUND = "virtualInbound";

export interface Chain {
  listener: DumpedListener;
  config: JsonObject;
  /** its own, else the listener's */
  port: number | null;
  filters: JsonObject[];
}

export type Direction = "inbound" | "outbound";

/**
 * Behind istiod not of the bootstrap's listeners: pilot-agent's own (15090 for metrics, 15021 for probes) have HTTP, nobody's sessions, and are
 * never patched.
 * @param port null: of all
 */
export function chainsOf(proxy: DumpedProxy, direction: Direction | null, port: number | null): Chain[] {
  return proxy.listeners.flatMap((listener) => {
    const { config } = listener;
    if (config === null || (listener.isStatic && proxy.kind !== "plain")) return [];
    if (direction !== null && directionOf(listener) !== direction) return [];
    const own = objectAt(config, "address", "socket_address").port_value;
    const chains = [...listAt(config, "filter_chains"), ...defaultChain(config)];
    return chains
      .map((chain): Chain => {
        const destination = objectAt(chain, "filter_chain_match").destination_port;
        const number = typeof destination === "number" ? destination : own;
        return {
          listener,
          config: chain,
          port: typeof number === "number" ? number : null,
          filters: listAt(chain, "filters"),
        };
      })
      .filter((chain) => port === null || chain.port === port);
  });
}

function defaultChain(config: JsonObject): JsonObject[] {
  const chain = asObject(config.default_filter_chain);
  return chain === null ? [] : [chain];
}

export function directionOf({ name, config }: DumpedListener): Direction | null {
  const said = config?.traffic_direction;
  if (said === "INBOUND" || name === INBOUND || name === WAYPOINT_LISTENER) return "inbound";
  return said === "OUTBOUND" ? "outbound" : null;
}
