/** What a move says of itself: its phases while it runs, and its result. */
import type { AdoptResult, CaptureResult } from "#proxy/contract/commands.ts";
import type { MoveResult, Phase, PhaseEvent, Report, TimelineSpan } from "../../api/migration.ts";
import type { PrecopyRounds } from "../../criu/precopy-rounds.ts";
import { placed, Timeline } from "../timeline.ts";

type PhaseName = PhaseEvent["phase"];

export class Progress {
  /** filled in as the move goes on */
  readonly result: MoveResult;
  readonly pause = new Pause();
  readonly timeline = new Timeline();
  readonly #report: Report;
  readonly #startedMs = performance.now();
  #atTarget: { spans: TimelineSpan[]; releaseMs: number } = { spans: [], releaseMs: 0 };
  readonly #legs = { captured: 0, captureUs: 0, adopted: 0, adoptUs: 0 };

  constructor(of: Pick<MoveResult, "workload" | "from" | "to" | "downstream">, report: Report) {
    this.#report = report;
    this.result = {
      ...of,
      sessions: 0,
      messages: null,
      lost: null,
      repeated: null,
      resets: null,
      blackoutMs: { p50: null, p99: null, max: null },
      holdMs: 0,
      phasesMs: {},
      criuMs: { dump: 0, restore: 0 },
      auditMs: { source: 0, target: 0 },
      notKept: [],
      legUs: { capture: 0, adopt: 0 },
      precopyBytes: 0,
      precopyRounds: [],
      dirtyBytesPerSecond: null,
      imageBytes: 0,
      trackedProcesses: 0,
      outcome: "rolled-back",
      reason: null,
    };
  }

  /** @param note of what came of it, for people */
  async phase<T>(phase: PhaseName, work: () => Promise<T>, note?: () => string): Promise<T> {
    const atMs = performance.now();
    this.began(phase, atMs);
    const result = await work();
    this.done(phase, performance.now() - atMs, note?.());
    return result;
  }

  /** @param atMs by `performance.now()` */
  began(phase: PhaseName, atMs: number): void {
    this.#tell(phase, "start", atMs - this.#startedMs);
  }

  done(phase: PhaseName, ms: number, note?: string): void {
    this.result.phasesMs[phase] = ms;
    this.#tell(phase, "done", ms, note);
  }

  /** What was copied before the hold. */
  copied({ bytes, rounds, dirtyBytesPerSecond }: PrecopyRounds): void {
    this.result.precopyBytes = bytes;
    this.result.precopyRounds = rounds.map((each) => ({ ...each, ms: round(each.ms) }));
    this.result.dirtyBytesPerSecond = dirtyBytesPerSecond === null ? null : Math.round(dirtyBytesPerSecond);
  }

  captured(result: CaptureResult): void {
    this.#legs.captured += result.legs;
    this.#legs.captureUs += result.captureUs;
  }

  /** @param which of a session's connections they are, for people */
  adopted({ legs, adoptUs, lost = 0 }: AdoptResult, which: string): void {
    this.#legs.adopted += legs;
    this.#legs.adoptUs += adoptUs;
    if (lost > 0)
      this.result.notKept.push(
        `sessions: ${lost}, whose ${which} could not be built at ${this.result.to}: its proxy.log says why`,
      );
  }

  /**
   * @param spans what the target has told of itself, in ms from when it received `release`
   * @param releaseMs when that was sent, by `performance.now()`
   */
  toldByTarget(spans: TimelineSpan[], releaseMs: number): void {
    this.#atTarget = { spans, releaseMs };
  }

  /** The result, complete: nothing happens any more. */
  ended(): MoveResult {
    const { captured, captureUs, adopted, adoptUs } = this.#legs;
    this.result.legUs = {
      capture: round(captureUs / Math.max(1, captured)),
      adopt: round(adoptUs / Math.max(1, adopted)),
    };
    const { beganMs } = this.pause;
    const { spans, releaseMs } = this.#atTarget;
    if (beganMs > 0) this.result.timeline = placed(this.timeline.since(beganMs), spans, releaseMs - beganMs);
    const { phasesMs } = this.result;
    for (const [phase, ms] of Object.entries(phasesMs)) phasesMs[phase as Phase] = round(ms);
    return this.result;
  }

  #tell(phase: PhaseName, state: PhaseEvent["state"], ms: number, of?: string): void {
    const { reason, prediction } = this.result;
    let note = phase === "rollback" ? (reason ?? undefined) : of;
    if (phase === "hold" && state === "start" && prediction !== undefined)
      note = `clients are likely to wait for ${Math.round(prediction.pauseMs.likely)} ms`;
    this.#report({ type: "phase", phase, state, ms: round(ms), ...(note === undefined ? {} : { note }) });
  }
}

/** How long clients wait, as the agents measure it: from the hold to the release. */
class Pause {
  #beganMs = 0;
  #endedMs = 0;

  begins(): void {
    this.#beganMs = performance.now();
  }

  /** by `performance.now()`; 0: it has not begun */
  get beganMs(): number {
    return this.#beganMs;
  }

  /** The first time counts. */
  ends(): void {
    this.#endedMs ||= performance.now();
  }

  /** Of one that has not ended, so far. */
  get ms(): number {
    return this.#beganMs === 0 ? 0 : (this.#endedMs || performance.now()) - this.#beganMs;
  }
}

export function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}
