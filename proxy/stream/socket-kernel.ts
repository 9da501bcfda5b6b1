/** The system calls a stream needs on a descriptor it owns; `proxy/tcp` provides them, the composition root joins both. */
import type { Endpoint } from "#proxy/contract/snapshot.ts";

/** Bits of `onReady`, as epoll(7) has them (include/uapi/linux/eventpoll.h). */
export const READY = {
  /** something to read, or to accept */
  in: 0x001,
  /** urgent data: a read stops before it, though more follows */
  urgent: 0x002,
  /** room to write again, or connected */
  out: 0x004,
  error: 0x008,
  hangUp: 0x010,
  /** the peer's FIN */
  fin: 0x2000,
} as const;

/** Who is at the other end of a leg. */
export type LegSide = "application" | "client";

export interface Watcher {
  /** {@link READY}: each change is told once; 0: it had asked with `soon`. */
  onReady(events: number): void;
  /** `onReady` has thrown. */
  onBroken(error: unknown): void;
}

export interface SocketKernel {
  /** From now on changes of the descriptor are told; those from before with the first. Never from within a call. */
  watch(fd: number, watcher: Watcher): void;
  /** Before the descriptor is closed or given away. */
  unwatch(fd: number): void;
  /** `onReady(0)` when others had their turn. */
  soon(watcher: Watcher): void;

  /** connect(2), without waiting: it is connected, or has failed, when it is ready. @returns the descriptor; -errno */
  dial(to: Endpoint): number;
  /** A socket that listens. @throws HoldfastError with the errno name as code */
  listen(on: Endpoint | { fd: number }, backlog: number): number;
  /** A connection; -errno where there is none. */
  accept(fd: number): number;
  /** SO_ERROR: how a `dial` ended; 0: it is connected. */
  socketError(fd: number): number;
  /** TCP_NODELAY. */
  setNoDelay(fd: number): void;
  localPort(fd: number): number;
  /** "address:port"; "" once the connection is gone. */
  peerOf(fd: number): string;
  /** recv(2), what is there; 0 at the end of the stream; -errno where nothing is read. */
  recv(fd: number, into: Buffer): number;
  /** send(2), at once and in part: the number of bytes taken; -errno where none is. */
  send(fd: number, bytes: Buffer): number;
  /** EAGAIN and shortages: it may go on when the descriptor is ready again. */
  isTemporary(errno: number): boolean;
  errnoName(errno: number): string;
  close(fd: number): void;
  /** The number the next descriptor of this process will have; -errno: there is none. */
  lowestFreeDescriptor(): number;
  /** Descriptors this process may have now: the numbers below. */
  descriptorsMax(): number;
  /** close(2) with RST. */
  reset(fd: number): void;
  /** shutdown(2) with SHUT_WR; false when the kernel refused (the peer has reset the connection). */
  shutdownWrite(fd: number): boolean;
  /** SIOCOUTQ: bytes (FIN included) the peer has not acknowledged. */
  unackedBytes(fd: number): number;
  /** Makes the peer acknowledge at once what it has, instead of when its delayed-ACK timer says (40 ms). */
  nudge(fd: number): void;
  /** SIOCINQ: bytes that can be read now. */
  unreadBytes(fd: number): number;
  /** tcpi_state says CLOSE: reset, or both FINs exchanged and acknowledged. */
  isClosed(fd: number): boolean;
  /** Lets more wait in the kernel that was not read yet, up to a bound of its side. @returns how much, in bytes */
  growUnread(fd: number, side: LegSide): number;
  /** No more than a leg begins with waits from now on; what waits already is to be read. @returns how much that is, in bytes */
  shortenUnread(fd: number, side: LegSide): number;
  /** As `growUnread`, that was not sent yet */
  growUnsent(fd: number, side: LegSide): number;
}
