/**
 * The links of one proxy that can go on over another connection: looks at each now and then, finds those that are dead without an error,
 * and bounds how many are dialled again at a time. Without one a link ends with its connection.
 *
 * What a link hears is told by itself (`isQuiet`); a turn of the timer is never made up for, so that a process which was kept from running does not
 * take its own silence for the others'.
 */
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";

/** Between two looks at each link. */
const LOOK_MS = 250;
/** Of the links that were dialled each is asked once in so many looks, whatever it does, and one each second: when it is silent, all are asked. */
const LOOKS_A_ROUND = 40;
const LOOKS_BETWEEN = 4;
/** greetings of TLS cost about 1 ms of CPU at each end: none is to run out of its time for the others */
const ATTEMPTS_MAX = 64;
/** for each link, beside `resumeMsMax`: all may have to be dialled again */
const LINK_MS = 2;

export interface WatchedLink {
  /** of the session it carries */
  readonly id: string;
  /** Some time has passed. */
  look(nowMs: number): void;
  /** Is to say something, if only that it is there. */
  ask(): void;
  /** It may have a turn now, if it still wants one. */
  tryAgain(): void;
  /** Its proxy ends. */
  abandon(): void;
}

export class LinkWatch<Link extends WatchedLink = WatchedLink> {
  /** what is dialled again, and accepted, with */
  keys: SharedKeys;
  readonly #resumeMsMax: number;
  readonly #lookMs: number;
  readonly #links = new Set<Link>();
  readonly #dialled = new Set<Link>();
  readonly #accepted = new Map<string, Link>();
  #timer: NodeJS.Timeout | null = null;
  /** that had no turn, in this order */
  readonly #waiting = new Set<Link>();
  #attempts = 0;
  #looks = 0;
  #isSilent = false;
  #round: Iterator<Link> | null = null;

  /** @param resumeMsMax how long a link may be without a connection; 0: it ends with its connection */
  constructor(keys: SharedKeys, resumeMsMax: number, lookMs = LOOK_MS) {
    this.keys = keys;
    this.#resumeMsMax = resumeMsMax;
    this.#lookMs = lookMs;
  }

  get isOn(): boolean {
    return this.#resumeMsMax > 0;
  }
  /** How long a link may be without a connection. */
  get lostMsMax(): number {
    return this.#resumeMsMax + LINK_MS * this.#links.size;
  }
  get size(): number {
    return this.#links.size;
  }

  /** @param isAccepted another connection is to find it by its session */
  add(link: Link, isAccepted: boolean): void {
    this.#links.add(link);
    if (isAccepted) this.#accepted.set(link.id, link);
    else this.#dialled.add(link);
    this.#timer ??= setInterval(() => this.#look(), this.#lookMs).unref();
  }

  remove(link: Link): void {
    this.#links.delete(link);
    this.#dialled.delete(link);
    this.#waiting.delete(link);
    if (this.#accepted.get(link.id) === link) this.#accepted.delete(link.id);
    if (this.#links.size > 0 || this.#timer === null) return;
    clearInterval(this.#timer);
    this.#timer = null;
    this.#round = null;
  }

  stop(): void {
    for (const link of [...this.#links]) link.abandon();
  }

  /** The link that was accepted for a session last. */
  find(session: string): Link | undefined {
    return this.#accepted.get(session);
  }

  /** One more may be dialled. @returns to be called when that has ended; null: too many are, it will be told */
  takeTurn(link: Link): (() => void) | null {
    if (this.#attempts >= ATTEMPTS_MAX) {
      this.#waiting.add(link);
      return null;
    }
    this.#attempts++;
    this.#waiting.delete(link);
    let isOver = false;
    return () => {
      if (isOver) return;
      isOver = true;
      this.#attempts--;
      const [next] = this.#waiting;
      if (next === undefined) return;
      this.#waiting.delete(next);
      setImmediate(() => next.tryAgain());
    };
  }

  /** A link that was asked has not said anything: perhaps none can. */
  foundSilent(): void {
    this.#isSilent = true;
  }

  #look(): void {
    const nowMs = performance.now();
    for (const link of this.#links) link.look(nowMs);
    if (this.#isSilent) {
      this.#isSilent = false;
      for (const link of this.#links) link.ask();
      return;
    }
    this.#looks++;
    const { size } = this.#dialled;
    const isPaced = size < LOOKS_A_ROUND / LOOKS_BETWEEN;
    if (isPaced && this.#looks % LOOKS_BETWEEN !== 0) return;
    for (let left = Math.ceil(size / LOOKS_A_ROUND); left > 0; left--) this.#nextOfRound()?.ask();
  }

  #nextOfRound(): Link | undefined {
    for (let tries = 0; tries < 2; tries++) {
      this.#round ??= this.#dialled.values();
      const next = this.#round.next();
      if (next.done !== true) return next.value;
      this.#round = null;
    }
    return undefined;
  }
}
