/**
 * The work on one leg, as a generator that yields what needs privilege or time and does the rest itself: written once, and run at once
 * by who has the privilege, or many legs side by side by who has to ask for it.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Outcome } from "#proxy/contract/leg-surgeon.ts";
import type { PrivilegedStep } from "#proxy/contract/privileged-steps.ts";
import type { Network } from "#proxy/kernel/network.ts";
import { takeStep } from "#proxy/kernel/privileged.ts";

/** Something else has to come first. */
export interface Wait {
  do: "wait";
}
export const WAIT: Wait = { do: "wait" };
const WAIT_MS = 1;

/** Steps of one leg that are taken one after the other, whether or not one fails. The first failure is thrown where they were yielded. */
type Steps = readonly PrivilegedStep[];
export type LegSteps<T> = Generator<Steps | Wait, T, void>;

/** By a process that has the privileges. @param network where the leg is @throws what the leg fails with */
export function atOnce<T>(leg: LegSteps<T>, network: Network): T {
  const networks = { upstream: network, downstream: network };
  let next = leg.next();
  while (next.done !== true) {
    try {
      if ("do" in next.value) Atomics.wait(sleeper, 0, 0, WAIT_MS);
      else for (const step of next.value) takeStep(step, networks);
    } catch (error) {
      next = leg.throw(error);
      continue;
    }
    next = leg.next();
  }
  return next.value;
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/**
 * All legs as far as each comes, then what they need next is asked for together, and so on. One leg that fails changes nothing for the
 * others. @param ask one outcome a step; never rejects
 */
export async function inRounds<T>(
  legs: readonly LegSteps<T>[],
  ask: (steps: PrivilegedStep[]) => Promise<Outcome<void>[]>,
): Promise<Outcome<T>[]> {
  const outcomes: Outcome<T>[] = new Array(legs.length);
  let due: { at: number; leg: LegSteps<T>; steps: Steps }[] = [];
  const run = (at: number, leg: LegSteps<T>, resume: () => IteratorResult<Steps | Wait, T>): void => {
    try {
      const next = resume();
      if (next.done === true) outcomes[at] = { ok: true, value: next.value };
      else due.push({ at, leg, steps: "do" in next.value ? [] : next.value });
    } catch (error) {
      outcomes[at] = { ok: false, error };
    }
  };
  for (const [at, leg] of legs.entries()) run(at, leg, () => leg.next());
  while (due.length > 0) {
    const round = due;
    due = [];
    const steps = round.flatMap((one) => one.steps);
    const [answers] = await Promise.all([
      steps.length === 0 ? [] : ask(steps),
      round.some((one) => one.steps.length === 0) ? delay(WAIT_MS) : null,
    ]);
    let from = 0;
    for (const one of round) {
      const own = answers.slice(from, from + one.steps.length);
      from += own.length;
      const failed = own.find(({ ok }) => !ok);
      if (failed?.ok === false) run(one.at, one.leg, () => one.leg.throw(failed.error));
      else run(one.at, one.leg, () => one.leg.next());
    }
  }
  return outcomes;
}
