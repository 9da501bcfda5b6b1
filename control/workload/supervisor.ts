/**
 * When the application is started again, in the container and behind the proxy it has.
 *
 *   on command       pause → stop → start → resume; cancelled before `stop`: resume, and nothing has happened
 *   it has ended     start, again and again with a growing delay, then resume
 *   agent cut off    the journal says how far a restart had come; the next agent goes on from there
 *
 * Between pause and resume the proxy keeps the clients of `replay` ports waiting, for `unavailableMsMax` at most. Moves and
 * restarts exclude each other: whichever is under way refuses the other (`Workload`).
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import type { PauseResult, ResumeResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { listenBacklog } from "#proxy/kernel/diag.ts";
import type { WorkloadConfig } from "../config/config.ts";
import { formatEndpoint } from "../config/endpoint.ts";
import type { FoundCriu } from "../criu/tool.ts";
import type { Faults } from "../migration/faults.ts";
import { hasOwnNetwork, networkOf } from "../runtime/network-namespace.ts";
import { identify } from "../runtime/processes.ts";
import type { Runtime, Sandbox } from "../runtime/runtime.ts";
import {
  Application,
  clearContainer,
  describeEnd,
  type End,
  findApplication,
  isToStartAgain,
  lastLogLine,
  poll,
} from "./application.ts";
import type { Problem } from "./claim.ts";
import type { WorkloadMetrics } from "./context.ts";
import type { Journal, RestartStep } from "./journal.ts";
import { holderOf } from "./port-holder.ts";
import type { ProxyClient } from "./proxy-client.ts";
import { ofCommand } from "./start-problem.ts";
import { UnsentBound } from "./unsent-bound.ts";

/**
 *   pause    clients begin to wait; requests under way are answered, for `drainMs` at most
 *   stop     the application is asked to end, and what is left of it is killed
 *   start    it is started with the configuration as it is now, and listens
 *   resume   clients are answered again
 */
export type RestartPhase = "pause" | "stop" | "start" | "resume";

export interface RestartEvent {
  type: "phase";
  phase: RestartPhase;
  state: "start" | "done";
  /** of this phase when done, else since the restart began */
  ms: number;
  note?: string;
}

export interface RestartRequest {
  drainMs: number;
  /** the configuration to start it with */
  config: WorkloadConfig;
  report(event: RestartEvent): void;
}

export interface RestartResult extends ResumeResult {
  workload: string;
  node: string;
  /** from the first client that had to wait to the last one that may go on */
  pauseMs: number;
  phasesMs: Partial<Record<RestartPhase, number>>;
  outcome: "restarted" | "cancelled";
  reason: string | null;
}

const WATCH_MS = 50;
const BOUND_MS = 1_000;
const BACKOFF_MS_MIN = 100;
const BACKOFF_MS_MAX = 10_000;
/** one that has lived so long is started again without delay */
const SETTLED_MS = 10_000;
/** after so many ends, each soon after its start, people are told */
const LOOP_ENDS = 2;
/** the first start: one that takes longer to listen is served as it is */
const LISTEN_MS_MAX = 10_000;
/** what it said last is waited for, and clients wait too */
const SAID_MS_MAX = 200;
const NOTHING: ResumeResult = { sessions: 0, replayed: 0, refused: 0, reset: 0 };

/** Whose application it is. */
export interface SupervisedWorkload {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly logFile: string;
  readonly context: {
    readonly node: string;
    readonly criu: FoundCriu;
    readonly runtime: Runtime;
    readonly metrics: WorkloadMetrics;
    readonly faults: Faults;
    readonly log: Logger;
  };
  readonly journal: Readonly<Journal>;
  record(patch: Partial<Journal>): void;
  /** null: there is none on record */
  readonly sandbox: Sandbox | null;
  readonly container: Sandbox;
  readonly runtime: Runtime;
  readonly proxy: ProxyClient;
  /** Owned, and neither about to leave nor to be ended. */
  readonly isAtRest: boolean;
  /** Its container is not to outlive it. */
  readonly isLeavingDown: boolean;
  createContainer(populate: (layer: string) => Promise<void>): Promise<Sandbox>;
  /** Gives the proxy what it connects to the application by: after each new container. */
  readonly keeper: { handNetwork(): Promise<void> };
  /** Of the next instance. */
  useConfig(config: WorkloadConfig): void;
}

