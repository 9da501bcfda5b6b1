/**
 * A TCP connection on this node as an {@link End}, of which it is known at every instant which bytes are in user space.
 *
 * This is the only file that touches the parts of `net` that are not documented (the handle, and starting paused):
 *  - reads go into one buffer (`onread`) that all legs share, so a pause is a readStop at once, nothing hides in stream
 *    buffers, and a leg at rest has none. It is free again when `onData` returns: sinks pass on or copy;
 *  - a chunk goes to the kernel with send(2), past the machinery of streams (a quarter of its cost); only what the kernel
 *    does not take is copied and left to Node. So the handle's `writeQueueSize` is exactly what is in user space;
 *  - the FIN is sent with shutdown(2) past Node, because a stream whose two sides have ended closes its descriptor,
 *    and a connection closed with bytes still unacknowledged is an orphan that nobody can capture any more.
 */
import net from "node:net";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { End, EndListener } from "./end.ts";
import type { SocketKernel } from "./socket-kernel.ts";

const READ_BYTES = 256 * 1024;
const NO_BYTES: Buffer = Buffer.alloc(0);
const READ_BUFFER: Buffer = Buffer.allocUnsafeSlow(READ_BYTES);

/** libuv's TCP handle as `net` holds it. */
export interface TcpHandle {
  readonly fd: number;
  readonly writeQueueSize: number;
  getpeername(out: { address?: string; port?: number }): number;
  close(): void;
}

export interface Detached {
  fd: number;
  /** written to this leg, not yet in the kernel */
  pending: Buffer;
}

interface LegSocketOptions {
  handle?: TcpHandle;
  fd?: number;
}

export class TcpLeg implements End {
  listener: EndListener | null = null;
  readonly reusesBuffer = true;
  readonly keepsChunk = false;
  readonly #kernel: SocketKernel;
  readonly #socket: net.Socket;
  #outstanding: Buffer | null = null;
  #reading = false;
  #over = false;

  private constructor(
    kernel: SocketKernel,
    open: (onread: net.OnReadOpts) => net.Socket,
    onConnectError?: (code: string) => void,
  ) {
    this.#kernel = kernel;
    const socket = open({
      buffer: READ_BUFFER,
      callback: (bytes: number, buffer: Uint8Array): boolean => {
        if (!this.#over) this.listener?.onData((buffer as Buffer).subarray(0, bytes));
        return true;
      },
    });
    this.#socket = socket;
    socket.pause();
    socket.setNoDelay(true);
    socket.on("end", () => {
      if (!this.#over) this.listener?.onFin();
    });
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (this.#over) return;
      this.#over = true;
      const code = error.code ?? error.message;
      if (onConnectError !== undefined && !this.#connected) onConnectError(code);
      else this.listener?.onReset(code);
    });
  }

  #connected = true;

  /** A connection the listener just accepted, or a descriptor from `detach` or an adoption. Not reading yet. */
  static attach(kernel: SocketKernel, from: TcpHandle | number): TcpLeg {
    const source: LegSocketOptions = typeof from === "number" ? { fd: from } : { handle: from };
    const options = { ...source, allowHalfOpen: true, pauseOnCreate: true };
    return new TcpLeg(
      kernel,
      (onread) => new net.Socket({ ...options, onread } as unknown as net.SocketConstructorOpts),
    );
  }

  /** Not reading yet. Exactly one of the callbacks is called, unless the leg is closed first. */
  static dial(
    kernel: SocketKernel,
    to: Endpoint,
    callbacks: { onConnect(): void; onError(code: string): void },
  ): TcpLeg {
    const leg: TcpLeg = new TcpLeg(
      kernel,
      (onread) => net.connect({ host: to.address, port: to.port, allowHalfOpen: true, onread }),
      callbacks.onError,
    );
    leg.#connected = false;
    leg.#socket.once("connect", () => {
      leg.#connected = true;
      if (!leg.#over) callbacks.onConnect();
    });
    return leg;
  }

  get #handle(): TcpHandle | null {
    return (this.#socket as unknown as { _handle: TcpHandle | null })._handle;
  }

  /** False once closed, reset or detached. */
  get isOpen(): boolean {
    return !this.#over && this.#handle !== null;
  }

  get peer(): string {
    const { remoteAddress, remotePort, remoteFamily } = this.#socket;
    if (remoteAddress === undefined) return "";
    return remoteFamily === "IPv6" ? `[${remoteAddress}]:${remotePort}` : `${remoteAddress}:${remotePort}`;
  }

  unackedBytes(): number {
    const handle = this.#handle;
    return handle === null ? 0 : this.#kernel.unackedBytes(handle.fd);
  }

  nudge(): void {
    const handle = this.#handle;
    if (handle !== null) this.#kernel.nudge(handle.fd);
  }

  unreadBytes(): number {
    const handle = this.#handle;
    return handle === null ? 0 : this.#kernel.unreadBytes(handle.fd);
  }

  /** Reset by the peer, or closed on both sides with everything acknowledged. */
  isClosedInKernel(): boolean {
    const handle = this.#handle;
    return handle === null || this.#kernel.isClosed(handle.fd);
  }

  write(chunk: Buffer): boolean {
    const handle = this.#handle;
    if (handle === null || this.#over) return true;
    const sent = this.#kernel.send(handle.fd, chunk);
    if (sent === chunk.length) return true;
    const rest = Buffer.from(chunk.subarray(sent));
    this.#socket.write(rest, this.#onWritten);
    if (this.#socket.writableLength === 0) return true;
    this.#outstanding = rest;
    return false;
  }

  readonly #onWritten = (): void => {
    if (this.#outstanding === null || this.#over || this.#socket.writableLength > 0) return;
    this.#outstanding = null;
    this.listener?.onDrain();
  };

  finish(): void {
    const handle = this.#handle;
    // Refused: the peer has reset the connection, which the next read reports.
    if (handle !== null && !this.#over) this.#kernel.shutdownWrite(handle.fd);
  }

  reset(): void {
    if (this.#over) return;
    this.#over = true;
    if (this.#connected) this.#socket.resetAndDestroy();
    else this.#socket.destroy();
  }

  /** Orderly: what the kernel still has to send is sent. */
  close(): void {
    if (this.#over) return;
    this.#over = true;
    this.#socket.destroy();
  }

  pauseReading(): void {
    if (!this.#reading || this.#over) return;
    this.#reading = false;
    this.#socket.pause();
  }

  resumeReading(): void {
    if (this.#reading || this.#over) return;
    this.#reading = true;
    this.#socket.resume();
  }

  consumed(_bytes: number): void {}

  /** Takes the connection out of Node: nothing is sent, read or closed, and the caller owns the descriptor. */
  detach(): Detached {
    const handle = this.#handle;
    if (handle === null || this.#over) return { fd: -1, pending: NO_BYTES };
    this.#over = true;
    const fd = this.#kernel.dup(handle.fd);
    if (this.#outstanding === null) {
      // Neither reading nor writing, it is as good as gone: tearing it down can wait until the cutover's step is over.
      this.#socket.pause();
      setImmediate(() => this.#socket.destroy());
      return { fd, pending: NO_BYTES };
    }
    const { length } = this.#outstanding;
    const pending = this.#outstanding.subarray(length - handle.writeQueueSize);
    this.#outstanding = null;
    this.#socket.destroy();
    return { fd, pending };
  }
}
