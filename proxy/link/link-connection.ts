/**
 * The connection that carries a link at a time, and frames on it, the greeting's included: a socket of its own and TLS around it, or a
 * channel of a trunk (`trunk.ts`). What the frames mean is its sink's business, which may change in between (a link that goes on takes
 * over a connection that was greeted for it).
 */
import net from "node:net";
import type { TLSSocket } from "node:tls";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { CONTROL_BYTES_MAX, FRAME, FrameDecoder, type FrameType, frameHeader } from "./link-codec.ts";
import { acceptTls, dialTls, SECURE_FRAME } from "./link-tls.ts";

const AUTHENTICATE_MS_MAX = 5_000;
/** what an honest greeting stays below */
const WAITING_BYTES_MAX = 4 * 1024 * 1024;
const GREETING_BYTES_MAX = 4 * CONTROL_BYTES_MAX;
/** after our last frame: how long the peer may take to close too */
const CLOSE_MS_MAX = 5_000;
/** TLS never writes at once, though the kernel has room: waiting for each chunk would cost a turn of the event loop each */
const TLS_QUEUED_BYTES_MAX = 64 * 1024;
const KEEP_ALIVE_MS = 5_000;
const NO_BYTES: Buffer = Buffer.alloc(0);

/** refused: nobody listens there. fault: it sent what is no frame */
export type Gone = "refused" | "fault" | "broken";

export interface ConnectionSink {
  /** @param channel 0 where frames have none */
  onData(part: Buffer, channel: number): void;
  onFrame(type: FrameType, payload: Buffer, channel: number): void;
  /** Room again, perhaps. */
  onWritten(): void;
  /** It is destroyed; nothing follows. */
  onGone(why: Gone): void;
  /** One of the above has thrown. */
  onThrown(error: unknown): void;
}

export interface LinkConnection {
  sink: ConnectionSink;
  /** It rises whenever the other end gets on with the greeting, TLS included, and later whenever anything has come from it. */
  readonly progress: number;
  /** -1: there is none, or Node does not say */
  readonly fd: number;
  readonly isOpen: boolean;
  /** Other links may be on the same socket. */
  readonly isShared: boolean;
  /** More waits to be written than may wait. */
  readonly isFull: boolean;
  /** Dialler: everything from here on is under TLS. @param onSecure the acceptor has proven that it has the key */
  secure(key: Buffer, onSecure: () => void): void;
  /** The greeting is over; it may take as long as it likes now. */
  greeted(): void;
  /** @param frame one, whole */
  write(frame: Buffer): void;
  writeData(part: Buffer): void;
  /** Resolves when what was written has been given to the kernel, or the connection is no more. */
  flushed(): Promise<void>;
  /** It seems to be dead: no other link is to be led over what carries it. */
  doubt(): void;
  /** What was written is still delivered. Its sink is not called any more. */
  end(): void;
  /** Its sink is not called any more. */
  destroy(): void;
}

/** Of what is over: nothing that still comes is anybody's. */
export const NOBODY: ConnectionSink = {
  onData: () => {},
  onFrame: () => {},
  onWritten: () => {},
  onGone: () => {},
  onThrown: () => {},
};

interface FirstBytes {
  bytes: Buffer;
  startTls(socket: net.Socket, rest: Buffer): TLSSocket;
}

export class SocketConnection implements LinkConnection {
  sink: ConnectionSink;
  readonly isShared = false;
  readonly #plain: net.Socket;
  /** the same, or TLS around it */
  #socket: net.Socket | TLSSocket;
  #decoder: FrameDecoder;
  #timer: NodeJS.Timeout | null;
  #greetingBytes = 0;
  /** acceptor: not null until it is known whether TLS begins */
  #first: FirstBytes | null = null;
  #queuedBytesMax = 0;
  #isOver = false;

  private constructor(socket: net.Socket, sink: ConnectionSink) {
    this.#plain = socket;
    this.#socket = socket;
    this.sink = sink;
    this.#decoder = this.#newDecoder();
    this.#timer = setTimeout(() => this.#gone("broken"), AUTHENTICATE_MS_MAX);
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    this.#listenTo(socket);
  }

