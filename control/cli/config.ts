/**
 * The agent's configuration file: YAML in, a checked and complete object out. Unknown keys are refused, so that a
 * misspelt limit is not silently the default. Every mistake is one line, `FILE: PATH: expected …, got …`.
 */
import { readFileSync, statSync } from "node:fs";
import { BlockList, isIP } from "node:net";
import { networkInterfaces } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseDocument } from "yaml";
import * as z from "zod";
import type { PortConfig, ProxyLimits } from "#proxy/contract/commands.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { parseStoreUrl } from "#proxy/store/open.ts";

export interface WorkloadLimits extends ProxyLimits {
  /** a move that has not committed by then is rolled back */
  deadlineMs: number;
  /** size of the tmpfs for images and the writable layer, MiB */
  imagesMbMax: number;
  /** memory of the application that is copied before the hold, MiB; a larger one is copied during the dump; 0: never before */
  precopyMbMax: number;
  /** snapshots and held bytes of one move, in the store */
  heldBytesMax: number;
}

export interface MountConfig {
  source: string;
  target: string;
  shared: boolean;
  readonly: boolean;
}

export interface ContainerConfig {
  command: string[];
  cwd: string;
  env: Record<string, string>;
  /** "host" or an absolute path */
  rootfs: string;
  mounts: MountConfig[];
}

export interface WorkloadConfig {
  name: string;
  /** this node owns it when nobody does */
  start: boolean;
  /** exactly one of `container` and `bundle` is not null */
  container: ContainerConfig | null;
  bundle: string | null;
  ports: PortConfig[];
  vip: { address: string; prefix: number; device: string } | null;
  /** takeover with a VIP, else relay */
  downstream: "takeover" | "relay";
  /** where clients connect: the VIP, else the node's address */
  listenAddress: string;
  outbound: "close" | "keep";
  limits: WorkloadLimits;
}

export interface AgentConfig {
  /** path it was read from */
  file: string;
  node: string;
  store: string;
  listen: Endpoint;
  peers: Record<string, Endpoint>;
  stateDir: string;
  /** Unix socket of the admin API */
  socket: string;
  /** 32 bytes */
  key: Buffer;
  workloads: WorkloadConfig[];
  /** the admin API over TCP too, loopback only */
  admin: Endpoint | null;
  metrics: Endpoint | null;
}

export const LIMITS: WorkloadLimits = {
  quiesceMsMax: 250,
  drainMsMax: 250,
  heldSessionsMax: 1_024,
  lingerMsMax: 30_000,
  deadlineMs: 10_000,
  imagesMbMax: 2_048,
  precopyMbMax: 1_024,
  heldBytesMax: 67_108_864,
};

const FILE_BYTES_MAX = 1_048_576;
const KEY_BYTES = 32;
/** sun_path is 108 bytes, and sockets live below stateDir */
const STATE_DIR_CHARS_MAX = 70;
const MS_MAX = 3_600_000;

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

const NAME_EXPECTED = "expected a name of 1-40 small letters, digits and dashes";
const ENDPOINT_EXPECTED = "expected IP:PORT ([IP]:PORT for IPv6)";
const name = z.string(NAME_EXPECTED).regex(/^[a-z0-9-]{1,40}$/, NAME_EXPECTED);

function text(expected: string): z.ZodString {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: a NUL would cut the string short in the kernel.
  return z.string(expected).regex(/^[^\u0000]*$/, `${expected} without a NUL`);
}

function path(what: string): z.ZodType<string> {
  const expected = `expected the absolute path of ${what}`;
  return text(expected).refine((value) => value.startsWith("/"), expected);
}

function count(what: string, min: number, max: number): z.ZodNumber {
  const expected = `expected ${what} ${min}-${max}`;
  return z.number(expected).int(expected).min(min, expected).max(max, expected);
}

function list<T>(schema: z.ZodType<T>, expected: string, min: number, max: number) {
  return z.array(schema, expected).min(min, expected).max(max, expected);
}

const truth = z.boolean("expected true or false");

const endpoint = z.string(ENDPOINT_EXPECTED).transform((value, context): Endpoint => {
  const parsed = parseEndpoint(value);
  if (parsed !== null) return parsed;
  context.addIssue({ code: "custom", message: ENDPOINT_EXPECTED });
  return z.NEVER;
});

const VIP_EXPECTED = "expected IP/PREFIX, as 10.99.0.50/24";
const vipAddress = z.string(VIP_EXPECTED).transform((value, context) => {
  const match = /^([0-9A-Fa-f:.]+)\/(\d{1,3})$/.exec(value);
  const family = isIP(match?.[1] ?? "");
  const prefix = Number(match?.[2]);
  if (match !== null && family !== 0 && prefix >= 1 && prefix <= (family === 4 ? 32 : 128)) {
    return { address: match[1] as string, prefix };
  }
  context.addIssue({ code: "custom", message: VIP_EXPECTED });
  return z.NEVER;
});

