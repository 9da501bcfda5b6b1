/**
 * One workload on one node: its container, its proxy, its address, and what the journal says of them. Starts it, stops it,
 * finds it again after a restart of the agent; the moves themselves are in `migration/`.
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Channel } from "#proxy/contract/channel.ts";
import type { Downstream, SessionInfo } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { unseal } from "#proxy/store/seal.ts";
import type { DepartureFacts } from "../api/check.ts";
import { type Check, type CheckReport, merged, refuse, runChecks } from "../api/finding.ts";
import type { MoveResult, OutcomeCall, OutcomeReply, PrepareCall, Report } from "../api/migration.ts";
import type { Held } from "../api/owners.ts";
import { isToBeApart, type WorkloadConfig } from "../config/config.ts";
import { Arrival } from "../migration/arrival/arrival.ts";
import { Departure } from "../migration/departure/departure.ts";
import { comeAlive, undoMove } from "../migration/go-on.ts";
import type { Moving } from "../migration/moving.ts";
import { OUTCOME_MS_MAX } from "../migration/settle.ts";
import { endLeftConnections } from "../migration/sockets.ts";
import { Vip } from "../network/vip.ts";
import { Freezer } from "../runtime/freezer.ts";
import { treeOf } from "../runtime/processes.ts";
import type { OutputOptions, Runtime, Sandbox } from "../runtime/runtime.ts";
import { Anchors } from "./anchors.ts";
import { type Decision, decideClaim, decideForced, type Permission, type Problem } from "./claim.ts";
import type { AgentContext } from "./context.ts";
import { EMPTY_JOURNAL, type Journal, nextJournal, readJournal, writeJournal } from "./journal.ts";
import { LinkRecords } from "./link-record.ts";
import { MoveRecovery } from "./move-recovery.ts";
import { Output } from "./output.ts";
import { isSameEndpoint } from "./owners.ts";
import {
  askTarget,
  checkArrival,
  checkDeparture,
  checkMove,
  NOT_CONFIGURED,
  unreachable,
} from "./preflight/preflight.ts";
import { endProcess, type ProxyClient } from "./proxy-client.ts";
import { ProxyKeeper } from "./proxy-keeper.ts";
import { readRestartConfig } from "./restart-config.ts";
import { Registry } from "./session-registry.ts";
import { startProblem } from "./start-problem.ts";
import { downProblem, statusOf, type WorkloadStatus } from "./status.ts";
import { StoreOutbox } from "./store-outbox.ts";
import { type RestartEvent, type RestartResult, restartBusy, Supervisor } from "./supervisor.ts";

export interface MigrateRequest {
  to: string;
  deadlineMs?: number;
  report: Report;
}

const MIB = 1_048_576;
/** a new move waits so long for the store to be told of the last one */
const DEBT_MS_MAX = 1_000;
/** nodes and store are asked again after this whether a workload may be started */
const CLAIM_AGAIN_MS = 500;
const CHECK_DIAL_MS_MAX = 2_000;

/** By who it is that starts an application again. */
const SUPERVISORS = { agent: Supervisor } satisfies Record<Runtime["supervisor"], unknown>;

export class Workload {
  readonly context: AgentContext;
  readonly outbox = new StoreOutbox(this);
  readonly supervisor: Supervisor;
  readonly keeper = new ProxyKeeper(this);
  readonly anchors = new Anchors(this);
  readonly #linkRecords = new LinkRecords(this);
  readonly #moveRecovery = new MoveRecovery(this);
  readonly registry = new Registry(this);
  readonly output = new Output(this);
  #config: WorkloadConfig;
  vip: Vip | null = null;
  #journal: Journal;
  #departure: { departure: Departure; to: string; cancel: AbortController } | null = null;
  #arrival: Arrival | null = null;
  #closed = false;
  #stopping = false;
  #recovery: Promise<void> = Promise.resolve();
  /** what the last agent left has been found, and a move that it was at is settled */
  #isRecovered = false;
  #damage: HoldfastError | null = null;
  #problem: Problem | null = null;
  /** here, and nothing of it runs */
  #startFailed = false;
  /** to be started here as soon as it is known that it may */
  #isWaiting = false;
  /** being started, or looked at whether it may be; one at a time */
  #starting: Promise<unknown> | null = null;
  /** a cut-off move waits for the store or the other node; forced: a person has said that the other node is gone for good */
  #settling: "no" | "yes" | "forced" = "no";
  /** of owners that others told of */
  #heardEpoch = 0;

  constructor(config: WorkloadConfig, context: AgentContext) {
    this.#config = config;
    this.context = context;
    this.supervisor = new SUPERVISORS[context.runtime.supervisor](this);
    try {
      this.#journal = readJournal(this.#journalPath);
    } catch (error) {
      this.#damage = error as HoldfastError;
      this.#journal = EMPTY_JOURNAL;
    }
  }

