/**
 * Timers of timerfd_create(2) as /proc/PID/fdinfo/FD shows them: state in motion. Pure.
 *
 * Time may pass between two looks, and nothing else may happen: the rest of the time shrinks, a timer that runs out counts an
 * expiration, one that repeats starts again. A timer that repeats is never found off.
 *
 * The kernel stops a repeating timer when it runs out and starts it again when the expirations are read
 * (fs/timerfd.c), so one that nobody read yet shows a rest of zero. CRIU 4.2 sets what it read: zero, which is off.
 */
import type { Facts } from "./fingerprint.ts";
import type { Difference } from "./harmless.ts";

const TIMER_FILE = "anon_inode:[timerfd]";
const NS_PER_S = 1_000_000_000n;

export interface TimerState {
  ticks: bigint;
  /** nanoseconds; 0: off, or run out */
  value: bigint;
  /** nanoseconds; 0: once */
  interval: bigint;
  /** of timerfd_settime(2) */
  flags: number;
  clock: number;
}

const NAMES = ["ticks", "it_value", "it_interval", "settime flags", "clockid"];

/** null: not a timer */
export function timerState(facts: Facts): TimerState | null {
  if (facts.file !== TIMER_FILE || facts.it_value === undefined) return null;
  return {
    ticks: BigInt(facts.ticks ?? 0),
    value: nanoseconds(facts.it_value),
    interval: nanoseconds(facts.it_interval ?? "(0, 0)"),
    flags: Number.parseInt(facts["settime flags"] ?? "0", 8),
    clock: Number(facts.clockid ?? 0),
  };
}

/** `(1, 500)` */
function nanoseconds(text: string): bigint {
  const [, seconds = "0", rest = "0"] = /\((\d+), (\d+)\)/.exec(text) ?? [];
  return BigInt(seconds) * NS_PER_S + BigInt(rest);
}

/**
 * @param isRearmed it was armed a moment ago by somebody who knows: a rest of zero is one that has run out again
 * @returns names of facts that need not be compared by themselves, and what is not as it has to be
 */
export function timerDifferences(
  subject: string,
  was: Facts,
  is: Facts,
  isRearmed = false,
): { names: ReadonlySet<string>; differences: Difference[] } {
  const before = timerState(was);
  const after = timerState(is);
  if (before === null || after === null) return { names: new Set(), differences: [] };
  const differences: Difference[] = [];
  const differs = (name: string): void =>
    void differences.push({ subject, name, before: was[name] ?? null, after: is[name] ?? null });
  if (before.clock !== after.clock) differs("clockid");
  if (before.flags !== after.flags) differs("settime flags");
  if (before.interval !== after.interval) differs("it_interval");
  if (isWrong(before, after, isRearmed)) differs("it_value");
  if (after.ticks < before.ticks) differs("ticks");
  return { names: new Set(NAMES), differences };
}

function isWrong(before: TimerState, after: TimerState, isRearmed: boolean): boolean {
  // a rest of zero is off, but for one that repeats and has run out unread
  if (before.value === 0n && (before.interval === 0n || before.ticks === 0n)) return after.value > 0n;
  if (after.value > longest(before)) return true;
  if (after.value > 0n) return false;
  const hasRunOut = after.ticks > before.ticks || (isRearmed && after.ticks > 0n);
  // one that repeats and shows no rest is off, whatever it has counted, unless it is known to run
  return before.interval > 0n ? !(isRearmed && hasRunOut) : !hasRunOut;
}

/** How long it can be until it runs out, when it was like this. */
function longest({ value, interval }: TimerState): bigint {
  return value > interval ? value : interval;
}
