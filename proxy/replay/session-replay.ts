/**
 * The replay tier of one session: the client's socket stays while the application ends and another instance of it begins.
 *
 *   attached ──(application gone)──▶ unavailable ──(it listens again: dialled)──▶ returning ──(all sent again)──▶ attached
 *                                     │ after `unavailableMsMax`
 *                                     └─▶ HTTP: unavailable (503 to every request, the connection stays) │ WebSocket: Close 1012
 *
 * Everything the client sent and the application has not answered is in the log; what the client sends while the
 * application is unavailable is not read at first (flow control), and held when that would take too long. When the application is
 * back, its new connection gets, in this order: what is to be sent again (`plan.ts`; for a WebSocket the handshake and the
 * messages `delivery` asks for), what was held, and then again whatever the client sends.
 *
 * There is no HTTP client in here: what is sent again are the client's own bytes.
 *
 * Invariants: bytes of the client reach each instance of the application in order and at most once; a request that may have been
 * acted upon reaches no second instance unless it is idempotent or the policy allows it; the client gets one answer a request.
 */
import assert from "node:assert/strict";
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import type { Leg } from "#proxy/stream/leg.ts";
import { nullLeg } from "#proxy/stream/null-leg.ts";
import type { Pump } from "#proxy/stream/pump.ts";
import type { PortConfig } from "../contract/commands.ts";
import { refusal } from "../protocol/http-answer.ts";
import type { HttpHead } from "../protocol/http-head.ts";
import type { Observer, RequestRecord } from "../protocol/observer.ts";
import {
  encodeClose,
  encodePing,
  encodePong,
  type FrameWalker,
  OPCODE,
} from "../protocol/websocket-frames.ts";
import { agreementOf, agrees, type Handshake, HandshakeAnswer } from "./handshake.ts";
import type { HeldBudget } from "./held-bytes.ts";
import { HeldBytes } from "./held-bytes.ts";
import { InboundLog } from "./inbound-log.ts";
import { type PlanStep, planReplay } from "./plan.ts";
import { type SavedSetUp, SetUp } from "./set-up.ts";

/** RFC 6455 7.4.1, and the registry: 1012 Service Restart, 1013 Try Again Later */
const CLOSE_NORMAL = 1000;
const CLOSE_RESTART = 1012;
const CLOSE_LATER = 1013;
/** instances of the application one request, or one unanswered message, is given to */
const ATTEMPTS_MAX = 3;
/**
 * … of these, instances that ended within moments of being given it: it may be what ends them. Only an instance that has really been there is counted, see
 * `#suspect`: a connection to a process that is ending already, which accepts nothing any more, is none.
 */
const DEATHS_MAX = 2;
const MOMENTS_MS = 1_000;
/** instances in a row, each a short one without a word, that a WebSocket is dialled again to */
const SILENT_LIVES_MAX = 10;
const LONG_LIFE_MS_MIN = 10_000;
/** before the next instance is tried when the last two went at once: those that end are often several processes */
const AGAIN_MS = 50;
const RETRY_AFTER_S = 1;
/** of the client's bytes, looked at together */
const PART_BYTES_MAX = 32 * 1024;
const PING_PAYLOAD = Buffer.from("holdfast");
const NO_BYTES: Buffer = Buffer.alloc(0);

/** The session, as its replay sees it. */
export interface Carrier {
  readonly inbound: Pump;
  readonly outbound: Pump;
  /** neither connected to the application nor to another proxy */
  readonly isWaiting: boolean;
  /** Lets go of the application's end without a word to the client; what waited for it is dropped. */
  detach(): void;
  /**
   * The last bytes for the client, then the FIN; what it still sends is read and thrown away, for a while. Nobody watches the
   * session any more: calls {@link SessionReplay.stop}.
   */
  endAfter(bytes: Buffer): void;
  reset(reason: string): void;
  /** Runs what a timer is for; what it throws ends the session and nothing else. */
  guard(work: () => void): void;
  onBroken(error: unknown): void;
}

export interface ReplayCounters {
  sessionsUnavailable: number;
  requestsReplayed: number;
  requestsRefused: number;
  messagesReplayed: number;
  webSocketsRefused: number;
  heldRefused: number;
}

