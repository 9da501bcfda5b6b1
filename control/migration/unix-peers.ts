/**
 * Names outside the container to which the application's datagram sockets are connected (`/dev/log`, say). CRIU connects
 * them to the same names on the other node: somebody has to be there.
 */
import { stat } from "node:fs/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { openIn, using } from "../runtime/inside.ts";
import { networkOf } from "../runtime/network-namespace.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import { listUnixSockets, listUnixSocketsAround } from "../runtime/unix-sockets.ts";
import { socketInodes } from "./sockets.ts";

/** At the source: paths as the container sees them, and `@NAME` of abstract ones. */
export async function unixPeersOutside(pids: number[]): Promise<string[]> {
  const mine = await socketInodes(pids);
  const all = listUnixSocketsAround(pids);
  const names = new Set<string>();
  for (const inode of mine.keys()) {
    const socket = all.get(inode);
    const peer = all.get(socket?.peer ?? 0);
    if (socket?.type === sock.SOCK_DGRAM && peer !== undefined && !mine.has(peer.inode) && peer.name !== null)
      names.add(peer.name);
  }
  return [...names];
}

/** At the target, before anybody is held. @throws HoldfastError `UNIX_PEER_MISSING` */
export async function refuseMissingUnixPeers(container: Sandbox, names: string[]): Promise<void> {
  // an abstract name is one of the container's network
  const there = listUnixSockets(networkOf([container.init.pid]));
  const here = new Set([...there.values()].map(({ name }) => name));
  for (const name of names) {
    const isThere = name.startsWith("@")
      ? here.has(name)
      : await using(
          () => openIn(container, name),
          async (path) => (await stat(path)).isSocket(),
        );
    if (isThere === true) continue;
    throw fail(
      "UNIX_PEER_MISSING",
      `the application sends to the Unix socket ${name}, and nobody has it there: start the same service on that node, or mount it`,
    );
  }
}
