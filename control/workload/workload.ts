/**
 * One workload on one node: its container, its proxy, its address, and what the journal says of them. It is made of parts that do not
 * know it; here they are put together, and what several of them need of it is done: recovery, stopping, what the ends of a
 * move have in common.
 */
import { join } from "node:path";
import type { Channel } from "#proxy/contract/channel.ts";
import type { Downstream, SessionInfo } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { unseal } from "#proxy/store/seal.ts";
import type { CheckReport } from "../api/finding.ts";
import { isToBeApart, type WorkloadConfig } from "../config/config.ts";
import { MOVE_LIMITS } from "../config/limits.ts";
import { comeAlive, undoMove } from "../migration/go-on.ts";
import type { Moving } from "../migration/moving.ts";
import { endLeftConnections } from "../migration/sockets.ts";
import { takeEach, untilDone } from "../migration/steps.ts";
import type { Timeline } from "../migration/timeline.ts";
import { Vip } from "../network/vip.ts";
import { Freezer } from "../runtime/freezer.ts";
import type { ProcessIdentity } from "../runtime/processes.ts";
import { withRoom } from "../runtime/read-text.ts";
import type { OutputOptions, Runtime, Sandbox } from "../runtime/runtime.ts";
import { Anchors } from "./anchors.ts";
import { checkWorkload } from "./check-workload.ts";
import type { AgentContext } from "./context.ts";
import { EMPTY_JOURNAL, type Journal } from "./journal.ts";
import { JournalKeeper } from "./journal-keeper.ts";
import { LinkRecords } from "./link-record.ts";
import { type Movability, movabilityOf } from "./movability.ts";
import { MoveRecovery } from "./move-recovery.ts";
import { Moves } from "./moves.ts";
import { Obstacle } from "./obstacle.ts";
import { Output } from "./output.ts";
import { OwnerWatch } from "./owner-watch.ts";
import { checkMove } from "./preflight/preflight.ts";
import { endProxy, type ProxyClient } from "./proxy-client.ts";
import { ProxyKeeper } from "./proxy-keeper.ts";
import { readRestartConfig } from "./restart-config.ts";
import { Registry } from "./session-registry.ts";
import { Starter } from "./starter.ts";
import { downProblem, type Harm, statusOf, type WorkloadStatus } from "./status.ts";
import { StoreOutbox } from "./store-outbox.ts";
import { type RestartEvent, type RestartResult, Supervisor } from "./supervisor.ts";

const MIB = 1_048_576;
/** in which a store that answers is told what it is owed */
const TOLD_MS_MAX = 1_000;

/** By who it is that starts an application again. */
const SUPERVISORS = { agent: Supervisor } satisfies Record<Runtime["supervisor"], unknown>;

export class Workload {
  readonly context: AgentContext;
  readonly #journalKeeper: JournalKeeper;
  readonly obstacle = new Obstacle();
  /** what a move that failed has done to the application that has this root */
  harm: Harm | null = null;
  readonly outbox = new StoreOutbox(this);
  readonly supervisor: Supervisor;
  readonly keeper = new ProxyKeeper(this);
  readonly anchors = new Anchors(this);
  readonly linkRecords = new LinkRecords(this);
  readonly registry = new Registry(this);
  readonly output = new Output(this);
  readonly starter = new Starter(this);
  readonly owner = new OwnerWatch(this);
  readonly moves = new Moves(this);
  readonly moveRecovery = new MoveRecovery(this);
  #config: WorkloadConfig;
  vip: Vip | null = null;
  #closed = false;
  #ending = false;
  /** see {@link leaveDown} */
  #isLeavingDown = false;
  #recovery: Promise<void> = Promise.resolve();
  #isRecovered = false;

  constructor(config: WorkloadConfig, context: AgentContext) {
    this.#config = config;
    this.context = context;
    this.supervisor = new SUPERVISORS[context.runtime.supervisor](this);
    this.#journalKeeper = new JournalKeeper(this.#file("journal.json"));
  }

  // ---- what it is ----

