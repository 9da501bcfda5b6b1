/**
 * What the client has sent and the application has not answered: copies of the bytes, so that they can be sent again to
 * another instance of the application. Offsets are those of the session's inbound stream.
 *
 *   base ──── kept ──── gapFrom (or the end)
 *
 * Bounded: what does not fit is not kept, and neither is anything behind it until the log is empty again. So what is
 * kept has no holes.
 */
import assert from "node:assert/strict";

const NO_BYTES: Buffer = Buffer.alloc(0);
/** pieces that are joined, or a client that sends one byte at a time would cost a hundred times as much */
const JOINED_BYTES_MAX = 4096;

export class InboundLog {
  readonly #bytesMax: number;
  readonly #chunks: Buffer[] = [];
  #base: number;
  #end: number;
  #keptBytes = 0;
  /** offset from which on nothing is kept; -1: everything is */
  #gapFrom = -1;

  constructor(bytesMax: number, base = 0) {
    this.#bytesMax = bytesMax;
    this.#base = base;
    this.#end = base;
  }

  get base(): number {
    return this.#base;
  }
  get end(): number {
    return this.#end;
  }
  get keptBytes(): number {
    return this.#keptBytes;
  }

  append(chunk: Buffer): void {
    if (this.#gapFrom < 0 && this.#keptBytes + chunk.length <= this.#bytesMax) {
      const last = this.#chunks.at(-1);
      if (last !== undefined && last.length + chunk.length <= JOINED_BYTES_MAX)
        this.#chunks[this.#chunks.length - 1] = Buffer.concat([last, chunk]);
      else this.#chunks.push(Buffer.from(chunk));
      this.#keptBytes += chunk.length;
    } else if (this.#gapFrom < 0) {
      this.#gapFrom = this.#end;
    }
    this.#end += chunk.length;
  }

  /** What lies between the end and `offset` was not kept. */
  skipTo(offset: number): void {
    if (offset <= this.#end) return;
    if (this.#gapFrom < 0) this.#gapFrom = this.#end;
    this.#end = offset;
  }

  /** Nothing before `offset` is needed any more. */
  dropTo(offset: number): void {
    assert.ok(offset <= this.#end);
    if (offset === this.#end) {
      // The usual case: everything is answered.
      this.#chunks.length = 0;
      this.#keptBytes = 0;
      this.#base = offset;
      this.#gapFrom = -1;
      return;
    }
    while (this.#chunks.length > 0 && this.#base < offset) {
      const first = this.#chunks[0] as Buffer;
      const gone = Math.min(first.length, offset - this.#base);
      this.#base += gone;
      this.#keptBytes -= gone;
      if (gone === first.length) this.#chunks.shift();
      else this.#chunks[0] = first.subarray(gone);
    }
    if (this.#base < offset) {
      this.#base = offset;
      this.#gapFrom = offset;
    }
  }

  /** Whether [from, to) can be had. */
  covers(from: number, to: number): boolean {
    return from >= this.#base && to <= (this.#gapFrom < 0 ? this.#end : this.#gapFrom);
  }

  /** A copy, or a view nobody changes. */
  slice(from: number, to: number): Buffer {
    assert.ok(this.covers(from, to), `${from}-${to} is not in the log`);
    if (from === to) return NO_BYTES;
    const parts: Buffer[] = [];
    let at = this.#base;
    for (const chunk of this.#chunks) {
      const start = Math.max(from - at, 0);
      const stop = Math.min(to - at, chunk.length);
      if (start < stop) parts.push(chunk.subarray(start, stop));
      at += chunk.length;
    }
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
  }
}
