/**
 * The replay of HTTP/1.1, and of what does not tell yet what it is: requests without an answer are sent to the next instance of the
 * application as `plan.ts` says, one at a time, or get 503. Where no instance comes, every request gets 503.
 *
 * Which instances were given a request, and whether it may be what ended them, is counted with the request.
 */
import type { Leg } from "#proxy/stream/leg.ts";
import { refusal } from "../protocol/http-answer.ts";
import type { RequestRecord } from "../protocol/observer.ts";
import { type PlanStep, planReplay } from "./plan.ts";
import {
  ATTEMPTS_MAX,
  type Loss,
  type ProtocolReplay,
  type ReplaySession,
  type SavedHttpReplay,
  type SavedProtocol,
  SILENT_LIVES_MAX,
} from "./protocol-replay.ts";
import { newSetUp } from "./set-up.ts";

/**
 * Of the instances that one request is given to, those that ended within moments of being given it: it may be what ends them. Only an
 * instance that has really been there is counted, see `#suspect`: a connection to a process that is ending already, which accepts nothing
 * any more, is none.
 */
const DEATHS_MAX = 2;
const MOMENTS_MS = 1_000;
/** of refusals that a client has not taken, beyond what its socket holds */
const REFUSALS_BYTES_MAX = 256 * 1024;
const RETRY_AFTER_S = 1;

export class HttpReplay implements ProtocolReplay {
  readonly #session: ReplaySession;
  #plan: PlanStep[] = [];
  /** the next step of the plan waits for its answer, or has just got it */
  #awaited: RequestRecord | null = null;
  #isNextDue = false;
  /** when the present instance was given the oldest of the requests that it has not answered */
  #givenAtMs = 0;
  /** the instance of the application that was given them (`instanceFor`), or was there when they were lost; -1: not known */
  #instance = -1;
  /** requests that were lost within moments of being given to it: whether it has ended is known when the session is connected again */
  #suspects: RequestRecord[] = [];
  /** The request whose body is under way was refused: the rest of that goes nowhere, up to `#swallowTo` once it is known. */
  #swallows: boolean;
  #swallowTo = -1;
  /** the request whose body is under way has its answer */
  #isAnsweredEarly: boolean;

  constructor(session: ReplaySession, saved: SavedHttpReplay | null) {
    this.#session = session;
    this.#swallows = saved?.swallows ?? false;
    this.#isAnsweredEarly = saved?.isAnsweredEarly ?? false;
  }

  save(): SavedProtocol {
    return {
      swallows: this.#swallows,
      isAnsweredEarly: this.#isAnsweredEarly,
      messageEnds: [],
      handshake: null,
      setUp: newSetUp(null),
    };
  }

  get isPending(): boolean {
    return this.#session.observer.inFlightCount > 0;
  }
  get isAtRest(): boolean {
    return this.#session.isIdle;
  }
  get unanswered(): number {
    return this.#session.observer.inFlightCount;
  }

  // ---- what passes