  /** @param tls null: in the clear, whatever the other end can */
  static accept(
    socket: net.Socket,
    sink: ConnectionSink,
    tls: { keys: SharedKeys; onUnknownKey(id: string): void } | null,
  ): SocketConnection {
    const connection = new SocketConnection(socket, sink);
    if (tls !== null)
      connection.#first = {
        bytes: NO_BYTES,
        startTls: (plain, rest) => acceptTls(plain, tls.keys, rest, tls.onUnknownKey),
      };
    return connection;
  }

  static dial(to: Endpoint, sink: ConnectionSink): SocketConnection {
    return new SocketConnection(net.connect({ host: to.address, port: to.port }), sink);
  }

  secure(key: Buffer, onSecure: () => void): void {
    this.#socket.write(SECURE_FRAME);
    this.#goOnIn((plain) => dialTls(plain, key, () => this.#guard(onSecure)));
  }

  get progress(): number {
    return this.#socket.bytesRead + (this.#socket.connecting ? 0 : 1);
  }
  get fd(): number {
    const { _handle: handle } = this.#plain as { _handle?: { fd?: number } | null };
    return handle?.fd ?? -1;
  }
  get isOpen(): boolean {
    return !this.#isOver;
  }
  get isFull(): boolean {
    return this.#socket.writableLength > this.#queuedBytesMax;
  }
  get queuedBytes(): number {
    return this.#socket.writableLength;
  }

  /** From here on a channel stands in front of each frame, in both directions. */
  carryChannels(): void {
    this.#decoder.stop();
    this.#decoder = this.#newDecoder(true);
  }

  greeted(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  write(bytes: Buffer): void {
    // what waits for room may wait for these too
    if (this.#isOver || !this.#socket.writable) return;
    this.#socket.write(bytes, this.#onWritten);
    // bytes of sessions are bounded by credit: only a peer that asks on and on, and reads nothing, comes to this
    if (this.#socket.writableLength > WAITING_BYTES_MAX) setImmediate(() => this.#gone("fault"));
  }

  /** In one piece. Its sink hears of it once (`onWritten`). */
  writeAll(parts: readonly Buffer[]): void {
    if (this.#isOver || !this.#socket.writable) return;
    this.#socket.cork();
    for (const [index, part] of parts.entries()) {
      if (index === parts.length - 1) this.#socket.write(part, this.#onWritten);
      else this.#socket.write(part);
    }
    this.#socket.uncork();
  }

  writeData(part: Buffer): void {
    if (this.#isOver) return;
    this.#socket.cork();
    this.#socket.write(frameHeader(FRAME.data, part.length));
    this.#socket.write(part, this.#onWritten);
    this.#socket.uncork();
  }

  async flushed(): Promise<void> {
    const socket = this.#socket;
    if (socket.writableEnded && !socket.writableFinished && !socket.destroyed) {
      const { promise, resolve } = Promise.withResolvers<void>();
      socket.once("finish", resolve).once("close", resolve);
      await promise;
    }
    if (socket.writableLength === 0 || !socket.writable) return;
    await new Promise<void>((resolve) => {
      socket.once("close", resolve);
      socket.write(NO_BYTES, () => {
        socket.off("close", resolve);
        resolve();
      });
    });
  }

  doubt(): void {}

  end(): void {
    if (this.#isOver) return;
    this.#stop();
    this.#socket.end();
    const timer = setTimeout(() => this.#socket.destroy(), CLOSE_MS_MAX);
    timer.unref();
    this.#socket.once("close", () => clearTimeout(timer));
  }

  destroy(): void {
    if (!this.#isOver) this.#stop();
    this.#socket.destroy();
  }

  #stop(): void {
    this.#isOver = true;
    this.greeted();
    this.#decoder.stop();
  }

  #newDecoder(hasChannels = false): FrameDecoder {
    return new FrameDecoder(
      {
        onData: (part, channel) => this.sink.onData(part, channel),
        onControl: (type, payload, channel) => this.sink.onFrame(type, payload, channel),
      },
      hasChannels,
    );
  }

  #listenTo(socket: net.Socket | TLSSocket): void {
    socket.on("data", this.#onBytes);
    socket.on("error", this.#onError);
    socket.on("end", this.#onClose);
    socket.on("close", this.#onClose);
  }

  readonly #onClose = (): void => this.#gone("broken");
  readonly #onError = (error: NodeJS.ErrnoException): void =>
    this.#gone(error.code === "ECONNREFUSED" ? "refused" : "broken");
  readonly #onWritten = (): void => {
    if (!this.#isOver) this.#guard(() => this.sink.onWritten());
  };

  readonly #onBytes = (chunk: Buffer): void => {
    if (this.#isOver) return;
    this.#guard(() => {
      const isGreeting = this.#timer !== null;
      if (isGreeting) this.#greetingBytes += chunk.length;
      const frames = this.#first === null ? chunk : this.#beyondFirst(this.#first, chunk);
      if (frames === null) return;
      if (!this.#decoder.feed(frames)) this.#gone("fault");
      // looked at afterwards: the end of a greeting may bring the first bytes of the session along
      else if (this.#timer !== null && this.#greetingBytes > GREETING_BYTES_MAX) this.#gone("fault");
    });
  };

  #gone(why: Gone): void {
    if (this.#isOver) return;
    this.#stop();
    this.#socket.destroy();
    this.#guard(() => this.sink.onGone(why));
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.sink.onThrown(error);
    }
  }

  /** Acceptor: the first bytes say whether TLS begins. @returns what belongs to frames; null: nothing yet, or not in the clear */
  #beyondFirst({ bytes, startTls }: FirstBytes, chunk: Buffer): Buffer | null {
    const all = Buffer.concat([bytes, chunk]);
    if (all.length < SECURE_FRAME.length) {
      this.#first = { bytes: all, startTls };
      return null;
    }
    this.#first = null;
    if (!all.subarray(0, SECURE_FRAME.length).equals(SECURE_FRAME)) return all;
    this.#goOnIn((socket) => startTls(socket, all.subarray(SECURE_FRAME.length)));
    return null;
  }

  /** Whatever else has come in the clear counts for nothing: frames are read of `stream` alone from now on. */
  #goOnIn(start: (socket: net.Socket) => TLSSocket): void {
    const plain = this.#plain;
    plain.off("data", this.#onBytes);
    this.#decoder.stop();
    this.#decoder = this.#newDecoder();
    this.#socket = start(plain);
    this.#queuedBytesMax = TLS_QUEUED_BYTES_MAX;
    this.#listenTo(this.#socket);
  }
}
