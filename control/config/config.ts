/**
 * The agent's configuration file: YAML in, a checked and complete object out (its shape: `schema.ts`). Unknown keys are refused, so that a
 * misspelt limit is not silently the default. Every mistake is one line, `FILE: PATH: expected …, got …`.
 */
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import type { Downstream, PortConfig } from "#proxy/contract/commands.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { CapabilityChange } from "./capabilities.ts";
import type { NetworkPlan } from "./container-network.ts";
import { checkNetworks, planOf } from "./container-network.ts";
import { formatEndpoint, isLoopback } from "./endpoint.ts";
import type { AgentLimits, WorkloadLimits } from "./limits.ts";
import { checkPort, completePort } from "./port.ts";
import { type File, type FileWorkload, fileSchema, workloadSchema } from "./schema.ts";
import {
  beside,
  invalid,
  keyFileOf,
  parseObject,
  parseYaml,
  type Refuse,
  readFile,
  readKeys,
} from "./yaml-file.ts";

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
  /**
   * how the application is started; its environment and user are the container's. null: by what PID 1 has as arguments after `--`,
   * behind the image's entrypoint
   */
  command: string[] | null;
  /** null: the container's */
  cwd: string | null;
  /** null: whichever pod has that name */
  uid: string | null;
  /** node: a process that the agent starts. sidecar: a container of the pod, without capabilities */
  proxy: "node" | "sidecar";
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
  /** takeover with a VIP, else forward unless it says gateway */
  downstream: Downstream;
  /** where clients connect: the VIP, else the node's address; gateway: nobody does */
  listenAddress: string;
  /** container: clients come to the container's own network, at whatever address that has; forward only */
  listenIn: "node" | "container";
  outbound: "close" | "keep";
  /** what becomes of an application that ends by itself; on-failure: with a status other than 0, or by a signal */
  restart: "always" | "on-failure" | "never";
  /** its daemons stay its own when they are orphaned, as those of a container's first process do (prctl(2), PR_SET_CHILD_SUBREAPER) */
  subreaper: boolean;
  /** what asks it to end, and how long it may take before SIGKILL */
  stopSignal: NodeJS.Signals;
  stopMsMax: number;
  limits: WorkloadLimits;
}

/** Its container has a network namespace of its own. */
export function isToBeApart({ container, pod }: Pick<WorkloadConfig, "container" | "pod">): boolean {
  return pod !== null || (container?.network ?? null) !== null;
}

