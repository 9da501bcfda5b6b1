/**
 * A laboratory: two or more nodes, a host for clients and Redis, as network namespaces on one bridge, with real agents
 * in them. Used by the tests, the demo and the benchmarks. Needs root.
 *
 *   10.99.0.1    fd99::1    the switch: a bridge, and Redis on it
 *   10.99.0.2…   fd99::2…   the nodes, in the order given
 *   10.99.0.90…  fd99::90…  hosts of gateways
 *   10.99.0.100  fd99::100  "client", where load runs
 *
 * Every laboratory has namespaces of its own, so several run beside each other with the same addresses. `close()`
 * leaves nothing behind; neither do a signal, an exception, nor (at the next laboratory's creation) a SIGKILL.
 */
import { type ChildProcess, execFileSync, type SpawnOptions, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, mkdirSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { stringify } from "yaml";
import {
  findLeftovers,
  killAllIn,
  type Leftovers,
  labDir,
  labMarker,
  labPrefixes,
  startTimeOf,
  sweep,
  sweepDeadLabs,
} from "./sweep.ts";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { request } = process.getBuiltinModule("node:http");

export const projectRoot = resolve(import.meta.dirname, "../..");
/** Node 26, whatever node the machine has; the path is the same inside a container that sees the host's files. */
export const nodeBinary = join(projectRoot, "node_modules/node/bin/node");
const holdfast = join(projectRoot, "bin/holdfast");

export const redisPort = 6379;
export const agentPort = 7400;
const subnet4 = "10.99.0";
const subnet6 = "fd99:";
const switchHost = 1;
const nodeHostFirst = 2;
const gatewayHostFirst = 90;
const clientHost = 100;
const stopAgentMsMax = 5_000;
const stopWorkloadMsMax = 5_000;
/** Long enough for a machine that has much else to do: what never starts is named by it, and nothing is measured. */
const startMsMax = 60_000;
const outputCharsMax = 1_000_000;

/** No proxy of the machine's can be reached from a laboratory, whose addresses curl, Go and Python would ask it for. */
function withoutProxies(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(env).filter(([name]) => !/^(https?|ftp|all|no)_proxy$/i.test(name)),
  );
}

export interface LabOptions {
  /** names of the nodes, default a and b */
  nodes?: string[];
  /** names of hosts for gateways, default none */
  gateways?: string[];
  /** first letters of everything this laboratory makes on the machine */
  prefix?: string;
  /** default true */
  redis?: boolean;
}

export interface Place {
  name: string;
  /** of its network namespace, below /run/netns */
  netns: string;
  address: string;
  address6: string;
}

export interface CliResult {
  status: number | null;
  stdout: string;
  stderr: string;
  /** stdout as JSON; of several lines the last; undefined when it is none */
  json: unknown;
}

/** Keys of the agent's configuration that differ from what the laboratory fills in (node, store, listen, peers, …). */
export type AgentConfig = Record<string, unknown>;

/** A process in the laboratory. Its output is kept (the last million characters) and goes to a file in the lab's folder. */
export interface LabProcess {
  readonly pid: number;
  readonly child: ChildProcess;
  readonly stdout: string;
  readonly stderr: string;
  readonly exited: boolean;
  /** Sends the signal and waits for the end; SIGKILL after `killAfterMs`. Does nothing to one that has ended. */
  stop(signal?: NodeJS.Signals, killAfterMs?: number): Promise<void>;
  /** Resolves when a line of its stdout or stderr matches; rejects when it ends first or `timeoutMs` pass. */
  waitFor(pattern: RegExp, timeoutMs?: number): Promise<void>;
}

export interface LabAgent extends LabProcess {
  readonly node: string;
  readonly socketPath: string;
  readonly stateDir: string;
  readonly configFile: string;
  readonly config: AgentConfig;
}

export interface LabRedis {
  /** for whoever runs in the laboratory */
  readonly url: string;
  /** for whoever runs on the machine itself */
  readonly socketPath: string;
  readonly pid: number | null;
  /** Ends it at once and forgets what it held. */
  stop(): Promise<void>;
  /** A new, empty one, after `stop`. */
  start(): Promise<void>;
  /** Stops it from running (SIGSTOP): connections stay, nothing answers. */
  pause(): void;
  resume(): void;
}

/** What is on the machine for as long as this process lives, and no longer. */
export interface Closable {
  close(): Promise<void>;
  closeNow(): void;
}

const live = new Set<Closable>();
let created = 0;

