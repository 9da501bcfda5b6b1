/**
 * The moves of one workload from and to this node, one at a time: who may begin one, and who is told of its end. What a move
 * does is in `migration/`; one that was cut off is settled by `move-recovery.ts`.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Channel } from "#proxy/contract/channel.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { refuse } from "../api/finding.ts";
import type { MoveResult, OutcomeCall, OutcomeReply, PrepareCall, Report } from "../api/migration.ts";
import { Arrival } from "../migration/arrival/arrival.ts";
import { Departure } from "../migration/departure/departure.ts";
import type { MigrationHost } from "../migration/host.ts";
import { OUTCOME_MS_MAX } from "../migration/settle.ts";
import type { Journal } from "./journal.ts";
import type { CheckedWorkload } from "./preflight/checked-workload.ts";
import { checkArrival } from "./preflight/preflight.ts";
import { restartBusy } from "./supervisor.ts";

export interface MigrateRequest {
  to: string;
  deadlineMs?: number;
  report: Report;
}

/** The workload that moves. */
export interface MovingWorkload
  extends MigrationHost,
    Omit<CheckedWorkload, "context" | "limits" | "supervisor"> {
  readonly context: MigrationHost["context"] & CheckedWorkload["context"];
  readonly limits: MigrationHost["limits"] & { readonly deadlineMs: number };
  readonly journal: Readonly<Journal>;
  readonly supervisor: CheckedWorkload["supervisor"] & { readonly isBusy: boolean; cancel(): boolean };
  /** It is being started, and known to be this node's. */
  readonly isLaunching: boolean;
  /** Everything of it here is being ended. */
  readonly isEnding: boolean;
  /** @throws HoldfastError `JOURNAL_INVALID` */
  throwIfDamaged(): void;
  /** @throws HoldfastError `WORKLOAD_DOWN`, `NOT_OWNER` */
  requireOwner(): Promise<void>;
  /** The highest epoch of an owner that others told of. */
  readonly heardEpoch: number;
  /** Ends when what the last agent left is settled. */
  readonly recovery: Promise<void>;
  readonly moveRecovery: { readonly isLost: boolean; giveWord(): void; grant(epoch: number): void };
}

/** a new move waits so long for the store to be told of the last one */
export const DEBT_MS_MAX = 1_000;

export class Moves {
  readonly #host: MovingWorkload;
  #departure: { departure: Departure; cancel: AbortController } | null = null;
  #arrival: Arrival | null = null;

  constructor(host: MovingWorkload) {
    this.#host = host;
  }

  get isMoving(): boolean {
    const arriving = this.#arrival !== null && !this.#arrival.ended;
    return this.#departure !== null || arriving || this.#host.journal.moving !== null;
  }

  /** What keeps a node from taking or giving it away now, as "being …". null: nothing */
  get busyWith(): string | null {
    const { journal, supervisor, isEnding } = this.#host;
    if (this.#departure !== null || journal.moving?.side === "source") return "moved away";
    if (journal.moving !== null) return "moved there";
    if (isEnding) return "ended";
    return supervisor.isBusy ? "started again" : null;
  }

  /** Of what is refused, as something else is under way. */
  busy(): HoldfastError {
    const { name, isEnding } = this.#host;
    if (this.isMoving) return fail("MIGRATION_BUSY", `${name}: a migration is under way`);
    return isEnding ? fail("MIGRATION_BUSY", `${name} is being ended on this node`) : restartBusy(name);
  }

  /** @throws HoldfastError `MIGRATION_BUSY`, `RESTART_BUSY` */
  #throwIfBusy(): void {
    const { supervisor, isEnding } = this.#host;
    if (this.isMoving || isEnding || supervisor.isBusy) throw this.busy();
  }

  // ---- from here ----

  async migrate(request: MigrateRequest): Promise<MoveResult> {
    const move = await this.#depart(request, false);
    this.#host.context.metrics.moved(move);
    return move;
  }
  /** A move up to the point where the first client would be held, undone again on both nodes. */
  rehearse(request: MigrateRequest): Promise<MoveResult> {
    return this.#depart(request, true);
  }

