/**
 * Follows the owner of one workload, for a gateway. What it goes by, in this order:
 *
 *   ACTIVE on a link   that proxy owns the workload, at that epoch: nothing is as certain
 *   the store          told of changes (`changed`), looked at when a link was refused or lost (`seek`), and now and then
 *   MOVE on a link     where the workload is about to be: tried when its owner is lost and the store does not answer
 *
 * A lower epoch than it knows is never believed. The store may be away: then it stays with what it knows.
 */
import type { Logger } from "pino";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { switchOwner } from "#proxy/cutover/anchors.ts";
import type { Destination } from "#proxy/link/link-codec.ts";
import type { LinkRecord } from "#proxy/store/store.ts";
import type { OwnerFinder } from "#proxy/workload/anchor-links.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import type { Turns } from "./turns.ts";

/** Sessions that have lost their owner try again after this, and then after twice as long each time. */
const AGAIN_MS = 100;
const AGAIN_MS_MAX = 2_000;
/** a move that was announced has ended by then */
const ANNOUNCED_MS_MAX = 60_000;

export interface OwnerFollowerOptions {
  workload: string;
  /** of each of our ports: `listen` of the workload's that it is for */
  ports: readonly number[];
  store: { link(workload: string): Promise<LinkRecord | null> };
  /** dials that prepare moves, of all workloads */
  turns: Turns;
  log: Logger;
}

interface Owner {
  /** "": not known */
  node: string;
  epoch: number;
  link: Endpoint;
}

export class OwnerFollower implements OwnerFinder {
  readonly #options: OwnerFollowerOptions;
  #proxy: WorkloadProxy | null = null;
  #owner: Owner | null = null;
  /** of the owner, as the store names them; null: not known yet */
  #portsThere: readonly number[] | null = null;
  #announced: (Destination & { atMs: number }) | null = null;
  #looking: Promise<void> | null = null;
  #isStale = false;
  #attempts = 0;
  #again: NodeJS.Timeout | null = null;
  /** the store, first and last */
  #askedAtMs: number | null = null;
  #answeredAtMs: number | null = null;
  #isUnreadable = false;
  #closed = false;

  constructor(options: OwnerFollowerOptions) {
    this.#options = options;
  }

  /** Whose sessions are led to the owner. Called once, before anything else. */
  follow(proxy: WorkloadProxy): void {
    this.#proxy = proxy;
  }

  get owner(): Readonly<Owner> | null {
    return this.#owner;
  }
  /** When the store was asked for the first time. */
  get askedAtMs(): number | null {
    return this.#askedAtMs;
  }
  /** When it answered last, be it something that cannot be understood. */
  get answeredAtMs(): number | null {
    return this.#answeredAtMs;
  }

  close(): void {
    this.#closed = true;
    if (this.#again !== null) clearTimeout(this.#again);
  }

  /** The store may say something new. Resolves when it has been looked at; never rejects. */
  async changed(): Promise<void> {
    // what is being looked at may have changed since
    this.#isStale = true;
    while (this.#isStale || this.#looking !== null) {
      if (this.#looking !== null) {
        await this.#looking;
        continue;
      }
      this.#isStale = false;
      this.#looking = this.#look(false);
      await this.#looking;
      this.#looking = null;
    }
  }

  // ---- OwnerFinder

  portThere(port: number): number | null {
    const { ports, workload, log } = this.#options;
    const wanted = ports[port] as number;
    // not known: told by a link alone, so an earlier look did not find it missing
    const there = this.#portsThere?.indexOf(wanted) ?? -1;
    if (there >= 0) return there;
    log.warn(
      { workload, port: wanted, ports: this.#portsThere },
      "the workload has no such port: a client is reset; correct the gateway's file, or the workload's ports",
    );
    return null;
  }

  seek(): void {
    if (this.#closed || this.#again !== null) return;
    const waitMs = this.#attempts === 0 ? 0 : Math.min(AGAIN_MS_MAX, AGAIN_MS * 2 ** (this.#attempts - 1));
    this.#attempts++;
    this.#again = setTimeout(() => {
      void this.#look(true).finally(() => {
        this.#again = null;
        if (this.#owner === null && this.#hasLost()) this.seek();
      });
    }, waitMs);
    this.#again.unref();
  }

  found({ epoch, link }: Destination): void {
    this.#attempts = 0;
    if (this.#owner !== null && epoch <= this.#owner.epoch) return;
    this.#know({ node: "", epoch, link });
  }

  prepare<T>(to: Destination, dial: () => Promise<T>): Promise<T> {
    this.#announced = { ...to, atMs: performance.now() };
    return this.#options.turns.run(dial);
  }

  // ---- inside

  async #look(isLost: boolean): Promise<void> {
    const { workload, store, log } = this.#options;
    this.#askedAtMs ??= performance.now();
    try {
      const record = await store.link(workload);
      if (this.#closed) return;
      this.#answeredAtMs = performance.now();
      this.#isUnreadable = false;
      if (record !== null) this.#hear(record);
    } catch (error) {
      const reason = messageOf(error);
      const isUnreadable = error instanceof HoldfastError && error.code === "STORE_CORRUPT";
      if (isUnreadable) this.#answeredAtMs = performance.now();
      if (isUnreadable && !this.#isUnreadable)
        log.warn({ workload, reason }, "the store's record of the workload is not understood");
      else log.debug({ workload, reason }, "the store does not say who owns the workload");
      this.#isUnreadable ||= isUnreadable;
    }
    if (isLost && !this.#closed) this.#lead();
  }

  #hear({ node, epoch, link, ports }: LinkRecord): void {
    const known = this.#owner;
    if (known !== null && epoch < known.epoch) return;
    this.#portsThere = ports;
    if (known?.epoch === epoch && isSame(known.link, link)) known.node = node;
    else this.#know({ node, epoch, link });
  }

  /** Sessions that are with an earlier owner, or with none, are led there. */
  #know(owner: Owner): void {
    const { workload, log } = this.#options;
    this.#owner = owner;
    this.#attempts = 0;
    log.info({ workload, ...owner }, "the owner");
    const proxy = this.#proxy as WorkloadProxy;
    proxy.epoch = Math.max(proxy.epoch, owner.epoch);
    proxy.owner = owner;
    // not in the middle of what a link has just said
    setImmediate(() => {
      if (!this.#closed && this.#owner === owner) switchOwner(proxy, owner);
    });
  }

  /** Those that have lost their owner, or never had one, dial again: in turn where a move may have gone through unseen. */
  #lead(): void {
    const proxy = this.#proxy as WorkloadProxy;
    const known = this.#owner;
    if (known === null) return;
    const { atMs = 0, epoch = 0, link } = this.#announced ?? {};
    const mayHaveMoved = epoch > known.epoch && performance.now() - atMs < ANNOUNCED_MS_MAX;
    proxy.owner = mayHaveMoved && link !== undefined && this.#attempts % 2 === 0 ? { node: "", link } : known;
    for (const session of proxy.sessions.values()) {
      if (session.nextLink !== null) continue;
      if (session.state === "waiting") session.guard(() => proxy.start(session));
      else if (session.state === "open" && session.upstream === null)
        session.guard(() => proxy.anchorLinks.relink(session, false));
    }
    proxy.owner = known;
  }

  #hasLost(): boolean {
    for (const { state, upstream, nextLink } of (this.#proxy as WorkloadProxy).sessions.values())
      if (nextLink === null && upstream === null && (state === "waiting" || state === "open")) return true;
    return false;
  }
}

function isSame(one: Endpoint, other: Endpoint): boolean {
  return one.address === other.address && one.port === other.port;
}