/** Builds the laboratory and starts Redis: about a quarter of a second. */
export async function createLab(options: LabOptions = {}): Promise<Lab> {
  if (process.getuid?.() !== 0) throw new Error("a laboratory needs root (network namespaces)");
  const prefix = options.prefix ?? labPrefixes.whole;
  sweepDeadLabs(prefix);
  created += 1;
  const lab = new Lab(`${prefix}${process.pid}-${created}`, options.nodes ?? ["a", "b"], options.gateways);
  guard(lab);
  try {
    lab.build();
    if (options.redis ?? true) await lab.redis.start();
  } catch (error) {
    await lab.close();
    throw error;
  }
  return lab;
}

export class Lab {
  readonly id: string;
  /** all files of this laboratory: configurations, the agents' state, logs */
  readonly dir: string;
  readonly switch: Place;
  readonly client: Place;
  readonly nodes: ReadonlyMap<string, Place>;
  readonly gateways: ReadonlyMap<string, Place>;
  readonly agents = new Map<string, LabAgent>();
  readonly redis: LabRedis;
  readonly #processes = new Set<LabProcess>();
  #closed: Promise<void> | undefined;
  #logs = 0;

  constructor(id: string, nodes: string[], gateways: string[] = []) {
    this.id = id;
    this.dir = labDir(id);
    const place = (name: string, host: number): Place => ({
      name,
      netns: `${id}-${name}`,
      address: `${subnet4}.${host}`,
      address6: `${subnet6}:${host}`,
    });
    this.switch = place("switch", switchHost);
    this.client = place("client", clientHost);
    this.nodes = new Map(nodes.map((name, index) => [name, place(name, nodeHostFirst + index)]));
    this.gateways = new Map(gateways.map((name, index) => [name, place(name, gatewayHostFirst + index)]));
    this.redis = new Redis(this);
  }

  /** Part of {@link createLab}. */
  build(): void {
    mkdirSync(this.dir, { mode: 0o700 });
    writeFileSync(join(this.dir, "owner"), startTimeOf(process.pid) ?? "");
    writeFileSync(join(this.dir, "key"), crypto.getRandomValues(new Uint8Array(32)), { mode: 0o600 });
    const hosts = [...this.nodes.values(), ...this.gateways.values(), this.client];
    const hub = this.switch.netns;
    const namespaces = [hub, ...hosts.map(({ netns }) => netns)];
    ipAll(
      null,
      namespaces.map((netns) => `netns add ${netns}`),
    );
    // Addresses are ours alone: duplicate address detection would only make IPv6 wait a second.
    run("sh", [
      "-c",
      "for netns; do nsenter --net=/run/netns/$netns sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 || exit; done",
      "sh",
      ...namespaces,
    ]);
    ipAll(hub, [
      "link set lo up",
      "link add br0 type bridge mcast_snooping 0",
      "link set br0 up",
      ...addressesOf(this.switch, "br0"),
      ...hosts.flatMap(({ name, netns }) => [
        `link add to-${name} type veth peer name eth0 netns ${netns}`,
        `link set to-${name} master br0 up`,
      ]),
    ]);
    for (const host of hosts)
      ipAll(host.netns, ["link set lo up", "link set eth0 up", ...addressesOf(host, "eth0")]);
  }

  place(name: string): Place {
    const found = [this.switch, this.client, ...this.nodes.values(), ...this.gateways.values()].find(
      (place) => place.name === name,
    );
    if (found === undefined) throw new Error(`the laboratory has no place called ${name}`);
    return found;
  }

