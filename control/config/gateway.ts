/** The gateway's configuration file: its shape, its defaults, and what its keys must agree on. */
import * as z from "zod";
import { messageOf } from "#proxy/contract/errors.ts";
import type { GatewayConfig, GatewayListener, GatewayRoute } from "#proxy/contract/gateway.ts";
import { type Limit, MS_MAX, PROXY_LIMITS } from "#proxy/contract/limits.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { ServiceEntry } from "../api/gateway-table.ts";
import { formatEndpoint } from "./endpoint.ts";
import { type LinkKeySource, readLinkKeys } from "./link-key-file.ts";
import { checkSession, namingOf } from "./port.ts";
import { clientKeys, count, endpoint, key, links, list, name, session, storeUrl, truth } from "./schema.ts";
import { invalid, keyFileOf, parseObject, parseYaml, type Refuse, readFile } from "./yaml-file.ts";

/** What `holdfast gateway` is started with. */
export interface GatewayFile extends GatewayConfig {
  store: string;
  /** the file is read again when it changes */
  keySource: LinkKeySource;
  /** at the start, of each workload that clients are led to */
  linkKeys: ReadonlyMap<string, SharedKeys>;
  /** `/healthz`, `/readyz`, `/metrics` */
  admin: Endpoint | null;
  /** in a cluster, in place of listeners: what the controller tells of Services. null: the file has them */
  services: ServicesSource | null;
}

export interface ServicesSource {
  /** name of the ConfigMap, in this pod's namespace */
  configMap: string;
  /** of this pod, where it listens */
  address: string;
}

const OWNER_MS = 30_000;
const DRAIN_MS = 30_000;
const DRAIN_MS_MAX = 86_400_000;
const HELD_SESSIONS = 1_024;
const NAME_CHARS_MAX = 63;
/** a cluster's table has no room for more */
const WORKLOADS_MAX = 20_000;

const workloadPort = count("the port of the workload (its listen:)", 1, 65_535);

