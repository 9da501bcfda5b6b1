/**
 * The agents that a proxy without capabilities asks for privileged steps, by the channels that they have opened to it. Only one lives at
 * a time, but the next may be there before the end of the last is seen.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type Channel, errorFromWire } from "#proxy/contract/channel.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { Outcome } from "#proxy/contract/leg-surgeon.ts";
import {
  type AskSteps,
  LEGS_CALL,
  type PrivilegedStep,
  STEPS_MAX,
  type StepsDone,
} from "#proxy/contract/privileged-steps.ts";

/** How long an agent that has died may take to have a successor. */
const AGENT_MS_MAX = 30_000;

export interface AskedAgentsOptions {
  agentMsMax?: number;
}

export class AskedAgents {
  readonly #agentMsMax: number;
  #channels: Channel[] = [];
  #arrival = Promise.withResolvers<void>();

  constructor({ agentMsMax = AGENT_MS_MAX }: AskedAgentsOptions = {}) {
    this.#agentMsMax = agentMsMax;
  }

  /** @param channel that an agent has opened */
  came(channel: Channel): void {
    this.#channels.push(channel);
    this.#arrival.resolve();
    void channel.closed.then(() => {
      this.#channels = this.#channels.filter((other) => other !== channel);
    });
  }

  /** One outcome a step, in their order; never rejects. */
  readonly ask = async (steps: PrivilegedStep[]): Promise<Outcome<void>[]> => {
    const outcomes: Outcome<void>[] = [];
    for (let from = 0; from < steps.length; from += STEPS_MAX)
      outcomes.push(...(await this.#askSome(steps.slice(from, from + STEPS_MAX))));
    return outcomes;
  };

  async #askSome(steps: PrivilegedStep[]): Promise<Outcome<void>[]> {
    for (;;) {
      const channel = await this.#agent();
      if (channel === null) {
        const seconds = this.#agentMsMax / 1000;
        const error = fail("AGENT_ABSENT", `no agent came within ${seconds} s to help with connections`);
        return steps.map(() => ({ ok: false, error }));
      }
      try {
        const params: AskSteps = { steps };
        // No time limit: a step that nobody waits for any more could be taken on a descriptor that is another's by then.
        const { result } = await channel.call<StepsDone>(LEGS_CALL, params);
        return outcomesOf(result, steps.length);
      } catch (error) {
        if (channel.isOpen) return steps.map(() => ({ ok: false, error }));
        // its successor takes them all again
      }
    }
  }

  /** The one that came last. null: none does */
  async #agent(): Promise<Channel | null> {
    const gone = new AbortController();
    try {
      for (;;) {
        const last = this.#channels.findLast(({ isOpen }) => isOpen);
        if (last !== undefined) return last;
        this.#arrival = Promise.withResolvers();
        const isLate = await Promise.race([
          this.#arrival.promise,
          delay(this.#agentMsMax, true, { signal: gone.signal, ref: false }),
        ]);
        if (isLate === true) return null;
      }
    } finally {
      gone.abort();
    }
  }
}

function outcomesOf({ outcomes }: StepsDone, count: number): Outcome<void>[] {
  if (outcomes.length !== count) throw fail("INTERNAL", `${outcomes.length} outcomes of ${count} steps`);
  return outcomes.map(
    (failed): Outcome<void> =>
      failed === null
        ? { ok: true, value: undefined }
        : { ok: false, error: errorFromWire(failed, "the agent") },
  );
}
