/**
 * How far a departure has come, and so what a rollback has to undo and whom it has to ask. It only goes forward, and each step
 * holds what a rollback from there needs.
 *
 *   undialled   nobody has been told anything
 *   dialled     the target knows of the move, or is about to
 *   reserving   the store has been asked for a reservation, and the answer is not known
 *   reserved    nobody waits yet
 *   held        clients wait, and the application may be frozen
 *   committing  the store has been asked to make the target the owner: it tells who owns the workload
 *   granted     the target has this node's word: only the target tells
 */
import assert from "node:assert/strict";
import type { Channel } from "#proxy/contract/channel.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { CriuWorker } from "../../criu/worker.ts";
import type { Departed } from "../settle.ts";

interface Dialled {
  readonly channel: Channel;
}
interface Reserved extends Dialled {
  /** the target's, above this node's */
  readonly epoch: number;
}
interface Held extends Reserved {
  /** the CRIU at work on the application */
  readonly worker: CriuWorker;
  /** where the target's proxy takes links */
  readonly link: Endpoint;
}

interface Known {
  undialled: object;
  dialled: Dialled;
  reserving: Dialled;
  reserved: Reserved;
  held: Held;
  committing: Held;
  granted: Held;
}
export type Step = { [At in keyof Known]: { readonly at: At } & Known[At] }[keyof Known];

/** takeover has no links */
export const NO_LINK: Endpoint = { address: "", port: 0 };

/** The one record of it: a grant is asked for on another channel, in the middle of a phase. */
export class Reached {
  #step: Step = { at: "undialled" };
  #isGoingBack = false;

  get step(): Step {
    return this.#step;
  }

  dialled(channel: Channel): void {
    this.#step = { ...this.#from("undialled"), at: "dialled", channel };
  }

  reserving(): void {
    this.#step = { ...this.#from("dialled"), at: "reserving" };
  }

  reserved(epoch: number): void {
    this.#step = { ...this.#from("reserving"), at: "reserved", epoch };
  }

  held(worker: CriuWorker, link: Endpoint): void {
    this.#step = { ...this.#from("reserved"), at: "held", worker, link };
  }

  committing(): void {
    this.#step = { ...this.#from("held"), at: "committing" };
  }

  /** @throws HoldfastError `MIGRATION_UNKNOWN` where no commit was tried, or this node goes back already */
  granted(): void {
    const step = this.#step;
    if ((step.at !== "committing" && step.at !== "granted") || this.#isGoingBack) throw unknownMove();
    this.#step = { ...step, at: "granted" };
  }

  /** No grant any more. May be repeated. @returns where from */
  goBack(): Step {
    this.#isGoingBack = true;
    return this.#step;
  }

  #from<At extends keyof Known>(at: At): Extract<Step, { at: At }> {
    assert.equal(this.#step.at, at, "a move goes forward, one step after the other");
    return this.#step as Extract<Step, { at: At }>;
  }
}

/** What `settle.ts` has to know to go back from a step. */
export function departedAt(
  step: Step,
): Pick<Departed, "epoch" | "reserveTried" | "held" | "commitTried" | "granted"> {
  const granted = step.at === "granted";
  const commitTried = granted || step.at === "committing";
  const held = commitTried || step.at === "held";
  return {
    epoch: "epoch" in step ? step.epoch : 0,
    reserveTried: held || step.at === "reserved" || step.at === "reserving",
    held,
    commitTried,
    granted,
  };
}

export function unknownMove(): HoldfastError {
  return fail("MIGRATION_UNKNOWN", "no such migration");
}