  /**
   * Starts a process at a place ("a", "client", "switch"). The network is the place's, everything else the machine's
   * (`ip netns exec` would hide /sys/fs/cgroup) but the proxies in its environment. Default stdio: nothing in, output
   * kept; `keep: false` hands it to the caller unread.
   */
  spawn(
    at: string,
    argv: string[],
    options: SpawnOptions & { name?: string; keep?: boolean } = {},
  ): LabProcess {
    const { name, keep = true, ...rest } = options;
    const child = spawn("nsenter", [`--net=/run/netns/${this.place(at).netns}`, "--", ...argv], {
      cwd: this.dir,
      stdio: ["ignore", "pipe", "pipe"],
      // A Ctrl-C is for us, who then end everything in order.
      detached: true,
      ...rest,
      env: { ...withoutProxies({ ...process.env, ...rest.env }), [labMarker]: this.id },
    });
    this.#logs += 1;
    const log = join(
      this.dir,
      `${String(this.#logs).padStart(3, "0")}-${at}-${name ?? (argv[0] ?? "").split("/").at(-1)}.log`,
    );
    const started = new Started(child, argv, keep ? log : null);
    this.#processes.add(started);
    child.once("exit", () => this.#processes.delete(started));
    return started;
  }

  /** Runs a command at a place to its end. Never throws for its exit status. */
  async run(
    at: string,
    argv: string[],
    options: SpawnOptions & { timeoutMs?: number } = {},
  ): Promise<CliResult> {
    const { timeoutMs, ...rest } = options;
    const started = this.spawn(at, argv, rest);
    const timer =
      timeoutMs === undefined ? undefined : setTimeout(() => started.child.kill("SIGKILL"), timeoutMs);
    await closed(started.child);
    clearTimeout(timer);
    return {
      status: started.child.exitCode,
      stdout: started.stdout,
      stderr: started.stderr,
      json: jsonOf(started.stdout),
    };
  }

  stateDir(node: string): string {
    return join(this.dir, node);
  }

  /** The configuration an agent gets: the laboratory's part with `config` over it. */
  agentConfig(node: string, config: AgentConfig = {}): AgentConfig {
    const peers = Object.fromEntries(
      [...this.nodes.values()]
        .filter(({ name }) => name !== node)
        .map(({ name, address }) => [name, `${address}:${agentPort}`]),
    );
    return {
      node,
      store: this.redis.url,
      listen: `${this.place(node).address}:${agentPort}`,
      peers,
      stateDir: this.stateDir(node),
      key: `file:${join(this.dir, "key")}`,
      ...config,
    };
  }

  /**
   * Starts the node's agent and resolves when its admin socket answers. Calling it again after the agent has ended
   * starts the next one on the same state.
   */
  async startAgent(
    node: string,
    config: AgentConfig = {},
    options: { timeoutMs?: number; env?: Record<string, string>; program?: string } = {},
  ): Promise<LabAgent> {
    const full = this.agentConfig(node, config);
    const configFile = join(this.dir, `${node}.yaml`);
    writeFileSync(configFile, stringify(full), { mode: 0o600 });
    const stateDir = String(full.stateDir);
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    const socketPath = join(stateDir, "agent.sock");
    const started = this.spawn(node, [options.program ?? holdfast, "agent", "--config", configFile], {
      name: "agent",
      cwd: projectRoot,
      env: { ...process.env, ...options.env },
    });
    const agent = Object.assign(started, {
      node,
      socketPath,
      stateDir,
      configFile,
      config: full,
    }) as Started & LabAgent;
    const until = Date.now() + (options.timeoutMs ?? startMsMax);
    while (!(await answers(socketPath))) {
      const problem = agent.exited ? "ended" : Date.now() > until ? "is not ready" : null;
      if (problem !== null) {
        await agent.stop("SIGKILL");
        throw new Error(
          `the agent of node ${node} ${problem} (${agent.child.exitCode ?? agent.child.signalCode}):\n${agent.stderr || agent.stdout}`,
        );
      }
      await sleep(10);
    }
    this.agents.set(node, agent);
    return agent;
  }

  /**
   * Starts an agent on each of these nodes, the first of which has a workload to start; resolves when clients are served. (An
   * agent answers on its admin socket when it has started its workloads, or after three seconds on a busy machine.)
   */
  async startAgents(nodes: string[], start: (node: string) => Promise<unknown>): Promise<void> {
    await Promise.all(nodes.map(start));
    await this.agents.get(nodes[0] ?? "")?.waitFor(/"msg":"started"/, startMsMax);
  }

  /** Starts a gateway and resolves when it accepts clients. Keys of `config` go over the laboratory's own (gateway, store, key). */
  async startGateway(name: string, config: AgentConfig): Promise<LabProcess> {
    const full = { gateway: name, store: this.redis.url, key: `file:${join(this.dir, "key")}`, ...config };
    const configFile = join(this.dir, `${name}.yaml`);
    writeFileSync(configFile, stringify(full), { mode: 0o600 });
    const started = this.spawn(name, [holdfast, "gateway", "--config", configFile], {
      name: "gateway",
      cwd: projectRoot,
    });
    await started.waitFor(/"msg":"gateway ready"/);
    return started;
  }

  /** Ends everything that runs at a node, at once. @param isSilent its cable is pulled before: not a word of its end gets out */
  killNode(node: string, isSilent: boolean): void {
    if (isSilent) this.setLink(node, "down");
    killAllIn(this.place(node).netns, this.stateDir(node));
  }

  /** Runs `holdfast ARGS --agent SOCKET` at a node. */
  cli(node: string, args: string[], options: SpawnOptions & { timeoutMs?: number } = {}): Promise<CliResult> {
    const socketPath = this.agents.get(node)?.socketPath ?? join(this.stateDir(node), "agent.sock");
    return this.run(node, [holdfast, ...args, "--agent", socketPath], { cwd: projectRoot, ...options });
  }

  /** Pulls a node's cable, or plugs it in again. */
  setLink(node: string, state: "up" | "down"): void {
    ip("-n", this.switch.netns, "link", "set", `to-${this.place(node).name}`, state);
  }

  /**
   * Nothing from one place gets to another any more, and nobody is told; until `heal`.
   * @param but what goes to this port does. 0: nothing
   */
  cutOff(from: string, to: string, but = 0): void {
    const { address } = this.place(to);
    const what = but === 0 ? "" : `tcp dport != ${but} `;
    const device = `to-${this.place(from).name}`;
    this.#nft(`add table netdev cut_${from}`);
    this.#nft(`add chain netdev cut_${from} from { type filter hook ingress device ${device} priority 0; }`);
    this.#nft(`add rule netdev cut_${from} from ip daddr ${address} ${what}drop`);
  }
  heal(from: string): void {
    this.#nft(`delete table netdev cut_${from}`);
  }
  #nft(command: string): void {
    execFileSync("nsenter", [`--net=/run/netns/${this.switch.netns}`, "--", "nft", command]);
  }

