/** test/apps/several as a workload of Holdfast behind a sidecar, and where its ports are. */
import { join } from "node:path";
import { CONTAINER_PORT_FIRST } from "#proxy/contract/commands.ts";
import { type AgentConfig, type Lab, nodeBinary, projectRoot } from "../lab/lab.ts";
import type { SessionKind } from "./long-sessions.ts";
import type { Route } from "./static-routes.ts";

/** Where Holdfast listens, behind the sidecar, as in a pod: for HTTP here, and for the others after it. */
export const LISTEN_FIRST = CONTAINER_PORT_FIRST;
/** how a sidecar's connections come to it */
export const FROM_SIDECAR = "127.0.0.1/32";
export interface ServicePort {
  number: number;
  protocol: Route["protocol"];
}

/** Ports of a service with sessions of every kind. */
export const PORTS = {
  http: { number: 8080, protocol: "http" },
  tcp: { number: 9000, protocol: "tcp" },
  grpc: { number: 9090, protocol: "h2" },
} as const satisfies Record<string, ServicePort>;
/** in the order of their listeners */
export const SERVED = [PORTS.http, PORTS.tcp, PORTS.grpc] as const;

export const APPLICATION = {
  command: [nodeBinary, "server.js"],
  cwd: join(projectRoot, "test/apps/several"),
};

/** The port of a service at which sessions of a kind are. */
export function portOf(kind: SessionKind): number {
  return { http: PORTS.http, websocket: PORTS.http, tcp: PORTS.tcp, grpc: PORTS.grpc }[kind].number;
}

/** What test/apps/several has to be told so that it listens at these, in the order of {@link SERVED}. */
export function applicationPorts(ports: readonly number[]): Record<string, string> {
  const [HTTP, TCP, GRPC] = ports.map(String) as [string, string, string];
  return { HTTP, TCP, GRPC };
}

export interface SeveralOptions {
  name: string;
  start: boolean;
  /** of the application, on 127.0.0.1 */
  upstreamFirst: number;
  /** default {@link LISTEN_FIRST} */
  listenFirst?: number;
  /** networks from which the TCP port takes headers of the PROXY protocol */
  proxyProtocolFrom?: string[];
  /** keys of the workload over these */
  workload?: AgentConfig;
}

export function severalWorkload(options: SeveralOptions): AgentConfig {
  const { name, start, upstreamFirst, listenFirst = LISTEN_FIRST, proxyProtocolFrom, workload } = options;
  return {
    name,
    start,
    container: {
      ...APPLICATION,
      env: applicationPorts(SERVED.map((_, index) => upstreamFirst + index)),
      rootfs: "host",
    },
    ports: SERVED.map((port, index) => ({
      listen: listenFirst + index,
      upstream: `127.0.0.1:${upstreamFirst + index}`,
      ...(port === PORTS.tcp && proxyProtocolFrom ? { proxyProtocol: { from: proxyProtocolFrom } } : {}),
    })),
    ...workload,
  };
}

/** Whether every workload of a node runs there. */
export async function allRun(lab: Lab, node: string): Promise<boolean> {
  const { json } = await lab.cli(node, ["status", "--json"]);
  const states = (json as { workloads: { state: string }[] } | undefined)?.workloads ?? [];
  return states.length > 0 && states.every(({ state }) => state === "running");
}