const storeUrl = z.string("expected the address of a store").superRefine((value, context) => {
  try {
    parseStoreUrl(value);
  } catch (error) {
    context.addIssue({ code: "custom", message: messageOf(error) });
  }
});

const milliseconds = count("milliseconds", 1, MS_MAX);

const limits = z.strictObject(
  {
    quiesceMsMax: milliseconds.default(LIMITS.quiesceMsMax),
    drainMsMax: milliseconds.default(LIMITS.drainMsMax),
    heldSessionsMax: count("a number of sessions", 0, 1_000_000).default(LIMITS.heldSessionsMax),
    lingerMsMax: milliseconds.default(LIMITS.lingerMsMax),
    deadlineMs: count("milliseconds", 100, MS_MAX).default(LIMITS.deadlineMs),
    imagesMbMax: count("a number of MiB", 1, 1_048_576).default(LIMITS.imagesMbMax),
    precopyMbMax: count("a number of MiB", 0, 1_048_576).default(LIMITS.precopyMbMax),
    heldBytesMax: count("a number of bytes", 65_536, 268_435_456).default(LIMITS.heldBytesMax),
  },
  "expected limits, as { deadlineMs: 10000 }",
);

const mount = z.strictObject(
  {
    source: path("a folder or file of this node"),
    target: path("where the container sees it"),
    shared: truth.default(false),
    readonly: truth.default(false),
  },
  "expected a mount, as { source: /data, target: /data }",
);

const container = z.strictObject(
  {
    command: list(text("expected a word of the command"), "expected a command as a list of words", 1, 1_000),
    cwd: path("the working directory").default("/"),
    env: z
      .record(
        z.string().regex(/^[^=\s]{1,200}$/),
        text("expected a string (numbers in quotes)"),
        "expected names and values",
      )
      .default({}),
    rootfs: text("expected host or an absolute path").refine(
      (value) => value === "host" || value.startsWith("/"),
      "expected host or an absolute path",
    ),
    mounts: list(mount, "expected a list of at most 100 mounts", 0, 100).default([]),
  },
  "expected a container, as { command: [node, server.js], rootfs: host }",
);

const port = z.strictObject(
  { listen: count("a port number", 1, 65_535), upstream: endpoint },
  'expected a port, as { listen: 8080, upstream: "127.0.0.1:9000" }',
);

const vip = z.strictObject(
  {
    address: vipAddress,
    device: z.string("expected a network device").regex(/^[^\s/:]{1,15}$/, "expected a network device"),
  },
  "expected a VIP, as { address: 10.99.0.50/24, device: eth0 }",
);

const workload = z.strictObject(
  {
    name,
    start: truth.default(false),
    container: container.optional(),
    bundle: path("an OCI bundle").optional(),
    ports: list(port, "expected a list of 1-64 ports", 1, 64),
    vip: vip.optional(),
    outbound: z.enum(["close", "keep"], "expected close or keep").default("close"),
    limits: limits.default(LIMITS),
  },
  "expected a workload",
);

const file = z.strictObject(
  {
    node: name,
    store: storeUrl,
    listen: endpoint,
    peers: z
      .record(name, endpoint, "expected nodes and their addresses, as { b: 10.99.0.3:7400 }")
      .default({}),
    stateDir: path("a folder of this agent's own").refine(
      (value) => value.length <= STATE_DIR_CHARS_MAX,
      `expected a path of at most ${STATE_DIR_CHARS_MAX} characters (sockets live below it)`,
    ),
    key: z.string("expected file:PATH").regex(/^file:./, "expected file:PATH"),
    workloads: list(workload, "expected a list of at most 100 workloads", 0, 100),
    admin: endpoint.optional(),
    metrics: endpoint.optional(),
  },
  "expected a mapping with node, store, listen, stateDir, key and workloads",
);
type File = z.infer<typeof file>;

