/** A server of Node's that has to outlive a connection that could not be accepted. */
import { once } from "node:events";
import type { Server } from "node:net";
import type { Endpoint } from "./snapshot.ts";

/**
 * Resolves when it listens.
 * @param onError for as long as it lives: accept(2) may fail (a limit of descriptors), and as an `error` that nobody listens to that would
 * end the process @throws that it cannot listen, as Node says it
 */
export async function openServer(
  server: Server,
  { address, port }: Endpoint,
  onError: (error: Error) => void,
): Promise<void> {
  server.listen(port, address);
  await once(server, "listening");
  server.on("error", onError);
}