  /** Its journal cannot be read: nobody knows what of it runs here, so nothing is touched. */
  get damage(): HoldfastError | null {
    return this.#damage;
  }

  // ---- what it is ----

  get config(): WorkloadConfig {
    return this.#config;
  }
  get name(): string {
    return this.config.name;
  }
  get downstream(): Downstream {
    return this.config.downstream;
  }
  get limits(): {
    imagesBytesMax: number;
    precopyBytesMax: number;
    verifyMemory: boolean;
    deadlineMs: number;
    storedLegsBytesMax: number;
  } {
    return {
      storedLegsBytesMax: this.config.limits.storedLegsBytesMax,
      imagesBytesMax: this.config.limits.imagesMbMax * 1024 * 1024,
      precopyBytesMax: this.config.limits.precopyMbMax * 1024 * 1024,
      verifyMemory: this.config.limits.verifyMemory,
      deadlineMs: this.config.limits.deadlineMs,
    };
  }
  get runtime(): Runtime {
    return this.context.runtime;
  }
  get journal(): Readonly<Journal> {
    return this.#journal;
  }
  /** null: there is none on record */
  get sandbox(): Sandbox | null {
    const { container } = this.#journal;
    return container === null ? null : this.runtime.find(container);
  }
  get container(): Sandbox {
    const { sandbox } = this;
    if (sandbox === null) throw this.#notHere();
    return sandbox;
  }
  get proxy(): ProxyClient {
    const { client } = this.keeper;
    if (client === null) throw this.#notHere();
    return client;
  }

  /** What stops the container unseen. null: this machine has nothing of the kind */
  async freezer(): Promise<Freezer | null> {
    return this.context.faults.lacks("freezer") ? null : Freezer.of(this.container);
  }

  /** What the application says goes here. */
  get logFile(): string {
    return this.#file("app.log");
  }
  get outputOptions(): OutputOptions {
    return { file: this.logFile, bytesMax: this.config.limits.logMbMax * MIB };
  }
  /** Owned, and neither about to leave nor to be ended. */
  get isAtRest(): boolean {
    const isBusy = this.#isMoving || this.#starting !== null || this.#stopping;
    return this.#journal.role === "owner" && !isBusy && !this.#closed;
  }

