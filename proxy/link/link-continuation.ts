/**
 * How a link gets another connection: by its secret, which each greeting makes anew (`link-auth.ts`). The dialler tries, one attempt at a
 * time, each with a higher number; the acceptor judges what comes. ARCHITECTURE, "Resumable links".
 */
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { provesSecret, secretOf } from "./link-auth.ts";
import type { LinkConnection } from "./link-connection.ts";
import { LinkPulse } from "./link-pulse.ts";
import { rejoin } from "./link-rejoin.ts";
import { connectionTo, type Trunks } from "./trunks.ts";

/** of an attempt, in looks of the watch, in which its greeting gets on */
const LOOKS_TO_GREET = 4;

/** The link that goes on. */
export interface ContinuedLink {
  /** of the session it carries */
  readonly id: string;
  /** null on the acceptor's side */
  readonly dialledTo: Endpoint | null;
  readonly isEncrypted: boolean;
  /** It has a connection that carries its bytes. */
  readonly isConnected: boolean;
  /** What it has sent is not acknowledged. */
  readonly isOutstanding: boolean;
  /** of its connection: it rises with whatever comes from the other end */
  readonly progress: number;
  /** Sends ASK, unless it has just now. */
  ask(): void;
  /** There is to be another connection. */
  doubt(): void;
  /** It goes on over that one from now on. */
  takeOver(connection: LinkConnection): void;
  /** There was no connection in time. */
  late(): void;
  /** The acceptor does not know the link any more, or says so. @param code from RST_CODE */
  refused(code: number): void;
  /** Nobody listens there any more: the proxy that had the session has ended. */
  deserted(): void;
}

/** What knows all of a proxy's links. */
interface Turns<Link> {
  readonly keys: SharedKeys;
  /** How long a link may be without a connection. */
  readonly lostMsMax: number;
  /** A link that was asked has not said anything. */
  foundSilent(): void;
  /** One more may be dialled. @returns to be called when that has ended; null: too many are, it will be told */
  takeTurn(link: Link): (() => void) | null;
}

interface Attempt {
  connection: LinkConnection;
  looks: number;
  progress: number;
  giveTurn(): void;
}

export class LinkContinuation<Link extends ContinuedLink> {
  readonly #pulse = new LinkPulse();
  /** there is no connection, or it does not answer, since then (performance.now()); 0: there is one */
  #lostAtMs = 0;
  readonly #link: Link;
  readonly #watch: Turns<Link>;
  readonly #trunks: Trunks | null;
  /** of the greeting that was welcomed last */
  #secret: Buffer;
  /** acceptor: the one before, until the dialler has shown that it was told of the welcome */
  #previousSecret: Buffer | null = null;
  /** the highest number of a REJOIN that was tried, or accepted */
  #attempt = 0;
  /** dialler: that is under way */
  #trying: Attempt | null = null;

  /** @param trunks dialler: what carries links; null: each has a connection of its own */
  constructor(link: Link, watch: Turns<Link>, trunks: Trunks | null, secret: Buffer) {
    this.#link = link;
    this.#watch = watch;
    this.#trunks = trunks;
    this.#secret = secret;
  }

  /** There is no connection that carries it. */
  lost(): void {
    this.#pulse.lost();
    this.#lostNow();
  }

  /** Another one is there, and has not carried anything yet. */
  begins(): void {
    this.#pulse.restart();
    this.#lostNow();
  }

  #lostNow(): void {
    if (this.#lostAtMs === 0) this.#lostAtMs = performance.now();
  }

  /** It carries again, and the other end has heard of the last welcome. @param isFollowed nothing is sent again */
  goesOn(isFollowed: boolean): void {
    this.#previousSecret = null;
    this.#lostAtMs = 0;
    if (isFollowed) this.#pulse.followed();
    else this.#pulse.sent();
  }

  // ---- is the other end there

