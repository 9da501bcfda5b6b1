/**
 * Privileged work on legs, many at once: done here in a privileged proxy (`proxy/tcp/local-surgeon.ts`), or asked of
 * somebody privileged, with the descriptors passed along. Plain socket work is not in here.
 *
 * A call works on its legs in the order given. Each leg has an outcome of its own, at the place of the leg, and a leg that
 * fails changes nothing for the others. A leg that failed is as it was before, but for `release`: that one may have spoken,
 * and can only be reset. A call rejects only where it has touched no leg.
 *
 * Other events run while a call is under way. The caller keeps the descriptors open until it is answered, neither reads nor
 * writes them meanwhile, and gives a descriptor to one call at a time.
 */
import type { Endpoint, LegSnapshot } from "./snapshot.ts";

/** The application may be in a network namespace of its own; clients are in the proxy's. */
export type Side = "upstream" | "downstream";

export type Outcome<T> = { ok: true; value: T } | { ok: false; error: unknown };

export interface AdoptionOptions {
  side: Side;
  /** the leg receives nothing until it is released */
  shielded: boolean;
  /** the local address may come to this node later, at the latest with the release */
  addressAbsent?: boolean;
  /** that link-local IPv6 addresses are on */
  device?: string | null;
}

export interface CapturedLeg {
  fd: number;
  /** null: only shielded */
  snapshot: LegSnapshot | null;
}

export interface AdoptedLeg {
  fd: number;
  snapshot: LegSnapshot;
  side: Side;
  /** ask the peer for a sign of life, for what it sent while nobody listened (ESTABLISHED only) */
  probe: boolean;
}

export interface LegSurgeon {
  /** From now on the leg receives nothing; its peer sends again later. */
  shield(fds: readonly number[]): Promise<Outcome<void>[]>;
  /** Reads each leg, which stays in repair mode: closing it sends nothing. A leg that failed is out of repair mode. */
  capture(fds: readonly number[]): Promise<Outcome<LegSnapshot>[]>;
  /** Unshields, undoes the capture, and asks the peer for a sign of life: the leg goes on as if nothing had happened. */
  uncapture(legs: readonly CapturedLeg[]): Promise<Outcome<void>[]>;
  /** New descriptors, in repair mode, of the caller to close; nothing is sent. A leg that failed has none. */
  adopt(snapshots: readonly LegSnapshot[], options: AdoptionOptions): Promise<Outcome<number>[]>;
  /** The leg speaks from now on. Gives the unsent bytes the kernel did not take. */
  release(legs: readonly AdoptedLeg[]): Promise<Outcome<Buffer>[]>;
  /** Makes the other end of a leg that is not here, and is on this node, speak: it is answered with RST. */
  provoke(legs: readonly PeerOfLeg[]): Promise<Outcome<void>[]>;
}

export type PeerOfLeg = { local: Endpoint; remote: Endpoint } & Pick<LegSnapshot, "send" | "receive">;
