/**
 * The seam between the replay of a session (`session-replay.ts`, which logs, holds, and decides when the session is connected again)
 * and what is peculiar to a protocol: which loss can be hidden, what is sent again, how a client is refused.
 */
import type { Leg } from "#proxy/stream/leg.ts";
import type { PortConfig } from "../contract/commands.ts";
import type { Observer, RequestRecord } from "../protocol/observer.ts";
import type { Handshake } from "./handshake.ts";
import type { InboundLog } from "./inbound-log.ts";
import type { Carrier, ReplayHost } from "./replay-host.ts";
import type { SavedSetUp } from "./set-up.ts";

/** instances of the application one request, or one unanswered message, is given to */
export const ATTEMPTS_MAX = 3;
/** instances in a row, each a short one without a word, that anything is sent to again */
export const SILENT_LIVES_MAX = 10;

/** How the application's end of a session went; "cut": we let go of it. */
export type Loss = "fin" | "reset" | "cut";

export interface SavedHttpReplay {
  swallows: boolean;
  isAnsweredEarly: boolean;
}
export interface SavedWebSocketReplay {
  messageEnds: number[];
  handshake: Handshake | null;
  setUp: SavedSetUp;
}
/** A protocol saves what is the other one's as at the beginning. */
export interface SavedProtocol extends SavedHttpReplay, SavedWebSocketReplay {}

export interface SavedReplay extends SavedProtocol {
  sentUpTo: number;
  losses: number;
  logBase: number;
  log: Buffer;
}

/** What one protocol makes of it that its application is gone, or back. The observer's hooks only take note; `afterFeed` acts. */
export interface ProtocolReplay {
  save(): SavedProtocol;

  /** The client waits for the application, whether or not a message of its own is under way. */
  readonly isPending: boolean;
  /** Between messages, as far as a planned restart cares: nothing new need reach the application. */
  readonly isAtRest: boolean;
  /** requests or messages that the application was given and has not answered, as far as can be told */
  readonly unanswered: number;

  /** Logs a chunk of the client and shows it to the observer. What of it goes on to the application; null: the session is over. */
  take(chunk: Buffer): Buffer | null;
  /** What it returned is in the pump. */
  passed(): void;
  onRequestEnd(record: RequestRecord): void;
  onAnswered(record: RequestRecord): void;
  onMessage(direction: "in" | "out", start: number, end: number): void;
  /** After the observer was shown a chunk of either side, and that was passed on. True: there was something to be done. */
  afterFeed(): boolean;

  /** The application is gone. False: the client is to see that. True: `detach` of the session was called, and what comes next. */
  hides(how: Loss): boolean;
  /** What was being sent again is not sent any further: the leg goes now. */
  interrupted(): void;
  /** The leg is gone: counts the loss. */
  lost(how: Loss): void;
  /** The client's bytes are held. True: it is read on in any case. */
  held(chunk: Buffer): boolean;
  /** What the client sends is more than can be held. False: there is no way to tell it. */
  refuseHeld(): boolean;
  /** The application has not come back in time. True: with that the session ends; false: {@link refuseAll} from now on. */
  giveUp(): boolean;
  /** Refuses what is complete; of the rest the body is read first. */
  refuseAll(): void;

  /** On the new connection, before it is joined to the session. Calls back once; `why` is null when the session may go on with it. */
  shakeHands(leg: Leg, done: (why: string | null) => void): void;
  /** True: what the client waits for is all in the pump, and no instance was given any of it. */
  beforeAttach(): boolean;
  attached(): void;
  /** What the new connection gets before anything else; calls `drainHeld` of the session when that is out. */
  sendAgain(): void;
  /** … and it is out. */
  readonly isSentAgain: boolean;

  stopTimers(): void;
  /** The session is over. */
  stop(): void;
}

/** What a protocol's part has of the session. */
export interface ReplaySession {
  readonly carrier: Carrier;
  readonly host: ReplayHost;
  readonly port: PortConfig;
  readonly observer: Observer;
  readonly log: InboundLog;
  /** no messages are known in what passes */
  readonly isOpaque: boolean;
  readonly isPending: boolean;
  /** no request in flight, no message under way */
  readonly isIdle: boolean;
  readonly isReturning: boolean;
  readonly isGivenUp: boolean;
  /** the client has closed its side, and everything it sent has been looked at */
  readonly hasEnded: boolean;
  /** the client was told not to let its compressor go on from message to message */
  readonly noTakeover: boolean;
  /** offset up to where some instance of the application was given the client's stream */
  readonly sentUpTo: number;
  /** by performance.now(); 0: by another proxy */
  readonly attachedAtMs: number;
  /** instances lost in a row without an answer */
  losses: number;
  /** while something is sent again: offset up to where it has been; else -1 */
  resentTo: number;
  /** Lets go of the leg; from now on the session waits. */
  detach(how: Loss): void;
  /** Asks for the next instance. */
  again(): void;
  /** There is nothing to be done for the client: the application is dialled when it sends something. */
  idle(): void;
  drainHeld(): void;
}
