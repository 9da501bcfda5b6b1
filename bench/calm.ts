/**
 * Whether anybody else is at work on this machine: how busy its CPUs are while the benchmark itself does nothing, looked at
 * between measurements (/proc/stat, proc(5); time that a hypervisor took away counts as busy).
 */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { median } from "./figures.ts";

const LOOK_MS = 400;
/** share of all CPUs: what a quiet machine does by itself */
const BUSY_MAX = 0.05;
/** … and what a passing job may take, in one look of ten */
const BURST_MAX = 0.2;

interface CpuTime {
  busy: number;
  all: number;
}

export class CalmWatch {
  readonly looks: number[] = [];

  /** Takes a moment. Nothing of the benchmark may be at work meanwhile. */
  async look(): Promise<void> {
    const before = cpuTime(readFileSync("/proc/stat", "utf8"));
    await delay(LOOK_MS);
    const after = cpuTime(readFileSync("/proc/stat", "utf8"));
    if (after.all > before.all) this.looks.push((after.busy - before.busy) / (after.all - before.all));
  }

  get calm(): boolean {
    const bursts = this.looks.filter((share) => share > BURST_MAX).length;
    return this.looks.length === 0 || (median(this.looks) <= BUSY_MAX && bursts * 10 <= this.looks.length);
  }

  /** For whoever reads the figures. */
  describe(): string {
    if (this.looks.length === 0) return "Nobody looked whether the machine was calm.";
    const percent = (share: number): string => `${(share * 100).toFixed(0)} %`;
    return (
      `While the benchmark did nothing, the CPUs were ${percent(median(this.looks))} busy ` +
      `(median of ${this.looks.length} looks; at most ${percent(Math.max(...this.looks))}).`
    );
  }
}

/** Of all CPUs since boot, in clock ticks: user nice system idle iowait irq softirq steal (guest time is in user's). */
export function cpuTime(stat: string): CpuTime {
  const fields = /^cpu +(.*)$/m.exec(stat)?.[1]?.split(" ").map(Number).slice(0, 8) ?? [];
  const all = fields.reduce((sum, ticks) => sum + ticks, 0);
  const [, , , idle = 0, iowait = 0] = fields;
  return { busy: all - idle - iowait, all };
}
