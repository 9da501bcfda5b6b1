/** The gateway's configuration file: its shape, its defaults, and what its keys must agree on. */
import * as z from "zod";
import type { GatewayConfig, GatewayListener } from "#proxy/contract/gateway.ts";
import { MS_MAX } from "#proxy/contract/limits.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { formatEndpoint } from "./endpoint.ts";
import { clientKeys, count, endpoint, key, links, list, name, storeUrl } from "./schema.ts";
import { invalid, keyFileOf, parseFile, type Refuse, readFile, readKeys } from "./yaml-file.ts";

/** What `holdfast gateway` is started with. */
export interface GatewayFile extends GatewayConfig {
  store: string;
  /** at the start; the file is read again when it changes */
  keys: SharedKeys;
  keyFile: string;
  /** `/healthz`, `/readyz`, `/metrics` */
  admin: Endpoint | null;
}

const OWNER_MS = 30_000;
const DRAIN_MS = 30_000;
const DRAIN_MS_MAX = 86_400_000;
const HELD_SESSIONS = 1_024;

const listener = z.strictObject(
  {
    address: endpoint,
    workload: name,
    port: count("the port of the workload (its listen:)", 1, 65_535).optional(),
    ...clientKeys,
  },
  'expected where clients come, as { address: "10.99.0.9:8080", workload: chat }',
);

const limits = z.strictObject(
  {
    heldSessionsMax: count("a number of sessions", 0, 1_000_000).default(HELD_SESSIONS),
    ownerMsMax: count("milliseconds", 1, MS_MAX).default(OWNER_MS),
    drainMsMax: count("milliseconds", 0, DRAIN_MS_MAX).default(DRAIN_MS),
  },
  "expected limits, as { drainMsMax: 30000 }",
);

const gatewaySchema = z.strictObject(
  {
    gateway: name,
    store: storeUrl,
    key,
    links,
    listen: list(listener, "expected a list of 1-10000 addresses where clients come", 1, 10_000),
    admin: endpoint.optional(),
    limits: limits.default({
      heldSessionsMax: HELD_SESSIONS,
      ownerMsMax: OWNER_MS,
      drainMsMax: DRAIN_MS,
    }),
  },
  "expected a mapping with gateway, store, key and listen",
);
type File = z.infer<typeof gatewaySchema>;

/** @throws HoldfastError `CONFIG_INVALID`: one line, file and key path first */
export function loadGatewayConfig(fileName: string): GatewayFile {
  return parseGatewayConfig(readFile(fileName), fileName);
}

/** @param fileName for messages, and for a relative path of the key file. @throws HoldfastError `CONFIG_INVALID` */
export function parseGatewayConfig(contents: string, fileName: string): GatewayFile {
  const file = parseFile(gatewaySchema, contents, fileName);
  const refuse: Refuse = (at, message) => {
    throw invalid(fileName, at, message);
  };
  crossCheck(file, refuse);
  return {
    name: file.gateway,
    store: file.store,
    keys: readKeys(file.key, fileName, refuse),
    keyFile: keyFileOf(file.key, fileName),
    links: file.links,
    listeners: file.listen.map(listenerOf),
    admin: file.admin ?? null,
    ...file.limits,
  };
}

function crossCheck({ store, listen, admin }: File, refuse: Refuse): void {
  if (store === "memory:")
    refuse("store", "expected the Redis that the nodes of the workloads use, got memory:");
  const taken = new Map<string, string>();
  const take = (at: string, address: Endpoint): void => {
    const shown = formatEndpoint(address);
    const other = taken.get(shown);
    if (other !== undefined) refuse(at, `expected an address of its own, got ${shown}, which ${other} has`);
    taken.set(shown, at);
  };
  for (const [index, { address }] of listen.entries()) take(`listen[${index}].address`, address);
  if (admin !== undefined) take("admin", admin);
}

function listenerOf(file: File["listen"][number]): GatewayListener {
  const { address: at, workload, port = at.port, proxyProtocol = null, ...bounds } = file;
  const { sessionsPerClientMax = Math.ceil(bounds.sessionsMax / 2) } = bounds;
  return { ...bounds, at, workload, port, proxyProtocol, sessionsPerClientMax };
}
