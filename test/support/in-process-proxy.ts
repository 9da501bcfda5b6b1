/** A workload's proxy within the test's own process, on a kernel that the test may spoil: what a process of its own would hide. */
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { type Logger, pino } from "pino";
import type { Downstream, PortConfig } from "#proxy/contract/commands.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import { punchHole } from "#proxy/kernel/descriptors.ts";
import { countSynRecv, listenBacklog, listenerOf } from "#proxy/kernel/diag.ts";
import { shieldListener, unshieldListener } from "#proxy/kernel/shield.ts";
import { IPPROTO_TCP, setsockoptInt, TCP_QUICKACK } from "#proxy/kernel/socket.ts";
import {
  bound,
  boundQueues,
  boundUnread,
  boundUnsent,
  setPeerTimeouts,
  sockets,
} from "#proxy/kernel/stream-sockets.ts";
import { type LegWork, LocalSurgeon, localLegWork } from "#proxy/tcp/local-surgeon.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { LIMITS, PLAIN } from "./proxy-lab.ts";

export const REAL_KERNEL: LegKernel = {
  ...sockets,
  setPeerTimeouts,
  boundQueues,
  boundUnread,
  boundUnsent,
  acknowledge: (fd) => setsockoptInt(fd, IPPROTO_TCP, TCP_QUICKACK, 1),
  bindShielded: (endpoint) => bound(endpoint, shieldListener),
  bindFree: (endpoint) => bound(endpoint),
  bindUpstream: (endpoint) => bound(endpoint),
  shieldListener,
  unshieldListener,
  listenerOf,
  isListening: (endpoint) => listenBacklog(endpoint) !== null,
  listenBacklog: (endpoint) => listenBacklog(endpoint) ?? 0,
  punchHole,
  countSynRecv,
};

export const REAL_SURGEON: LegSurgeon = new LocalSurgeon(localLegWork());

export const LINK_KEY = Buffer.alloc(32, 1);

export interface InProcessOptions {
  kernel?: Partial<LegKernel>;
  /** on one leg, of a surgeon that works on the real kernel otherwise */
  legWork?: Partial<LegWork>;
  /** … of which this one is made */
  surgeon?: (local: LegSurgeon) => LegSurgeon;
  port?: Partial<PortConfig>;
  /** beside that one: as it is but for these */
  morePorts?: Partial<PortConfig>[];
  limits?: Partial<ProxyLimits>;
  downstream?: Downstream;
  /** default: a */
  node?: string;
  links?: "encrypted" | "plain";
  listenAddress?: string;
  listenDevice?: string;
  /** takes each connection to the application; default: an echo */
  serve?: (socket: Socket) => void;
}

export interface InProcess {
  proxy: WorkloadProxy;
  /** of its log, from warnings on */
  lines: Record<string, unknown>[];
  /** port where clients connect */
  listen: number;
  stop(): void;
}

/** Owns its workload at epoch 1. */
export async function startInProcess(options: InProcessOptions = {}): Promise<InProcess> {
  const application = createServer((socket) => {
    socket.on("error", () => {});
    if (options.serve === undefined) socket.pipe(socket);
    else options.serve(socket);
  });
  application.listen(0, "127.0.0.1");
  await once(application, "listening");
  const upstream = { address: "127.0.0.1", port: (application.address() as AddressInfo).port };
  const { proxy, lines } = makeProxy({ ...options, port: { upstream, ...options.port } });
  proxy.openListeners();
  proxy.role = "owner";
  proxy.epoch = 1;
  const stop = (): void => {
    proxy.stop();
    application.close();
  };
  return { proxy, lines, listen: proxy.listeners[0]?.port as number, stop };
}

/** One that owns nothing yet. */
export function makeProxy(options: InProcessOptions): {
  proxy: WorkloadProxy;
  lines: Record<string, unknown>[];
} {
  const { kernel, port, limits, downstream = "forward", surgeon = (local) => local } = options;
  const first = { ...PLAIN, listen: 0, upstream: { address: "127.0.0.1", port: 1 }, ...port };
  const { listenAddress = "127.0.0.1", listenDevice = null, node = "a", links = "encrypted" } = options;
  const lines: Record<string, unknown>[] = [];
  const proxy = new WorkloadProxy({
    config: {
      workload: "w",
      node,
      network: "host",
      downstream,
      listenAddress,
      listenDevice,
      ports: [first, ...(options.morePorts ?? []).map((more) => ({ ...first, ...more }))],
      linkAddress: "127.0.0.1:0",
      links,
      spillDir: "/nonexistent",
      limits: { ...LIMITS, ...limits },
    },
    keys: [LINK_KEY],
    kernel: { ...REAL_KERNEL, ...kernel },
    surgeon: surgeon(new LocalSurgeon({ ...localLegWork(), ...options.legWork })),
    log: logInto(lines),
  });
  return { proxy, lines };
}

/** Warnings, and what is worse. */
export function logInto(lines: Record<string, unknown>[]): Logger {
  return pino({ level: "warn" }, { write: (line) => lines.push(JSON.parse(line)) });
}
