/**
 * One workload on one node: its container, its proxy, its address, and what the journal says of them. Starts it, stops it,
 * finds it again after a restart of the agent; the moves themselves are in `migration/`.
 */
import { hkdfSync } from "node:crypto";
import { mkdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Channel } from "#proxy/contract/channel.ts";
import type { Configure, SessionInfo } from "#proxy/contract/commands.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { unseal } from "#proxy/store/seal.ts";
import { loadConfig, type WorkloadConfig } from "../cli/config.ts";
import { Freezer } from "../container/freezer.ts";
import type { OutputOptions } from "../container/output-reader.ts";
import { innerPid, isSameProcess, treeOf } from "../container/processes.ts";
import { loadRootfs } from "../container/rootfs.ts";
import {
  applicationPid,
  type ContainerRecord,
  type ContainerRuntime,
  runPath,
} from "../container/runtime.ts";
import type { MoveResult, Outcome, PrepareCall, Report } from "../migration/move.ts";
import { takeBackOwnSockets } from "../migration/own-sockets.ts";
import { decideAtSource, decideAtTarget, delay } from "../migration/settle.ts";
import { endLeftConnections, endRepair, unshieldOutbound } from "../migration/sockets.ts";
import { Departure } from "../migration/source.ts";
import { Arrival } from "../migration/target.ts";
import { putBack } from "../migration/watches.ts";
import type { AgentContext } from "./context.ts";
import { Debts } from "./debts.ts";
import type { DepartureFacts } from "./departure-facts.ts";
import { type CheckReport, merged } from "./finding.ts";
import { EMPTY_JOURNAL, type Journal, type Moving, readJournal, writeJournal } from "./journal.ts";
import { Output } from "./output.ts";
import {
  askTarget,
  checkArrival,
  checkDeparture,
  checkMove,
  NOT_CONFIGURED,
  refuse,
  unreachable,
} from "./preflight.ts";
import { endProcess, ProxyClient } from "./proxy-process.ts";
import { Registry } from "./registry.ts";
import { takeEach } from "./steps.ts";
import { type RestartEvent, type RestartResult, restartBusy, Supervisor } from "./supervisor.ts";
import { Vip } from "./vip.ts";

export interface MigrateRequest {
  to: string;
  deadlineMs?: number;
  report: Report;
}

export interface WorkloadStatus {
  name: string;
  role: Journal["role"];
  epoch: number;
  state: "running" | "down" | "elsewhere" | "moving" | "restarting" | "stopped" | "damaged";
  owner: string | null;
  downstream: "takeover" | "relay";
  sessions: number;
  moving: { to: string; step: string } | null;
  container: string | null;
}

const MIB = 1_048_576;
const CRIU_POLL_MS = 5;
/** a new move waits so long for the store to be told of the last one */
const DEBT_MS_MAX = 1_000;
const PEER_MS_MAX = 1_000;
const EDGE_MS_MAX = 5_000;
const CHECK_DIAL_MS_MAX = 2_000;
/** takeover has no links */
const NO_LINK: Endpoint = { address: "", port: 0 };

export class Workload {
  readonly context: AgentContext;
  readonly debts = new Debts(this);
  readonly supervisor = new Supervisor(this);
  readonly registry = new Registry(this);
  readonly output = new Output(this);
  #config: WorkloadConfig;
  vip: Vip | null = null;
  #journal: Journal;
  #proxy: ProxyClient | null = null;
  #departure: { departure: Departure; to: string; cancel: AbortController } | null = null;
  #arrival: Arrival | null = null;
  #closed = false;
  #stopping = false;
  #recovery: Promise<void> = Promise.resolve();
  #damage: HoldfastError | null = null;
  /** the source of an arrival being recovered has been told that this node gave up */
  #gaveWord = false;