  /** What of this laboratory is on the machine; after `close()` every list is empty. */
  leftovers(): Leftovers {
    return findLeftovers(this.id);
  }

  /** Whether `close` has been called, by the owner or by a signal. */
  get closing(): boolean {
    return this.#closed !== undefined;
  }

  /** Ends everything and removes everything. May be called again, and while it runs. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Without asking anybody; for a process that is ending. */
  closeNow(): void {
    live.delete(this);
    sweep(this.id);
  }

  async #close(): Promise<void> {
    try {
      this.redis.resume();
      await Promise.all(
        [...this.agents.values()].filter((agent) => !agent.exited).map((agent) => this.#stopWorkloads(agent)),
      );
      await Promise.all([...this.agents.values()].map((agent) => agent.stop("SIGTERM", stopAgentMsMax)));
      await Promise.all([...this.#processes].map((started) => started.stop("SIGKILL")));
    } finally {
      live.delete(this);
      const left = sweep(this.id);
      const rest = Object.entries(left).filter(([, list]) => list.length > 0);
      if (rest.length > 0)
        process.emitWarning(`laboratory ${this.id} left behind: ${JSON.stringify(Object.fromEntries(rest))}`);
    }
  }

  async #stopWorkloads(agent: LabAgent): Promise<void> {
    const workloads = Array.isArray(agent.config.workloads) ? agent.config.workloads : [];
    for (const { name } of workloads as { name: string }[]) {
      // It may run on another node, or not any more: then there is nothing to stop here.
      await askToStop(agent.socketPath, name);
    }
  }
}

class Started implements LabProcess {
  readonly child: ChildProcess;
  readonly #argv: string[];
  #stdout = "";
  #stderr = "";
  #error: Error | undefined;

  constructor(child: ChildProcess, argv: string[], log: string | null) {
    this.child = child;
    this.#argv = argv;
    child.on("error", (error) => {
      this.#error = error;
    });
    if (log === null) return;
    const file = createWriteStream(log, { flags: "a" });
    file.on("error", () => {}); // the folder goes away before the last line does
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.#stdout = (this.#stdout + text).slice(-outputCharsMax);
      file.write(text);
    });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-outputCharsMax);
      file.write(text);
    });
    child.once("close", () => file.end());
  }

  get pid(): number {
    if (this.child.pid === undefined)
      throw new Error(`${this.#argv.join(" ")}: ${this.#error?.message ?? "not started"}`);
    return this.child.pid;
  }
  get stdout(): string {
    return this.#stdout;
  }
  get stderr(): string {
    return this.#stderr;
  }
  get exited(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null || this.#error !== undefined;
  }

  async stop(signal: NodeJS.Signals = "SIGTERM", killAfterMs = 3_000): Promise<void> {
    if (this.exited) return;
    const ended = once(this.child, "exit");
    this.child.kill(signal);
    const killer = setTimeout(() => this.child.kill("SIGKILL"), killAfterMs);
    await ended;
    clearTimeout(killer);
  }

  async waitFor(pattern: RegExp, timeoutMs = startMsMax): Promise<void> {
    const seen = () => pattern.test(this.#stdout) || pattern.test(this.#stderr);
    const until = Date.now() + timeoutMs;
    while (!seen()) {
      if (this.exited || Date.now() > until) {
        throw new Error(
          `${this.#argv.join(" ")} ${this.exited ? "ended" : "ran"} without saying ${pattern}:\n${this.#stdout}${this.#stderr}`,
        );
      }
      await sleep(5);
    }
  }
}

