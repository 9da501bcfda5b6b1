/**
 * Whether this node still owns a workload, by what other agents say and what the store has on record. Of two owners the one with the
 * lower epoch ends what it runs; a store that has lost the record is told again.
 */
import type { Logger } from "pino";
import type { Downstream } from "#proxy/contract/commands.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Store } from "#proxy/store/store.ts";
import type { Held } from "../api/owners.ts";
import type { Vip } from "../network/vip.ts";
import type { Freezer } from "../runtime/freezer.ts";
import type { LinkOwner } from "./anchors.ts";
import { EMPTY_JOURNAL, type Journal } from "./journal.ts";
import type { Obstacle } from "./obstacle.ts";
import { isSameEndpoint } from "./owners.ts";

/** The workload that is owned, here or elsewhere. */
export interface WatchedWorkload {
  readonly name: string;
  readonly downstream: Downstream;
  readonly context: {
    readonly node: string;
    readonly store: Store;
    readonly metrics: { steppedDown(workload: string): void };
    readonly log: Logger;
  };
  readonly journal: Readonly<Journal>;
  record(patch: Partial<Journal>): void;
  see(epoch: number): void;
  readonly obstacle: Obstacle;
  readonly isDamaged: boolean;
  /** What the last agent left has been found, and a move that it was at is settled. */
  readonly isRecovered: boolean;
  /** Owned, and neither about to leave nor to be ended. */
  readonly isAtRest: boolean;
  readonly isEnding: boolean;
  readonly runsHere: boolean;

  readonly vip: Vip | null;
  readonly keeper: {
    linkEndpoint(): Promise<Endpoint | null>;
    tellKeys(): Promise<void>;
    lookAgain(): void;
  };
  readonly anchors: {
    readonly ownerLink: Endpoint | null;
    onSwitch(epoch: number, owner: LinkOwner): Promise<void>;
  };
  readonly linkRecords: { tell(): Promise<void>; again(): void };
  readonly supervisor: { cancel(): boolean; interrupt(): Promise<void> };
  /** What stops the container unseen. null: this machine has nothing of the kind */
  freezer(): Promise<Freezer | null>;
  /** Everything of it here ends by `work`: no restart, no start, no new proxy meanwhile. */
  ending<T>(work: () => Promise<T>): Promise<T>;
  tearDown(): Promise<void>;
}

export class OwnerWatch {
  readonly #host: WatchedWorkload;
  #heardEpoch = 0;

  constructor(host: WatchedWorkload) {
    this.#host = host;
  }

  /** The highest epoch of an owner that others told of. */
  get heardEpoch(): number {
    return this.#heardEpoch;
  }

  /** For other agents. */
  async held(): Promise<Held> {
    const { name, downstream, keeper, runsHere, isEnding, isDamaged } = this.#host;
    const { role, moving, epoch, seen } = this.#host.journal;
    // one that died with its machine keeps nobody from starting it
    const runs = role === "owner" && runsHere;
    const isOwner = runs && moving === null && !isEnding;
    const mayBeHere = runs || moving !== null || isDamaged;
    const has = isOwner ? "owner" : mayBeHere ? "moving" : "no";
    const link = isOwner && downstream === "forward" ? await keeper.linkEndpoint() : null;
    return { workload: name, has, epoch, seen, link };
  }

