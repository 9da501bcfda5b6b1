/**
 * Moves behind the real Envoy: clients of a pod with a sidecar come over mutual TLS to a pod with a sidecar, behind
 * which Holdfast moves the application; and, where the application's pod has no sidecar, from their own one to an address that moves,
 * or to a gateway. No Envoy loses a connection over it.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import type { SessionInfo } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { type AgentConfig, nodeBinary, projectRoot } from "../lab/lab.ts";
import { isClean } from "../lab/sweep.ts";
import { type Load, type LoadKind, startLoad } from "../load/load.ts";
import { until } from "../support/moved-program.ts";
import { connectFrom } from "./in-network.ts";
import { LongSession, type SessionKind } from "./long-sessions.ts";
import { createMesh, type Mesh, type MeshOptions } from "./mesh.ts";
import {
  allRun,
  FROM_SIDECAR,
  LISTEN_FIRST,
  PORTS,
  portOf,
  SERVED,
  type ServicePort,
  severalWorkload,
} from "./several-workload.ts";
import type { Route } from "./static-routes.ts";

const CHAT = { app: "chat", address: "10.96.0.10" };
const HOST = "chat.demo";
const LIVES = { number: 8081, protocol: "http" } as const;
const echo = (number: number) => ({ number, protocol: "tcp" }) as const;
const TAKEN = { app: "taken", address: "10.96.0.12", port: echo(9_001), listen: 9_100 };
const GATED = { app: "gated", address: "10.96.0.13", port: echo(9_002), listen: 9_200 };
const A = { name: "a", address: "10.99.0.2" };
const VIP = { name: "vip", address: "10.99.0.50" };
const GATEWAY = { name: "g", address: "10.99.0.90" };
const RUN_MS_MAX = 60_000;
/** of a client beside those of the loads */
const KINDS: SessionKind[] = ["http", "grpc"];
const LOADS: { name: string; kind: LoadKind; address: string; port: number; sessions: number }[] = [
  { name: "chat by WebSocket", kind: "ws", address: CHAT.address, port: portOf("websocket"), sessions: 8 },
  { name: "chat by TCP", kind: "tcp", address: CHAT.address, port: portOf("tcp"), sessions: 8 },
  { name: "lives", kind: "lives", address: CHAT.address, port: LIVES.number, sessions: 4 },
  { name: "taken", kind: "tcp", address: TAKEN.address, port: TAKEN.port.number, sessions: 4 },
  { name: "gated", kind: "tcp", address: GATED.address, port: GATED.port.number, sessions: 4 },
];

function workloads(node: string): AgentConfig[] {
  const start = node === "a";
  const application = (app: string, port: number): AgentConfig => ({
    command: [nodeBinary, "server.js"],
    cwd: join(projectRoot, "test/apps", app),
    env: { PORT: String(port) },
    rootfs: "host",
  });
  const upstream = (port: number): string => `127.0.0.1:${port}`;
  return [
    severalWorkload({ name: "chat", start, upstreamFirst: 9_001, proxyProtocolFrom: [FROM_SIDECAR] }),
    {
      name: "lives",
      start,
      container: application("lives", 9_010),
      ports: [{ listen: LISTEN_FIRST + SERVED.length, upstream: upstream(9_010), continuity: "replay" }],
    },
    {
      name: "taken",
      start,
      container: application("echo", 9_011),
      ports: [{ listen: TAKEN.listen, upstream: upstream(9_011) }],
      vip: { address: `${VIP.address}/24`, device: "eth0" },
    },
    {
      name: "gated",
      start,
      downstream: "gateway",
      container: application("echo", 9_012),
      ports: [{ listen: GATED.listen, upstream: upstream(9_012) }],
    },
  ];
}

/** In that order Holdfast listens, from {@link LISTEN_FIRST} on. */
const LED = [...SERVED, LIVES] as const;
const SIDECARS: MeshOptions["sidecars"] = {
  client: {
    account: "client",
    outboundBut: ["10.99.0.1"],
    routes: {
      outbound: [
        ...LED.map((port) => route(port, { address: A.address, port: port.number })),
        { ...route(TAKEN.port, { address: VIP.address, port: TAKEN.listen }), plain: true },
        { ...route(GATED.port, { address: GATEWAY.address, port: GATED.listen }), plain: true },
      ],
    },
  },
  a: {
    inboundOnly: LED.map((port) => port.number),
    holdfastFrom: LISTEN_FIRST,
    routes: {
      inbound: LED.map((port, index) => ({
        ...route(port, { address: "127.0.0.1", port: LISTEN_FIRST + index }),
        ...(port === PORTS.tcp ? { header: true } : {}),
      })),
    },
  },
};

function route({ number, protocol }: ServicePort, to: Endpoint): Route {
  return { port: number, protocol, to };
}