  take(chunk: Buffer): Buffer | null {
    const { observer, log, carrier } = this.#session;
    const before = observer.bytesIn;
    log.append(chunk);
    const wasIdle = observer.inFlightCount === 0;
    observer.inbound(chunk);
    if (wasIdle && observer.inFlightCount > 0) this.#givenAtMs = performance.now();
    if (!this.#swallows) return chunk;
    if (this.#session.isOpaque) {
      // Where the refused body ends is not known any more.
      carrier.reset("the rest of a refused request cannot be read");
      return null;
    }
    const gone = this.#swallowTo < 0 ? chunk.length : this.#swallowTo - before;
    if (this.#swallowTo >= 0) this.#swallows = false;
    carrier.inbound.skip(gone);
    return chunk.subarray(gone);
  }

  passed(): void {}

  #swallow(): void {
    this.#swallows = true;
    this.#swallowTo = -1;
  }

  onRequestEnd(record: RequestRecord): void {
    this.#isAnsweredEarly = false;
    // Only one body is under way: this one's.
    if (this.#swallows && this.#swallowTo < 0) this.#swallowTo = record.end;
  }

  onAnswered(record: RequestRecord): void {
    if (record.end < 0) this.#isAnsweredEarly = true;
    if (this.#awaited === record) this.#isNextDue = true;
  }

  onMessage(): void {}

  afterFeed(): boolean {
    const { observer, log, carrier } = this.#session;
    if (observer.protocol === "http") log.dropTo(Math.min(this.#unanswered, log.end));
    else if (this.#awaited !== null && this.#session.isOpaque) {
      carrier.reset("the answer to a request that was sent again cannot be read");
      return true;
    }
    if (this.#isNextDue) {
      this.#isNextDue = false;
      this.#awaited = null;
      this.#advance();
      return true;
    }
    if (!this.#session.isGivenUp) return false;
    this.refuseAll();
    return true;
  }

  /** offset of the first byte of the client that may have to be sent again */
  get #unanswered(): number {
    const { oldest, inboundMessageStart } = this.#session.observer;
    return oldest === null ? inboundMessageStart : Math.min(oldest.start, inboundMessageStart);
  }

  // ---- the application is gone

  hides(how: Loss): boolean {
    const { observer } = this.#session;
    if (!observer.outboundAtBoundary || observer.oldest?.answerStarted === true) return false;
    const { closing, oldest } = observer;
    // The last answer has said that the connection ends with it.
    if (closing && oldest?.keepAlive !== false) return false;
    // Everything is answered, and nothing more will come: of half a head neither.
    if (oldest === null && this.#session.hasEnded) return false;
    if (this.#isAnsweredEarly && !this.#swallows) this.#swallow();
    this.#session.detach(how);
    if (this.#session.isPending) this.#session.again();
    else this.#session.idle();
    return true;
  }

  interrupted(): void {
    this.#plan = [];
    this.#awaited = null;
    this.#isNextDue = false;
  }

  lost(how: Loss): void {
    const { observer, sentUpTo, isPending } = this.#session;
    const lost = observer.inFlight.filter(({ start }) => start < sentUpTo);
    for (const record of lost) marksOf(record).attempts++;
    const wasShort = performance.now() - this.#givenAtMs < MOMENTS_MS;
    if (how !== "cut" && wasShort && lost.length > 0) this.#suspect(lost);
    this.#session.losses = isPending ? this.#session.losses + 1 : 0;
  }

  /**
   * A connection that is lost proves no death: an application may reset one and live. It has died where nobody listens when the loss is
   * noticed (a process closes its listener first, having opened it first), or somebody else does when the session is connected again.
   * A dial that still met the listener of a process that was ending finds the same one, and adds nothing.
   */
  #suspect(records: RequestRecord[]): void {
    this.#suspects = records;
    const instance = this.#session.host.instanceFor(this.#session.carrier);
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

  // ---- while it is unavailable

  held(): boolean {
    return false;
  }

  refuseHeld(): boolean {
    const { observer, host, carrier } = this.#session;
    if (observer.protocol !== "http") return false;
    // An application that is back may have begun to answer what it is still being sent.
    if (!observer.outboundAtBoundary || observer.oldest?.answerStarted === true) return false;
    host.counters.requestsRefused++;
    carrier.endAfter(refusal({ status: 503, retryAfterS: RETRY_AFTER_S, close: true, headOnly: false }));
    return true;
  }

  giveUp(): boolean {
    return false;
  }

  /** What is complete, and what waits to be asked for its body. */
  refuseAll(): void {
    const { observer, carrier, host } = this.#session;
    if (this.#session.isOpaque) {
      carrier.reset("the application is unavailable");
      return;
    }
    for (let record = observer.oldest; record !== null; record = observer.oldest) {
      const asks = record.end < 0 && (record.expectsContinue || this.#session.hasEnded);
      if (record.end < 0 && !asks) return;
      this.#refuse(record, asks);
      if (!carrier.isWaiting) return;
      if (carrier.outbound.pendingBytes > REFUSALS_BYTES_MAX) {
        carrier.reset("it asks on and reads no refusal");
        return;
      }
    }
    // The application may be back: it could not have the session in the middle of a body.
    if (this.#session.isIdle && !host.isPaused) host.want(carrier);
  }

  /** @param asks the client waits for 100, so that nobody knows whether it sends the body (RFC 9110 10.1.1), or will not */
  #refuse(record: RequestRecord, asks: boolean): void {
    const { observer, host, carrier } = this.#session;
    host.counters.requestsRefused++;
    const close = asks || !record.keepAlive;
    const bytes = refusal({
      status: 503,
      retryAfterS: RETRY_AFTER_S,
      close,
      headOnly: record.method === "HEAD",
    });
    if (close) {
      carrier.endAfter(bytes);
      return;
    }
    observer.outbound(bytes);
    carrier.outbound.receive(bytes);
  }

  // ---- it is back

  shakeHands(_leg: Leg, done: (why: string | null) => void): void {
    done(null);
  }

  beforeAttach(): boolean {
    const { pendingBytes } = this.#session.carrier.inbound;
    return pendingBytes > 0 && this.#session.observer.bytesIn - pendingBytes <= this.#unanswered;
  }

  attached(): void {
    const { observer, host, carrier, attachedAtMs } = this.#session;
    this.#givenAtMs = attachedAtMs;
    // Asked only where a request has been lost: of a first instance it is seen when it ends.
    const instance = observer.inFlight.some(({ tag }) => tag !== null) ? host.instanceFor(carrier) : -1;
    this.#judge(this.#isOther(instance));
    this.#instance = instance;
  }

  sendAgain(): void {
    const { observer, log, port, carrier, sentUpTo, losses } = this.#session;
    const plan = planReplay({
      inFlight: observer.inFlight,
      bytesIn: this.#swallows ? observer.inboundMessageStart : observer.bytesIn,
      messageStart: observer.inboundMessageStart,
      sentUpTo,
      unsafe: port.replayUnsafe,
      hasLife: (record) => {
        const { attempts, deaths } = marksOf(record);
        return attempts < ATTEMPTS_MAX && deaths < DEATHS_MAX;
      },
      covers: (from, to) => losses < SILENT_LIVES_MAX && log.covers(from, to),
    });
    if (plan === null) {
      carrier.reset("the beginning of a request is lost");
      return;
    }
    this.#plan = plan;
    this.#session.resentTo = this.#unanswered;
    this.#advance();
  }

  /** Carries out the plan, as far as it goes without an answer of the application. */
  #advance(): void {
    const { observer, log, host, carrier } = this.#session;
    while (this.#session.isReturning && this.#awaited === null) {
      const step = this.#plan.shift();
      if (step === undefined) {
        this.#session.drainHeld();
        return;
      }
      if (step.do === "refuse") {
        const { record } = step;
        this.#session.resentTo = record.end < 0 ? observer.bytesIn : record.end;
        if (record.end < 0) this.#swallow();
        // A body that nothing more comes of: the client has closed its side.
        this.#refuse(record, record.end < 0 && (record.expectsContinue || this.#session.hasEnded));
        this.#isNextDue = false;
      } else {
        if (step.from < this.#session.sentUpTo) host.counters.requestsReplayed++;
        this.#session.resentTo = step.to;
        if (this.#plan.length > 0) this.#awaited = step.record;
        carrier.inbound.resend(log.slice(step.from, step.to));
      }
    }
  }

  get isSentAgain(): boolean {
    return this.#plan.length === 0 && this.#awaited === null;
  }

  stopTimers(): void {}

  stop(): void {
    this.#plan = [];
    this.#awaited = null;
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
