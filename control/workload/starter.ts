/**
 * Starts a workload on this node as soon as it is known that no other node has it, or on command. Whether it may is
 * decided by `claim.ts`; here are the asking, the claim in the store, and the launch itself.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { isUnanswered, type Store } from "#proxy/store/store.ts";
import type { PeerAnswer } from "../api/owners.ts";
import type { WorkloadConfig } from "../config/config.ts";
import type { Vip } from "../network/vip.ts";
import { treeOf } from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import { type Decision, decideClaim, decideForced, type Permission, type Problem } from "./claim.ts";
import type { Journal } from "./journal.ts";
import type { Obstacle } from "./obstacle.ts";
import { startProblem } from "./start-problem.ts";

/** The workload that is started. */
export interface StarterHost {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly logFile: string;
  readonly context: {
    readonly node: string;
    readonly store: Store;
    readonly mark: { isKnown(): Promise<boolean> };
    readonly owners: { ask(workload: string): Promise<PeerAnswer[]> };
    readonly log: Logger;
  };
  readonly journal: Readonly<Journal>;
  record(patch: Partial<Journal>): void;
  readonly obstacle: Obstacle;
  readonly isClosed: boolean;
  readonly isMoving: boolean;
  readonly runsHere: boolean;
  /** @throws HoldfastError `MIGRATION_BUSY` */
  throwIfMoving(): void;

  readonly vip: Vip | null;
  /** @throws HoldfastError `VIP_DEVICE` */
  openVip(): Promise<void>;
  createContainer(populate: (layer: string) => Promise<void>): Promise<Sandbox>;
  readonly supervisor: { first(): Promise<void> };
  readonly keeper: { start(): Promise<unknown>; serve(epoch: number): Promise<void> };
  readonly linkRecords: { tell(): Promise<void> };
  tearDown(): Promise<void>;
}

/** nodes and store are asked again after this whether a workload may be started */
const CLAIM_AGAIN_MS = 500;
/** … and less and less often, for an owner may keep it as long as it likes */
const CLAIM_AGAIN_MS_MAX = 2_000;

const OWED: Problem = {
  what: "the store has not been told yet how the last move of it ended",
  cure: "start the store; then it is started by itself",
};

export class Starter {
  readonly #host: StarterHost;
  #isWaiting = false;
  /** being started, or looked at whether it may be; one at a time */
  #starting: Promise<unknown> | null = null;

  constructor(host: StarterHost) {
    this.#host = host;
  }

  /** To be started here as soon as it is known that it may. */
  get isWaiting(): boolean {
    return this.#isWaiting;
  }
  /** Being started, or looked at whether it may be. */
  get isStarting(): boolean {
    return this.#starting !== null;
  }
  /** … and known to be this node's. */
  get isLaunching(): boolean {
    return this.#starting !== null && this.#host.journal.role === "owner";
  }
  /** Resolves when no start is under way, however it ended. */
  async idle(): Promise<void> {
    while (this.#starting !== null) await this.#starting.catch(() => {});
  }

  /** Starts it as soon as it is known that no other node has it. Resolves after the first look; the others follow by themselves. */
  async startWhenKnown(): Promise<void> {
    if (await this.#tryToStart()) return;
    this.#isWaiting = true;
    const asked = (async () => {
      let againMs = CLAIM_AGAIN_MS;
      do {
        await sleep(againMs, undefined, { ref: false });
        againMs = Math.min(againMs * 1.5, CLAIM_AGAIN_MS_MAX);
      } while (!(await this.#tryToStart()));
    })();
    asked
      .catch((error: unknown) =>
        this.#host.context.log.error(
          { workload: this.#host.name, reason: messageOf(error) },
          "cannot be started",
        ),
      )
      .finally(() => {
        this.#isWaiting = false;
      });
  }

  /** False: it is not known yet whether it may be started here. */
  async #tryToStart(): Promise<boolean> {
    const host = this.#host;
    if (host.isClosed || host.journal.stopped || host.runsHere) return true;
    if (host.isMoving || this.#starting !== null) return false;
    if (host.journal.role === "none" && !host.config.start) return true; // its pod is a standby by now
    if (host.journal.owed !== null) return this.#waitFor(OWED); // the store says something else until then
    return this.#alone(async () => {
      const decision = await this.#decide(false);
      if (decision.kind === "other") {
        if (host.journal.role === "owner") host.record({ role: "none" });
        if (this.#takesOver) return this.#waitFor(ofPodBefore(host.name, decision.owner));
        host.obstacle.found(null);
        host.context.log.info({ workload: host.name, owner: decision.owner }, "owned by another node");
        return true;
      }
      if (decision.kind === "wait") return this.#waitFor(decision.problem);
      return this.#carryOut(decision).catch((error: unknown) => {
        if (!this.#isOfKubelet) throw error;
        return false;
      });
    });
  }

  /** Without us kubelet would start it again and again: it may have failed for what is not there yet. */
  get #isOfKubelet(): boolean {
    return (this.#host.config.pod?.uid ?? null) !== null;
  }

  /**
   * Its pod was made to have the application, in the place of one elsewhere that may be a while about its end: it is started as soon
   * as that has let go.
   */
  get #takesOver(): boolean {
    return this.#host.config.start && this.#isOfKubelet;
  }

  #waitFor(problem: Problem): false {
    const { name, context, obstacle } = this.#host;
    if (obstacle.problem?.what !== problem.what)
      context.log.warn({ workload: name, ...problem }, "not started yet");
    obstacle.found(problem);
    return false;
  }

