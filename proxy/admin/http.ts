/** `/healthz` and `/metrics`, for probes and Prometheus. Reads only; whoever reaches the socket may read. */
import { createServer, type Server } from "node:http";
import type { Registry } from "@prometheus-io/client";

export interface AdminOptions {
  metrics: Registry;
  /** 200 with this as JSON; null: 503, not configured yet */
  health(): object | null;
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
