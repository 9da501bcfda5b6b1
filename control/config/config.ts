/**
 * The agent's configuration file: YAML in, a checked and complete object out (its shape: `schema.ts`). Unknown keys are refused, so that a
 * misspelt limit is not silently the default. Every mistake is one line, `FILE: PATH: expected …, got …`.
 */
import { readFileSync, statSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseDocument } from "yaml";
import type * as z from "zod";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { KEY_BYTES, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { CapabilityChange } from "./capabilities.ts";
import type { NetworkPlan } from "./container-network.ts";
import { checkNetworks, planOf } from "./container-network.ts";
import { formatEndpoint, isLoopback } from "./endpoint.ts";
import { readKeyFile } from "./key-file.ts";
import type { AgentLimits, WorkloadLimits } from "./limits.ts";
import { checkPort, completePort } from "./port.ts";
import { type File, type FileWorkload, fileSchema } from "./schema.ts";

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
  /** null: the node's. Else a namespace of its own, with these addresses */
  network: NetworkPlan | null;
  capabilities: CapabilityChange;
}

/** A container of a pod that kubelet has made on this node, waiting for an application. */
export interface PodConfig {
  namespace: string;
  name: string;
  container: string;
  /** how the application is started; its environment and user are the container's */
  command: string[];
  /** null: the container's */
  cwd: string | null;
}

export interface WorkloadConfig {
  name: string;
  /** this node owns it when nobody does */
  start: boolean;
  /** exactly one of `container`, `bundle` and `pod` is not null */
  container: ContainerConfig | null;
  bundle: string | null;
  pod: PodConfig | null;
  ports: PortConfig[];
  vip: { address: string; prefix: number; device: string } | null;
  /** takeover with a VIP, else forward */
  downstream: "takeover" | "forward";
  /** where clients connect: the VIP, else the node's address */
  listenAddress: string;
  outbound: "close" | "keep";
  /** what becomes of an application that ends by itself; on-failure: with a status other than 0, or by a signal */
  restart: "always" | "on-failure" | "never";
  /** what asks it to end, and how long it may take before SIGKILL */
  stopSignal: NodeJS.Signals;
  stopMsMax: number;
  limits: WorkloadLimits;
}

/** Its container has a network namespace of its own. */
export function isToBeApart({ container, pod }: Pick<WorkloadConfig, "container" | "pod">): boolean {
  return pod !== null || (container?.network ?? null) !== null;
}

/** For all workloads of the agent together. */
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
  /** Unix socket of the container runtime that the workloads' pods are in; null: containers are this agent's own */
  cri: string | null;
  /** at the start; the file is read again when it changes */
  keys: SharedKeys;
  /** where they were read from */
  keyFile: string;
  /** by certificate; null: by the shared keys */
  identity: { certificate: string; key: string; authorities: string } | null;
  /** file of nodes and certificates that are not trusted any more */
  revoked: string | null;
  /** between proxies, in forward mode; plain on one of two nodes is plain between them */
  links: "encrypted" | "plain";
  workloads: WorkloadConfig[];
  limits: AgentLimits;
  /** the admin API over TCP too, loopback only */
  admin: Endpoint | null;
  metrics: Endpoint | null;
}

const FILE_BYTES_MAX = 1_048_576;
const MIB = 1_048_576;

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
  const parsed = fileSchema.safeParse(raw);
  if (!parsed.success) {
    const { at, message } = describeIssue(parsed.error.issues[0] as z.core.$ZodIssue, raw);
    throw invalid(fileName, at, message);
  }
  const fail = (at: string, message: string): never => {
    throw invalid(fileName, at, message);
  };
  crossCheck(parsed.data, fail);
  return complete(parsed.data, fileName, readKeys(parsed.data.key, fileName, fail));
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
  if (config.revoked !== undefined && config.identity === undefined)
    fail(
      "revoked",
      "expected identity with it: who has the shared key alone can call itself any node, so none can be revoked",
    );
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
    const kinds = (["container", "bundle", "pod"] as const).filter((kind) => one[kind] !== undefined);
    if (kinds.length !== 1)
      fail(at, `expected exactly one of container, bundle and pod, got ${kinds.join(" and ") || "none"}`);
    const [kind] = kinds;
    if ((kind === "pod") !== (config.cri !== undefined))
      fail(
        at,
        config.cri === undefined
          ? "expected the container runtime that the pod is in (cri: /run/containerd/containerd.sock) beside workloads"
          : `expected pod (this agent's containers are those of cri), got ${kind}`,
      );
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
    for (const [number, port] of one.ports.entries()) {
      const { listen, upstream } = port;
      checkPort(port, `${at}.ports[${number}]`, fail);
      take(`${at}.ports[${number}].listen`, { address: listenAddress, port: listen });
      if (isApart(one)) {
        if (!isLoopback(upstream.address))
          fail(
            `${at}.ports[${number}].upstream`,
            `expected a loopback address, as 127.0.0.1:9000, where the container has a network of its own, got "${formatEndpoint(upstream)}"`,
          );
      } else if (!isLoopback(upstream.address) && !here.has(upstream.address)) {
        fail(
          `${at}.ports[${number}].upstream`,
          `expected an address of this node, as 127.0.0.1:9000, got "${formatEndpoint(upstream)}"`,
        );
      }
    }
    for (const [number, { upstream }] of one.ports.entries()) {
      if (!isApart(one) && taken.has(formatEndpoint(upstream))) {
        fail(
          `${at}.ports[${number}].upstream`,
          `expected where the application listens, got ${formatEndpoint(upstream)}, where Holdfast listens itself`,
        );
      }
    }
  }
  checkNetworks(config, fail);
  checkSums(config, fail);
}

