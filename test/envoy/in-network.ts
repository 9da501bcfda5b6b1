/** Sockets of the test's own process in a place of the laboratory: what it asks and serves there takes no process more. */
import { execFileSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { Socket } from "node:net";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { AF_INET } from "#proxy/kernel/address-text.ts";
import { close } from "#proxy/kernel/descriptors.ts";
import { inNetworkNamespace } from "#proxy/kernel/namespaces.ts";
import {
  bind,
  connect,
  IPPROTO_TCP,
  listen,
  SO_REUSEADDR,
  SOCK_CLOEXEC,
  SOCK_STREAM,
  SOL_SOCKET,
  setsockoptInt,
  socket,
} from "#proxy/kernel/socket.ts";
import type { Place } from "../lab/lab.ts";

const BACKLOG = 128;
/** tcp(7) */
const TCP_SYNCNT = 7;
/** half a minute: this process does nothing else meanwhile */
const SYN_RETRIES = 4;
/** of a place that does not answer: its sockets, what its kernel has dropped, and what its redirects do */
const EVIDENCE = "ss -tan; nstat -asz | awk '$2 > 0'; nft list ruleset";

/** A connection from a place. It is there when this returns, so nobody may be in the way who is this process. @throws Error refused */
export function connectFrom({ netns }: Place, to: Endpoint): Socket {
  const fd = inPlace(netns, (made) => {
    setsockoptInt(made, IPPROTO_TCP, TCP_SYNCNT, SYN_RETRIES);
    try {
      connect(made, to);
    } catch (cause) {
      if (!(cause as Error).message.includes("ETIMEDOUT")) throw cause;
      const evidence = execFileSync("sh", ["-c", EVIDENCE], { encoding: "utf8" });
      throw new Error(`nobody answers at ${to.address}:${to.port}, as seen from ${netns}:\n${evidence}`, {
        cause,
      });
    }
  });
  const connection = new Socket({ fd, readable: true, writable: true });
  return connection.setNoDelay(true);
}

/** A socket that listens at a place, for `server.listen({ fd })`. */
export function listenAt({ netns }: Place, at: Endpoint): number {
  return inPlace(netns, (made) => {
    setsockoptInt(made, SOL_SOCKET, SO_REUSEADDR, 1);
    bind(made, at);
    listen(made, BACKLOG);
  });
}

function inPlace(netns: string, use: (fd: number) => void): number {
  const there = openSync(`/run/netns/${netns}`, "r");
  try {
    return inNetworkNamespace(there, () => {
      const fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
      try {
        use(fd);
        return fd;
      } catch (error) {
        close(fd);
        throw error;
      }
    });
  } finally {
    closeSync(there);
  }
}
