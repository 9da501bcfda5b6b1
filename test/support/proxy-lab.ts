/**
 * Proxies without CRIU: nodes are network namespaces on a bridge with the clients, and the application is one process
 * in a namespace of its own on a cable that is plugged into the node that owns it. Its end of each session stays where
 * it is; only the proxies' legs move, so a whole handover between proxies is tried byte by byte with the application
 * merely stopped (SIGSTOP) and unplugged, which is as silent as one that was dumped.
 *
 *   clients 10.66.0.1 ── bridge ──┬── a 10.66.0.2 ─┐
 *   (the test's own thread)       ├── b 10.66.0.3 ─┼─ 10.77.0.1 ══cable══ 10.77.0.2 application
 *                                 └── c 10.66.0.4 ─┘
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, closeSync, mkdirSync, openSync, readdirSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { identify, type ProcessIdentity } from "#control/runtime/processes.ts";
import { LegPrivileges } from "#control/workload/leg-privileges.ts";
import { Channel } from "#proxy/contract/channel.ts";
import type {
  CapturedPiece,
  CaptureResult,
  Configure,
  Downstream,
  PortConfig,
  ProxyCommands,
  SessionInfo,
} from "#proxy/contract/commands.ts";
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import { LEGS_CALL } from "#proxy/contract/privileged-steps.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { AF_INET } from "#proxy/kernel/address-text.ts";
import { close } from "#proxy/kernel/descriptors.ts";
import { listSockets } from "#proxy/kernel/diag.ts";
import { CLONE_NEWNET, setns } from "#proxy/kernel/namespaces.ts";
import { bind, IPPROTO_TCP, listen, SOCK_CLOEXEC, SOCK_STREAM, socket } from "#proxy/kernel/socket.ts";
import { guard } from "#test/lab/lab.ts";
import { labDir, labPrefixes, startTimeOf, sweep, sweepDeadLabs } from "#test/lab/sweep.ts";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { request } = process.getBuiltinModule("node:http");

/** a user who is nobody else, and has no capability */
const NOBODY = 65_534;
const UNPRIVILEGED = [
  ...["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups", "--no-new-privs"],
  ...["--bounding-set", "-all", "--inh-caps", "-all", "--"],
];
const root = resolve(import.meta.dirname, "../..");
const node = join(root, "node_modules/node/bin/node");
export type NodeName = "a" | "b" | "c";
export const CLIENT_PORT = 8080;
export const VIP = "10.66.0.50";
const APP: Endpoint = { address: "10.77.0.2", port: 9000 };
const ADDRESS: Record<NodeName, string> = { a: "10.66.0.2", b: "10.66.0.3", c: "10.66.0.4" };
/** of links */
export const KEY = Buffer.alloc(32, 7);

export const LIMITS: ProxyLimits = {
  holdMsMax: 1000,
  drainMsMax: 200,
  heldSessionsMax: 100,
  lingerMsMax: 5000,
  linkResumeMsMax: 5000,
  trunkSessionsMax: 65_536,
  unavailableMsMax: 5000,
  replayBytesMax: 262_144,
  stallMsMax: 1000,
  heldSessionBytesMax: 1_048_576,
  heldWorkloadBytesMax: 16_777_216,
  spillBytesMax: 67_108_864,
  pingMs: 10_000,
  detachedMsMax: 5000,
  probeMsMax: 5000,
};
export const PLAIN: Omit<PortConfig, "listen" | "upstream"> = {
  protocol: "auto",
  continuity: "transplant",
  moveBy: "transplant",
  replayUnsafe: false,
  delivery: "atMostOnce",
  setUp: "auto",
  sessionsMax: 50_000,
  sessionsPerClientMax: 50_000,
  keepAliveMs: 15_000,
  // a client may read nothing for a whole test, on a slow machine
  userTimeoutMs: 600_000,
  idleMsMax: 0,
  naming: null,
  proxyProtocol: null,
  probes: [],
};

export interface LabOptions {
  nodes: NodeName[];
  downstream: Downstream;
  echo?: "counted" | "plain";
  port?: Partial<PortConfig>;
  limits?: Partial<ProxyLimits>;
  /** proxies without a capability, which the test helps as an agent would */
  helped?: boolean;
}

let made = 0;