/** @throws HoldfastError `CONFIG_INVALID`: one line, file and key path first */
export function loadConfig(fileName: string): AgentConfig {
  let contents: string;
  try {
    const { size } = statSync(fileName);
    if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} bytes, at most ${FILE_BYTES_MAX} are read`);
    contents = readFileSync(fileName, "utf8");
  } catch (cause) {
    throw invalid(fileName, "", `cannot be read: ${messageOf(cause)}`, cause);
  }
  return parseConfig(contents, fileName);
}

/** @param fileName for messages, and for a relative path of the key file. @throws HoldfastError `CONFIG_INVALID` */
export function parseConfig(contents: string, fileName: string): AgentConfig {
  const raw = parseYaml(contents, fileName);
  const parsed = file.safeParse(raw);
  if (!parsed.success) {
    const { at, message } = describeIssue(parsed.error.issues[0] as z.core.$ZodIssue, raw);
    throw invalid(fileName, at, message);
  }
  const fail = (at: string, message: string): never => {
    throw invalid(fileName, at, message);
  };
  crossCheck(parsed.data, fail);
  return complete(parsed.data, fileName, readKey(parsed.data.key, fileName, fail));
}

/** `IP:PORT` or `[IP]:PORT`; null when it is neither. */
export function parseEndpoint(value: string): Endpoint | null {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):(\d{1,5})$/.exec(value);
  if (match === null) return null;
  const [, six, four, digits] = match;
  const address = six ?? four ?? "";
  const number = Number(digits);
  if (isIP(address) !== (six === undefined ? 4 : 6) || number < 1 || number > 65_535) return null;
  return { address, port: number };
}

export function formatEndpoint({ address, port }: Endpoint): string {
  return isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;
}

export function isLoopback(address: string): boolean {
  return loopback.check(address, isIP(address) === 6 ? "ipv6" : "ipv4");
}

function parseYaml(contents: string, fileName: string): unknown {
  try {
    const document = parseDocument(contents, { logLevel: "silent" });
    const [error] = document.errors;
    // The parser's message goes on for several lines with a drawing of the place.
    if (error) throw new Error((error.message.split("\n")[0] ?? "").replace(/:$/, ""));
    return document.toJS({ maxAliasCount: 100 }) as unknown;
  } catch (cause) {
    throw invalid(fileName, "", `not YAML: ${messageOf(cause)}`, cause);
  }
}

function describeIssue(issue: z.core.$ZodIssue, raw: unknown): { at: string; message: string } {
  if (issue.code === "unrecognized_keys") {
    return { at: formatPath([...issue.path, issue.keys[0] ?? ""]), message: "unknown key" };
  }
  const at = formatPath(issue.path);
  if (issue.code === "invalid_key") {
    const inner = issue.issues[0]?.message ?? "";
    return { at, message: inner.startsWith("expected") ? inner : "expected a name without spaces or =" };
  }
  const value = valueAt(raw, issue.path);
  // A store's address may hold a password.
  if (at === "store" && value !== undefined) return { at, message: issue.message };
  return { at, message: `${issue.message}, got ${show(value)}` };
}

function valueAt(raw: unknown, steps: PropertyKey[]): unknown {
  let value = raw;
  for (const step of steps) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, step)) return undefined;
    value = (value as Record<PropertyKey, unknown>)[step];
  }
  return value;
}

function show(value: unknown): string {
  if (value === undefined || value === null) return "nothing";
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list";
  if (typeof value === "object") return "a mapping";
  const shown = typeof value === "string" ? JSON.stringify(value) : String(value);
  return shown.length > 80 ? `${shown.slice(0, 80)}…` : shown;
}

function formatPath(steps: PropertyKey[]): string {
  return steps.reduce<string>((so, step) => {
    if (typeof step === "number") return `${so}[${step}]`;
    const key = String(step);
    const plain = /^[\w-]{1,60}$/.test(key) ? key : JSON.stringify(key.slice(0, 60));
    return so === "" ? plain : `${so}.${plain}`;
  }, "");
}

function crossCheck(config: File, fail: (at: string, message: string) => never): void {
  const peers = Object.entries(config.peers);
  if (Object.hasOwn(config.peers, config.node))
    fail(`peers.${config.node}`, "expected other nodes, got this one");
  if (config.store === "memory:" && peers.length > 0) {
    fail("store", "expected a Redis that all nodes reach, got memory: together with peers");
  }
  if (["0.0.0.0", "::"].includes(config.listen.address)) {
    fail(
      "listen",
      `expected the address other nodes reach this one at, got "${formatEndpoint(config.listen)}"`,
    );
  }
  if (config.admin !== undefined && !isLoopback(config.admin.address)) {
    fail("admin", `expected a loopback address, got "${formatEndpoint(config.admin)}"`);
  }
  const taken = new Map([[formatEndpoint(config.listen), "listen"]]);
  const take = (at: string, address: Endpoint) => {
    const shown = formatEndpoint(address);
    const other = taken.get(shown);
    if (other !== undefined) fail(at, `expected an address of its own, got ${shown}, which ${other} has`);
    taken.set(shown, at);
  };
  for (const [peer, address] of peers) take(`peers.${peer}`, address);
  if (config.admin !== undefined) take("admin", config.admin);
  if (config.metrics !== undefined) take("metrics", config.metrics);

  const names = new Set<string>();
  const vips = new Set<string>();
  for (const [index, one] of config.workloads.entries()) {
    const at = `workloads[${index}]`;
    if (names.has(one.name)) fail(`${at}.name`, `expected a name used once, got "${one.name}" again`);
    names.add(one.name);
    if ((one.container === undefined) === (one.bundle === undefined)) {
      const got = one.bundle === undefined ? "neither" : "both";
      fail(at, `expected exactly one of container and bundle, got ${got}`);
    }
    const vipAddress = one.vip?.address.address;
    if (vipAddress !== undefined) {
      if (vips.has(vipAddress)) {
        fail(
          `${at}.vip.address`,
          `expected an address that moves with this workload alone, got ${vipAddress} again`,
        );
      }
      vips.add(vipAddress);
      if (vipAddress === config.listen.address) {
        fail(`${at}.vip.address`, `expected an address that can move, got the node's own ${vipAddress}`);
      }
    }
    if (one.outbound === "keep" && vipAddress === undefined) {
      fail(
        `${at}.outbound`,
        "expected close (connections can only be kept with an address that moves: vip), got keep",
      );
    }
    const listenAddress = vipAddress ?? config.listen.address;
    const here = localAddresses(config.listen.address, vipAddress);
    for (const [number, { listen, upstream }] of one.ports.entries()) {
      take(`${at}.ports[${number}].listen`, { address: listenAddress, port: listen });
      if (!isLoopback(upstream.address) && !here.has(upstream.address)) {
        fail(
          `${at}.ports[${number}].upstream`,
          `expected an address of this node, as 127.0.0.1:9000, got "${formatEndpoint(upstream)}"`,
        );
      }
    }
    for (const [number, { upstream }] of one.ports.entries()) {
      if (taken.has(formatEndpoint(upstream))) {
        fail(
          `${at}.ports[${number}].upstream`,
          `expected where the application listens, got ${formatEndpoint(upstream)}, where Holdfast listens itself`,
        );
      }
    }
  }
}

