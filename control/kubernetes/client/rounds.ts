/** Rounds of a level-triggered loop: one at a time, what comes together is done together, and what came meanwhile in the next one. */

/** what comes together is done together */
const QUIET_MS = 100;

export class Rounds {
  readonly #round: () => Promise<void>;
  readonly #signal: AbortSignal;
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> | null = null;
  #isAgain = false;

  /** @param round looks at all there is; is not to reject */
  constructor(round: () => Promise<void>, signal: AbortSignal) {
    this.#round = round;
    this.#signal = signal;
  }

  /** Something may be another now. */
  soon(): void {
    if (this.#signal.aborted) return;
    if (this.#running !== null) {
      this.#isAgain = true;
      return;
    }
    this.#timer ??= setTimeout(() => this.#go(), QUIET_MS);
  }

  /** What failed is tried again, without anything having changed. */
  later(ms: number): void {
    setTimeout(() => this.soon(), ms).unref();
  }

  /** The one under way has ended. */
  async end(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#running;
  }

  #go(): void {
    this.#timer = undefined;
    this.#running = this.#round().finally(() => {
      this.#running = null;
      if (!this.#isAgain) return;
      this.#isAgain = false;
      this.soon();
    });
  }
}
