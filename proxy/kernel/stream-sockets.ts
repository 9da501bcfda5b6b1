/** What streams and listeners do with the kernel: sockets that listen, dial, carry bytes, and end. */
import { isIPv6 } from "node:net";
import { constants } from "node:os";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as descriptor from "./descriptors.ts";
import { Epoll } from "./epoll.ts";
import * as libc from "./libc.ts";
import { type Network, OWN_NETWORK, tcpSocketOf } from "./network.ts";
import * as sock from "./socket.ts";
import { readState } from "./tcp-state.ts";

/** struct linger: on, 0 seconds */
const LINGER_NOTHING = Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]);
/** what has nothing to do with the connection itself: it goes on when there is room or memory again */
const TEMPORARY: ReadonlySet<number> = new Set([
  constants.errno.EAGAIN,
  constants.errno.EINTR,
  constants.errno.ENOBUFS,
  constants.errno.ENOMEM,
]);

const epoll = new Epoll();

export const sockets = {
  watch: epoll.watch.bind(epoll),
  unwatch: epoll.unwatch.bind(epoll),
  soon: epoll.soon.bind(epoll),

  dial(to: Endpoint, network: Network = OWN_NETWORK): number {
    const fd = network.tryTcpSocket(familyOf(to));
    if (fd < 0) return fd;
    boundQueues(fd, "application", 0);
    const errno = sock.tryConnect(fd, to);
    if (errno === 0) return fd;
    descriptor.close(fd);
    return errno;
  },

  listen(on: Endpoint | { fd: number }, backlog: number): number {
    const fd = "fd" in on ? on.fd : bound(on);
    try {
      sock.listen(fd, backlog);
      return fd;
    } catch (error) {
      descriptor.close(fd);
      throw error;
    }
  },
  accept: sock.tryAccept,
  socketError: (fd: number) => sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_ERROR),
  setNoDelay: (fd: number) => sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NODELAY, 1),
  localOf: (fd: number): Endpoint => sock.getsockname(fd),
  localPort: (fd: number) => sock.getsockname(fd).port,
  peerOf(fd: number): string {
    try {
      const { address, port } = sock.getpeername(fd);
      return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
    } catch {
      return ""; // reset meanwhile
    }
  },
  recv: sock.tryRecv,
  send: sock.trySend,
  isTemporary: (errno: number) => TEMPORARY.has(errno),
  errnoName: libc.errnoName,
  close: descriptor.close,
  lowestFreeDescriptor: descriptor.lowestFreeDescriptor,
  descriptorsMax: descriptor.descriptorsMax,
  reset(fd: number): void {
    sock.setsockoptBuffer(fd, sock.SOL_SOCKET, sock.SO_LINGER, LINGER_NOTHING);
    descriptor.close(fd);
  },
  shutdownWrite(fd: number): boolean {
    try {
      sock.shutdown(fd, sock.SHUT_WR);
      return true;
    } catch {
      return false;
    }
  },
  unackedBytes: (fd: number) => descriptor.ioctlInt(fd, sock.SIOCOUTQ),
  nudge(fd: number): void {
    try {
      sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR, sock.TCP_REPAIR_ON);
      // Leaving repair mode sends a window probe; its answer acknowledges everything received.
      sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR, sock.TCP_REPAIR_OFF);
    } catch {
      // No capability (such a proxy cannot capture either): the hold waits for the timer.
    }
  },
  unreadBytes: (fd: number) => descriptor.ioctlInt(fd, sock.SIOCINQ),
  isClosed: (fd: number) => readState(fd) === "CLOSE",
};

/** A TCP socket with that address; `beforeBind` sets what has to be set by then. @throws HoldfastError with the errno name as code */
export function bound(
  to: Endpoint,
  beforeBind: (fd: number) => void = () => {},
  network: Network = OWN_NETWORK,
): number {
  const fd = tcpSocketOf(network, familyOf(to));
  try {
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_REUSEADDR, 1);
    beforeBind(fd);
    sock.bind(fd, to);
    return fd;
  } catch (error) {
    descriptor.close(fd);
    throw error;
  }
}

function familyOf({ address }: Endpoint): 4 | 6 {
  return isIPv6(address) ? 6 : 4;
}

/**
 * What may wait in the kernel for whoever does not read: the bytes pile up at their sender instead, where it can see them, and a
 * move has less to carry. All four are needed: each without the others moves the pile to the next (33 MB were seen on one leg), as
 * queues grow by themselves, to tcp_wmem and tcp_rmem. The kernel doubles SO_RCVBUF for its own bookkeeping. A client's leg may have
 * more, since its round trip is longer: what waits there is also the most that a client can have on its way to us.
 */
const QUEUES = {
  application: { unsentBytes: 1024 * 1024, unreadBytes: 512 * 1024 },
  client: { unsentBytes: 128 * 1024, unreadBytes: 4096 * 1024 },
};

/**
 * Of a leg before it is connected (the first window counts), a listener for all that it accepts, or a leg built anew.
 * @param promised what its peer was told that it may send, with what is unread before it; 0: nothing yet
 */
export function boundQueues(fd: number, side: "application" | "client", promised: number): void {
  const { unsentBytes, unreadBytes } = QUEUES[side];
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT, unsentBytes);
  // half: what was promised fitted into twice what was asked for, and each move would double it
  const bytes = Math.max(unreadBytes, Math.ceil(promised / 2));
  // without CAP_NET_ADMIN net.core.rmem_max bounds it: less is no harm
  if (!sock.trySetsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUFFORCE, bytes, "EPERM"))
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUF, bytes);
}

/**
 * When the peer counts as gone, for a connection or all that a listener accepts. With a user timeout the kernel counts no probes:
 * the connection ends with the first unanswered one after it (net/ipv4/tcp_timer.c, tcp_keepalive_timer()).
 */
export function setPeerTimeouts(
  fd: number,
  { keepAliveMs, userTimeoutMs }: { keepAliveMs: number; userTimeoutMs: number },
): void {
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_USER_TIMEOUT, Math.ceil(userTimeoutMs));
  sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_KEEPALIVE, keepAliveMs > 0 ? 1 : 0);
  if (keepAliveMs === 0) return;
  const seconds = Math.ceil(keepAliveMs / 1000);
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_KEEPIDLE, seconds);
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_KEEPINTVL, seconds);
}
