/**
 * What an end of a link has framed and the other has not acknowledged yet, in order: it is framed again on another connection.
 *
 * Large chunks are kept as they are; small ones are copied together, since one in a buffer of its own costs a hundred times what is in
 * it, and one cut from Node's pool keeps 64 kB.
 */
import assert from "node:assert/strict";

const SMALL_BYTES = 2_048;
const BLOCK_BYTES = 8_192;

export class Kept {
  #chunks: Buffer[] = [];
  /** of the last chunk, where it is a block of ours: the block, and how much of it is used */
  #block: Buffer | null = null;
  #used = 0;
  #bytes = 0;

  get bytes(): number {
    return this.#bytes;
  }

  /** @param chunk never changed afterwards */
  push(chunk: Buffer): void {
    this.#bytes += chunk.length;
    if (chunk.length > SMALL_BYTES) {
      this.#chunks.push(chunk);
      this.#block = null;
      return;
    }
    if (this.#block === null || this.#used + chunk.length > BLOCK_BYTES) {
      this.#block = Buffer.allocUnsafeSlow(BLOCK_BYTES);
      this.#used = 0;
      this.#chunks.push(this.#block.subarray(0, 0));
    }
    const last = this.#chunks[this.#chunks.length - 1] as Buffer;
    const from = this.#used - last.length;
    chunk.copy(this.#block, this.#used);
    this.#used += chunk.length;
    this.#chunks[this.#chunks.length - 1] = this.#block.subarray(from, this.#used);
  }

  /** The first `bytes` are with the other end. */
  drop(bytes: number): void {
    assert(bytes >= 0 && bytes <= this.#bytes, "no more is acknowledged than is kept");
    this.#bytes -= bytes;
    if (this.#bytes === 0) {
      this.#chunks = [];
      this.#block = null;
      return;
    }
    let left = bytes;
    let gone = 0;
    while (left > 0) {
      const chunk = this.#chunks[gone] as Buffer;
      if (chunk.length > left) {
        this.#chunks[gone] = chunk.subarray(left);
        break;
      }
      left -= chunk.length;
      gone++;
    }
    if (gone > 0) this.#chunks.splice(0, gone);
  }

  chunks(): readonly Buffer[] {
    return this.#chunks;
  }
}
