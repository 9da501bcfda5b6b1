/**
 * Links as an anchor has them: it dials the owner for each of its clients' sessions, holds when that says so, and goes over to the next
 * owner when the next one says ACTIVE. A gateway is an anchor that no agent tells who the owner is: it has an {@link OwnerFinder}.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { Configure } from "#proxy/contract/commands.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Greeting } from "#proxy/link/link-auth.ts";
import { type Active, type Destination, type Prepared, RST_CODE } from "#proxy/link/link-codec.ts";
import { dialLink } from "#proxy/link/link-greeting.ts";
import { LinkLeg, type LinkListener } from "#proxy/link/link-leg.ts";
import type { LinkWatch } from "#proxy/link/link-watch.ts";
import type { Trunks } from "#proxy/link/trunks.ts";
import type { Counters } from "./counters.ts";
import { closeDetachedUpstream } from "./detached-legs.ts";
import type { LinkUpkeep } from "./link-upkeep.ts";
import { beginLinkWait, endLinkWait } from "./link-wait.ts";
import type { LiveSession } from "./live-session.ts";
import { switchUpstream } from "./upstream-switch.ts";

/** How long a link that prepares a move may take. Who asks for it waits somewhat longer for the answer. */
const REACH_MS_MAX = 2_500;

/** An owner that was just told to be one may have no CPU or no descriptor for a moment. The wait for a link bounds it. */
const AGAIN_MS = 100;
const AGAIN_MS_MAX = 2_000;

/** How an anchor that is no node's, a gateway, finds the owner: no agent tells it. */
export interface OwnerFinder {
  /** Which of the owner's ports one of ours is for. null: it has no such port */
  portThere(port: number): number | null;
  /** There is no owner, or a link to it was refused or lost: look where it is, then lead the sessions there. */
  seek(): void;
  /** The proxy there has said ACTIVE at that epoch. */
  found(to: Destination): void;
  /** A move to there is under way: runs `dial`, which makes a link to it, when it is this one's turn. @returns what that does */
  prepare<T>(to: Destination, dial: () => Promise<T>): Promise<T>;
}

/** Whose sessions they carry. */
export interface AnchorHost {
  readonly config: Pick<Configure, "node" | "links" | "limits">;
  /** the first is what is dialled with */
  readonly keys: SharedKeys;
  readonly kernel: { close(fd: number): void };
  readonly log: Logger;
  readonly counters: Pick<Counters, "linkFailures" | "linkMismatches">;
  readonly sessions: ReadonlyMap<string, LiveSession>;
  readonly epoch: number;
  readonly owner: { link: Endpoint } | null;
}

export interface AnchorOptions {
  /** null: an agent says who the owner is */
  finder: OwnerFinder | null;
  /** links that can go on over another connection */
  watch: LinkWatch<LinkLeg>;
  /** what carries these */
  trunks: Trunks;
  upkeep: Pick<LinkUpkeep, "watchOver" | "onInterrupted" | "onContinued" | "onLate">;
}

export class AnchorLinks {
  /** source: the target has said ACTIVE, so there is no way back */
  releasedElsewhere = false;
  /** when an owner has last said ACTIVE to a session, by performance.now() */
  answeredAtMs = Number.NEGATIVE_INFINITY;
  readonly #host: AnchorHost;
  readonly #finder: OwnerFinder | null;
  readonly #options: AnchorOptions;
  /** to be told whether they are ready */
  readonly #dialling = new WeakMap<LinkLeg, (isReady: boolean) => void>();
  /** a node's: of sessions that are led to their owner, when the next link follows one that has failed */
  readonly #againMs = new WeakMap<LiveSession, number>();

  constructor(host: AnchorHost, options: AnchorOptions) {
    this.#host = host;
    this.#finder = options.finder;
    this.#options = options;
  }

  // ---- which are there

