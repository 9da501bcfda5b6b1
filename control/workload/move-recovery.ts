/**
 * A move that was cut off, as the next agent finds it in the journal: settled by the lines that live moves go by (`migration/settle.ts`), with
 * what the container and the proxy have come to meanwhile. Ends with exactly one owner.
 */
import { rm } from "node:fs/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { MigrationHost } from "../migration/host.ts";
import type { Moving } from "../migration/moving.ts";
import {
  decideAtTarget,
  decideLost,
  decideReleasing,
  goBack,
  hasLetGo,
  release,
} from "../migration/settle.ts";
import { untilDone } from "../migration/steps.ts";
import { isSameProcess } from "../runtime/processes.ts";
import { isShortage } from "../runtime/read-text.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import type { Obstacle } from "./obstacle.ts";

/** The workload whose move it was. */
export interface RecoveryHost extends MigrationHost {
  /** null: there is none on record */
  readonly sandbox: Sandbox | null;
  readonly keeper: MigrationHost["keeper"] & { readonly client: object | null };
  readonly obstacle: Obstacle;
}

const CRIU_POLL_MS = 5;
/** takeover has no links */
const NO_LINK: Endpoint = { address: "", port: 0 };

export class MoveRecovery {
  readonly #host: RecoveryHost;
  /** the source of an arrival being recovered has been told that this node gave up */
  #gaveWord = false;
  /** … or has given its word: the epoch at which this node may go on, whatever the store says later */
  #granted: number | null = null;
  /** waits for the store or the other node; forced: a person has said that the other node is gone for good */
  #settling: "no" | "yes" | "forced" = "no";

  /** nothing is left of an arrival that could go on: rather than that, its source does */
  #isLost = false;

  constructor(host: RecoveryHost) {
    this.#host = host;
  }

  get isLost(): boolean {
    return this.#isLost;
  }
  /** From now on this node does not go on: its answer stays true. */
  giveWord(): void {
    this.#gaveWord = true;
  }
  /** The source, or a person, lets this node go on at that epoch. */
  grant(epoch: number): void {
    this.#granted = epoch;
  }
  get isGranted(): boolean {
    return this.#granted !== null;
  }

  get isSettling(): boolean {
    return this.#settling !== "no";
  }
  /** Asked again and again while a move to a node that may have the workload is being settled. */
  get isForced(): boolean {
    return this.#settling === "forced";
  }
  settling(isSettling: boolean): void {
    const { name, journal, obstacle } = this.#host;
    this.#settling = isSettling ? "yes" : "no";
    obstacle.found(
      isSettling
        ? {
            what: `whether node ${journal.moving?.peer} has it is not known: its clients wait until that node or the store answers`,
            cure: `start the agent there, or the store; if the node is gone for good: \`holdfast start ${name} --force\``,
          }
        : null,
    );
  }

  /**
   * A person says that the other node is gone for good: the application goes on here as if that node had said that it gave up.
   * @throws HoldfastError `OWNER_UNKNOWN`
   */
  async force(): Promise<void> {
    const { name, context, journal } = this.#host;
    const { moving, seen } = journal;
    const peer = moving?.peer;
    if (moving?.side === "target" && moving.step !== "releasing")
      throw fail(
        "OWNER_UNKNOWN",
        `${name}: only the store knows whether this node may have it: start the store`,
      );
    const answers = await context.owners.ask(name);
    if (answers.some((answer) => answer.peer === peer && "held" in answer))
      throw fail("OWNER_UNKNOWN", `${name}: node ${peer} answers: it is asked what became of the move`, {
        source: "peer",
      });
    if (moving?.side === "target") this.grant(Math.max(seen, moving.epoch) + 2);
    else if (this.#settling === "yes") this.#settling = "forced";
  }

  async run(moving: Moving): Promise<void> {
    this.#host.context.log.warn({ workload: this.#host.name, ...moving }, "a move was cut off; settling it");
    // one that restores waits for this agent's predecessor for ever, and ends with the container that it has not completed
    if (moving.criu !== null && moving.side === "source") await waitForCriu(moving.criu);
    if (moving.side === "target") await this.#arrival(moving);
    else await this.#departure(moving);
  }

  async #departure(moving: Moving): Promise<void> {
    const host = this.#host;
    const { context, name } = host;
    const settled = await goBack(host, {
      migration: moving.id,
      peer: moving.peer,
      epoch: moving.epoch,
      reserveTried: true,
      held: moving.step !== "prepared",
      commitTried: moving.step === "committing" || moving.step === "granted",
      granted: moving.step === "granted",
    });
    if (settled.where === "here") {
      context.log.info({ workload: name, epoch: host.journal.epoch }, "the cut-off move was rolled back");
      return;
    }
    context.log.info({ workload: name, owner: moving.peer }, "the cut-off move had been done");
    await host.retire(settled.epoch, { node: moving.peer, link: moving.link ?? NO_LINK });
  }

