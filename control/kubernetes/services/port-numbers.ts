/** Port numbers of gateways that are given to Services: by its number a gateway knows whose client comes. */

export const PORT_FIRST = 20_000;
export const PORT_LAST = 29_999;

/** Each is one Service port's at a time. A number that has become free is given out again as late as can be. */
export class PortNumbers {
  readonly #taken = new Set<number>();
  #last: number;

  /** @param last that was given out, in an earlier round: those after it have been free for longest. null: none was */
  constructor(last: number | null) {
    this.#last = last ?? PORT_FIRST - 1;
  }

  /** False: another has it. */
  keep(number: number): boolean {
    if (!isPortNumber(number) || this.#taken.has(number)) return false;
    this.#taken.add(number);
    return true;
  }

  /** null: none is left */
  next(): number | null {
    const count = PORT_LAST - PORT_FIRST + 1;
    if (this.#taken.size >= count) return null;
    do this.#last = this.#last >= PORT_LAST ? PORT_FIRST : this.#last + 1;
    while (this.#taken.has(this.#last));
    this.#taken.add(this.#last);
    return this.#last;
  }
}

export function isPortNumber(number: number): boolean {
  return Number.isInteger(number) && number >= PORT_FIRST && number <= PORT_LAST;
}