class Redis implements LabRedis {
  readonly #lab: Lab;
  #process: LabProcess | undefined;

  constructor(lab: Lab) {
    this.#lab = lab;
  }

  get url(): string {
    return `redis://${this.#lab.switch.address}:${redisPort}`;
  }
  get socketPath(): string {
    return join(this.#lab.dir, "redis.sock");
  }
  get pid(): number | null {
    return this.#process === undefined || this.#process.exited ? null : this.#process.pid;
  }

  async start(): Promise<void> {
    if (this.pid !== null) return;
    const settings = {
      bind: `${this.#lab.switch.address} ${this.#lab.switch.address6}`,
      port: String(redisPort),
      unixsocket: this.socketPath,
      "protected-mode": "no",
      save: "",
      appendonly: "no",
      dir: this.#lab.dir,
    };
    const argv = Object.entries(settings).flatMap(([key, value]) =>
      key === "bind" ? ["--bind", ...value.split(" ")] : [`--${key}`, value],
    );
    this.#process = this.#lab.spawn("switch", ["redis-server", ...argv], { name: "redis" });
    await this.#process.waitFor(/ready to accept connections/i);
  }

  async stop(): Promise<void> {
    await this.#process?.stop("SIGKILL");
  }

  pause(): void {
    if (this.pid !== null) this.#process?.child.kill("SIGSTOP");
  }

  resume(): void {
    if (this.pid !== null) this.#process?.child.kill("SIGCONT");
  }
}

function addressesOf({ address, address6 }: Place, device: string): string[] {
  return [`address add ${address}/24 dev ${device}`, `address add ${address6}/64 dev ${device} nodad`];
}

function ip(...args: string[]): void {
  run("ip", args);
}

/** Commands of ip(8), in order and by one process, in a network namespace or the machine's own. */
function ipAll(netns: string | null, commands: string[]): void {
  run("ip", [...(netns === null ? [] : ["-n", netns]), "-batch", "-"], `${commands.join("\n")}\n`);
}

function run(program: string, args: string[], input = ""): void {
  const { status, stderr, error } = spawnSync(program, args, { encoding: "utf8", input });
  if (status !== 0)
    throw new Error(`${[program, ...args].join(" ")}: ${error?.message ?? stderr.trim()}\n${input}`);
}

function answers(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

/** As `holdfast stop` does, without a process of its own. Resolves when it is done or refused, or after {@link stopWorkloadMsMax}. */
async function askToStop(socketPath: string, workload: string): Promise<void> {
  const asked = request({
    socketPath,
    method: "POST",
    path: `/v1/workloads/${encodeURIComponent(workload)}/stop`,
    signal: AbortSignal.timeout(stopWorkloadMsMax),
  });
  asked.end("{}");
  await new Promise<void>((done) => {
    asked.once("response", (response) => response.resume().once("close", done).on("error", done));
    asked.once("error", () => done());
  });
}

/** Its end, and the end of its output. */
async function closed(child: ChildProcess): Promise<void> {
  await new Promise<void>((resolve) => {
    child.once("close", () => resolve());
    child.once("error", () => resolve());
  });
}

function jsonOf(stdout: string): unknown {
  for (const text of [stdout, stdout.trim().split("\n").at(-1) ?? ""]) {
    try {
      return JSON.parse(text);
    } catch {
      // not this one
    }
  }
  return undefined;
}

let guarded = false;

/** However this process ends, its laboratories end first. */
/** It is closed when this process ends, by a signal too. @returns to be called when it was closed otherwise */
export function guard(closable: Closable): () => void {
  live.add(closable);
  guardProcess();
  return () => live.delete(closable);
}

function guardProcess(): void {
  if (guarded) return;
  guarded = true;
  process.once("exit", () => {
    for (const lab of live) lab.closeNow();
  });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    const onSignal = async () => {
      process.off(signal, onSignal);
      await Promise.allSettled([...live].map((lab) => lab.close()));
      process.kill(process.pid, signal);
    };
    process.on(signal, onSignal);
  }
}
