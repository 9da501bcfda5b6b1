/** What the parameters of an agent's commands have to look like (`contract/commands.ts` says what they mean). */
import { isIP } from "node:net";
import { z } from "zod";
import { DOWNSTREAMS } from "#proxy/contract/commands.ts";
import { PROXY_LIMITS, type ProxyLimits } from "#proxy/contract/limits.ts";

const IDLE_MS_MAX = 604_800_000;

const endpoint = z.object({ address: z.string().min(1), port: z.int().min(1).max(65535) });
const milliseconds = z.number().min(0).max(3_600_000);
const naming = z.object({
  from: z.enum(["cookie", "header", "query", "subprotocol"]),
  name: z.string().min(1).max(100),
  issue: z.boolean(),
});
const proxyProtocol = z.object({
  from: z
    .array(
      z.object({
        address: z.string().refine((address) => isIP(address) !== 0),
        prefix: z.int().min(0).max(128),
      }),
    )
    .max(64),
  headerMsMax: milliseconds,
});
const portSchema = z.object({
  // 0: for tests, chosen by the kernel
  listen: z.int().min(0).max(65535),
  upstream: endpoint,
  protocol: z.enum(["auto", "tcp", "http", "websocket", "h2", "tls"]).default("auto"),
  continuity: z.enum(["transplant", "replay"]).default("transplant"),
  moveBy: z.enum(["transplant", "replay"]).default("transplant"),
  replayUnsafe: z.boolean().default(false),
  delivery: z.enum(["atMostOnce", "atLeastOnce"]).default("atMostOnce"),
  setUp: z.union([z.enum(["auto", "close", "none"]), z.int().min(1).max(16)]).default("auto"),
  sessionsMax: z.int().min(1).default(50_000),
  sessionsPerClientMax: z.int().min(1).default(50_000),
  keepAliveMs: milliseconds.default(15_000),
  userTimeoutMs: milliseconds.default(120_000),
  idleMsMax: z.number().min(0).max(IDLE_MS_MAX).default(0),
  naming: naming.nullable().default(null),
  proxyProtocol: proxyProtocol.nullable().default(null),
  probes: z.array(z.string().startsWith("/").max(1024)).max(16).default([]),
});
/** Their range is the agent's business, who read them from a file. */
const limits = z.object(
  Object.fromEntries(
    Object.entries(PROXY_LIMITS).map(([name, limit]) => [name, z.number().min(0).default(limit.default)]),
  ) as Record<keyof ProxyLimits, z.ZodDefault<z.ZodNumber>>,
);
export const configureSchema = z.object({
  workload: z.string().min(1),
  node: z.string().min(1).max(255),
  network: z.enum(["host", "own"]).default("host"),
  downstream: z.enum(DOWNSTREAMS),
  listenAddress: z.string().min(1),
  listenIn: z.enum(["node", "container"]).optional(),
  listenDevice: z.string().min(1).max(15).nullable().default(null),
  ports: z.array(portSchema).min(1).max(1024),
  linkAddress: z.string().min(1),
  links: z.enum(["encrypted", "plain"]).default("encrypted"),
  spillDir: z.string().default("/var/tmp"),
  limits,
});
export const pageSchema = z.object({
  after: z.int().min(0).default(0),
  // an agent of the version before asks for all
  max: z.int().min(1).default(Number.MAX_SAFE_INTEGER),
});
export const withDrain = z.object({ epoch: z.int().min(0), drainMs: milliseconds });
export const withToken = z.object({ token: z.string().min(1).max(64) });
export const epochOnly = z.object({ epoch: z.int().min(0) });
export const withTarget = epochOnly.extend({ target: endpoint });
const owner = z.object({ node: z.string(), link: endpoint });
export const withOwner = epochOnly.extend({ owner });
export const withOwnerOrNone = epochOnly.extend({ owner: owner.nullable() });
