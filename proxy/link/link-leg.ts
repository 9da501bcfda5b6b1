/**
 * A link to another proxy of the workload as an {@link Leg}. Begins parked: authenticated, and carrying nothing until
 * the owner's ACTIVE. One link carries one session.
 *
 * Flow control is by credit, not by pausing the socket: the sender may have LINK_WINDOW_BYTES on the way and not yet
 * passed on. So the socket is always read, control frames are never stuck behind data, and what a move finds in flight
 * is bounded. DATA for which there is no credit stays with the sender, who can take it back (`takeUnsent`).
 */
import { randomBytes } from "node:crypto";
import net from "node:net";
import type { TLSSocket } from "node:tls";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Leg, LegListener } from "#proxy/stream/leg.ts";
import { decodeHello, encodeHello, type Greeting, isWelcome, NONCE_BYTES, welcome } from "./link-auth.ts";
import {
  type Active,
  CONTROL_BYTES_MAX,
  type Destination,
  decodeActive,
  decodeMove,
  encodeActive,
  encodeCounted,
  encodeCredit,
  encodeMove,
  FRAME,
  FrameDecoder,
  type FrameType,
  frame,
  frameHeader,
  RST_CODE,
} from "./link-codec.ts";
import { acceptTls, dialTls, newNonce, SECURE_FRAME, speaksTls } from "./link-tls.ts";

export const LINK_WINDOW_BYTES = 256 * 1024;
const CREDIT_BYTES_MIN = LINK_WINDOW_BYTES / 4;
const AUTHENTICATE_MS_MAX = 5_000;
/** what an honest greeting stays below */
const GREETING_BYTES_MAX = 4 * CONTROL_BYTES_MAX;
/** after our last frame: how long the peer may take to close too */
const CLOSE_MS_MAX = 5_000;
const TLS_QUEUED_BYTES_MAX = 64 * 1024;
const NO_BYTES: Buffer = Buffer.alloc(0);

export interface LinkListener {
  /** Dialler: the acceptor owns the session now. */
  onActive(link: LinkLeg, active: Active): void;
  /** Dialler: stop sending; the link has answered HELD itself. */
  onHold(link: LinkLeg): void;
  onResume(link: LinkLeg): void;
  /** Acceptor: the anchor has answered our HOLD. */
  onHeld(link: LinkLeg): void;
  /** Dialler: the session is about to go there. Answer by `sendPrepared`. */
  onMove?(link: LinkLeg, to: Destination): void;
  /** Dialler: how much of the session has arrived? Answer by `sendCounted`. */
  onCount?(link: LinkLeg): void;
  /** The link is over, once. `code` is from RST_CODE; orderly when both FINs had passed. */
  onOver(link: LinkLeg, code: number): void;
  /** One of the above, or of the end's listener, has thrown. The link is closed after this; nothing follows. */
  onBroken(link: LinkLeg, error: unknown): void;
}

interface FirstBytes {
  bytes: Buffer;
  startTls(socket: net.Socket, rest: Buffer): TLSSocket;
}

type LinkState = "greeting" | "ready" | "over";

export interface AcceptOptions {
  keys: SharedKeys;
  onReady(link: LinkLeg): void;
  /** default true: speaks TLS where the other side does */
  encrypted?: boolean;
  /** never authenticated: closed already */
  onRefused(reason: string): void;
  listener: LinkListener;
}

export interface DialOptions {
  keys: SharedKeys;
  to: Endpoint;
  greeting: Greeting;
  /** default true: speaks TLS where the other side does */
  encrypted?: boolean;
  onReady(link: LinkLeg): void;
  listener: LinkListener;
}

export class LinkLeg implements Leg {
  listener: LegListener | null = null;
  readonly reusesBuffer = false;
  readonly keepsChunk = true;
  greeting: Greeting | null = null;
  /** null on the acceptor's side */
  dialledTo: Endpoint | null = null;
  /** the owner has sent ACTIVE on it */
  active = false;
  /** acceptor: HELD has come since the last HOLD */
  heldByAnchor = false;
  /** acceptor: the answer to the last MOVE; null: none yet */
  prepared: boolean | null = null;
  /** acceptor: the answer to the last COUNT, in bytes of the session; -1: none yet */
  countedBytes = -1;

