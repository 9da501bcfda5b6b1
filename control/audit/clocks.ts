/** What clocks the application reads: those of the node, moved by its time namespace (time_namespaces(7)). */
import { readFileSync } from "node:fs";
import type { Fingerprint } from "./fingerprint.ts";

const NS_PER_S = 1_000_000_000n;

/** @param offsets /proc/PID/timens_offsets; empty: none */
export function clockFacts(offsets: string): Fingerprint["clocks"] {
  const offsetOf = (name: string): bigint => {
    const [, seconds = "0", nanoseconds = "0"] =
      new RegExp(`^${name}\\s+(-?\\d+)\\s+(\\d+)$`, "m").exec(offsets) ?? [];
    return BigInt(seconds) * NS_PER_S + BigInt(nanoseconds);
  };
  const boottime =
    BigInt(Math.round(Number(readFileSync("/proc/uptime", "latin1").split(" ")[0]) * 1000)) * 1_000_000n;
  return {
    monotonic: String(process.hrtime.bigint() + offsetOf("monotonic")),
    boottime: String(boottime + offsetOf("boottime")),
    realtime: String(BigInt(Date.now()) * 1_000_000n),
  };
}
