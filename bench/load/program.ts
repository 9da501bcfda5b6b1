/**
 * A load program: a process of its own, bound to a CPU, that the benchmark asks one thing at a time over Node's IPC
 * channel. It lives through the whole run, so that every peer is measured by the same warmed-up code.
 */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import type { Stage } from "../stage.ts";

const ANSWER_MS_MAX = 300_000;

type Outcome<Answer> = { answer: Answer } | { error: string };

export class Program<Ask, Answer> {
  readonly #stage: Stage;
  readonly #child: ChildProcess;

  private constructor(stage: Stage, child: ChildProcess) {
    this.#stage = stage;
    this.#child = child;
  }

  /** @param file the program, that calls {@link serve}. Resolves when it does. */
  static async start<Ask, Answer>(
    stage: Stage,
    file: string,
    options: { cpu: number; env?: NodeJS.ProcessEnv },
  ): Promise<Program<Ask, Answer>> {
    const child = stage.spawn([process.execPath, file], { ...options, ipc: true });
    const program = new Program<Ask, Answer>(stage, child);
    await program.#next();
    return program;
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** @throws Error what the program threw, or with its last words when it ends */
  async ask(ask: Ask): Promise<Answer> {
    const outcome = this.#next();
    // One that has just ended cannot be told (EPIPE): its "close" says so.
    if (this.#child.connected) this.#child.send(ask as object, () => {});
    const message = (await outcome) as Outcome<Answer>;
    if ("error" in message) throw new Error(message.error);
    return message.answer;
  }

  /** At once: its sockets are closed by the kernel. */
  kill(): Promise<void> {
    return this.#stage.end(this.#child);
  }

  async #next(): Promise<unknown> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null)
      throw new Error(this.#stage.lastWords(this.#child));
    const over = new AbortController();
    const { signal } = over;
    try {
      const timer = AbortSignal.timeout(ANSWER_MS_MAX);
      return await Promise.race([
        once(this.#child, "message", { signal: AbortSignal.any([signal, timer]) }).then(
          ([message]) => message,
        ),
        once(this.#child, "close", { signal }).then(() => {
          throw new Error(this.#stage.lastWords(this.#child));
        }),
      ]);
    } finally {
      over.abort();
    }
  }
}

/** The program's side. It ends with the benchmark. */
export function serve<Ask, Answer>(handle: (ask: Ask) => Promise<Answer> | Answer): void {
  process.on("message", async (ask) => {
    let outcome: Outcome<Answer>;
    try {
      outcome = { answer: await handle(ask as Ask) };
    } catch (error) {
      outcome = { error: error instanceof Error ? (error.stack ?? error.message) : String(error) };
    }
    process.send?.(outcome);
  });
  process.once("disconnect", () => process.removeAllListeners("message"));
  process.send?.({ answer: "ready" });
}
