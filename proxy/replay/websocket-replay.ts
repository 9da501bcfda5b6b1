/**
 * The replay of a WebSocket (RFC 6455). The next instance of the application gets the client's handshake again, byte for byte, and
 * has to answer it alike; then the first messages where `set-up.ts` asks for them; then the messages that `delivery` asks for.
 * Meanwhile pings of the client are answered, and it gets some. Where its socket cannot mean the same any more it gets Close 1012.
 *
 * Without the handshake (its request was longer than the log) nothing is hidden.
 */
import assert from "node:assert/strict";
import type { Leg } from "#proxy/stream/leg.ts";
import type { HttpHead } from "../protocol/http-head.ts";
import type { RequestRecord } from "../protocol/observer.ts";
import {
  encodeClose,
  encodePing,
  encodePong,
  type FrameWalker,
  OPCODE,
} from "../protocol/websocket-frames.ts";
import { agreementOf, agrees, type Handshake, HandshakeAnswer } from "./handshake.ts";
import {
  ATTEMPTS_MAX,
  type Loss,
  type ProtocolReplay,
  type ReplaySession,
  type SavedProtocol,
  type SavedWebSocketReplay,
  SILENT_LIVES_MAX,
} from "./protocol-replay.ts";
import { newSetUp, SetUp } from "./set-up.ts";

/** RFC 6455 7.4.1, and the registry: 1012 Service Restart, 1013 Try Again Later */
const CLOSE_NORMAL = 1000;
const CLOSE_RESTART = 1012;
const CLOSE_LATER = 1013;
/** an instance that was there for longer begins the count of those that were lost in a row anew */
const LONG_LIFE_MS_MIN = 10_000;
const PING_PAYLOAD = Buffer.from("holdfast");
const NO_BYTES: Buffer = Buffer.alloc(0);

export class WebSocketReplay implements ProtocolReplay {
  readonly #session: ReplaySession;
  readonly #setUp: SetUp;
  #handshake: Handshake | null;
  /** ends of the client's messages that the log still has */
  #messageEnds: number[];
  /**
   * messages of the client less those of the application, never below 0. An application that says something of its own accord
   * makes it too small, one that need not answer too large
   */
  #unanswered = 0;
  /** This instance has answered a handshake that was to be sent to it next. */
  #isUnasked = false;
  /** application unavailable: where the client's frames are */
  #walker: FrameWalker | null = null;
  #pingTimer: NodeJS.Timeout | null = null;
  #handshakeTimer: NodeJS.Timeout | null = null;

  constructor(session: ReplaySession, saved: SavedWebSocketReplay | null) {
    this.#session = session;
    this.#setUp = new SetUp(session.port.setUp, saved?.setUp ?? newSetUp(null));
    this.#handshake = saved?.handshake ?? null;
    this.#messageEnds = saved?.messageEnds ?? [];
  }

  /** @param record the request that was answered with `answer`, 101 */
  static upgraded(session: ReplaySession, record: RequestRecord, answer: HttpHead): WebSocketReplay {
    const { start, headEnd, end } = record;
    const isWhole = end === headEnd && session.log.covers(start, headEnd);
    const handshake = isWhole
      ? { request: Buffer.from(session.log.slice(start, headEnd)), agreed: agreementOf(answer) }
      : null;
    const replay = new WebSocketReplay(session, { handshake, messageEnds: [], setUp: newSetUp(handshake) });
    replay.#isUnasked = session.isReturning && session.resentTo >= 0 && start >= session.resentTo;
    return replay;
  }

  save(): SavedProtocol {
    return {
      swallows: false,
      isAnsweredEarly: false,
      messageEnds: this.#messageEnds,
      handshake: this.#handshake,
      setUp: this.#setUp.save(),
    };
  }

  get isPending(): boolean {
    return this.#handshake !== null;
  }
  get isAtRest(): boolean {
    return true;
  }
  get unanswered(): number {
    return this.#unanswered;
  }

  // ---- what passes