  async #depart(request: MigrateRequest, rehearse: boolean): Promise<MoveResult> {
    const host = this.#host;
    if (host.isLaunching) throw this.busy();
    this.#throwIfBusy();
    await host.requireOwner();
    if (request.to === host.context.node) {
      throw fail("ALREADY_THERE", `${host.name} is on node ${request.to} already`);
    }
    await host.outbox.flushed(DEBT_MS_MAX);
    if (host.journal.owed !== null) {
      throw fail(
        "STORE_UNREACHABLE",
        `${host.name}: the store has not been told yet how the last move ended; it does not answer`,
      );
    }
    this.#throwIfBusy();
    const cancel = new AbortController();
    const departure = new Departure(host, {
      to: request.to,
      deadlineMs: request.deadlineMs ?? host.limits.deadlineMs,
      report: request.report,
      signal: cancel.signal,
      rehearse,
    });
    this.#departure = { departure, cancel };
    try {
      return await departure.run();
    } finally {
      this.#departure = null;
    }
  }

  /** Asks a move to roll back. False: none is under way. */
  cancel(why: HoldfastError): boolean {
    this.#departure?.cancel.abort(why);
    return this.#departure !== null;
  }

  grantRelease(migration: string): void {
    if (this.#departure === null) throw fail("MIGRATION_UNKNOWN", "no such migration");
    this.#departure.departure.grantRelease(migration);
  }

  // ---- to here ----

  /** Another node wants to hand the workload over. */
  async arrive(channel: Channel, prepare: PrepareCall): Promise<void> {
    const host = this.#host;
    host.throwIfDamaged();
    this.#throwIfBusy();
    if (host.journal.role === "owner")
      throw fail("ALREADY_THERE", `${host.name} is owned by ${host.context.node} already`);
    if (prepare.epoch <= Math.max(host.journal.epoch, host.heardEpoch))
      throw fail("EPOCH_PASSED", `epoch ${prepare.epoch} has passed`);
    const arrival = new Arrival(host, channel, prepare);
    this.#arrival = arrival; // now, so that a second one is refused
    host.see(prepare.epoch);
    try {
      const { facts, ownerEpoch, from } = prepare;
      const call = { workload: host.name, from, epoch: ownerEpoch, facts };
      refuse((await checkArrival(host, call)).findings, from);
    } catch (error) {
      arrival.dismiss();
      throw error;
    }
    arrival.handlers();
    await arrival.begin(); // where it fails it is busy until nothing is left of it
  }

  /** It is this node's. */
  arrived(): void {
    this.#arrival = null;
  }

  /**
   * What became of a move to this node: its source asks when the channel of the move is gone. One that is not released is
   * given up by this, so that the answer stays true. `unsure`: the store was asked to mark it released and has not answered;
   * then the source's grant (the epoch at which this node is to go on) decides.
   */
  async outcome({ migration, epoch, grant }: OutcomeCall): Promise<OutcomeReply> {
    const host = this.#host;
    host.throwIfDamaged(); // it may be this node's
    const arrival = this.#arrival;
    if (arrival !== null && arrival.prepare.migration === migration) return arrival.abort(grant);
    const isOpen = (): boolean =>
      host.journal.moving?.side === "target" && host.journal.moving.id === migration;
    if (isOpen()) {
      const step = host.journal.moving?.step;
      const isSure = step !== "releasing" && step !== "released";
      if (isSure || host.moveRecovery.isLost) host.moveRecovery.giveWord();
      else if (grant !== null) host.moveRecovery.grant(grant);
      await Promise.race([host.recovery.catch(() => {}), sleep(OUTCOME_MS_MAX, undefined, { ref: false })]);
      if (isOpen()) return { outcome: "unsure", epoch };
    }
    const { owned } = host.journal;
    return owned >= epoch ? { outcome: "released", epoch: owned } : { outcome: "gave-up", epoch };
  }
}
