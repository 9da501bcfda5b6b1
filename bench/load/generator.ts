/**
 * The generator of requests and messages on connections that are kept open (or that are opened for each of them): open loop,
 * on a schedule (request i is due at i / rate, and its latency counts from then, so a stall of the server is seen by every
 * request that was due in it), or closed loop. One request a connection at a time.
 *
 * A run takes the whole process: its own epoll, no timers of Node, whose whole milliseconds would be the figure.
 */
import { build, type Histogram } from "hdr-histogram-js";
import { type Connection, Crowd } from "./crowd.ts";
import type { CurvePoint, Held, Hold, Load, LoadReport, Percentiles } from "./load.ts";
import { serve } from "./program.ts";

const OPEN_MS_MAX = 10_000;
const HOLD_MS_MAX = 60_000;
const DRAIN_MS_MAX = 2_000;
const LATENCY_US_MAX = 600_000_000;
/** points of a curve for each halving of what is left above */
const CURVE_POINTS = 5;
const CURVE_HALVINGS = 20;
const CURVE_DIGITS = 10;

class Run extends Crowd {
  readonly #load: Load;
  /** without a request */
  readonly #free: Connection[] = [];
  readonly #latency = histogram();
  readonly #lateness = histogram();
  #opened = false;
  #startMs = 0;
  #endMs = Number.POSITIVE_INFINITY;
  /** open loop: how many are due in the whole run, and which is sent next */
  #total = 0;
  #next = 0;
  /** … and those before this one had to wait for a connection: their delay is not the generator's */
  #starvedBefore = 0;
  #answered = 0;
  #answeredBefore = 0;
  #lastAnswerMs = 0;
  #answeredInTime = 0;

  constructor(load: Load) {
    super(load);
    this.#load = load;
  }

