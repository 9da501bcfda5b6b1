/**
 * How long clients would wait in a move, said after a rehearsal: everything up to the hold was done and measured, and undone.
 * Pure.
 *
 * Each phase of the pause is the sum of what it has to do, in quantities that were counted (memory, processes, mappings,
 * connections) and at rates that were measured in the rehearsal, or are given in {@link RATES} where only a real dump would
 * tell. The range is what such sums were off by on machines that do other work too.
 */

import type { Downstream } from "#proxy/contract/commands.ts";
import type { Finding } from "../api/finding.ts";
import type { PredictedPart, Prediction, Range } from "../api/migration.ts";

/** What a rehearsal knows. */
export interface Measured {
  downstream: Downstream;
  /** connections of sessions at the proxy */
  legs: number;
  processes: number;
  threads: number;
  /** lines of /proc/PID/maps, open descriptors: of all processes */
  mappings: number;
  descriptors: number;
  /** private memory of its own */
  imageBytes: number;
  /** CRIU copies none of it */
  leavesPages: boolean;
  /** what had changed when the last round of copies read memory again; null: nothing is copied before the hold */
  lastRoundBytes: number | null;
  /** so much of it is copied before the hold, and no more */
  copiedBytesMax: number;
  /** of reading memory and comparing it, and of the way to the target; null: too little for a figure */
  readBytesPerMs: number | null;
  sendBytesPerMs: number | null;
  /** looking at every file that travels, once */
  scanMs: number;
  /** a question to the target and back; to the store */
  callMs: number;
  storeMs: number;
  /** CRIU from its start to its first answer */
  criuMs: number;
  holdMsMax: number;
}

/** What a rehearsal cannot measure, as seen with kernel 6.18 and CRIU 4.2 (bench/cutover). Milliseconds, bytes a millisecond. */
export const RATES = {
  holdMs: 6,
  captureMs: 8,
  legMs: 0.12,
  dumpMs: 15,
  processMs: 2,
  threadMs: 0.3,
  mappingMs: 0.02,
  descriptorMs: 0.05,
  writeBytesPerMs: 1_000_000,
  /** at the page tables of memory that stays where it is */
  lookBytesPerMs: 20_000_000,
  restoreMs: 35,
  restoreBytesPerMs: 800_000,
  commitMs: 8,
  addressMs: 12,
  releaseMs: 25,
  readBytesPerMs: 700_000,
  /** about a gigabit a second */
  sendBytesPerMs: 100_000,
} as const;

/** faster no machine fills memory that nobody has touched yet */
const RESTORE_BYTES_PER_MS_MAX = 3_000_000;

const LOW = 0.6;
const HIGH = 2;
/** what a probe of CRIU takes on the machine that RATES are of: a slower start means a slower dump */
const CRIU_MS = 120;
const SLOWER_MAX = 5;

export function predict(measured: Measured): Prediction {
  const { legs, imageBytes, callMs, storeMs, downstream } = measured;
  const slower = Math.min(SLOWER_MAX, Math.max(1, measured.criuMs / CRIU_MS));
  const read = measured.readBytesPerMs ?? RATES.readBytesPerMs;
  const send = measured.sendBytesPerMs ?? RATES.sendBytesPerMs;
  const changedBytes = bytesToSend(measured);
  const structure =
    measured.processes * RATES.processMs +
    measured.threads * RATES.threadMs +
    measured.mappings * RATES.mappingMs +
    measured.descriptors * RATES.descriptorMs;
  const count = `${measured.processes} processes, ${measured.threads} threads, ${measured.mappings} mappings, ${measured.descriptors} descriptors`;
  const sent =
    measured.lastRoundBytes === null
      ? `all ${mega(imageBytes)} MB of memory sent, as precopyMbMax says`
      : `${mega(changedBytes)} MB sent that changed meanwhile${imageBytes > measured.copiedBytesMax ? ", or is more than precopyMbMax" : ""}, ${mega(imageBytes)} MB compared`;
  const takeover = downstream === "takeover";
  const parts: PredictedPart[] = [
    part("hold", RATES.holdMs, "what is under way reaches the application", measured.holdMsMax),
    part("capture", RATES.captureMs + legs * RATES.legMs, `${legs} connections to the application`),
    part(
      "dump",
      (RATES.dumpMs + structure) * slower +
        imageBytes / (measured.leavesPages ? RATES.lookBytesPerMs : RATES.writeBytesPerMs),
      `${count}, ${mega(imageBytes)} MB of memory${measured.leavesPages ? ", not copied" : ""}`,
    ),
    part("transfer", measured.scanMs + callMs, "files that changed meanwhile"),
    part(
      "restore",
      (measured.lastRoundBytes === null ? 0 : imageBytes / read) +
        changedBytes / send +
        (RATES.restoreMs + structure) * slower +
        imageBytes / RATES.restoreBytesPerMs +
        2 * callMs,
      `${sent}; ${count}, ${mega(imageBytes)} MB of memory`,
    ),
    part(
      "commit",
      RATES.commitMs + storeMs + callMs + (takeover ? RATES.addressMs + 2 * legs * RATES.legMs : 0),
      takeover ? `the store, the address, ${legs} connections of clients` : "the store",
    ),
    part("release", RATES.releaseMs + storeMs + callMs + legs * RATES.legMs, "the store, the first answers"),
  ];
  const sum = (of: keyof Range): number => rounded(parts.reduce((total, { ms }) => total + ms[of], 0));
  return { pauseMs: { low: sum("low"), likely: sum("likely"), high: sum("high") }, parts };
}

/**
 * Why a move would end with its deadline, and clients would have waited for nothing: its memory alone takes longer than that, at the best.
 * null: it may well come before it
 */
export function tooMuchMemory(measured: Measured, deadlineMs: number): Pick<Finding, "what" | "cure"> | null {
  const bytes = bytesToSend(measured);
  // only what was measured: a network may be faster than the usual
  const send = measured.sendBytesPerMs;
  const sendMs = send === null ? 0 : (LOW * bytes) / send;
  const ms = sendMs + measured.imageBytes / RESTORE_BYTES_PER_MS_MAX;
  if (ms <= deadlineMs) return null;
  const rate = send === null ? "" : ` (${(send / 1e3).toFixed(0)} MB/s)`;
  return {
    what: `${mega(measured.imageBytes)} MB of memory, of which ${mega(bytes)} MB would be sent while all clients wait${rate}, take at least ${rounded(ms)} ms, and the deadline is ${rounded(deadlineMs)} ms`,
    cure: `raise limits.${bytes * 2 > measured.imageBytes ? "precopyMbMax and limits.imagesMbMax, or limits." : ""}deadlineMs (or --deadline)`,
  };
}

/** What changed since the last round is at least what changed within it. */
function bytesToSend({ lastRoundBytes, imageBytes, copiedBytesMax }: Measured): number {
  if (lastRoundBytes === null) return imageBytes;
  return lastRoundBytes + Math.max(0, imageBytes - copiedBytesMax);
}

function part(phase: PredictedPart["phase"], likely: number, from: string, highMin = 0): PredictedPart {
  return {
    phase,
    ms: {
      low: rounded(likely * LOW),
      likely: rounded(likely),
      high: rounded(Math.max(likely * HIGH, highMin)),
    },
    from,
  };
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}

function mega(bytes: number): string {
  return (bytes / 1e6).toFixed(bytes < 10e6 ? 1 : 0);
}
