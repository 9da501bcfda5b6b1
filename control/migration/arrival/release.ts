/**
 * The question whether this node may let the application go on, from when it is asked: after that only an answer tells. The
 * store says that it is decided; where it cannot be asked, or has forgotten, the source gives its word instead.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Channel } from "#proxy/contract/channel.ts";
import type { OutcomeReply, PrepareCall } from "../../api/migration.ts";
import type { MigrationHost } from "../host.ts";
import { OUTCOME_MS_MAX, release } from "../settle.ts";

const GRANT_MS_MAX = 5_000;

export class Release {
  /** → at which epoch this node goes on. @throws HoldfastError as `release` of `settle.ts` */
  readonly decided: Promise<number>;
  readonly #epoch: number;
  /** the epoch of the source's word, given on another channel. null: it has given none */
  #granted: number | null = null;
  #isLeftOpen = false;

  /** Asks until there is an answer, or the agent ends. */
  constructor(host: MigrationHost, channel: Channel, prepare: Pick<PrepareCall, "migration" | "epoch">) {
    const { name, context } = host;
    const { migration, epoch } = prepare;
    this.#epoch = epoch;
    this.decided = release(host, {
      migration,
      epoch,
      mark: () => context.store.markReleased({ workload: name, node: context.node, epoch }),
      grants: () => sourceGrants(channel, migration),
      word: () => this.#granted,
    }).catch((error: unknown) => {
      if (host.isClosed) this.#isLeftOpen = true; // the store may have it: the next agent asks
      throw error;
    });
  }

  /** This agent ends, and leaves to the next one what became of it. */
  get isLeftOpen(): boolean {
    return this.#isLeftOpen;
  }

  /**
   * What a source is told that asks.
   * @param grant its word: the epoch at which this node may go on. null: it gives none
   * @returns null: this node does not go on
   */
  async outcome(grant: number | null): Promise<OutcomeReply | null> {
    this.#granted = grant ?? this.#granted;
    const unsure = sleep(OUTCOME_MS_MAX, null, { ref: false });
    const epoch = await Promise.race([this.decided.catch(() => 0), unsure]);
    if (epoch === null || this.#isLeftOpen) return { outcome: "unsure", epoch: this.#epoch };
    return epoch > 0 ? { outcome: "released", epoch } : null;
  }
}

async function sourceGrants(channel: Channel, migration: string): Promise<boolean> {
  if (!channel.isOpen) return false;
  try {
    await channel.call("grantRelease", { migration }, { timeoutMs: GRANT_MS_MAX });
    return true;
  } catch {
    return false; // neither the store nor the source: ask again
  }
}
