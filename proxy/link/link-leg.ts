/**
 * A link to another proxy of the workload as an {@link Leg}. Begins parked: authenticated, and carrying nothing until
 * the owner's ACTIVE. One link carries one session.
 *
 * Flow control is by credit, not by pausing the socket: the sender may have LINK_WINDOW_BYTES on the way and not yet
 * passed on. So the socket is always read, control frames are never stuck behind data, and what a move finds in flight
 * is bounded. DATA for which there is no credit stays with the sender, who can take it back (`takeUnsent`).
 *
 * Where both ends can, and from ACTIVE on, a link outlives its connection (ARCHITECTURE, "Resumable links"): it is open, and
 * takes nothing, until the dialler has another one. What was on its way is framed again.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import type net from "node:net";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Leg, LegListener } from "#proxy/stream/leg.ts";
import { Kept } from "./kept.ts";
import {
  decodeHello,
  decodeRejoin,
  decodeTrunk,
  encodeHello,
  type Greeting,
  isWelcome,
  NONCE_BYTES,
  provesSecret,
  secretOf,
  welcome,
} from "./link-auth.ts";
import {
  type Active,
  DATA_BYTES_MAX,
  type Destination,
  decodeAck,
  decodeActive,
  decodeMove,
  decodeResumed,
  encodeAck,
  encodeActive,
  encodeCounted,
  encodeCredit,
  encodeMove,
  encodeResumed,
  FRAME,
  type FrameType,
  frame,
  frameHeader,
  type Received,
  type Resumed,
  RST_CODE,
} from "./link-codec.ts";
import {
  type ConnectionSink,
  type Gone,
  type LinkConnection,
  NOBODY,
  SocketConnection,
} from "./link-connection.ts";
import { rejoin } from "./link-rejoin.ts";
import { isResumable, newNonce, speaksTls } from "./link-tls.ts";
import type { LinkWatch, WatchedLink } from "./link-watch.ts";
import type { Trunks } from "./trunks.ts";

export const LINK_WINDOW_BYTES = 256 * 1024;
const CREDIT_BYTES_MIN = LINK_WINDOW_BYTES / 4;
/** received and not acknowledged: told with what is sent anyway, so that two who talk in turn keep little */
const ACK_BYTES_MIN = 2_048;
/** in looks of the watch, since anything was heard: a dialler whose bytes nothing has followed asks … */
const LOOKS_UNTIL_DOUBT = 2;
/** … and either end that keeps bytes, to be rid of them */
const LOOKS_UNTIL_ASKED = 8;
/** … after it has asked: the connection is taken for dead */
const LOOKS_UNTIL_LOST = 3;
/** of an attempt, in which its greeting gets on */
const LOOKS_TO_GREET = 4;
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
  /** Its connection has broken; it is open, and goes on over another one or is over later. */
  onInterrupted?(link: LinkLeg): void;
  /** It has gone on over another connection. */
  onContinued?(link: LinkLeg): void;
  /** It is about to be over, because there was no other connection in time. */
  onLate?(link: LinkLeg): void;
  /** The link is over, once. `code` is from RST_CODE; orderly when both FINs had passed. */
  onOver(link: LinkLeg, code: number): void;
  /** One of the above, or of the end's listener, has thrown. The link is closed after this; nothing follows. */
  onBroken(link: LinkLeg, error: unknown): void;
}

type LinkState = "greeting" | "ready" | "over";

export interface AcceptOptions {
  keys: SharedKeys;
  onReady(link: LinkLeg): void;
  /** default true: speaks TLS where the other side does */
  encrypted?: boolean;
  /** never authenticated: closed already */
  onRefused(reason: string): void;
  /** It was another connection for a link that is there. */
  onRejoined?(link: LinkLeg): void;
  /** It is welcomed, and a trunk: it carries links. Default: takes no trunks, as without `watch`. */
  onTrunk?(connection: SocketConnection): void;
  listener: LinkListener;
  /** default: the link ends with its connection */
  watch?: LinkWatch<LinkLeg>;
}

export interface DialOptions {
  keys: SharedKeys;
  to: Endpoint;
  greeting: Greeting;
  /** default true: speaks TLS where the other side does */
  encrypted?: boolean;
  onReady(link: LinkLeg): void;
  listener: LinkListener;
  /** default: the link ends with its connection */
  watch?: LinkWatch<LinkLeg>;
  /** what carries links that can go on; default: each has a connection of its own */
  trunks?: Trunks;
}

