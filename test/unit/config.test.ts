import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import fc from "fast-check";
import { parse, stringify } from "yaml";
import { exceededBy, loadConfig, parseConfig } from "#control/config/config.ts";
import { formatEndpoint, parseEndpoint } from "#control/config/endpoint.ts";
import { DEFAULT_AGENT_LIMITS as AGENT_LIMITS, DEFAULT_LIMITS as LIMITS } from "#control/config/limits.ts";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

const folder = mkdtempSync(join(tmpdir(), "holdfast-config-"));
const key = randomBytes(32);
writeFileSync(join(folder, "key"), key, { mode: 0o600 });
const file = join(folder, "a.yaml");
after(() => rmSync(folder, { recursive: true }));

const good = `
node: a
store: redis://10.99.0.1:6379
listen: 10.99.0.2:7400
peers: { b: 10.99.0.3:7400 }
stateDir: /var/lib/holdfast/a
key: file:${folder}/key
workloads:
  - name: chat
    start: true
    container:
      command: [node, server.js]
      cwd: /srv/chat
      env: { PORT: "9000" }
      rootfs: host
      mounts: [{ source: /data/chat, target: /data, shared: true }]
    ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }]
    vip: { address: 10.99.0.50/24, device: eth0 }
`;

const POD = { name: "chat-a", container: "app", command: ["node", "server.js"] };

/** what a port has that says nothing of them */
const PORT_BOUNDS = {
  proxyProtocol: null,
  sessionsMax: 50_000,
  sessionsPerClientMax: 25_000,
  keepAliveMs: 15_000,
  userTimeoutMs: 120_000,
  idleMsMax: 0,
};
const PORT: PortConfig = {
  listen: 8080,
  upstream: { address: "127.0.0.1", port: 9000 },
  protocol: "auto",
  continuity: "transplant",
  moveBy: "transplant",
  replayUnsafe: false,
  delivery: "atMostOnce",
  setUp: "auto",
  naming: null,
  ...PORT_BOUNDS,
  probes: [],
};

// biome-ignore lint/suspicious/noExplicitAny: tests break the file in every possible place.
type Raw = any;

function changed(change: (raw: Raw) => void): string {
  const raw: Raw = parse(good);
  change(raw);
  return stringify(raw);
}