export interface ReplayHost {
  readonly limits: ProxyLimits;
  readonly budget: HeldBudget;
  readonly counters: ReplayCounters;
  /** a restart is under way: nothing new may reach the application */
  readonly isPaused: boolean;
  /** Held bytes could not be written to disk, or read from it: one client is refused or reset for it. */
  onSpillFailed(error: unknown): void;
  /** Which instance of the application would be connected to: another number is another instance; 0: there is none; -1: unknown. */
  instanceFor(carrier: Carrier): number;
  /** The session wants the application, as soon as it may be dialled. */
  want(carrier: Carrier): void;
}

export interface SavedReplay {
  sentUpTo: number;
  losses: number;
  swallows: boolean;
  isAnsweredEarly: boolean;
  logBase: number;
  log: Buffer;
  messageEnds: number[];
  handshake: Handshake | null;
  setUp: SavedSetUp;
}

export class SessionReplay {
  readonly #carrier: Carrier;
  readonly #host: ReplayHost;
  readonly #port: PortConfig;
  readonly #observer: Observer;
  readonly #log: InboundLog;
  readonly #held: HeldBytes;
  readonly #setUp: SetUp;
  #plan: PlanStep[] = [];
  /** the next step of the plan waits for its answer, or has just got it */
  #awaited: RequestRecord | null = null;
  #isNextDue = false;
  #returning = false;
  /** while a plan is carried out: how far it has got; else -1 */
  #resentTo = -1;
  /** up to where some instance of the application was given the client's stream */
  #sentUpTo = 0;
  /** instances lost in a row without an answer */
  #losses = 0;
  #attachedAtMs = 0;
  /** when the present instance was given the oldest of the requests that it has not answered */
  #givenAtMs = 0;
  /** the instance of the application that was given them (`instanceFor`), or was there when they were lost; -1: not known */
  #instance = -1;
  /** requests that were lost within moments of being given to it: whether it has ended is known when the session is connected again */
  #suspects: RequestRecord[] = [];
  /** The request whose body is under way was refused: the rest of that goes nowhere, up to `#swallowTo` once it is known. */
  #swallows = false;
  #swallowTo = -1;
  /** the request whose body is under way has its answer */
  #isAnsweredEarly = false;
  #isGivenUp = false;
  #isStopped = false;
  #heldFin = false;
  #handshake: Handshake | null = null;
  /** WebSocket: ends of the client's messages that the log still has */
  #messageEnds: number[] = [];
  /** WebSocket: the application has said something since the client's last message */
  #isAnswered = true;
  /** WebSocket, application unavailable: where the client's frames are */
  #walker: FrameWalker | null = null;
  #stallTimer: NodeJS.Timeout | null = null;
  #pingTimer: NodeJS.Timeout | null = null;
  #idleTimer: NodeJS.Timeout | null = null;
  #againTimer: NodeJS.Timeout | null = null;
  #handshakeTimer: NodeJS.Timeout | null = null;