  /**
   * In place of another one that the session has not got through either. Resolves with whether it is ready: authenticated, and parked
   * until the owner says ACTIVE.
   */
  dial(session: LiveSession, options: { to: Endpoint; epoch: number; fresh: boolean }): Promise<boolean> {
    const { config, keys } = this.#host;
    const { watch, trunks, upkeep } = this.#options;
    const { promise, resolve } = Promise.withResolvers<boolean>();
    session.nextLink?.close(RST_CODE.moved);
    session.nextLink = null;
    const port = this.#finder === null ? session.port : this.#finder.portThere(session.port);
    if (port === null) {
      session.reset("the owner has no such port");
      return Promise.resolve(false);
    }
    const greeting: Greeting = {
      session: session.id,
      port,
      epoch: options.epoch,
      anchor: config.node,
      client: session.client,
      acceptedAtMs: session.acceptedAtMs,
      fresh: options.fresh,
    };
    const link = dialLink({
      keys,
      encrypted: config.links === "encrypted",
      to: options.to,
      greeting,
      onReady: (ready) => {
        upkeep.watchOver(ready, session.port);
        resolve(true);
      },
      listener: this.#listener,
      watch,
      trunks,
    });
    this.#dialling.set(link, resolve);
    session.nextLink = link;
    return promise;
  }

  /** As {@link dial}, for a move that is prepared; false also where it takes too long: what is dropped on its way has no end that comes in time. */
  reaches(session: LiveSession, { link: to, epoch }: Destination): Promise<boolean> {
    return Promise.race([
      this.dial(session, { to, epoch, fresh: false }),
      delay(REACH_MS_MAX, false, { ref: false }),
    ]);
  }

  /** The session has an owner and no link to it. */
  relink(session: LiveSession, fresh: boolean): void {
    const { owner, epoch } = this.#host;
    if (owner === null) return;
    this.awaitActive(session);
    this.dial(session, { to: owner.link, epoch, fresh });
  }

  /** The session's owner may say ACTIVE on a link that is there, or on one that is dialled again. */
  awaitActive(session: LiveSession): void {
    beginLinkWait(this.#host, session);
    if (this.#finder === null && !this.#againMs.has(session)) this.#againMs.set(session, AGAIN_MS);
  }

  /** Gateway: the session waits until its owner is found. Does nothing at a node's anchor, whose agent says so. */
  awaitOwner(session: LiveSession): void {
    if (this.#finder === null) return;
    beginLinkWait(this.#host, session);
    this.#finder.seek();
  }

  // ---- what their owners say

  /** One for all, since a session costs little beside. A link of a session that is over says nothing more. */
  readonly #listener: LinkListener = {
    onActive: (link, active) => {
      const session = this.#sessionOf(link);
      if (session === undefined) link.close(RST_CODE.moved);
      else this.#onActive(session, link, active);
    },
    onHold: (link) => {
      const session = this.#sessionOf(link);
      if (session?.upstream === link) session.inbound.hold();
    },
    onResume: (link) => {
      const session = this.#sessionOf(link);
      if (session?.upstream !== link) return;
      session.nextLink?.close(RST_CODE.moved);
      session.nextLink = null;
      session.inbound.unhold();
    },
    onHeld: () => {},
    onMove: (link, to) => void this.#onMove(this.#sessionOf(link), link, to),
    onCount: (link) => {
      const session = this.#sessionOf(link);
      if (session?.upstream === link) link.sendCounted(session.outbound.bytes);
    },
    onInterrupted: (link) => {
      this.#options.upkeep.onInterrupted();
      const session = this.#sessionOf(link);
      // its owner may have gone for good, and the next one be known
      if (session?.upstream === link && session.inbound.held) this.#finder?.seek();
    },
    onContinued: (link) => this.#options.upkeep.onContinued(link),
    onLate: (link) => this.#options.upkeep.onLate(link),
    onOver: (link, code) => {
      this.#dialling.get(link)?.(false);
      const session = this.#sessionOf(link);
      if (session !== undefined) this.#onOver(session, link, code);
    },
    onBroken: (link, error) => {
      this.#dialling.get(link)?.(false);
      const session = this.#sessionOf(link);
      if (session === undefined) this.#host.log.error({ err: error }, "a link has broken");
      else session.onBroken(error);
    },
  };

  #sessionOf(link: LinkLeg): LiveSession | undefined {
    return this.#host.sessions.get(link.id);
  }

  /** Gateway: its next owner may be there soon; the link is to be ready then. */
  async #onMove(session: LiveSession | undefined, link: LinkLeg, to: Destination): Promise<void> {
    if (this.#finder === null || session === undefined) return;
    const prepared = await this.#finder.prepare(to, async (): Promise<Prepared> => {
      if (session.upstream !== link || !link.isOpen || session.state !== "open") return "no";
      return (await this.reaches(session, to)) ? "ready" : "unreachable";
    });
    link.sendPrepared(prepared);
  }