const HOST_EXPECTED = "expected a name of a host in small letters, as chat.example or *.chat.example";
const hosts = list(
  z.string(HOST_EXPECTED).regex(/^(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*$|^[0-9a-f:.]+$/, HOST_EXPECTED),
  "expected a list of 1-100 names of hosts",
  1,
  100,
);
const PATH_EXPECTED = "expected the beginning of a path, as /ws";

const route = z.strictObject(
  {
    sni: hosts.optional(),
    host: hosts.optional(),
    path: z
      .string(PATH_EXPECTED)
      .regex(/^\/[!-~]{0,1023}$/, PATH_EXPECTED)
      .optional(),
    session: session.optional(),
    workload: name.optional(),
    workloads: list(name, "expected a list of 1-20000 workloads", 1, WORKLOADS_MAX).optional(),
    port: workloadPort.optional(),
  },
  "expected a route, as { host: [chat.example], workload: chat, port: 8080 }",
);

const listener = z.strictObject(
  {
    address: endpoint,
    workload: name.optional(),
    port: workloadPort.optional(),
    routes: list(route, "expected a list of 1-1000 routes", 1, 1_000).optional(),
    sendProxyProtocol: truth.default(false),
    ...clientKeys,
  },
  'expected where clients come, as { address: "10.99.0.9:8080", workload: chat }',
);

const ofProxy = (what: string, { min, max, default: usual }: Limit) => count(what, min, max).default(usual);

const limits = z.strictObject(
  {
    heldSessionsMax: count("a number of sessions", 0, 1_000_000).default(HELD_SESSIONS),
    ownerMsMax: count("milliseconds", 1, MS_MAX).default(OWNER_MS),
    drainMsMax: count("milliseconds", 0, DRAIN_MS_MAX).default(DRAIN_MS),
    linkResumeMsMax: ofProxy("milliseconds", PROXY_LIMITS.linkResumeMsMax),
    trunkSessionsMax: ofProxy("a number of sessions", PROXY_LIMITS.trunkSessionsMax),
  },
  "expected limits, as { drainMsMax: 30000 }",
);

const SERVICES_EXPECTED =
  "expected what the controller keeps, as { configMap: holdfast-gateway, address: 10.244.1.7 }";
const objectName = z
  .string("expected the name of a ConfigMap")
  .regex(/^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/, "expected the name of a ConfigMap");

const gatewaySchema = z.strictObject(
  {
    gateway: name,
    store: storeUrl,
    key: key.optional(),
    linkKeys: key.optional(),
    links,
    listen: list(listener, "expected a list of 1-10000 addresses where clients come", 1, 10_000).optional(),
    services: z
      .strictObject(
        { configMap: objectName, address: z.ipv4("expected an address").or(z.ipv6()) },
        SERVICES_EXPECTED,
      )
      .optional(),
    admin: endpoint.optional(),
    limits: limits.default({
      heldSessionsMax: HELD_SESSIONS,
      ownerMsMax: OWNER_MS,
      drainMsMax: DRAIN_MS,
      linkResumeMsMax: PROXY_LIMITS.linkResumeMsMax.default,
      trunkSessionsMax: PROXY_LIMITS.trunkSessionsMax.default,
    }),
  },
  "expected a mapping with gateway, store, key or linkKeys, and listen",
);
type File = z.infer<typeof gatewaySchema>;

/** @throws HoldfastError `CONFIG_INVALID`: one line, file and key path first */
export function loadGatewayConfig(fileName: string): GatewayFile {
  return parseGatewayConfig(readFile(fileName), fileName);
}

/**
 * @param fileName for messages, and for a relative path of the key file
 * @param env where it says `services`, what is each pod's own may be in HOLDFAST_GATEWAY and HOLDFAST_ADDRESS, so that all have one file
 * @throws HoldfastError `CONFIG_INVALID`
 */
export function parseGatewayConfig(
  contents: string,
  fileName: string,
  env: NodeJS.ProcessEnv = process.env,
): GatewayFile {
  const file = parseObject(gatewaySchema, withOwn(parseYaml(contents, fileName), env), fileName);
  const refuse: Refuse = (at, message) => {
    throw invalid(fileName, at, message);
  };
  crossCheck(file, refuse);
  const listeners = (file.listen ?? []).map(listenerOf);
  const keySource = sourceOf(file, fileName, refuse);
  return {
    name: file.gateway,
    store: file.store,
    keySource,
    linkKeys: keysOf(keySource, workloadsOf(listeners), refuse),
    links: file.links,
    listeners,
    admin: file.admin ?? null,
    services: file.services ?? null,
    ...file.limits,
  };
}

function withOwn(
  file: unknown,
  { HOLDFAST_GATEWAY: gateway, HOLDFAST_ADDRESS: address }: NodeJS.ProcessEnv,
): unknown {
  if (typeof file !== "object" || file === null || !("services" in file)) return file;
  const { services } = file;
  if (typeof services !== "object" || services === null) return file;
  return {
    // of a name that is too long what tells it from others is the end
    ...(gateway === undefined ? {} : { gateway: gateway.slice(-NAME_CHARS_MAX).replace(/^[^a-z0-9]+/, "") }),
    ...file,
    services: { ...(address === undefined ? {} : { address }), ...services },
  };
}

/** Of a Service, one for each of its ports. @param where for messages. @throws HoldfastError `CONFIG_INVALID` */
export function listenersOf(entry: ServiceEntry, address: string, where: string): GatewayListener[] {
  const { ports, workloads, session, sendProxyProtocol = false } = entry;
  // nobody could be led anywhere
  if (workloads.length === 0) return [];
  return ports.map(({ listen, port }) => {
    const to = { workloads, port, ...(session === undefined ? {} : { session }) };
    const at = formatEndpoint({ address, port: listen });
    const file = parseObject(listener, { address: at, routes: [to], sendProxyProtocol }, where);
    for (const route of file.routes ?? [])
      checkRoute(route, "", true, (path, message) => {
        throw invalid(where, path, message);
      });
    return listenerOf(file);
  });
}

/** Where a client's session has its name, as `session` of a route. @throws HoldfastError `CONFIG_INVALID`: what it is expected to be */
export function checkEntrySession(session: unknown, where: string): void {
  listenersOf({ ports: [{ name: "", listen: 1, port: 1 }], workloads: ["any"], session }, "127.0.0.1", where);
}

/** that clients are led to */
export function workloadsOf(listeners: readonly GatewayListener[]): string[] {
  return [...new Set(listeners.flatMap(({ routes }) => routes.flatMap(({ workloads }) => workloads)))];
}

function sourceOf({ key, linkKeys }: File, fileName: string, refuse: Refuse): LinkKeySource {
  if (key !== undefined && linkKeys === undefined) return { kind: "key", path: keyFileOf(key, fileName) };
  if (linkKeys !== undefined && key === undefined)
    return { kind: "linkKeys", path: keyFileOf(linkKeys, fileName) };
  return refuse(
    "key",
    `expected the nodes' (key: file:PATH), or those of links alone (linkKeys: file:PATH), got ${key === undefined ? "neither" : "both"}`,
  );
}

function keysOf(source: LinkKeySource, workloads: string[], refuse: Refuse): ReadonlyMap<string, SharedKeys> {
  try {
    return readLinkKeys(source, workloads);
  } catch (error) {
    const isSystems = (error as NodeJS.ErrnoException).code !== undefined;
    return refuse(source.kind, `${isSystems ? "expected a file that can be read: " : ""}${messageOf(error)}`);
  }
}

function crossCheck({ store, listen = [], services, linkKeys, admin }: File, refuse: Refuse): void {
  if ((services === undefined) === (listen.length === 0))
    refuse(
      "listen",
      `expected exactly one of listen and services, got ${services === undefined ? "neither" : "both"}`,
    );
  if (services !== undefined && linkKeys !== undefined)
    refuse("linkKeys", "expected key with services: which workloads there are is not known beforehand");
  if (store === "memory:")
    refuse("store", "expected the Redis that the nodes of the workloads use, got memory:");
  const taken = new Map<string, string>();
  const take = (at: string, address: Endpoint): void => {
    const shown = formatEndpoint(address);
    const other = taken.get(shown);
    if (other !== undefined) refuse(at, `expected an address of its own, got ${shown}, which ${other} has`);
    taken.set(shown, at);
  };
  for (const [index, one] of listen.entries()) {
    take(`listen[${index}].address`, one.address);
    if ((one.workload === undefined) === (one.routes === undefined))
      refuse(
        `listen[${index}]`,
        `expected exactly one of workload and routes, got ${one.routes === undefined ? "neither" : "both"}`,
      );
    if (one.port !== undefined && one.routes !== undefined)
      refuse(`listen[${index}].port`, `expected it in each of routes, got ${one.port}`);
    for (const [number, route] of (one.routes ?? []).entries())
      checkRoute(route, `listen[${index}].routes[${number}]`, number + 1 === one.routes?.length, refuse);
  }
  if (admin !== undefined) take("admin", admin);
}

type FileListener = z.infer<typeof listener>;
type FileRoute = NonNullable<FileListener["routes"]>[number];

function checkRoute(route: FileRoute, at: string, isLast: boolean, refuse: Refuse): void {
  const { sni, host, path, session, workload, workloads } = route;
  if ((workload === undefined) === (workloads === undefined))
    refuse(
      at,
      `expected exactly one of workload and workloads, got ${workload === undefined ? "neither" : "both"}`,
    );
  const ofHttp = host !== undefined || path !== undefined || session !== undefined;
  if (sni !== undefined && ofHttp)
    refuse(
      `${at}.sni`,
      "expected it without host, path and session: TLS passes through, and what is in it is not read",
    );
  if (session !== undefined) checkSession(session, `${at}.session`, refuse);
  if (sni === undefined && !ofHttp && !isLast)
    refuse(at, "expected a route that names nothing at the end of the list: those after it are never taken");
}

function listenerOf(file: FileListener): GatewayListener {
  const { address: at, workload, port = at.port, routes, proxyProtocol = null, ...bounds } = file;
  const { sessionsPerClientMax = Math.ceil(bounds.sessionsMax / 2) } = bounds;
  const all = routes ?? [{ workload: workload as string, port }];
  return {
    ...bounds,
    at,
    proxyProtocol,
    sessionsPerClientMax,
    routes: all.map((route) => routeOf(route, at.port)),
  };
}

function routeOf(file: FileRoute, listen: number): GatewayRoute {
  const { sni = null, host = null, path = null, session, workload, workloads, port = listen } = file;
  return {
    sni,
    host,
    path,
    session: session === undefined ? null : namingOf(session),
    workloads: workloads ?? [workload as string],
    port,
  };
}