  run(): LoadReport {
    const { connections, perSecond, seconds } = this.#load;
    try {
      this.open(connections, OPEN_MS_MAX, () => this.#free.length);
      if (this.#free.length < connections) {
        this.problem ??= "connections that cannot be opened, or are not answered";
        this.errors ||= connections - this.#free.length;
        return this.#report();
      }
      this.#opened = true;
      this.#answeredBefore = this.#answered;
      this.#startMs = performance.now();
      this.#endMs = this.#startMs + seconds * 1000;
      if (perSecond === null)
        for (const connection of this.#free.splice(0)) this.send(connection, performance.now());
      else this.#total = Math.floor(perSecond * seconds);
      const overMs = this.#endMs + DRAIN_MS_MAX;
      for (;;) {
        const nowMs = perSecond === null ? performance.now() : this.#sendDue(perSecond);
        if (nowMs >= overMs || this.errors === connections) break;
        const settled = this.#free.length + this.errors === connections && this.#next === this.#total;
        if (nowMs >= this.#endMs && settled) break;
        const due = this.#free.length > 0 && this.#next < this.#total;
        this.turn(due ? this.#dueAt(this.#next) : nowMs < this.#endMs ? this.#endMs : overMs);
      }
      return this.#report();
    } finally {
      this.leave();
    }
  }

  protected override onAnswer(connection: Connection, nowMs: number): void {
    this.#answered++;
    this.#lastAnswerMs = nowMs;
    if (this.#opened) {
      this.#latency.recordValue(micros(nowMs - connection.dueMs));
      if (nowMs <= this.#endMs) this.#answeredInTime++;
    }
    connection.dueMs = Number.NaN;
    if (this.#load.churn) this.end(connection);
    if (this.#opened && this.#load.perSecond === null && nowMs < this.#endMs) this.send(connection, nowMs);
    else this.#free.push(connection);
  }

  protected override onFailure(connection: Connection): void {
    const index = this.#free.indexOf(connection);
    if (index >= 0) this.#free.splice(index, 1);
  }

  /** @returns the time */
  #sendDue(perSecond: number): number {
    let nowMs = performance.now();
    const due = Math.min(this.#total, Math.floor(((nowMs - this.#startMs) * perSecond) / 1000) + 1);
    while (this.#next < due && this.#free.length > 0) {
      const dueMs = this.#dueAt(this.#next);
      if (this.#next >= this.#starvedBefore) this.#lateness.recordValue(micros(nowMs - dueMs));
      this.#next++;
      this.send(this.#free.pop() as Connection, dueMs);
      nowMs = performance.now();
    }
    if (this.#next < due) this.#starvedBefore = due;
    return nowMs;
  }

  #dueAt(index: number): number {
    return this.#startMs + (index * 1000) / (this.#load.perSecond as number);
  }

  #report(): LoadReport {
    const nowMs = performance.now();
    const waiting = this.connections.filter(({ dueMs }) => !Number.isNaN(dueMs));
    if (this.#opened) for (const { dueMs } of waiting) this.#latency.recordValue(micros(nowMs - dueMs));
    for (let index = this.#next; index < this.#total; index++)
      this.#latency.recordValue(micros(nowMs - this.#dueAt(index)));
    return {
      sent: this.sent,
      answered: this.#answered,
      unanswered: waiting.length + this.#total - this.#next,
      errors: this.errors,
      problem: this.problem,
      perSecond: this.#answeredInTime / this.#load.seconds,
      perSecondOfAll:
        (this.#answered - this.#answeredBefore) /
        Math.max(this.#load.seconds, (this.#lastAnswerMs - this.#startMs) / 1000),
      latencyUs: percentiles(this.#latency),
      curve: curve(this.#latency),
      latenessUs: percentiles(this.#lateness),
    };
  }
}

class Holding extends Crowd {
  #open = 0;

  /** @returns what there is; nothing is thrown away when it is asked again for more */
  hold(count: number): Held {
    this.open(count, HOLD_MS_MAX, () => this.#open);
    // What has ended meanwhile says so at once.
    this.turn(performance.now());
    if (this.#open + this.errors < count) throw new Error(`${this.#open} of ${count} opened in time`);
    return { open: count - this.errors, lost: this.errors };
  }

  protected override onAnswer(connection: Connection): void {
    connection.dueMs = Number.NaN;
    this.#open++;
  }

  protected override onFailure({ dueMs }: Connection): void {
    if (Number.isNaN(dueMs)) this.#open--;
  }
}

function histogram(): Histogram {
  return build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: LATENCY_US_MAX,
    numberOfSignificantValueDigits: 3,
  });
}

function micros(ms: number): number {
  return Math.max(1, Math.round(ms * 1000));
}

function percentiles(of: Histogram): Percentiles {
  const at = (percentile: number): number => (of.totalCount === 0 ? 0 : of.getValueAtPercentile(percentile));
  return { p50: at(50), p90: at(90), p99: at(99), p999: at(99.9), max: at(100) };
}

/** At the same percentiles for every run, as far up as it has answers to tell them apart. */
function curve(of: Histogram): CurvePoint[] {
  if (of.totalCount === 0) return [];
  const points = new Set([90, 99, 99.9, 99.99]);
  for (let step = 0; step <= CURVE_HALVINGS * CURVE_POINTS; step++) {
    const halved = 2 ** -Math.floor(step / CURVE_POINTS);
    const left = halved * (1 - (step % CURVE_POINTS) / (2 * CURVE_POINTS));
    points.add(Number((100 * (1 - left)).toPrecision(CURVE_DIGITS)));
  }
  const last = 100 * (1 - 1 / of.totalCount);
  return [...[...points].filter((p) => p > 0 && p <= last), 100]
    .sort((one, other) => one - other)
    .map((p) => ({ p, valueUs: of.getValueAtPercentile(p) }));
}

let holding: Holding | null = null;

serve((ask: Load | Hold): LoadReport | Held => {
  if (!("hold" in ask)) return new Run(ask).run();
  holding ??= new Holding(ask);
  return holding.hold(ask.hold);
});
