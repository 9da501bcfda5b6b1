/** What the demo shows. */
import { styleText } from "node:util";

/** Lines for a person, on stdout; without --json only. The last line is live on a terminal. */
export class Screen {
  readonly #quiet: boolean;
  readonly #terminal = process.stdout.isTTY === true;
  #live = false;

  constructor(quiet: boolean) {
    this.#quiet = quiet;
  }

  line(text = ""): void {
    if (this.#quiet) return;
    this.#clear();
    process.stdout.write(`${text}\n`);
  }

  live(text: string): void {
    if (this.#quiet || !this.#terminal) return;
    this.#clear();
    process.stdout.write(text.slice(0, (process.stdout.columns ?? 80) - 1));
    this.#live = true;
  }

  paint(style: "bold" | "dim" | "green" | "red" | "cyan", text: string): string {
    return styleText(style, text, { stream: process.stdout });
  }

  #clear(): void {
    if (this.#live) process.stdout.write("\r\x1b[K");
    this.#live = false;
  }
}
