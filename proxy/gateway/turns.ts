/** Lets so many pieces of work run at a time; the others wait for their turn, in order. */
export class Turns {
  readonly #max: number;
  readonly #msMax: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  /** @param msMax after which a piece of work no longer keeps others waiting */
  constructor(max: number, msMax: number) {
    this.#max = max;
    this.#msMax = msMax;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#max) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running++;
    let isOver = false;
    const over = (): void => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    };
    const timer = setTimeout(over, this.#msMax);
    timer.unref();
    try {
      return await work();
    } finally {
      over();
    }
  }
}