  /** @throws HoldfastError `JOURNAL_INVALID` where the last one could not be read: it is not overwritten */
  record(patch: Partial<Journal>): void {
    this.#throwIfDamaged();
    const isOther = patch.container !== undefined && patch.container?.id !== this.#journal.container?.id;
    // what was known of an application was of its container
    this.#journal = nextJournal(this.#journal, { ...(isOther ? { application: null } : {}), ...patch });
    writeJournal(this.#journalPath, this.#journal);
  }
  /** An epoch that was given out: this node will not let it be given out again. */
  see(epoch: number): void {
    if (this.#damage === null && epoch > this.#journal.seen) this.record({ seen: epoch });
  }
  recordMoving(patch: Partial<Moving>): void {
    if (this.#journal.moving !== null) this.record({ moving: { ...this.#journal.moving, ...patch } });
  }

  // ---- start, stop, restart of the agent ----

  /** Brings this node in line with the journal and the store. Called once, when the agent starts. */
  recover(): Promise<void> {
    this.#recovery = this.#recover();
    return this.#recovery;
  }

  async #recover(): Promise<void> {
    this.#throwIfDamaged();
    // what runs here is found and looked after all the same
    await this.#openVip().catch(async (error: unknown) => {
      this.#problem = await this.#whyNotStarted(error);
      this.context.log.error({ workload: this.name, ...this.#problem }, "the address is not looked after");
    });
    const { journal } = this;
    await this.keeper.find();
    if (journal.moving !== null) await this.#moveRecovery.run(journal.moving);
    if (this.#journal.owed !== null) this.outbox.put(this.#journal.owed);
    if (this.#journal.role === "owner") await this.#recoverOwner();
    else if (this.#journal.role === "anchor" && this.keeper.client === null)
      this.record({ role: "none", proxy: null });
    this.#isRecovered = true;
    this.supervisor.watch();
    this.registry.keep();
    this.output.keep();
    if (this.#journal.role === "none" && this.config.start) await this.#startWhenKnown();
  }

  /** Starts it as soon as it is known that no other node has it. Resolves after the first look; the others follow by themselves. */
  async #startWhenKnown(): Promise<void> {
    if (await this.#tryToStart()) return;
    this.#isWaiting = true;
    const asked = (async () => {
      do await sleep(CLAIM_AGAIN_MS, undefined, { ref: false });
      while (!(await this.#tryToStart()));
    })();
    asked
      .catch((error: unknown) =>
        this.context.log.error({ workload: this.name, reason: messageOf(error) }, "cannot be started"),
      )
      .finally(() => {
        this.#isWaiting = false;
      });
  }

  /** False: it is not known yet whether it may be started here. */
  async #tryToStart(): Promise<boolean> {
    if (this.#closed || this.#journal.stopped || this.runsHere) return true;
    if (this.#isMoving || this.#starting !== null) return false;
    return this.#alone(async () => {
      const decision = await this.#decide(false);
      if (decision.kind === "other") {
        this.#problem = null;
        if (this.#journal.role === "owner") this.record({ role: "none" });
        this.context.log.info({ workload: this.name, owner: decision.owner }, "owned by another node");
        return true;
      }
      if (decision.kind !== "wait") return this.#carryOut(decision);
      if (this.#problem?.what !== decision.problem.what)
        this.context.log.warn({ workload: this.name, ...decision.problem }, "not started yet");
      this.#problem = decision.problem;
      return false;
    });
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
   * does, and where a move that was cut off waits for a node that is gone, the application goes on here
   * @throws HoldfastError `ALREADY_THERE`, `NOT_OWNER`, `OWNER_UNKNOWN`, `MIGRATION_BUSY`, `STORE_UNREACHABLE`
   */
  async start(force: boolean): Promise<void> {
    this.#throwIfDamaged();
    if (this.#settling !== "no" && force) return this.#forceSettling();
    while (this.#starting !== null) await this.#starting.catch(() => {});
    if (this.#isMoving) throw this.#busy();
    if (this.#journal.role === "owner" && this.runsHere)
      throw fail("ALREADY_THERE", `${this.name} is on node ${this.context.node} already`);
    await this.#alone(async () => {
      const decision = await this.#decide(force);
      if (decision.kind === "other" || decision.kind === "wait") {
        const { what, cure } = decision.problem;
        const code = decision.kind === "other" ? "NOT_OWNER" : "OWNER_UNKNOWN";
        // a person may have to do something about it
        throw fail(code, `${this.name} is not started: ${what}; ${cure}`, {
          source: "migration",
          retryable: false,
        });
      }
      if (force) this.context.log.warn({ workload: this.name, ...decision }, "started because it was forced");
      this.record({ stopped: false });
      if (!(await this.#carryOut(decision)))
        throw fail(
          "OWNER_UNKNOWN",
          `${this.name}: the store did not take the claim, or another node was quicker`,
        );
    });
  }

  /** The application goes on here as if the other node had said that it gave up. */
  async #forceSettling(): Promise<void> {
    const { moving, seen } = this.#journal;
    const peer = moving?.peer;
    if (moving?.side === "target" && moving.step !== "releasing")
      throw fail(
        "OWNER_UNKNOWN",
        `${this.name}: only the store knows whether this node may have it: start the store`,
      );
    const answers = await this.context.owners.ask(this.name);
    if (answers.some((answer) => answer.peer === peer && "held" in answer))
      throw fail("OWNER_UNKNOWN", `${this.name}: node ${peer} answers: it is asked what became of the move`, {
        source: "peer",
      });
    if (moving?.side === "target") this.#moveRecovery.grant(Math.max(seen, moving.epoch) + 2);
    else if (this.#settling === "yes") this.#settling = "forced";
  }

  /** Asked again and again while a move to a node that may have the workload is being settled. */
  get isForced(): boolean {
    return this.#settling === "forced";
  }
  settling(isSettling: boolean): void {
    this.#settling = isSettling ? "yes" : "no";
    this.#problem = isSettling
      ? {
          what: `whether node ${this.#journal.moving?.peer} has it is not known: its clients wait until that node or the store answers`,
          cure: `start the agent there, or the store; if the node is gone for good: \`holdfast start ${this.name} --force\``,
        }
      : null;
  }

  /** Whether it may be started here. A store that is silent keeps it from that. */
  async #decide(force: boolean): Promise<Decision> {
    const { context, name } = this;
    const peers = await context.owners.ask(name);
    try {
      // after the peers: what one of them has told the store before it answered is seen
      const record = await context.store.ownership(name);
      const storeIsKnown = record === null && (await context.mark.isKnown());
      const known = {
        workload: name,
        node: context.node,
        record,
        peers,
        journal: this.#journal,
        storeIsKnown,
      };
      return force ? decideForced(known) : decideClaim(known);
    } catch (error) {
      if (force || !(error instanceof HoldfastError && error.retryable)) throw error;
      return {
        kind: "wait",
        problem: { what: messageOf(error), cure: "start the store; then it is started by itself" },
      };
    }
  }

  /** False: another node was quicker, or the store did not answer. */
  async #carryOut(decision: Permission): Promise<boolean> {
    const { context, name } = this;
    const request = { workload: name, node: context.node, epoch: decision.epoch };
    let { epoch } = request;
    try {
      if (decision.kind !== "resume") {
        const made = await context.store[decision.kind](request);
        if (made.owner !== context.node || made.state !== "released") return false;
        epoch = made.epoch;
      }
    } catch (error) {
      if (error instanceof HoldfastError && (error.retryable || error.code === "STORE_FENCED")) return false;
      throw error;
    }
    try {
      await this.#launch(epoch);
      this.#problem = null;
      this.#startFailed = false;
    } catch (error) {
      this.#startFailed = true;
      this.#problem = await this.#whyNotStarted(error);
      const { id, what, cure } = this.#problem;
      this.context.log.error({ workload: name, id, cure, reason: messageOf(error) }, "the start has failed");
      throw new HoldfastError(`${name} does not start: ${what}: ${cure}`, {
        code: error instanceof HoldfastError ? error.code : "START_FAILED",
        source: "container",
        cause: error,
      });
    }
    return true;
  }

  async #whyNotStarted(error: unknown): Promise<Problem> {
    const { name, config, logFile } = this;
    const { proxy, container } = this.#journal;
    const own = new Set(container === null ? [] : await treeOf(container.init.pid).catch(() => []));
    if (proxy !== null) own.add(proxy.process.pid);
    return startProblem(error, { name, config, logFile, own });
  }

  /** @throws HoldfastError `VIP_DEVICE` */
  async #openVip(): Promise<void> {
    if (this.config.vip === null || this.vip !== null) return;
    this.vip = await Vip.open(this.config.vip, {
      log: (level, fields, line) => this.context.log[level]({ workload: this.name, ...fields }, line),
    });
  }

  async #launch(epoch: number): Promise<void> {
    const { context, name } = this;
    await this.#openVip();
    if (this.#journal.role === "anchor") await this.#tearDown(); // of an owner that is gone for good
    const holder = this.vip?.ask(); // beside the start
    const container = await this.createContainer(async () => {});
    this.record({ container: container.ref, role: "owner", epoch, stopped: false, anchors: [] });
    try {
      await this.supervisor.first();
      await this.keeper.start();
      await this.keeper.serve(epoch);
      await this.vip?.take(holder);
    } catch (error) {
      await this.#tearDown();
      throw error;
    }
    await this.#linkRecords.tell();
    context.log.info({ workload: name, epoch, container: container.id }, "started");
  }

  /** Ends the application and its sessions (with RST) on this node and gives up ownership. */
  async stop(): Promise<void> {
    this.#throwIfDamaged();
    while (this.#starting !== null) await this.#starting.catch(() => {});
    if (this.#isMoving || this.supervisor.isRestarting) throw this.#busy();
    const { role, epoch } = this.#journal;
    this.#stopping = true;
    try {
      await this.supervisor.interrupt();
      await this.#tearDown();
      // its epoch stays: what is started next, wherever, is above it
      this.record({ ...EMPTY_JOURNAL, epoch, stopped: true });
      this.#problem = null;
      this.#startFailed = false;
    } finally {
      this.#stopping = false;
    }
    if (role === "owner") await this.#leaveTombstone(epoch);
  }

  async #leaveTombstone(epoch: number): Promise<void> {
    const { store, node, log } = this.context;
    const own = { workload: this.name, node, epoch };
    try {
      await store.stop(own).catch(async (error: unknown) => {
        if (!(error instanceof HoldfastError && ["STORE_ABSENT", "STORE_FENCED"].includes(error.code)))
          throw error;
        await store.raise(own); // a record that was lost, or thrown back
        await store.stop(own);
      });
    } catch (error) {
      log.warn({ workload: this.name, reason: messageOf(error) }, "the store still names this node as owner");
    }
  }

  // ---- who owns it ----

  /** For other agents. */
  async held(): Promise<Held> {
    const { role, moving, epoch, seen } = this.#journal;
    // one that died with its machine keeps nobody from starting it
    const runs = role === "owner" && this.runsHere;
    const isOwner = runs && moving === null && !this.#stopping;
    const mayBeHere = runs || moving !== null || this.#damage !== null;
    const has = isOwner ? "owner" : mayBeHere ? "moving" : "no";
    const link = isOwner && this.downstream === "forward" ? await this.keeper.linkEndpoint() : null;
    return { workload: this.name, has, epoch, seen, link };
  }

  get #isLaunching(): boolean {
    return this.#starting !== null && this.#journal.role === "owner";
  }

  get isProxyExpectedToEnd(): boolean {
    return this.#closed || this.#stopping || this.#isMoving;
  }

  /** What the agent of another node says of it. */
  hear(peer: string, { has, epoch, seen, link }: Held): void {
    this.see(Math.max(epoch, seen));
    if (has !== "owner") return;
    this.#heardEpoch = Math.max(this.#heardEpoch, epoch);
    const { role, moving, epoch: own } = this.#journal;
    if (moving !== null) return; // settled by those who are at it
    if (this.#startFailed && role !== "owner") {
      this.#startFailed = false;
      this.#problem = null;
    }
    if (role === "owner" && epoch > own)
      this.stepDown({ owner: peer, epoch }).catch((error: unknown) => this.#warn("step down", error));
    // it is about to take the address off, which it has announced
    if (role === "owner" && epoch < own) this.vip?.announce();
    const isNews = epoch > own || !isSameEndpoint(link, this.anchors.ownerLink);
    if (role === "anchor" && link !== null && epoch >= own && isNews)
      this.anchors
        .onSwitch(epoch, { node: peer, link })
        .catch((error: unknown) => this.#warn("switch links", error));
  }

  /** The store has forgotten or thrown back what it knew, or names another owner. Called about every second. */
  async checkOwnership(): Promise<void> {
    await this.keeper.tellKeys();
    const isSettled = (): boolean => this.isAtRest && this.#journal.owed === null && this.runsHere;
    if (!this.#isRecovered || !isSettled()) return;
    const { store, node } = this.context;
    const { epoch } = this.#journal;
    const found = await store.ownership(this.name).catch(() => undefined);
    if (found === undefined || !isSettled() || this.#journal.epoch !== epoch) return;
    try {
      if (found === null || found.epoch < epoch || (found.owner === node && found.state === "committed")) {
        await this.assertOwnership();
        return await this.#linkRecords.tell();
      }
      this.see(found.epoch);
      if (found.owner !== node || found.state === "stopped") return await this.stepDown(found);
      if (found.epoch > epoch) this.record({ epoch: found.epoch });
      // a reservation that a fail-over has brought back would refuse every move
      if (found.migration !== null)
        await store.cancel({ workload: this.name, migration: found.migration.id });
      await this.#linkRecords.tell();
    } catch (error) {
      this.#warn("look whether it is still owned", error);
    }
  }

  /**
   * Tells the store that this node owns it, at the epoch the journal knows; where another node has a higher one, this node
   * steps down. @throws HoldfastError retryable when the store cannot be told
   */
  async assertOwnership(): Promise<void> {
    const { context, name, journal } = this;
    if (journal.role !== "owner") return;
    try {
      const found = await context.store.raise({ workload: name, node: context.node, epoch: journal.epoch });
      if (found.epoch > this.#journal.epoch) this.record({ epoch: found.epoch });
      context.log.warn({ workload: name, ...found }, "the store had lost the record of the owner");
      this.#linkRecords.again();
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
    const { context, name } = this;
    if (!this.#isRecovered || !this.isAtRest) return; // asked again in a second
    if (this.supervisor.cancel()) {
      this.vip?.remove(); // and the rest when the restart is over
      return;
    }
    this.#stopping = true;
    const own = this.#journal.epoch;
    context.metrics.steppedDown(name);
    context.log.error(
      { workload: name, owner, epoch, own },
      "another node owns the workload at a higher epoch: ending the one here",
    );
    try {
      const steps: Record<string, () => Promise<unknown> | unknown> = {
        "take the address off": () => this.vip?.remove(),
        "stop the application": async () => (await this.freezer())?.freeze(),
        "end restarts": () => this.supervisor.interrupt(),
      };
      for (const [what, step] of Object.entries(steps)) {
        try {
          await step();
        } catch (error) {
          this.#warn(what, error);
        }
      }
      await this.#tearDown(); // what it cannot end stays on record, and is tried again
      this.#startFailed = false;
      this.record({ ...EMPTY_JOURNAL, epoch: Math.max(epoch, own) });
      this.#problem = {
        what: `node ${owner} owns it at epoch ${epoch}, above ${own} here: what ran here was ended, and its clients reset`,
        cure: "nothing has to be done; see the log for how there came to be two",
      };
    } finally {
      this.#stopping = false;
    }
  }

  /** The agent ends; everything else stays as it is. */
  close(): void {
    this.#closed = true;
    this.outbox.close();
    this.supervisor.close();
    this.registry.close();
    this.output.close();
    this.vip?.close();
    this.#departure?.cancel.abort(fail("AGENT_CLOSING", "the agent is shutting down"));
    this.keeper.client?.disconnect();
  }

  async #recoverOwner(): Promise<void> {
    const { epoch } = this.#journal;
    const alive = (await this.sandbox?.isAlive()) === true;
    if (!alive && this.keeper.client === null) {
      this.context.log.warn({ workload: this.name }, "did not survive; starting again");
      await this.#tearDown();
      this.record({ ...EMPTY_JOURNAL, role: "owner", epoch }); // a later agent has to try as well
      await this.#startWhenKnown();
      return;
    }
    this.context.log.info(
      { workload: this.name, container: alive, proxy: this.keeper.client !== null },
      "found running",
    );
    if (this.keeper.client === null) await this.keeper.replace(epoch);
    await this.vip?.take();
    // an application that is not there is started again by the watch, behind the proxy it had
    this.supervisor.recover();
  }

  // ---- restarting on command ----

  /** Ends the application and starts it again, with what the configuration file says of it now. */
  async restart(drainMs: number, report: (event: RestartEvent) => void): Promise<RestartResult> {
    if (this.#isLaunching || this.#isMoving || this.supervisor.isRestarting) throw this.#busy();
    await this.#requireOwner();
    const { context, name } = this;
    const { config, later } = readRestartConfig(context.configFile, this.#config);
    if (later.length > 0)
      context.log.warn(
        { workload: name, keys: later },
        "changed in the configuration, and not applied by a restart: stop the workload, then restart the agent",
      );
    await this.runtime.plan(config); // what would fail in the middle fails now
    if (this.#isMoving) throw this.#busy();
    return this.supervisor.restart({ drainMs, config, report });
  }

  useConfig(config: WorkloadConfig): void {
    this.#config = config;
  }

  async #requireOwner(): Promise<void> {
    this.#throwIfDamaged();
    if (this.#journal.role === "owner" && this.runsHere) return;
    const found = this.#startFailed ? null : await this.context.store.ownership(this.name);
    const isOurs = this.#journal.role === "owner" || found?.owner === this.context.node;
    if (this.#startFailed || (isOurs && found?.state !== "stopped")) {
      const { what, cure } = this.#problem ?? downProblem(this);
      throw fail("WORKLOAD_DOWN", `${this.name} does not run: ${what}: ${cure}`);
    }
    const isNowhere = found === null || found.state === "stopped";
    const cure = isNowhere ? "it runs nowhere" : `ask the agent of node ${found.owner}`;
    throw fail("NOT_OWNER", `${this.name} is not on node ${this.context.node}: ${cure}`);
  }

  // ---- moving ----

  migrate(request: MigrateRequest): Promise<MoveResult> {
    return this.#depart(request, false);
  }

  /** A move up to the point where the first client would be held, undone again on both nodes. */
  rehearse(request: MigrateRequest): Promise<MoveResult> {
    return this.#depart(request, true);
  }

  async #depart(request: MigrateRequest, rehearse: boolean): Promise<MoveResult> {
    if (this.#isLaunching || this.#isMoving || this.supervisor.isBusy) throw this.#busy();
    await this.#requireOwner();
    if (request.to === this.context.node) {
      throw fail("ALREADY_THERE", `${this.name} is on node ${request.to} already`);
    }
    await this.outbox.flushed(DEBT_MS_MAX);
    if (this.#journal.owed !== null) {
      throw fail(
        "STORE_UNREACHABLE",
        `${this.name}: the store has not been told yet how the last move ended; it does not answer`,
      );
    }
    if (this.#isMoving || this.supervisor.isBusy) throw this.#busy();
    const cancel = new AbortController();
    const departure = new Departure(this, {
      to: request.to,
      deadlineMs: request.deadlineMs ?? this.limits.deadlineMs,
      report: request.report,
      signal: cancel.signal,
      rehearse,
    });
    this.#departure = { departure, to: request.to, cancel };
    try {
      return await departure.run();
    } finally {
      this.#departure = null;
    }
  }

  /** Asks a move to roll back, or a restart not to begin. False: neither is running. */
  cancel(): boolean {
    this.#departure?.cancel.abort(fail("CANCELLED", "cancelled"));
    return this.supervisor.cancel() || this.#departure !== null;
  }

  /** Another node wants to hand the workload over. */
  async arrive(channel: Channel, prepare: PrepareCall): Promise<void> {
    this.#throwIfDamaged();
    if (this.#isMoving || this.supervisor.isBusy) throw this.#busy();
    if (this.#journal.role === "owner")
      throw fail("ALREADY_THERE", `${this.name} is owned by ${this.context.node} already`);
    if (prepare.epoch <= Math.max(this.#journal.epoch, this.#heardEpoch))
      throw fail("EPOCH_PASSED", `epoch ${prepare.epoch} has passed`);
    const arrival = new Arrival(this, channel, prepare);
    this.#arrival = arrival; // now, so that a second one is refused
    this.see(prepare.epoch);
    try {
      const { facts, ownerEpoch, from } = prepare;
      const call = { workload: this.name, from, epoch: ownerEpoch, facts };
      refuse((await checkArrival(this, call)).findings, from);
      arrival.handlers();
      await arrival.begin();
    } catch (error) {
      this.record({ moving: null });
      this.#arrival = null;
      throw error;
    }
  }

  /**
   * What became of a move to this node: its source asks when the channel of the move is gone. One that is not released is
   * given up by this, so that the answer stays true. `unsure`: the store was asked to mark it released and has not answered;
   * then the source's grant (the epoch at which this node is to go on) decides.
   */
  async outcome({ migration, epoch, grant }: OutcomeCall): Promise<OutcomeReply> {
    const arrival = this.#arrival;
    if (arrival !== null && arrival.prepare.migration === migration) return arrival.abort(grant);
    const isOpen = (): boolean =>
      this.#journal.moving?.side === "target" && this.#journal.moving.id === migration;
    if (isOpen()) {
      const step = this.#journal.moving?.step;
      if (step !== "releasing" && step !== "released") this.#moveRecovery.giveWord();
      else if (grant !== null) this.#moveRecovery.grant(grant);
      await Promise.race([this.#recovery.catch(() => {}), sleep(OUTCOME_MS_MAX, undefined, { ref: false })]);
      if (isOpen()) return { outcome: "unsure", epoch };
    }
    const { owned } = this.#journal;
    return owned >= epoch ? { outcome: "released", epoch: owned } : { outcome: "gave-up", epoch };
  }

  get #isMoving(): boolean {
    const arriving = this.#arrival !== null && !this.#arrival.ended;
    return this.#departure !== null || arriving || this.#journal.moving !== null;
  }

  /** What keeps a node from taking or giving it away now, as "being …". null: nothing */
  get busyWith(): string | null {
    if (this.#departure !== null || this.#journal.moving?.side === "source") return "moved away";
    if (this.#journal.moving !== null) return "moved there";
    return this.supervisor.isBusy ? "started again" : null;
  }

  /** Before a move. `facts` is what the target is told then; null: nothing is running */
  preflight(to: string, channel: Channel): ReturnType<typeof checkMove> {
    return checkMove(this, to, channel);
  }

  /** What `check` shows for this workload: of this node, and of each that it could go to. Empty where it does not run. */
  async check(to: string | null): Promise<CheckReport> {
    if (this.#journal.role !== "owner" || !this.runsHere) return this.#checkNotRunning();
    await this.outbox.flushed(DEBT_MS_MAX); // else the store names another epoch to the target
    const { report, facts } = await checkDeparture(this);
    if (facts === null) return report;
    const peers = to === null ? Object.keys(this.context.peers) : [to];
    const asked = await Promise.all(peers.map((peer) => this.#checkAt(peer, facts, to !== null)));
    return merged(report, ...asked);
  }

  /** What keeps it from running here. Empty where it is not meant to. */
  async #checkNotRunning(): Promise<CheckReport> {
    const { problem, state } = await this.status();
    const isMeantTo = state === "failed" || state === "down" || state === "waiting";
    if (problem === null || !isMeantTo) return { checked: [], findings: [] };
    const start: Check<null> = {
      category: "start",
      run: async (_, add) => add(problem.id ?? "start.waits", "error", problem.what, problem.cure),
    };
    return runChecks([start], null, { node: this.context.node, workload: this.name });
  }

  /** @param wanted false: a node that is not meant for it, or cannot be asked, is no obstacle */
  async #checkAt(peer: string, facts: DepartureFacts, wanted: boolean): Promise<CheckReport> {
    let channel: Channel;
    try {
      channel = await this.context.dial(peer, CHECK_DIAL_MS_MAX);
    } catch (error) {
      if (error instanceof HoldfastError && error.code === "NODE_UNKNOWN") throw error;
      const report = await unreachable(peer, error);
      if (!wanted) for (const finding of report.findings) finding.severity = "warning";
      return report;
    }
    try {
      const report = await askTarget(this, peer, channel, facts);
      const notMeant = report.findings.some(({ id }) => id === NOT_CONFIGURED);
      return notMeant && !wanted ? { checked: [], findings: [] } : report;
    } finally {
      channel.close();
    }
  }

  grantRelease(migration: string): void {
    if (this.#departure === null) throw fail("MIGRATION_UNKNOWN", "no such migration");
    this.#departure.departure.grantRelease(migration);
  }

  // ---- parts of a move that both sides or recovery use ----

  async createContainer(populate: (layer: string) => Promise<void>): Promise<Sandbox> {
    const { context } = this;
    const plan = await this.runtime.plan(this.config);
    return await plan.standby(
      {
        workload: this.name,
        node: context.node,
        output: this.outputOptions,
        criuDir: context.criu.dir,
        initBinary: context.initBinary,
        secrets: context.secrets,
        runBytesMax: this.limits.imagesBytesMax * 2,
      },
      populate,
    );
  }

  /** Of an arrival that was given up, when its container has gone. */
  endLeftConnections(): void {
    // those of a network of its own ended with it; in the node's these ports may be others'
    if (isToBeApart(this.config)) return;
    endLeftConnections(this.config.ports.map((port) => port.upstream.port));
  }

  comeAlive(epoch: number): Promise<void> {
    return comeAlive(this, epoch);
  }
  goOnHere(epoch: number): Promise<void> {
    return undoMove(this, epoch);
  }

  /** What the source left in the store for the clients' legs. @throws HoldfastError when it cannot be read */
  async heldBytes(epoch: number): Promise<Buffer> {
    const { context, name } = this;
    const sealed = await context.store.held({ workload: name, epoch });
    if (sealed === null) throw fail("HELD_LOST", "the held bytes are no longer in the store");
    return unseal(context.ring.keys, { workload: name, epoch, kind: "held" }, sealed);
  }

  becomeOwner(epoch: number, anchors: string[]): void {
    this.record({
      role: "owner",
      epoch,
      anchors: anchors.filter((anchor) => anchor !== this.context.node),
      moving: null,
    });
    this.#arrival = null;
    this.#problem = null;
    this.#startFailed = false;
    void this.#linkRecords.tell();
  }

  /** The target goes on; whatever was kept for a rollback goes. */
  async retire(epoch: number, owner: { node: string; link: Endpoint }): Promise<void> {
    const { sandbox } = this;
    const { proxy: proxyRecord } = this.#journal;
    const proxy = this.downstream === "forward" ? this.keeper.client : this.keeper.leave(); // which ends
    if (proxy?.isOpen)
      await proxy
        .command("retire", { epoch, owner: this.downstream === "forward" ? owner : null })
        .catch((error: unknown) => this.#warn("retire", error));
    else if (proxyRecord !== null) await endProcess(proxyRecord.process, 0);
    if (this.downstream !== "forward") {
      this.vip?.remove();
      proxy?.disconnect();
    }
    const told = this.anchors.switchTo(epoch, owner);
    const stays = this.keeper.client !== null;
    // the move is over, whatever becomes of the clean-up
    this.record({
      role: stays ? "anchor" : "none",
      epoch,
      container: null,
      proxy: stays ? proxyRecord : null,
      anchors: [],
      moving: null,
    });
    await told;
    if (!stays && proxyRecord !== null)
      await endProcess(proxyRecord.process).catch((error: unknown) => this.#warn("end the proxy", error));
    await sandbox?.destroy().catch((error: unknown) => this.#warn("remove the container", error));
  }

  #throwIfDamaged(): void {
    if (this.#damage !== null) throw this.#damage;
  }

  /** The source of an arrival being recovered has given its word. */
  get isGranted(): boolean {
    return this.#moveRecovery.isGranted;
  }
  get isClosed(): boolean {
    return this.#closed;
  }
  throwIfClosed(): void {
    if (this.#closed) throw fail("AGENT_CLOSING", "the agent is shutting down");
  }

  // ---- looking ----

  status(): Promise<WorkloadStatus> {
    return statusOf(this);
  }
  get isDamaged(): boolean {
    return this.#damage !== null;
  }
  get runsHere(): boolean {
    return this.#journal.container !== null || this.keeper.client !== null;
  }
  get isWaiting(): boolean {
    return this.#isWaiting;
  }
  get isStarting(): boolean {
    return this.#starting !== null;
  }
  get startFailed(): boolean {
    return this.#startFailed;
  }
  get problem(): Problem | null {
    return this.#problem;
  }

  async sessions(): Promise<SessionInfo[]> {
    const all: SessionInfo[] = [];
    for await (const page of this.keeper.sessionPages()) all.push(...page);
    return all;
  }

  // ---- inside ----

  async #tearDown(): Promise<void> {
    const { sandbox } = this;
    await this.keeper.stop();
    await sandbox?.destroy();
    this.vip?.remove();
    this.record({ proxy: null, container: null });
  }

  /** Of its own on this node: the journal, sockets, logs. */
  get folder(): string {
    return join(this.context.stateDir, "workloads", this.name);
  }

  get #journalPath(): string {
    return this.#file("journal.json");
  }

  #file(name: string): string {
    return join(this.folder, name);
  }

  #warn(what: string, error: unknown): void {
    this.context.log.warn(
      { workload: this.name, what, reason: messageOf(error) },
      `${what} failed; continuing`,
    );
  }

  #notHere(): HoldfastError {
    return fail("WORKLOAD_DOWN", `${this.name} is not running on node ${this.context.node}`, {
      source: "migration",
    });
  }

  #busy(): HoldfastError {
    if (!this.#isMoving) return restartBusy(this.name);
    return fail("MIGRATION_BUSY", `${this.name}: a migration is under way`);
  }
}
