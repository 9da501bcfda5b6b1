/**
 * The proxy of one workload on one node: `node proxy/main.ts --socket PATH [--http PATH|ADDRESS:PORT] [--log-level L]`.
 *
 * Composition root: the kernel, the commands, the sockets of agent and admin. The process ends by `stop`, by `retire`
 * (takeover), by SIGTERM (as `stop`), or by a bug; an agent that goes away ends nothing.
 */
import { chmodSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { parseArgs } from "node:util";
import pino from "pino";
import { createAdmin } from "#proxy/admin/http.ts";
import { createMetrics } from "#proxy/admin/metrics.ts";
import { Channel } from "#proxy/contract/channel.ts";
import { Commands } from "#proxy/cutover/commands.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { countSynRecv, listenBacklog, listenerOf } from "#proxy/kernel/diag.ts";
import { OWN_NETWORK, UpstreamNetwork } from "#proxy/kernel/network.ts";
import * as sock from "#proxy/kernel/socket.ts";
import {
  bound,
  boundQueues,
  boundUnread,
  boundUnsent,
  setPeerTimeouts,
  sockets,
} from "#proxy/kernel/stream-sockets.ts";
import { LocalSurgeon, localLegWork } from "#proxy/tcp/local-surgeon.ts";
import { shieldListener, unshieldListener } from "#proxy/tcp/shield.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";

/** include/uapi/linux/in.h; of IPv6 sockets too (they share the flag) */
const IP_FREEBIND = 15;

const upstream = new UpstreamNetwork();
const networks = { upstream, downstream: OWN_NETWORK };

const legKernel: LegKernel = {
  ...sockets,
  dial: (to) => sockets.dial(to, upstream),
  bindUpstream: (on) => bound(on, undefined, upstream),
  acknowledge: (fd) => sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_QUICKACK, 1),
  setPeerTimeouts,
  boundQueues,
  boundUnread,
  boundUnsent,
  bindShielded: (endpoint) =>
    bound(endpoint, (fd) => {
      sock.setsockoptInt(fd, sock.IPPROTO_IP, IP_FREEBIND, 1);
      shieldListener(fd);
    }),
  bindFree: (endpoint) => bound(endpoint, (fd) => sock.setsockoptInt(fd, sock.IPPROTO_IP, IP_FREEBIND, 1)),
  shieldListener,
  unshieldListener,
  listenerOf: (endpoint) => listenerOf(endpoint, upstream),
  isListening: (endpoint) => listenBacklog(endpoint, upstream) !== null,
  listenBacklog: (endpoint, side) => listenBacklog(endpoint, networks[side]) ?? 0,
  countSynRecv,
};

/** Room for 4,000 sessions' legs, doubled while they are captured. */
const DESCRIPTORS_RESERVED = 16_000;

/**
 * The kernel doubles a process's descriptor table when it is full, and waits for an RCU grace period each time (5 to 10
 * ms for a process with threads). It never shrinks it: so grow it now, not in the middle of a cutover.
 */
function reserveDescriptors(): void {
  // where RLIMIT_NOFILE is lower, as far as it goes
  for (let count = DESCRIPTORS_RESERVED; count > 256; count >>= 1) {
    if (descriptor.growDescriptorTable(count)) return;
  }
}

async function listenUnix(server: Server, path: string): Promise<void> {
  rmSync(path, { force: true });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  const before = process.umask(0o177);
  server.listen(path, resolve);
  process.umask(before);
  await promise;
  chmodSync(path, 0o600);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      socket: { type: "string" },
      http: { type: "string" },
      "log-level": { type: "string", default: "info" },
    },
  });
  if (values.socket === undefined) {
    process.stderr.write(
      "usage: node proxy/main.ts --socket PATH [--http PATH|ADDRESS:PORT] [--log-level LEVEL]\n",
    );
    process.exit(2);
  }
  const log = pino(
    { name: "holdfast-proxy", level: values["log-level"] },
    pino.destination({ fd: 2, sync: true }),
  );
  const path = values.socket;
  const httpPath = values.http ?? `${path}.http`;
  const inbox = `${path}.net`;

  const exit = (reason: string): void => {
    log.info({ reason }, "proxy ends");
    rmSync(path, { force: true });
    rmSync(inbox, { force: true });
    if (!httpPath.includes(":")) rmSync(httpPath, { force: true });
    process.exit(0);
  };
  const commands = new Commands({
    kernel: legKernel,
    surgeon: new LocalSurgeon(localLegWork(upstream)),
    log,
    network: upstream,
    // The reply to the command that ends us goes out first.
    onExit: (reason) => setImmediate(() => setImmediate(() => exit(reason))),
  });
  const handlers = commands.handlers();
  const control = createServer((socket) => {
    const channel = new Channel(socket, { name: "agent", handlers });
    const gone = commands.agentCame();
    void channel.closed.then((reason) => {
      gone();
      if (reason !== null) log.warn({ reason: reason.message }, "the agent's connection broke");
    });
  });
  const admin = createAdmin({
    metrics: createMetrics(() => commands.proxy),
    health: () => commands.proxy && { role: commands.proxy.role, epoch: commands.proxy.epoch },
  });

  reserveDescriptors();
  rmSync(inbox, { force: true });
  const before = process.umask(0o177);
  upstream.open(inbox);
  process.umask(before);
  const address = /^(.*):(\d+)$/.exec(httpPath);
  if (address === null) await listenUnix(admin, httpPath);
  else admin.listen({ host: (address[1] as string).replaceAll(/[[\]]/g, ""), port: Number(address[2]) });
  admin.on("error", (err) => log.error({ err }, "admin endpoint failed"));
  await listenUnix(control, path);
  process.on("SIGTERM", () => {
    commands.proxy?.stop();
    exit("SIGTERM");
  });
  process.on("SIGHUP", () => {});
  process.on("uncaughtException", (err) => {
    log.fatal({ err }, "a bug in the proxy");
    process.exit(70);
  });
  log.info({ socket: path, pid: process.pid }, "proxy ready");
}

await main();
