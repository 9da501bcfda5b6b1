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

/** who is at the other end of a leg */
type LegSide = "application" | "client";

const epoll = new Epoll();

export const sockets = {
  watch: epoll.watch.bind(epoll),
  unwatch: epoll.unwatch.bind(epoll),
  soon: epoll.soon.bind(epoll),

  dial(to: Endpoint, network: Network = OWN_NETWORK): number {
    const fd = network.tryTcpSocket(familyOf(to));
    if (fd < 0) return fd;
    const errno = sock.tryConnect(fd, to);
    if (errno === 0) {
      // after the SYN: its window scale is for what the buffer may become
      boundQueues(fd, "application");
      return fd;
    }
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
  growUnread,
  growUnsent,
  shortenUnread,
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
 * queues grow by themselves, to tcp_wmem and tcp_rmem: their own growth asks only what was read, and overshoots by megabytes.
 * So a bound grows only while bytes pass fast (`Flow`). A client's leg may have more unread from the start: its round trip is longer,
 * and what waits there is also the most that a client can have on its way to us.
 *
 * unsent: TCP_NOTSENT_LOWAT. unread: SO_RCVBUF as the kernel keeps it, doubled for its own bookkeeping, which large segments hardly use.
 * There is room for two segments of a loopback connection, 64 kB each, and has to be: a window that is opened again is told when it has
 * doubled (tcp_cleanup_rbuf() in net/ipv4/tcp.c), and a sender waits for a whole segment's. With less a leg crawled after a move.
 * Smaller segments (TCP_MAXSEG), which would do with less, cost a fifth of a connection's throughput, and so do shorter maxima.
 */
const QUEUES = {
  application: {
    unsentBytes: 64 * 1024,
    unsentBytesMax: 2048 * 1024,
    unreadBytes: 160 * 1024,
    unreadBytesMax: 4096 * 1024,
  },
  client: {
    unsentBytes: 16 * 1024,
    unsentBytesMax: 2048 * 1024,
    unreadBytes: 8192 * 1024,
    unreadBytesMax: 8192 * 1024,
  },
} satisfies Record<LegSide, unknown>;

/** Of a leg just dialled, or a listener for all that it accepts. */
export function boundQueues(fd: number, side: LegSide): void {
  boundUnsent(fd, side);
  boundUnread(fd, side, 0);
}

/** Of a leg built anew, when it has taken what was unsent. */
export function boundUnsent(fd: number, side: LegSide): void {
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT, QUEUES[side].unsentBytes);
}

/**
 * Of a leg built anew, before it speaks: as soon as it does, its peer fills whatever room there is.
 * @param promised what its peer was told that it may send, with what is unread before it; 0: no more than a fresh socket says
 */
export function boundUnread(fd: number, side: LegSide, promised: number): void {
  // not more than was promised, or each move would add to it
  setUnread(fd, Math.max(QUEUES[side].unreadBytes, promised));
}

function setUnread(fd: number, bytes: number): void {
  const half = Math.ceil(bytes / 2);
  // without CAP_NET_ADMIN net.core.rmem_max bounds it: less is no harm
  if (!sock.trySetsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUFFORCE, half, "EPERM"))
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUF, half);
  // or the window stays within what the buffer was when it was connected (tcp_init_buffer_space() in net/ipv4/tcp_input.c)
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_WINDOW_CLAMP, bytes);
}

function growUnread(fd: number, side: LegSide): number {
  const bytes = sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUF);
  const more = Math.min(bytes * 2, QUEUES[side].unreadBytesMax);
  if (more <= bytes) return bytes;
  setUnread(fd, more);
  return more;
}

function shortenUnread(fd: number, side: LegSide): number {
  const { unreadBytes } = QUEUES[side];
  setUnread(fd, unreadBytes);
  return unreadBytes;
}

function growUnsent(fd: number, side: LegSide): number {
  const bytes = sock.getsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT);
  const more = Math.min(bytes * 2, QUEUES[side].unsentBytesMax);
  if (more <= bytes) return bytes;
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT, more);
  return more;
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