  take(chunk: Buffer): Buffer {
    const { observer, log } = this.#session;
    if (!this.#session.isOpaque) this.#trimMessages();
    log.append(chunk);
    observer.inbound(chunk);
    return chunk;
  }

  passed(): void {
    this.#trimMessages();
  }

  afterFeed(): boolean {
    if (this.#isUnasked) this.#session.carrier.reset("the application answered a handshake before it got it");
    return this.#isUnasked;
  }

  onRequestEnd(): void {}
  onAnswered(): void {}

  onMessage(direction: "in" | "out", start: number, end: number): void {
    const { observer, log, port } = this.#session;
    this.#unanswered = direction === "in" ? this.#unanswered + 1 : Math.max(0, this.#unanswered - 1);
    if (direction === "in") {
      if (this.#setUp.isListening)
        this.#setUp.message(log.covers(start, end) ? log.slice(start, end) : null, end);
      // The ends are bounded as the log is.
      if (log.covers(log.base, end)) this.#messageEnds.push(end);
    } else if (port.delivery === "atLeastOnce") this.#trimTo(observer.inboundMessageStart);
  }

  /** At most once: whatever has left us counts as delivered. Pings alone need not be kept in any case. */
  #trimMessages(): void {
    const { observer, log, port, carrier } = this.#session;
    const isDelivered = port.delivery === "atMostOnce" && carrier.inbound.pendingBytes === 0;
    const isBare = this.#messageEnds.length === 0 && log.covers(log.base, log.end);
    if (isDelivered || isBare) this.#trimTo(observer.inboundMessageStart);
  }

  #trimTo(offset: number): void {
    const { log } = this.#session;
    log.dropTo(Math.min(offset, log.end));
    this.#messageEnds.length = 0;
  }

  // ---- the application is gone

  hides(how: Loss): boolean {
    const { observer, log, port, carrier, host } = this.#session;
    const state = observer.webSocket;
    assert.ok(state !== null);
    // The application has said goodbye, or is in the middle of a message: there is nothing honest to go on with.
    if (state.closeOut || state.outMidFrame || this.#handshake === null) return false;
    const hasGap = !log.covers(log.base, log.end);
    if (!observer.outboundAtBoundary || hasGap || state.closeIn) {
      this.#session.detach(how);
      this.#refuse(state.closeIn ? CLOSE_NORMAL : CLOSE_RESTART);
      return true;
    }
    // A compressor that goes on from where it was meets a decompressor that begins anew (RFC 7692 7.1.1).
    if ((state.compressedIn && !this.#session.noTakeover) || !this.#setUp.mayGoOn) {
      this.#session.detach(how);
      this.#refuse(CLOSE_RESTART);
      return true;
    }
    const ping = state.unansweredPing;
    this.#session.detach(how);
    if (port.delivery === "atMostOnce") this.#dropSent();
    this.#unanswered = this.#messageEnds.length;
    if (this.#session.losses >= (this.#messageEnds.length > 0 ? ATTEMPTS_MAX : SILENT_LIVES_MAX)) {
      this.#refuse(CLOSE_RESTART);
      return true;
    }
    if (ping !== null) this.#say(encodePong(ping));
    this.#watchFrames();
    carrier.inbound.spooling = true;
    this.#pingTimer = setInterval(
      () => carrier.guard(() => this.#say(encodePing(PING_PAYLOAD))),
      host.limits.pingMs,
    );
    this.#session.again();
    return true;
  }

  /** Messages that an instance was given whole. */
  #dropSent(): void {
    const { log, sentUpTo } = this.#session;
    let from = log.base;
    for (const end of this.#messageEnds) if (end <= sentUpTo) from = end;
    log.dropTo(Math.min(from, log.end));
    this.#messageEnds = this.#messageEnds.filter((end) => end > from);
  }

  interrupted(): void {}

  lost(how: Loss): void {
    if (how === "cut") return;
    const wasLong = performance.now() - this.#session.attachedAtMs >= LONG_LIFE_MS_MIN;
    this.#session.losses = wasLong ? 1 : this.#session.losses + 1;
  }

  // ---- while it is unavailable

  #watchFrames(): void {
    this.#walker = this.#session.observer.frames({
      onFrame: (frame) => {
        if (frame.opcode === OPCODE.ping) this.#say(encodePong(frame.controlPayload));
      },
    });
  }