  get config(): WorkloadConfig {
    return this.#config;
  }
  useConfig(config: WorkloadConfig): void {
    if (config.pod?.uid !== this.#config.pod?.uid) this.#isLeavingDown = false;
    this.#config = config;
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
    trackedBytesMin: number;
    verifyMemory: boolean;
    deadlineMs: number;
    storedLegsBytesMax: number;
  } {
    const { limits } = this.config;
    return {
      storedLegsBytesMax: limits.storedLegsBytesMax,
      imagesBytesMax: limits.imagesMbMax * MIB,
      precopyBytesMax: limits.precopyMbMax * MIB,
      trackedBytesMin:
        limits.trackedMbMin === MOVE_LIMITS.trackedMbMin.max
          ? Number.POSITIVE_INFINITY
          : limits.trackedMbMin * MIB,
      verifyMemory: limits.verifyMemory,
      deadlineMs: limits.deadlineMs,
    };
  }
  get runtime(): Runtime {
    return this.context.runtime;
  }
  /** Of its own on this node: the journal, sockets, logs. */
  get folder(): string {
    return join(this.context.stateDir, "workloads", this.name);
  }
  /** What the application says goes here. */
  get logFile(): string {
    return this.#file("app.log");
  }
  get outputOptions(): OutputOptions {
    return { file: this.logFile, bytesMax: this.config.limits.logMbMax * MIB };
  }
  #file(name: string): string {
    return join(this.folder, name);
  }

  // ---- what is on record ----

  get journal(): Readonly<Journal> {
    return this.#journalKeeper.journal;
  }
  /** Its journal cannot be read: nobody knows what of it runs here, so nothing is touched. */
  get damage(): HoldfastError | null {
    return this.#journalKeeper.damage;
  }
  get isDamaged(): boolean {
    return this.damage !== null;
  }
  throwIfDamaged(): void {
    this.#journalKeeper.throwIfDamaged();
  }
  /** @throws HoldfastError `JOURNAL_INVALID` where the last one could not be read: it is not overwritten */
  record(patch: Partial<Journal>): void {
    this.#journalKeeper.record(patch);
  }
  /** An epoch that was given out: this node will not let it be given out again. */
  see(epoch: number): void {
    this.#journalKeeper.see(epoch);
  }
  recordMoving(patch: Partial<Moving>): void {
    this.#journalKeeper.recordMoving(patch);
  }

  // ---- what of it is here, and what it is at ----