  #onActive(session: LiveSession, link: LinkLeg, active: Active): void {
    this.answeredAtMs = performance.now();
    if (session.state === "closed" || session.nextLink !== link || active.epoch < this.#host.epoch) {
      link.close(RST_CODE.moved);
      return;
    }
    if (link.dialledTo !== null) this.#finder?.found({ epoch: active.epoch, link: link.dialledTo });
    session.nextLink = null;
    this.#againMs.delete(session);
    if (session.state === "waiting") {
      // It had waited for an owner since an earlier one moved away.
      endLinkWait(session);
      session.countAnew();
      session.step("dialled");
      session.setUpstream(link);
      session.inbound.unhold();
      return;
    }
    const old = session.upstream;
    if (session.state === "captured") {
      // The source hears it from the target before its own agent does: nothing can be taken back any more.
      this.releasedElsewhere = true;
      closeDetachedUpstream(this.#host.kernel, session);
      session.dropWatch();
      if (session.lost !== null) {
        link.reset();
        session.reset(session.lost);
        return;
      }
      session.step("resume");
      session.inbound.clear();
    } else if (old instanceof LinkLeg) {
      session.inbound.removeSink(old.takeUnsent());
    }
    switchUpstream(this.#host, session, link, { bytesIn: active.bytesIn, bytesOut: active.bytesOut });
  }

  // ---- their ends

  #onOver(session: LiveSession, link: LinkLeg, code: number): void {
    const { counters } = this.#host;
    if (session.nextLink === link) {
      session.nextLink = null;
      this.#onNextOver(session, code);
      return;
    }
    if (session.upstream !== link) return;
    if (code === RST_CODE.reset) {
      session.reset("upstream reset");
      return;
    }
    // In the middle of a move the next owner may have everything: its offsets will tell.
    if (!(session.inbound.held && code === RST_CODE.moved)) counters.linkFailures++;
    if (session.inbound.held) {
      session.inbound.removeSink(link.takeUnsent());
      session.outbound.setSource(null);
      session.upstream = null;
      if (session.switchAt !== null) session.reset("link broken");
      else {
        beginLinkWait(this.#host, session);
        this.#finder?.seek();
      }
    } else {
      session.reset("link broken");
    }
  }

  /** A new session whose owner moved away waits for `switchOwner`; a prepared link can be dialled again then. */
  #onNextOver(session: LiveSession, code: number): void {
    if (this.#finder !== null) {
      this.#onFinderLinkOver(session, code);
      return;
    }
    if (session.state !== "waiting") {
      this.#onLedOver(session, code);
      return;
    }
    if (code === RST_CODE.moved) beginLinkWait(this.#host, session);
    else {
      this.#host.counters.linkFailures++;
      session.reset("link refused");
    }
  }

  /** One that was prepared, and failed before there was a new owner, is dialled when there is one. */
  #onLedOver(session: LiveSession, code: number): void {
    const againMs = this.#againMs.get(session);
    if (againMs === undefined) return;
    if (code === RST_CODE.unknownSession) {
      this.#host.counters.linkFailures++;
      session.reset("not known to the owner");
      return;
    }
    this.#againMs.set(session, Math.min(againMs * 2, AGAIN_MS_MAX));
    const isWaiting = (): boolean => session.linkTimer !== null && session.nextLink === null;
    setTimeout(() => {
      if (isWaiting() && this.#againMs.has(session)) session.guard(() => this.relink(session, false));
    }, againMs).unref();
  }

  /** Gateway: nothing of the session is lost with a link that has not become its own. */
  #onFinderLinkOver(session: LiveSession, code: number): void {
    if (code !== RST_CODE.moved) this.#host.counters.linkFailures++;
    if (session.state === "waiting") this.awaitOwner(session);
    else if (session.state === "open" && session.upstream === null) {
      if (code === RST_CODE.unknownSession) session.reset("not known to the owner");
      else this.awaitOwner(session);
    }
  }
}
