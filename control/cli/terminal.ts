/** What commands write to, and how tables, durations and live phases look. Plain lines when nobody watches. */
import type { PhaseLine } from "../api/admin.ts";

export interface Output {
  write(text: string): unknown;
  isTTY?: boolean | undefined;
}

export interface Terminal {
  out: Output;
  err: Output;
}

const SPIN_MS = 100;
const SPINNER = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const NAME_WIDTH = 18;

/** Columns as wide as their widest cell; the last one is not padded. */
export function table(head: string[], rows: string[][]): string {
  const widths = head.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)),
  );
  return [head, ...rows]
    .map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  "))
    .map((line) => `${line.trimEnd()}\n`)
    .join("");
}

export function milliseconds(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return "-";
  return `${ms < 100 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
}

export function duration(ms: number | undefined): string {
  if (ms === undefined) return "-";
  const seconds = Math.floor(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86_400)} days`;
}

/** Text of others (agent, peers) on one line and without control characters, so that it cannot move the cursor. */
export function plain(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out.
  return text.replace(/[\u0000-\u001f\u007f-\u009f]+/g, " ");
}

/** Phases as they pass: on a terminal the one under way is drawn again and again, elsewhere one line when it is done. */
export class PhaseRenderer {
  readonly #out: Output;
  #running: { phase: string; sinceMs: number } | null = null;
  #timer: NodeJS.Timeout | undefined;
  #frame = 0;

  constructor(out: Output) {
    this.#out = out;
  }

  show(line: PhaseLine): void {
    const phase = plain(line.phase);
    if (line.state === "start") {
      this.#running = { phase, sinceMs: performance.now() };
      if (!this.#out.isTTY) return;
      this.#draw();
      this.#timer ??= setInterval(() => this.#draw(), SPIN_MS);
      return;
    }
    const ms =
      line.ms ?? (this.#running?.phase === phase ? performance.now() - this.#running.sinceMs : undefined);
    const note = line.note === undefined ? "" : `  ${plain(line.note)}`;
    this.#running = null;
    this.clear();
    this.#out.write(`${`✔ ${phase}`.padEnd(NAME_WIDTH)} ${milliseconds(ms).padStart(10)}${note}\n`);
  }

  /** The phase under way, if any, is not going to be done. */
  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    const running = this.#running;
    this.#running = null;
    this.clear();
    if (running === null) return;
    const ms = milliseconds(performance.now() - running.sinceMs);
    this.#out.write(`${`✖ ${running.phase}`.padEnd(NAME_WIDTH)} ${ms.padStart(10)}\n`);
  }

  note(text: string): void {
    this.clear();
    this.#out.write(`${text}\n`);
  }

  #draw(): void {
    const running = this.#running;
    if (running === null) return;
    const spin = SPINNER[this.#frame++ % SPINNER.length];
    const ms = milliseconds(performance.now() - running.sinceMs);
    this.#out.write(`\r\x1b[K${`${spin} ${running.phase}`.padEnd(NAME_WIDTH)} ${ms.padStart(10)}`);
  }

  /** Of the line that is drawn again and again nothing is left: something else is written. */
  clear(): void {
    if (this.#out.isTTY) this.#out.write("\r\x1b[K");
  }
}
