/**
 * The processes of test files, and an end to those that hang. Node's own time limit is a timer in the file's main thread: one that
 * is blocked (`Atomics.wait`, `spawnSync` of what never ends) hears neither it nor a SIGTERM that it has a listener for.
 */
import type { ChildProcess } from "node:child_process";
import { subscribe } from "node:diagnostics_channel";

/** After this long past its limit nothing ends by itself. */
const GRACE_MS = 5_000;
/** … and after this long past SIGTERM, upon which a file closes its laboratories. */
const CLOSE_MS_MAX = 10_000;

export class FileProcesses {
  /** by file: what had to be ended, and why */
  readonly ended = new Map<string, string>();
  readonly #closed: Promise<void>[] = [];
  readonly #silentMsMax: number;
  readonly #stop: AbortSignal;

  /**
   * Watches every process that this one starts from now on with one of `files` as an argument.
   *
   * @param silentMsMax how long a test may take: a file says more often than that what it has come to
   * @param stop aborted when files are sent SIGTERM
   */
  constructor(files: readonly string[], silentMsMax: number, stop: AbortSignal) {
    this.#silentMsMax = silentMsMax;
    this.#stop = stop;
    subscribe("child_process", (message) => {
      const { process: child } = message as { process: ChildProcess };
      child.once("spawn", () => {
        const file = files.find((one) => child.spawnargs.includes(one));
        if (file !== undefined) this.#watch(file, child);
      });
    });
  }

  /** Resolves when no process of a file is left. */
  async over(): Promise<void> {
    await Promise.all(this.#closed);
  }

  #watch(file: string, child: ChildProcess): void {
    const kill = (why: string): void => {
      this.ended.set(file, why);
      child.kill("SIGKILL");
    };
    const silent = setTimeout(
      () => kill(`it said nothing for ${(this.#silentMsMax + GRACE_MS) / 1_000} s`),
      this.#silentMsMax + GRACE_MS,
    );
    const heard = (): unknown => silent.refresh();
    child.stdout?.on("data", heard);
    let deaf: NodeJS.Timeout | undefined;
    const stopped = (): void => {
      deaf = setTimeout(() => kill("it did not end when told to"), CLOSE_MS_MAX);
    };
    if (this.#stop.aborted) stopped();
    else this.#stop.addEventListener("abort", stopped);
    child.once("exit", () => {
      child.stdout?.off("data", heard);
      this.#stop.removeEventListener("abort", stopped);
      clearTimeout(silent);
      clearTimeout(deaf);
    });
    this.#closed.push(this.#closing(file, child));
  }

  /** The runner waits for the end of a file's output, which what the file started may hold open. */
  #closing(file: string, child: ChildProcess): Promise<void> {
    return new Promise((resolve) => {
      child.once("exit", () => {
        const held = setTimeout(() => {
          if (!this.ended.has(file)) this.ended.set(file, "a process that it left holds its output");
          child.stdout?.destroy();
          child.stderr?.destroy();
        }, GRACE_MS);
        child.stdout?.on("data", () => held.refresh());
        child.once("close", () => {
          clearTimeout(held);
          resolve();
        });
      });
    });
  }
}
