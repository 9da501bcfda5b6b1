/** How busy one CPU was, whoever used it (/proc/stat, proc(5); in ticks of 10 ms, so for a second and more). */
import { readFileSync } from "node:fs";

/** user nice system idle iowait irq softirq steal */
const FIELDS = 8;

export class CpuWatch {
  readonly #cpu: number;
  readonly #start: { idle: number; all: number };

  constructor(cpu: number) {
    this.#cpu = cpu;
    this.#start = this.#now();
  }

  /** Share of the time since it was made. */
  read(): number {
    const { idle, all } = this.#now();
    return all === this.#start.all ? 0 : 1 - (idle - this.#start.idle) / (all - this.#start.all);
  }

  #now(): { idle: number; all: number } {
    const line = new RegExp(`^cpu${this.#cpu} (.*)$`, "m").exec(readFileSync("/proc/stat", "utf8"))?.[1];
    const ticks = line?.split(" ").slice(0, FIELDS).map(Number) ?? [];
    const [, , , idle = 0, iowait = 0] = ticks;
    return { idle: idle + iowait, all: ticks.reduce((sum, each) => sum + each, 0) };
  }
}
