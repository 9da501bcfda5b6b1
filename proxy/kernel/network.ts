/**
 * A network namespace, as a maker of sockets: a socket belongs to the namespace that it was made in, for good.
 *
 * That of the caller makes them by socket(2). Of another one the proxy could not: setns(2) wants CAP_SYS_ADMIN. Instead it is
 * handed a few sockets of that namespace (`HANDED_SOCKETS` in `contract/commands.ts`), and has more of them without any capability: a
 * connection that accept(2) returns is a socket of its listener's namespace, and connect(2) to AF_UNSPEC makes one that was never
 * connected of it. So one of the handed sockets listens, another connects to it over the loopback device, and what is accepted
 * is taken apart again. That takes about 30 µs, and only for so long does the listener have a port, one of the kernel's choice.
 * Sources: tcp_disconnect() in net/ipv4/tcp.c, inet_csk_clone_lock() in net/ipv4/inet_connection_sock.c.
 */
import { constants } from "node:os";
import { HANDED_SOCKETS, type HandedMessage, type HandedSocket } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as ipText from "./address-text.ts";
import * as passing from "./descriptor-passing.ts";
import * as descriptor from "./descriptors.ts";
import * as libc from "./libc.ts";
import * as sock from "./socket.ts";

export interface Network {
  /** Non-blocking, close-on-exec, as if just made; -errno */
  tryTcpSocket(family: 4 | 6): number;
  /** Lends a netlink socket for sock_diag(7). */
  withDiag<T>(use: (fd: number) => T): T;
  /** Lends a raw socket that takes whole packets (raw(7), IPPROTO_RAW). */
  withRaw<T>(family: 4 | 6, use: (fd: number) => T): T;
}

/** The caller's. */
export const OWN_NETWORK: Network = {
  tryTcpSocket: sock.tryTcpSocket,
  withDiag: (use) => withSocket(sock.AF_NETLINK, sock.NETLINK_SOCK_DIAG, use),
  withRaw: (family, use) =>
    withSocket(family === 4 ? ipText.AF_INET : ipText.AF_INET6, sock.IPPROTO_RAW, use),
};

/** As {@link Network.tryTcpSocket}. @throws HoldfastError with the errno name as code */
export function tcpSocketOf(network: Network, family: 4 | 6): number {
  const fd = network.tryTcpSocket(family);
  if (fd >= 0) return fd;
  const code = libc.errnoName(-fd);
  throw new HoldfastError(`socket failed with ${code}`, { code, source: "kernel", retryable: true });
}

/** a connection that somebody else has made in those 30 µs is closed; more than these are an attack of the application on itself */
const STRANGERS_MAX = 8;
const ANSWER_BYTES = 64 * 1024;

export class HandedNetwork implements Network {
  readonly #sockets: ReadonlyMap<HandedSocket, number>;

  /** Takes the descriptors over. */
  constructor(sockets: ReadonlyMap<HandedSocket, number>) {
    this.#sockets = sockets;
  }

  tryTcpSocket(family: 4 | 6): number {
    const listener = this.#sockets.get(`listener${family}`);
    const client = this.#sockets.get(`client${family}`);
    if (listener === undefined || client === undefined) return -constants.errno.EAFNOSUPPORT;
    let fd = -1;
    let isMade = false;
    try {
      sock.listen(listener, STRANGERS_MAX);
      sock.connect(client, {
        address: family === 4 ? "127.0.0.1" : "::1",
        port: sock.getsockname(listener).port,
      });
      fd = acceptOf(listener, client);
      sock.disconnect(client); // by RST, so that nothing is left in TIME_WAIT
      sock.disconnect(fd);
      for (const ended of [client, fd]) sock.getsockoptInt(ended, sock.SOL_SOCKET, sock.SO_ERROR);
      isMade = true;
      return fd;
    } catch (error) {
      const code = error instanceof HoldfastError ? error.code : "";
      return -((constants.errno as Record<string, number>)[code] ?? constants.errno.EAGAIN);
    } finally {
      if (!isMade) {
        if (fd >= 0) descriptor.close(fd);
        quietly(() => sock.disconnect(client));
      }
      quietly(() => sock.disconnect(listener));
    }
  }

  withDiag<T>(use: (fd: number) => T): T {
    const fd = this.#get("diag");
    // what a use that was broken off has left would be taken for the next one's answer
    const rest = Buffer.allocUnsafe(ANSWER_BYTES);
    while (sock.tryRecv(fd, rest) > 0);
    return use(fd);
  }

