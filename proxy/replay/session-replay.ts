/**
 * The replay tier of one session: the client's socket stays while the application ends and another instance of it begins.
 *
 *   attached ──(application gone)──▶ unavailable ──(it listens again: dialled)──▶ returning ──(all sent again)──▶ attached
 *                                     │ after `unavailableMsMax`
 *                                     └─▶ HTTP: unavailable (503 to every request, the connection stays) │ WebSocket: Close 1012
 *
 * Everything the client sent and the application has not answered is in the log; what the client sends while the
 * application is unavailable is not read at first (flow control), and held when that would take too long. When the application is
 * back, its new connection gets, in this order: what the protocol sends again, what was held, and then again whatever the client
 * sends.
 *
 * This file drives: what is logged and held, when the session is connected again, how long anything waits. What a protocol makes of
 * it is behind {@link ProtocolReplay}: `http-replay.ts` until the client's first upgrade, `websocket-replay.ts` after one to WebSocket.
 * Bytes that cannot be read stay with the part that could not, which is asked no more whether it hides a loss.
 *
 * There is no HTTP client in here: what is sent again are the client's own bytes.
 *
 * Invariants: bytes of the client reach each instance of the application in order and at most once; a request that may have been
 * acted upon reaches no second instance unless it is idempotent or the policy allows it; the client gets one answer a request.
 */
import type { Leg } from "#proxy/stream/leg.ts";
import { nullLeg } from "#proxy/stream/null-leg.ts";
import type { PortConfig } from "../contract/commands.ts";
import type { HttpHead } from "../protocol/http-head.ts";
import type { Observer, RequestRecord } from "../protocol/observer.ts";
import { HeldBytes } from "./held-bytes.ts";
import { HttpReplay } from "./http-replay.ts";
import { InboundLog } from "./inbound-log.ts";
import type { Loss, ProtocolReplay, ReplaySession, SavedReplay } from "./protocol-replay.ts";
import type { Carrier, ReplayHost } from "./replay-host.ts";
import { WebSocketReplay } from "./websocket-replay.ts";

/** before the next instance is tried when the last two went at once: those that end are often several processes */
const AGAIN_MS = 50;
/** of the client's bytes, looked at together */
const PART_BYTES_MAX = 32 * 1024;
const NO_BYTES: Buffer = Buffer.alloc(0);

export interface ReplayOptions {
  carrier: Carrier;
  host: ReplayHost;
  port: PortConfig;
  observer: Observer;
  saved: SavedReplay | null;
}

export class SessionReplay implements ReplaySession {
  readonly carrier: Carrier;
  readonly host: ReplayHost;
  readonly port: PortConfig;
  readonly observer: Observer;
  readonly log: InboundLog;
  noTakeover = false;
  losses = 0;
  resentTo = -1;
  readonly #held: HeldBytes;
  #protocol: ProtocolReplay;
  #isReturning = false;
  #sentUpTo = 0;
  #attachedAtMs = 0;
  #isGivenUp = false;
  #isStopped = false;
  #heldFin = false;
  #stallTimer: NodeJS.Timeout | null = null;
  #idleTimer: NodeJS.Timeout | null = null;
  #againTimer: NodeJS.Timeout | null = null;

  constructor(options: ReplayOptions) {
    const { carrier, host, port, observer, saved } = options;
    this.carrier = carrier;
    this.host = host;
    this.port = port;
    this.observer = observer;
    this.#held = new HeldBytes(host.budget);
    this.log = new InboundLog(host.limits.replayBytesMax, saved?.logBase ?? observer.bytesIn);
    // A WebSocket whose frames could not be read any more still has its handshake.
    const wasWebSocket = this.isWebSocket || (this.isOpaque && saved !== null && saved.handshake !== null);
    this.#protocol = wasWebSocket ? new WebSocketReplay(this, saved) : new HttpReplay(this, saved);
    if (saved === null) return;
    this.#sentUpTo = saved.sentUpTo;
    this.losses = saved.losses;
    if (saved.log.length > 0) this.log.append(saved.log);
    this.log.skipTo(observer.bytesIn);
  }

