/** The system calls the relay needs on a descriptor it owns; `proxy/tcp` provides them, the composition root joins both. */
export interface SocketKernel {
  /** A second descriptor of the same socket, close-on-exec. */
  dup(fd: number): number;
  /** send(2), at once and in part: the number of bytes taken; 0 also when the connection is gone, which a write will tell. */
  send(fd: number, bytes: Buffer): number;
  close(fd: number): void;
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
}
