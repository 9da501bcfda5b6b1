/**
 * The agent's admin interface: HTTP over a Unix socket for the command line and scripts, and over loopback TCP, if configured,
 * for who has the agent's token (`admin-access.ts`).
 *
 *   GET  /v1/status                       { node, pid, workloads: WorkloadStatus[] }
 *   GET  /v1/workloads/NAME/sessions      { sessions: SessionInfo[] }
 *   GET  /v1/lookup/NAME[?workload=W]     Found: where the session of that name is served
 *   GET  /v1/check[?workload=W][&to=NODE] { node } and CheckReport: of this node, its workloads, and where they could go
 *   POST /v1/workloads/NAME/migrate       { to, deadlineMs? } → NDJSON: phase lines, then a result or an error line
 *   POST /v1/workloads/NAME/check         { to } → the same: a rehearsal, with { node, rehearsed, prediction? } and CheckReport in the result
 *   POST /v1/workloads/NAME/restart       { drainMs? } → the same
 *   POST /v1/workloads/NAME/cancel        { cancelled }: the move, or the restart
 *   POST /v1/workloads/NAME/start         { force? } → {}: here, if no other node has it; force: a person says that none has
 *   POST /v1/workloads/NAME/stop          {}
 *   GET  /healthz, /metrics               also on the address `metrics:` of the configuration
 */