  save(): SavedReplay {
    const { base, keptBytes } = this.log;
    return {
      sentUpTo: this.#sentUpTo,
      losses: this.losses,
      logBase: base,
      log: this.log.slice(base, base + keptBytes),
      ...this.#protocol.save(),
    };
  }

  /** Something of the client waits for the application: it is to be connected. */
  get isPending(): boolean {
    if (!this.carrier.isWaiting) return this.#isReturning;
    return this.#protocol.isPending || !this.observer.inboundAtBoundary || !this.#held.isEmpty;
  }
  get isUnavailable(): boolean {
    return this.carrier.isWaiting && this.isPending;
  }
  get isWebSocket(): boolean {
    return this.observer.protocol === "websocket";
  }
  get isOpaque(): boolean {
    const { protocol } = this.observer;
    return protocol !== "http" && protocol !== "websocket" && protocol !== "detecting";
  }
  get isIdle(): boolean {
    return this.observer.inFlightCount === 0 && this.observer.inboundAtBoundary;
  }
  get isReturning(): boolean {
    return this.#isReturning;
  }
  get isGivenUp(): boolean {
    return this.#isGivenUp;
  }
  get hasEnded(): boolean {
    return this.carrier.inbound.finRead && this.#held.isEmpty;
  }
  get sentUpTo(): number {
    return this.#sentUpTo;
  }
  get attachedAtMs(): number {
    return this.#attachedAtMs;
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
    if (this.#isGivenUp || (!this.carrier.isWaiting && !this.#isReturning)) this.#pass(chunk);
    else this.#hold(chunk);
  }

  clientFin(): void {
    const { inbound } = this.carrier;
    if (this.#isGivenUp || (this.carrier.isWaiting && !this.isPending)) {
      // Told to go, the session has no replay any more; its inbound side still takes the FIN.
      this.carrier.endAfter(NO_BYTES);
      inbound.receiveFin();
    } else if (this.#held.isEmpty) inbound.receiveFin();
    else this.#heldFin = true;
  }

  /** On its way to the application. */
  #pass(chunk: Buffer): void {
    const rest = this.#protocol.take(chunk);
    if (rest === null) return;
    if (rest.length > 0) this.carrier.inbound.receive(rest);
    // Nothing can be sent again of what cannot be read.
    if (this.isOpaque) this.log.dropTo(this.log.end);
    else this.#protocol.passed();
    this.afterFeed();
  }

  // ---- what the observer sees

  onRequestEnd(record: RequestRecord): void {
    this.#protocol.onRequestEnd(record);
  }

  onAnswered(record: RequestRecord): void {
    this.losses = 0;
    this.#protocol.onAnswered(record);
  }

  onMessage(direction: "in" | "out", start: number, end: number): void {
    if (direction === "out") this.losses = 0;
    this.#protocol.onMessage(direction, start, end);
  }

  /** An upgrade is the last a client asks for, so HTTP has nothing left to send again. */
  onUpgraded(record: RequestRecord, answer: HttpHead): void {
    if (this.isWebSocket) this.#protocol = WebSocketReplay.upgraded(this, record, answer);
    this.log.dropTo(Math.min(this.observer.inboundMessageStart, this.log.end));
  }

  /** After every chunk the observer was shown, and after that chunk was passed on. */
  afterFeed(): void {
    if (this.#protocol.afterFeed()) return;
    if (this.host.isPaused && !this.#isReturning && this.isIdle) this.carrier.inbound.hold();
  }

  // ---- the application is gone

  /** False: nothing can be hidden here; the client is to see what the application did. */
  applicationGone(how: Loss): boolean {
    if (how === "fin" && !this.observer.outboundAtBoundary) this.observer.outboundFin();
    if (!this.isOpaque && this.#protocol.hides(how)) return true;
    if (how !== "fin" || !this.#isReturning) return false;
    // The client is not read while its requests are sent again, and nothing will change that now.
    this.carrier.detach();
    this.carrier.endAfter(NO_BYTES);
    return true;
  }

  detach(how: Loss): void {
    const { carrier, observer } = this;
    const given = this.resentTo < 0 ? observer.bytesIn : this.resentTo;
    this.#sentUpTo = Math.max(this.#sentUpTo, given - carrier.inbound.pendingBytes);
    this.#protocol.interrupted();
    this.#isReturning = false;
    this.resentTo = -1;
    this.host.counters.sessionsUnavailable++;
    carrier.detach();
    carrier.inbound.hold();
    this.#protocol.lost(how);
    if (this.isPending) this.waits();
  }

  again(): void {
    if (this.losses < 2) this.host.want(this.carrier);
    else {
      this.#againTimer ??= setTimeout(() => {
        this.#againTimer = null;
        this.carrier.guard(() => this.host.want(this.carrier));
      }, AGAIN_MS * this.losses);
    }
  }

  /** The client's sending is not held up for ever: after a while its bytes are taken in. */
  waits(): void {
    this.#stallTimer ??= setTimeout(() => {
      this.#stallTimer = null;
      if (!this.carrier.isWaiting && !this.#isReturning) return;
      this.carrier.guard(() => {
        this.carrier.inbound.spooling = true;
      });
    }, this.host.limits.stallMsMax);
  }

  idle(): void {
    if (this.host.isPaused) return;
    this.carrier.inbound.spooling = true;
    this.#idleTimer ??= setTimeout(() => {
      this.#idleTimer = null;
      if (!this.carrier.isWaiting || this.isPending || this.#isGivenUp) return;
      this.carrier.guard(() => this.carrier.endAfter(NO_BYTES));
    }, this.host.limits.detachedMsMax);
  }

  // ---- while it is unavailable

  #hold(chunk: Buffer): void {
    const wasPending = this.isPending;
    if (!this.#keep(chunk)) {
      this.host.counters.heldRefused++;
      this.#refuseHeld();
      return;
    }
    const { inbound } = this.carrier;
    const isReadOn = this.#protocol.held(chunk);
    if (!isReadOn && (this.#stallTimer !== null || !wasPending)) inbound.spooling = false;
    if (!wasPending && this.carrier.isWaiting) {
      this.waits();
      this.host.want(this.carrier);
    }
  }

  #keep(chunk: Buffer): boolean {
    try {
      return this.#held.push(chunk);
    } catch (error) {
      this.host.onSpillFailed(error);
      return false;
    }
  }

  #refuseHeld(): void {
    // What came first tells whether it is somebody who understands a 503.
    const first = this.observer.protocol === "detecting" ? this.#shiftHeld() : null;
    if (first !== null) this.observer.inbound(first);
    if (!this.#protocol.refuseHeld()) this.carrier.reset("held bytes over the limit");
  }

  /** Its application has not come back in time. */
  giveUp(): void {
    if (this.#isGivenUp || !this.carrier.isWaiting) return;
    if (this.#protocol.giveUp()) return;
    this.#stopTimers();
    this.#isGivenUp = true;
    const { inbound } = this.carrier;
    inbound.spooling = false;
    inbound.setSink(nullLeg);
    this.#protocol.refuseAll();
    if (!this.carrier.isWaiting) return;
    for (let chunk = this.#shiftHeld(); chunk !== null; chunk = this.#shiftHeld()) {
      this.#pass(chunk);
      if (!this.carrier.isWaiting) return;
    }
    if (this.#heldFin || inbound.finRead) this.clientFin();
    else inbound.unhold();
  }

  /** It can be dialled again: does the session want it? */
  comeBack(): boolean {
    if (this.#isGivenUp) {
      if (!this.isIdle) return false;
      this.#isGivenUp = false;
      this.carrier.inbound.hold();
      this.carrier.inbound.removeSink(NO_BYTES);
      this.log.dropTo(this.log.end);
    }
    if (this.isPending || this.observer.bytesIn === 0) return true;
    this.idle();
    return false;
  }

  // ---- it is back

  /** On the new connection, before {@link beforeAttach}. Calls back once, perhaps at once; `why` is null when it may be joined. */
  shakeHands(leg: Leg, done: (why: string | null) => void): void {
    this.#protocol.shakeHands(leg, done);
  }

  /** Before the new connection is joined to the session. */
  beforeAttach(): void {
    this.#stopTimers();
    const { inbound } = this.carrier;
    inbound.spooling = false;
    // What never left us waits in the pump, and goes out by itself.
    const isUnsent = this.#protocol.beforeAttach() && this.#held.isEmpty;
    this.#isReturning = !isUnsent && (this.isPending || this.#heldFin);
    if (!this.#isReturning) return;
    inbound.hold();
    inbound.holdFin();
    inbound.clear();
  }

  attached(): void {
    this.#attachedAtMs = performance.now();
    this.#protocol.attached();
    if (!this.#isReturning) {
      if (!this.host.isPaused) this.carrier.inbound.unhold();
      return;
    }
    this.waits();
    this.#protocol.sendAgain();
  }

  /** The pump takes bytes again. */
  drained(): void {
    if (this.#isReturning && this.#protocol.isSentAgain) this.drainHeld();
  }

  drainHeld(): void {
    const { inbound } = this.carrier;
    this.resentTo = -1;
    while (!inbound.isBlocked) {
      const chunk = this.#shiftHeld();
      if (chunk === null) break;
      this.#pass(chunk);
      if (!this.#isReturning) return;
    }
    if (!this.#held.isEmpty || inbound.isBlocked) return;
    this.#isReturning = false;
    this.#stopTimers();
    inbound.spooling = false;
    if (this.#heldFin) inbound.receiveFin();
    this.#heldFin = false;
    inbound.releaseFin();
    if (!this.host.isPaused) inbound.unhold();
  }

  #shiftHeld(): Buffer | null {
    try {
      return this.#held.shift();
    } catch (error) {
      this.host.onSpillFailed(error);
      this.carrier.reset("held bytes are lost");
      return null;
    }
  }

  // ---- a restart that is planned

  /** Nothing new to the application; what is under way may end. */
  quiesce(): void {
    if (this.carrier.isWaiting) {
      this.carrier.inbound.spooling = false;
      return;
    }
    if (!this.isOpaque && this.#protocol.isAtRest) this.carrier.inbound.hold();
  }
  /** … as before, where it was not cut. */
  unquiesce(): void {
    if (!this.carrier.isWaiting && !this.#isReturning) this.carrier.inbound.unhold();
  }
  /**
   * What the application was given and has not answered, and what is on its way to it; 0: it is quiet. A WebSocket's application
   * need not answer: whoever waits for this waits for a while only.
   */
  get unanswered(): number {
    if (this.#isReturning) return 1;
    if (this.carrier.isWaiting) return 0;
    const onItsWay = this.carrier.inbound.pendingBytes > 0 ? 1 : 0;
    return onItsWay + (this.isOpaque ? 0 : this.#protocol.unanswered);
  }

  /** What is held goes where bytes wait that were read: into the pump, to travel with the session. Nothing is on disk. */
  settle(): void {
    if (!this.carrier.isWaiting) return;
    for (let chunk = this.#shiftHeld(); chunk !== null; chunk = this.#shiftHeld()) this.#pass(chunk);
    if (this.#heldFin) this.carrier.inbound.receiveFin();
    this.#heldFin = false;
    this.#stopTimers();
    this.carrier.inbound.spooling = false;
  }

  /** The session is over, or was told to go. */
  stop(): void {
    this.#isStopped = true;
    this.#stopTimers();
    this.#held.clear();
    this.#protocol.stop();
    this.#isReturning = false;
    this.#isGivenUp = false;
  }

  #stopTimers(): void {
    if (this.#stallTimer !== null) clearTimeout(this.#stallTimer);
    if (this.#idleTimer !== null) clearTimeout(this.#idleTimer);
    if (this.#againTimer !== null) clearTimeout(this.#againTimer);
    this.#stallTimer = null;
    this.#idleTimer = null;
    this.#againTimer = null;
    this.#protocol.stopTimers();
  }
}
