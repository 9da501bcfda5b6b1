/** `/healthz`, `/readyz` and `/metrics`, for probes and Prometheus. Reads only; whoever reaches the socket may read. */
import type { Server } from "node:http";
import type { Socket } from "node:net";
import type { Registry } from "@prometheus-io/client";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { createServer } = process.getBuiltinModule("node:http");

/** whoever reaches the port may take them all: probes have to get through nevertheless */
const CONNECTIONS_MAX = 64;
/** who says nothing is let go after this, 408, looked at so often */
const HEADERS_MS_MAX = 2_000;
const LOOK_MS = 1_000;

export interface AdminOptions {
  metrics: Registry;
  /** 200 with this as JSON; null: 503, not configured yet */
  health(): object | null;
  /** `/readyz`: 200 with this as JSON, or 503 with the reason; default: there is no such path */
  ready?(): { ready: true; [field: string]: unknown } | { ready: false; reason: string };
}

export function createAdmin(options: AdminOptions): Server {
  const places = new Places(CONNECTIONS_MAX);
  const server = createServer({ connectionsCheckingInterval: LOOK_MS }, async (request, response) => {
    const { socket } = request;
    places.asks(socket);
    response.once("close", () => places.rests(socket));
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
  server.headersTimeout = HEADERS_MS_MAX;
  server.requestTimeout = 5_000;
  server.on("connection", (socket) => places.came(socket));
  return server;
}

/** So many connections at a time: of too many the one that has been silent for longest goes, and none that comes is refused. */
class Places {
  readonly #max: number;
  /** longest silent first */
  readonly #silent = new Set<Socket>();
  /** being answered, longest first */
  readonly #asking = new Set<Socket>();

  constructor(max: number) {
    this.#max = max;
  }

  came(socket: Socket): void {
    if (this.#silent.size + this.#asking.size >= this.#max) {
      const [oldest] = this.#silent.size > 0 ? this.#silent : this.#asking;
      if (oldest !== undefined) {
        this.#gone(oldest);
        oldest.destroy();
      }
    }
    this.#silent.add(socket);
    socket.once("close", () => this.#gone(socket));
  }

  asks(socket: Socket): void {
    if (this.#silent.delete(socket)) this.#asking.add(socket);
  }

  rests(socket: Socket): void {
    if (this.#asking.delete(socket) && !socket.destroyed) this.#silent.add(socket);
  }

  #gone(socket: Socket): void {
    this.#silent.delete(socket);
    this.#asking.delete(socket);
  }
}
