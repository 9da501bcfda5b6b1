/** The part of a head that has arrived, until the rest of it has. Grows by doubling: a byte at a time costs no square. */
const CAPACITY_BYTES_START = 256;

export class PartialBytes {
  #buffer: Buffer;
  #length = 0;

  constructor(capacityBytes = CAPACITY_BYTES_START) {
    this.#buffer = Buffer.allocUnsafeSlow(Math.max(capacityBytes, CAPACITY_BYTES_START));
  }

  get length(): number {
    return this.#length;
  }

  /** What is held: a view, until the next `append`. */
  get bytes(): Buffer {
    return this.#buffer.subarray(0, this.#length);
  }

  append(chunk: Buffer, from: number, to: number): void {
    const length = this.#length + to - from;
    if (length > this.#buffer.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(length, this.#buffer.length * 2));
      this.#buffer.copy(larger, 0, 0, this.#length);
      this.#buffer = larger;
    }
    chunk.copy(this.#buffer, this.#length, from, to);
    this.#length = length;
  }
}