describe("the agent's configuration", () => {
  test("the documented file, with its defaults", () => {
    writeFileSync(file, good);
    assert.deepEqual(loadConfig(file), {
      file,
      node: "a",
      store: "redis://10.99.0.1:6379",
      listen: { address: "10.99.0.2", port: 7400 },
      peers: { b: { address: "10.99.0.3", port: 7400 } },
      stateDir: "/var/lib/holdfast/a",
      socket: "/var/lib/holdfast/a/agent.sock",
      cri: null,
      pods: false,
      agents: null,
      keys: [key],
      keyFile: join(folder, "key"),
      gatewayKeys: null,
      workloads: [
        {
          name: "chat",
          start: true,
          container: {
            command: ["node", "server.js"],
            cwd: "/srv/chat",
            env: { PORT: "9000" },
            rootfs: "host",
            mounts: [{ source: "/data/chat", target: "/data", shared: true, readonly: false }],
            network: null,
            capabilities: { add: [], drop: [] },
          },
          bundle: null,
          pod: null,
          ports: [PORT],
          vip: { address: "10.99.0.50", prefix: 24, device: "eth0" },
          downstream: "takeover",
          listenAddress: "10.99.0.50",
          listenIn: "node",
          outbound: "close",
          restart: "on-failure",
          subreaper: false,
          stopSignal: "SIGTERM",
          stopMsMax: 10_000,
          limits: LIMITS,
        },
      ],
      limits: AGENT_LIMITS,
      identity: null,
      revoked: null,
      links: "encrypted",
      admin: null,
      metrics: null,
    });
  });

  test("a key of links with gateways alone", () => {
    const links = Buffer.alloc(32, 9);
    writeFileSync(join(folder, "links"), links, { mode: 0o600 });
    const config = parseConfig(
      changed((raw) => (raw.gatewayKey = "file:links")),
      file,
    );
    assert.deepEqual(config.gatewayKeys, { keys: [links], file: join(folder, "links") });
    assert.notDeepEqual(config.keys, [links]);
    assert.throws(
      () =>
        parseConfig(
          changed((raw) => (raw.gatewayKey = "file:absent")),
          file,
        ),
      {
        message: /: gatewayKey: expected a file with 32 bytes: ENOENT/,
      },
    );
  });

  test("forward, a bundle, limits, IPv6, and a key in hex next to the file", () => {
    writeFileSync(join(folder, "hex"), `${key.toString("hex")}\n`, { mode: 0o640 });
    const config = parseConfig(
      changed((raw) => {
        raw.key = "file:hex";
        raw.listen = "[fd00::2]:7400";
        raw.admin = "[::1]:7401";
        raw.metrics = "0.0.0.0:9400";
        const [chat] = raw.workloads;
        delete chat.vip;
        delete chat.container;
        chat.bundle = "/srv/bundle";
        chat.limits = { deadlineMs: 5000 };
        chat.ports[0].upstream = "[::1]:9000";
      }),
      file,
    );
    assert.deepEqual(config.keys, [key]);
    const [chat] = config.workloads;
    assert.equal(chat?.downstream, "forward");
    assert.equal(chat?.listenAddress, "fd00::2");
    assert.deepEqual(chat?.limits, { ...LIMITS, deadlineMs: 5000 });
    assert.deepEqual(config.admin, { address: "::1", port: 7401 });
  });

  test("agents in pods have one file, and what is a node's own in the environment", () => {
    const contents = changed((raw) => {
      delete raw.node;
      delete raw.listen;
      delete raw.peers;
      Object.assign(raw, { cri: "/run/cri.sock", pods: true, agents: "app=holdfast-agent", workloads: [] });
    });
    const env = { HOLDFAST_NODE: "ip-10-0-1-2.eu-central-1.compute.internal", HOLDFAST_ADDRESS: "fd00::2" };
    const { node, listen, peers, agents } = parseConfig(contents, file, env);
    assert.deepEqual([node, peers, agents], [env.HOLDFAST_NODE, {}, "app=holdfast-agent"]);
    assert.deepEqual(listen, { address: "fd00::2", port: 7400 });
    assert.throws(() => parseConfig(contents, file, {}), /: node: expected a name .*, got nothing$/);
    // the file's own word counts, and nobody else's file is filled in
    assert.equal(parseConfig(`node: b\n${contents}`, file, env).node, "b");
    const without = changed((raw) => delete raw.node);
    assert.throws(() => parseConfig(without, file, env), /: node: expected a name .*, got nothing$/);
  });

  test("everything a port may be told", () => {
    const config = parseConfig(
      changed((raw) => {
        const port = { listen: 1, upstream: "127.0.0.1:9000", continuity: "replay" };
        raw.workloads[0].ports = [
          { ...port, protocol: "http", replayUnsafe: true, session: { cookie: "sid", issue: true } },
          {
            ...port,
            listen: 2,
            protocol: "websocket",
            delivery: "atLeastOnce",
            session: { subprotocol: "s." },
          },
          { ...port, listen: 3, session: { header: "X-Session" }, probes: ["/healthz", "/ready?full"] },
          { ...port, listen: 4, session: { query: "sid" } },
          { ...port, listen: 5, continuity: "transplant", protocol: "tls" },
          { ...port, listen: 6, proxyProtocol: { from: ["10.0.0.0/8", "fd00::1"], headerMsMax: 9 } },
        ];
        Object.assign(raw.workloads[0], { restart: "always", stopSignal: "SIGQUIT", stopMsMax: 500 });
        raw.limits = { heldMbMax: 64 };
      }),
      file,
    );
    assert.deepEqual(
      config.workloads[0]?.ports.map(({ listen: _, upstream: __, ...port }) => port),
      [
        {
          protocol: "http",
          continuity: "replay",
          moveBy: "transplant",
          replayUnsafe: true,
          delivery: "atMostOnce",
          setUp: "auto",
          naming: { from: "cookie", name: "sid", issue: true },
          ...PORT_BOUNDS,
          probes: [],
        },
        {
          protocol: "websocket",
          continuity: "replay",
          moveBy: "transplant",
          replayUnsafe: false,
          delivery: "atLeastOnce",
          setUp: "auto",
          naming: { from: "subprotocol", name: "s.", issue: false },
          ...PORT_BOUNDS,
          probes: [],
        },
        {
          protocol: "auto",
          continuity: "replay",
          moveBy: "transplant",
          replayUnsafe: false,
          delivery: "atMostOnce",
          setUp: "auto",
          naming: { from: "header", name: "X-Session", issue: false },
          ...PORT_BOUNDS,
          probes: ["/healthz", "/ready?full"],
        },
        {
          protocol: "auto",
          continuity: "replay",
          moveBy: "transplant",
          replayUnsafe: false,
          delivery: "atMostOnce",
          setUp: "auto",
          naming: { from: "query", name: "sid", issue: false },
          ...PORT_BOUNDS,
          probes: [],
        },
        {
          protocol: "tls",
          continuity: "transplant",
          moveBy: "transplant",
          replayUnsafe: false,
          delivery: "atMostOnce",
          setUp: "auto",
          naming: null,
          ...PORT_BOUNDS,
          probes: [],
        },
        {
          protocol: "auto",
          continuity: "replay",
          moveBy: "transplant",
          replayUnsafe: false,
          delivery: "atMostOnce",
          setUp: "auto",
          naming: null,
          ...PORT_BOUNDS,
          proxyProtocol: {
            from: [
              { address: "10.0.0.0", prefix: 8 },
              { address: "fd00::1", prefix: 128 },
            ],
            headerMsMax: 9,
          },
          probes: [],
        },
      ],
    );
    const { restart, stopSignal, stopMsMax } = config.workloads[0] ?? {};
    assert.deepEqual(
      { restart, stopSignal, stopMsMax },
      { restart: "always", stopSignal: "SIGQUIT", stopMsMax: 500 },
    );
    assert.deepEqual(config.limits, { heldMbMax: 64, spillMbMax: 4_096 });
  });

  test("what is held is bounded for the agent as a whole, and counted where there is replay", () => {
    const nine = (continuity: string, more: object = {}) =>
      changed((raw) => {
        const [chat] = raw.workloads;
        delete chat.vip;
        raw.workloads = Array.from({ length: 9 }, (_, index) => ({
          ...chat,
          name: `chat-${index}`,
          ports: [{ listen: 8000 + index, upstream: "127.0.0.1:9000", continuity }],
          ...more,
        }));
      });
    assert.equal(parseConfig(nine("transplant"), file).workloads.length, 9);
    refusedWith(
      nine("replay"),
      "limits.heldMbMax: expected at least 576, the sum of limits.heldWorkloadBytesMax of the 9 workloads with replay (raise this one or lower those), got 512",
    );
    const sidecar = { namespace: "default", name: "a", container: "app", proxy: "sidecar" } as const;
    assert.equal(
      exceededBy(
        parseConfig(nine("transplant"), file).workloads.map((one) => ({
          ...one,
          ports: one.ports.map((port) => ({ ...port, continuity: "replay" as const })),
          pod: sidecar,
        })),
        { heldMbMax: 0, spillMbMax: 0 },
      ),
      null,
      "what a pod holds is the pod's",
    );
    refusedWith(
      nine("replay", { limits: { heldWorkloadBytesMax: 1 } }),
      /^limits\.spillMbMax: expected at least 9216,/,
    );
    const small = { limits: { heldWorkloadBytesMax: 59_652_323, spillBytesMax: 0 } };
    assert.equal(parseConfig(nine("replay", small), file).workloads.length, 9);
  });

  type Bad = [name: string, change: (raw: Raw) => void, message: string | RegExp];
  const port = (keys: object) => (raw: Raw) => Object.assign(raw.workloads[0].ports[0], keys);
  const bad: Bad[] = [
    [
      "no node",
      (r) => delete r.node,
      "node: expected a name of 1-63 small letters, digits and dashes, with dots between, got nothing",
    ],
    ["node name", (r) => (r.node = "A!"), /^node: expected a name .*, got "A!"$/],
    ["unknown key", (r) => (r.storage = 1), "storage: unknown key"],
    [
      "unknown key below",
      (r) => (r.workloads[0].ports[0].port = 1),
      "workloads[0].ports[0].port: unknown key",
    ],
    [
      "unknown limit",
      (r) => (r.workloads[0].limits = { deadline: 1 }),
      "workloads[0].limits.deadline: unknown key",
    ],
    [
      "port as text",
      (r) => (r.workloads[0].ports[0].listen = "x"),
      'workloads[0].ports[0].listen: expected a port number 1-65535, got "x"',
    ],
    ["port 0", (r) => (r.workloads[0].ports[0].listen = 0), /listen: expected a port number 1-65535, got 0$/],
    ["port 1.5", (r) => (r.workloads[0].ports[0].listen = 1.5), /expected a port number 1-65535, got 1.5$/],
    [
      "no ports",
      (r) => (r.workloads[0].ports = []),
      /ports: expected a list of 1-64 ports, got an empty list$/,
    ],
    [
      "upstream without port",
      (r) => (r.workloads[0].ports[0].upstream = "127.0.0.1"),
      /upstream: expected IP:PORT/,
    ],
    [
      "upstream elsewhere",
      (r) => (r.workloads[0].ports[0].upstream = "8.8.8.8:53"),
      /expected an address of this node/,
    ],
    [
      "upstream is our own listener",
      (r) => (r.workloads[0].ports[0].upstream = "10.99.0.50:8080"),
      /where Holdfast listens itself/,
    ],
    ["store", (r) => (r.store = "http://x"), /^store: expected memory:, redis:/],
    ["store with a password", (r) => (r.store = "redis://u:hunter2@h:x"), /^store: expected HOST:PORT/],
    [
      "memory store with peers",
      (r) => (r.store = "memory:"),
      /^store: expected a Redis .* got memory: together/,
    ],
    ["listen everywhere", (r) => (r.listen = "0.0.0.0:7400"), /^listen: expected the address other nodes/],
    ["itself as peer", (r) => (r.peers.a = "10.99.0.9:1"), "peers.a: expected other nodes, got this one"],
    ["peer name", (r) => (r.peers = { "B!": "10.99.0.9:1" }), /^peers\."B!": expected a name of 1-63/],
    ["peer at our address", (r) => (r.peers.b = "10.99.0.2:7400"), /^peers.b: .*which listen has$/],
    [
      "relative state",
      (r) => (r.stateDir = "state"),
      'stateDir: expected the absolute path of a folder of this agent\'s own, got "state"',
    ],
    ["long state", (r) => (r.stateDir = `/${"x".repeat(100)}`), /at most 70 characters/],
    ["revoked alone", (r) => (r.revoked = "revoked"), /^revoked: expected identity with it/],
    [
      "identity in part",
      (r) => (r.identity = { key: "a.key" }),
      /^identity\.certificate: expected the path of a PEM/,
    ],
    ["links", (r) => (r.links = "open"), /^links: expected encrypted or plain/],
    ["key without file:", (r) => (r.key = "secret"), /^key: expected file:PATH/],
    ["key absent", (r) => (r.key = "file:/nowhere/key"), /^key: expected a file with 32 bytes: ENOENT/],
    ["key is a folder", (r) => (r.key = "file:/tmp"), /^key: .*not a file/],
    [
      "two names",
      (r) => r.workloads.push({ ...r.workloads[0], vip: undefined }),
      /^workloads\[1\].name: .*"chat" again/,
    ],
    [
      "two workloads on one port",
      (r) => {
        delete r.workloads[0].vip;
        r.workloads.push({ ...r.workloads[0], name: "other" });
      },
      /^workloads\[1\]\.ports\[0\]\.listen: .*10\.99\.0\.2:8080, which workloads\[0\]\.ports\[0\]\.listen has$/,
    ],
    [
      "one VIP twice",
      (r) =>
        r.workloads.push({
          ...r.workloads[0],
          name: "other",
          ports: [{ listen: 1, upstream: "127.0.0.1:2" }],
        }),
      /^workloads\[1\]\.vip\.address: expected an address that moves with this workload alone/,
    ],
    ["VIP is the node", (r) => (r.workloads[0].vip.address = "10.99.0.2/24"), /the node's own 10\.99\.0\.2$/],
    [
      "VIP without prefix",
      (r) => (r.workloads[0].vip.address = "10.99.0.50"),
      /vip.address: expected IP\/PREFIX/,
    ],
    ["VIP prefix", (r) => (r.workloads[0].vip.address = "10.99.0.50/33"), /vip.address: expected IP\/PREFIX/],
    [
      "device",
      (r) => (r.workloads[0].vip.device = "a very long device"),
      /vip.device: expected a network device/,
    ],
    [
      "container and bundle",
      (r) => (r.workloads[0].bundle = "/b"),
      /^workloads\[0\]: expected exactly one .*, got container and bundle$/,
    ],
    [
      "neither",
      (r) => delete r.workloads[0].container,
      /^workloads\[0\]: expected exactly one .*, got none$/,
    ],
    [
      "a pod without its runtime",
      (r) => (r.workloads[0] = { ...r.workloads[0], container: undefined, pod: POD }),
      /^workloads\[0\]: expected the container runtime .*cri: .*beside workloads$/,
    ],
    [
      "pods without the runtime that has them",
      (r) => (r.pods = true),
      /^pods: expected the container runtime .*cri: .*got none$/,
    ],
    [
      "agents that are no pods",
      (r) => (r.agents = "app=holdfast-agent"),
      /^agents: expected pods: true with it .*got none$/,
    ],
    [
      "agents and peers",
      (r) => {
        r.cri = "/run/containerd/containerd.sock";
        r.pods = true;
        r.workloads = [];
        r.agents = "app=holdfast-agent";
      },
      /^agents: expected it without peers, .*got both$/,
    ],
    [
      "a name that makes a socket's path too long",
      (r) => {
        r.stateDir = `/${"x".repeat(60)}`;
        r.workloads[0].name = "x".repeat(40);
      },
      /^workloads\[0\].name: expected a name that is \d+ shorter, or a shorter stateDir/,
    ],
    ["a name that ends with a dot", (r) => (r.workloads[0].name = "default.chat."), /^workloads\[0\].name: /],
    [
      "a container of ours beside a container runtime",
      (r) => (r.cri = "/run/containerd/containerd.sock"),
      /^workloads\[0\]: expected pod .*, got container$/,
    ],
    [
      "a pod whose application listens elsewhere",
      (r) => {
        r.cri = "/run/containerd/containerd.sock";
        r.workloads[0] = { ...r.workloads[0], container: undefined, pod: POD };
        r.workloads[0].ports[0].upstream = "10.244.1.2:9000";
      },
      /^workloads\[0\].ports\[0\].upstream: expected a loopback address/,
    ],
    ["no command", (r) => (r.workloads[0].container.command = []), /container.command: expected a command/],
    [
      "command as text",
      (r) => (r.workloads[0].container.command = "node x"),
      /expected a command as a list of words, got "node x"$/,
    ],
    [
      "number in env",
      (r) => (r.workloads[0].container.env.PORT = 9000),
      /container.env.PORT: expected a string \(numbers in quotes\), got 9000$/,
    ],
    ["NUL", (r) => (r.workloads[0].container.command = ["a\0b"]), /without a NUL/],
    [
      "rootfs",
      (r) => (r.workloads[0].container.rootfs = "debian"),
      /rootfs: expected host or an absolute path, got "debian"$/,
    ],
    [
      "mount",
      (r) => (r.workloads[0].container.mounts[0].target = "data"),
      /mounts\[0\].target: expected the absolute path/,
    ],
    [
      "network",
      (r) => (r.workloads[0].container.network = "mine"),
      /container.network: expected host, own or an address of its own, .*, got "mine"$/,
    ],
    [
      "gateway elsewhere",
      (r) => (r.workloads[0].container.network = { address: "10.7.0.2/30", gateway: "10.7.0.5" }),
      /container.network.gateway: expected another address of 10.7.0.2\/30, got 10.7.0.5$/,
    ],
    [
      "an IPv6 address for a container",
      (r) => (r.workloads[0].container.network = { address: "fd00::2/64", gateway: "10.7.0.1" }),
      /container.network.address: expected an IPv4 address/,
    ],
    [
      "outbound keep in a network of its own",
      (r) => {
        r.workloads[0].container.network = "own";
        r.workloads[0].outbound = "keep";
      },
      /outbound: expected close \(behind a network of its own/,
    ],
    [
      "an upstream of the node in a network of its own",
      (r) => {
        r.workloads[0].container.network = "own";
        r.workloads[0].ports[0].upstream = "10.99.0.2:9000";
      },
      /ports\[0\].upstream: expected a loopback address, .* where the container has a network of its own/,
    ],
    [
      "two containers' networks that overlap",
      (r) => {
        r.workloads[0].container.network = { address: "10.7.0.2/30", gateway: "10.7.0.1" };
        const network = { address: "10.7.0.3/24", gateway: "10.7.0.1" };
        const container = { ...r.workloads[0].container, network };
        const ports = [{ listen: 8081, upstream: "127.0.0.1:9000" }];
        r.workloads.push({ name: "other", container, ports });
      },
      /^workloads\[1\]\.container\.network: expected addresses that no other workload has, got 10.7.0.3\/24, which overlaps that of chat/,
    ],
    [
      "outbound keep in forward mode",
      (r) => {
        delete r.workloads[0].vip;
        r.workloads[0].outbound = "keep";
      },
      /^workloads\[0\]\.outbound: expected close/,
    ],
    [
      "outbound",
      (r) => (r.workloads[0].outbound = "maybe"),
      /outbound: expected close or keep, got "maybe"$/,
    ],
    ["admin on the network", (r) => (r.admin = "10.99.0.2:80"), /^admin: expected a loopback address/],
    ["start", (r) => (r.workloads[0].start = "yes"), /start: expected true or false, got "yes"$/],
    ["workloads", (r) => (r.workloads = { chat: {} }), /^workloads: expected a list .*, got a mapping$/],
    [
      "deadline",
      (r) => (r.workloads[0].limits = { deadlineMs: 5 }),
      /limits.deadlineMs: expected milliseconds 100-3600000, got 5$/,
    ],
    [
      "protocol",
      port({ protocol: "udp" }),
      /protocol: expected auto, tcp, http, websocket, h2 or tls, got "udp"$/,
    ],
    ["continuity", port({ continuity: "move" }), /continuity: expected transplant or replay, got "move"$/],
    ...["tcp", "tls", "h2"].map(
      (protocol): Bad => [
        `replay of ${protocol}`,
        port({ protocol, continuity: "replay" }),
        `workloads[0].ports[0].continuity: expected transplant (nothing of protocol ${protocol} can be sent again), got "replay"`,
      ],
    ),
    [
      "moveBy without replay",
      port({ moveBy: "replay" }),
      'workloads[0].ports[0].moveBy: expected it with continuity: replay only, got "replay"',
    ],
    [
      "replayUnsafe without replay",
      port({ replayUnsafe: true }),
      "workloads[0].ports[0].replayUnsafe: expected it with continuity: replay only, got true",
    ],
    [
      "delivery without replay",
      port({ delivery: "atMostOnce" }),
      /^workloads\[0\]\.ports\[0\]\.delivery: expected it with continuity: replay only, got "atMostOnce"$/,
    ],
    ["delivery", port({ delivery: "twice" }), /delivery: expected atMostOnce or atLeastOnce, got "twice"$/],
    [
      "two places for a name",
      port({ session: { cookie: "a", query: "b" } }),
      /session: expected exactly one of cookie, header, query and subprotocol, got cookie, query$/,
    ],
    [
      "a load balancer's name",
      port({ proxyProtocol: { from: ["lb.example"] } }),
      /proxyProtocol\.from\[0\]: expected a network or an address, as 10\.0\.0\.0\/8 or fd00::1, got "lb.example"$/,
    ],
    [
      "a network too small",
      port({ proxyProtocol: { from: ["10.0.0.0/33"] } }),
      /proxyProtocol\.from\[0\]: expected a network or an address/,
    ],
    [
      "no load balancer",
      port({ proxyProtocol: { from: [] } }),
      /proxyProtocol\.from: expected a list of 1-64 networks, as \[10\.0\.0\.0\/8\], got an empty list$/,
    ],
    [
      "proxyProtocol: true",
      port({ proxyProtocol: true }),
      /proxyProtocol: expected who sends headers of the PROXY protocol, as \{ from: \[10\.0\.0\.0\/8\] \}, got true$/,
    ],
    ["no place for a name", port({ session: {} }), /session: expected exactly one of .*, got none$/],
    [
      "a header that is issued",
      port({ session: { header: "x", issue: true } }),
      /session\.issue: expected it with a cookie only/,
    ],
    [
      "cookie name",
      port({ session: { cookie: "a b" } }),
      /session\.cookie: expected the name of a cookie .*, got "a b"$/,
    ],
    ["header name", port({ session: { header: "x:y" } }), /session\.header: expected the name of a header /],
    [
      "query name",
      port({ session: { query: "a=b" } }),
      /session\.query: expected the name of a query parameter/,
    ],
    [
      "subprotocol",
      port({ session: { subprotocol: "a,b" } }),
      /session\.subprotocol: expected the beginning /,
    ],
    [
      "a name in what is not looked at",
      port({ protocol: "tls", session: { cookie: "a" } }),
      /ports\[0\]\.session: expected protocol auto, http or websocket with it, got "tls"$/,
    ],
    [
      "probes of what is not looked at",
      port({ protocol: "h2", probes: ["/healthz"] }),
      /ports\[0\]\.probes: expected protocol auto, http or websocket with it, got "h2"$/,
    ],
    [
      "probe",
      port({ probes: ["healthz"] }),
      /probes\[0\]: expected the path of a health check, .*, got "healthz"$/,
    ],
    [
      "a set-up without replay",
      port({ setUp: 2 }),
      /ports\[0\]\.setUp: expected it with continuity: replay only, got 2$/,
    ],
    [
      "too long a set-up",
      port({ setUp: 17, continuity: "replay" }),
      /setUp: expected auto, close, none or a number of messages \(1 to 16\)/,
    ],
    ["probe with a space", port({ probes: ["/a b"] }), /probes\[0\]: expected the path of a health check/],
    [
      "17 probes",
      port({ probes: Array(17).fill("/") }),
      /probes: expected a list of at most 16 paths, got a list$/,
    ],
    [
      "restart",
      (r) => (r.workloads[0].restart = "no"),
      /restart: expected always, on-failure or never, got "no"$/,
    ],
    [
      "stopSignal",
      (r) => (r.workloads[0].stopSignal = "SIGSTOP"),
      /stopSignal: expected SIGTERM, .* or SIGKILL, got "SIGSTOP"$/,
    ],
    [
      "stopMsMax",
      (r) => (r.workloads[0].stopMsMax = 0),
      /stopMsMax: expected milliseconds 1-3600000, got 0$/,
    ],
    [
      "held memory",
      (r) => (r.limits = { heldMbMax: -1 }),
      /^limits\.heldMbMax: expected a number of MiB 0-1048576, got -1$/,
    ],
  ];
  for (const [what, change, message] of bad) {
    test(`refused in one line: ${what}`, () => refusedWith(changed(change), message));
  }

  test("refused in one line: not YAML, not a mapping, a key file that is wrong", () => {
    refusedWith("node: [", /^not YAML: .* line 1/);
    refusedWith("node: a\nnode: b", /^not YAML: Map keys must be unique/);
    refusedWith("", /^expected a mapping with node, .*, got nothing$/);
    refusedWith("- a", /^expected a mapping with node, .*, got a list$/);
    refusedWith(
      `a: &a [${"x,".repeat(50)}]\nb: &b [${"*a,".repeat(50)}]\nc: [${"*b,".repeat(50)}]`,
      /^not YAML: /,
    );
    const other = join(folder, "other");
    writeFileSync(other, randomBytes(33), { mode: 0o600 });
    refusedWith(
      changed((r) => (r.key = "file:other")),
      /^key: expected a file with 32 bytes or 64 hex digits, got 33 bytes/,
    );
    writeFileSync(other, key);
    chmodSync(other, 0o644);
    refusedWith(
      changed((r) => (r.key = "file:other")),
      /^key: expected a file only its owner can read, got mode 644/,
    );
    assert.throws(() => loadConfig(join(folder, "absent")), {
      code: "CONFIG_INVALID",
      message: /absent: cannot be read: ENOENT/,
    });
    assert.throws(() => loadConfig(folder), { code: "CONFIG_INVALID" });
  });

  test("whatever is in the file, only CONFIG_INVALID comes out, on one line", () => {
    const paths = fc.constantFrom(
      "",
      "node",
      "store",
      "listen",
      "peers",
      "key",
      "workloads",
      "workloads.0",
      "workloads.0.ports",
      "workloads.0.ports.0",
      "workloads.0.ports.0.session",
      "workloads.0.ports.0.probes",
      "workloads.0.restart",
      "limits",
      "workloads.0.container",
      "workloads.0.container.env",
      "workloads.0.vip",
      "workloads.0.limits",
    );
    const run = (contents: string) => {
      try {
        parseConfig(contents, file);
      } catch (error) {
        assert.ok(error instanceof HoldfastError, String(error));
        assert.equal(error.code, "CONFIG_INVALID");
        assert.equal(error.source, "config");
        assert.doesNotMatch(error.message, /\n/);
        assert.ok(error.message.length < 700, error.message);
      }
    };
    fc.assert(
      fc.property(paths, fc.jsonValue(), (at, value) => {
        const contents = changed((raw) => {
          const steps = at.split(".");
          const last = steps.pop() as string;
          let place = raw;
          for (const step of steps) place = place[step];
          if (last === "") Object.assign(raw, { extra: value });
          else place[last] = value;
        });
        run(contents);
      }),
      { numRuns: 300 },
    );
    fc.assert(fc.property(fc.string({ unit: "grapheme" }), run), { numRuns: 300 });
    const token = fc.constantFrom(
      "node:",
      " a",
      "\n",
      "- ",
      "{",
      "}",
      "[",
      "*x",
      "&x ",
      "<<: ",
      "!!js ",
      "'",
      "\t",
      ":",
    );
    fc.assert(
      fc.property(
        fc.array(token).map((tokens) => tokens.join("")),
        run,
      ),
      { numRuns: 300 },
    );
  });
});

test("a container's own network has addresses that follow from the workload's name, on its node alone", () => {
  const planned = (name: string): unknown =>
    parseConfig(
      changed((r) => {
        r.workloads[0].name = name;
        r.workloads[0].container.network = "own";
      }),
      file,
    ).workloads[0]?.container?.network;
  const one = planned("chat") as { address: string; prefix: number; gateway: string };
  assert.deepEqual(planned("chat"), one);
  assert.notDeepEqual(planned("shop"), one);
  for (const name of Array.from({ length: 200 }, (_, index) => `w${index}`)) {
    const { address, prefix, gateway } = planned(name) as typeof one;
    const [, , third = 0, fourth = 0] = address.split(".").map(Number);
    // link-local (RFC 3927), and never where clouds have their own, as 169.254.169.254
    assert.ok(address.startsWith("169.254.") && third >= 1 && third <= 168 && fourth % 4 === 2, address);
    assert.equal(prefix, 30);
    assert.equal(gateway, `169.254.${third}.${fourth - 1}`);
  }
});

test("two workloads in networks of their own may listen on the same port inside", () => {
  const config = changed((r) => {
    r.workloads[0].container.network = "own";
    const ports = [{ listen: 8081, upstream: "127.0.0.1:9000" }];
    r.workloads.push({ name: "other", container: r.workloads[0].container, ports });
  });
  assert.equal(parseConfig(config, file).workloads.length, 2);
});

test("endpoints are read and written alike", () => {
  for (const value of ["10.0.0.1:1", "[::1]:65535", "[fd00::2]:7400"]) {
    const parsed = parseEndpoint(value);
    assert.ok(parsed);
    assert.equal(formatEndpoint(parsed), value);
  }
  for (const value of [
    "",
    "host:1",
    "1.2.3:4",
    "::1:80",
    "[1.2.3.4]:5",
    "1.2.3.4:0",
    "1.2.3.4:65536",
    "1.2.3.4:",
  ]) {
    assert.equal(parseEndpoint(value), null, value);
  }
});

function refusedWith(contents: string, message: string | RegExp): void {
  assert.throws(
    () => parseConfig(contents, file),
    (error) => {
      assert.ok(error instanceof HoldfastError, String((error as Error).stack));
      assert.equal(error.code, "CONFIG_INVALID");
      assert.ok(error.message.startsWith(`${file}: `), error.message);
      const rest = error.message.slice(file.length + 2);
      if (typeof message === "string") assert.equal(rest, message);
      else assert.match(rest, message);
      assert.doesNotMatch(error.message, /\n|hunter2/);
      return true;
    },
  );
}