  held(chunk: Buffer): boolean {
    if (this.#walker === null) return false;
    // What cannot be read is the application's to complain about.
    if (this.#walker.feed(chunk) !== null) this.#walker = null;
    return true;
  }

  /** Between frames only: the application's last one was complete. */
  #say(frame: Buffer): void {
    const { carrier } = this.#session;
    // one that does not read has no more of them: RFC 6455, 5.5.3
    if (carrier.isWaiting && !carrier.outbound.isBlocked) carrier.outbound.receive(frame);
  }

  refuseHeld(): boolean {
    const { observer, carrier } = this.#session;
    // An application that is back may be in the middle of a frame, although it does not read.
    const isBetweenFrames = carrier.isWaiting || observer.webSocket?.outMidFrame === false;
    if (this.#handshake === null || !isBetweenFrames) return false;
    this.#refuse(CLOSE_LATER);
    return true;
  }

  giveUp(): boolean {
    if (this.#handshake === null) return false;
    this.#refuse(CLOSE_RESTART);
    return true;
  }

  /** Without a handshake, which only a session of another proxy may lack: it cannot be told. */
  refuseAll(): void {
    this.#session.carrier.reset("the application is unavailable");
  }

  #refuse(code: number): void {
    const { carrier, host } = this.#session;
    const isNormal = code === CLOSE_NORMAL;
    if (!isNormal) host.counters.webSocketsRefused++;
    carrier.endAfter(encodeClose(code, isNormal ? "" : "the application is being restarted"));
  }

  // ---- it is back

  /** The old handshake, and bytes behind the answer when the session has the connection. */
  shakeHands(leg: Leg, done: (why: string | null) => void): void {
    if (this.#handshake === null) {
      done(null);
      return;
    }
    const { carrier, host } = this.#session;
    const { request, agreed } = this.#handshake;
    const answer = new HandshakeAnswer();
    let over = false;
    const end = (why: string | null, rest: Buffer = NO_BYTES): void => {
      if (over) return;
      over = true;
      this.#stopHandshakeTimer();
      leg.listener = null;
      if (why !== null) this.#refuse(CLOSE_RESTART);
      done(why);
      if (rest.length > 0 && !carrier.isWaiting) this.#fromNewInstance(rest);
    };
    /** It was the connection of an instance that ends. */
    const lost = (why: string): void => {
      if (over) return;
      if (++this.#session.losses >= SILENT_LIVES_MAX) {
        end(why);
        return;
      }
      over = true;
      this.#stopHandshakeTimer();
      leg.listener = null;
      done(why);
      this.#session.again();
    };
    this.#stopHandshakeTimer();
    this.#handshakeTimer = setTimeout(
      () => carrier.guard(() => end("the application has not answered the handshake")),
      host.limits.unavailableMsMax,
    );
    leg.listener = {
      onData: (chunk) => {
        const found = answer.feed(chunk);
        if (found === undefined) return;
        if (found === null) end("the application refused the handshake");
        else if (!agrees(agreed, found.agreed)) end("the application agreed to something else");
        else end(null, found.rest);
      },
      onFin: () => lost("the application ended the handshake"),
      onReset: (reason) => lost(reason),
      onDrain: () => {},
      onBroken: (error) => carrier.onBroken(error),
    };
    leg.write(request);
    leg.resumeReading();
  }

  #fromNewInstance(bytes: Buffer): void {
    this.#session.observer.outbound(bytes);
    this.#session.carrier.outbound.receive(bytes);
  }

  beforeAttach(): boolean {
    this.#walker = null;
    // The handshake precedes whatever waits in the pump.
    return false;
  }

  attached(): void {}

  sendAgain(): void {
    const { log, host, carrier } = this.#session;
    this.#session.resentTo = log.end;
    const begun = this.#setUp.again(log.base);
    const bytes = Buffer.concat([...begun, log.slice(log.base, log.end)]);
    host.counters.messagesReplayed += begun.length + this.#messageEnds.length;
    if (bytes.length > 0) carrier.inbound.resend(bytes);
    this.#session.drainHeld();
  }

  get isSentAgain(): boolean {
    return true;
  }

  stopTimers(): void {
    if (this.#pingTimer !== null) clearInterval(this.#pingTimer);
    this.#pingTimer = null;
    this.#stopHandshakeTimer();
  }

  #stopHandshakeTimer(): void {
    if (this.#handshakeTimer !== null) clearTimeout(this.#handshakeTimer);
    this.#handshakeTimer = null;
  }

  stop(): void {
    this.#handshake = null;
    this.#walker = null;
  }
}
