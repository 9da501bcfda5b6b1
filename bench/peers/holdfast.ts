/**
 * Holdfast's proxy without an agent, on one port: bytes not looked at (`tcp`), observed (`http`, `websocket`), or kept to be
 * sent again (`replay`). It is asked what its sessions say they are: a port that does not do yet, or any more, what its
 * name says is named as such beside its figures.
 */
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import type { Configure, PortConfig, SessionInfo } from "#proxy/contract/commands.ts";
import { defaultsOf, PROXY_LIMITS } from "#proxy/contract/limits.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { ProxyProcess } from "#test/support/proxy-lab.ts";
import { converse, greet } from "../load/conversation.ts";
import type { Protocol } from "../load/load.ts";
import type { Stage } from "../stage.ts";
import type { Peer } from "./peer.ts";

/** replay: HTTP or WebSocket, as the application behind it speaks */
export type HoldfastKind = "tcp" | "http" | "websocket" | "replay";

/** of its links */
export const KEY: Buffer = Buffer.alloc(32, 1);

export interface HoldfastPort {
  /** of the application, at 127.0.0.1 */
  to: number;
  protocol: PortConfig["protocol"];
  continuity: PortConfig["continuity"];
  /** default: the kernel's choice */
  listen?: number;
}

export interface Holdfast {
  proxy: ProxyProcess;
  /** where clients connect, in the order of what was asked */
  ports: number[];
  /** where gateways link to; null: it listens for clients itself */
  link: Endpoint | null;
}

export function holdfast(kind: HoldfastKind): Peer {
  const name = `holdfast-${kind}`;
  const continuity = kind === "replay" ? "replay" : "transplant";
  return {
    name,
    ...(kind !== "tcp" && {
      carries: kind === "replay" ? (["http", "websocket"] as const) : ([kind] as const),
    }),
    async start(stage, to) {
      const protocol = kind === "replay" ? (to.protocol ?? "http") : kind;
      const { proxy, ports } = await startHoldfast(stage, {
        name: `${name}-${to.port}`,
        ports: [{ to: to.port, protocol, continuity }],
      });
      const port = ports[0] as number;
      return {
        name,
        version: `this checkout, Node ${process.version}`,
        port,
        pid: proxy.process.pid as number,
        note: await differs(proxy, port, { protocol, continuity }),
      };
    },
  };
}

/** @param options.nodeOptions for NODE_OPTIONS of its process */
export async function startHoldfast(
  stage: Stage,
  options: {
    name: string;
    ports: HoldfastPort[];
    nodeOptions?: string;
    downstream?: "gateway";
    links?: "plain";
  },
): Promise<Holdfast> {
  const proxy = await ProxyProcess.start({
    exec: [...stage.launcher(stage.cpus.server), "env", `NODE_OPTIONS=${options.nodeOptions ?? ""}`],
    socket: join(stage.directory, `${options.name}.sock`),
  });
  stage.onClose(() => proxy.kill());
  const configure: Partial<Configure> = {
    workload: options.name,
    node: "bench",
    downstream: options.downstream ?? "forward",
    listenAddress: "127.0.0.1",
    ports: options.ports.map(({ to, protocol, continuity, listen = 0 }) => ({
      listen,
      upstream: { address: "127.0.0.1", port: to },
      protocol,
      continuity,
      moveBy: "transplant",
      replayUnsafe: false,
      delivery: "atMostOnce",
      setUp: "auto",
      sessionsMax: 1_000_000,
      sessionsPerClientMax: 1_000_000,
      keepAliveMs: 15_000,
      userTimeoutMs: 120_000,
      idleMsMax: 0,
      naming: null,
      proxyProtocol: null,
      probes: [],
    })),
    linkAddress: "127.0.0.1:0",
    links: options.links ?? "encrypted",
    limits: defaultsOf(PROXY_LIMITS),
  };
  await proxy.call("configure", configure, KEY);
  const { result } = await proxy.call<{ ports: number[]; link: Endpoint | null }>("serve", { epoch: 1 });
  return { proxy, ...result };
}

/** What one session over this port says it is, where that is not what was asked for; null: it is. */
async function differs(
  proxy: ProxyProcess,
  port: number,
  asked: { protocol: Protocol; continuity: string },
): Promise<string | null> {
  const client = connect(port, "127.0.0.1");
  client.write((greet(asked.protocol) ?? converse("http")).next());
  await once(client, "data");
  const session: Partial<SessionInfo> = (await proxy.sessions())[0] ?? {};
  client.destroy();
  await proxy.untilSessions(0);
  const { protocol = "no protocol", continuity = "no continuity" } = session;
  return protocol === asked.protocol && continuity === asked.continuity
    ? null
    : `asked for ${asked.protocol}, ${asked.continuity}; its sessions say ${protocol}, ${continuity}`;
}