  heard(): void {
    this.#pulse.heard();
    if (this.#link.isConnected) this.#lostAtMs = 0;
  }

  /** Something that the other end is to follow by anything. */
  sent(): void {
    this.#pulse.sent();
  }

  /** ASK may be sent. */
  asks(): boolean {
    return this.#pulse.ask(this.#link.progress);
  }

  /** Some time has passed. */
  look(nowMs: number): void {
    const link = this.#link;
    if (link.isConnected) this.#lookAtConnection(nowMs);
    if (this.#lostAtMs === 0) return;
    if (nowMs - this.#lostAtMs >= this.#watch.lostMsMax) link.late();
    else if (link.dialledTo !== null) {
      this.#lookAtAttempt();
      this.tryAgain();
    }
  }

  #lookAtConnection(nowMs: number): void {
    const link = this.#link;
    this.#pulse.look();
    if (this.#pulse.hasAsked) {
      if (this.#lostAtMs > 0 || !this.#pulse.isSilent(link.progress)) return;
      this.#lostAtMs = nowMs;
      this.#watch.foundSilent();
    } else if (link.isOutstanding && this.#pulse.isToAsk(link.dialledTo !== null)) link.ask();
  }

  // ---- acceptor

  /** Why a REJOIN is none of this link's; null: it is. Nothing is changed by it. */
  refuses(attempt: number, nonce: Buffer, payload: Buffer): string | null {
    if (attempt <= this.#attempt) return "another attempt has come before it";
    if (provesSecret(this.#secret, nonce, payload)) return null;
    if (this.#previousSecret !== null && provesSecret(this.#previousSecret, nonce, payload)) return null;
    return "its secret is not the link's";
  }

  welcomed(attempt: number, nonce: Buffer, payload: Buffer, key: Buffer): void {
    this.#attempt = attempt;
    // who proves the newest has heard of it; otherwise the one before is all that it is known to have
    if (provesSecret(this.#secret, nonce, payload)) this.#previousSecret = this.#secret;
    this.#secret = secretOf(key, payload);
  }

  // ---- dialler

  /** Does nothing while one is under way, or there is a connection. */
  tryAgain(): void {
    if (this.#trying !== null || this.#lostAtMs === 0) return;
    const link = this.#link;
    const giveTurn = this.#watch.takeTurn(link);
    if (giveTurn === null) return;
    this.#attempt++;
    const [key] = this.#watch.keys;
    const isThis = (): boolean => this.#trying?.giveTurn === giveTurn;
    link.doubt();
    const to = link.dialledTo as Endpoint;
    const connection = rejoin({
      connect: (sink) => connectionTo(to, this.#trunks, sink),
      key,
      secret: this.#secret,
      session: link.id,
      attempt: this.#attempt,
      encrypted: link.isEncrypted,
      onWelcome: (next, secret) => {
        if (!isThis()) return next.destroy();
        this.#trying = null;
        giveTurn();
        this.#secret = secret;
        link.takeOver(next);
      },
      onRefused: (code) => {
        if (!isThis()) return;
        this.stopTrying();
        link.refused(code);
      },
      onFailed: (why) => {
        if (!isThis()) return;
        this.stopTrying();
        if (why === "refused") link.deserted();
      },
    });
    this.#trying = { connection, looks: 0, progress: 0, giveTurn };
  }

  /** An attempt whose greeting does not get on is given up. */
  #lookAtAttempt(): void {
    const trying = this.#trying;
    if (trying === null) return;
    const { progress } = trying.connection;
    trying.looks = progress > trying.progress ? 0 : trying.looks + 1;
    trying.progress = progress;
    if (trying.looks < LOOKS_TO_GREET) return;
    trying.connection.doubt();
    this.stopTrying();
  }

  stopTrying(): void {
    const trying = this.#trying;
    if (trying === null) return;
    this.#trying = null;
    trying.connection.destroy();
    trying.giveTurn();
  }
}