  async #arrival(moving: Moving): Promise<void> {
    const host = this.#host;
    const { epoch, id: migration, peer, step } = moving;
    if (step === "released" && !(await this.#isOwnedAbove(epoch))) return this.#finish(moving);
    const isWhole = await this.#isWhole();
    if (step === "releasing" && !isWhole) {
      this.#isLost = true;
      // the store may have made it this node's, and the source have let go
      if ((await decideLost(host, { migration, peer, epoch }, () => this.#gaveWord)) === "mine") {
        host.recordMoving({ step: "released" });
        return this.#finish(moving);
      }
    } else if (["restored", "adopted", "releasing"].includes(step) && isWhole) {
      const outcome =
        step === "releasing"
          ? await decideReleasing(host, { migration, peer, epoch })
          : await decideAtTarget(host, migration, epoch, () => this.#gaveWord);
      if (outcome === "mine" && (await this.#complete(moving))) return;
    }
    const { sandbox } = host;
    host.recordMoving({ step: "gave-up" });
    host.vip?.remove(); // first, see `Arrival`
    await sandbox?.destroy();
    host.endLeftConnections();
    await host.keeper.discard(epoch);
    host.record({ moving: null, container: null });
    host.context.log.info({ workload: host.name }, "the cut-off arrival was discarded");
  }

  /** A fail-over may have forgotten what was decided here, and another node have gone on while there was no agent. */
  async #isOwnedAbove(epoch: number): Promise<boolean> {
    const { name, context } = this.#host;
    for (const answer of await context.owners.ask(name)) {
      if (!("held" in answer) || answer.held?.has !== "owner" || answer.held.epoch <= epoch) continue;
      const { peer, held } = answer;
      context.log.error(
        { workload: name, owner: peer, epoch: held.epoch, own: epoch },
        "another node has gone on",
      );
      return true;
    }
    return false;
  }

  /** Restored and stopped, and the proxy that has its legs lives too. */
  async #isWhole(): Promise<boolean> {
    return this.#host.keeper.client !== null && (await this.#hasApplication());
  }

  async #hasApplication(): Promise<boolean> {
    const { sandbox } = this.#host;
    if (sandbox === null || !(await sandbox.isAlive())) return false;
    const nobody = (error: unknown): null => {
      if (isShortage(error)) throw error;
      return null;
    };
    return (await sandbox.applicationRoot().catch(nobody)) !== null;
  }

  /** The source committed and nobody has taken it back. False: somebody has. */
  async #complete(moving: Moving): Promise<boolean> {
    const host = this.#host;
    const { name, context } = host;
    const { epoch, id: migration, peer } = moving;
    const refused = (error: unknown): false => {
      context.log.warn({ workload: name, reason: messageOf(error) }, "the arrival cannot be completed");
      return false;
    };
    try {
      if (host.downstream === "takeover" && moving.step === "restored")
        await host.proxy.command("adoptDownstream", { epoch }, await host.heldBytes(epoch));
    } catch (error) {
      return refused(error);
    }
    if (this.#gaveWord) return false;
    host.recordMoving({ step: "releasing" });
    let released: number;
    try {
      released = await release(host, {
        migration,
        epoch,
        // also where a fail-over has thrown back what made it this node's
        mark: () => context.store.raise({ workload: name, node: context.node, epoch }),
        grants: () => hasLetGo(host, { peer, epoch }),
        word: () => this.#granted,
      });
    } catch (error) {
      // the store has decided otherwise; whatever else went wrong is no reason to give up what may be this node's
      if (error instanceof HoldfastError && error.source === "store") return refused(error);
      throw error;
    }
    // from here nobody can take the workload back
    host.recordMoving({ step: "released", epoch: released });
    await this.#finish({ ...moving, epoch: released });
    return true;
  }

  async #finish({ epoch, anchors }: Moving): Promise<void> {
    const host = this.#host;
    const { sandbox } = host;
    // without its proxy it has lost its sessions, and is frozen all the same
    if (await this.#hasApplication()) {
      const warn = (text: string) => (error: unknown) =>
        host.context.log.warn({ workload: host.name, reason: messageOf(error) }, text);
      await untilDone(
        () => host.comeAlive(epoch),
        warn("the application cannot go on yet"),
        () => host.throwIfClosed(),
      );
      if (sandbox !== null)
        await rm(sandbox.hostPath("images"), { recursive: true, force: true }).catch(warn("images are left"));
    }
    host.becomeOwner(epoch, anchors);
    host.context.log.info({ workload: host.name, epoch }, "the cut-off arrival was completed");
  }
}

/** CRIU must not be killed in the middle: its parasite would stay in the application. It ends by itself. */
async function waitForCriu(criu: NonNullable<Moving["criu"]>): Promise<void> {
  while (await isSameProcess(criu)) await new Promise((resolve) => setTimeout(resolve, CRIU_POLL_MS));
}
