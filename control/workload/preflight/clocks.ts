/** How far another node's wall clock is from this one's, from one question and answer (as NTP does it, RFC 5905 section 8). Pure. */
import type { Add } from "../../api/finding.ts";

/** An application sees the difference as a jump of CLOCK_REALTIME; CLOCK_MONOTONIC goes on, in a time namespace. */
const DIFFERENCE_MS_MAX = 1_000;

/** ms since 1970: when it was asked here, heard there, answered there, heard here */
export interface Asked {
  sentAtMs: number;
  theyReceivedAtMs: number;
  theySentAtMs: number;
  receivedAtMs: number;
}

export interface ClockDifference {
  /** theirs minus ours */
  offsetMs: number;
  /** it is within this of `offsetMs` */
  uncertaintyMs: number;
}

export function clockOf({ sentAtMs, theyReceivedAtMs, theySentAtMs, receivedAtMs }: Asked): ClockDifference {
  return {
    offsetMs: (theyReceivedAtMs - sentAtMs + (theySentAtMs - receivedAtMs)) / 2,
    uncertaintyMs: Math.max(0, (receivedAtMs - sentAtMs - (theySentAtMs - theyReceivedAtMs)) / 2),
  };
}

export function addClockFinding({ offsetMs, uncertaintyMs }: ClockDifference, add: Add): void {
  if (Math.abs(offsetMs) - uncertaintyMs < DIFFERENCE_MS_MAX) return;
  const way = offsetMs > 0 ? "ahead" : "behind";
  add(
    "target.clock-differs",
    "warning",
    `its clock is ${(Math.abs(offsetMs) / 1000).toFixed(1)} s ${way}: the application's wall clock jumps by that`,
    "let both nodes follow the same time servers",
  );
}