  /** What the agent of another node says of it. */
  hear(peer: string, { has, epoch, seen, link }: Held): void {
    const { obstacle, anchors, vip } = this.#host;
    this.#host.see(Math.max(epoch, seen));
    if (has !== "owner") return;
    this.#heardEpoch = Math.max(this.#heardEpoch, epoch);
    const { role, moving, epoch: own } = this.#host.journal;
    if (moving !== null) return; // settled by those who are at it
    if (obstacle.startFailed && role !== "owner") obstacle.clear();
    if (role === "owner" && epoch > own)
      this.stepDown({ owner: peer, epoch }).catch((error: unknown) => this.#warn("step down", error));
    // it is about to take the address off, which it has announced
    if (role === "owner" && epoch < own) vip?.announce();
    const isNews = epoch > own || !isSameEndpoint(link, anchors.ownerLink);
    if (role === "anchor" && link !== null && epoch >= own && isNews)
      anchors
        .onSwitch(epoch, { node: peer, link })
        .catch((error: unknown) => this.#warn("switch links", error));
  }

  /** The store has forgotten or thrown back what it knew, or names another owner. Called about every second. */
  async check(): Promise<void> {
    const host = this.#host;
    await host.keeper.tellKeys();
    const isSettled = (): boolean => host.isAtRest && host.journal.owed === null && host.runsHere;
    if (!host.isRecovered || !isSettled()) return;
    host.keeper.lookAgain();
    const { store, node } = host.context;
    const { epoch } = host.journal;
    const found = await store.ownership(host.name).catch(() => undefined);
    if (found === undefined || !isSettled() || host.journal.epoch !== epoch) return;
    try {
      if (found === null || found.epoch < epoch || (found.owner === node && found.state === "committed")) {
        await this.assert();
        return await host.linkRecords.tell();
      }
      host.see(found.epoch);
      if (found.owner !== node || found.state === "stopped") return await this.stepDown(found);
      if (found.epoch > epoch) host.record({ epoch: found.epoch });
      // a reservation that a fail-over has brought back would refuse every move
      if (found.migration !== null)
        await store.cancel({ workload: host.name, migration: found.migration.id });
      await host.linkRecords.tell();
    } catch (error) {
      this.#warn("look whether it is still owned", error);
    }
  }

  /**
   * Tells the store that this node owns it, at the epoch the journal knows; where another node has a higher one, this node
   * steps down. @throws HoldfastError retryable when the store cannot be told
   */
  async assert(): Promise<void> {
    const host = this.#host;
    const { context, name, journal } = host;
    if (journal.role !== "owner") return;
    try {
      const found = await context.store.raise({ workload: name, node: context.node, epoch: journal.epoch });
      if (found.epoch > host.journal.epoch) host.record({ epoch: found.epoch });
      context.log.warn({ workload: name, ...found }, "the store had lost the record of the owner");
      host.linkRecords.again();
    } catch (error) {
      if (!(error instanceof HoldfastError && error.code === "STORE_FENCED")) throw error;
      const found = await context.store.ownership(name);
      if (found === null) throw error;
      await this.stepDown(found);
    }
  }

  /**
   * Another node owns it at a higher epoch: whatever this one has done since is lost, and it must do no more. The address goes
   * first, so that what ends here speaks to nobody from an address that lives elsewhere; then the application stops, before
   * its clients are reset.
   */
  async stepDown({ owner, epoch }: { owner: string; epoch: number }): Promise<void> {
    const host = this.#host;
    const { context, name, supervisor } = host;
    if (!host.isRecovered || !host.isAtRest) return; // asked again in a second
    if (supervisor.cancel()) {
      host.vip?.remove(); // and the rest when the restart is over
      return;
    }
    const own = host.journal.epoch;
    await host.ending(async () => {
      context.metrics.steppedDown(name);
      context.log.error(
        { workload: name, owner, epoch, own },
        "another node owns the workload at a higher epoch: ending the one here",
      );
      const steps: Record<string, () => Promise<unknown> | unknown> = {
        "take the address off": () => host.vip?.remove(),
        "stop the application": async () => (await host.freezer())?.freeze(),
        "end restarts": () => supervisor.interrupt(),
      };
      for (const [what, step] of Object.entries(steps)) {
        try {
          await step();
        } catch (error) {
          this.#warn(what, error);
        }
      }
      await host.tearDown(); // what it cannot end stays on record, and is tried again
      host.record({ ...EMPTY_JOURNAL, epoch: Math.max(epoch, own) });
      host.obstacle.clear();
      host.obstacle.found({
        what: `node ${owner} owns it at epoch ${epoch}, above ${own} here: what ran here was ended, and its clients reset`,
        cure: "nothing has to be done; see the log for how there came to be two",
      });
    });
  }

  /** It was stopped here on purpose: no node has it. */
  async leaveTombstone(epoch: number): Promise<void> {
    const { store, node, log } = this.#host.context;
    const own = { workload: this.#host.name, node, epoch };
    try {
      await store.stop(own).catch(async (error: unknown) => {
        if (!(error instanceof HoldfastError && ["STORE_ABSENT", "STORE_FENCED"].includes(error.code)))
          throw error;
        await store.raise(own); // a record that was lost, or thrown back
        await store.stop(own);
      });
    } catch (error) {
      log.warn(
        { workload: this.#host.name, reason: messageOf(error) },
        "the store still names this node as owner",
      );
    }
  }

  #warn(what: string, error: unknown): void {
    this.#host.context.log.warn(
      { workload: this.#host.name, what, reason: messageOf(error) },
      `${what} failed; continuing`,
    );
  }
}
