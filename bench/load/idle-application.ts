/** The application of idle sessions: a WebSocket server that echoes, and says how many sessions it has and what it echoed. */
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { WebSocketServer } from "ws";
import { serve } from "./program.ts";

export interface IdleApplicationState {
  port: number;
  sessions: number;
  messages: number;
}

/** every session at once may be on its way */
const BACKLOG = 4096;

let messages = 0;
const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  backlog: BACKLOG,
  perMessageDeflate: false,
});
server.on("connection", (socket) => {
  socket.on("error", () => {}); // "close" takes it off the count
  socket.on("message", (data) => {
    messages++;
    socket.send(data);
  });
});
await once(server, "listening");

serve(
  (): IdleApplicationState => ({
    port: (server.address() as AddressInfo).port,
    sessions: server.clients.size,
    messages,
  }),
);