export class Supervisor {
  #workload: SupervisedWorkload;
  #timer: NodeJS.Timeout | undefined;
  #isLooking = false;
  #application: Application | null = null;
  /** id of the container that was looked into for it */
  #watched: string | null = null;
  /** … and of one whose application ended and is to stay so */
  #leftDown: string | null = null;
  #attempts = 0;
  #launchedAtMs = Number.NEGATIVE_INFINITY;
  #unsentBound = new UnsentBound();
  #boundAtMs = Number.NEGATIVE_INFINITY;
  /** ends, and attempts that came to nothing, since it has last lived for long; and what the last one was */
  #ends = 0;
  #lastEnd = "";
  /** a restart on command; aborted: somebody wants it stopped */
  #restart: AbortController | null = null;
  /** starting again what ended by itself, or what the last agent was at */
  #work: { done: Promise<void>; interrupt: AbortController } | null = null;
  #closing = new AbortController();

  constructor(workload: SupervisedWorkload) {
    this.#workload = workload;
  }

  /** From now on an end is noticed, within 50 ms. */
  watch(): void {
    this.#timer ??= setInterval(() => {
      if (this.#isLooking) return;
      this.#isLooking = true;
      this.#look()
        .catch((error: unknown) => this.#log("warn", { reason: messageOf(error) }, "cannot be watched"))
        .finally(() => {
          this.#isLooking = false;
        });
    }, WATCH_MS).unref();
  }

