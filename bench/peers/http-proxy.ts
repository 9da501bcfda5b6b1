/** http-proxy, the package most Node proxies are made of, with an agent that keeps connections alive (it does not by itself). */
import { Agent, createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createRequire } from "node:module";
import type { Duplex } from "node:stream";
import { packageVersion, ports, startNodeServer } from "./node-server.ts";
import type { Peer } from "./peer.ts";

/** The part of it that is used here: it has no types of its own. */
interface HttpProxy {
  createProxyServer(options: { target: string; agent: Agent }): {
    web(request: IncomingMessage, response: ServerResponse): void;
    ws(request: IncomingMessage, socket: Duplex, head: Buffer): void;
    on(
      event: "error",
      listener: (error: Error, request: IncomingMessage, response: ServerResponse | Duplex) => void,
    ): void;
  };
}

export const httpProxy: Peer = {
  name: "http-proxy",
  carries: ["http", "websocket"],
  start: (stage, to) =>
    startNodeServer(stage, {
      name: "http-proxy",
      version: packageVersion("http-proxy"),
      file: import.meta.filename,
      to,
    }),
};

if (import.meta.main) {
  const { listen, to } = ports();
  const agent = new Agent({ keepAlive: true, maxSockets: 1024, maxFreeSockets: 1024 });
  const { createProxyServer } = createRequire(import.meta.url)("http-proxy") as HttpProxy;
  const proxy = createProxyServer({ target: `http://127.0.0.1:${to}`, agent });
  proxy.on("error", (_error, _request, response) => {
    if ("writeHead" in response && !response.headersSent) response.writeHead(502).end();
    else response.destroy();
  });
  createServer((request, response) => proxy.web(request, response))
    .on("upgrade", (request, socket, head) => proxy.ws(request, socket, head))
    .listen(listen, "127.0.0.1");
}