/** What it takes to go on over another connection. */
interface Again {
  watch: LinkWatch<LinkLeg>;
  /** dialler */
  trunks: Trunks | null;
  /** of the greeting that was welcomed last */
  secret: Buffer;
  /** acceptor: the one before, until the dialler has shown that it was told of the welcome */
  previousSecret: Buffer | null;
  /** the highest number of a REJOIN that was tried, or accepted */
  attempt: number;
  /** dialler: that is under way */
  trying: { connection: LinkConnection; looks: number; progress: number; giveTurn(): void } | null;
}

export class LinkLeg implements Leg, ConnectionSink, WatchedLink {
  listener: LegListener | null = null;
  readonly reusesBuffer = false;
  readonly keepsChunk = true;
  greeting: Greeting | null = null;
  /** null on the acceptor's side */
  dialledTo: Endpoint | null = null;
  /** the owner has sent ACTIVE on it */
  active = false;
  /** acceptor: the answer to the last MOVE; null: none yet */
  prepared: boolean | null = null;
  /** acceptor: the answer to the last COUNT, in bytes of the session; -1: none yet */
  countedBytes = -1;

  #connection: LinkConnection;
  readonly #events: LinkListener;
  #onGreeting: ((type: FrameType, payload: Buffer) => void) | null = null;
  #state: LinkState = "greeting";
  #isEncrypted = true;
  /** null: the link ends with its connection */
  #again: Again | null = null;
  /** DATA may be framed: the other end is known to have all that precedes it, or to be about to get it */
  #carries = false;

  // sending, in bytes of the link
  #sentBytes = 0;
  #ackedBytes = 0;
  /** credit from the other end, from the beginning */
  #creditedToUs = 0;
  #kept: Kept | null = null;
  /** DATA taken and not framed for want of credit or a connection, or because sending is held */
  #unsent: Buffer = NO_BYTES;
  #waiting = false;
  #sendingHeld = false;
  #finHeld = false;
  #finSent = false;
  #finAcked = false;

  // receiving
  #receivedBytes = 0;
  /** … of which the other end knows */
  #toldBytes = 0;
  #creditedByUs = 0;
  #uncredited = 0;
  #delivering = false;
  /** arrived before `startDelivering`; at most the credit window */
  #backlog: Buffer[] = [];
  #finInBacklog = false;
  #finReceived = false;
  /** anything, since ACTIVE */
  #hasHeard = false;

  // acceptor: what is said again over another connection
  #holding = false;
  /** HOLDs that are not answered */
  #holdsAwaited = 0;
  #wasHeld = false;
  #move: Destination | null = null;
  #isCounting = false;

  /** looks since anything was heard */
  #quiet = 0;
  #heardSinceSent = true;
  /** {@link #quiet} when it asked; -1: it has not */
  #askedAt = -1;
  /** … of its connection, then */
  #progressAsked = 0;
  /** there is no connection, or it does not answer, since then (performance.now()); 0: there is one */
  #lostAtMs = 0;
  /** its session has ended: it stays until the other end has the FIN */
  #isReleased = false;
  /** its session was ended, with this code, while there was no connection: said on the next; null: no */
  #lastWord: number | null = null;
  #wasReady = false;

  private constructor(connect: (sink: ConnectionSink) => LinkConnection, events: LinkListener) {
    this.#events = events;
    this.#connection = connect(this);
  }