export class ProxyLab {
  readonly proxies = new Map<NodeName, ProxyProcess>();
  readonly options: LabOptions;
  readonly #id = `${labPrefixes.proxies}${process.pid}-${++made}`;
  readonly directory = labDir(this.#id);
  readonly #home = openSync("/proc/self/ns/net", "r");
  #unguard = (): void => {};
  #app: ChildProcess | null = null;
  #plugged: NodeName | null = null;
  epoch = 1;

  private constructor(options: LabOptions) {
    this.options = options;
  }

  static async start(options: LabOptions): Promise<ProxyLab> {
    const lab = new ProxyLab(options);
    try {
      await lab.#build();
      return lab;
    } catch (error) {
      await lab.stop();
      throw error;
    }
  }

  #ns(name: string): string {
    return `${this.#id}-${name}`;
  }

  async #build(): Promise<void> {
    const { nodes } = this.options;
    sweepDeadLabs(labPrefixes.proxies);
    mkdirSync(this.directory, { mode: 0o700 });
    if (this.options.helped === true) chownSync(this.directory, NOBODY, NOBODY);
    writeFileSync(join(this.directory, "owner"), startTimeOf(process.pid) ?? "");
    this.#unguard = guard({ close: () => this.stop(), closeNow: () => void sweep(this.#id) });
    const all = ["clients", "app", ...nodes];
    ipAll(
      [],
      all.map((name) => `netns add ${this.#ns(name)}`),
    );
    for (const name of all) this.#ip(name, "link set lo up");
    this.#ip(
      "clients",
      "link add br0 type bridge",
      "addr add 10.66.0.1/24 dev br0",
      "link set br0 up",
      ...nodes.flatMap((name) => [
        `link add v${name} type veth peer name eth0 netns ${this.#ns(name)}`,
        `link set v${name} master br0 up`,
      ]),
    );
    for (const name of nodes)
      this.#ip(
        name,
        `addr add ${ADDRESS[name]}/24 dev eth0`,
        "addr add 10.77.0.1/32 dev lo",
        "link set eth0 up",
        // Without the cable: a way to nowhere, so that a leg can be adopted before it is plugged in.
        "route add 10.77.0.2/32 dev eth0 src 10.77.0.1 metric 1000",
      );
    this.#ip(
      "app",
      `link add eth0 type veth peer name cable netns ${this.#ns("app")}`,
      "addr add 10.77.0.2/24 dev eth0",
      "link set eth0 up",
    );
    const clients = openSync(`/var/run/netns/${this.#ns("clients")}`, "r");
    setns(clients, CLONE_NEWNET);
    closeSync(clients);
    this.#app = spawn(
      "ip",
      ["netns", "exec", this.#ns("app"), node, join(root, "test/apps/echo/server.js")],
      {
        env: {
          ...process.env,
          HOST: APP.address,
          PORT: String(APP.port),
          ECHO: this.options.echo ?? "counted",
        },
        stdio: ["ignore", "pipe", "inherit"],
      },
    );
    await once(this.#app.stdout as NonNullable<ChildProcess["stdout"]>, "data");
    for (const name of nodes) await this.startProxy(name);
  }

  /** Commands of ip(8), in order and by one process, in a node's network. */
  #ip(name: string, ...commands: string[]): void {
    ipAll(["-n", this.#ns(name)], commands);
  }

  async startProxy(name: NodeName): Promise<ProxyProcess> {
    const proxy = await ProxyProcess.start({
      exec: ["ip", "netns", "exec", this.#ns(name)],
      socket: join(this.directory, `${name}.sock`),
      helped: this.options.helped === true,
    });
    this.proxies.set(name, proxy);
    const config: Configure = {
      workload: "echo",
      node: name,
      network: "host",
      downstream: this.options.downstream,
      listenAddress: this.listenAddress(name),
      listenDevice: null,
      ports: [{ ...PLAIN, listen: CLIENT_PORT, upstream: APP, ...this.options.port }],
      linkAddress: `${ADDRESS[name]}:0`,
      links: "encrypted",
      spillDir: this.directory,
      limits: { ...LIMITS, ...this.options.limits },
    };
    await proxy.call("configure", config, KEY);
    return proxy;
  }

  proxy(name: NodeName): ProxyProcess {
    const proxy = this.proxies.get(name);
    if (proxy === undefined) throw new Error(`no proxy on ${name}`);
    return proxy;
  }

  /** The node a client connects to; null: the address that moves. */
  client(name: NodeName | null): Socket {
    return connect({
      host: name === null ? VIP : ADDRESS[name],
      port: CLIENT_PORT,
      noDelay: true,
      allowHalfOpen: true,
    });
  }

  listenAddress(name: NodeName): string {
    return this.options.downstream === "takeover" ? VIP : ADDRESS[name];
  }

  /** Somebody else listens on the clients' port there, until the result is called. */
  occupy(name: NodeName): () => void {
    const home = openSync("/proc/thread-self/ns/net", "r");
    const there = openSync(`/var/run/netns/${this.#ns(name)}`, "r");
    setns(there, CLONE_NEWNET);
    try {
      const fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
      bind(fd, { address: "0.0.0.0", port: CLIENT_PORT });
      listen(fd, 1);
      return () => close(fd);
    } finally {
      setns(home, CLONE_NEWNET);
      closeSync(home);
      closeSync(there);
    }
  }

  /** Resolves when the application has this many sessions open. */
  async untilConnections(count: number): Promise<void> {
    const deadlineMs = performance.now() + 10_000;
    const home = openSync("/proc/thread-self/ns/net", "r");
    const app = openSync(`/var/run/netns/${this.#ns("app")}`, "r");
    try {
      for (;;) {
        setns(app, CLONE_NEWNET);
        const open = listSockets({ states: ["ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2"] }).filter(
          (each) => each.local.port === APP.port && each.inode !== 0,
        );
        setns(home, CLONE_NEWNET);
        if (open.length === count) return;
        if (performance.now() > deadlineMs)
          throw new Error(`the application has ${open.length} sessions, not ${count}`);
        await delay(20);
      }
    } finally {
      setns(home, CLONE_NEWNET);
      closeSync(home);
      closeSync(app);
    }
  }

  /** The application's cable into this node's proxy, or into nothing. */
  plug(to: NodeName | null): void {
    if (this.#plugged !== null) this.#ip(this.#plugged, `link set cable netns ${this.#ns("app")}`);
    this.#plugged = to;
    if (to === null) return;
    this.#ip("app", `link set cable netns ${this.#ns(to)}`);
    this.#ip(to, "link set cable up", "route add 10.77.0.2/32 dev cable src 10.77.0.1 metric 10");
  }

  moveVip(from: NodeName | null, to: NodeName): void {
    if (from !== null) this.#ip(from, `addr del ${VIP}/24 dev eth0`);
    this.#ip(to, `addr add ${VIP}/24 dev eth0`);
  }

  /** As a gratuitous ARP would. */
  announceVip(to: NodeName): void {
    const text = execFileSync("ip", ["-n", this.#ns(to), "-j", "link", "show", "eth0"], { encoding: "utf8" });
    const mac = (JSON.parse(text) as { address: string }[])[0]?.address ?? "";
    this.#ip("clients", `neigh replace ${VIP} lladdr ${mac} dev br0 nud reachable`);
  }

  stopApp(): void {
    this.#app?.kill("SIGSTOP");
  }
  continueApp(): void {
    this.#app?.kill("SIGCONT");
  }

  async serve(name: NodeName): Promise<void> {
    if (this.options.downstream === "takeover") {
      this.moveVip(null, name);
      this.announceVip(name);
    }
    this.plug(name);
    await this.proxy(name).call("serve", { epoch: this.epoch });
  }

  async hold(from: NodeName): Promise<{ sessions: number; unackedLegs: number }> {
    const held = await this.proxy(from).call<{ sessions: number; unackedLegs: number }>("hold", {
      epoch: this.epoch,
    });
    return held.result;
  }

  /** hold … captureUpstream, the application stopped and unplugged. */
  async captureUpstream(from: NodeName): Promise<Buffer> {
    await this.hold(from);
    this.stopApp();
    this.plug(null);
    return (await this.proxy(from).call("captureUpstream", { epoch: this.epoch })).body;
  }

  /** Ends a node's proxy without a word of its own: what its kernel says of that is all. */
  async kill(name: NodeName, signal?: NodeJS.Signals): Promise<void> {
    await this.proxy(name).kill(signal);
    this.proxies.delete(name);
  }

  async linkOf(name: NodeName): Promise<Endpoint> {
    const { result } = await this.proxy(name).call<{ link: Endpoint }>("status", {});
    return result.link;
  }

  /** One whole move. `during` runs between the steps, by name. */
  async move(
    from: NodeName,
    to: NodeName,
    during: (step: string) => Promise<void> | void = () => {},
    /** over what was captured of the connections to the application */
    change: (captured: Buffer) => Buffer = (captured) => captured,
  ): Promise<void> {
    const takeover = this.options.downstream === "takeover";
    const gateway = this.options.downstream === "gateway";
    const source = this.proxy(from);
    const target = this.proxies.get(to) ?? (await this.startProxy(to));
    const next = this.epoch + 1;
    await target.call("standby", { epoch: next });
    const link = takeover ? { address: "127.0.0.1", port: 1 } : await this.linkOf(to);
    const anchors = gateway ? [] : [...this.proxies].filter(([name]) => name !== to);
    if (gateway) await source.call("prepareLinks", { epoch: next, target: link });
    if (!takeover) {
      for (const [name, anchor] of anchors) {
        const { result } = await anchor.call<{ role: string }>("status", {});
        if (name === from || result.role === "anchor")
          await anchor.call("prepareLinks", { epoch: next, target: link });
      }
    }
    await during("prepared");
    await this.hold(from);
    await during("held");
    this.stopApp();
    this.plug(null);
    const carry = async (
      first: { result: CapturedPiece; body: Buffer },
      adopt: "adoptUpstream" | "adoptDownstream",
    ): Promise<void> => {
      for (let piece = first; ; ) {
        await target.call(adopt, { epoch: next }, piece.body);
        if (piece.result.left === 0) return;
        piece = await source.call<CapturedPiece>("takeCaptured", { epoch: this.epoch });
      }
    };
    const up = await source.call<CaptureResult>("captureUpstream", { epoch: this.epoch });
    await during("capturedUpstream");
    await carry({ ...up, body: change(up.body) }, "adoptUpstream");
    await during("adoptedUpstream");
    if (gateway && this.proxies.has(from)) {
      await source.call("settleLinks", { epoch: this.epoch });
      await during("settled");
    }
    if (takeover) {
      const down = await source.call<CaptureResult>("captureDownstream", { epoch: this.epoch });
      this.moveVip(from, to);
      await during("capturedDownstream");
      await carry(down, "adoptDownstream");
      // Not before: a segment that meets no leg is answered with RST.
      this.announceVip(to);
      await during("adoptedDownstream");
    }
    this.epoch = next;
    this.plug(to);
    this.continueApp();
    await target.call("release", { epoch: next });
    await during("released");
    const owner = { node: to, link };
    // a step may have ended it
    if (this.proxies.has(from)) await source.call("retire", { epoch: next, owner: gateway ? null : owner });
    if (gateway || takeover) {
      await source.exited;
      this.proxies.delete(from);
    } else {
      for (const [name, anchor] of anchors) {
        if (name === from) continue;
        const { result } = await anchor.call<{ role: string }>("status", {});
        if (result.role === "anchor") await anchor.call("switchOwner", { epoch: next, owner });
      }
    }
    await during("retired");
  }

  /** Of all proxies together. */
  async inUse(): Promise<{ descriptors: number; sessions: number }> {
    const sum = { descriptors: 0, sessions: 0 };
    for (const proxy of this.proxies.values()) {
      sum.descriptors += proxy.descriptors;
      sum.sessions += (await proxy.status()).sessions;
    }
    return sum;
  }

  async stop(): Promise<void> {
    for (const proxy of this.proxies.values()) await proxy.kill();
    this.#app?.kill("SIGKILL");
    setns(this.#home, CLONE_NEWNET);
    closeSync(this.#home);
    sweep(this.#id);
    this.#unguard();
  }
}

function ipAll(options: string[], commands: string[]): void {
  execFileSync("ip", [...options, "-batch", "-"], {
    input: `${commands.join("\n")}\n`,
    stdio: ["pipe", "ignore", "pipe"],
  });
}

/** What an agent does for a proxy. */
export interface Helper {
  calls: number;
  /** what becomes of the agent with the call of that number, counted from 1 */
  meets: ((call: number) => "dies before" | "dies after" | null) | null;
}

export class ProxyProcess {
  readonly process: ChildProcess;
  readonly socket: string;
  readonly exited: Promise<unknown>;
  /** null: it needs no help */
  readonly helper: Helper | null;
  #channel: Channel;

  private constructor(process: ChildProcess, socket: string, channel: Channel, helper: Helper | null) {
    this.process = process;
    this.socket = socket;
    this.exited = once(process, "exit");
    this.#channel = channel;
    this.helper = helper;
  }

  static async start(options: { exec?: string[]; socket: string; helped?: boolean }): Promise<ProxyProcess> {
    const helper: Helper | null = options.helped === true ? { calls: 0, meets: null } : null;
    const argv = [
      ...(options.exec ?? []),
      ...(helper === null ? [] : UNPRIVILEGED),
      ...[node, join(root, "proxy/main.ts"), "--socket", options.socket],
      ...(helper === null ? [] : ["--helped"]),
    ];
    const child = spawn(
      argv[0] as string,
      [...argv.slice(1), "--log-level", process.env.PROXY_LOG ?? "error"],
      {
        stdio: ["ignore", "inherit", "inherit"],
      },
    );
    const channel = await ProxyProcess.#connect(options.socket, child, helper);
    return new ProxyProcess(child, options.socket, channel, helper);
  }

  static async #connect(path: string, child: ChildProcess, helper: Helper | null): Promise<Channel> {
    for (;;) {
      const socket = connect(path);
      try {
        await once(socket, "connect");
        if (helper === null) return new Channel(socket, { name: "proxy" });
        const privileges = await LegPrivileges.of((await identify(child.pid ?? -1)) as ProcessIdentity);
        const channel: Channel = new Channel(socket, {
          name: "proxy",
          handlers: {
            [LEGS_CALL]: async (params, body) => {
              const call = ++helper.calls;
              if (helper.meets?.(call) === "dies before") channel.close();
              const done = channel.isOpen ? await privileges.handler(params, body) : undefined;
              if (helper.meets?.(call) === "dies after") channel.close();
              return done;
            },
          },
        });
        void channel.closed.then(() => privileges.close());
        return channel;
      } catch {
        if (child.exitCode !== null) throw new Error(`the proxy ended with ${child.exitCode}`);
        await delay(5);
      }
    }
  }

  /** As an agent that was started again. */
  async reconnect(): Promise<void> {
    this.#channel.close();
    this.#channel = await ProxyProcess.#connect(this.socket, this.process, this.helper);
  }

  call<T = Record<string, unknown>>(
    method: keyof ProxyCommands,
    params: object,
    body?: Buffer,
  ): Promise<{ result: T; body: Buffer }> {
    return this.#channel.call<T>(method, params, {
      timeoutMs: 20_000,
      ...(body === undefined ? {} : { body }),
    });
  }

  async sessions(): Promise<SessionInfo[]> {
    return (await this.call<{ sessions: SessionInfo[] }>("sessions", {})).result.sessions;
  }

  async status(): Promise<{
    role: string;
    sessions: number;
    counters: Record<string, number>;
    ports: number[];
  }> {
    return (await this.call<Awaited<ReturnType<ProxyProcess["status"]>>>("status", {})).result;
  }

  /** Resolves when the proxy has this many sessions. */
  async untilSessions(count: number): Promise<void> {
    const deadlineMs = performance.now() + 10_000;
    for (;;) {
      const { sessions } = await this.status();
      if (sessions === count) return;
      if (performance.now() > deadlineMs) throw new Error(`${sessions} sessions instead of ${count}`);
      await delay(5);
    }
  }

  /** `ip netns exec` has replaced itself: the child is the proxy. */
  get descriptors(): number {
    return readdirSync(`/proc/${this.process.pid}/fd`).length;
  }

  get(path: string): Promise<{ status: number; text: string }> {
    const { promise, resolve: done, reject } = Promise.withResolvers<{ status: number; text: string }>();
    request({ socketPath: `${this.socket}.http`, path }, async (response) => {
      let text = "";
      for await (const part of response) text += part;
      done({ status: response.statusCode ?? 0, text });
    })
      .on("error", reject)
      .end();
    return promise;
  }

  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    this.#channel.close();
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    this.process.kill(signal);
    await this.exited;
  }
}