  readonly #connection: net.Socket;
  /** of the link: the connection itself, or TLS around it */
  #socket: net.Socket | TLSSocket;
  readonly #events: LinkListener;
  #decoder: FrameDecoder;
  readonly #timer: NodeJS.Timeout;
  #onGreeting: (type: FrameType, payload: Buffer) => void;
  #state: LinkState = "greeting";
  #credit = LINK_WINDOW_BYTES;
  #uncredited = 0;
  /** credit the peer has from us: data beyond it is a protocol error */
  #granted = LINK_WINDOW_BYTES;
  /** DATA taken and not framed for want of credit, or because sending is held */
  #unsent: Buffer = NO_BYTES;
  #waiting = false;
  #sendingHeld = false;
  #finHeld = false;
  #delivering = false;
  /** TLS never writes at once, though the kernel has room: waiting for each chunk would cost a turn of the event loop each */
  #queuedBytesMax = 0;
  #greetingBytes = 0;
  /** acceptor: not null until it is known whether TLS begins */
  #first: FirstBytes | null = null;
  /** arrived before `startDelivering`; at most the credit window */
  #backlog: Buffer[] = [];
  #finInBacklog = false;
  #finSent = false;
  #finReceived = false;

  private constructor(
    socket: net.Socket,
    events: LinkListener,
    onGreeting: (type: FrameType, payload: Buffer) => void,
  ) {
    this.#connection = socket;
    this.#socket = socket;
    this.#events = events;
    this.#onGreeting = onGreeting;
    this.#decoder = this.#newDecoder();
    this.#timer = setTimeout(this.#onGone, AUTHENTICATE_MS_MAX);
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 10_000);
    this.#listenTo(socket);
  }

  #newDecoder(): FrameDecoder {
    return new FrameDecoder({
      onData: (part) => this.#receive(part),
      onControl: (type, payload) => this.#control(type, payload),
    });
  }

  #listenTo(socket: net.Socket | TLSSocket): void {
    socket.on("data", this.#onBytes);
    socket.on("error", this.#onGone);
    socket.on("end", this.#onGone);
    socket.on("close", this.#onGone);
  }

  readonly #onGone = (): void => this.#guard(() => this.#fail(RST_CODE.broken));

  readonly #onBytes = (chunk: Buffer): void => {
    if (this.#state === "over") return;
    this.#guard(() => {
      const isGreeting = this.#state === "greeting";
      if (isGreeting) this.#greetingBytes += chunk.length;
      const frames = this.#first === null ? chunk : this.#beyondFirst(this.#first, chunk);
      if (frames === null) return;
      if (!this.#decoder.feed(frames)) this.#fail(RST_CODE.broken);
      // looked at afterwards: the end of a greeting may bring the first bytes of the session along
      else if (this.#state === "greeting" && this.#greetingBytes > GREETING_BYTES_MAX)
        this.#fail(RST_CODE.broken);
    });
  };

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
    const plain = this.#socket;
    plain.off("data", this.#onBytes);
    this.#decoder.stop();
    this.#decoder = this.#newDecoder();
    this.#socket = start(plain);
    this.#queuedBytesMax = TLS_QUEUED_BYTES_MAX;
    this.#listenTo(this.#socket);
  }

  /** What a listener throws ends its session, and this link with it. */
  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#events.onBroken(this, error);
      this.close(RST_CODE.reset);
    }
  }

  static accept(socket: net.Socket, options: AcceptOptions): LinkLeg {
    const { encrypted = true } = options;
    const nonce = newNonce(encrypted);
    let why = "the greeting was cut off or took too long";
    let refused = false;
    const link: LinkLeg = new LinkLeg(
      socket,
      {
        ...options.listener,
        onOver(end, code) {
          if (end.#wasReady) options.listener.onOver(end, code);
          else if (!refused) options.onRefused(why);
          refused = true;
        },
      },
      (type, payload) => {
        const hello = type === FRAME.hello ? decodeHello(options.keys, nonce, payload) : null;
        if (hello === null) {
          refused = true;
          options.onRefused("the greeting was not signed with a link key of this workload");
          link.#fail(RST_CODE.broken);
          return;
        }
        link.greeting = hello.greeting;
        link.#socket.write(frame(FRAME.welcome, welcome(hello.key, payload)));
        link.#ready();
        options.onReady(link);
      },
    );
    const startTls = (plain: net.Socket, rest: Buffer): TLSSocket =>
      acceptTls(plain, options.keys, rest, (id) => {
        why = `its link key ${id.slice(0, 8)} is none of this workload's`;
      });
    if (encrypted) link.#first = { bytes: NO_BYTES, startTls };
    socket.write(frame(FRAME.nonce, nonce));
    return link;
  }

  static dial(options: DialOptions): LinkLeg {
    const socket = net.connect({ host: options.to.address, port: options.to.port });
    const [key] = options.keys;
    let hello: Buffer | null = null;
    const link: LinkLeg = new LinkLeg(socket, options.listener, (type, payload) => {
      if (hello === null && type === FRAME.nonce) {
        const signed = encodeHello(key, payload, randomBytes(NONCE_BYTES), options.greeting);
        hello = signed;
        const greet = (stream: net.Socket | TLSSocket): void => void stream.write(frame(FRAME.hello, signed));
        if (options.encrypted === false || !speaksTls(payload)) return greet(socket);
        socket.write(SECURE_FRAME);
        link.#goOnIn((plain) => dialTls(plain, key, greet));
      } else if (hello !== null && type === FRAME.welcome && isWelcome(key, hello, payload)) {
        link.#ready();
        options.onReady(link);
      } else {
        link.#fail(RST_CODE.broken);
      }
    });
    link.greeting = options.greeting;
    link.dialledTo = options.to;
    return link;
  }

  #wasReady = false;

  get isOpen(): boolean {
    return this.#state !== "over";
  }
  get isReady(): boolean {
    return this.#state === "ready";
  }

  /** Of its connection, to set what Node has no option for; not to be kept. -1: there is none, or Node does not say */
  get fd(): number {
    const { _handle: handle } = this.#connection as { _handle?: { fd?: number } | null };
    return handle?.fd ?? -1;
  }

  #ready(): void {
    clearTimeout(this.#timer);
    this.#state = "ready";
    this.#wasReady = true;
  }

  /** From now on bytes go to the listener; what arrived before is handed over first. */
  startDelivering(): void {
    const { listener } = this;
    if (this.#delivering || listener === null) return;
    this.#delivering = true;
    const backlog = this.#backlog;
    this.#backlog = [];
    for (const chunk of backlog) listener.onData(chunk);
    if (this.#finInBacklog) {
      this.#finInBacklog = false;
      listener.onFin();
    }
  }

  // ---- owner's side

  sendActive(active: Active): void {
    this.active = true;
    this.#send(encodeActive(active));
  }
  sendHold(): void {
    this.heldByAnchor = false;
    this.#send(frame(FRAME.hold));
  }
  sendResume(): void {
    this.heldByAnchor = false;
    this.#send(frame(FRAME.resume));
  }

  sendMove(to: Destination): void {
    this.prepared = null;
    this.#send(encodeMove(to));
  }
  sendCount(): void {
    this.countedBytes = -1;
    this.#send(frame(FRAME.count));
  }

  // ---- dialler's side

  sendPrepared(isPrepared: boolean): void {
    this.#send(frame(FRAME.prepared, Buffer.of(isPrepared ? 1 : 0)));
  }
  sendCounted(bytes: number): void {
    this.#send(encodeCounted(bytes));
  }

  // ---- End

  write(chunk: Buffer): boolean {
    if (this.#state !== "ready") return true;
    this.#unsent = chunk;
    return this.#sendUnsent();
  }

  /** True when nothing is left to wait for. */
  #sendUnsent(): boolean {
    if (!this.#sendingHeld && this.#credit > 0 && this.#unsent.length > 0) {
      const part = this.#unsent.subarray(0, this.#credit);
      this.#credit -= part.length;
      this.#unsent = this.#unsent.subarray(part.length);
      this.#socket.cork();
      this.#socket.write(frameHeader(FRAME.data, part.length));
      this.#socket.write(part, this.#onWritten);
      this.#socket.uncork();
    }
    this.#waiting = this.#unsent.length > 0 || this.#socket.writableLength > this.#queuedBytesMax;
    return !this.#waiting;
  }

  readonly #onWritten = (): void => {
    if (!this.#waiting || this.#state !== "ready") return;
    if (this.#unsent.length > 0 || this.#socket.writableLength > this.#queuedBytesMax) return;
    this.#waiting = false;
    this.#guard(() => this.listener?.onDrain());
  };

  /** Bytes of the outstanding chunk that never left; the end forgets them. What is in the socket stays on its way. */
  takeUnsent(): Buffer {
    const bytes = this.#unsent.length === 0 ? NO_BYTES : Buffer.from(this.#unsent);
    this.#unsent = NO_BYTES;
    this.#waiting = false;
    return bytes;
  }

  /** Resolves when what was framed has been given to the kernel, or the link is over. */
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

  finish(): void {
    if (this.#finSent || this.#state !== "ready") return;
    if (this.#sendingHeld) {
      this.#finHeld = true;
      return;
    }
    this.#finSent = true;
    this.#send(frame(FRAME.fin));
  }

  reset(): void {
    this.close(RST_CODE.reset);
  }

  /** Ends the session (`reset`) or tells the dialler to look for the owner elsewhere (`moved`). Nobody is called back. */
  close(code: number): void {
    if (this.#state === "over") return;
    if (this.#state === "ready") this.#send(Buffer.concat([frameHeader(FRAME.rst, 1), Buffer.of(code)]));
    this.#end();
  }

  /** Nothing more to say: what was framed is still delivered. Nobody is called back. */
  release(): void {
    if (this.#state !== "over") this.#end();
  }

  pauseReading(): void {}
  resumeReading(): void {}

  consumed(bytes: number): void {
    this.#uncredited += bytes;
    if (this.#uncredited < CREDIT_BYTES_MIN || this.#state !== "ready") return;
    this.#granted += this.#uncredited;
    this.#send(encodeCredit(this.#uncredited));
    this.#uncredited = 0;
  }

  // ---- frames

  #receive(part: Buffer): void {
    if (this.#state === "over") return;
    this.#granted -= part.length;
    if (this.#state === "greeting" || this.#granted < 0 || this.#finReceived) this.#fail(RST_CODE.broken);
    else if (this.#delivering) this.listener?.onData(part);
    else this.#backlog.push(part);
  }

  #control(type: FrameType, payload: Buffer): void {
    if (this.#state === "greeting") {
      this.#onGreeting(type, payload);
      return;
    }
    if (this.#state === "over") return;
    switch (type) {
      case FRAME.active:
        if (this.active) {
          this.#fail(RST_CODE.broken);
          return;
        }
        this.active = true;
        this.#events.onActive(this, decodeActive(payload));
        return;
      case FRAME.fin:
        this.#finReceived = true;
        if (this.#delivering) this.listener?.onFin();
        else this.#finInBacklog = true;
        return;
      case FRAME.credit:
        this.#credit += payload.readUInt32BE(0);
        if (this.#unsent.length > 0 && this.#sendUnsent()) this.listener?.onDrain();
        return;
      case FRAME.hold:
        this.#sendingHeld = true;
        this.#send(frame(FRAME.held));
        this.#events.onHold(this);
        return;
      case FRAME.held:
        this.heldByAnchor = true;
        this.#events.onHeld(this);
        return;
      case FRAME.resume:
        this.#resume();
        return;
      case FRAME.move: {
        const to = decodeMove(payload);
        if (to === null) this.#fail(RST_CODE.broken);
        else this.#events.onMove?.(this, to);
        return;
      }
      case FRAME.prepared:
        this.prepared = payload[0] === 1;
        return;
      case FRAME.count:
        this.#events.onCount?.(this);
        return;
      case FRAME.counted:
        this.countedBytes = Number(payload.readBigUInt64BE(0));
        return;
      case FRAME.rst:
        this.#over(payload[0] as number);
        return;
      default:
        this.#fail(RST_CODE.broken);
    }
  }

  #resume(): void {
    this.#sendingHeld = false;
    this.#events.onResume(this);
    if (this.#unsent.length > 0) {
      if (this.#sendUnsent()) this.listener?.onDrain();
    } else if (this.#finHeld) {
      this.#finHeld = false;
      this.finish();
    }
  }

  #send(bytes: Buffer): void {
    // what waits for room may wait for these too
    if (this.#state === "ready" && this.#socket.writable) this.#socket.write(bytes, this.#onWritten);
  }

  #end(): void {
    clearTimeout(this.#timer);
    this.#state = "over";
    this.#decoder.stop();
    this.#backlog = [];
    this.#socket.end();
    const timer = setTimeout(() => this.#socket.destroy(), CLOSE_MS_MAX);
    timer.unref();
    this.#socket.once("close", () => clearTimeout(timer));
  }

  #fail(code: number): void {
    if (this.#state === "over") return;
    if (this.#finSent && this.#finReceived) {
      // Everything was said in both directions: this is how a link ends well.
      this.#end();
      return;
    }
    this.#socket.destroy();
    this.#over(code);
  }

  #over(code: number): void {
    if (this.#state === "over") return;
    this.#end();
    this.#events.onOver(this, code);
  }
}