  close(): void {
    clearInterval(this.#timer);
    this.#closing.abort(closing());
    this.#application?.close();
    this.#application = null;
  }

  /** Why it does not stay up. null: it does, or has ended once and is up again */
  get problem(): Problem | null {
    const { name, config, logFile } = this.#workload;
    const isUp = this.#application?.hasEnded === false;
    if (isUp && performance.now() - this.#launchedAtMs >= SETTLED_MS) return null;
    const isLeft = this.#leftDown !== null;
    if (this.#ends < (isLeft ? 1 : LOOP_ENDS)) return null;
    const again = `\`holdfast restart ${name}\`; the log: ${logFile}`;
    const cannot = ofCommand(this.#lastEnd, config);
    if (cannot !== null) return { ...cannot, cure: `${cannot.cure}, then ${again}` };
    if (isLeft)
      return {
        id: "application.left-down",
        what: `the application ${this.#lastEnd}; with restart: ${config.restart} it stays so`,
        cure: `to have it again, ${again}`,
      };
    return {
      id: "application.crash-loop",
      what: `the application ends again and again, ${this.#ends} times by now; the last time it ${this.#lastEnd}`,
      cure: `correct what it says, or its command, then ${again} (it is tried again by itself, ${BACKOFF_MS_MAX / 1000} s apart at most)`,
    };
  }

  /** on command */
  get isRestarting(): boolean {
    return this.#restart !== null;
  }
  get isBusy(): boolean {
    return this.#restart !== null || this.#work !== null;
  }

  /** Ends attempts to start what has ended by itself. */
  async interrupt(): Promise<void> {
    const work = this.#work;
    work?.interrupt.abort(fail("CANCELLED", "interrupted"));
    await work?.done;
  }

  /** Asks a restart to leave everything as it is. False: none is running. One that has begun to stop goes on. */
  cancel(): boolean {
    this.#restart?.abort();
    return this.#restart !== null;
  }

  /** The very first start, in a container that has just been made. @throws HoldfastError `APPLICATION_ENDED` */
  async first(): Promise<void> {
    const { name } = this.#workload;
    const application = await this.#launch();
    const up = await this.#untilUp(application, performance.now() + LISTEN_MS_MAX, this.#closing.signal);
    if (up === "ended") {
      const end = endOf((await application?.end()) ?? null);
      throw fail("APPLICATION_ENDED", `${name} ${end} at once: ${await this.#lastSaid()}`);
    }
    if (up === "late")
      this.#log("warn", { ms: LISTEN_MS_MAX }, "the application does not listen yet; going on");
  }

  /** Goes on with what the last agent was at. What ended while there was none is the watch's to notice. */
  recover(): void {
    const { restarting } = this.#workload.journal;
    if (restarting === null) return;
    this.#log("warn", restarting, "a restart was cut off; finishing it");
    this.#begin((signal) => this.#finish(restarting.step, signal));
  }

  // ---- on command ----

  async restart(request: RestartRequest): Promise<RestartResult> {
    if (this.#restart !== null) throw restartBusy(this.#workload.name);
    const cancel = new AbortController();
    this.#restart = cancel;
    try {
      await this.interrupt();
      return await this.#run(request, cancel.signal);
    } finally {
      this.#restart = null;
    }
  }

  async #run({ drainMs, config, report }: RestartRequest, cancel: AbortSignal): Promise<RestartResult> {
    const workload = this.#workload;
    const { name, context } = workload;
    const { faults } = context;
    const beganMs = performance.now();
    const phasesMs: RestartResult["phasesMs"] = {};
    const phase = async <T>(which: RestartPhase, work: () => Promise<T>): Promise<T> => {
      const startMs = performance.now();
      report({ type: "phase", phase: which, state: "start", ms: round(startMs - beganMs) });
      const result = await work();
      phasesMs[which] = round(performance.now() - startMs);
      report({ type: "phase", phase: which, state: "done", ms: phasesMs[which] });
      return result;
    };
    const finished = (
      outcome: RestartResult["outcome"],
      resumed: ResumeResult,
      reason: string | null,
    ): RestartResult => {
      const pauseMs = round(performance.now() - beganMs);
      this.#log("info", { outcome, pauseMs, ...resumed }, "restart has ended");
      return { workload: name, node: context.node, ...resumed, pauseMs, phasesMs, outcome, reason };
    };

    const before = await this.#attach();
    const isUp = before !== null && !before.hasEnded;
    try {
      await phase("pause", async () => {
        this.#mark("pausing");
        faults.at("restart:pause");
        // one that has ended needs no pause: its proxy has noticed
        await this.#pause(drainMs).catch((error: unknown) => {
          if (isUp) throw error;
        });
      });
    } catch (error) {
      await this.#resume();
      throw error;
    }
    if (cancel.aborted) {
      return finished("cancelled", await phase("resume", () => this.#resume()), "cancelled");
    }
    const deadlineMs = beganMs + config.limits.unavailableMsMax;
    try {
      await phase("stop", async () => {
        this.#mark("stopping");
        faults.at("restart:stop");
        workload.useConfig(config);
        await this.#stop();
      });
      context.metrics.restarted(name, "command");
      this.#attempts = this.#ends = 0;
      await phase("start", async () => {
        this.#mark("starting");
        faults.at("restart:start");
        await this.#start(deadlineMs, this.#closing.signal, (note) =>
          report({
            type: "phase",
            phase: "start",
            state: "start",
            ms: round(performance.now() - beganMs),
            note,
          }),
        );
      });
    } catch (error) {
      if (this.#closing.signal.aborted) throw error;
      // clients have waited long enough: now they are refused, and it may come up for those who come later
      await this.#resume();
      if (this.#leftDown === null && !workload.isLeavingDown)
        this.#begin((signal) => this.#finish("starting", signal));
      throw error;
    }
    const resumed = await phase("resume", async () => {
      this.#mark("resuming");
      faults.at("restart:resume");
      return this.#resume();
    });
    return finished("restarted", resumed, null);
  }

  // ---- by itself ----

  async #look(): Promise<void> {
    if (this.isBusy || !this.#workload.isAtRest) return;
    const { container } = this.#workload.journal;
    const application = await this.#attach();
    if (this.isBusy || !this.#workload.isAtRest || container?.id !== this.#watched) return;
    const isToEnd = await this.#passSignals(application);
    if (application !== null && !application.hasEnded) {
      if (performance.now() - this.#boundAtMs >= BOUND_MS) await this.#boundUnsent();
      return;
    }
    if (this.#workload.isLeavingDown || isToEnd) return await this.#endContainer(application);
    if (this.#leftDown === this.#watched) return;
    this.#begin((signal) => this.#revive(application, signal));
  }

  /** What its container was sent is the application's. Whether that was to end it. */
  async #passSignals(application: Application | null): Promise<boolean> {
    const { sandbox } = this.#workload;
    if (sandbox === null) return false;
    const { signals, isToEnd } = await sandbox.takeSignals();
    if (signals.length > 0)
      this.#log("info", { signals }, "the application is given what its container was sent");
    for (const signal of signals) application?.signal(signal);
    return isToEnd;
  }

  /** As without us, where the application is the container. */
  async #endContainer(ended: Application | null): Promise<void> {
    const { sandbox } = this.#workload;
    if (sandbox === null || !(await sandbox.isAlive())) return;
    const end = ended === null ? null : await ended.end();
    this.#log("info", { end: describeEnd(end) }, "the application has ended, and its container ends");
    await sandbox.end(end !== null && "status" in end ? end.status : null);
  }

  async #revive(ended: Application | null, signal: AbortSignal): Promise<void> {
    const workload = this.#workload;
    const end = ended === null ? null : await ended.end();
    const { restart } = workload.config;
    const isWanted = isToStartAgain(restart, end);
    if (performance.now() - this.#launchedAtMs >= SETTLED_MS) this.#attempts = this.#ends = 0;
    const said = await this.#lastSaid();
    this.#failed(`${endOf(end)}: ${said}`);
    this.#log(
      "error",
      { end: describeEnd(end), restart, said },
      isWanted ? "the application has ended; starting it again" : "the application has ended, and stays so",
    );
    if (!isWanted) {
      this.#leave();
      return;
    }
    workload.context.metrics.restarted(workload.name, reasonOf(end));
    await this.#startAgain(signal);
  }

  async #startAgain(signal: AbortSignal): Promise<void> {
    this.#mark("starting");
    if (await this.#start(null, signal)) await this.#resume();
  }

  async #finish(step: RestartStep, signal: AbortSignal): Promise<void> {
    const application = await this.#attach();
    let isUp = application !== null && !application.hasEnded;
    if (step === "stopping") {
      await this.#stop();
      isUp = false;
    } else if (isUp && application !== null) {
      const late = performance.now() + this.#workload.config.limits.unavailableMsMax;
      isUp = (await this.#untilUp(application, late, signal)) !== "ended";
    }
    if (isUp) await this.#resume();
    else await this.#startAgain(signal);
  }

  // ---- parts of both ----

  /** When what it has said has been written: on a busy node its output's reader may be late. */
  async #lastSaid(): Promise<string> {
    const { sandbox, logFile } = this.#workload;
    const late = performance.now() + SAID_MS_MAX;
    // twice: taken out of the pipe, and written
    for (let empty = 0; sandbox !== null && empty < 2 && performance.now() < late; ) {
      empty = sandbox.untakenOutput() === 0 ? empty + 1 : 0;
      await poll();
    }
    return lastLogLine(logFile);
  }

  async #pause(drainMs: number): Promise<void> {
    const { proxy, journal } = this.#workload;
    const params = { epoch: journal.epoch, drainMs };
    const { result } = await proxy.command<"pause", PauseResult>("pause", params, undefined, drainMs);
    this.#log("info", { ...result }, "clients wait");
  }

  /** Asks the application to end, and ends whatever is left in its container. */
  async #stop(): Promise<void> {
    const { config, sandbox } = this.#workload;
    const application = await this.#attach();
    await application?.askToEnd(config.stopSignal, config.stopMsMax);
    if (application?.hasEnded === false)
      this.#log("warn", { ms: config.stopMsMax }, "the application does not end; it is killed");
    if (sandbox !== null) await clearContainer(sandbox);
    this.#forget();
    this.#workload.record({ application: null });
  }

  /**
   * Starts it until it listens. False: it ended in a way after which it is not to be started again.
   * @param deadlineMs by performance.now(); null: never gives up
   * @throws HoldfastError `APPLICATION_DOWN` at the deadline, with what the application said last
   */
  async #start(
    deadlineMs: number | null,
    signal: AbortSignal,
    note: (text: string) => void = () => {},
  ): Promise<boolean> {
    const workload = this.#workload;
    const { config, name } = workload;
    let problem: string | null = null;
    for (;;) {
      await this.#backOff(deadlineMs, signal);
      try {
        const application = await this.#launch();
        const lateMs = deadlineMs ?? performance.now() + config.limits.unavailableMsMax;
        const up = await this.#untilUp(application, lateMs, signal);
        if (up === "up") return true;
        const said = await this.#lastSaid();
        if (up === "late") {
          const ports = config.ports.map(({ upstream }) => formatEndpoint(upstream)).join(", ");
          // the deadline may have cut short what would have ended like the attempts before
          problem ??= `it does not listen on ${ports}: ${said}`;
          if (deadlineMs === null) {
            this.#log("warn", { problem }, "goes on as it is");
            return true;
          }
        } else {
          const end = await application?.end();
          problem = `${describeEnd(end ?? null)}: ${said}`;
          this.#failed(`${endOf(end ?? null)}: ${said}`);
          if (!isToStartAgain(config.restart, end ?? null)) {
            this.#leave();
            if (deadlineMs === null) return false;
            throw down(name, problem);
          }
        }
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof HoldfastError && error.code === "APPLICATION_DOWN") throw error;
        problem = messageOf(error);
        this.#failed(`could not be started: ${problem}`);
      }
      this.#log("warn", { problem, attempts: this.#attempts }, "the application did not start");
      if (deadlineMs !== null && performance.now() >= deadlineMs) throw down(name, problem);
      note(problem);
    }
  }

  async #backOff(deadlineMs: number | null, signal: AbortSignal): Promise<void> {
    const attempts = this.#attempts++;
    signal.throwIfAborted();
    if (attempts === 0) return;
    const delayMs = Math.min(BACKOFF_MS_MIN * 2 ** Math.min(attempts - 1, 20), BACKOFF_MS_MAX);
    const leftMs = deadlineMs === null ? delayMs : Math.max(0, deadlineMs - performance.now());
    await sleep(Math.min(delayMs, leftMs), undefined, {
      signal: AbortSignal.any([signal, this.#closing.signal]),
    });
  }

  /** One attempt, in a container that is empty afterwards but for it. null: it ended before it could be looked at */
  async #launch(): Promise<Application | null> {
    const workload = this.#workload;
    const { context, config, logFile } = workload;
    this.#forget();
    const container = await this.#emptyContainer();
    // in a network of its own nobody else is there
    if (hasOwnNetwork(container.init.pid) === false) await refuseTaken(config);
    const plan = await workload.runtime.plan(config);
    this.#launchedAtMs = performance.now();
    const { subreaper } = config;
    await container.launch(plan.process, { criu: context.criu, logFile, subreaper });
    const root = await container.applicationRoot();
    const identity = root === null ? null : await identify(root);
    this.#application = identity === null ? null : await Application.open(identity);
    this.#watched = container.id;
    workload.record({ application: this.#application?.process ?? null });
    return this.#application;
  }

  /** The one there is; another if its init has ended. */
  async #emptyContainer(): Promise<Sandbox> {
    const workload = this.#workload;
    const container = workload.sandbox;
    if (container !== null && (await container.isAlive())) {
      await clearContainer(container);
      return container;
    }
    await container?.destroy();
    const made = await workload.createContainer(async () => {});
    workload.record({ container: made.ref, application: null });
    // a proxy that has ended is replaced, and the next one is told when it is started
    await workload.keeper
      .handNetwork()
      .catch((error: unknown) =>
        this.#log("warn", { reason: messageOf(error) }, "the proxy was not told of another container"),
      );
    return made;
  }

  async #untilUp(
    application: Application | null,
    lateMs: number,
    signal: AbortSignal,
  ): Promise<"up" | "ended" | "late"> {
    const { ports } = this.#workload.config;
    for (;;) {
      if (application === null || application.hasEnded) return "ended";
      const { pid } = this.#workload.container.init;
      const network = networkOf([pid]);
      if (ports.every(({ upstream }) => listenBacklog(upstream, network) !== null)) {
        await this.#boundUnsent();
        return "up";
      }
      if (performance.now() >= lateMs) return "late";
      signal.throwIfAborted();
      this.#closing.signal.throwIfAborted();
      await poll();
    }
  }

  async #boundUnsent(): Promise<void> {
    const { sandbox, config } = this.#workload;
    this.#boundAtMs = performance.now();
    if (sandbox === null) return;
    const ports = config.ports.map(({ upstream }) => upstream.port);
    try {
      await this.#unsentBound.look(sandbox.init.pid, ports);
    } catch (error) {
      this.#log("warn", { reason: messageOf(error) }, "what the application may have unsent is not bounded");
    }
  }