  constructor(config: WorkloadConfig, context: AgentContext) {
    this.#config = config;
    this.context = context;
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
  get downstream(): "takeover" | "relay" {
    return this.config.downstream;
  }
  get limits(): {
    imagesBytesMax: number;
    precopyBytesMax: number;
    verifyMemory: boolean;
    deadlineMs: number;
    heldBytesMax: number;
  } {
    return {
      heldBytesMax: this.config.limits.heldBytesMax,
      imagesBytesMax: this.config.limits.imagesMbMax * 1024 * 1024,
      precopyBytesMax: this.config.limits.precopyMbMax * 1024 * 1024,
      verifyMemory: this.config.limits.verifyMemory,
      deadlineMs: this.config.limits.deadlineMs,
    };
  }
  get runtime(): ContainerRuntime {
    return this.context.runtime;
  }
  get journal(): Readonly<Journal> {
    return this.#journal;
  }
  get container(): ContainerRecord {
    if (this.#journal.container === null) throw this.#notHere();
    return this.#journal.container;
  }
  get proxy(): ProxyClient {
    if (this.#proxy === null) throw this.#notHere();
    return this.#proxy;
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
    return this.#journal.role === "owner" && !this.#isMoving && !this.#stopping && !this.#closed;
  }

  /** @throws HoldfastError `JOURNAL_INVALID` where the last one could not be read: it is not overwritten */
  record(patch: Partial<Journal>): void {
    this.#throwIfDamaged();
    const isOther = patch.container !== undefined && patch.container?.id !== this.#journal.container?.id;
    // what was known of an application was of its container
    this.#journal = { ...this.#journal, ...(isOther ? { application: null } : {}), ...patch };
    writeJournal(this.#journalPath, this.#journal);
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
    if (this.config.vip !== null)
      this.vip = await Vip.open(this.config.vip, {
        log: (level, fields, line) => this.context.log[level]({ workload: this.name, ...fields }, line),
      });
    const { journal } = this;
    if (journal.proxy !== null) {
      const found = await ProxyClient.find(journal.proxy);
      if (found !== null) this.#use(found);
      else await endProcess(journal.proxy.process, 0); // it never came so far as to listen
    }
    if (journal.moving !== null) await this.#recoverMove(journal.moving);
    if (this.#journal.debt !== null) this.debts.owe(this.#journal.debt);
    if (this.#journal.role === "owner") await this.#recoverOwner();
    else if (this.#journal.role === "edge" && this.#proxy === null)
      this.record({ role: "none", proxy: null });
    if (this.#journal.role === "none" && this.config.start && !this.#journal.stopped) await this.start();
    this.supervisor.watch();
    this.registry.keep();
    this.output.keep();
  }

  /** Starts the application here unless another node owns it. */
  async start(): Promise<void> {
    this.#throwIfDamaged();
    const { context, name } = this;
    // a store that was emptied would give it to anybody
    if ((await context.store.ownership(name)) === null) {
      const owner = await this.#ownerByPeers();
      if (owner !== null) {
        context.log.info({ workload: name, owner }, "owned by another node, which the store has forgotten");
        return;
      }
    }
    const ownership = await context.store.claim({ workload: name, node: context.node });
    if (ownership.owner !== context.node) {
      context.log.info({ workload: name, owner: ownership.owner }, "owned by another node");
      return;
    }
    if (ownership.state !== "released") {
      // a move to this node was decided, and nothing of it is left here: the source may still take it back
      context.log.warn({ workload: name, ...ownership }, "not started: its source has not let go of it");
      return;
    }
    const holder = this.vip?.ask(); // beside the start
    const container = await this.createContainer(async () => {});
    this.record({ container, role: "owner", epoch: ownership.epoch, stopped: false, edges: [] });
    try {
      await this.supervisor.first();
      const proxy = await this.#startProxy();
      await proxy.command("serve", { epoch: ownership.epoch });
      await this.vip?.take(holder);
    } catch (error) {
      await this.#tearDown();
      throw error;
    }
    context.log.info({ workload: name, epoch: ownership.epoch, container: container.id }, "started");
  }

  /** The node among those that can be asked where it runs, or is on its way to. */
  async #ownerByPeers(): Promise<string | null> {
    const { context, name } = this;
    const answers = await Promise.all(
      Object.keys(context.peers).map(async (peer) => {
        try {
          const channel = await context.dial(peer, PEER_MS_MAX);
          try {
            const { result } = await channel.call<{ has: boolean }>(
              "has",
              { workload: name },
              { timeoutMs: PEER_MS_MAX },
            );
            return result.has ? peer : null;
          } finally {
            channel.close();
          }
        } catch {
          return null; // it cannot be asked, or does not know the workload
        }
      }),
    );
    return answers.find((peer) => peer !== null) ?? null;
  }

  /** Whether it runs here, or may soon. */
  get isHere(): boolean {
    return this.#damage !== null || this.#journal.role === "owner" || this.#journal.moving !== null;
  }

  /** Ends the application and its sessions (with RST) on this node and gives up ownership. */
  async stop(): Promise<void> {
    this.#throwIfDamaged();
    if (this.#isMoving || this.supervisor.isRestarting) throw this.#busy();
    const { role, epoch } = this.#journal;
    this.#stopping = true;
    try {
      await this.supervisor.interrupt();
      await this.#tearDown();
      this.record({ ...EMPTY_JOURNAL, stopped: true });
    } finally {
      this.#stopping = false;
    }
    if (role === "owner") {
      await this.context.store
        .forget({ workload: this.name, node: this.context.node, epoch })
        .catch((error: unknown) => {
          this.context.log.warn(
            { workload: this.name, reason: messageOf(error) },
            "the store still names this node as owner",
          );
        });
    }
  }

  /** The agent ends; everything else stays as it is. */
  close(): void {
    this.#closed = true;
    this.debts.close();
    this.supervisor.close();
    this.registry.close();
    this.output.close();
    this.vip?.close();
    this.#departure?.cancel.abort(
      new HoldfastError("the agent is shutting down", { code: "AGENT_CLOSING", source: "migration" }),
    );
    this.#proxy?.disconnect();
  }

  async #recoverOwner(): Promise<void> {
    const { container, epoch } = this.#journal;
    const alive = container !== null && (await this.runtime.isAlive(container));
    if (!alive && this.#proxy === null) {
      this.context.log.warn({ workload: this.name }, "did not survive; starting again");
      await this.#tearDown();
      this.record({ ...EMPTY_JOURNAL, epoch });
      await this.start();
      return;
    }
    this.context.log.info(
      { workload: this.name, container: alive, proxy: this.#proxy !== null },
      "found running",
    );
    if (this.#proxy === null) await this.#replaceProxy(epoch);
    await this.vip?.take();
    // an application that is not there is started again by the watch, behind the proxy it had
    this.supervisor.recover();
  }

  /** A move was under way when the last agent ended. Ends with exactly one owner, see `Departure` and `Arrival`. */
  async #recoverMove(moving: Moving): Promise<void> {
    this.context.log.warn({ workload: this.name, ...moving }, "a move was cut off; settling it");
    // one that restores waits for this agent's predecessor for ever, and ends with the container that it has not completed
    if (moving.criu !== null && moving.side === "source") await this.#waitForCriu(moving.criu);
    if (moving.side === "target") await this.#recoverArrival(moving);
    else await this.#recoverDeparture(moving);
  }

  async #recoverDeparture(moving: Moving): Promise<void> {
    const { context, name } = this;
    const migration = moving.id;
    const mayBeThere = moving.step === "committing" || moving.step === "granted";
    const decision = mayBeThere
      ? await decideAtSource(this, {
          migration,
          peer: moving.peer,
          epoch: moving.epoch,
          granted: moving.step === "granted",
        })
      : { where: "here" as const, epoch: null };
    if (decision.where === "there") {
      context.log.info({ workload: name, owner: moving.peer }, "the cut-off move had been done");
      await this.retire(moving.epoch, { node: moving.peer, link: moving.link ?? NO_LINK });
      return;
    }
    const held = moving.step !== "prepared";
    const epoch = decision.epoch ?? (held ? moving.epoch + 1 : this.#journal.epoch);
    if (held) await this.goOnHere(epoch);
    this.record({ epoch, moving: null });
    if (decision.epoch === null)
      this.debts.owe({ kind: held ? "taken-back" : "cancelled", migration, epoch });
    context.log.info({ workload: name, epoch }, "the cut-off move was rolled back");
  }

  async #recoverArrival(moving: Moving): Promise<void> {
    const { context, name } = this;
    if (moving.step === "released") return this.#finishArrival(moving);
    const complete = ["restored", "adopted", "releasing"].includes(moving.step);
    if (complete && (await this.#isWhole())) {
      const outcome = await decideAtTarget(this, moving.id, moving.epoch, () => this.#gaveWord);
      if (outcome === "mine" && (await this.#completeArrival(moving))) return;
    }
    const { container } = this.#journal;
    this.recordMoving({ step: "gave-up" });
    this.vip?.remove(); // first, see `Arrival`
    if (container !== null) await this.runtime.destroy(container);
    endLeftConnections(this.config.ports.map((port) => port.upstream.port));
    await this.discardProxy(moving.epoch);
    this.record({ moving: null, container: null });
    context.log.info({ workload: name }, "the cut-off arrival was discarded");
  }

  /** Restored and stopped, and the proxy that has its legs lives too. */
  async #isWhole(): Promise<boolean> {
    const { container } = this.#journal;
    if (container === null || this.#proxy === null || !(await this.runtime.isAlive(container))) return false;
    return (await applicationPid(container).catch(() => null)) !== null;
  }

  /** The source committed and nobody has taken it back. False: somebody has. */
  async #completeArrival(moving: Moving): Promise<boolean> {
    const { context, name } = this;
    const { epoch } = moving;
    try {
      if (this.downstream === "takeover" && moving.step === "restored")
        await this.proxy.command("adoptDownstream", { epoch }, await this.heldBytes(epoch));
    } catch (error) {
      this.#warn("complete the arrival", error);
      return false;
    }
    if (this.#gaveWord) return false;
    this.recordMoving({ step: "releasing" });
    // asked once, it may have happened: only an answer tells
    for (;;) {
      try {
        await context.store.markReleased({ workload: name, node: context.node, epoch });
        break;
      } catch (error) {
        if (!(error instanceof HoldfastError && error.retryable)) {
          this.#warn("complete the arrival", error);
          return false;
        }
      }
      await delay();
      this.throwIfClosed();
    }
    this.recordMoving({ step: "released" });
    await this.#finishArrival(moving);
    return true;
  }

  async #finishArrival({ epoch, edges }: Moving): Promise<void> {
    const { container } = this.#journal;
    if (await this.#isWhole()) {
      await this.comeAlive(epoch);
      if (container !== null) await rm(runPath(container, "images"), { recursive: true, force: true });
    }
    this.becomeOwner(epoch, edges);
    this.context.log.info({ workload: this.name, epoch }, "the cut-off arrival was completed");
  }

  /** CRIU must not be killed in the middle: its parasite would stay in the application. It ends by itself. */
  async #waitForCriu(criu: NonNullable<Moving["criu"]>): Promise<void> {
    while (await isSameProcess(criu)) await new Promise((resolve) => setTimeout(resolve, CRIU_POLL_MS));
  }

  // ---- restarting on command ----

  /** Ends the application and starts it again, with what the configuration file says of it now. */
  async restart(drainMs: number, report: (event: RestartEvent) => void): Promise<RestartResult> {
    if (this.#isMoving || this.supervisor.isRestarting) throw this.#busy();
    await this.#requireOwner();
    const config = this.#readConfig();
    await loadRootfs(config); // what would fail in the middle fails now
    if (this.#isMoving) throw this.#busy();
    return this.supervisor.restart({ drainMs, config, report });
  }

  useConfig(config: WorkloadConfig): void {
    this.#config = config;
  }

  /** What can change while the container and the proxy live. @throws HoldfastError `CONFIG_INVALID`, `WORKLOAD_UNKNOWN` */
  #readConfig(): WorkloadConfig {
    const { context, name } = this;
    const found = loadConfig(context.configFile).workloads.find((workload) => workload.name === name);
    if (found === undefined) {
      throw new HoldfastError(
        `${context.configFile} does not have workload ${name} any more: \`holdfast stop\` ends it`,
        {
          code: "CONFIG_INVALID",
          source: "config",
        },
      );
    }
    const { restart, stopSignal, stopMsMax } = found;
    const now: WorkloadConfig = { ...this.#config, restart, stopSignal, stopMsMax };
    if (now.container !== null && found.container !== null) {
      const { command, cwd, env } = found.container;
      now.container = { ...now.container, command, cwd, env };
    }
    const later = changedKeys(found, now);
    if (later.length > 0)
      context.log.warn(
        { workload: name, keys: later },
        "changed in the configuration, and not applied by a restart: stop the workload, then restart the agent",
      );
    return now;
  }

  async #requireOwner(): Promise<void> {
    this.#throwIfDamaged();
    if (this.#journal.role === "owner") return;
    const owner = (await this.context.store.ownership(this.name))?.owner;
    const cure = owner === undefined ? "it runs nowhere" : `ask the agent of node ${owner}`;
    throw new HoldfastError(`${this.name} is not on node ${this.context.node}: ${cure}`, {
      code: "NOT_OWNER",
      source: "migration",
    });
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
    if (this.#isMoving || this.supervisor.isBusy) throw this.#busy();
    await this.#requireOwner();
    if (request.to === this.context.node) {
      throw new HoldfastError(`${this.name} is on node ${request.to} already`, {
        code: "ALREADY_THERE",
        source: "migration",
      });
    }
    await this.debts.paid(DEBT_MS_MAX);
    if (this.#journal.debt !== null) {
      throw new HoldfastError(
        `${this.name}: the store has not been told yet how the last move ended; it does not answer`,
        { code: "STORE_UNREACHABLE", source: "store", retryable: true },
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
    this.#departure?.cancel.abort(new HoldfastError("cancelled", { code: "CANCELLED", source: "migration" }));
    return this.supervisor.cancel() || this.#departure !== null;
  }

  /** Another node wants to hand the workload over. */
  async arrive(channel: Channel, prepare: PrepareCall): Promise<void> {
    this.#throwIfDamaged();
    if (this.#isMoving || this.supervisor.isBusy) throw this.#busy();
    if (this.#journal.role === "owner")
      throw new HoldfastError(`${this.name} is owned by ${this.context.node} already`, {
        code: "ALREADY_THERE",
        source: "migration",
      });
    if (prepare.epoch <= this.#journal.epoch)
      throw new HoldfastError(`epoch ${prepare.epoch} has passed`, { code: "EPOCH_PASSED", source: "peer" });
    const arrival = new Arrival(this, channel, prepare);
    this.#arrival = arrival; // now, so that a second one is refused
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
   * given up by this, so that the answer stays true.
   */
  async outcome(migration: string, epoch: number): Promise<Outcome> {
    const arrival = this.#arrival;
    if (arrival !== null && arrival.prepare.migration === migration) return arrival.abort();
    const { moving } = this.#journal;
    if (moving?.side === "target" && moving.id === migration) {
      // an agent that recovers may be waiting for the store; once that was asked to release, its answer has to come first
      if (moving.step !== "releasing" && moving.step !== "released") this.#gaveWord = true;
      await this.#recovery.catch(() => {});
    }
    return this.#journal.epoch >= epoch ? "released" : "gave-up";
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
    if (this.#journal.role !== "owner") return { checked: [], findings: [] };
    await this.debts.paid(DEBT_MS_MAX); // else the store names another epoch to the target
    const { report, facts } = await checkDeparture(this);
    if (facts === null) return report;
    const peers = to === null ? Object.keys(this.context.peers) : [to];
    const asked = await Promise.all(peers.map((peer) => this.#checkAt(peer, facts, to !== null)));
    return merged(report, ...asked);
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

  grant(migration: string): void {
    if (this.#departure === null)
      throw new HoldfastError("no such migration", { code: "MIGRATION_UNKNOWN", source: "migration" });
    this.#departure.departure.grant(migration);
  }

  // ---- parts of a move that both sides or recovery use ----

  createContainer(populate: (layer: string) => Promise<void>): Promise<ContainerRecord> {
    const { context, config } = this;
    return loadRootfs(config).then(({ rootfs, container }) =>
      context.runtime.create(
        {
          workload: this.name,
          node: context.node,
          container,
          rootfs,
          stateDir: context.stateDir,
          logFile: this.outputOptions.file,
          logBytesMax: this.outputOptions.bytesMax,
          criuDir: context.criu.dir,
          initBinary: context.initBinary,
          runBytesMax: this.limits.imagesBytesMax * 2,
        },
        populate,
      ),
    );
  }

  /** → where the links of edges arrive */
  async standbyProxy(epoch: number): Promise<Endpoint> {
    const proxy = this.#proxy?.isOpen ? this.#proxy : await this.#startProxy();
    const { result } = await proxy.command<"standby", { link: Endpoint }>("standby", { epoch });
    return result.link;
  }

  async discardProxy(epoch: number): Promise<void> {
    const proxy = this.#proxy;
    if (proxy === null) return;
    await proxy.command("discard", { epoch }).catch(() => {});
    if (this.#journal.role === "edge") return;
    this.#proxy = null;
    await proxy.stop();
    this.record({ proxy: null });
  }

  /** The application goes on here, with its legs. Everything before this was silent. */
  async comeAlive(epoch: number): Promise<void> {
    // only now: an address on two nodes answers for both, and a segment that finds no leg is answered with RST
    this.vip?.add();
    this.vip?.announce();
    await Promise.all([this.#continueTree(), this.#proxyStep("release", epoch, ["adopted"])]);
  }

  /** Undoes whatever a move has done to the application and its sessions here. May be repeated. */
  async goOnHere(epoch: number): Promise<void> {
    const { container } = this;
    const images = runPath(container, "images");
    const pids = async (): Promise<number[]> => {
      const root = await applicationPid(container);
      return root === null ? [] : treeOf(root);
    };
    // sessions may be lost by one that fails; the others, and the application, must not be
    await takeEach(
      {
        "take sockets back": async () => endRepair(await pids(), images),
        "take its own sockets back": async () => takeBackOwnSockets(images, await pids()),
        "take the address back": () => this.vip?.add(),
        "let kept connections hear": () => this.#unshieldOutbound(),
        "let the proxy go on": () => this.#proxyStep("rollback", epoch, ["held", "captured", "departed"]),
        "announce the address": () => this.vip?.announce(),
        "put watches on files back": () => this.#putBackWatches(),
        "let the application go on": () => this.#continueTree(),
        "remove images": () => rm(images, { recursive: true, force: true }),
      },
      (what, error) => this.#warn(what, error),
    );
  }

  /** A proxy that refuses is asked where it is: the command may have been cut off after it had arrived. */
  async #proxyStep(command: "release" | "rollback", epoch: number, from: string[]): Promise<void> {
    try {
      await this.proxy.command(command, { epoch }).catch(async (error: unknown) => {
        const { result } = await this.proxy.command<"status", { role: string }>("status", {});
        if (from.includes(result.role)) throw error; // else it had done so before
      });
    } catch (error) {
      // its sessions are lost; the application is not, and its next clients need not be
      this.context.log.error({ workload: this.name, command, reason: messageOf(error) }, "the proxy failed");
      await this.#replaceProxy(epoch).catch((failed: unknown) => this.#warn("start another proxy", failed));
    }
  }

  /** Ends a proxy that is of no use any more (its clients get RST) and starts one that serves. */
  async #replaceProxy(epoch: number): Promise<void> {
    const old = this.#proxy;
    this.#proxy = null;
    await old?.stop();
    const proxy = await this.#startProxy();
    await proxy.command("serve", { epoch });
  }

  /** The connection to a proxy broke. Outside a move, one whose process has ended is replaced. */
  async #proxyIsGone(proxy: ProxyClient): Promise<void> {
    if (this.#closed || this.#stopping || this.#proxy !== proxy || this.#isMoving) return;
    const again = await ProxyClient.find(proxy.record);
    if (again !== null) return this.#use(again);
    this.context.log.error({ workload: this.name, pid: proxy.record.process.pid }, "the proxy has ended");
    if (this.#journal.role === "owner") await this.#replaceProxy(this.#journal.epoch);
    else {
      this.#proxy = null;
      this.record({ role: "none", proxy: null });
    }
  }

  #use(proxy: ProxyClient): void {
    this.#proxy = proxy;
    void proxy.closed.then(() =>
      this.#proxyIsGone(proxy).catch((error: unknown) => this.#warn("start another proxy", error)),
    );
  }

  /** Connections of the application's own that were about to go along hear their peers again. */
  async #unshieldOutbound(): Promise<void> {
    if (this.config.outbound !== "keep" || this.config.vip === null) return;
    const root = await applicationPid(this.container);
    if (root !== null) await unshieldOutbound(await treeOf(root), this.config.vip.address);
  }

  async #putBackWatches(): Promise<void> {
    const warn = (error: unknown): void => this.#warn("watches", error);
    const states = this.#journal.moving?.watches ?? [];
    if (states.length > 0) await putBack(states, this.container, await this.freezer(), warn).catch(warn);
  }

  async #continueTree(): Promise<void> {
    const root = await applicationPid(this.container);
    if (root === null) {
      this.context.log.error({ workload: this.name }, "there is no application to go on");
      return;
    }
    const freezer = await this.freezer();
    if (freezer !== null) return freezer.thaw();
    // CRIU has used SIGSTOP. Children first: a parent that goes on early sees that they are stopped.
    const stopped = new Set(this.#journal.moving?.stopped ?? []);
    for (const pid of (await treeOf(root)).reverse()) {
      if (!stopped.has((await innerPid(pid)) ?? -1)) continueProcess(pid);
    }
  }

  /** What the source left in the store for the clients' legs. @throws HoldfastError when it cannot be read */
  async heldBytes(epoch: number): Promise<Buffer> {
    const { context, name } = this;
    const sealed = await context.store.held({ workload: name, epoch });
    if (sealed === null)
      throw new HoldfastError("the held bytes are no longer in the store", {
        code: "HELD_LOST",
        source: "store",
      });
    return unseal(context.key, { workload: name, epoch, kind: "held" }, sealed);
  }

  becomeOwner(epoch: number, edges: string[]): void {
    this.record({
      role: "owner",
      epoch,
      edges: edges.filter((edge) => edge !== this.context.node),
      moving: null,
    });
    this.#arrival = null;
  }

  /** The target goes on; whatever was kept for a rollback goes. */
  async retire(epoch: number, owner: { node: string; link: Endpoint }): Promise<void> {
    const { container, proxy: proxyRecord } = this.#journal;
    const proxy = this.#proxy;
    if (this.downstream === "takeover") this.#proxy = null; // it ends
    if (proxy?.isOpen)
      await proxy
        .command("retire", { epoch, owner: this.downstream === "relay" ? owner : null })
        .catch((error: unknown) => this.#warn("retire", error));
    else if (proxyRecord !== null) await endProcess(proxyRecord.process, 0);
    if (this.downstream === "takeover") {
      this.vip?.remove();
      proxy?.disconnect();
    }
    const told = this.#tellEdges(owner.node, "edge.switch", { workload: this.name, epoch, owner });
    const stays = this.#proxy !== null;
    // the move is over, whatever becomes of the clean-up
    this.record({
      role: stays ? "edge" : "none",
      epoch,
      container: null,
      proxy: stays ? proxyRecord : null,
      edges: [],
      moving: null,
    });
    await told;
    if (!stays && proxyRecord !== null)
      await endProcess(proxyRecord.process).catch((error: unknown) => this.#warn("end the proxy", error));
    if (container !== null)
      await this.runtime
        .destroy(container)
        .catch((error: unknown) => this.#warn("remove the container", error));
  }

  /** Relay: nodes whose proxies have clients of this workload once it has left. */
  edgesAfterLeaving(to: string): string[] {
    if (this.downstream === "takeover") return [];
    return [...new Set([...this.#journal.edges, this.context.node])].filter((node) => node !== to);
  }

  async prepareEdges(epoch: number, to: string, target: Endpoint): Promise<void> {
    await Promise.all([
      this.proxy.command("prepareLinks", { epoch, target }),
      this.#tellEdges(to, "edge.prepare", { workload: this.name, epoch, target }),
    ]);
  }

  /** An edge that cannot be reached dials again when its links break; it must not keep a workload where it is. */
  async #tellEdges(except: string, method: string, params: object): Promise<void> {
    const told = this.#journal.edges.filter((edge) => edge !== except);
    await Promise.all(
      told.map((edge) =>
        this.#tellEdge(edge, method, params).catch((error: unknown) => this.#warn(`edge ${edge}`, error)),
      ),
    );
  }

  async #tellEdge(edge: string, method: string, params: object): Promise<void> {
    const channel = await this.context.dial(edge, PEER_MS_MAX);
    try {
      await channel.call(method, params, { timeoutMs: EDGE_MS_MAX });
    } finally {
      channel.close();
    }
  }

  /** As an edge: what the owner's agent says. */
  async edgePrepare(epoch: number, target: Endpoint): Promise<void> {
    await this.proxy.command("prepareLinks", { epoch, target });
  }
  async edgeSwitch(epoch: number, owner: { node: string; link: Endpoint }): Promise<void> {
    await this.proxy.command("switchOwner", { epoch, owner });
    this.record({ epoch });
  }

  #throwIfDamaged(): void {
    if (this.#damage !== null) throw this.#damage;
  }

  throwIfClosed(): void {
    if (this.#closed)
      throw new HoldfastError("the agent is shutting down", { code: "AGENT_CLOSING", source: "migration" });
  }

  // ---- looking ----

  async status(): Promise<WorkloadStatus> {
    const { role, epoch, container, application, moving, stopped } = this.#journal;
    const ownership = await this.context.store.ownership(this.name).catch(() => null);
    const sessions = await this.sessions().catch(() => []);
    const alive =
      container !== null && application !== null
        ? await isSameProcess(application)
        : container !== null && (await applicationPid(container).catch(() => null)) !== null;
    let state: WorkloadStatus["state"] = stopped ? "stopped" : "elsewhere";
    if (role === "owner") state = alive && this.#proxy !== null ? "running" : "down";
    if (this.supervisor.isBusy) state = "restarting";
    if (moving !== null) state = "moving";
    if (this.#damage !== null) state = "damaged";
    return {
      name: this.name,
      role,
      epoch,
      state,
      owner: ownership?.owner ?? null,
      downstream: this.downstream,
      sessions: sessions.length,
      moving:
        moving === null
          ? null
          : { to: moving.side === "source" ? moving.peer : this.context.node, step: moving.step },
      container: container?.id ?? null,
    };
  }

  async sessions(): Promise<SessionInfo[]> {
    if (this.#proxy === null) return [];
    return (await this.#proxy.command<"sessions", { sessions: SessionInfo[] }>("sessions", {})).result
      .sessions;
  }

  // ---- inside ----

  async #startProxy(): Promise<ProxyClient> {
    const proxy = await ProxyClient.start(this.#file("proxy.sock"), this.#file("proxy.log"), (record) =>
      this.record({ proxy: record }),
    );
    this.#use(proxy);
    this.record({ proxy: proxy.record });
    const { config, context } = this;
    const {
      deadlineMs: _,
      imagesMbMax: __,
      precopyMbMax: ___,
      verifyMemory: ____,
      heldBytesMax: _____,
      logMbMax: ______,
      ...proxyLimits
    } = config.limits;
    const spillDir = this.#file("spill");
    mkdirSync(spillDir, { recursive: true, mode: 0o700 });
    const configure: Configure = {
      workload: this.name,
      node: context.node,
      downstream: this.downstream,
      listenAddress: config.listenAddress,
      listenDevice: config.vip?.device ?? null,
      ports: config.ports,
      linkAddress: context.host,
      spillDir,
      limits: proxyLimits,
    };
    const linkKey = Buffer.from(hkdfSync("sha256", context.key, "", `holdfast link ${this.name}`, 32));
    await proxy.command("configure", configure, linkKey);
    return proxy;
  }

  async #tearDown(): Promise<void> {
    const { proxy: proxyRecord, container } = this.#journal;
    const proxy = this.#proxy;
    this.#proxy = null; // its end is no accident
    if (proxy !== null) await proxy.stop();
    else if (proxyRecord !== null) await endProcess(proxyRecord.process, 0);
    if (container !== null) await this.runtime.destroy(container);
    this.vip?.remove();
    this.record({ proxy: null, container: null });
  }

  get #journalPath(): string {
    return this.#file("journal.json");
  }

  #file(name: string): string {
    return join(this.context.stateDir, "workloads", this.name, name);
  }

  #warn(what: string, error: unknown): void {
    this.context.log.warn({ workload: this.name, what, reason: messageOf(error) }, "went on without it");
  }

  #notHere(): HoldfastError {
    return new HoldfastError(`${this.name} is not running on node ${this.context.node}`, {
      code: "WORKLOAD_DOWN",
      source: "migration",
    });
  }

  #busy(): HoldfastError {
    if (!this.#isMoving) return restartBusy(this.name);
    return new HoldfastError(`${this.name}: a migration is under way`, {
      code: "MIGRATION_BUSY",
      source: "migration",
      retryable: true,
    });
  }
}

/** Keys that two configurations of a workload do not agree on. */
function changedKeys(one: WorkloadConfig, other: WorkloadConfig): string[] {
  return Object.keys(one).filter(
    (key) =>
      JSON.stringify(one[key as keyof WorkloadConfig]) !== JSON.stringify(other[key as keyof WorkloadConfig]),
  );
}

function continueProcess(pid: number): void {
  try {
    process.kill(pid, "SIGCONT");
  } catch {
    // it was killed by somebody else: nothing to continue
  }
}
