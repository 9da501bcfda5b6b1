/** httpxy, the maintained successor of http-proxy, with the same agent. */
import { Agent, createServer } from "node:http";
import type { Socket } from "node:net";
import { createProxyServer } from "httpxy";
import { packageVersion, ports, startNodeServer } from "./node-server.ts";
import type { Peer } from "./peer.ts";

export const httpxy: Peer = {
  name: "httpxy",
  carries: ["http", "websocket"],
  start: (stage, to) =>
    startNodeServer(stage, {
      name: "httpxy",
      version: packageVersion("httpxy"),
      file: import.meta.filename,
      to,
    }),
};

if (import.meta.main) {
  const { listen, to } = ports();
  const agent = new Agent({ keepAlive: true, maxSockets: 1024, maxFreeSockets: 1024 });
  const proxy = createProxyServer({ target: `http://127.0.0.1:${to}`, agent });
  createServer((request, response) => {
    proxy.web(request, response).catch(() => response.destroy());
  })
    .on("upgrade", (request, socket, head) => {
      proxy.ws(request, socket as Socket, {}, head).catch(() => socket.destroy());
    })
    .listen(listen, "127.0.0.1");
}