  /** null: there is none on record */
  get sandbox(): Sandbox | null {
    const { container } = this.journal;
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
  get runsHere(): boolean {
    return this.journal.container !== null || this.keeper.client !== null;
  }

  /** Its pod is being deleted: what ends now is not started again, and its container ends with it. */
  leaveDown(): void {
    if (this.#isLeavingDown) return;
    this.#isLeavingDown = true;
    this.supervisor
      .interrupt()
      .catch((error: unknown) => this.#warn("end attempts to start it again", error));
  }
  get isLeavingDown(): boolean {
    return this.#isLeavingDown;
  }
  /** … which has not ended yet */
  async hasContainer(): Promise<boolean> {
    return (await this.sandbox?.isAlive()) ?? false;
  }

  /** What stops the container unseen. null: this machine has nothing of the kind */
  async freezer(): Promise<Freezer | null> {
    return this.context.faults.lacks("freezer") ? null : Freezer.of(this.container);
  }

  /** Owned, and neither about to leave nor to be ended. */
  get isAtRest(): boolean {
    const isBusy = this.isMoving || this.isStarting || this.#ending;
    return this.journal.role === "owner" && !isBusy && !this.#closed;
  }
  get isMoving(): boolean {
    return this.moves.isMoving;
  }
  get busyWith(): string | null {
    return this.moves.busyWith;
  }
  get isWaiting(): boolean {
    return this.starter.isWaiting;
  }
  get isStarting(): boolean {
    return this.starter.isStarting;
  }
  get isLaunching(): boolean {
    return this.starter.isLaunching;
  }
  get isEnding(): boolean {
    return this.#ending;
  }
  get isProxyExpectedToEnd(): boolean {
    return this.#closed || this.#ending || this.isMoving;
  }
  get isForced(): boolean {
    return this.moveRecovery.isForced;
  }
  get isGranted(): boolean {
    return this.moveRecovery.isGranted;
  }
  settling(isSettling: boolean): void {
    this.moveRecovery.settling(isSettling);
  }
  get heardEpoch(): number {
    return this.owner.heardEpoch;
  }
  assertOwnership(): Promise<void> {
    return this.owner.assert();
  }
  get recovery(): Promise<void> {
    return this.#recovery;
  }
  get isRecovered(): boolean {
    return this.#isRecovered;
  }
  get isClosed(): boolean {
    return this.#closed;
  }
  throwIfClosed(): void {
    if (this.#closed) throw fail("AGENT_CLOSING", "the agent is shutting down");
  }
  /** … or about to end. @throws HoldfastError `MIGRATION_BUSY` */
  throwIfMoving(): void {
    if (this.isMoving || this.#ending) throw this.moves.busy();
  }

  // ---- restarts of the agent ----

  /** Brings this node in line with the journal and the store. Called once, when the agent starts. */
  recover(): Promise<void> {
    this.#recovery = this.#recover();
    return this.#recovery;
  }

  async #recover(): Promise<void> {
    this.throwIfDamaged();
    // what runs here is found and looked after all the same
    await this.openVip().catch(async (error: unknown) => {
      const problem = await this.starter.whyNotStarted(error);
      this.obstacle.found(problem);
      this.context.log.error({ workload: this.name, ...problem }, "the address is not looked after");
    });
    // what fails is tried again: nobody else settles it, and until then it is neither watched nor supervised
    await this.#hasToBe("find its proxy", () => this.keeper.find());
    await this.#hasToBe("settle its move", async () => {
      if (this.journal.moving !== null) await this.moveRecovery.run(this.journal.moving);
    });
    await this.#hasToBe("tell the store", () => {
      if (this.journal.owed !== null) this.outbox.put(this.journal.owed);
    });
    let isGone = this.journal.role === "none";
    if (this.journal.role === "owner") isGone = await this.#recoverOwner();
    else if (this.journal.role === "anchor" && this.keeper.client === null) {
      await this.#hasToBe("be none", () => this.record({ role: "none", proxy: null }));
      isGone = true;
    }
    this.#isRecovered = true;
    this.supervisor.watch();
    this.registry.keep();
    this.output.keep();
    if (isGone && (this.journal.role === "owner" || this.config.start)) await this.starter.startWhenKnown();
  }

