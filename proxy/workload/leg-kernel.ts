/** What a cutover needs of the kernel beside a `LegSurgeon`: plain work on sockets. The composition root provides it. */
import type { Side } from "#proxy/contract/leg-surgeon.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { LegSide, SocketKernel } from "#proxy/stream/socket-kernel.ts";

/** When a peer counts as gone; of a socket that listens, for all it accepts. 0: see `PortConfig` */
export interface PeerTimeouts {
  keepAliveMs: number;
  userTimeoutMs: number;
}

/** `dial` is to the application. */
export interface LegKernel extends SocketKernel {
  /** The address of our end. */
  localOf(fd: number): Endpoint;
  /** SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_USER_TIMEOUT (tcp(7)). */
  setPeerTimeouts(fd: number, timeouts: PeerTimeouts): void;
  /** Bounds what waits in the kernel on all that a listener accepts. A dialled leg has it. */
  boundQueues(fd: number, side: LegSide): void;
  /** … unread, on a leg built anew, before it speaks */
  boundUnread(fd: number, side: LegSide, promised: number): void;
  /** … unsent, when it has taken what was */
  boundUnsent(fd: number, side: LegSide): void;
  /** An acknowledgement that is only delayed goes out now. */
  acknowledge(fd: number): void;
  shieldListener(fd: number): void;
  unshieldListener(fd: number): void;
  /**
   * A socket bound to an address that need not be on this node yet, with handshakes refused silently.
   * @param side upstream: where the application is @throws HoldfastError with the errno name as code
   */
  bindShielded(endpoint: Endpoint, side: Side): number;
  /** As {@link bindShielded}, and not shielded. */
  bindFree(endpoint: Endpoint): number;
  /** A socket bound to an address where the application is. @throws HoldfastError with the errno name as code */
  bindUpstream(endpoint: Endpoint): number;
  /** The inode of the socket that listens there, where the application is; 0: none does; -1: several do. */
  listenerOf(endpoint: Endpoint): number;
  /** Somebody listens there, where the application is. */
  isListening(endpoint: Endpoint): boolean;
  /** Connections that wait to be accepted: by the application, or (downstream) by ourselves. */
  listenBacklog(endpoint: Endpoint, side: Side): number | Promise<number>;
  /** Gives [from, to) of a file, in whole blocks, back to its disk; false: the file system cannot. @throws HoldfastError with the errno name as code */
  punchHole(fd: number, from: number, to: number): boolean;
  /** Handshakes under way on a local port. */
  countSynRecv(port: number): number | Promise<number>;
}
