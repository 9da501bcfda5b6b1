/** What bounds a proxy of a workload, each once: what it is, its unit, its default and what it may be set to. */

export interface Limit {
  unit: "ms" | "bytes" | "MiB" | "sessions";
  default: number;
  min: number;
  max: number;
}

export const MS_MAX = 3_600_000;
/** nobody wants to be held for longer; and a file that means `unavailableMsMax`, which had this name once, says so */
const HOLD_MS_MAX = 10_000;
const MEMORY_BYTES_MAX = 1_073_741_824;
const DISK_BYTES_MAX = 1_099_511_627_776;

export const PROXY_LIMITS = {
  /** waiting for upstream legs to have nothing unacknowledged and accept queues to be empty */
  holdMsMax: { unit: "ms", default: 250, min: 1, max: HOLD_MS_MAX },
  /** reading what the application still sent before the upstream legs are captured */
  drainMsMax: { unit: "ms", default: 250, min: 1, max: MS_MAX },
  /** sessions accepted and kept waiting while held; more are refused with RST and counted */
  heldSessionsMax: { unit: "sessions", default: 1_024, min: 0, max: 1_000_000 },
  /** how long a leg that both sides closed may take to deliver its last bytes */
  lingerMsMax: { unit: "ms", default: 30_000, min: 1, max: MS_MAX },
  /** how long a session may be without the connection between its anchor and its owner; 0: it ends with it */
  linkResumeMsMax: { unit: "ms", default: 15_000, min: 0, max: MS_MAX },
  /** links of an anchor to an owner that share a connection; 0: each has its own */
  trunkSessionsMax: { unit: "sessions", default: 65_536, min: 0, max: 65_536 },
  /** replay: how long the application may be unavailable before its clients are refused */
  unavailableMsMax: { unit: "ms", default: 30_000, min: 1, max: MS_MAX },
  /** replay: bytes of unanswered requests or messages that a session keeps to send them again */
  replayBytesMax: { unit: "bytes", default: 262_144, min: 0, max: MEMORY_BYTES_MAX },
  /** application unavailable: how long a client may be kept from sending (flow control) before its bytes are read and kept */
  stallMsMax: { unit: "ms", default: 1_000, min: 1, max: MS_MAX },
  /** … and how many of a session, and of all sessions of the workload, are kept in memory */
  heldSessionBytesMax: { unit: "bytes", default: 1_048_576, min: 0, max: MEMORY_BYTES_MAX },
  heldWorkloadBytesMax: { unit: "bytes", default: 67_108_864, min: 0, max: MEMORY_BYTES_MAX },
  /** … and then of all sessions on disk, sealed; 0: none */
  spillBytesMax: { unit: "bytes", default: 1_073_741_824, min: 0, max: DISK_BYTES_MAX },
  /** application unavailable: how often WebSocket clients are sent a ping */
  pingMs: { unit: "ms", default: 10_000, min: 1, max: MS_MAX },
  /** replay: how long a client without a request may stay connected while nothing connects it to the application */
  detachedMsMax: { unit: "ms", default: 60_000, min: 1, max: MS_MAX },
  /** how long health checks are answered in the application's place, from the hold on */
  probeMsMax: { unit: "ms", default: 30_000, min: 1, max: MS_MAX },
} as const satisfies Record<string, Limit>;

export type ProxyLimits = { [Name in keyof typeof PROXY_LIMITS]: number };

/** What they are where nobody has said otherwise. */
export function defaultsOf<Name extends string>(limits: Record<Name, Limit>): Record<Name, number> {
  const entries = Object.entries<Limit>(limits).map(([name, limit]) => [name, limit.default]);
  return Object.fromEntries(entries) as Record<Name, number>;
}
