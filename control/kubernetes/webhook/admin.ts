/** `/healthz`, `/readyz` and `/metrics` of the webhook and of the controller, for probes and Prometheus. Reads only. */
import type { Server } from "node:http";
import type { Registry } from "@prometheus-io/client";

const { createServer } = process.getBuiltinModule("node:http");
const REQUEST_MS_MAX = 5_000;
const CONNECTIONS_MAX = 64;

/** @param ready null: it is; else why not */
export function createAdmin(metrics: Registry, ready: () => string | null, role = "webhook"): Server {
  const server = createServer(async (request, response) => {
    const json = (status: number, value: object): void => {
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    };
    if (request.method !== "GET" && request.method !== "HEAD") {
      response.writeHead(405, { allow: "GET, HEAD" }).end();
    } else if (request.url === "/healthz") {
      json(200, { role });
    } else if (request.url === "/readyz") {
      const reason = ready();
      if (reason === null) json(200, { ready: true });
      else json(503, { ready: false, reason });
    } else if (request.url === "/metrics") {
      const text = await metrics.metrics();
      response.writeHead(200, { "content-type": metrics.contentType }).end(text);
    } else {
      response.writeHead(404).end();
    }
  });
  server.requestTimeout = REQUEST_MS_MAX;
  server.maxConnections = CONNECTIONS_MAX;
  return server;
}