  async #alone<T>(work: () => Promise<T>): Promise<T> {
    const started = work();
    this.#starting = started;
    try {
      return await started;
    } finally {
      this.#starting = null;
    }
  }

  /**
   * On command, also after `stop`. @param force a person says that no other node has it: believed unless one answers that it
   * does
   * @throws HoldfastError `ALREADY_THERE`, `NOT_OWNER`, `OWNER_UNKNOWN`, `MIGRATION_BUSY`, `STORE_UNREACHABLE`
   */
  async start(force: boolean): Promise<void> {
    const host = this.#host;
    await this.idle();
    host.throwIfMoving();
    if (host.journal.role === "owner" && host.runsHere)
      throw fail("ALREADY_THERE", `${host.name} is on node ${host.context.node} already`);
    await this.#alone(async () => {
      const decision = await this.#decide(force);
      if (decision.kind === "other" || decision.kind === "wait") {
        const { what, cure } = decision.problem;
        const code = decision.kind === "other" ? "NOT_OWNER" : "OWNER_UNKNOWN";
        // a person may have to do something about it
        throw fail(code, `${host.name} is not started: ${what}; ${cure}`, {
          source: "migration",
          retryable: false,
        });
      }
      if (force) host.context.log.warn({ workload: host.name, ...decision }, "started because it was forced");
      host.record({ stopped: false });
      if (!(await this.#carryOut(decision)))
        throw fail(
          "OWNER_UNKNOWN",
          `${host.name}: the store did not take the claim, or another node was quicker`,
        );
    });
  }

  /** Whether it may be started here. A store that is silent keeps it from that. */
  async #decide(force: boolean): Promise<Decision> {
    const { context, name, journal } = this.#host;
    const peers = await context.owners.ask(name);
    try {
      // after the peers: what one of them has told the store before it answered is seen
      const record = await context.store.ownership(name);
      const storeIsKnown = record === null && (await context.mark.isKnown());
      const known = { workload: name, node: context.node, record, peers, journal, storeIsKnown };
      return force ? decideForced(known) : decideClaim(known);
    } catch (error) {
      if (force || !isUnanswered(error)) throw error;
      const cure = error.retryable
        ? "start the store"
        : "let this node use the store (user, password, rights)";
      return {
        kind: "wait",
        problem: { what: messageOf(error), cure: `${cure}; then it is started by itself` },
      };
    }
  }

  /** False: another node was quicker, or the store did not answer. */
  async #carryOut(decision: Permission): Promise<boolean> {
    const { context, name, obstacle } = this.#host;
    const request = { workload: name, node: context.node, epoch: decision.epoch };
    let { epoch } = request;
    try {
      if (decision.kind !== "resume") {
        const made = await context.store[decision.kind](request);
        if (made.owner !== context.node || made.state !== "released") return false;
        epoch = made.epoch;
      }
    } catch (error) {
      if (isUnanswered(error) || (error instanceof HoldfastError && error.code === "STORE_FENCED"))
        return false;
      throw error;
    }
    try {
      await this.#launch(epoch);
      obstacle.clear();
    } catch (error) {
      // kubelet has not made its container anew yet: why it has ended says more
      if (obstacle.startFailed && error instanceof HoldfastError && error.code === "POD_MISSING") throw error;
      const problem = await this.whyNotStarted(error);
      const { id, what, cure } = problem;
      if (!obstacle.startFailed || obstacle.problem?.what !== what)
        context.log.error({ workload: name, id, cure, reason: messageOf(error) }, "the start has failed");
      obstacle.startHasFailed(problem);
      throw new HoldfastError(`${name} does not start: ${what}: ${cure}`, {
        code: error instanceof HoldfastError ? error.code : "START_FAILED",
        source: "container",
        cause: error,
      });
    }
    return true;
  }

  async whyNotStarted(error: unknown): Promise<Problem> {
    const { name, config, logFile } = this.#host;
    const { proxy, container } = this.#host.journal;
    const own = new Set(container === null ? [] : await treeOf(container.init.pid).catch(() => []));
    if (proxy !== null) own.add(proxy.process.pid);
    return startProblem(error, { name, config, logFile, own });
  }

  async #launch(epoch: number): Promise<void> {
    const host = this.#host;
    const { context, name } = host;
    await host.openVip();
    if (host.journal.role === "anchor") await host.tearDown(); // of an owner that is gone for good
    const holder = host.vip?.ask(); // beside the start
    const container = await host.createContainer(async () => {});
    host.record({ container: container.ref, role: "owner", epoch, stopped: false, anchors: [] });
    try {
      await host.supervisor.first();
      await host.keeper.start();
      await host.keeper.serve(epoch);
      await host.vip?.take(holder);
    } catch (error) {
      await host.tearDown();
      throw error;
    }
    await host.linkRecords.tell();
    context.log.info({ workload: name, epoch, container: container.id }, "started");
  }
}

function ofPodBefore(workload: string, owner: string): Problem {
  return {
    what: `it belongs to node ${owner} still`,
    cure: `wait until it has ended there; if that node is gone for good: \`holdfast start ${workload} --force\` here`,
  };
}