/** Its proxy is a container of its pod: in the application's network, and kubelet's to start and end. */
export function hasSidecar({ pod }: Pick<WorkloadConfig, "pod">): boolean {
  return pod?.proxy === "sidecar";
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
  /** workloads of this node's injected pods are found in the cluster, beside those of the file */
  pods: boolean;
  /** labels of the agents' pods, in this one's namespace, as a selector: those of other nodes are the peers. null: the file names them */
  agents: string | null;
  /** at the start; the file is read again when it changes */
  keys: SharedKeys;
  /** where they were read from */
  keyFile: string;
  /** gateways have these in place of the nodes', and links with them go by these alone. null: they go by the nodes' */
  gatewayKeys: { keys: SharedKeys; file: string } | null;
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

const MIB = 1_048_576;
/** where a file names none */
const AGENT_PORT = 7400;
/** sun_path has 108 bytes, with the NUL that ends it */
const SOCKET_BYTES_MAX = 107;
/** the longest that a workload has, in its folder */
const LONGEST_SOCKET = "proxy.sock.net";

/** @throws HoldfastError `CONFIG_INVALID`: one line, file and key path first */
export function loadConfig(fileName: string): AgentConfig {
  return parseConfig(readFile(fileName), fileName);
}

/**
 * @param fileName for messages, and for a relative path of the key file
 * @param env where it says `pods`, what is each node's own may be in HOLDFAST_NODE and HOLDFAST_ADDRESS, so that all have one file
 * @throws HoldfastError `CONFIG_INVALID`
 */
export function parseConfig(
  contents: string,
  fileName: string,
  env: NodeJS.ProcessEnv = process.env,
): AgentConfig {
  const config = parseObject(fileSchema, withOwn(parseYaml(contents, fileName), env), fileName);
  const fail: Refuse = (at, message) => {
    throw invalid(fileName, at, message);
  };
  crossCheck(config, fail);
  const { gatewayKey } = config;
  return {
    ...complete(config, fileName, readKeys(config.key, fileName, fail)),
    gatewayKeys:
      gatewayKey === undefined
        ? null
        : {
            keys: readKeys(gatewayKey, fileName, fail, "gatewayKey"),
            file: keyFileOf(gatewayKey, fileName),
          },
  };
}

function withOwn(
  file: unknown,
  { HOLDFAST_NODE: node, HOLDFAST_ADDRESS: address }: NodeJS.ProcessEnv,
): unknown {
  if (typeof file !== "object" || file === null || !("pods" in file) || file.pods !== true) return file;
  return {
    ...(node === undefined ? {} : { node }),
    ...(address === undefined ? {} : { listen: formatEndpoint({ address, port: AGENT_PORT }) }),
    ...file,
  };
}

/**
 * A workload that is not one of the file's, but a pod's on this node. @param where for messages
 * @throws HoldfastError `CONFIG_INVALID`
 */
export function parseWorkload(raw: unknown, nodeAddress: string, where: string): WorkloadConfig {
  const one = parseObject(workloadSchema, raw, where);
  const fail: Refuse = (at, message) => {
    throw invalid(where, at, message);
  };
  for (const [number, port] of one.ports.entries()) {
    checkPort(port, `ports[${number}]`, fail);
    if (one.ports.findIndex(({ listen }) => listen === port.listen) !== number)
      fail(`ports[${number}].listen`, `expected a port of its own, got ${port.listen} again`);
  }
  return completeWorkload(one, nodeAddress);
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
  if (config.pods && config.cri === undefined)
    fail(
      "pods",
      "expected the container runtime that the pods are in (cri: /run/containerd/containerd.sock) with it, got none",
    );
  if (config.agents !== undefined) {
    if (!config.pods) fail("agents", "expected pods: true with it (agents run in pods), got none");
    if (peers.length > 0)
      fail("agents", "expected it without peers, who are found by these labels, got both");
    if (config.store === "memory:")
      fail("store", "expected a Redis that all nodes reach, got memory: together with agents");
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
    const tooLong = socketPathProblem(config.stateDir, one.name);
    if (tooLong !== null) fail(`${at}.name`, tooLong);
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
    if ((downstreamOf(one) === "takeover") !== (one.vip !== undefined))
      fail(
        `${at}.downstream`,
        one.vip === undefined
          ? "expected a vip with takeover (the address has to move), got none"
          : `expected takeover with a vip, or no vip, got "${one.downstream}"`,
      );
    const listenAddress = vipAddress ?? config.listen.address;
    const here = localAddresses(config.listen.address, vipAddress);
    for (const [number, port] of one.ports.entries()) {
      const { listen, upstream } = port;
      checkPort(port, `${at}.ports[${number}]`, fail);
      if (downstreamOf(one) === "gateway") {
        if (port.proxyProtocol !== undefined)
          fail(
            `${at}.ports[${number}].proxyProtocol`,
            "expected it in the gateway's file, where clients come, and not with downstream: gateway",
          );
        if (one.ports.findIndex((other) => other.listen === listen) !== number)
          fail(`${at}.ports[${number}].listen`, `expected a port of its own, got ${listen} again`);
      } else take(`${at}.ports[${number}].listen`, { address: listenAddress, port: listen });
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
  const exceeded = exceededBy(config.workloads, config.limits);
  if (exceeded !== null) fail(exceeded.at, exceeded.message);
}

/** Its container has a network of its own. */
function isApart({ container, pod }: FileWorkload): boolean {
  return pod !== undefined || (container !== undefined && container.network !== "host");
}

/** Whether a workload of that name can have its sockets below the folder. null: it can */
export function socketPathProblem(stateDir: string, workload: string): string | null {
  const bytes = Buffer.byteLength(join(stateDir, "workloads", workload, LONGEST_SOCKET));
  if (bytes <= SOCKET_BYTES_MAX) return null;
  return `expected a name that is ${bytes - SOCKET_BYTES_MAX} shorter, or a shorter stateDir (the path of a socket has at most ${SOCKET_BYTES_MAX} bytes), got "${workload}"`;
}

interface Holding {
  limits: WorkloadConfig["limits"];
  ports: Pick<PortConfig, "continuity">[];
  pod?: Pick<PodConfig, "proxy"> | null | undefined;
}

/**
 * Each proxy keeps to its own limit, so their sum bounds the node. Only ports with replay hold bytes; what one in a pod holds is the pod's, which
 * kubelet counts.
 * @returns which limit of the agent they exceed together; null: none
 */
export function exceededBy(
  workloads: readonly Holding[],
  limits: AgentLimits,
): { at: string; message: string } | null {
  const holding = workloads.filter(
    (one) => one.ports.some(({ continuity }) => continuity === "replay") && one.pod?.proxy !== "sidecar",
  );
  const sums = { heldMbMax: "heldWorkloadBytesMax", spillMbMax: "spillBytesMax" } as const;
  for (const [key, limit] of Object.entries(sums) as [
    keyof typeof sums,
    (typeof sums)[keyof typeof sums],
  ][]) {
    const sumMb = Math.ceil(holding.reduce((sum, one) => sum + one.limits[limit], 0) / MIB);
    if (sumMb <= limits[key]) continue;
    const message = `expected at least ${sumMb}, the sum of limits.${limit} of the ${holding.length} workloads with replay (raise this one or lower those), got ${limits[key]}`;
    return { at: `limits.${key}`, message };
  }
  return null;
}

function localAddresses(...more: (string | undefined)[]): Set<string> {
  const known = more.filter((address) => address !== undefined);
  for (const addresses of Object.values(networkInterfaces())) {
    for (const { address } of addresses ?? []) known.push(address);
  }
  return new Set(known);
}

function complete(config: File, fileName: string, keys: SharedKeys): Omit<AgentConfig, "gatewayKeys"> {
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
    pods: config.pods,
    agents: config.agents ?? null,
    revoked: config.revoked === undefined ? null : beside(fileName, config.revoked),
    links: config.links,
    workloads: config.workloads.map((one) => completeWorkload(one, config.listen.address)),
    limits: config.limits,
    admin: config.admin ?? null,
    metrics: config.metrics ?? null,
  };
}

function isListeningInPod({ pod }: FileWorkload): boolean {
  return (pod?.listen ?? (pod?.proxy === "sidecar" ? "pod" : "node")) === "pod";
}

function downstreamOf({ downstream, vip }: FileWorkload): Downstream {
  return downstream ?? (vip === undefined ? "forward" : "takeover");
}

function completePod(pod: NonNullable<FileWorkload["pod"]>): PodConfig {
  const { namespace, name, container, command = null, cwd = null, uid = null, proxy } = pod;
  return { namespace, name, container, command, cwd, uid, proxy };
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
    pod: one.pod === undefined ? null : completePod(one.pod),
    ports: one.ports.map(completePort),
    vip: one.vip === undefined ? null : { ...one.vip.address, device: one.vip.device },
    downstream: downstreamOf(one),
    listenAddress: one.vip?.address.address ?? nodeAddress,
    listenIn: isListeningInPod(one) && downstreamOf(one) === "forward" ? "container" : "node",
    outbound: one.outbound,
    restart: one.restart,
    subreaper: one.subreaper,
    stopSignal: one.stopSignal,
    stopMsMax: one.stopMsMax,
    limits: one.limits,
  };
}
