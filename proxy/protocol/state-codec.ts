/**
 * Numbers, flags and byte strings of a saved observer. Big-endian; byte strings carry a u32 length. What is read comes from
 * another node: everything is checked, and nothing is allocated before the bytes that fill it are seen to be there.
 */
import { Buffer } from "node:buffer";
import { HoldfastError } from "#proxy/contract/errors.ts";

export class StateWriter {
  readonly #parts: Buffer[] = [];

  u8(value: number): void {
    this.#parts.push(Buffer.of(value));
  }

  u16(value: number): void {
    this.#parts.push(Buffer.of(value >> 8, value & 0xff));
  }

  flag(value: boolean): void {
    this.u8(value ? 1 : 0);
  }

  /** A whole number up to 2^53 - 1. */
  count(value: number): void {
    const part = Buffer.allocUnsafe(8);
    part.writeDoubleBE(value);
    this.#parts.push(part);
  }

  bytes(value: Buffer): void {
    const length = Buffer.allocUnsafe(4);
    length.writeUInt32BE(value.length);
    this.#parts.push(length, value);
  }

  finish(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

/** Everything wrong is HoldfastError code OBSERVER_INVALID, source "peer". */
export class StateReader {
  readonly #buffer: Buffer;
  #at = 0;

  constructor(buffer: Buffer) {
    this.#buffer = buffer;
  }

  #take(size: number): number {
    const start = this.#at;
    this.check(size <= this.#buffer.length - start, "it ends too early");
    this.#at = start + size;
    return start;
  }

  magic(expected: Buffer): void {
    const start = this.#take(expected.length);
    this.check(
      this.#buffer.subarray(start, this.#at).equals(expected),
      "it is of another version, or no observer",
    );
  }

  u8(most = 0xff): number {
    const value = this.#buffer.readUInt8(this.#take(1));
    this.check(value <= most, "a number is out of range");
    return value;
  }

  u16(most = 0xffff): number {
    const value = this.#buffer.readUInt16BE(this.#take(2));
    this.check(value <= most, "a number is out of range");
    return value;
  }

  flag(): boolean {
    return this.u8(1) === 1;
  }

  count(): number {
    const value = this.#buffer.readDoubleBE(this.#take(8));
    this.check(
      Number.isSafeInteger(value) && value >= 0 && !Object.is(value, -0),
      "a number is out of range",
    );
    return value;
  }

  /** A copy. */
  bytes(most: number): Buffer {
    const length = this.#buffer.readUInt32BE(this.#take(4));
    this.check(length <= most, "a byte string is too long");
    const start = this.#take(length);
    return Buffer.from(this.#buffer.subarray(start, start + length));
  }

  end(): void {
    this.check(this.#at === this.#buffer.length, "it goes on after its end");
  }

  check(condition: boolean, why: string): void {
    if (!condition) throw invalid(why);
  }

  present<T>(value: T | null, why: string): T {
    if (value === null) throw invalid(why);
    return value;
  }
}

function invalid(why: string): HoldfastError {
  return new HoldfastError(`the saved observer is not valid: ${why}; both nodes must run the same version`, {
    code: "OBSERVER_INVALID",
    source: "peer",
  });
}
