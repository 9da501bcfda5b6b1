/**
 * A link to another proxy of the workload as an {@link End}. Begins parked: authenticated, and carrying nothing until
 * the owner's ACTIVE. One link carries one session.
 *
 * Flow control is by credit, not by pausing the socket: the sender may have LINK_WINDOW_BYTES on the way and not yet
 * passed on. So the socket is always read, control frames are never stuck behind data, and what a move finds in flight
 * is bounded. DATA for which there is no credit stays with the sender, who can take it back (`takeUnsent`).
 */
import { randomBytes } from "node:crypto";
import net from "node:net";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { End, EndListener } from "./end.ts";
import { decodeHello, encodeHello, type Greeting, isWelcome, NONCE_BYTES, welcome } from "./link-auth.ts";
import {
  type Active,
  CONTROL_BYTES_MAX,
  decodeActive,
  encodeActive,
  encodeCredit,
  FRAME,
  FrameDecoder,
  type FrameType,
  frame,
  frameHeader,
  RST_CODE,
} from "./link-codec.ts";

export const LINK_WINDOW_BYTES = 256 * 1024;
const CREDIT_BYTES_MIN = LINK_WINDOW_BYTES / 4;
const AUTHENTICATE_MS_MAX = 5_000;
/** what an honest greeting stays below */
const GREETING_BYTES_MAX = 4 * CONTROL_BYTES_MAX;
/** after our last frame: how long the peer may take to close too */
const CLOSE_MS_MAX = 5_000;
const NO_BYTES: Buffer = Buffer.alloc(0);

export interface LinkListener {
  /** Dialler: the acceptor owns the session now. */
  onActive(link: LinkEnd, active: Active): void;
  /** Dialler: stop sending; the link has answered HELD itself. */
  onHold(link: LinkEnd): void;
  onResume(link: LinkEnd): void;
  /** Acceptor: the edge has answered our HOLD. */
  onHeld(link: LinkEnd): void;
  /** The link is over, once. `code` is from RST_CODE; orderly when both FINs had passed. */
  onOver(link: LinkEnd, code: number): void;
  /** One of the above, or of the end's listener, has thrown. The link is closed after this; nothing follows. */
  onBroken(link: LinkEnd, error: unknown): void;
}

type LinkState = "greeting" | "ready" | "over";

export interface AcceptOptions {
  keys: SharedKeys;
  onReady(link: LinkEnd): void;
  /** never authenticated: closed already */
  onRefused(reason: string): void;
  listener: LinkListener;
}

export interface DialOptions {
  keys: SharedKeys;
  to: Endpoint;
  greeting: Greeting;
  onReady(link: LinkEnd): void;
  listener: LinkListener;
}

export class LinkEnd implements End {
  listener: EndListener | null = null;
  readonly reusesBuffer = false;
  readonly keepsChunk = true;
  greeting: Greeting | null = null;
  /** null on the acceptor's side */
  dialledTo: Endpoint | null = null;
  /** the owner has sent ACTIVE on it */
  active = false;
  /** acceptor: HELD has come since the last HOLD */
  heldByEdge = false;

  readonly #socket: net.Socket;
  readonly #events: LinkListener;
  readonly #decoder: FrameDecoder;
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
    this.#socket = socket;
    this.#events = events;
    this.#onGreeting = onGreeting;
    this.#decoder = new FrameDecoder({
      onData: (part) => this.#receive(part),
      onControl: (type, payload) => this.#control(type, payload),
    });
    const guarded = (work: () => void) => (): void => this.#guard(work);
    const fail = guarded(() => this.#fail(RST_CODE.broken));
    this.#timer = setTimeout(fail, AUTHENTICATE_MS_MAX);
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 10_000);
    socket.on("data", (chunk: Buffer) => {
      if (this.#state === "over") return;
      this.#guard(() => {
        if (!this.#decoder.feed(chunk)) this.#fail(RST_CODE.broken);
        // looked at afterwards: the end of a greeting may bring the first bytes of the session along
        else if (this.#state === "greeting" && socket.bytesRead > GREETING_BYTES_MAX)
          this.#fail(RST_CODE.broken);
      });
    });
    socket.on("error", fail);
    socket.on("end", fail);
    socket.on("close", fail);
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

  static accept(socket: net.Socket, options: AcceptOptions): LinkEnd {
    const nonce = randomBytes(NONCE_BYTES);
    let refused = false;
    const link: LinkEnd = new LinkEnd(
      socket,
      {
        ...options.listener,
        onOver(end, code) {
          if (end.#wasReady) options.listener.onOver(end, code);
          else if (!refused) options.onRefused("the greeting was cut off or took too long");
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
        socket.write(frame(FRAME.welcome, welcome(hello.key, payload)));
        link.#ready();
        options.onReady(link);
      },
    );
    socket.write(frame(FRAME.nonce, nonce));
    return link;
  }

  static dial(options: DialOptions): LinkEnd {
    const socket = net.connect({ host: options.to.address, port: options.to.port });
    const [key] = options.keys;
    let hello: Buffer | null = null;
    const link: LinkEnd = new LinkEnd(socket, options.listener, (type, payload) => {
      if (hello === null && type === FRAME.nonce) {
        hello = encodeHello(key, payload, randomBytes(NONCE_BYTES), options.greeting);
        socket.write(frame(FRAME.hello, hello));
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
    this.heldByEdge = false;
    this.#send(frame(FRAME.hold));
  }
  sendResume(): void {
    this.heldByEdge = false;
    this.#send(frame(FRAME.resume));
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
    this.#waiting = this.#unsent.length > 0 || this.#socket.writableLength > 0;
    return !this.#waiting;
  }

  readonly #onWritten = (): void => {
    if (!this.#waiting || this.#state !== "ready") return;
    if (this.#unsent.length > 0 || this.#socket.writableLength > 0) return;
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
        this.heldByEdge = true;
        this.#events.onHeld(this);
        return;
      case FRAME.resume:
        this.#resume();
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
    if (this.#state === "ready" && this.#socket.writable) this.#socket.write(bytes);
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
