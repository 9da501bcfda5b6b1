/**
 * Two processes between client and application, both on the contenders' CPU: our gateway and the workload's proxy behind it, and
 * what stands in the gateway's place elsewhere: Envoy or HAProxy before the same proxy, in the clear.
 */
import type { ChildProcess } from "node:child_process";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { ProxyProcess } from "#test/support/proxy-lab.ts";
import type { Stage } from "../stage.ts";
import { envoyTcp } from "./envoy.ts";
import type { GatewayProcess } from "./gateway-process.ts";
import { haproxyTcp } from "./haproxy.ts";
import { type HoldfastPort, KEY, startHoldfast } from "./holdfast.ts";
import type { Peer, RunningPeer } from "./peer.ts";

const NOTE = "two processes on the CPU; its CPU time is that of the first";

/** As it is set up by default, and with links in the clear, as Envoy's and HAProxy's connections to the proxy are here. */
export const gateways: readonly Peer[] = [
  gateway("holdfast-gateway", "encrypted"),
  gateway("holdfast-gateway-plain", "plain"),
];

export interface GatewayChain {
  proxy: ProxyProcess;
  gateway: ChildProcess;
  /** where clients connect, in the order of what was asked */
  ports: number[];
}

/** @param options.nodeOptions for NODE_OPTIONS of the gateway */
export async function startGateway(
  stage: Stage,
  options: { name: string; ports: HoldfastPort[]; links?: "plain"; nodeOptions?: string },
): Promise<GatewayChain> {
  const { name, links, nodeOptions = "" } = options;
  const { proxy, link } = await startHoldfast(stage, {
    name,
    downstream: "gateway",
    ports: options.ports.map((port, index) => ({ ...port, listen: index + 1 })),
    ...(links !== undefined && { links }),
  });
  const ports: number[] = [];
  for (const _ of options.ports) ports.push(await stage.freePort());
  const told: GatewayProcess = {
    listeners: ports.map((port, index) => ({ at: { address: "127.0.0.1", port }, port: index + 1 })),
    workload: name,
    epoch: 1,
    link: link as Endpoint,
    links: links ?? "encrypted",
    key: KEY.toString("hex"),
  };
  const child = stage.spawn(
    [process.execPath, `${import.meta.dirname}/gateway-process.ts`, JSON.stringify(told)],
    { cpu: stage.cpus.server, env: { NODE_OPTIONS: nodeOptions } },
  );
  for (const port of ports) await stage.untilListening(port, child);
  return { proxy, gateway: child, ports };
}

function gateway(name: string, links: GatewayProcess["links"]): Peer {
  return {
    name,
    async start(stage, to) {
      const { gateway: child, ports } = await startGateway(stage, {
        name: `${name}-${to.port}`,
        ports: [{ to: to.port, protocol: "tcp", continuity: "transplant" }],
        ...(links === "plain" && { links }),
      });
      const version = `this checkout, Node ${process.version}`;
      return { name, version, port: ports[0] as number, pid: child.pid as number, note: NOTE };
    },
  };
}

export const envoyBeforeHoldfast: Peer = before("envoy-holdfast", envoyTcp);
export const haproxyBeforeHoldfast: Peer = before("haproxy-holdfast", haproxyTcp);

function before(name: string, first: Peer): Peer {
  return {
    name,
    async start(stage, to): Promise<RunningPeer> {
      const { ports } = await startHoldfast(stage, {
        name: `${name}-${to.port}`,
        ports: [{ to: to.port, protocol: "tcp", continuity: "transplant" }],
      });
      const running = await first.start(stage, { ...to, port: ports[0] as number });
      return { ...running, name, note: NOTE };
    },
  };
}