function localAddresses(...more: (string | undefined)[]): Set<string> {
  const known = more.filter((address) => address !== undefined);
  for (const addresses of Object.values(networkInterfaces())) {
    for (const { address } of addresses ?? []) known.push(address);
  }
  return new Set(known);
}

function readKey(key: string, fileName: string, fail: (at: string, message: string) => never): Buffer {
  const keyFile = resolve(dirname(fileName), key.slice("file:".length));
  let bytes: Buffer;
  try {
    const found = statSync(keyFile);
    if (!found.isFile()) throw new Error("it is not a file");
    if ((found.mode & 0o007) !== 0) {
      return fail(
        "key",
        `expected a file only its owner can read, got mode ${(found.mode & 0o777).toString(8)} (chmod 600 ${keyFile})`,
      );
    }
    if (found.size > 1_024) throw new Error(`it has ${found.size} bytes instead of ${KEY_BYTES}`);
    bytes = readFileSync(keyFile);
  } catch (error) {
    if (error instanceof HoldfastError) throw error;
    return fail("key", `expected a file with ${KEY_BYTES} bytes: ${messageOf(error)}`);
  }
  if (bytes.length === KEY_BYTES) return bytes;
  const hex = bytes.toString("latin1").trim();
  if (/^[0-9A-Fa-f]{64}$/.test(hex)) return Buffer.from(hex, "hex");
  return fail(
    "key",
    `expected a file with ${KEY_BYTES} bytes or 64 hex digits, got ${bytes.length} bytes (head -c 32 /dev/urandom > ${keyFile})`,
  );
}

function complete(config: File, fileName: string, key: Buffer): AgentConfig {
  return {
    file: fileName,
    node: config.node,
    store: config.store,
    listen: config.listen,
    peers: config.peers,
    stateDir: config.stateDir,
    socket: join(config.stateDir, "agent.sock"),
    key,
    workloads: config.workloads.map((one) => ({
      name: one.name,
      start: one.start,
      container: one.container ?? null,
      bundle: one.bundle ?? null,
      ports: one.ports,
      vip: one.vip === undefined ? null : { ...one.vip.address, device: one.vip.device },
      downstream: one.vip === undefined ? "relay" : "takeover",
      listenAddress: one.vip?.address.address ?? config.listen.address,
      outbound: one.outbound,
      limits: one.limits,
    })),
    admin: config.admin ?? null,
    metrics: config.metrics ?? null,
  };
}

function invalid(fileName: string, at: string, message: string, cause?: unknown): HoldfastError {
  return new HoldfastError([fileName, at, message].filter((part) => part !== "").join(": "), {
    code: "CONFIG_INVALID",
    source: "config",
    cause,
  });
}
