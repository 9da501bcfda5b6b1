/**
 * A gateway as a process of its own, for one workload that does not move: what a store would say stands in its argument
 * ({@link GatewayProcess}, as JSON). It listens until it is killed.
 */
import pino from "pino";
import { PROXY_LIMITS } from "#proxy/contract/limits.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { Gateway } from "#proxy/gateway/gateway.ts";
import { UpstreamNetwork } from "#proxy/kernel/network.ts";
import { legKernelOf, reserveDescriptors } from "#proxy/process-kernel.ts";

export interface GatewayProcess {
  /** where clients come, and for which of the workload's ports, by its `listen` */
  listeners: { at: Endpoint; port: number }[];
  workload: string;
  /** of the workload's proxy: where it takes links, at which epoch */
  epoch: number;
  link: Endpoint;
  links: "encrypted" | "plain";
  /** of the workload's links, as hex digits */
  key: string;
}

const { listeners, workload, epoch, link, links, key } = JSON.parse(
  process.argv[2] ?? "{}",
) as GatewayProcess;

reserveDescriptors();
const gateway = new Gateway({
  config: {
    name: "bench",
    links,
    heldSessionsMax: 100_000,
    ownerMsMax: 30_000,
    drainMsMax: 0,
    linkResumeMsMax: PROXY_LIMITS.linkResumeMsMax.default,
    trunkSessionsMax: PROXY_LIMITS.trunkSessionsMax.default,
    listeners: listeners.map(({ at, port }) => ({
      at,
      routes: [{ sni: null, host: null, path: null, session: null, workloads: [workload], port }],
      sendProxyProtocol: false,
      proxyProtocol: null,
      sessionsMax: 1_000_000,
      sessionsPerClientMax: 1_000_000,
      keepAliveMs: 15_000,
      userTimeoutMs: 120_000,
      idleMsMax: 0,
    })),
  },
  keysOf: () => [Buffer.from(key, "hex")],
  store: {
    link: async () => ({ node: "bench", epoch, link, ports: listeners.map(({ port }) => port) }),
    lookup: async () => null,
    watchLinks: (onChange) => {
      setImmediate(onChange, null);
      return { close: () => {} };
    },
  },
  kernel: legKernelOf(new UpstreamNetwork()),
  log: pino({ level: "warn" }, pino.destination(2)),
});
gateway.open();
// nothing of a gateway keeps a process alive by itself
setInterval(() => {}, 2 ** 30);
