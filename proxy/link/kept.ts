/**
 * What an end of a link has framed and the other has not acknowledged yet, in order: it is framed again on another connection.
 *
 * Large chunks are kept as they are; small ones are copied together, since one in a buffer of its own costs a hundred times what is in
 * it, and one cut from Node's pool keeps 64 kB.
 */
import assert from "node:assert/strict";

const SMALL_BYTES = 1_024;
const BLOCK_BYTES = 8_192;
/** of a link that says little at a time, and has had it acknowledged */
const FIRST_BLOCK_BYTES = 1_024;

export class Kept {
  #chunks: Buffer[] = [];
  /** what follows them: small ones, copied together; of it these bytes count */
  #block: Buffer | null = null;
  #from = 0;
  #to = 0;
  #bytes = 0;

  get bytes(): number {
    return this.#bytes;
  }

  /** @param chunk never changed afterwards */
  push(chunk: Buffer): void {
    this.#bytes += chunk.length;
    if (chunk.length > SMALL_BYTES) {
      this.#closeBlock();
      this.#chunks.push(chunk);
      return;
    }
    if (this.#block !== null && this.#to + chunk.length > this.#block.length) this.#closeBlock();
    if (this.#block === null) {
      const isFirst = this.#chunks.length === 0;
      this.#block = Buffer.allocUnsafeSlow(isFirst ? FIRST_BLOCK_BYTES : BLOCK_BYTES);
    }
    this.#to += chunk.copy(this.#block, this.#to);
  }

  /** The first `bytes` are with the other end. */
  drop(bytes: number): void {
    assert(bytes >= 0 && bytes <= this.#bytes, "no more is acknowledged than is kept");
    this.#bytes -= bytes;
    let left = bytes;
    let gone = 0;
    while (left > 0 && gone < this.#chunks.length) {
      const chunk = this.#chunks[gone] as Buffer;
      if (chunk.length > left) {
        this.#chunks[gone] = chunk.subarray(left);
        left = 0;
      } else {
        left -= chunk.length;
        gone++;
      }
    }
    if (gone > 0) this.#chunks.splice(0, gone);
    this.#from += left;
    if (this.#bytes === 0) this.#closeBlock();
  }

  /** Not to be changed; until something is kept or dropped. */
  chunks(): readonly Buffer[] {
    this.#closeBlock();
    return this.#chunks;
  }

  #closeBlock(): void {
    if (this.#block !== null && this.#to > this.#from)
      this.#chunks.push(this.#block.subarray(this.#from, this.#to));
    this.#block = null;
    this.#from = 0;
    this.#to = 0;
  }
}
