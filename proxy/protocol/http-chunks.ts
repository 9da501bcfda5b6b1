/**
 * Chunked transfer coding (RFC 9112 7.1): where a body so coded ends. Nothing of it is kept. Extensions and trailers are
 * passed over, bounded and without being understood.
 */
import { isTokenByte, isValueByte } from "./http-head.ts";
import type { OpaqueReason } from "./opaque-reason.ts";

export const EXTENSION_BYTES_MAX = 1024;
export const TRAILER_BYTES_MAX = 16 * 1024;
const SIZE_DIGITS_MAX = 16;

const LF = 0x0a;
const CR = 0x0d;
const SEMICOLON = 0x3b;
const COLON = 0x3a;

// places within the coding; numbers, as they travel in a saved observer
const SIZE = 0;
const EXTENSION = 1;
const SIZE_LF = 2;
const DATA = 3;
const DATA_CR = 4;
const DATA_LF = 5;
const TRAILER_START = 6;
const TRAILER_NAME = 7;
const TRAILER_VALUE = 8;
const TRAILER_LF = 9;
const END_LF = 10;
const END = 11;

export class ChunkedBody {
  reason: OpaqueReason | null = null;
  #place = SIZE;
  /** size of the chunk, and then what is left of its data */
  #left = 0;
  /** digits of the size, bytes of the extensions, or bytes of all trailers */
  #count = 0;

  get done(): boolean {
    return this.#place === END;
  }

  /** → place in `bytes` behind what belongs to the body; = `to` unless `done`. `reason` is set when it is none. */
  feed(bytes: Buffer, from: number, to: number): number {
    let i = from;
    while (i < to && this.#place !== END && this.reason === null) {
      if (this.#place === DATA) {
        const length = Math.min(this.#left, to - i);
        this.#left -= length;
        i += length;
        if (this.#left === 0) this.#place = DATA_CR;
      } else {
        this.#take(bytes[i++] as number);
      }
    }
    return i;
  }

  #take(byte: number): void {
    switch (this.#place) {
      case SIZE: {
        const digit = hexOf(byte);
        if (digit >= 0) {
          this.#left = this.#left * 16 + digit;
          if (++this.#count > SIZE_DIGITS_MAX || this.#left > Number.MAX_SAFE_INTEGER)
            this.reason = "chunk-size";
        } else if (this.#count === 0) this.reason = byte === LF ? "bare-lf" : "chunk-size";
        else if (byte === CR) this.#place = SIZE_LF;
        else if (byte === SEMICOLON) {
          this.#place = EXTENSION;
          this.#count = 0;
        } else this.reason = byte === LF ? "bare-lf" : "chunk-size";
        return;
      }
      case EXTENSION:
        if (byte === CR && this.#count > 0) this.#place = SIZE_LF;
        else if (byte === LF) this.reason = "bare-lf";
        else if (!isValueByte(byte) || ++this.#count > EXTENSION_BYTES_MAX) this.reason = "chunk-extension";
        return;
      case SIZE_LF:
        if (byte !== LF) this.reason = "bare-cr";
        this.#count = 0;
        this.#place = this.#left === 0 ? TRAILER_START : DATA;
        return;
      case DATA_CR:
        if (byte !== CR) this.reason = byte === LF ? "bare-lf" : "chunk-end";
        this.#place = DATA_LF;
        return;
      case DATA_LF:
        if (byte !== LF) this.reason = "bare-cr";
        this.#place = SIZE;
        return;
      case END_LF:
        if (byte !== LF) this.reason = "bare-cr";
        this.#place = END;
        return;
      default:
        this.#trailer(byte);
    }
  }

  #trailer(byte: number): void {
    if (++this.#count > TRAILER_BYTES_MAX) {
      this.reason = "trailer";
      return;
    }
    if (byte === LF && this.#place !== TRAILER_LF) {
      this.reason = "bare-lf";
      return;
    }
    switch (this.#place) {
      case TRAILER_START:
        if (byte === CR) this.#place = END_LF;
        else if (isTokenByte(byte)) this.#place = TRAILER_NAME;
        else this.reason = "trailer";
        return;
      case TRAILER_NAME:
        if (byte === COLON) this.#place = TRAILER_VALUE;
        else if (!isTokenByte(byte)) this.reason = "trailer";
        return;
      case TRAILER_VALUE:
        if (byte === CR) this.#place = TRAILER_LF;
        else if (!isValueByte(byte)) this.reason = "trailer";
        return;
      case TRAILER_LF:
        if (byte !== LF) this.reason = "bare-cr";
        this.#place = TRAILER_START;
    }
  }

  /** Three numbers from which `restore` goes on. */
  save(): [place: number, left: number, count: number] {
    return [this.#place, this.#left, this.#count];
  }

  /** null: no such place */
  static restore(place: number, left: number, count: number): ChunkedBody | null {
    if (place >= END || count > TRAILER_BYTES_MAX) return null;
    const body = new ChunkedBody();
    body.#place = place;
    body.#left = left;
    body.#count = count;
    return body;
  }
}

function hexOf(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const lower = byte | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}