  constructor(options: {
    carrier: Carrier;
    host: ReplayHost;
    port: PortConfig;
    observer: Observer;
    saved: SavedReplay | null;
  }) {
    this.#carrier = options.carrier;
    this.#host = options.host;
    this.#port = options.port;
    this.#observer = options.observer;
    const { saved } = options;
    this.#held = new HeldBytes(options.host.budget);
    this.#setUp = new SetUp(options.port.setUp, saved?.setUp ?? null);
    this.#log = new InboundLog(
      options.host.limits.replayBytesMax,
      saved?.logBase ?? options.observer.bytesIn,
    );
    if (saved === null) return;
    this.#sentUpTo = saved.sentUpTo;
    this.#losses = saved.losses;
    this.#swallows = saved.swallows;
    this.#isAnsweredEarly = saved.isAnsweredEarly;
    this.#messageEnds = saved.messageEnds;
    this.#handshake = saved.handshake;
    if (saved.log.length > 0) this.#log.append(saved.log);
    this.#log.skipTo(options.observer.bytesIn);
  }

  save(): SavedReplay {
    const { base, keptBytes } = this.#log;
    return {
      sentUpTo: this.#sentUpTo,
      losses: this.#losses,
      swallows: this.#swallows,
      isAnsweredEarly: this.#isAnsweredEarly,
      logBase: base,
      log: this.#log.slice(base, base + keptBytes),
      messageEnds: this.#messageEnds,
      handshake: this.#handshake,
      setUp: this.#setUp.save(),
    };
  }

  /** Something of the client waits for the application: it is to be connected. */
  get isPending(): boolean {
    if (!this.#carrier.isWaiting) return this.#returning;
    return (
      this.#handshake !== null ||
      this.#observer.inFlightCount > 0 ||
      !this.#observer.inboundAtBoundary ||
      !this.#held.isEmpty
    );
  }
  get isUnavailable(): boolean {
    return this.#carrier.isWaiting && this.isPending;
  }
  get isWebSocket(): boolean {
    return this.#observer.protocol === "websocket";
  }
  get isGivenUp(): boolean {
    return this.#isGivenUp;
  }

  // ---- the client's side

  fromClient(chunk: Buffer): void {
    if (chunk.length <= PART_BYTES_MAX) {
      this.#take(chunk);
      return;
    }
    // The log is trimmed between parts: what is in one is kept until it has been looked at.
    for (let at = 0; at < chunk.length && !this.#isStopped; at += PART_BYTES_MAX)
      this.#take(chunk.subarray(at, at + PART_BYTES_MAX));
  }

  #take(chunk: Buffer): void {
    if (this.#isGivenUp || (!this.#carrier.isWaiting && !this.#returning)) this.pass(chunk);
    else this.#hold(chunk);
  }

  clientFin(): void {
    const { inbound } = this.#carrier;
    if (this.#isGivenUp || (this.#carrier.isWaiting && !this.isPending)) {
      // Told to go, the session has no replay any more; its inbound side still takes the FIN.
      this.#carrier.endAfter(NO_BYTES);
      inbound.receiveFin();
    } else if (this.#held.isEmpty) inbound.receiveFin();
    else this.#heldFin = true;
  }

  /** On its way to the application. */
  pass(chunk: Buffer): void {
    const observer = this.#observer;
    const { inbound } = this.#carrier;
    const before = observer.bytesIn;
    if (observer.protocol === "websocket") this.#trimMessages();
    this.#log.append(chunk);
    const wasIdle = observer.inFlightCount === 0;
    observer.inbound(chunk);
    if (wasIdle && observer.inFlightCount > 0) this.#givenAtMs = performance.now();
    let rest = chunk;
    if (this.#swallows && isOpaque(observer)) {
      // Where the refused body ends is not known any more.
      this.#carrier.reset("the rest of a refused request cannot be read");
      return;
    }
    if (this.#swallows) {
      const gone = this.#swallowTo < 0 ? chunk.length : this.#swallowTo - before;
      if (this.#swallowTo >= 0) this.#swallows = false;
      inbound.skip(gone);
      rest = chunk.subarray(gone);
    }
    if (rest.length > 0) inbound.receive(rest);
    if (observer.protocol === "websocket") this.#trimMessages();
    else if (isOpaque(observer)) this.#forget();
    this.afterFeed();
  }

  #swallow(): void {
    this.#swallows = true;
    this.#swallowTo = -1;
  }

  /** Nothing can be sent again of what cannot be read. */
  #forget(): void {
    this.#log.dropTo(this.#log.end);
  }

  // ---- what the observer sees

  // Hooks: they only take note, `afterFeed` acts.

  onRequestEnd(record: RequestRecord): void {
    this.#isAnsweredEarly = false;
    // Only one body is under way: this one's.
    if (this.#swallows && this.#swallowTo < 0) this.#swallowTo = record.end;
  }

  onAnswered(record: RequestRecord): void {
    this.#losses = 0;
    if (record.end < 0) this.#isAnsweredEarly = true;
    if (this.#awaited === record) this.#isNextDue = true;
  }

  /** After every chunk the observer was shown, and after that chunk was passed on. */
  afterFeed(): void {
    const observer = this.#observer;
    if (observer.protocol === "http") this.#log.dropTo(Math.min(this.#unanswered, this.#log.end));
    else if (this.#awaited !== null && isOpaque(observer)) {
      this.#carrier.reset("the answer to a request that was sent again cannot be read");
      return;
    }
    if (this.#isNextDue) {
      this.#isNextDue = false;
      this.#awaited = null;
      this.#advance();
    } else if (this.#isGivenUp) this.#refuseAll();
    else if (this.#host.isPaused && !this.#returning && this.#isIdle) this.#carrier.inbound.hold();
  }

  /** offset of the first byte of the client that may have to be sent again */
  get #unanswered(): number {
    const { oldest, inboundMessageStart } = this.#observer;
    return oldest === null ? inboundMessageStart : Math.min(oldest.start, inboundMessageStart);
  }

  onUpgraded(record: RequestRecord, answer: HttpHead): void {
    const isWhole = record.end === record.headEnd && this.#log.covers(record.start, record.headEnd);
    if (this.#observer.protocol === "websocket" && isWhole) {
      this.#handshake = {
        request: Buffer.from(this.#log.slice(record.start, record.headEnd)),
        agreed: agreementOf(answer),
      };
      this.#setUp.agreed(this.#handshake);
    }
    this.#log.dropTo(Math.min(this.#observer.inboundMessageStart, this.#log.end));
    this.#messageEnds.length = 0;
  }

  onMessage(direction: "in" | "out", start: number, end: number): void {
    this.#isAnswered = direction === "out";
    if (direction === "in") {
      if (this.#setUp.isListening)
        this.#setUp.message(this.#log.covers(start, end) ? this.#log.slice(start, end) : null, end);
      // The ends are bounded as the log is.
      if (this.#log.covers(this.#log.base, end)) this.#messageEnds.push(end);
      return;
    }
    this.#losses = 0;
    if (this.#port.delivery === "atLeastOnce") this.#trimTo(this.#observer.inboundMessageStart);
  }

  /** At most once: whatever has left us counts as delivered. Pings alone need not be kept in any case. */
  #trimMessages(): void {
    const isDelivered = this.#port.delivery === "atMostOnce" && this.#carrier.inbound.pendingBytes === 0;
    const isBare = this.#messageEnds.length === 0 && this.#log.covers(this.#log.base, this.#log.end);
    if (isDelivered || isBare) this.#trimTo(this.#observer.inboundMessageStart);
  }

  #trimTo(offset: number): void {
    this.#log.dropTo(Math.min(offset, this.#log.end));
    this.#messageEnds.length = 0;
  }

  // ---- the application is gone

  /** False: nothing can be hidden here; the client is to see what the application did. */
  applicationGone(how: "fin" | "reset" | "cut"): boolean {
    if (this.#hides(how)) return true;
    if (how !== "fin" || !this.#returning) return false;
    // The client is not read while its requests are sent again, and nothing will change that now.
    this.#carrier.detach();
    this.#carrier.endAfter(NO_BYTES);
    return true;
  }

  #hides(how: "fin" | "reset" | "cut"): boolean {
    const observer = this.#observer;
    if (how === "fin" && !observer.outboundAtBoundary) observer.outboundFin();
    if (observer.protocol === "websocket") return this.#webSocketGone(how);
    if (observer.protocol !== "http" && observer.protocol !== "detecting") return false;
    if (!observer.outboundAtBoundary || observer.oldest?.answerStarted === true) return false;
    const { closing, oldest } = observer;
    // The last answer has said that the connection ends with it.
    if (closing && oldest?.keepAlive !== false) return false;
    // Everything is answered, and nothing more will come: of half a head neither.
    if (this.#carrier.inbound.finRead && oldest === null && this.#held.isEmpty) return false;
    if (this.#isAnsweredEarly && !this.#swallows) this.#swallow();
    this.#detach(how);
    if (this.isPending) this.#again();
    else this.#idle();
    return true;
  }

  #webSocketGone(how: "fin" | "reset" | "cut"): boolean {
    const state = this.#observer.webSocket;
    assert.ok(state !== null);
    // The application has said goodbye, or is in the middle of a message: there is nothing honest to go on with.
    if (state.closeOut || state.outMidFrame || this.#handshake === null) return false;
    const hasGap = !this.#log.covers(this.#log.base, this.#log.end);
    if (!this.#observer.outboundAtBoundary || hasGap || state.closeIn) {
      this.#detach(how);
      this.#refuseWebSocket(state.closeIn ? CLOSE_NORMAL : CLOSE_RESTART);
      return true;
    }
    // A compressor that goes on from where it was meets a decompressor that begins anew (RFC 7692 7.1.1).
    if ((state.compressedIn && !this.noTakeover) || !this.#setUp.mayGoOn) {
      this.#detach(how);
      this.#refuseWebSocket(CLOSE_RESTART);
      return true;
    }
    const ping = state.unansweredPing;
    this.#detach(how);
    if (this.#port.delivery === "atMostOnce") {
      let from = this.#log.base;
      for (const end of this.#messageEnds) if (end <= this.#sentUpTo) from = end;
      this.#log.dropTo(Math.min(from, this.#log.end));
      this.#messageEnds = this.#messageEnds.filter((end) => end > from);
    }
    if (this.#losses >= (this.#messageEnds.length > 0 ? ATTEMPTS_MAX : SILENT_LIVES_MAX)) {
      this.#refuseWebSocket(CLOSE_RESTART);
      return true;
    }
    if (ping !== null) this.#say(encodePong(ping));
    this.#watchFrames();
    this.#carrier.inbound.spooling = true;
    this.#pingTimer = setInterval(
      () => this.#carrier.guard(() => this.#say(encodePing(PING_PAYLOAD))),
      this.#host.limits.pingMs,
    );
    this.#again();
    return true;
  }

  /** the client was told not to let its compressor go on from message to message */
  noTakeover = false;

  #detach(how: "fin" | "reset" | "cut"): void {
    const given = this.#resentTo < 0 ? this.#observer.bytesIn : this.#resentTo;
    this.#sentUpTo = Math.max(this.#sentUpTo, given - this.#carrier.inbound.pendingBytes);
    this.#plan = [];
    this.#awaited = null;
    this.#isNextDue = false;
    this.#returning = false;
    this.#resentTo = -1;
    this.#host.counters.sessionsUnavailable++;
    this.#carrier.detach();
    this.#carrier.inbound.hold();
    const lost = this.#observer.inFlight.filter(({ start }) => start < this.#sentUpTo);
    for (const record of lost) marksOf(record).attempts++;
    const wasShort = performance.now() - this.#givenAtMs < MOMENTS_MS;
    if (how !== "cut" && wasShort && lost.length > 0) this.#suspect(lost);
    if (!this.isPending) this.#losses = 0;
    else if (this.#handshake === null) this.#losses++;
    else if (how !== "cut") {
      const wasLong = performance.now() - this.#attachedAtMs >= LONG_LIFE_MS_MIN;
      this.#losses = wasLong ? 1 : this.#losses + 1;
    }
    if (this.isPending) this.waits();
  }

  /**
   * A connection that is lost proves no death: an application may reset one and live. It has died where nobody listens when the loss is
   * noticed (a process closes its listener first, having opened it first), or somebody else does when the session is connected again.
   * A dial that still met the listener of a process that was ending finds the same one, and adds nothing.
   */
  #suspect(records: RequestRecord[]): void {
    this.#suspects = records;
    const instance = this.#host.instanceFor(this.#carrier);
    if (instance === 0 || this.#isOther(instance)) this.#judge(true);
    else this.#instance = instance;
  }

  #isOther(instance: number): boolean {
    return instance > 0 && this.#instance > 0 && instance !== this.#instance;
  }

  #judge(hasDied: boolean): void {
    if (hasDied) for (const record of this.#suspects) marksOf(record).deaths++;
    this.#suspects = [];
  }

  #again(): void {
    if (this.#losses < 2) this.#host.want(this.#carrier);
    else {
      this.#againTimer ??= setTimeout(() => {
        this.#againTimer = null;
        this.#carrier.guard(() => this.#host.want(this.#carrier));
      }, AGAIN_MS * this.#losses);
    }
  }

  /** The client's sending is not held up for ever: after a while its bytes are taken in. */
  waits(): void {
    this.#stallTimer ??= setTimeout(() => {
      this.#stallTimer = null;
      if (!this.#carrier.isWaiting && !this.#returning) return;
      this.#carrier.guard(() => {
        this.#carrier.inbound.spooling = true;
      });
    }, this.#host.limits.stallMsMax);
  }

  /** Nothing to be done for the client: the application is dialled when it says something. */
  #idle(): void {
    if (this.#host.isPaused) return;
    this.#carrier.inbound.spooling = true;
    this.#idleTimer ??= setTimeout(() => {
      this.#idleTimer = null;
      if (!this.#carrier.isWaiting || this.isPending || this.#isGivenUp) return;
      this.#carrier.guard(() => this.#carrier.endAfter(NO_BYTES));
    }, this.#host.limits.detachedMsMax);
  }

  // ---- while it is unavailable

  #hold(chunk: Buffer): void {
    const wasPending = this.isPending;
    if (!this.#keep(chunk)) {
      this.#host.counters.heldRefused++;
      this.#refuseHeld();
      return;
    }
    const { inbound } = this.#carrier;
    if (this.#walker !== null) {
      // What cannot be read is the application's to complain about.
      if (this.#walker.feed(chunk) !== null) this.#walker = null;
    } else if (this.#stallTimer !== null || !wasPending) inbound.spooling = false;
    if (!wasPending && this.#carrier.isWaiting) {
      this.waits();
      this.#host.want(this.#carrier);
    }
  }

  #keep(chunk: Buffer): boolean {
    try {
      return this.#held.push(chunk);
    } catch (error) {
      this.#host.onSpillFailed(error);
      return false;
    }
  }

  #watchFrames(): void {
    this.#walker = this.#observer.frames({
      onFrame: (frame) => {
        if (frame.opcode === OPCODE.ping) this.#say(encodePong(frame.controlPayload));
      },
    });
  }

  /** Between frames only: the application's last one was complete. */
  #say(frame: Buffer): void {
    if (this.#carrier.isWaiting) this.#carrier.outbound.receive(frame);
  }

  #refuseHeld(): void {
    // What came first tells whether it is somebody who understands a 503.
    const first = this.#observer.protocol === "detecting" ? this.#shiftHeld() : null;
    if (first !== null) this.#observer.inbound(first);
    if (this.#handshake !== null) this.#refuseWebSocket(CLOSE_LATER);
    else if (this.#observer.protocol === "http") {
      this.#host.counters.requestsRefused++;
      this.#carrier.endAfter(
        refusal({ status: 503, retryAfterS: RETRY_AFTER_S, close: true, headOnly: false }),
      );
    } else this.#carrier.reset("held bytes over the limit");
  }

  #refuseWebSocket(code: number): void {
    const isNormal = code === CLOSE_NORMAL;
    if (!isNormal) this.#host.counters.webSocketsRefused++;
    this.#carrier.endAfter(encodeClose(code, isNormal ? "" : "the application is being restarted"));
  }

  /** Its application has not come back in time. */
  giveUp(): void {
    if (this.#isGivenUp || !this.#carrier.isWaiting) return;
    if (this.#handshake !== null) {
      this.#refuseWebSocket(CLOSE_RESTART);
      return;
    }
    this.#stopTimers();
    this.#isGivenUp = true;
    const { inbound } = this.#carrier;
    inbound.spooling = false;
    inbound.setSink(nullLeg);
    this.#refuseAll();
    if (!this.#carrier.isWaiting) return;
    for (let chunk = this.#shiftHeld(); chunk !== null; chunk = this.#shiftHeld()) {
      this.pass(chunk);
      if (!this.#carrier.isWaiting) return;
    }
    if (this.#heldFin || inbound.finRead) this.clientFin();
    else inbound.unhold();
  }

  /** It can be dialled again: does the session want it? */
  comeBack(): boolean {
    if (this.#isGivenUp) {
      if (!this.#isIdle) return false;
      this.#isGivenUp = false;
      this.#carrier.inbound.hold();
      this.#carrier.inbound.removeSink(NO_BYTES);
      this.#log.dropTo(this.#log.end);
    }
    if (this.isPending || this.#observer.bytesIn === 0) return true;
    this.#idle();
    return false;
  }

  /** What is complete, and what waits to be asked for its body. Of the rest the body is read first. */
  #refuseAll(): void {
    if (isOpaque(this.#observer)) {
      this.#carrier.reset("the application is unavailable");
      return;
    }
    for (let record = this.#observer.oldest; record !== null; record = this.#observer.oldest) {
      const isCutShort = this.#carrier.inbound.finRead && this.#held.isEmpty;
      const asks = record.end < 0 && (record.expectsContinue || isCutShort);
      if (record.end < 0 && !asks) return;
      this.#refuse(record, asks);
      if (!this.#carrier.isWaiting) return;
    }
    // The application may be back: it could not have the session in the middle of a body.
    if (this.#isIdle && !this.#host.isPaused) this.#host.want(this.#carrier);
  }

  /** @param asks the client waits for 100, so that nobody knows whether it sends the body (RFC 9110 10.1.1), or will not */
  #refuse(record: RequestRecord, asks: boolean): void {
    this.#host.counters.requestsRefused++;
    const close = asks || !record.keepAlive;
    const bytes = refusal({
      status: 503,
      retryAfterS: RETRY_AFTER_S,
      close,
      headOnly: record.method === "HEAD",
    });
    if (close) {
      this.#carrier.endAfter(bytes);
      return;
    }
    this.#observer.outbound(bytes);
    this.#carrier.outbound.receive(bytes);
  }

  // ---- it is back

  get needsHandshake(): boolean {
    return this.#handshake !== null;
  }

  /** On the new connection: the old handshake. Calls back once; `why` is null when the same was agreed. */
  shakeHands(leg: Leg, done: (why: string | null) => void): void {
    const { request, agreed } = this.#handshake as Handshake;
    const answer = new HandshakeAnswer();
    let over = false;
    const end = (why: string | null, rest: Buffer = NO_BYTES): void => {
      if (over) return;
      over = true;
      this.#stopHandshakeTimer();
      leg.listener = null;
      if (why !== null) this.#refuseWebSocket(CLOSE_RESTART);
      done(why);
      if (rest.length > 0 && !this.#carrier.isWaiting) this.#fromNewLife(rest);
    };
    /** It was the connection of an instance that ends. */
    const lost = (why: string): void => {
      if (over) return;
      if (++this.#losses >= SILENT_LIVES_MAX) {
        end(why);
        return;
      }
      over = true;
      this.#stopHandshakeTimer();
      leg.listener = null;
      done(why);
      this.#again();
    };
    this.#stopHandshakeTimer();
    this.#handshakeTimer = setTimeout(
      () => this.#carrier.guard(() => end("the application has not answered the handshake")),
      this.#host.limits.unavailableMsMax,
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
      onBroken: (error) => this.#carrier.onBroken(error),
    };
    leg.write(request);
    leg.resumeReading();
  }

  #fromNewLife(bytes: Buffer): void {
    this.#observer.outbound(bytes);
    this.#carrier.outbound.receive(bytes);
  }

  /** Before the new connection is joined to the session. */
  beforeAttach(): void {
    this.#stopTimers();
    this.#walker = null;
    this.#carrier.inbound.spooling = false;
    const { inbound } = this.#carrier;
    // What never left us waits in the pump, and goes out by itself.
    const isUnsent =
      this.#handshake === null &&
      this.#held.isEmpty &&
      inbound.pendingBytes > 0 &&
      this.#observer.bytesIn - inbound.pendingBytes <= this.#unanswered;
    this.#returning = !isUnsent && (this.isPending || this.#heldFin);
    if (!this.#returning) return;
    inbound.hold();
    inbound.holdFin();
    inbound.clear();
  }

  attached(): void {
    this.#attachedAtMs = performance.now();
    this.#givenAtMs = this.#attachedAtMs;
    // Asked only where a request has been lost: of a first instance it is seen when it ends.
    const instance = this.#observer.inFlight.some(({ tag }) => tag !== null)
      ? this.#host.instanceFor(this.#carrier)
      : -1;
    this.#judge(this.#isOther(instance));
    this.#instance = instance;
    if (!this.#returning) {
      if (!this.#host.isPaused) this.#carrier.inbound.unhold();
      return;
    }
    this.waits();
    if (this.#handshake !== null) {
      this.#resentTo = this.#log.end;
      const begun = this.#setUp.again(this.#log.base);
      const bytes = Buffer.concat([...begun, this.#log.slice(this.#log.base, this.#log.end)]);
      this.#host.counters.messagesReplayed += begun.length + this.#messageEnds.length;
      if (bytes.length > 0) this.#carrier.inbound.resend(bytes);
      this.#drainHeld();
      return;
    }
    const plan = planReplay({
      inFlight: this.#observer.inFlight,
      bytesIn: this.#swallows ? this.#observer.inboundMessageStart : this.#observer.bytesIn,
      messageStart: this.#observer.inboundMessageStart,
      sentUpTo: this.#sentUpTo,
      unsafe: this.#port.replayUnsafe,
      hasLife: (record) => {
        const { attempts, deaths } = marksOf(record);
        return attempts < ATTEMPTS_MAX && deaths < DEATHS_MAX;
      },
      covers: (from, to) => this.#losses < SILENT_LIVES_MAX && this.#log.covers(from, to),
    });
    if (plan === null) {
      this.#carrier.reset("the beginning of a request is lost");
      return;
    }
    this.#plan = plan;
    this.#resentTo = this.#unanswered;
    this.#advance();
  }

  /** Carries out the plan, as far as it goes without an answer of the application. */
  #advance(): void {
    while (this.#returning && this.#awaited === null) {
      const step = this.#plan.shift();
      if (step === undefined) {
        this.#drainHeld();
        return;
      }
      if (step.do === "refuse") {
        const { record } = step;
        this.#resentTo = record.end < 0 ? this.#observer.bytesIn : record.end;
        if (record.end < 0) this.#swallow();
        // A body that nothing more comes of: the client has closed its side.
        const isCutShort = this.#carrier.inbound.finRead && this.#held.isEmpty;
        this.#refuse(record, record.end < 0 && (record.expectsContinue || isCutShort));
        this.#isNextDue = false;
      } else {
        if (step.from < this.#sentUpTo) this.#host.counters.requestsReplayed++;
        this.#resentTo = step.to;
        if (this.#plan.length > 0) this.#awaited = step.record;
        this.#carrier.inbound.resend(this.#log.slice(step.from, step.to));
      }
    }
  }

  /** The pump takes bytes again. */
  drained(): void {
    if (this.#returning && this.#plan.length === 0 && this.#awaited === null) this.#drainHeld();
  }

  #drainHeld(): void {
    const { inbound } = this.#carrier;
    this.#resentTo = -1;
    while (!inbound.isBlocked) {
      const chunk = this.#shiftHeld();
      if (chunk === null) break;
      this.pass(chunk);
      if (!this.#returning) return;
    }
    if (!this.#held.isEmpty || inbound.isBlocked) return;
    this.#returning = false;
    this.#stopTimers();
    inbound.spooling = false;
    if (this.#heldFin) inbound.receiveFin();
    this.#heldFin = false;
    inbound.releaseFin();
    if (!this.#host.isPaused) inbound.unhold();
  }

  #shiftHeld(): Buffer | null {
    try {
      return this.#held.shift();
    } catch (error) {
      this.#host.onSpillFailed(error);
      this.#carrier.reset("held bytes are lost");
      return null;
    }
  }

  // ---- a restart that is planned

  get #isIdle(): boolean {
    return this.#observer.inFlightCount === 0 && this.#observer.inboundAtBoundary;
  }

  /** Nothing new to the application; what is under way may end. */
  quiesce(): void {
    if (this.#carrier.isWaiting) {
      this.#carrier.inbound.spooling = false;
      return;
    }
    if (this.#observer.protocol === "websocket" || this.#isIdle) this.#carrier.inbound.hold();
  }
  /** … as before, where it was not cut. */
  unquiesce(): void {
    if (!this.#carrier.isWaiting && !this.#returning) this.#carrier.inbound.unhold();
  }
  /** A WebSocket's application need not answer: whoever waits for this waits for a while only. */
  get isQuiet(): boolean {
    if (this.#returning) return false;
    if (this.#carrier.isWaiting) return true;
    if (this.#carrier.inbound.pendingBytes > 0) return false;
    return this.#observer.protocol === "websocket" ? this.#isAnswered : this.#observer.inFlightCount === 0;
  }

  /** What is held goes where bytes wait that were read: into the pump, to travel with the session. Nothing is on disk. */
  settle(): void {
    if (!this.#carrier.isWaiting) return;
    for (let chunk = this.#shiftHeld(); chunk !== null; chunk = this.#shiftHeld()) this.pass(chunk);
    if (this.#heldFin) this.#carrier.inbound.receiveFin();
    this.#heldFin = false;
    this.#stopTimers();
    this.#carrier.inbound.spooling = false;
  }

  /** The session is over, or was told to go. */
  stop(): void {
    this.#isStopped = true;
    this.#stopTimers();
    this.#held.clear();
    this.#handshake = null;
    this.#walker = null;
    this.#plan = [];
    this.#awaited = null;
    this.#returning = false;
    this.#isGivenUp = false;
  }

  #stopTimers(): void {
    if (this.#stallTimer !== null) clearTimeout(this.#stallTimer);
    if (this.#pingTimer !== null) clearInterval(this.#pingTimer);
    if (this.#idleTimer !== null) clearTimeout(this.#idleTimer);
    if (this.#againTimer !== null) clearTimeout(this.#againTimer);
    this.#stallTimer = null;
    this.#pingTimer = null;
    this.#idleTimer = null;
    this.#againTimer = null;
    this.#stopHandshakeTimer();
  }

  #stopHandshakeTimer(): void {
    if (this.#handshakeTimer !== null) clearTimeout(this.#handshakeTimer);
    this.#handshakeTimer = null;
  }
}

/** Instances of the application that were given the request and ended without an answer; and of these those that it may have ended. */
interface Marks {
  attempts: number;
  deaths: number;
}

function marksOf(record: RequestRecord): Marks {
  record.tag ??= { attempts: 0, deaths: 0 } satisfies Marks;
  return record.tag as Marks;
}

/** No messages are known in it. */
function isOpaque({ protocol }: Observer): boolean {
  return protocol !== "http" && protocol !== "websocket" && protocol !== "detecting";
}
