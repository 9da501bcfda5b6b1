/**
 * A TCP connection on this node as an {@link Leg}, of which it is known at every instant which bytes are in user space.
 *
 * A descriptor and a few words, nothing of Node's streams: an idle session costs little, a chunk costs a recv(2) and a
 * send(2), and to take a connection away for a move is to stop using its descriptor.
 *  - Reads go into one buffer that all legs share, so a leg at rest has none. It is free again when `onData` returns: sinks
 *    pass on or copy.
 *  - What the kernel does not take of a chunk is copied and kept here until there is room: the only bytes in user space.
 *  - Readiness is told edge by edge (see `Watcher`): `#mayRead` says that an edge has not been read to its end yet.
 *  - The FIN is sent with shutdown(2); the descriptor stays, because a connection closed with bytes still
 *    unacknowledged is an orphan that nobody can capture any more.
 */
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { FIRST_BYTES, Flow } from "./flow.ts";
import type { Leg, LegListener } from "./leg.ts";
import { type LegSide, READY, type SocketKernel, type Watcher } from "./socket-kernel.ts";

const READ_BYTES = 256 * 1024;
/** … of a leg that is not fast: what its sink does not take waits in user space, and a move carries it */
const SLOW_READ_BYTES = 64 * 1024;
/** … of a leg that has hardly been used yet */
const FIRST_READ_BYTES = 16 * 1024;
/** what passes on a leg that was shortened before it is looked at again: more than there is until a hold */
const LONG_BYTES = 128 * 1024 * 1024;
/** reads of a leg in one turn before others have theirs */
const READS_MAX = 4;
const NO_BYTES: Buffer = Buffer.alloc(0);
const READ_BUFFER: Buffer = Buffer.allocUnsafeSlow(READ_BYTES);
const SLOW_READ_BUFFER: Buffer = READ_BUFFER.subarray(0, SLOW_READ_BYTES);
const FIRST_READ_BUFFER: Buffer = READ_BUFFER.subarray(0, FIRST_READ_BYTES);

const GONE = READY.error | READY.hangUp;
/** A read that finds less than it has room for is not the end of it. */
const MORE_FOLLOWS = GONE | READY.fin | READY.urgent;

export interface Detached {
  fd: number;
  /** written to this leg, not yet in the kernel */
  pending: Buffer;
}

interface DialCallbacks {
  onConnect(): void;
  onError(code: string): void;
  /** One of the above has thrown. The leg is gone. */
  onBroken(error: unknown): void;
}

export class TcpLeg implements Leg, Watcher {
  listener: LegListener | null = null;
  readonly reusesBuffer = true;
  readonly keepsChunk = false;
  readonly #kernel: SocketKernel;
  /** -1: closed, reset or detached */
  #fd: number;
  /** until it is connected */
  #dialling: DialCallbacks | null = null;
  /** what a chunk still had when the kernel took no more; kept when the leg has gone: the peer may have read the rest of the chunk */
  #outstanding: Buffer | null = null;
  /** name of the errno that ends this leg, when what the peer had said before is read; "": none */
  #failure = "";
  /** has asked for a turn and not had it yet */
  #isQueued = false;
  #isPeerGone = false;
  #reading = false;
  #mayRead = false;
  #moreFollows = false;
  #ended = false;
  readonly #side: LegSide | null;
  #readInto = FIRST_READ_BUFFER;
  /** of {@link FIRST_BYTES} what has not passed yet; then there is a flow: an idle leg needs none */
  #in: Flow | number = FIRST_BYTES;
  #out: Flow | number = FIRST_BYTES;

  private constructor(kernel: SocketKernel, fd: number, side: LegSide | null) {
    this.#kernel = kernel;
    this.#fd = fd;
    this.#side = side;
    if (side === null) this.#readInto = READ_BUFFER;
    if (fd < 0) return;
    try {
      kernel.setNoDelay(fd);
      kernel.watch(fd, this);
    } catch (error) {
      // ENOSPC: fs.epoll.max_user_watches; ENOMEM
      this.#failSoon((error as NodeJS.ErrnoException).code ?? String(error));
    }
  }

  /**
   * A connection just accepted, or a descriptor from `detach` or an adoption. Not reading yet.
   * @param side null: its queues stay as they are, and it is read like a fast one
   */
  static attach(kernel: SocketKernel, fd: number, side: LegSide | null = null): TcpLeg {
    return new TcpLeg(kernel, fd, side);
  }