describe("behind the sidecars of a mesh", () => {
  let mesh: Mesh;
  const loads = new Map<string, Load>();
  const sessions: LongSession[] = [];

  before(async () => {
    mesh = await createMesh({ nodes: ["a", "b"], gateways: [GATEWAY.name], sidecars: SIDECARS });
    const { lab } = mesh;
    await lab.startGateway(GATEWAY.name, {
      listen: [{ address: `${GATEWAY.address}:${GATED.listen}`, workload: GATED.app }],
    });
    await lab.startAgents(["a", "b"], (node) => lab.startAgent(node, { workloads: workloads(node) }));
    await until("every workload runs", () => allRun(lab, A.name), RUN_MS_MAX);
    for (const { name, kind, address, port, sessions } of LOADS)
      loads.set(
        name,
        await startLoad(lab, kind, { target: { address, port }, sessions, intervalMs: 20, restMs: 200 }),
      );
    const dial = (kind: SessionKind) =>
      connectFrom(lab.client, { address: CHAT.address, port: portOf(kind) });
    for (const kind of KINDS) sessions.push(await LongSession.open(kind, dial, HOST));
  });
  after(async () => {
    for (const load of loads.values()) await load.stop().catch(() => {});
    for (const session of sessions) session.close();
    await mesh?.close();
    assert.ok(mesh === undefined || isClean(mesh.lab.leftovers()), "the mesh left something behind");
  });

  /** What both Envoys have lost so far of connections from clients and to services, and what they have tried again. */
  async function losses(): Promise<Record<string, Record<string, number>>> {
    const upstream = "cluster\\.(out|in)bound\\|.*\\.(upstream_cx_destroy\\w*|upstream_rq_retry)";
    const downstream = "http\\.(out|in)bound_.*\\.downstream_cx_destroy\\w*";
    const [client = {}, server = {}] = await Promise.all(
      ["client", "a"].map((place) => mesh.sidecar(place).stats(`^(${upstream}|${downstream})$`)),
    );
    for (const found of [client, server]) assert.ok(Object.keys(found).length > 5, JSON.stringify(found));
    return { client, server };
  }

  async function holdfast(node: string, ...args: string[]): Promise<unknown> {
    const { status, json, stderr } = await mesh.lab.cli(node, [...args, "--json"]);
    assert.equal(status, 0, stderr || JSON.stringify(json));
    return json;
  }

  /** Sessions go on asking while it goes on. */
  async function whileAsking(work: Promise<unknown>): Promise<void> {
    let isOver = false;
    const ended = work.finally(() => {
      isOver = true;
    });
    const asking = sessions.map(async (session) => {
      while (!isOver) await session.ask();
    });
    await Promise.all([ended, ...asking]);
    for (const session of sessions) await session.ask();
  }

  async function assertNobodyNoticed(): Promise<void> {
    for (const { name, sessions } of LOADS) {
      const load = loads.get(name);
      assert.ok(load !== undefined);
      const { alive, lost, repeated, corrupt, resets, problems } = await load.report();
      // what comes later still was slow, what does not is lost: the reason is another
      if (lost > 0)
        problems.push(`once more: ${(await load.report()).problems.join("; ") || "all is there"}`);
      assert.deepEqual(
        { alive, lost, repeated, corrupt, resets },
        { alive: sessions, lost: 0, repeated: 0, corrupt: 0, resets: 0 },
        `${name}: ${problems.join("; ")}`,
      );
      await load.mark();
    }
    for (const session of sessions)
      assert.deepEqual(session.seen, { ended: null, connections: 1, failed: [] }, session.kind);
  }

  it("clients come to Holdfast over mutual TLS", async () => {
    for (const place of ["client", "a"]) {
      const { total } = await mesh.sidecar(place).stats("ssl\\.handshake$");
      assert.ok((total ?? 0) > 0, place);
    }
    await assertNobodyNoticed();
  });

  it("sessions of TCP, HTTP/1.1, WebSocket and gRPC go on through moves, and neither Envoy loses a connection", async () => {
    const before = await losses();
    await whileAsking(holdfast("a", "migrate", "chat", "--to", "b"));
    await assertNobodyNoticed();
    await whileAsking(holdfast("b", "migrate", "chat", "--to", "a"));
    await assertNobodyNoticed();
    assert.deepEqual(await losses(), before);
  });

  it("sessions of a replay port go on through a restart of the application", async () => {
    const before = await losses();
    await holdfast("a", "restart", "lives");
    await assertNobodyNoticed();
    assert.deepEqual(await losses(), before);
  });

  it("a client's Envoy keeps its connections to an address that moves, and to a gateway", async () => {
    const before = await losses();
    await Promise.all([TAKEN, GATED].map(({ app }) => holdfast("a", "migrate", app, "--to", "b")));
    await assertNobodyNoticed();
    assert.deepEqual(await losses(), before);
  });

  it("Holdfast knows each client of a TCP port by the PROXY protocol, and the server's Envoy at an HTTP port", async () => {
    const { sessions: shown } = (await holdfast("a", "sessions", "chat")) as { sessions: SessionInfo[] };
    const clientsOf = (port: (typeof SERVED)[number]): string[] =>
      shown.filter((session) => session.port === SERVED.indexOf(port)).map(({ client }) => client);
    const known = clientsOf(PORTS.tcp);
    assert.equal(new Set(known).size, 8, known.join(" "));
    const addressesOf = (clients: string[]) => [...new Set(clients.map((client) => client.split(":")[0]))];
    assert.deepEqual(addressesOf(known), [mesh.lab.client.address]);
    assert.deepEqual(addressesOf(clientsOf(PORTS.http)), ["127.0.0.1"]);
  });
});
