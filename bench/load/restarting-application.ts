/**
 * The application that is restarted: HTTP and WebSocket at PORT. Its answer to a request is its PID, so that it can be told
 * which life gave it; to a message, the message. It takes SERVICE_MS for each. What it carries out (the request's path, the
 * message) is a line of the file EXECUTED before it answers, so that also what a killed life did is known.
 * On demand it takes requests and does not answer them, as one that dies over them, or shuts down in order.
 */
import { once } from "node:events";
import { openSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { WebSocketServer } from "ws";
import { serve } from "./program.ts";

/**
 * stall: answers nobody from here on. stalled: resolves when so many requests wait.
 * leave: as on SIGTERM; resolves when its clients are served and gone, or after a second
 */
export type RestartingApplicationAsk =
  | { type: "stall" }
  | { type: "stalled"; requests: number }
  | { type: "leave" };

const LEAVE_MS_MAX = 1_000;
const GOING_AWAY = 1001;

const serviceMs = Number(process.env.SERVICE_MS ?? 0);
const executed = process.env.EXECUTED === undefined ? null : openSync(process.env.EXECUTED, "a");
let stalling = false;
let stalled = 0;
let onStalled: () => void = () => {};
let leaving = false;

const server = createServer(async (request, response) => {
  const id = request.url?.slice(1) ?? "";
  request.resume();
  await once(request, "end");
  if (stalling) {
    stalled++;
    onStalled();
    return;
  }
  await carryOut(id);
  if (leaving) response.setHeader("connection", "close");
  response.setHeader("x-id", id);
  response.end(String(process.pid));
});
server.keepAliveTimeout = 60_000;
const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (socket) => {
  socket.on("error", () => {}); // "close" follows
  socket.on("message", async (data) => {
    await carryOut(String(data));
    socket.send(String(data));
  });
});
server.listen(Number(process.env.PORT), "127.0.0.1");
await once(server, "listening");

async function carryOut(id: string): Promise<void> {
  if (executed !== null) writeSync(executed, `${id}\n`);
  if (serviceMs > 0) await delay(serviceMs);
}

serve(async (ask: RestartingApplicationAsk): Promise<void> => {
  if (ask.type === "stall") {
    stalling = true;
  } else if (ask.type === "leave") {
    leaving = true;
    const closed = once(server, "close");
    server.close();
    for (const socket of sockets.clients) socket.close(GOING_AWAY);
    await Promise.race([closed, delay(LEAVE_MS_MAX)]);
  } else {
    const { promise, resolve } = Promise.withResolvers<void>();
    onStalled = () => {
      if (stalled === ask.requests) resolve();
    };
    onStalled();
    await promise;
  }
});
