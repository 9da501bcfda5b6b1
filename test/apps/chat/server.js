/**
 * The demo's stateful application: WebSockets, and everything it knows is in memory.
 *
 * Each message `{id, n, payload}` (payload: a 32-bit number) is answered `{n, count, sum}`: how many messages this
 * client has sent, and a sum over their payloads that depends on their order. A lost, repeated or reordered message,
 * and a server that forgot, all show in the next answer.
 *
 *   PORT    where to listen                                     (9000)
 *   HOST    on which address                                    (127.0.0.1)
 *   APP_MB  MiB of random memory to keep, all of it touched     (0)
 *
 * GET / over HTTP tells how it is. SIGTERM closes every client with 1001 and ends.
 */
import { randomFillSync } from "node:crypto";
import { WebSocketServer } from "ws";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { createServer } = process.getBuiltinModule("node:http");

const port = Number(process.env.PORT ?? 9000);
const host = process.env.HOST ?? "127.0.0.1";
const mebibytes = Number(process.env.APP_MB ?? 0);

const ballast = [];
for (let i = 0; i < mebibytes; i++) ballast.push(randomFillSync(Buffer.allocUnsafeSlow(1024 * 1024)));

/** @type {Map<string, {count: number, sum: number}>} */
const clients = new Map();
let messages = 0;

const server = createServer((_request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(
    `${JSON.stringify({ pid: process.pid, clients: clients.size, messages, ballastMb: ballast.length })}\n`,
  );
});

// Clients stay: an idle connection is the proxy's to keep.
server.keepAliveTimeout = 60_000;
const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (socket) => {
  socket.on("message", (data) => {
    const { id, n, payload } = JSON.parse(data.toString());
    let client = clients.get(id);
    if (client === undefined) {
      client = { count: 0, sum: 0 };
      clients.set(id, client);
    }
    messages += 1;
    client.count += 1;
    client.sum = (Math.imul(client.sum, 31) + payload) >>> 0;
    socket.send(`{"n":${n},"count":${client.count},"sum":${client.sum}}`);
  });
  socket.on("error", (error) => console.log(`client error: ${error.message}`));
});

server.listen(port, host, () => console.log(`chat: listening on ${host}:${port}, ${ballast.length} MiB of ballast`));

process.on("SIGTERM", () => {
  console.log("chat: SIGTERM");
  for (const socket of sockets.clients) socket.close(1001, "server ends");
  server.close();
  setTimeout(() => process.exit(0), 200);
});
