/**
 * How a metric is called, shown and judged. The name of a metric says its unit (results.ts); one that is not in the list
 * here is shown with its own name, as it is.
 */

export interface Metric {
  /** with its unit */
  label: string;
  /** which is better */
  better: "more" | "less";
  show(value: number): string;
  /** so much of it is shown as 1 */
  unit?: number;
}

const METRICS: Record<string, Metric> = {
  requestsPerSecond: { label: "requests/s", better: "more", show: rate },
  messagesPerSecond: { label: "messages/s", better: "more", show: rate },
  connectionsPerSecond: { label: "connections/s", better: "more", show: rate },
  megabytesPerSecond: { label: "MB/s", better: "more", show: significant },
  latencyUs: { label: "latency, µs", better: "less", show: rate },
  addedLatencyUs: { label: "added latency, µs", better: "less", show: rate },
  // µs a request are seconds a million requests
  cpuUsPerRequest: { label: "CPU seconds per million requests", better: "less", show: significant },
  cpuUsPerMessage: { label: "CPU seconds per million messages", better: "less", show: significant },
  cpuUsPerMegabyte: { label: "CPU µs per MB", better: "less", show: rate },
  cpuUsPerConnection: { label: "CPU seconds per million connections", better: "less", show: significant },
  memoryBytesPerSession: {
    label: "memory of the process a session, kB",
    better: "less",
    show: (bytes) => (bytes / 1024).toFixed(1),
    unit: 1024,
  },
  collectedBytesPerSession: {
    label: "memory of the process a session, collected, kB",
    better: "less",
    show: (bytes) => (bytes / 1024).toFixed(1),
    unit: 1024,
  },
  collectedBytes: {
    label: "memory of the process, collected, MB",
    better: "less",
    show: (bytes) => (bytes / 2 ** 20).toFixed(1),
    unit: 2 ** 20,
  },
  memoryBytes: {
    label: "memory of the process, MB",
    better: "less",
    show: (bytes) => (bytes / 2 ** 20).toFixed(1),
    unit: 2 ** 20,
  },
  peerCpuShare: { label: "share of its CPU that the peer used", better: "less", show: percent },
  loadCpuShare: { label: "share of their CPU that load and application used", better: "less", show: percent },
  unanswered: { label: "due and not answered", better: "less", show: rate },
  generatorLateP99Us: { label: "how late the generator itself was, p99, µs", better: "less", show: rate },
  holdMs: { label: "hold to release, ms", better: "less", show: significant },
  addedMs: { label: "added to the pause, ms", better: "less", show: significant },
  "restart-errors": { label: "errors seen by clients", better: "less", show: rate },
  "restart-lostConnections": { label: "connections lost", better: "less", show: rate },
  "restart-gapMs": { label: "longest gap, ms", better: "less", show: significant },
  "restart-repeated": { label: "requests carried out twice", better: "less", show: rate },
  createdToHoldMs: { label: "Migration created to clients held, ms", better: "less", show: rate },
  reachedMs: { label: "Migration created to its phase, ms", better: "less", show: rate },
  tookMs: { label: "from the command to its end, ms", better: "less", show: rate },
  blackoutMs: { label: "blackout seen by clients, ms", better: "less", show: significant },
  phaseMs: { label: "phase, ms", better: "less", show: significant },
};

/** Worth a table only. */
const PLAIN = new Set([
  ...["peerCpuShare", "loadCpuShare", "unanswered", "generatorLateP99Us"],
  ...["createdToHoldMs", "reachedMs", "tookMs"],
]);

/** Whether it is worth a picture: else its numbers are in a table only. */
export function isPictured(name: string): boolean {
  return (Object.hasOwn(METRICS, name) && !PLAIN.has(name)) || /PerSecond$/.test(name);
}

export function metricOf(name: string): Metric {
  const known = METRICS[name];
  if (known !== undefined) return known;
  return { label: name, better: /PerSecond$/.test(name) ? "more" : "less", show: significant };
}

/** What a parameter is called beside its value, "32 connections", "1000/s", "wrk". */
export function showParameter(name: string, value: number | string): string {
  if (typeof value === "string") return value;
  const number = value.toLocaleString("en");
  if (name === "perSecond") return `${number}/s`;
  if (name === "everyMs") return `every ${number} ms`;
  const unit = /^(.*)(Mb|Ms|Us|Bytes)$/.exec(name);
  if (unit !== null) return `${number} ${unit[2] === "Mb" ? "MB" : unit[2]?.toLowerCase()} ${unit[1]}`.trim();
  return `${number} ${value === 1 ? name.replace(/s$/, "") : name}`;
}

/** "412", "41.2k", "1.24M" */
function rate(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(2)}M`;
  return size >= 1e4 ? `${(value / 1e3).toFixed(size >= 1e5 ? 0 : 1)}k` : value.toFixed(0);
}

function percent(share: number): string {
  return `${(share * 100).toFixed(0)} %`;
}

/** Three digits that say something. */
function significant(value: number): string {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2);
}
