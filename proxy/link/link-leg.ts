/**
 * A link to another proxy of the workload as an {@link Leg}. Begins parked: authenticated, and carrying nothing until
 * the owner's ACTIVE. One link carries one session.
 *
 * The socket is always read (flow is by credit, `link-flow.ts`), so control frames are never stuck behind data, and what a move finds in
 * flight is bounded.
 *
 * Where both ends can, and from ACTIVE on, a link outlives its connection (ARCHITECTURE, "Resumable links"): it is open, and
 * takes nothing, until the dialler has another one. What was on its way is framed again.
 *
 * Here is what the frames come to, and how a link ends; how it begins is `link-greeting.ts`.
 */
import assert from "node:assert/strict";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Leg, LegListener } from "#proxy/stream/leg.ts";
import { type Greeting, secretOf } from "./link-auth.ts";
import {
  type Active,
  DATA_BYTES_MAX,
  type Destination,
  decodeAck,
  decodeActive,
  decodeMove,
  decodePrepared,
  decodeResumed,
  encodeAck,
  encodeActive,
  encodeCounted,
  encodeCredit,
  encodeResumed,
  encodeRst,
  FRAME,
  type FrameType,
  frame,
  PREPARED,
  type Prepared,
  type Received,
  type Resumed,
  RST_CODE,
} from "./link-codec.ts";
import { type ConnectionSink, type Gone, type LinkConnection, NOBODY } from "./link-connection.ts";
import { type ContinuedLink, LinkContinuation } from "./link-continuation.ts";
import { Incoming, Outgoing } from "./link-flow.ts";
import { LinkQuestions } from "./link-questions.ts";
import type { LinkWatch, WatchedLink } from "./link-watch.ts";
import type { Trunks } from "./trunks.ts";

/** received and not acknowledged: told with what is sent anyway, so that two who talk in turn keep little */
const ACK_BYTES_MIN = 2_048;

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
  /** Its session has ended, and the other end has not confirmed everything; then that it has, or that the link is over. */
  onReleased?(link: LinkLeg, isConfirmed: boolean): void;
  /** The link is over, once. `code` is from RST_CODE; orderly when both FINs had passed. */
  onOver(link: LinkLeg, code: number): void;
  /** One of the above, or of the end's listener, has thrown. The link is closed after this; nothing follows. */
  onBroken(link: LinkLeg, error: unknown): void;
}

type LinkState = "greeting" | "ready" | "over";

export interface LinkBeginning {
  connect(sink: ConnectionSink): LinkConnection;
  events: LinkListener;
  /** it may speak TLS */
  isEncrypted: boolean;
  /** default: it was accepted */
  dialled?: { to: Endpoint; greeting: Greeting };
  /** A frame of the greeting, which ends with `ready`, `leave` or `failGreeting`. */
  onGreeting(type: FrameType, payload: Buffer): void;
  /** It has failed, and nothing follows. Default: the link is over. */
  onFailed?(): void;
}

/** What it takes to go on over another connection. */
export interface Resumable {
  watch: LinkWatch<LinkLeg>;
  /** dialler: what carries links; null: each has a connection of its own */
  trunks: Trunks | null;
}

export class LinkLeg implements Leg, ConnectionSink, WatchedLink, ContinuedLink {
  listener: LegListener | null = null;
  readonly reusesBuffer = false;
  readonly keepsChunk = true;
  greeting: Greeting | null;
  /** null on the acceptor's side */
  readonly dialledTo: Endpoint | null;
  readonly isEncrypted: boolean;
  /** the owner has sent ACTIVE on it */
  active = false;

  #connection: LinkConnection;
  readonly #events: LinkListener;
  /** until it is ready */
  #greeting: Pick<LinkBeginning, "onGreeting" | "onFailed"> | null;
  #state: LinkState = "greeting";
  /** DATA may be framed: the other end is known to have all that precedes it, or to be about to get it */
  #carries = false;
  readonly #out = new Outgoing();
  readonly #in = new Incoming();
  /** what is written waits for room, for credit, or for a connection */
  #waiting = false;
  /** anything, since ACTIVE */
  #hasHeard = false;
  /** acceptor, from the first question on */
  #questions: LinkQuestions | null = null;
  #watch: LinkWatch<LinkLeg> | null = null;
  /** null: the link ends with its connection */
  #again: LinkContinuation<LinkLeg> | null = null;
  /** its session has ended: it stays until the other end has the FIN */
  #isReleased = false;
  #hasMovedOn = false;
  /** its session was ended, with this code, while there was no connection: said on the next; null: no */
  #lastWord: number | null = null;

