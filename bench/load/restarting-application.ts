/**
 * The application that is restarted: an HTTP server at PORT, whose answer is its PID, so that it can be told which life gave it.
 * On demand it takes requests and does not answer them, as one that dies over them.
 */
import { once } from "node:events";
import { createServer } from "node:http";
import { serve } from "./program.ts";

/** stall: answers nobody from here on. stalled: resolves when so many requests wait */
export type RestartingApplicationAsk = { type: "stall" } | { type: "stalled"; requests: number };

let stalling = false;
let stalled = 0;
let onStalled: () => void = () => {};

const server = createServer((_request, response) => {
  if (stalling) {
    stalled++;
    onStalled();
  } else {
    response.end(String(process.pid));
  }
});
server.listen(Number(process.env.PORT), "127.0.0.1");
await once(server, "listening");

serve(async (ask: RestartingApplicationAsk): Promise<void> => {
  if (ask.type === "stall") {
    stalling = true;
    return;
  }
  const { promise, resolve } = Promise.withResolvers<void>();
  onStalled = () => {
    if (stalled === ask.requests) resolve();
  };
  onStalled();
  await promise;
});
