/**
 * What this node has decided without the store, and tells it as soon as it answers: also a later agent does, from the
 * journal. No new move begins before. Where it contradicts, it has lost something since, and its record is raised to what
 * this node owns; or another node has had the workload, and this one steps down.
 */
import { once } from "node:events";
import type { Logger } from "pino";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { isUnanswered, type Ownership, type Store } from "#proxy/store/store.ts";
import type { OutboxEntry } from "../migration/moving.ts";
import { delay } from "../migration/settle.ts";

/** What owes the store something. */
export interface OutboxHost {
  readonly name: string;
  readonly context: { readonly node: string; readonly store: Store; readonly log: Logger };
  readonly journal: { readonly epoch: number; readonly seen: number; readonly owed: OutboxEntry | null };
  record(patch: { owed?: OutboxEntry | null; epoch?: number }): void;
  /** The store says something else than what this node knows. */
  assertOwnership(): Promise<void>;
}

export class StoreOutbox {
  #workload: OutboxHost;
  #sending: Promise<void> | null = null;
  #closed = false;

  constructor(workload: OutboxHost) {
    this.#workload = workload;
  }

  close(): void {
    this.#closed = true;
  }

  put(owed: OutboxEntry): void {
    const workload = this.#workload;
    workload.record({ owed });
    this.#sending ??= this.#sendUntilDone()
      .catch((error: unknown) =>
        workload.context.log.warn(
          { workload: workload.name, reason: messageOf(error) },
          "the store was not told",
        ),
      )
      .finally(() => {
        this.#sending = null;
      });
  }

  /** Waits a while for all to be told. */
  async flushed(timeoutMs: number): Promise<void> {
    if (this.#sending === null) return;
    const late = AbortSignal.timeout(timeoutMs);
    await Promise.race([this.#sending, once(late, "abort")]);
  }

  /** Reserves the next epoch for a move. A store that has lost the record, or was thrown back, is told again who the owner is. */
  async reserve(migration: string, target: string): Promise<Ownership> {
    const { context, name, journal } = this.#workload;
    const own = { workload: name, node: context.node, epoch: journal.epoch };
    const request = { ...own, migration, target, epochMin: journal.seen + 1 };
    try {
      return await context.store.reserve(request);
    } catch (error) {
      if (!isContradiction(error)) throw error;
      await context.store.raise(own); // refused: the owner's watch looks who has it
      return context.store.reserve(request);
    }
  }

  async #sendUntilDone(): Promise<void> {
    const workload = this.#workload;
    while (workload.journal.owed !== null && !this.#closed) {
      const { owed } = workload.journal;
      try {
        await this.#send(owed);
        if (workload.journal.owed === owed) workload.record({ owed: null });
        continue;
      } catch (error) {
        if (!isUnanswered(error)) {
          workload.context.log.error(
            { workload: workload.name, ...owed, reason: messageOf(error) },
            "the store contradicts what happened here",
          );
          workload.record({ owed: null });
          return;
        }
      }
      await delay();
    }
  }

  async #send({ kind, migration, epoch }: OutboxEntry): Promise<void> {
    const workload = this.#workload;
    const { name } = workload;
    const { store, node } = workload.context;
    try {
      if (kind === "cancelled") await store.cancel({ workload: name, migration });
      else if (kind === "released") await store.raise({ workload: name, node, epoch });
      else {
        const taken = await store.takeBack({ workload: name, node, migration });
        if (taken.epoch < epoch) await store.raise({ workload: name, node, epoch });
        workload.record({ epoch: Math.max(taken.epoch, workload.journal.epoch) });
      }
    } catch (error) {
      if (!isContradiction(error)) throw error;
      await workload.assertOwnership();
    }
  }
}

/** What the store says is not what this node knows. */
function isContradiction(error: unknown): boolean {
  return error instanceof HoldfastError && ["STORE_ABSENT", "STORE_FENCED"].includes(error.code);
}
