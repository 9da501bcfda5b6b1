/**
 * The process of a proxy: the kernel, the commands, the sockets of agent and admin. It ends by `stop`, by `retire`
 * (takeover), by SIGTERM (as `stop`, but for what has been captured), or by a bug; an agent that goes away ends nothing.
 */
import { chmodSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { parseArgs } from "node:util";
import pino from "pino";
import { createMetrics } from "#proxy/admin/metrics.ts";
import { createAdmin } from "#proxy/contract/admin-http.ts";
import { Channel } from "#proxy/contract/channel.ts";
import { Commands } from "#proxy/cutover/commands.ts";
import { UpstreamNetwork } from "#proxy/kernel/network.ts";
import { AskedAgents } from "#proxy/tcp/asked-agents.ts";
import { HelpedSurgeon } from "#proxy/tcp/helped-surgeon.ts";
import { LocalSurgeon, localLegWork } from "#proxy/tcp/local-surgeon.ts";
import { logDestination } from "./contract/log-destination.ts";
import { legKernelOf, reserveDescriptors, unprivilegedLegKernelOf } from "./process-kernel.ts";

const upstream = new UpstreamNetwork();

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

export async function runProxy(): Promise<void> {
  const { values } = parseArgs({
    options: {
      socket: { type: "string" },
      http: { type: "string" },
      helped: { type: "boolean", default: false },
      "log-level": { type: "string", default: "info" },
    },
  });
  if (values.socket === undefined) {
    process.stderr.write(
      "usage: node proxy/main.ts --socket PATH [--http PATH|ADDRESS:PORT] [--log-level LEVEL] [--helped]\n",
    );
    process.exit(2);
  }
  const log = pino({ name: "holdfast-proxy", level: values["log-level"] }, logDestination());
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
  const agents = new AskedAgents();
  const commands = new Commands({
    kernel: values.helped ? unprivilegedLegKernelOf(upstream) : legKernelOf(upstream),
    surgeon: values.helped ? new HelpedSurgeon(agents.ask) : new LocalSurgeon(localLegWork(upstream)),
    log,
    network: upstream,
    // The reply to the command that ends us goes out first.
    onExit: values.helped ? null : (reason) => setImmediate(() => setImmediate(() => exit(reason))),
  });
  const handlers = commands.handlers();
  const control = createServer((socket) => {
    const channel = new Channel(socket, { name: "agent", handlers });
    const gone = commands.agentCame();
    agents.came(channel);
    void channel.closed.then((reason) => {
      gone();
      if (reason !== null) log.warn({ reason: reason.message }, "the agent's connection broke");
    });
  });
  const admin = createAdmin({
    metrics: createMetrics(() => (commands.proxy === null ? [] : [commands.proxy])),
    health: () => {
      const { proxy } = commands;
      if (proxy !== null) return { role: proxy.role, epoch: proxy.epoch };
      return values.helped ? { role: "unconfigured" } : null; // one that waits for an agent is well
    },
  });

  reserveDescriptors();
  rmSync(inbox, { force: true });
  const before = process.umask(0o177);
  upstream.open(inbox);
  process.umask(before);
  await listenUnix(control, path);
  control.on("error", (err) => log.error({ err }, "an agent's connection was not accepted"));
  const address = /^(.*):(\d+)$/.exec(httpPath);
  if (address === null) await listenUnix(admin, httpPath);
  else admin.listen({ host: (address[1] as string).replaceAll(/[[\]]/g, ""), port: Number(address[2]) });
  admin.on("error", (err) => log.error({ err }, "admin endpoint failed"));
  process.on("SIGTERM", () => {
    commands.proxy?.end();
    exit("SIGTERM");
  });
  process.on("SIGHUP", () => {});
  process.on("uncaughtException", (err) => {
    log.fatal({ err }, "a bug in the proxy");
    process.exit(70);
  });
  log.info({ socket: path, pid: process.pid }, "proxy ready");
}
