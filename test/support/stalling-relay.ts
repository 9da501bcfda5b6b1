/** Leads connections on, until they fall silent: as a peer's that has gone without FIN or RST. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

export interface StallingRelay {
  port: number;
  /** From now on nothing goes through connections that there are, either way; those that come are led on. @returns how many have fallen silent */
  stall(): number;
  close(): void;
}

/** @param to a port of 127.0.0.1 */
export async function stallingRelay(to: number): Promise<StallingRelay> {
  const open = new Set<Socket>();
  const silent = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(to, "127.0.0.1");
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        open.delete(socket);
        // of a silent one the other side is told nothing
        if (!silent.has(socket)) other.destroy();
      });
      socket.pipe(other, { end: false });
    }
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  return {
    port: (server.address() as AddressInfo).port,
    stall() {
      const before = silent.size;
      for (const socket of open) {
        silent.add(socket);
        socket.unpipe();
        socket.pause();
      }
      return (silent.size - before) / 2;
    },
    close() {
      server.close();
      for (const socket of open) socket.destroy();
    },
  };
}