  /** True: nothing of it runs. What fails of the rest is tried again by those who watch it. */
  async #recoverOwner(): Promise<boolean> {
    const { epoch } = this.journal;
    let alive = false;
    await this.#hasToBe("be looked for", async () => {
      alive = (await this.sandbox?.isAlive()) === true;
    });
    if (!alive && this.keeper.client === null) {
      this.context.log.warn({ workload: this.name }, "did not survive; starting again");
      await this.#hasToBe("be removed", async () => {
        await this.tearDown();
        // a later agent has to try as well
        this.record({ ...EMPTY_JOURNAL, role: "owner", epoch, owed: this.journal.owed });
      });
      return true;
    }
    this.context.log.info(
      { workload: this.name, container: alive, proxy: this.keeper.client !== null },
      "found running",
    );
    if (this.keeper.client === null)
      await this.keeper.replaceLost().catch((error: unknown) => this.#warn("replace its proxy", error));
    await this.vip?.take().catch((error: unknown) => this.#warn("take its address", error));
    // an application that is not there is started again by the watch, behind the proxy it had
    this.supervisor.recover();
    return false;
  }

  #hasToBe(what: string, step: () => Promise<void> | void): Promise<void> {
    return untilDone(
      step,
      (error) =>
        this.context.log.error(
          { workload: this.name, what, reason: messageOf(error) },
          "a step that has to be taken has failed; it is tried again",
        ),
      () => this.throwIfClosed(),
    );
  }

  /** The agent ends; everything else stays as it is. */
  close(): void {
    this.#closed = true;
    this.outbox.close();
    this.supervisor.close();
    this.registry.close();
    this.output.close();
    this.vip?.close();
    this.moves.cancel(fail("AGENT_CLOSING", "the agent is shutting down"));
    this.keeper.client?.disconnect();
  }

  // ---- on command ----

  /**
   * Also after `stop`. @param force a person says that no other node has it: believed unless one answers that it
   * does, and where a move that was cut off waits for a node that is gone, the application goes on here
   * @throws HoldfastError `ALREADY_THERE`, `NOT_OWNER`, `OWNER_UNKNOWN`, `MIGRATION_BUSY`, `STORE_UNREACHABLE`
   */
  async start(force: boolean): Promise<void> {
    this.throwIfDamaged();
    if (this.moveRecovery.isSettling && force) return this.moveRecovery.force();
    await this.starter.start(force);
  }

  /** Ends the application and its sessions (with RST) on this node and gives up ownership. */
  async stop(): Promise<void> {
    this.throwIfDamaged();
    await this.starter.idle();
    if (this.isMoving || this.supervisor.isRestarting) throw this.moves.busy();
    const { role } = this.journal;
    await this.ending(async () => {
      await this.supervisor.interrupt();
      await this.tearDown();
      // its epoch stays: what is started next, wherever, is above it
      const { epoch, owed } = this.journal;
      this.record({ ...EMPTY_JOURNAL, epoch, owed, stopped: true });
      this.obstacle.clear();
    });
    await this.outbox.flushed(TOLD_MS_MAX); // else the store takes no tombstone
    if (role === "owner") await this.owner.leaveTombstone(this.journal.epoch);
  }

  /** Ends the application and starts it again, with what the configuration file says of it now. */
  async restart(drainMs: number, report: (event: RestartEvent) => void): Promise<RestartResult> {
    if (this.isLaunching || this.supervisor.isRestarting) throw this.moves.busy();
    this.throwIfMoving();
    await this.requireOwner();
    const { context, name } = this;
    const { config, later } = readRestartConfig(context.configFile, this.#config);
    if (later.length > 0)
      context.log.warn(
        { workload: name, keys: later },
        "changed in the configuration, and not applied by a restart: stop the workload, then restart the agent",
      );
    await this.runtime.plan(config); // what would fail in the middle fails now
    this.throwIfMoving();
    return this.supervisor.restart({ drainMs, config, report });
  }

  /** Asks a move to roll back, or a restart not to begin. False: neither is running. */
  cancel(): boolean {
    const isDeparting = this.moves.cancel(fail("CANCELLED", "cancelled"));
    return this.supervisor.cancel() || isDeparting;
  }

  async requireOwner(): Promise<void> {
    this.throwIfDamaged();
    const { name, context, journal, obstacle } = this;
    if (journal.role === "owner" && this.runsHere) return;
    const found = obstacle.startFailed ? null : await context.store.ownership(name);
    const isOurs = this.journal.role === "owner" || found?.owner === context.node;
    if (obstacle.startFailed || (isOurs && found?.state !== "stopped")) {
      const { what, cure } = obstacle.problem ?? downProblem(this);
      throw fail("WORKLOAD_DOWN", `${name} does not run: ${what}: ${cure}`);
    }
    const isNowhere = found === null || found.state === "stopped";
    const cure = isNowhere ? "it runs nowhere" : `ask the agent of node ${found.owner}`;
    throw fail("NOT_OWNER", `${name} is not on node ${context.node}: ${cure}`);
  }

  /** Before a move. `facts` is what the target is told then; null: nothing is running */
  preflight(to: string, channel: Channel): ReturnType<typeof checkMove> {
    return checkMove(this, to, channel);
  }

  /** What `check` shows for it: of this node, and of each that it could go to. Empty where it does not run. */
  check(to: string | null): Promise<CheckReport> {
    return checkWorkload(this, to);
  }

  /** Could it leave, and how long would clients wait? Of this node alone, and by looking only. */
  movability(): Promise<Movability> {
    return movabilityOf(this);
  }

  status(): Promise<WorkloadStatus> {
    return statusOf(this);
  }

  async sessions(): Promise<SessionInfo[]> {
    const all: SessionInfo[] = [];
    for await (const page of this.keeper.sessionPages()) all.push(...page);
    return all;
  }

  // ---- what several of its parts need ----

  /** @throws HoldfastError `VIP_DEVICE` */
  async openVip(): Promise<void> {
    if (this.config.vip === null || this.vip !== null) return;
    this.vip = await Vip.open(this.config.vip, {
      parked: this.context.parked,
      log: (level, fields, line) => this.context.log[level]({ workload: this.name, ...fields }, line),
    });
  }

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

  comeAlive(epoch: number, onAlive?: () => void, timeline?: Timeline): Promise<void> {
    return comeAlive(this, epoch, onAlive, timeline);
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

  harmed(root: ProcessIdentity | null, what: string): void {
    this.harm = root === null ? null : { root, what };
  }
  becomeOwner(epoch: number, anchors: string[]): void {
    this.record({
      role: "owner",
      epoch,
      anchors: anchors.filter((anchor) => anchor !== this.context.node),
      moving: null,
    });
    this.moves.arrived();
    this.obstacle.clear();
    void this.linkRecords.tell();
  }

  /** The target goes on; whatever was kept for a rollback goes. */
  async retire(epoch: number, owner: { node: string; link: Endpoint }): Promise<void> {
    const { sandbox } = this;
    const { proxy: proxyRecord } = this.journal;
    const isForward = this.downstream === "forward";
    const proxy = isForward ? this.keeper.client : this.keeper.leave(); // which ends
    await takeEach(
      {
        retire: async () => {
          if (proxy?.isOpen) await proxy.command("retire", { epoch, owner: isForward ? owner : null });
          else if (proxyRecord !== null) await endProxy(proxyRecord, 0);
        },
      },
      (what, error) => this.#warn(what, error),
    );
    if (!isForward) {
      // the next agent has to try as well, so it is not recorded as retired before
      await this.#hasToBe("leave its address", () => void this.vip?.remove());
      proxy?.disconnect();
    }
    const told = this.anchors.switchTo(epoch, owner);
    const stays = this.keeper.client !== null;
    // the move is over, whatever becomes of the clean-up
    await this.#hasToBe("be recorded as retired", () =>
      this.record({
        role: stays ? "anchor" : "none",
        epoch,
        container: null,
        proxy: stays ? proxyRecord : null,
        anchors: [],
        moving: null,
      }),
    );
    await told;
    const end = (): Promise<void> => (proxyRecord === null ? Promise.resolve() : endProxy(proxyRecord));
    // a sidecar is the same process for what comes next, which ends what it was at: a late end would be that one's
    if (!stays) await this.#remove("end the proxy", end, { again: proxyRecord?.isSidecar === false });
    if (sandbox !== null)
      await this.#remove("remove the container", () => sandbox.destroy(), { again: true });
  }

  /** What nobody needs any more. Where it fails nobody waits for it. @param again it is tried beside, as long as there is this agent */
  async #remove(what: string, step: () => Promise<void>, { again }: { again: boolean }): Promise<void> {
    try {
      await withRoom(step);
    } catch (error) {
      this.#warn(what, error);
      if (again) void this.#hasToBe(what, step).catch(() => {}); // the agent ends
    }
  }

  /** Everything of it here ends by `work`: it is not started, restarted or given another proxy meanwhile. */
  async ending<T>(work: () => Promise<T>): Promise<T> {
    this.#ending = true;
    try {
      return await work();
    } finally {
      this.#ending = false;
    }
  }

  async tearDown(): Promise<void> {
    const { sandbox } = this;
    await this.keeper.stop();
    await sandbox?.destroy();
    this.vip?.remove();
    this.record({ proxy: null, container: null });
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
}
