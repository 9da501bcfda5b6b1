/**
 * An application whose lives can be told apart. HTTP: GET /life → its pid and when it began; POST /add → counts, in this life's memory; GET /slow →
 * answered after the file of its query is there; GET /healthz. WebSocket: echoes, with the life before the text.
 */
import { existsSync } from "node:fs";
import { WebSocketServer } from "ws";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { createServer } = process.getBuiltinModule("node:http");

const life = `${process.pid}-${Date.now()}`;
let added = 0;

const server = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://lives");
  if (pathname === "/slow") {
    const wait = setInterval(() => {
      if (!existsSync(searchParams.get("until"))) return;
      clearInterval(wait);
      response.end(life);
    }, 5);
    return;
  }
  let bytes = 0;
  request.on("data", (chunk) => {
    bytes += chunk.length;
  });
  request.on("end", () => {
    if (request.method === "POST") added++;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ life, added, bytes, path: pathname }));
  });
});
// Clients stay: an idle connection is the proxy's to keep.
server.keepAliveTimeout = 60_000;
const sockets = new WebSocketServer({ server, perMessageDeflate: process.env.DEFLATE === "1" });
sockets.on("connection", (socket) => {
  socket.on("message", (text) => socket.send(`${life} ${text}`));
});
server.listen(Number(process.env.PORT), "127.0.0.1");
