/** The plain forwarder that anybody writes first: `net` and two pipes. */
import { connect, createServer } from "node:net";
import { ports, startNodeServer } from "./node-server.ts";
import type { Peer } from "./peer.ts";

export const nodePipe: Peer = {
  name: "node-pipe",
  start: (stage, to) =>
    startNodeServer(stage, { name: "node-pipe", version: process.version, file: import.meta.filename, to }),
};

if (import.meta.main) {
  const { listen, to } = ports();
  createServer({ noDelay: true }, (client) => {
    const application = connect({ port: to, host: "127.0.0.1", noDelay: true });
    client.pipe(application).pipe(client);
    client.on("error", () => application.destroy());
    application.on("error", () => client.destroy());
  }).listen(listen, "127.0.0.1");
}