  withRaw<T>(family: 4 | 6, use: (fd: number) => T): T {
    return use(this.#get(`raw${family}`));
  }

  close(): void {
    for (const fd of this.#sockets.values()) descriptor.close(fd);
  }

  #get(name: HandedSocket): number {
    const fd = this.#sockets.get(name);
    if (fd !== undefined) return fd;
    throw new HoldfastError(`the container's network has no socket "${name}"`, {
      code: "EAFNOSUPPORT",
      source: "kernel",
    });
  }
}

/** Where the application is: in the caller's namespace, or in one that the agent hands over (`contract/commands.ts`). */
export class UpstreamNetwork implements Network {
  #inbox = -1;
  #now: Network = OWN_NETWORK;

  /** @param inbox path that handed sockets are sent to */
  open(inbox: string): void {
    this.#inbox = passing.bindUnixDatagram(inbox);
  }

  tryTcpSocket = (family: 4 | 6): number => this.#now.tryTcpSocket(family);
  withDiag = <T>(use: (fd: number) => T): T => this.#now.withDiag(use);
  withRaw = <T>(family: 4 | 6, use: (fd: number) => T): T => this.#now.withRaw(family, use);

  /** own: in one of its own, which is handed over later, or not any more */
  set(where: "host" | "own"): void {
    this.#become(where === "host" ? OWN_NETWORK : NO_NETWORK);
  }

  /** @throws HoldfastError `NETWORK_NOT_HANDED`: nothing with that token has been sent; all stays as it was */
  take(token: string): void {
    for (;;) {
      const received = this.#inbox < 0 ? null : passing.receiveDescriptors(this.#inbox, MESSAGE_BYTES_MAX);
      if (received === null)
        throw fail("NETWORK_NOT_HANDED", "the sockets of the container's network have not arrived");
      const { descriptors } = received;
      const names = namesIn(received.message, token);
      if (names !== null && names.length === descriptors.length) {
        this.#become(
          new HandedNetwork(new Map(names.map((name, index) => [name, descriptors[index] as number]))),
        );
        return;
      }
      for (const fd of descriptors) descriptor.close(fd); // of an agent that died before it said so
    }
  }

  #become(next: Network): void {
    const before = this.#now;
    this.#now = next;
    if (before instanceof HandedNetwork) before.close();
  }
}

const MESSAGE_BYTES_MAX = 4096;

/** null: another message */
function namesIn(message: Buffer, token: string): HandedSocket[] | null {
  try {
    const parsed = JSON.parse(message.toString()) as Partial<HandedMessage>;
    const names = Array.isArray(parsed.sockets) ? parsed.sockets : [];
    return parsed.token === token && names.every((name) => HANDED_SOCKETS.includes(name)) ? names : null;
  } catch {
    return null;
  }
}

/** Until the agent has handed over a container's network: whoever dials is told to try again. */
export const NO_NETWORK: Network = {
  tryTcpSocket: () => -constants.errno.EAGAIN,
  withDiag: noNetwork,
  withRaw: noNetwork,
};

function noNetwork(): never {
  throw new HoldfastError("the agent has not handed over the container's network yet", {
    code: "EAGAIN",
    source: "kernel",
    retryable: true,
  });
}

/** The end of the connection that `client` has begun. */
function acceptOf(listener: number, client: number): number {
  const mine = sock.getsockname(client);
  for (let tries = 0; tries < STRANGERS_MAX; tries++) {
    const fd = sock.accept(listener, sock.SOCK_NONBLOCK | sock.SOCK_CLOEXEC);
    const peer = sock.lastPeer(fd);
    if (peer?.port === mine.port && peer.address === mine.address) return fd;
    descriptor.close(fd);
  }
  throw new HoldfastError("the application connects to the proxy's own listener", {
    code: "EAGAIN",
    source: "kernel",
    retryable: true,
  });
}

function withSocket<T>(domain: number, protocol: number, use: (fd: number) => T): T {
  const fd = sock.socket(domain, sock.SOCK_RAW | sock.SOCK_CLOEXEC, protocol);
  try {
    return use(fd);
  } finally {
    descriptor.close(fd);
  }
}

function quietly(work: () => void): void {
  try {
    work();
  } catch {
    // it was not connected, or did not listen
  }
}