/** Its container has a network of its own. */
function isApart({ container, pod }: FileWorkload): boolean {
  return pod !== undefined || (container !== undefined && container.network !== "host");
}

/** Each proxy keeps to its own limit, so their sum bounds the node. Only ports with replay hold bytes. */
function checkSums({ workloads, limits }: File, fail: (at: string, message: string) => never): void {
  const holding = workloads.filter(({ ports }) => ports.some(({ continuity }) => continuity === "replay"));
  const check = (key: keyof AgentLimits, limit: "heldWorkloadBytesMax" | "spillBytesMax") => {
    const sumMb = Math.ceil(holding.reduce((sum, one) => sum + one.limits[limit], 0) / MIB);
    if (sumMb <= limits[key]) return;
    fail(
      `limits.${key}`,
      `expected at least ${sumMb}, the sum of limits.${limit} of the ${holding.length} workloads with replay (raise this one or lower those), got ${limits[key]}`,
    );
  };
  check("heldMbMax", "heldWorkloadBytesMax");
  check("spillMbMax", "spillBytesMax");
}

function localAddresses(...more: (string | undefined)[]): Set<string> {
  const known = more.filter((address) => address !== undefined);
  for (const addresses of Object.values(networkInterfaces())) {
    for (const { address } of addresses ?? []) known.push(address);
  }
  return new Set(known);
}

function keyFileOf(key: string, fileName: string): string {
  return beside(fileName, key.slice("file:".length));
}

/** A path that is not absolute belongs to the folder of the configuration. */
function beside(fileName: string, path: string): string {
  return resolve(dirname(fileName), path);
}

function readKeys(key: string, fileName: string, fail: (at: string, message: string) => never): SharedKeys {
  try {
    return readKeyFile(keyFileOf(key, fileName));
  } catch (error) {
    const isSystems = (error as NodeJS.ErrnoException).code !== undefined;
    return fail("key", `${isSystems ? `expected a file with ${KEY_BYTES} bytes: ` : ""}${messageOf(error)}`);
  }
}

function complete(config: File, fileName: string, keys: SharedKeys): AgentConfig {
  return {
    file: fileName,
    node: config.node,
    store: config.store,
    listen: config.listen,
    peers: config.peers,
    stateDir: config.stateDir,
    socket: join(config.stateDir, "agent.sock"),
    keys,
    keyFile: keyFileOf(config.key, fileName),
    identity:
      config.identity === undefined
        ? null
        : {
            certificate: beside(fileName, config.identity.certificate),
            key: beside(fileName, config.identity.key),
            authorities: beside(fileName, config.identity.authorities),
          },
    cri: config.cri ?? null,
    revoked: config.revoked === undefined ? null : beside(fileName, config.revoked),
    links: config.links,
    workloads: config.workloads.map((one) => completeWorkload(one, config.listen.address)),
    limits: config.limits,
    admin: config.admin ?? null,
    metrics: config.metrics ?? null,
  };
}

function completeWorkload(one: FileWorkload, nodeAddress: string): WorkloadConfig {
  return {
    name: one.name,
    start: one.start,
    container:
      one.container === undefined
        ? null
        : { ...one.container, network: planOf(one.name, one.container.network) },
    bundle: one.bundle ?? null,
    pod: one.pod === undefined ? null : { ...one.pod, cwd: one.pod.cwd ?? null },
    ports: one.ports.map(completePort),
    vip: one.vip === undefined ? null : { ...one.vip.address, device: one.vip.device },
    downstream: one.vip === undefined ? "forward" : "takeover",
    listenAddress: one.vip?.address.address ?? nodeAddress,
    outbound: one.outbound,
    restart: one.restart,
    stopSignal: one.stopSignal,
    stopMsMax: one.stopMsMax,
    limits: one.limits,
  };
}

function invalid(fileName: string, at: string, message: string, cause?: unknown): HoldfastError {
  return fail("CONFIG_INVALID", [fileName, at, message].filter((part) => part !== "").join(": "), { cause });
}