import { once } from "node:events";
import { chmodSync } from "node:fs";
import { rm } from "node:fs/promises";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import { join } from "node:path";
import { z } from "zod";
import type { Channel } from "#proxy/contract/channel.ts";
import { factsOf, fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { blocking, type Check, type CheckReport, merged, runChecks } from "../api/finding.ts";
import type { MoveResult } from "../api/migration.ts";
import type { AgentContext } from "../workload/context.ts";
import { tail } from "../workload/output.ts";
import type { Owners } from "../workload/owners.ts";
import { checkNode } from "../workload/preflight/preflight.ts";
import type { Workload } from "../workload/workload.ts";
import { adminToken, authorize } from "./admin-access.ts";
import type { KeyRing } from "./key-ring.ts";
import { lookUp } from "./lookup.ts";
import type { AgentMetrics } from "./metrics.ts";
import type { Trust } from "./trust.ts";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { createServer } = process.getBuiltinModule("node:http");

/** for `status`: a peer that takes longer is not connected */
const PEER_MS_MAX = 1_000;
const LOG_LINES = 100;
const BODY_BYTES_MAX = 64 * 1024;
const DRAIN_MS = 1_000;
const restartSchema = z.strictObject({ drainMs: z.number().int().min(0).max(3_600_000).optional() });
const rehearseSchema = z.strictObject({ to: z.string().min(1).max(63) });
const startSchema = z.strictObject({ force: z.boolean().optional() });
const migrateSchema = z.strictObject({
  to: z.string().min(1).max(63),
  deadlineMs: z.number().int().min(1).max(3_600_000).optional(),
});

/** What the agent itself has of what {@link AgentContext} shows. */
export interface OwnContext extends AgentContext {
  ring: KeyRing;
  gatewayRing: KeyRing;
  trust: Trust;
  owners: Owners;
}

export class AdminServer {
  #context: OwnContext;
  #workloads: Map<string, Workload>;
  #metrics: AgentMetrics;
  #servers: Server[] = [];
  #startedMs = performance.now();
  readonly #opened = Promise.withResolvers<void>();

  constructor(context: OwnContext, workloads: Map<string, Workload>, metrics: AgentMetrics) {
    this.#context = context;
    this.#workloads = workloads;
    this.#metrics = metrics;
  }

  /**
   * Takes the ports: an agent that cannot have them is to end before it has touched a workload. All but metrics is answered from
   * {@link open} on.
   * @param admin everything, loopback only, for who has the token; @param metrics what others may see
   * @throws HoldfastError `LISTEN_FAILED`, `ADMIN_TOKEN`
   */
  async claim(admin: Endpoint | null, metrics: Endpoint | null): Promise<void> {
    if (admin !== null) {
      const token = adminToken(join(this.#context.stateDir, "admin.token"));
      await this.#listenOn({ host: admin.address, port: admin.port }, "all", (request) =>
        authorize(request, admin, token),
      );
    }
    if (metrics !== null) await this.#listenOn({ host: metrics.address, port: metrics.port }, "metrics");
  }

  /** @throws HoldfastError `LISTEN_FAILED` */
  async open(socketPath: string): Promise<void> {
    await rm(socketPath, { force: true });
    await this.#listenOn({ path: socketPath }, "all");
    chmodSync(socketPath, 0o600);
    this.#opened.resolve();
  }

  async close(): Promise<void> {
    for (const server of this.#servers) {
      server.close();
      server.closeAllConnections();
    }
  }

  #listenOn(
    where: { path: string } | { host: string; port: number },
    offer: "all" | "metrics",
    check: (request: IncomingMessage) => void = () => {},
  ): Promise<void> {
    const server = createServer((request, response) => {
      try {
        check(request);
      } catch (error) {
        response.shouldKeepAlive = false; // what it sends is not read
        return sendError(response, error);
      }
      this.#answer(request, response, offer).catch((error: unknown) => sendError(response, error));
    });
    this.#servers.push(server);
    return new Promise((resolve, reject) => {
      server.on("error", (cause) => {
        const what = "path" in where ? where.path : `${where.host}:${where.port}`;
        reject(fail("LISTEN_FAILED", `cannot listen on ${what}: ${cause.message}`, { cause }));
      });
      server.listen(where, resolve);
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse, offer: "all" | "metrics"): Promise<void> {
    const url = new URL(request.url ?? "/", "http://agent");
    const path = url.pathname;
    const route = `${request.method} ${path.replace(/^\/v1\/(workloads|lookup)\/[^/]+/, "/v1/$1/NAME")}`;
    if (offer === "metrics" && path.startsWith("/v1/")) throw notFound(route);
    const workload = (name = path.split("/")[3] ?? ""): Workload => {
      const found = this.#workloads.get(name);
      if (found === undefined) {
        const known = [...this.#workloads.keys()].join(", ");
        throw fail(
          "WORKLOAD_UNKNOWN",
          `no workload ${name} on node ${this.#context.node}; there are: ${known}`,
        );
      }
      return found;
    };
    if (offer === "all") await this.#opened.promise;
    switch (route) {
      case "GET /healthz":
        return sendJson(response, 200, { status: "ok" });
      case "GET /metrics":
        response.writeHead(200, { "content-type": this.#metrics.registry.contentType });
        response.end(await this.#metrics.registry.metrics());
        return;
      case "GET /v1/status":
        return sendJson(response, 200, await this.#status());
      case "GET /v1/check":
        return sendJson(response, 200, await this.#check(url.searchParams, workload));
      case "GET /v1/lookup/NAME": {
        const only = url.searchParams.get("workload");
        const among = only === null ? this.#workloads : new Map([[only, workload(only)]]);
        return sendJson(response, 200, await lookUp(decoded(path.split("/")[3] ?? ""), among, this.#context));
      }
      case "GET /v1/workloads/NAME/sessions":
        return sendJson(response, 200, { sessions: await workload().sessions() });
      case "GET /v1/workloads/NAME/logs":
        return this.#logs(workload(), url.searchParams, response);
      case "POST /v1/workloads/NAME/migrate":
        return this.#migrate(workload(), request, response);
      case "POST /v1/workloads/NAME/check":
        return this.#rehearse(workload(), request, response);
      case "POST /v1/workloads/NAME/restart":
        return this.#restart(workload(), request, response);
      case "POST /v1/workloads/NAME/cancel":
        return sendJson(response, 200, { cancelled: workload().cancel() });
      case "POST /v1/workloads/NAME/start": {
        const { force = false } = await readBody(request, startSchema);
        await workload().start(force);
        return sendJson(response, 200, {});
      }
      case "POST /v1/workloads/NAME/stop":
        await workload().stop();
        return sendJson(response, 200, {});
      default:
        throw notFound(route);
    }
  }

  async #status(): Promise<object> {
    const context = this.#context;
    const [store, peers, workloads] = await Promise.all([
      context.store.ping().then(
        () => ({ url: context.storeUrl, ok: true }),
        (error: unknown) => ({ url: context.storeUrl, ok: false, reason: messageOf(error) }),
      ),
      Promise.all(
        Object.entries(context.peers).map(async ([node, { address, port }]) => {
          const peer = { node, address: `${address}:${port}` };
          try {
            await hearFrom(await context.dial(node, PEER_MS_MAX));
            return { ...peer, connected: true };
          } catch (error) {
            return { ...peer, connected: false, reason: messageOf(error) };
          }
        }),
      ),
      Promise.all([...this.#workloads.values()].map((each) => each.status())),
    ]);
    const { ring, trust } = context;
    const uptimeMs = Math.round(performance.now() - this.#startedMs);
    return {
      node: context.node,
      pid: process.pid,
      uptimeMs,
      store,
      keys: { ids: ring.ids, problem: trust.problems.join("; ") || null, revoked: trust.revoked.nodes },
      peers,
      workloads,
    };
  }

  async #check(query: URLSearchParams, workload: (name: string) => Workload): Promise<object> {
    const only = query.get("workload");
    const to = query.get("to");
    const reports = [await checkNode(this.#context)];
    const among = only === null ? this.#workloads.values() : [workload(only)];
    for (const each of among) reports.push(await each.check(to));
    return { node: this.#context.node, ...merged(...reports) };
  }

  async #logs(workload: Workload, query: URLSearchParams, response: ServerResponse): Promise<void> {
    const lines = Number(query.get("lines") ?? LOG_LINES);
    if (!Number.isInteger(lines) || lines < 0) throw fail("REQUEST_INVALID", "lines: expected how many");
    const gone = new AbortController();
    response.once("close", () => gone.abort());
    const { signal } = gone;
    response.writeHead(200, { "content-type": "application/octet-stream" });
    response.flushHeaders(); // there may be nothing yet
    for await (const chunk of tail(workload.logFile, {
      lines,
      follow: query.get("follow") === "1",
      signal,
    })) {
      // a reader that is slow is waited for
      if (!response.write(chunk)) await once(response, "drain", { signal }).catch(() => {});
      if (signal.aborted) return;
    }
    response.end();
  }

  async #migrate(workload: Workload, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { to, deadlineMs } = await readBody(request, migrateSchema);
    const line = lineWriter(response);
    // the one who asked may go away; the move goes on
    const move = await workload.moves.migrate({
      to,
      report: line,
      ...(deadlineMs === undefined ? {} : { deadlineMs }),
    });
    line({ type: "result", move });
    response.end();
  }

  async #rehearse(workload: Workload, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { to } = await readBody(request, rehearseSchema);
    const line = lineWriter(response);
    const move = await workload.moves.rehearse({ to, report: line });
    const { check = { checked: [], findings: [] }, prediction } = move;
    const rehearsed = move.outcome === "rehearsed";
    const failed = rehearsed || blocking(check.findings).length > 0 ? check : await this.#failed(move, check);
    line({ type: "result", check: { node: this.#context.node, rehearsed, prediction, ...failed } });
    response.end();
  }

  /** What the checks did not foresee is a finding now. */
  async #failed(move: MoveResult, check: CheckReport): Promise<CheckReport> {
    const cancelled = move.reason === "cancelled";
    const rehearsal: Check<null> = {
      category: "rehearsal",
      run: async (_, add) =>
        add(
          cancelled ? "rehearsal.cancelled" : "rehearsal.failed",
          "error",
          cancelled
            ? "it was cancelled, and undone"
            : `a move would fail before anybody is held: ${move.reason}`,
          cancelled ? "run it again" : "see the agents' logs",
        ),
    };
    const scope = { node: move.from, workload: move.workload };
    return merged(check, await runChecks([rehearsal], null, scope));
  }

  async #restart(workload: Workload, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { drainMs = DRAIN_MS } = await readBody(request, restartSchema);
    const line = lineWriter(response);
    const restart = await workload.restart(drainMs, line);
    line({ type: "result", restart });
    response.end();
  }
}

/** Lines of NDJSON; the status goes out with the first, as until then it may be refused. */
function lineWriter(response: ServerResponse): (value: object) => void {
  return (value) => {
    if (!response.headersSent) response.writeHead(200, { "content-type": "application/x-ndjson" });
    response.write(`${JSON.stringify(value)}\n`);
  };
}

async function readBody<T>(request: IncomingMessage, schema: z.ZodType<T>): Promise<T> {
  const parsed = schema.safeParse(await readJson(request));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw fail("REQUEST_INVALID", `${issue?.path.join(".") || "body"}: ${issue?.message}`);
}

async function readJson(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += (chunk as Buffer).length;
    if (bytes > BODY_BYTES_MAX) throw fail("REQUEST_INVALID", "the request is too large");
    chunks.push(chunk as Buffer);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8") || "{}");
  } catch (cause) {
    throw fail("REQUEST_INVALID", "the request is not JSON", { cause });
  }
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (cause) {
    throw fail("REQUEST_INVALID", "the name is not UTF-8 behind its escapes", { cause });
  }
}

/** A peer that refuses a certificate says so after the handshake (TLS 1.3): only an answer shows that it has let us in. */
async function hearFrom(channel: Channel): Promise<void> {
  try {
    await channel.call("owners", { workloads: [] }, { timeoutMs: PEER_MS_MAX });
  } finally {
    channel.close();
  }
}

function notFound(route: string): HoldfastError {
  return fail("NOT_FOUND", `no such resource: ${route}`);
}

function sendJson(response: ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
}

function sendError(response: ServerResponse, error: unknown): void {
  const body =
    error instanceof HoldfastError
      ? error.toJSON()
      : { code: "INTERNAL", source: "migration", retryable: false, message: messageOf(error) };
  if (response.headersSent) response.end(`${JSON.stringify({ type: "error", error: body })}\n`);
  else sendJson(response, factsOf(body.code)?.http ?? 500, { error: body });
}