  /** Not reading yet. Exactly one of the callbacks is called, and later, unless the leg is closed first. */
  static dial(kernel: SocketKernel, to: Endpoint, callbacks: DialCallbacks): TcpLeg {
    const fd = kernel.dial(to);
    const leg = new TcpLeg(kernel, fd, "application");
    leg.#dialling = callbacks;
    if (fd < 0) leg.#failSoon(kernel.errnoName(-fd));
    return leg;
  }

  /**
   * False once closed, reset or detached, and when it is about to be reported as reset: a write has taken the error from the
   * kernel, so whoever took the descriptor now would see an orderly end.
   */
  get isOpen(): boolean {
    return this.#fd >= 0 && this.#failure === "";
  }

  get outstandingBytes(): number {
    return this.#outstanding?.length ?? 0;
  }

  /** -1 once it is closed, reset or detached. Not to be kept. */
  get fd(): number {
    return this.#fd;
  }

  get peer(): string {
    return this.#fd < 0 ? "" : this.#kernel.peerOf(this.#fd);
  }

  unackedBytes(): number {
    return this.#fd < 0 ? 0 : this.#kernel.unackedBytes(this.#fd);
  }

  nudge(): void {
    if (this.#fd >= 0) this.#kernel.nudge(this.#fd);
  }

  unreadBytes(): number {
    return this.#fd < 0 ? 0 : this.#kernel.unreadBytes(this.#fd);
  }

  /** Reset by the peer, or closed on both sides with everything acknowledged. */
  isClosedInKernel(): boolean {
    return this.#fd < 0 || this.#kernel.isClosed(this.#fd);
  }

  onReady(events: number): void {
    if (events === 0) this.#isQueued = false;
    // told once, and by then there may be more to read than one turn takes
    if ((events & GONE) !== 0) this.#isPeerGone = true;
    if (this.#fd < 0) {
      if (this.#failure !== "") this.#fail();
      return;
    }
    if (this.#dialling !== null && (events & (READY.out | GONE)) !== 0) this.#dialled();
    if ((events & (READY.in | MORE_FOLLOWS)) !== 0) {
      this.#mayRead = true;
      if ((events & MORE_FOLLOWS) !== 0) this.#moreFollows = true;
    }
    if (this.#mayRead) this.#read();
    if (this.#fd < 0) return;
    const readsOn = this.#mayRead && this.#reading;
    if (this.#failure !== "") {
      if (!readsOn) this.#fail();
    } else if (this.#outstanding !== null) {
      // Of a peer that has gone, what it had said before comes first: a refusal, with the request still being sent.
      if (this.#isPeerGone ? !readsOn : (events & READY.out) !== 0) this.#sendRest();
    } else if (this.#isPeerGone && this.#ended) this.listener?.onGone?.();
  }

  /**
   * Tells of a reset behind the peer's FIN, or of a peer that was silent for too long: no read does, and an orderly end leaves no SO_ERROR.
   * Whoever has nothing left to pass on of what that peer said asks for it.
   */
  endIfReset(): void {
    if (!this.isOpen || !this.#ended || !this.#isPeerGone || !this.#kernel.isClosed(this.#fd)) return;
    const errno = this.#kernel.socketError(this.#fd);
    if (errno !== 0) this.#fail(errno);
  }

  #dialled(): void {
    const callbacks = this.#dialling as DialCallbacks;
    const errno = this.#kernel.socketError(this.#fd);
    if (errno !== 0) {
      this.#fail(errno);
      return;
    }
    this.#dialling = null;
    try {
      callbacks.onConnect();
    } catch (error) {
      this.reset();
      callbacks.onBroken(error);
    }
  }

  onBroken(error: unknown): void {
    const { listener } = this;
    const dialling = this.#dialling;
    this.reset();
    if (dialling === null) listener?.onBroken(error);
    else dialling.onBroken(error);
  }

  #read(): void {
    for (let reads = 0; this.#reading; reads++) {
      if (reads === READS_MAX) {
        this.#queue();
        return;
      }
      const into = this.#readInto;
      const bytes = this.#kernel.recv(this.#fd, into);
      if (bytes > 0) {
        // Less than there is room for: all there was, and an edge comes with the next byte.
        if (bytes < into.length && !this.#moreFollows) this.#mayRead = false;
        if (this.#side !== null) this.#passedIn(bytes, this.#side);
        this.listener?.onData(READ_BUFFER.subarray(0, bytes));
        if (!this.#mayRead) return;
        continue;
      }
      this.#mayRead = false;
      if (this.#failure !== "") return;
      if (bytes === 0) {
        this.#ended = true;
        this.#reading = false;
        this.listener?.onFin();
      } else if (this.#kernel.isTemporary(-bytes)) this.#moreFollows = false;
      else this.#fail(-bytes);
      return;
    }
  }

  write(chunk: Buffer): boolean {
    if (this.#fd < 0) return true;
    const sent = this.#send(chunk);
    if (sent === chunk.length) return true;
    this.#outstanding = Buffer.from(sent > 0 ? chunk.subarray(sent) : chunk);
    if (sent < 0 && !this.#kernel.isTemporary(-sent)) this.#failSoon(this.#kernel.errnoName(-sent));
    return false;
  }

  #sendRest(): void {
    const rest = this.#outstanding as Buffer;
    const sent = this.#send(rest);
    if (sent < rest.length) {
      if (sent > 0) this.#outstanding = rest.subarray(sent);
      else if (!this.#kernel.isTemporary(-sent)) this.#fail(-sent);
      return;
    }
    this.#outstanding = null;
    this.listener?.onDrain();
  }

  #send(bytes: Buffer): number {
    const sent = this.#kernel.send(this.#fd, bytes);
    if (sent > 0 && this.#side !== null) this.#passedOut(sent, this.#side);
    return sent;
  }

  #passedIn(bytes: number, side: LegSide): void {
    if (typeof this.#in === "number") {
      this.#in -= bytes;
      if (this.#in > 0) return;
      this.#in = new Flow();
      this.#readInto = SLOW_READ_BUFFER;
    } else if (this.#in.passed(bytes)) {
      this.#in.grown(this.#kernel.growUnread(this.#fd, side));
      this.#readInto = READ_BUFFER;
    }
  }

  #passedOut(bytes: number, side: LegSide): void {
    if (typeof this.#out === "number") {
      this.#out -= bytes;
      if (this.#out <= 0) this.#out = new Flow();
    } else if (this.#out.passed(bytes)) this.#out.grown(this.#kernel.growUnsent(this.#fd, side));
  }

  /** Its peer may send less ahead from now on, until much has passed. @returns how much, in bytes; null: it had not grown */
  shorten(): number | null {
    if (this.#fd < 0 || this.#side === null || !(this.#in instanceof Flow) || !this.#in.hasGrown) return null;
    this.#in = LONG_BYTES;
    return this.#kernel.shortenUnread(this.#fd, this.#side);
  }

  finish(): void {
    // Refused: the peer has reset the connection, which the next read reports.
    if (this.#fd >= 0) this.#kernel.shutdownWrite(this.#fd);
  }

  reset(): void {
    const fd = this.#release();
    if (fd >= 0) this.#kernel.reset(fd);
  }

  /** Orderly: what the kernel still has to send is sent. */
  close(): void {
    const fd = this.#release();
    if (fd >= 0) this.#kernel.close(fd);
  }

  pauseReading(): void {
    this.#reading = false;
  }

  resumeReading(): void {
    if (this.#reading || this.#ended) return;
    this.#reading = true;
    if (this.#mayRead) this.#queue();
  }

  /** Of one just attached: its FIN was read before, and is not told again. */
  endedBefore(): void {
    this.#ended = true;
    this.#reading = false;
    if (this.#isPeerGone) this.#queue();
  }

  consumed(_bytes: number): void {}

  /** Ends our use of the connection: nothing is sent, read or closed, and the caller owns the descriptor. */
  detach(): Detached {
    const pending = this.#outstanding ?? NO_BYTES;
    return { fd: this.#release(), pending };
  }

  /** Once at a time: a leg in the queue twice has twice its share. */
  #queue(): void {
    if (this.#isQueued) return;
    this.#isQueued = true;
    this.#kernel.soon(this);
  }

  #failSoon(code: string): void {
    this.#failure = code;
    this.#mayRead = true;
    this.#moreFollows = true;
    this.#queue();
  }

  #fail(errno?: number): void {
    const code = errno === undefined ? this.#failure : this.#kernel.errnoName(errno);
    const dialling = this.#dialling;
    this.#failure = "";
    this.close();
    if (dialling === null) this.listener?.onReset(code);
    else dialling.onError(code);
  }

  /** The descriptor, which nobody watches any more; -1: it is gone already. */
  #release(): number {
    const fd = this.#fd;
    if (fd >= 0) this.#kernel.unwatch(fd);
    this.#fd = -1;
    this.#failure = "";
    this.#reading = false;
    this.#dialling = null;
    return fd;
  }
}
