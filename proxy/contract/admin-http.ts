/** `/healthz`, `/readyz` and `/metrics`, for probes and Prometheus. Reads only; whoever reaches the socket may read. */
import type { Server } from "node:http";
import type { Registry } from "@prometheus-io/client";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { createServer } = process.getBuiltinModule("node:http");

export interface AdminOptions {
  metrics: Registry;
  /** 200 with this as JSON; null: 503, not configured yet */
  health(): object | null;
  /** `/readyz`: 200 with this as JSON, or 503 with the reason; default: there is no such path */
  ready?(): { ready: true; [field: string]: unknown } | { ready: false; reason: string };
}

export function createAdmin(options: AdminOptions): Server {
  const server = createServer(async (request, response) => {
    if (request.method !== "GET" && request.method !== "HEAD") {
      response.writeHead(405, { allow: "GET, HEAD" }).end();
      return;
    }
    try {
      if (request.url === "/metrics") {
        const text = await options.metrics.metrics();
        response.writeHead(200, { "content-type": options.metrics.contentType }).end(text);
      } else if (request.url === "/healthz") {
        const health = options.health();
        response
          .writeHead(health === null ? 503 : 200, { "content-type": "application/json" })
          .end(JSON.stringify(health ?? { role: "unconfigured" }));
      } else if (request.url === "/readyz" && options.ready !== undefined) {
        const found = options.ready();
        response
          .writeHead(found.ready ? 200 : 503, { "content-type": "application/json" })
          .end(JSON.stringify(found));
      } else {
        response.writeHead(404).end();
      }
    } catch (error) {
      response.writeHead(500).end(String(error));
    }
  });
  server.requestTimeout = 5_000;
  server.maxConnections = 64;
  return server;
}
