/** The surgeon of a process that has the privileges itself (CAP_NET_ADMIN, CAP_NET_RAW): each call is done when it returns. */
import type {
  AdoptedLeg,
  AdoptionOptions,
  LegSurgeon,
  Outcome,
  PeerOfLeg,
} from "#proxy/contract/leg-surgeon.ts";
import type { LegSnapshot } from "#proxy/contract/snapshot.ts";
import { type Network, OWN_NETWORK } from "#proxy/kernel/network.ts";
import { shieldLeg, unshieldLeg } from "#proxy/kernel/shield.ts";
import { adoptLeg, releaseLeg } from "./adopt.ts";
import { captureLeg, uncaptureLeg } from "./capture.ts";
import { provoke } from "./inject.ts";

/** What is done to one leg; each throws what it fails with. */
export interface LegWork {
  shieldLeg(fd: number): void;
  unshieldLeg(fd: number): void;
  captureLeg(fd: number): LegSnapshot;
  uncaptureLeg(fd: number, snapshot: LegSnapshot, options: { probe: boolean }): void;
  adoptLeg(snapshot: LegSnapshot, options: AdoptionOptions): number;
  releaseLeg(leg: AdoptedLeg): Buffer;
  provoke(leg: PeerOfLeg): void;
}

/** @param upstream where the application is */
export function localLegWork(upstream: Network = OWN_NETWORK): LegWork {
  const networks = { upstream, downstream: OWN_NETWORK };
  return {
    shieldLeg,
    unshieldLeg,
    captureLeg,
    uncaptureLeg,
    adoptLeg: (snapshot, { side, ...options }) => adoptLeg(snapshot, { ...options, network: networks[side] }),
    releaseLeg: ({ fd, snapshot, side, probe }) =>
      releaseLeg(fd, snapshot, { probe, network: networks[side] }),
    provoke: (leg) => provoke(leg, upstream),
  };
}

export class LocalSurgeon implements LegSurgeon {
  readonly #work: LegWork;

  constructor(work: LegWork) {
    this.#work = work;
  }

  async shield(fds: readonly number[]): Promise<Outcome<void>[]> {
    return each(fds, (fd) => this.#work.shieldLeg(fd));
  }

  async capture(fds: readonly number[]): Promise<Outcome<LegSnapshot>[]> {
    return each(fds, (fd) => this.#work.captureLeg(fd));
  }

  async uncapture(legs: Parameters<LegSurgeon["uncapture"]>[0]): Promise<Outcome<void>[]> {
    return each(legs, ({ fd, snapshot }) => {
      this.#work.unshieldLeg(fd);
      if (snapshot !== null) this.#work.uncaptureLeg(fd, snapshot, { probe: true });
    });
  }

  async adopt(snapshots: readonly LegSnapshot[], options: AdoptionOptions): Promise<Outcome<number>[]> {
    return each(snapshots, (snapshot) => this.#work.adoptLeg(snapshot, options));
  }

  async release(legs: readonly AdoptedLeg[]): Promise<Outcome<Buffer>[]> {
    return each(legs, (leg) => this.#work.releaseLeg(leg));
  }

  async provoke(legs: readonly PeerOfLeg[]): Promise<Outcome<void>[]> {
    return each(legs, (leg) => this.#work.provoke(leg));
  }
}

function each<L, T>(legs: readonly L[], work: (leg: L) => T): Outcome<T>[] {
  return legs.map((leg) => {
    try {
      return { ok: true, value: work(leg) };
    } catch (error) {
      return { ok: false, error };
    }
  });
}