  /** On a connection of its own, which may turn out to be a trunk. */
  static accept(socket: net.Socket, options: AcceptOptions): LinkLeg {
    const { encrypted = true, onTrunk } = options;
    let unknownKey: string | null = null;
    let connection: SocketConnection | null = null;
    const connect = (sink: ConnectionSink): LinkConnection => {
      const tls = {
        keys: options.keys,
        onUnknownKey: (id: string) => {
          unknownKey = `its link key ${id.slice(0, 8)} is none of this workload's`;
        },
      };
      connection = SocketConnection.accept(socket, sink, encrypted ? tls : null);
      return connection;
    };
    const nonce = newNonce(encrypted, options.watch?.isOn === true && (onTrunk ? "trunk" : true));
    return LinkLeg.#accepted(options, {
      connect,
      nonce,
      why: () => unknownKey,
      onTrunk: onTrunk && (() => onTrunk(connection as SocketConnection)),
    });
  }

  /** On a channel that the other end has opened. */
  static acceptOn(channel: LinkConnection, options: AcceptOptions): LinkLeg {
    const connect = (sink: ConnectionSink): LinkConnection => {
      channel.sink = sink;
      return channel;
    };
    const nonce = newNonce(false, options.watch?.isOn === true);
    return LinkLeg.#accepted(options, { connect, nonce });
  }

  /**
   * @param why why it was ended, where something is known
   * @param onTrunk default: it cannot be one
   */
  static #accepted(
    options: AcceptOptions,
    {
      connect,
      nonce,
      why,
      onTrunk,
    }: {
      connect(sink: ConnectionSink): LinkConnection;
      nonce: Buffer;
      why?: () => string | null;
      onTrunk?: (() => void) | undefined;
    },
  ): LinkLeg {
    const watch = options.watch?.isOn ? options.watch : null;
    let refused = false;
    const refuse = (reason: string): void => {
      if (!refused) options.onRefused(reason);
      refused = true;
    };
    const link: LinkLeg = new LinkLeg(connect, {
      ...options.listener,
      onOver(end, code) {
        if (end.#wasReady) options.listener.onOver(end, code);
        else refuse(why?.() ?? "the greeting was cut off or took too long");
      },
    });
    link.#isEncrypted = options.encrypted ?? true;
    link.#onGreeting = (type, payload) => {
      if (type === FRAME.rejoin && watch !== null) {
        link.#rejoined(nonce, payload, watch, options, refuse);
        return;
      }
      if (type === FRAME.trunk && onTrunk !== undefined) {
        const key = decodeTrunk(options.keys, nonce, payload);
        if (key !== null) {
          link.#state = "over";
          link.#connection.write(frame(FRAME.welcome, welcome(key, payload)));
          onTrunk();
          return;
        }
      }
      const hello = type === FRAME.hello ? decodeHello(options.keys, nonce, payload) : null;
      if (hello === null) {
        refuse("the greeting was not signed with a link key of this workload");
        link.#fail(RST_CODE.broken);
        return;
      }
      link.greeting = hello.greeting;
      link.#connection.write(frame(FRAME.welcome, welcome(hello.key, payload)));
      link.#ready(hello.resumable ? watch : null, hello.key, payload);
      options.onReady(link);
    };
    link.#connection.write(frame(FRAME.nonce, nonce));
    return link;
  }

  static dial(options: DialOptions): LinkLeg {
    const { encrypted = true } = options;
    const [key] = options.keys;
    let hello: Buffer | null = null;
    let watch: LinkWatch<LinkLeg> | null = null;
    const trunks = options.watch?.isOn ? (options.trunks ?? null) : null;
    const link: LinkLeg = new LinkLeg((sink) => connectionTo(options.to, trunks, sink), options.listener);
    link.#onGreeting = (type, payload) => {
      if (hello === null && type === FRAME.nonce) {
        if (options.watch?.isOn && isResumable(payload)) watch = options.watch;
        const own = randomBytes(NONCE_BYTES);
        const signed = encodeHello(key, payload, own, options.greeting, watch !== null);
        hello = signed;
        const connection = link.#connection;
        const greet = (): void => connection.write(frame(FRAME.hello, signed));
        if (encrypted && speaksTls(payload)) connection.secure(key, greet);
        else greet();
      } else if (hello !== null && type === FRAME.welcome && isWelcome(key, hello, payload)) {
        link.#ready(watch, key, hello);
        if (link.#again !== null) link.#again.trunks = trunks;
        options.onReady(link);
      } else {
        link.#fail(RST_CODE.broken);
      }
    };
    link.#isEncrypted = encrypted;
    link.greeting = options.greeting;
    link.dialledTo = options.to;
    return link;
  }

  /** Of a link that lost its connection too: it may go on. */
  get isOpen(): boolean {
    return this.#state !== "over" && this.#lastWord === null;
  }
  get isReady(): boolean {
    return this.#state === "ready";
  }
  /** It has a connection that carries its bytes. */
  get isConnected(): boolean {
    return this.#state === "ready" && this.#carries;
  }
  /** acceptor: HELD has come since the last HOLD */
  get heldByAnchor(): boolean {
    return this.#wasHeld && this.#holdsAwaited === 0;
  }
  /** acceptor: there is no sign that the dialler has had ACTIVE */
  get isUnproven(): boolean {
    return this.#again !== null && this.active && !this.#hasHeard;
  }
  get id(): string {
    return this.greeting?.session ?? "";
  }
  get #isAcceptor(): boolean {
    return this.dialledTo === null;
  }

  /** Of its connection, to set what Node has no option for; not to be kept. -1: there is none, or Node does not say */
  get fd(): number {
    return this.#connection.fd;
  }
  /** That descriptor is other links', too. */
  get isShared(): boolean {
    return this.#connection.isShared;
  }

  #ready(watch: LinkWatch<LinkLeg> | null, key: Buffer, hello: Buffer): void {
    this.#connection.greeted();
    this.#state = "ready";
    this.#wasReady = true;
    this.#carries = true;
    this.#onGreeting = null;
    if (watch !== null)
      this.#again = {
        watch,
        trunks: null,
        secret: secretOf(key, hello),
        previousSecret: null,
        attempt: 0,
        trying: null,
      };
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
    this.#hasHeard = false;
    this.#again?.watch.add(this, true);
    this.#send(encodeActive(active));
  }
  sendHold(): void {
    this.#holding = true;
    this.#holdsAwaited++;
    this.#wasHeld = false;
    this.#isCounting = false;
    this.#send(frame(FRAME.hold));
  }
  sendResume(): void {
    this.#holding = false;
    this.#wasHeld = false;
    this.#isCounting = false;
    this.#move = null;
    this.#send(frame(FRAME.resume));
  }

  sendMove(to: Destination): void {
    this.prepared = null;
    this.#move = to;
    this.#send(encodeMove(to));
  }
  sendCount(): void {
    this.countedBytes = -1;
    this.#isCounting = true;
    this.#send(frame(FRAME.count));
  }

  // ---- dialler's side

  sendPrepared(isPrepared: boolean): void {
    this.#send(frame(FRAME.prepared, Buffer.of(isPrepared ? 1 : 0)));
  }
  sendCounted(bytes: number): void {
    this.#send(encodeCounted(bytes));
  }

  // ---- Leg

  write(chunk: Buffer): boolean {
    if (this.#state !== "ready") return true;
    this.#unsent = chunk;
    return this.#sendUnsent();
  }

  get #credit(): number {
    return LINK_WINDOW_BYTES + this.#creditedToUs - this.#sentBytes;
  }

  /** True when nothing is left to wait for. */
  #sendUnsent(): boolean {
    if (this.#carries && !this.#sendingHeld && this.#credit > 0 && this.#unsent.length > 0) {
      const part = this.#unsent.subarray(0, this.#credit);
      // an empty part of it would keep all of it
      this.#unsent = part.length < this.#unsent.length ? this.#unsent.subarray(part.length) : NO_BYTES;
      this.#sentBytes += part.length;
      if (this.#again !== null) this.#keep(part);
      this.#connection.writeData(part);
    }
    this.#waiting = this.#isStuck;
    return !this.#waiting;
  }

  #keep(part: Buffer): void {
    this.#kept ??= new Kept();
    this.#kept.push(part);
    this.#heardSinceSent = false;
    const { bytes } = this.#kept;
    if (bytes !== this.#sentBytes - this.#ackedBytes) assert.fail("what is sent is acknowledged or kept");
    if (bytes > LINK_WINDOW_BYTES) assert.fail("no more is kept than may be on its way");
    if (this.#receivedBytes - this.#toldBytes >= ACK_BYTES_MIN) this.#sendAck();
  }

  get #isStuck(): boolean {
    return this.#unsent.length > 0 || !this.#carries || this.#connection.isFull;
  }

  onWritten(): void {
    if (!this.#waiting || this.#state !== "ready" || this.#isStuck) return;
    this.#waiting = false;
    this.listener?.onDrain();
  }

  /** Bytes of the outstanding chunk that never left; the end forgets them. What is in the socket stays on its way. */
  takeUnsent(): Buffer {
    const bytes = this.#unsent.length === 0 ? NO_BYTES : Buffer.from(this.#unsent);
    this.#unsent = NO_BYTES;
    this.#waiting = false;
    return bytes;
  }

  /** What was sent and is not known to have arrived: of a link that is given up, for another one. */
  takeUnacknowledged(): Buffer {
    const bytes = Buffer.concat(this.#kept?.chunks() ?? []);
    this.#kept = null;
    this.#ackedBytes = this.#sentBytes;
    return bytes;
  }

  /** Resolves when what was framed has been given to the kernel, or there is no connection. */
  flushed(): Promise<void> {
    return this.#connection.flushed();
  }

  finish(): void {
    if (this.#finSent || this.#state !== "ready") return;
    if (this.#sendingHeld) {
      this.#finHeld = true;
      return;
    }
    this.#finSent = true;
    this.#heardSinceSent = false;
    this.#send(frame(FRAME.fin));
  }

  reset(): void {
    this.close(RST_CODE.reset);
  }

  /** Ends the session (`reset`) or tells the dialler to look for the owner elsewhere (`moved`). Nobody is called back. */
  close(code: number): void {
    if (this.#state === "over") return;
    if (this.#again !== null && this.active && !this.#carries && !this.#isAcceptor) {
      // The owner waits for this link, and its application for the session.
      this.#lastWord = code;
      this.listener = null;
      return;
    }
    if (this.#state === "ready") this.#send(rst(code));
    this.#end();
  }

  abandon(): void {
    this.#end();
  }

  /** Nothing more to say: what was framed is still delivered. Nobody is called back. */
  release(): void {
    if (this.#state === "over" || this.#isReleased || this.#lastWord !== null) return;
    if (this.#again !== null && this.#state === "ready" && this.#finSent && !this.#finAcked) {
      this.#isReleased = true;
      this.listener = null;
    } else this.#end();
  }

  pauseReading(): void {}
  resumeReading(): void {}

  consumed(bytes: number): void {
    this.#uncredited += bytes;
    if (this.#uncredited < CREDIT_BYTES_MIN || this.#state !== "ready" || !this.#carries) return;
    this.#send(encodeCredit(this.#uncredited));
    this.#credited();
  }

  #credited(): void {
    this.#creditedByUs += this.#uncredited;
    this.#uncredited = 0;
    this.#toldBytes = Math.max(this.#toldBytes, this.#creditedByUs);
    if (this.#again !== null)
      assert(this.#creditedByUs <= this.#receivedBytes, "no more is passed on than has come");
  }

  // ---- frames (ConnectionSink)

  onData(part: Buffer): void {
    if (this.#state === "over") return;
    this.#heard();
    this.#receivedBytes += part.length;
    const tooMuch = this.#receivedBytes > LINK_WINDOW_BYTES + this.#creditedByUs;
    if (this.#state === "greeting" || !this.#carries || tooMuch || this.#finReceived)
      this.#fail(RST_CODE.broken);
    else if (this.#delivering) this.listener?.onData(part);
    else this.#backlog.push(part);
  }

  onFrame(type: FrameType, payload: Buffer): void {
    if (this.#state === "over") return;
    if (this.#state === "greeting") {
      if (this.#onGreeting === null) this.#fail(RST_CODE.broken);
      else this.#onGreeting(type, payload);
      return;
    }
    if (type === FRAME.rst && this.isUnproven && endsLinkAlone(payload[0])) {
      this.#interrupted();
      return;
    }
    this.#heard();
    if (!this.#carries) {
      if (type === FRAME.resumed) this.#resumed(decodeResumed(payload));
      else if (type === FRAME.rst) this.#over(payload[0] as number);
      else this.#fail(RST_CODE.broken);
      return;
    }
    switch (type) {
      case FRAME.active:
        if (this.active || this.#isAcceptor) {
          this.#fail(RST_CODE.broken);
          return;
        }
        this.active = true;
        if (this.#again !== null) {
          this.#again.watch.add(this, false);
          this.#sendAck();
        }
        this.#events.onActive(this, decodeActive(payload));
        return;
      case FRAME.fin:
        this.#finReceived = true;
        if (this.#again !== null) this.#sendAck();
        if (this.#delivering) this.listener?.onFin();
        else this.#finInBacklog = true;
        return;
      case FRAME.credit:
        this.#creditedToUs += payload.readUInt32BE(0);
        if (this.#again !== null) this.#acknowledged({ bytes: this.#creditedToUs, fin: false });
        if (this.isOpen && this.#unsent.length > 0 && this.#sendUnsent()) this.listener?.onDrain();
        return;
      case FRAME.hold:
        this.#sendingHeld = true;
        this.#send(frame(FRAME.held));
        this.#events.onHold(this);
        return;
      case FRAME.held:
        this.#holdsAwaited = Math.max(0, this.#holdsAwaited - 1);
        this.#wasHeld = this.#holding;
        this.#events.onHeld(this);
        return;
      case FRAME.resume:
        this.#unhold();
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
      case FRAME.ask:
        this.#sendAck();
        return;
      case FRAME.ack:
        if (this.#again === null) this.#fail(RST_CODE.broken);
        else this.#acknowledged(decodeAck(payload));
        return;
      case FRAME.rst:
        this.#over(payload[0] as number);
        return;
      default:
        this.#fail(RST_CODE.broken);
    }
  }

  onGone(why: Gone): void {
    if (this.#state === "over") return;
    if (why === "fault" || this.#again === null || !this.active) this.#fail(RST_CODE.broken);
    else this.#interrupted();
  }

  /** What a listener throws ends its session, and this link with it. */
  onThrown(error: unknown): void {
    this.#events.onBroken(this, error);
    this.close(RST_CODE.reset);
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.onThrown(error);
    }
  }

  #unhold(): void {
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
    // over another connection it is said again (`#resumed`)
    if (this.#state === "ready" && this.#carries) this.#connection.write(bytes);
  }

  #sendAck(): void {
    this.#toldBytes = this.#receivedBytes;
    this.#send(encodeAck({ bytes: this.#receivedBytes, fin: this.#finReceived }));
  }

  /** The other end has so much of what was sent. */
  #acknowledged({ bytes, fin }: Received): void {
    if (bytes > this.#sentBytes || (fin && !this.#finSent)) {
      this.close(RST_CODE.mismatch);
      this.#events.onOver(this, RST_CODE.mismatch);
      return;
    }
    if (bytes > this.#ackedBytes) {
      this.#kept?.drop(bytes - this.#ackedBytes);
      this.#ackedBytes = bytes;
    }
    if (fin) this.#finAcked = true;
    if (this.#isReleased && this.#finAcked) this.#end();
  }

  // ---- another connection

  #heard(): void {
    this.#hasHeard = true;
    this.#heardSinceSent = true;
    this.#quiet = 0;
    this.#askedAt = -1;
    if (this.#carries) this.#lostAtMs = 0;
  }

  #interrupted(): void {
    this.#carries = false;
    this.#askedAt = -1;
    this.#connection.sink = NOBODY;
    this.#connection.destroy();
    if (this.#finAcked && this.#finReceived) {
      // Everything was said in both directions: this is how a link ends well.
      this.#end();
      return;
    }
    if (this.#lostAtMs === 0) this.#lostAtMs = performance.now();
    this.#events.onInterrupted?.(this);
    // not in the middle of what has broken it
    if (!this.#isAcceptor) setImmediate(() => this.tryAgain());
  }

  look(nowMs: number): void {
    this.#guard(() => this.#look(nowMs));
  }

  #look(nowMs: number): void {
    const again = this.#again;
    if (again === null || this.#state !== "ready") return;
    if (this.#carries) this.#lookAtConnection(nowMs, again);
    if (this.#lostAtMs === 0) return;
    if (nowMs - this.#lostAtMs >= again.watch.lostMsMax) {
      if (this.isOpen && !this.#isReleased) this.#events.onLate?.(this);
      this.#fail(RST_CODE.broken);
      return;
    }
    if (this.#isAcceptor) return;
    const { trying } = again;
    if (trying !== null) {
      const { progress } = trying.connection;
      trying.looks = progress > trying.progress ? 0 : trying.looks + 1;
      trying.progress = progress;
      if (trying.looks >= LOOKS_TO_GREET) {
        trying.connection.doubt();
        this.#stopTrying();
      }
    }
    this.#tryAgain();
  }

  #lookAtConnection(nowMs: number, { watch }: Again): void {
    this.#quiet++;
    if (this.#askedAt >= 0) {
      if (this.#quiet - this.#askedAt < LOOKS_UNTIL_LOST || this.#lostAtMs > 0) return;
      if (this.#connection.progress !== this.#progressAsked) {
        // the other end is there: its answer is behind what is others'
        this.#askedAt = this.#quiet;
        this.#progressAsked = this.#connection.progress;
        return;
      }
      this.#lostAtMs = nowMs;
      watch.foundSilent();
      return;
    }
    const isOutstanding = this.#sentBytes > this.#ackedBytes || (this.#finSent && !this.#finAcked);
    if (!isOutstanding) return;
    const isDoubtful = !this.#isAcceptor && !this.#heardSinceSent && this.#quiet >= LOOKS_UNTIL_DOUBT;
    if (isDoubtful || this.#quiet >= LOOKS_UNTIL_ASKED) this.ask();
  }

  ask(): void {
    if (!this.#carries || this.#askedAt >= 0 || this.#state !== "ready") return;
    if (this.#quiet < LOOKS_UNTIL_DOUBT) return;
    this.#askedAt = this.#quiet;
    this.#progressAsked = this.#connection.progress;
    this.#send(frame(FRAME.ask));
  }

  tryAgain(): void {
    this.#guard(() => this.#tryAgain());
  }

  /** Dialler: one attempt at a time. */
  #tryAgain(): void {
    const again = this.#again;
    if (again === null || again.trying !== null || this.#lostAtMs === 0 || this.#state !== "ready") return;
    const giveTurn = again.watch.takeTurn(this);
    if (giveTurn === null) return;
    again.attempt++;
    const [key] = again.watch.keys;
    const isThis = (): boolean => again.trying?.giveTurn === giveTurn;
    // it has broken, or is silent: what carries it would carry nothing new either
    this.#connection.doubt();
    const to = this.dialledTo as Endpoint;
    const connection = rejoin({
      connect: (sink) => connectionTo(to, again.trunks, sink),
      key,
      secret: again.secret,
      session: this.id,
      attempt: again.attempt,
      encrypted: this.#isEncrypted,
      onWelcome: (next, secret) => {
        if (!isThis()) return next.destroy();
        again.trying = null;
        giveTurn();
        again.secret = secret;
        this.#takeOver(next);
      },
      onRefused: (code) => {
        if (!isThis()) return;
        this.#stopTrying();
        this.#guard(() => this.#over(code));
      },
      onFailed: (why) => {
        if (!isThis()) return;
        this.#stopTrying();
        // Nobody listens there any more: the proxy that had the session has ended.
        if (why === "refused") this.#guard(() => this.#fail(RST_CODE.broken));
      },
    });
    again.trying = { connection, looks: 0, progress: 0, giveTurn };
  }

  #stopTrying(): void {
    const trying = this.#again?.trying ?? null;
    if (trying === null || this.#again === null) return;
    this.#again.trying = null;
    trying.connection.destroy();
    trying.giveTurn();
  }

  /** Acceptor: a greeting by which a link that is there goes on. It was this one's to read; nothing else of this one is needed. */
  #rejoined(
    nonce: Buffer,
    payload: Buffer,
    watch: LinkWatch<LinkLeg>,
    { keys, onRejoined }: AcceptOptions,
    refuse: (reason: string) => void,
  ): void {
    const said = decodeRejoin(keys, nonce, payload);
    if (said === null) {
      refuse("the greeting was not signed with a link key of this workload");
      this.#fail(RST_CODE.broken);
      return;
    }
    const link = watch.find(said.rejoin.session);
    const why =
      link === undefined
        ? "its session is not here"
        : link.#refusesRejoin(said.rejoin.attempt, nonce, payload);
    if (link === undefined || why !== null) {
      refuse(`it would go on with a link, but ${why}`);
      this.#connection.write(rst(RST_CODE.unknownSession));
      this.#end();
      return;
    }
    const connection = this.#connection;
    this.#state = "over";
    connection.greeted();
    connection.write(frame(FRAME.welcome, welcome(said.key, payload)));
    link.#welcomed(said.rejoin.attempt, nonce, payload, said.key);
    link.#takeOver(connection);
    onRejoined?.(link);
  }

  /** Nothing is changed by it. */
  #refusesRejoin(attempt: number, nonce: Buffer, payload: Buffer): string | null {
    const again = this.#again;
    if (again === null || this.#state !== "ready" || !this.active) return "that link cannot";
    if (attempt <= again.attempt) return "another attempt has come before it";
    if (provesSecret(again.secret, nonce, payload)) return null;
    if (again.previousSecret !== null && provesSecret(again.previousSecret, nonce, payload)) return null;
    return "its secret is not the link's";
  }

  #welcomed(attempt: number, nonce: Buffer, payload: Buffer, key: Buffer): void {
    const again = this.#again as Again;
    again.attempt = attempt;
    // who proves the newest has heard of it; otherwise the one before is all that it is known to have
    if (provesSecret(again.secret, nonce, payload)) again.previousSecret = again.secret;
    again.secret = secretOf(key, payload);
  }

  /** What was on the old connection and has not been read counts for nothing: it is framed again. */
  #takeOver(connection: LinkConnection): void {
    this.#connection.sink = NOBODY;
    this.#connection.destroy();
    assert(!this.#connection.isOpen, "one connection delivers at a time");
    this.#connection = connection;
    this.#carries = false;
    this.#askedAt = -1;
    this.#quiet = 0;
    if (this.#lostAtMs === 0) this.#lostAtMs = performance.now();
    connection.sink = this;
    this.#credited();
    this.#toldBytes = this.#receivedBytes;
    connection.write(
      encodeResumed({
        bytes: this.#receivedBytes,
        creditedBytes: this.#creditedByUs,
        fin: this.#finReceived,
        holds: this.#sendingHeld,
      }),
    );
  }

  #resumed({ bytes, creditedBytes, fin, holds }: Resumed): void {
    const again = this.#again as Again;
    const fits =
      bytes >= this.#ackedBytes &&
      bytes <= this.#sentBytes &&
      creditedBytes >= this.#creditedToUs &&
      creditedBytes <= bytes &&
      (this.#finSent || !fin);
    if (!fits) {
      this.#connection.write(rst(RST_CODE.mismatch));
      this.#over(RST_CODE.mismatch);
      return;
    }
    again.previousSecret = null;
    this.#lostAtMs = 0;
    this.#carries = true;
    this.#creditedToUs = creditedBytes;
    if (this.#lastWord !== null) {
      this.#send(rst(this.#lastWord));
      this.#end();
      return;
    }
    this.#acknowledged({ bytes, fin });
    if (!this.isOpen) return;
    for (const chunk of this.#kept?.chunks() ?? []) {
      for (let at = 0; at < chunk.length; at += DATA_BYTES_MAX)
        this.#connection.writeData(chunk.subarray(at, at + DATA_BYTES_MAX));
    }
    if (this.#finSent && !fin) this.#send(frame(FRAME.fin));
    this.#heardSinceSent = !(this.#sentBytes > this.#ackedBytes);
    // of what was passed on since RESUMED was said
    if (this.#uncredited >= CREDIT_BYTES_MIN) this.consumed(0);
    if (this.#isAcceptor) this.#sayAgain(holds);
    this.#events.onContinued?.(this);
    if (!this.#waiting) return;
    if (this.#sendUnsent()) this.listener?.onDrain();
  }

  /** Acceptor: what the dialler may not have heard, or its answer. */
  #sayAgain(isAnchorHolding: boolean): void {
    if (this.#holding && !(this.heldByAnchor && isAnchorHolding)) {
      this.#holdsAwaited = 1;
      this.#send(frame(FRAME.hold));
    } else if (!this.#holding) {
      this.#holdsAwaited = 0;
      if (isAnchorHolding) this.#send(frame(FRAME.resume));
    }
    if (this.#move !== null && this.prepared === null) this.#send(encodeMove(this.#move));
    if (this.#isCounting && this.countedBytes < 0) this.#send(frame(FRAME.count));
  }

  // ---- endings

  #end(): void {
    this.#state = "over";
    this.#backlog = [];
    this.#kept = null;
    this.#onGreeting = null;
    this.#stopTrying();
    this.#again?.watch.remove(this);
    this.#connection.sink = NOBODY;
    this.#connection.end();
  }

  #fail(code: number): void {
    if (this.#state === "over") return;
    if (this.#finSent && this.#finReceived && (this.#again === null || this.#finAcked)) {
      // Everything was said in both directions: this is how a link ends well.
      this.#end();
      return;
    }
    this.#connection.destroy();
    this.#over(code);
  }

  #over(code: number): void {
    if (this.#state === "over") return;
    const isToldOf = this.isOpen;
    this.#end();
    if (isToldOf) this.#events.onOver(this, code);
  }
}

/** @param trunks null: a connection of its own */
function connectionTo(to: Endpoint, trunks: Trunks | null, sink: ConnectionSink): LinkConnection {
  return trunks === null ? SocketConnection.dial(to, sink) : trunks.open(to, sink);
}

/**
 * Of an RST: its link is over, whose session goes on. A dialler's on a link that it prepared may cross with the owner's ACTIVE. One that has
 * had ACTIVE says ACK first, so from one that has said nothing since it means: it has not, and will dial as for a new link.
 */
function endsLinkAlone(code: number | undefined): boolean {
  return code === RST_CODE.moved || code === RST_CODE.broken;
}

function rst(code: number): Buffer {
  return Buffer.concat([frameHeader(FRAME.rst, 1), Buffer.of(code)]);
}
