/** Timers of timerfd_create(2) that a restore left off, armed again. */
import { readFileSync } from "node:fs";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import type { TimerState } from "./timer-facts.ts";

const NS_PER_S = 1_000_000_000n;
const CLOCK_REALTIME = 0;
const CLOCK_MONOTONIC = 1;
const CLOCK_REALTIME_ALARM = 8;
const TFD_TIMER_ABSTIME = 1;

/**
 * The timer runs out when it would have: after the rest it had, or one interval from now where it had run out already. Nobody
 * loses an expiration: those counted at the restore stay to be read.
 * @param restored as the restore left it
 */
export function rearmTimer(fd: number, before: TimerState, restored: TimerState): void {
  const hasRunOut = restored.ticks > before.ticks || before.value === 0n;
  const rest = hasRunOut ? before.interval : before.value;
  const value = rest > 0n && (before.flags & TFD_TIMER_ABSTIME) !== 0 ? now(before.clock) + rest : rest;
  descriptor.setTimer(fd, before.flags, {
    seconds: Number(value / NS_PER_S),
    nanoseconds: Number(value % NS_PER_S),
    intervalSeconds: Number(before.interval / NS_PER_S),
    intervalNanoseconds: Number(before.interval % NS_PER_S),
  });
  const [ticks = 0n] = [before.ticks, restored.ticks].sort((a, b) => Number(b - a));
  if (ticks > 0n) descriptor.setTimerTicks(fd, ticks);
}

/** This node's clock, nanoseconds: absolute times given from here are those of the agent's time namespace. */
function now(clock: number): bigint {
  if (clock === CLOCK_MONOTONIC) return process.hrtime.bigint();
  if (clock === CLOCK_REALTIME || clock === CLOCK_REALTIME_ALARM) return BigInt(Date.now()) * 1_000_000n;
  return BigInt(Math.round(Number(readFileSync("/proc/uptime", "latin1").split(" ")[0]) * 1000)) * 1_000_000n;
}
