/**
 * Two processes between client and application, both on the contenders' CPU: our gateway and the workload's proxy behind it, and
 * what stands in the gateway's place elsewhere: Envoy or HAProxy before the same proxy, in the clear.
 */
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { envoyTcp } from "./envoy.ts";
import type { GatewayProcess } from "./gateway-process.ts";
import { haproxyTcp } from "./haproxy.ts";
import { KEY, startHoldfast } from "./holdfast.ts";
import type { Peer, RunningPeer } from "./peer.ts";

const LISTEN = 1;
const NOTE = "two processes on the CPU; its CPU time is that of the first";

/** As it is set up by default, and with links in the clear, as Envoy's and HAProxy's connections to the proxy are here. */
export const gateways: readonly Peer[] = [
  gateway("holdfast-gateway", "encrypted"),
  gateway("holdfast-gateway-plain", "plain"),
];

function gateway(name: string, links: GatewayProcess["links"]): Peer {
  return {
    name,
    async start(stage, to) {
      const port = await stage.freePort();
      const workload = `${name}-${to.port}`;
      const { link } = await startHoldfast(stage, {
        name: workload,
        downstream: "gateway",
        ports: [{ to: to.port, protocol: "tcp", continuity: "transplant", listen: LISTEN }],
        ...(links === "plain" && { links }),
      });
      const told: GatewayProcess = {
        at: { address: "127.0.0.1", port },
        workload,
        port: LISTEN,
        epoch: 1,
        link: link as Endpoint,
        links,
        key: KEY.toString("hex"),
      };
      const child = stage.spawn(
        [process.execPath, `${import.meta.dirname}/gateway-process.ts`, JSON.stringify(told)],
        { cpu: stage.cpus.server },
      );
      await stage.untilListening(port, child);
      const version = `this checkout, Node ${process.version}`;
      return { name, version, port, pid: child.pid as number, note: NOTE };
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
