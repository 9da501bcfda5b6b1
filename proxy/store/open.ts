/** From the `store:` line of the configuration to a store. */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { MemoryStore } from "./memory.ts";
import { type RedisAddress, RedisStore, type RedisStoreOptions, type RedisTarget } from "./redis.ts";
import type { Store } from "./store.ts";

export type StoreAddress = { type: "memory" } | { type: "redis"; target: RedisTarget };

const FORMS =
  "memory:, redis://[USER:PASSWORD@]HOST:PORT[/DB], redis+sentinel://HOST:PORT,HOST:PORT/NAME[/DB] or redis+cluster://HOST:PORT,HOST:PORT (rediss… for TLS)";
const REDIS_PORT = 6379;
const SENTINEL_PORT = 26379;
const DB_MAX = 65_535;

/** Connects in the background: a store that is down shows in the first call, not here. @throws `CONFIG_INVALID` */
export function openStore(url: string, options: RedisStoreOptions = {}): Store {
  const address = parseStoreUrl(url);
  return address.type === "memory" ? new MemoryStore() : new RedisStore(address.target, options);
}

/** @throws HoldfastError `CONFIG_INVALID`; the message never holds the password */
export function parseStoreUrl(url: string): StoreAddress {
  if (url === "memory:") return { type: "memory" };
  const match = /^redis(s?)(?:\+(sentinel|cluster))?:\/\/(?:([^@/]*)@)?([^@/]+)(?:\/(.*))?$/.exec(url);
  if (match === null) throw invalid(`expected ${FORMS}`);
  const [, tls, type, credentials, hosts = "", path = ""] = match;
  const port = type === "sentinel" ? SENTINEL_PORT : REDIS_PORT;
  const servers = hosts.split(",").map((host) => parseHost(host, port));
  const target: RedisTarget = {
    servers,
    kind: parsePath(type, path),
    tls: tls === "s",
    ...parseCredentials(credentials),
  };
  if (target.kind.type === "single" && servers.length > 1) {
    throw invalid(
      `expected one HOST:PORT, got ${servers.length} (redis+sentinel:// and redis+cluster:// take several)`,
    );
  }
  return { type: "redis", target };
}

function parsePath(type: string | undefined, path: string): RedisTarget["kind"] {
  if (type === "cluster") {
    if (path !== "") throw invalid("expected no database after redis+cluster://…: a Cluster has only one");
    return { type: "cluster" };
  }
  if (type === "sentinel") {
    const [name = "", db = "", ...rest] = path.split("/");
    if (!/^[A-Za-z0-9._-]{1,100}$/.test(name) || rest.length > 0) {
      throw invalid(
        "expected redis+sentinel://HOST:PORT,HOST:PORT/NAME, NAME being the group Sentinel watches",
      );
    }
    return { type: "sentinel", name, db: parseDb(db) };
  }
  return { type: "single", db: parseDb(path) };
}

function parseDb(text: string): number {
  if (text === "") return 0;
  if (!/^\d{1,5}$/.test(text) || Number(text) > DB_MAX) {
    throw invalid(`expected a database number, got ${JSON.stringify(text)}`);
  }
  return Number(text);
}

function parseHost(text: string, defaultPort: number): RedisAddress {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? defaultPort : Number(match[3]);
  if (host === undefined || port < 1 || port > 65_535)
    throw invalid(`expected HOST:PORT, got ${JSON.stringify(text)}`);
  return { host, port };
}

function parseCredentials(text: string | undefined): { username?: string; password?: string } {
  if (text === undefined || text === "") return {};
  const colon = text.indexOf(":");
  try {
    // `redis://secret@host` is a password without a user, as redis-cli takes it.
    if (colon < 0) return { password: decodeURIComponent(text) };
    const username = decodeURIComponent(text.slice(0, colon));
    return { password: decodeURIComponent(text.slice(colon + 1)), ...(username === "" ? {} : { username }) };
  } catch {
    throw invalid("expected user and password to be percent-encoded");
  }
}

function invalid(what: string): HoldfastError {
  return fail("CONFIG_INVALID", what);
}