  /** A proxy that cannot be told has ended, and another takes its place (`Workload`): there is nobody left to tell of. */
  async #resume(): Promise<ResumeResult> {
    const workload = this.#workload;
    let resumed = NOTHING;
    try {
      const { epoch } = workload.journal;
      const waitMs = workload.config.limits.unavailableMsMax;
      const { proxy } = workload;
      resumed = (await proxy.command<"resume", ResumeResult>("resume", { epoch }, undefined, waitMs)).result;
    } catch (error) {
      this.#closing.signal.throwIfAborted(); // the next agent tells it
      this.#log("warn", { reason: messageOf(error) }, "the proxy was not told that the application is back");
    }
    workload.record({ restarting: null });
    return resumed;
  }

  /** The application of the container there is now. null: it has none */
  async #attach(): Promise<Application | null> {
    const { sandbox: container, journal } = this.#workload;
    const known = journal.application;
    if (container === null) {
      this.#forget();
      return null;
    }
    if (this.#watched === container.id) return this.#application;
    this.#forget();
    const found = await findApplication(container, known);
    this.#application = found;
    this.#watched = container.id;
    this.#launchedAtMs = Number.NEGATIVE_INFINITY;
    if (found !== null && known === null) this.#workload.record({ application: found.process });
    return found;
  }

  #forget(): void {
    this.#application?.close();
    this.#application = null;
    this.#watched = null;
    this.#leftDown = null;
  }

  #failed(how: string): void {
    this.#ends++;
    this.#lastEnd = how;
  }

  #leave(): void {
    this.#leftDown = this.#watched;
    this.#workload.record({ restarting: null });
  }

  #begin(work: (signal: AbortSignal) => Promise<void>): void {
    const interrupt = new AbortController();
    const signal = AbortSignal.any([interrupt.signal, this.#closing.signal]);
    const done = work(signal)
      .catch((error: unknown) => {
        if (!signal.aborted) this.#log("error", { reason: messageOf(error) }, "cannot be started again");
      })
      .finally(() => {
        this.#work = null;
      });
    this.#work = { done, interrupt };
  }

  #mark(step: RestartStep): void {
    this.#workload.record({ restarting: { step } });
  }

  #log(level: "info" | "warn" | "error", fields: object, line: string): void {
    this.#workload.context.log[level]({ workload: this.#workload.name, ...fields }, line);
  }
}

export function restartBusy(name: string): HoldfastError {
  return fail("RESTART_BUSY", `${name}: a restart is under way`);
}

/** Else another program's listener would be taken for the application's. @throws HoldfastError `UPSTREAM_TAKEN` */
async function refuseTaken({ ports }: WorkloadConfig): Promise<void> {
  for (const { upstream } of ports) {
    const holder = await holderOf(upstream, new Set());
    if (holder === null) continue;
    throw fail(
      "UPSTREAM_TAKEN",
      `${formatEndpoint(upstream)}, where the application is to listen, is taken by ${holder}`,
    );
  }
}

function down(name: string, problem: string): HoldfastError {
  return fail("APPLICATION_DOWN", `${name} did not come up: ${problem}`);
}

function closing(): HoldfastError {
  return fail("AGENT_CLOSING", "the agent is shutting down");
}

/** As {@link describeEnd}, behind the name of what has ended. */
function endOf(end: End): string {
  return end === null ? "ended" : describeEnd(end);
}

function reasonOf(end: End): "status" | "signal" | "unknown" {
  if (end === null) return "unknown";
  return "signal" in end ? "signal" : "status";
}

function round(ms: number): number {
  return Number(ms.toFixed(1));
}