  constructor(beginning: LinkBeginning) {
    const { connect, events, isEncrypted, dialled } = beginning;
    this.#events = events;
    this.isEncrypted = isEncrypted;
    this.greeting = dialled?.greeting ?? null;
    this.dialledTo = dialled?.to ?? null;
    this.#greeting = beginning;
    this.#connection = connect(this);
  }

  /** Of a link that lost its connection too: it may go on. */
  get isOpen(): boolean {
    return this.#state !== "over" && this.#lastWord === null;
  }
  get outstandingBytes(): number {
    return this.#out.unsentBytes;
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
    return this.#questions?.isHeld === true;
  }
  /** acceptor: the answer to the last MOVE; null: none yet */
  get prepared(): Prepared | null {
    return this.#questions?.prepared ?? null;
  }
  /** acceptor: the answer to the last COUNT, in bytes of the session; -1: none yet */
  get countedBytes(): number {
    return this.#questions?.countedBytes ?? -1;
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

  // ---- for its greeting

  get connection(): LinkConnection {
    return this.#connection;
  }

  /** @param resumable null: it ends with its connection. @param hello the HELLO that was welcomed, by `key` */
  ready(resumable: Resumable | null, key: Buffer, hello: Buffer): void {
    this.#connection.greeted();
    this.#state = "ready";
    this.#carries = true;
    this.#greeting = null;
    if (resumable === null) return;
    const { watch, trunks } = resumable;
    this.#watch = watch;
    this.#again = new LinkContinuation<LinkLeg>(this, watch, trunks, secretOf(key, hello));
  }

  failGreeting(): void {
    this.#fail(RST_CODE.broken);
  }

  /** Its connection is another's from now on, and nothing else of it is needed. */
  leave(): LinkConnection {
    this.#state = "over";
    return this.#connection;
  }

  /** Acceptor: why a REJOIN is not for it to go on by; null: it is. Nothing is changed by it. */
  refusesRejoin(attempt: number, nonce: Buffer, payload: Buffer): string | null {
    if (this.#again === null || this.#state !== "ready" || !this.active) return "that link cannot";
    return this.#again.refuses(attempt, nonce, payload);
  }

  /** Acceptor: that REJOIN was welcomed. */
  rejoined(
    connection: LinkConnection,
    { attempt, nonce, payload, key }: { attempt: number; nonce: Buffer; payload: Buffer; key: Buffer },
  ): void {
    this.#again?.welcomed(attempt, nonce, payload, key);
    this.takeOver(connection);
  }

  // ---- owner's side

  sendActive(active: Active): void {
    this.active = true;
    this.#hasHeard = false;
    this.#watch?.add(this, true);
    this.#send(encodeActive(active));
  }
  sendHold(): void {
    this.#send(this.#asks.hold());
  }
  sendResume(): void {
    this.#send(this.#asks.resume());
  }
  sendMove(to: Destination): void {
    this.#send(this.#asks.move(to));
  }
  sendCount(): void {
    this.#send(this.#asks.count());
  }

  get #asks(): LinkQuestions {
    this.#questions ??= new LinkQuestions();
    return this.#questions;
  }

  // ---- dialler's side

  sendPrepared(prepared: Prepared): void {
    this.#send(frame(FRAME.prepared, Buffer.of(PREPARED[prepared])));
  }
  sendCounted(bytes: number): void {
    this.#send(encodeCounted(bytes));
  }

  // ---- Leg

  write(chunk: Buffer): boolean {
    if (this.#state !== "ready") return true;
    this.#out.offer(chunk);
    return this.#sendUnsent();
  }

  /** True when nothing is left to wait for. */
  #sendUnsent(): boolean {
    const part = this.#carries ? this.#out.next(this.#again !== null) : null;
    if (part !== null) {
      if (this.#again !== null) {
        this.#again.sent();
        if (this.#in.untoldBytes >= ACK_BYTES_MIN) this.#sendAck();
      }
      this.#connection.writeData(part);
    }
    this.#waiting = this.#isStuck;
    return !this.#waiting;
  }

  get #isStuck(): boolean {
    return this.#out.hasUnsent || !this.#carries || this.#connection.isFull;
  }

  onWritten(): void {
    if (!this.#waiting || this.#state !== "ready" || this.#isStuck) return;
    this.#waiting = false;
    this.listener?.onDrain();
  }

  /** Bytes of the outstanding chunk that never left; the end forgets them. What is in the socket stays on its way. */
  takeUnsent(): Buffer {
    this.#waiting = false;
    return this.#out.takeUnsent();
  }

  /** What was sent and is not known to have arrived: of a link that is given up, for another one. */
  takeUnacknowledged(): Buffer {
    return this.#out.takeUnacknowledged();
  }

  /** Resolves when what was framed has been given to the kernel, or there is no connection. */
  flushed(): Promise<void> {
    return this.#connection.flushed();
  }

  finish(): void {
    if (this.#state !== "ready" || !this.#out.finish()) return;
    this.#again?.sent();
    this.#send(frame(FRAME.fin));
  }

  /** From now on bytes go to the listener; what arrived before is handed over first. */
  startDelivering(): void {
    if (!this.#in.isDelivering && this.listener !== null) this.#in.startDelivering(this.listener);
  }

  pauseReading(): void {}
  resumeReading(): void {}

  consumed(bytes: number): void {
    this.#in.consume(bytes);
    if (this.#in.hasCredit && this.#state === "ready" && this.#carries)
      this.#send(encodeCredit(this.#takeCredit()));
  }

  #takeCredit(): number {
    const bytes = this.#in.takeCredit();
    if (this.#again !== null)
      assert(this.#in.creditedBytes <= this.#in.bytes, "no more is passed on than has come");
    return bytes;
  }

  // ---- frames (ConnectionSink)

  onData(part: Buffer): void {
    if (this.#state === "over") return;
    this.#heard();
    const fits = this.#in.take(part.length);
    if (this.#state === "greeting" || !this.#carries || !fits) this.#fail(RST_CODE.broken);
    else if (this.#in.isDelivering) this.listener?.onData(part);
    else this.#in.keep(part);
  }

  onFrame(type: FrameType, payload: Buffer): void {
    if (this.#state === "over") return;
    if (this.#state === "greeting") {
      this.#greeting?.onGreeting(type, payload);
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
          this.#watch?.add(this, false);
          this.#sendAck();
        }
        this.#events.onActive(this, decodeActive(payload));
        return;
      case FRAME.fin:
        this.#in.takeFin();
        if (this.#again !== null) this.#sendAck();
        if (this.#in.isDelivering) this.listener?.onFin();
        return;
      case FRAME.credit:
        this.#out.credit(payload.readUInt32BE(0));
        if (this.#again !== null) this.#acknowledged({ bytes: this.#out.creditedBytes, fin: false });
        if (this.isOpen && this.#out.hasUnsent && this.#sendUnsent()) this.listener?.onDrain();
        return;
      case FRAME.hold:
        this.#out.hold();
        this.#send(frame(FRAME.held));
        this.#events.onHold(this);
        return;
      case FRAME.held:
        this.#asks.onHeld();
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
        this.#asks.prepared = decodePrepared(payload);
        return;
      case FRAME.count:
        this.#events.onCount?.(this);
        return;
      case FRAME.counted:
        this.#asks.countedBytes = Number(payload.readBigUInt64BE(0));
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
    this.#out.unhold();
    this.#events.onResume(this);
    if (this.#out.hasUnsent) {
      if (this.#sendUnsent()) this.listener?.onDrain();
    } else if (this.#out.takeHeldFin()) this.finish();
  }

  #send(bytes: Buffer): void {
    // over another connection it is said again (`#resumed`)
    if (this.#state === "ready" && this.#carries) this.#connection.write(bytes);
  }

  #sendAck(): void {
    this.#in.told();
    this.#send(encodeAck(this.#in.received));
  }

  /** The other end has so much of what was sent. */
  #acknowledged(received: Received): void {
    if (!this.#out.acknowledge(received)) {
      this.close(RST_CODE.mismatch);
      this.#events.onOver(this, RST_CODE.mismatch);
      return;
    }
    if (this.#isReleased && this.#out.finAcked) this.#end();
  }

  #heard(): void {
    this.#hasHeard = true;
    this.#again?.heard();
  }

  // ---- another connection (WatchedLink, ContinuedLink)

  get isOutstanding(): boolean {
    return this.#out.isOutstanding;
  }
  get progress(): number {
    return this.#connection.progress;
  }

  #interrupted(): void {
    this.#carries = false;
    this.#again?.lost();
    this.#connection.sink = NOBODY;
    this.#connection.destroy();
    if (this.#out.finAcked && this.#in.fin) {
      // Everything was said in both directions: this is how a link ends well.
      this.#end();
      return;
    }
    this.#events.onInterrupted?.(this);
    // not in the middle of what has broken it
    if (!this.#isAcceptor) setImmediate(() => this.tryAgain());
  }

  look(nowMs: number): void {
    this.#guard(() => {
      if (this.#state === "ready") this.#again?.look(nowMs);
    });
  }

  late(): void {
    if (this.isOpen && !this.#isReleased && !this.#hasMovedOn) this.#events.onLate?.(this);
    this.#fail(RST_CODE.broken);
  }

  ask(): void {
    if (this.isConnected && this.#again?.asks()) this.#send(frame(FRAME.ask));
  }

  tryAgain(): void {
    this.#guard(() => {
      if (this.#state === "ready") this.#again?.tryAgain();
    });
  }

  /** It has broken, or is silent: what carries it would carry nothing new either. */
  doubt(): void {
    this.#connection.doubt();
  }

  refused(code: number): void {
    this.#guard(() => this.#over(code));
  }

  deserted(): void {
    this.#guard(() => this.#fail(RST_CODE.broken));
  }

  /** What was on the old connection and has not been read counts for nothing: it is framed again. */
  takeOver(connection: LinkConnection): void {
    this.#connection.sink = NOBODY;
    this.#connection.destroy();
    assert(!this.#connection.isOpen, "one connection delivers at a time");
    this.#connection = connection;
    this.#carries = false;
    this.#again?.begins();
    connection.sink = this;
    this.#takeCredit();
    this.#in.told();
    connection.write(
      encodeResumed({
        ...this.#in.received,
        creditedBytes: this.#in.creditedBytes,
        holds: this.#out.isHeld,
      }),
    );
  }

  #resumed(resumed: Resumed): void {
    if (!this.#out.resume(resumed)) {
      this.#connection.write(encodeRst(RST_CODE.mismatch));
      this.#over(RST_CODE.mismatch);
      return;
    }
    this.#again?.goesOn(resumed.bytes === this.#out.sentBytes);
    this.#carries = true;
    if (this.#lastWord !== null) {
      this.#send(encodeRst(this.#lastWord));
      this.#end();
      return;
    }
    this.#acknowledged(resumed);
    if (!this.isOpen) return;
    for (const chunk of this.#out.unacknowledged()) {
      for (let at = 0; at < chunk.length; at += DATA_BYTES_MAX)
        this.#connection.writeData(chunk.subarray(at, at + DATA_BYTES_MAX));
    }
    if (this.#out.finSent && !resumed.fin) this.#send(frame(FRAME.fin));
    // of what was passed on since RESUMED was said
    this.consumed(0);
    if (this.#isAcceptor) for (const question of this.#asks.again(resumed.holds)) this.#send(question);
    this.#events.onContinued?.(this);
    if (!this.#waiting) return;
    if (this.#sendUnsent()) this.listener?.onDrain();
  }

  // ---- endings

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
    if (this.#state === "ready") this.#send(encodeRst(code));
    this.#end();
  }

  abandon(): void {
    this.#end();
  }

  /** Its session goes on elsewhere: the other end closes its connection when it has what was framed, and does not come back. */
  moveOn(): void {
    this.#hasMovedOn = true;
    this.listener = null;
  }

  /** Nothing more to say: what was framed is still delivered. Nobody is called back. */
  release(): void {
    if (this.#state === "over" || this.#isReleased || this.#lastWord !== null) return;
    if (this.#again !== null && this.#state === "ready" && this.#out.finSent && !this.#out.finAcked) {
      this.#isReleased = true;
      this.listener = null;
      this.#events.onReleased?.(this, false);
    } else this.#end();
  }

  #end(): void {
    if (this.#isReleased && this.#state !== "over") this.#events.onReleased?.(this, true);
    this.#state = "over";
    this.#in.forget();
    this.#out.forget();
    this.#greeting = null;
    this.#again?.stopTrying();
    this.#watch?.remove(this);
    this.#connection.sink = NOBODY;
    this.#connection.end();
  }

  #fail(code: number): void {
    if (this.#state === "over") return;
    if (this.#out.finSent && this.#in.fin && (this.#again === null || this.#out.finAcked)) {
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
    const onFailed = this.#greeting?.onFailed;
    this.#end();
    if (onFailed !== undefined) onFailed();
    else if (isToldOf) this.#events.onOver(this, code);
  }
}

/**
 * Of an RST: its link is over, whose session goes on. A dialler's on a link that it prepared may cross with the owner's ACTIVE. One that has
 * had ACTIVE says ACK first, so from one that has said nothing since it means: it has not, and will dial as for a new link.
 */
function endsLinkAlone(code: number | undefined): boolean {
  return code === RST_CODE.moved || code === RST_CODE.broken;
}
