/**
 * The surgeon of a process without capabilities: what needs them it asks for, the rest it does itself. Takeover it cannot do.
 *
 * Between two steps the helper may die, and the next one is asked: each step may be repeated. Where none comes, legs fail; one that is
 * in repair mode then stays so, and can only be closed, which sends nothing.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import type {
  AdoptedLeg,
  AdoptionOptions,
  LegSurgeon,
  Outcome,
  PeerOfLeg,
} from "#proxy/contract/leg-surgeon.ts";
import type { PrivilegedStep } from "#proxy/contract/privileged-steps.ts";
import type { LegSnapshot } from "#proxy/contract/snapshot.ts";
import { adoptSteps, releaseSteps } from "./adopt.ts";
import { captureSteps, uncaptureSteps } from "./capture.ts";
import { provokeSteps } from "./inject.ts";
import { inRounds, type LegSteps } from "./leg-steps.ts";

/** Takes the steps. One outcome each, in their order; never rejects. */
export type AskForSteps = (steps: PrivilegedStep[]) => Promise<Outcome<void>[]>;

export class HelpedSurgeon implements LegSurgeon {
  readonly #ask: AskForSteps;

  constructor(ask: AskForSteps) {
    this.#ask = ask;
  }

  async shield(fds: readonly number[]): Promise<Outcome<void>[]> {
    return this.#all(fds, shieldSteps);
  }

  async capture(fds: readonly number[]): Promise<Outcome<LegSnapshot>[]> {
    return this.#all(fds, captureSteps);
  }

  async uncapture(legs: Parameters<LegSurgeon["uncapture"]>[0]): Promise<Outcome<void>[]> {
    return this.#all(legs, giveBackSteps);
  }

  async adopt(snapshots: readonly LegSnapshot[], options: AdoptionOptions): Promise<Outcome<number>[]> {
    if (options.side === "downstream" || options.addressAbsent === true)
      throw fail("PROXY_NOT_ABLE", "clients' connections do not move to a proxy without capabilities");
    return this.#all(snapshots, (snapshot) => adoptSteps(snapshot, options));
  }

  async release(legs: readonly AdoptedLeg[]): Promise<Outcome<Buffer>[]> {
    return this.#all(legs, releaseSteps);
  }

  async provoke(legs: readonly PeerOfLeg[]): Promise<Outcome<void>[]> {
    return this.#all(legs, (leg) => provokeSteps(leg, "upstream"));
  }

  #all<L, T>(legs: readonly L[], steps: (leg: L) => LegSteps<T>): Promise<Outcome<T>[]> {
    return inRounds(legs.map(steps), this.#ask);
  }
}

function* shieldSteps(fd: number): LegSteps<void> {
  yield [{ do: "filter", fd, drop: "all" }];
}

function* giveBackSteps({ fd, snapshot }: Parameters<LegSurgeon["uncapture"]>[0][number]): LegSteps<void> {
  if (snapshot === null) yield [{ do: "filter", fd, drop: "none" }];
  else yield* uncaptureSteps(fd, snapshot, { probe: true, shielded: true });
}
