/**
 * Numbers, flags, strings and byte strings as bytes, for what travels between nodes. Big-endian; a string carries a u8
 * length, a byte string a u32 one; a count is a double, exact up to 2^53 - 1. What is read is checked, and nothing is
 * allocated before the bytes that fill it are seen to be there.
 */
import { strict as assert } from "node:assert";
import { isUtf8 } from "node:buffer";
import type { HoldfastError } from "./errors.ts";

const STRING_BYTES_MAX = 255;

/** Shape and ranges are the caller's promise: a breach is our own bug (AssertionError). */
export class ByteWriter {
  #buffer: Buffer;
  #at = 0;

  /** @param bytesStart room at first; it grows */
  constructor(bytesStart: number) {
    this.#buffer = Buffer.allocUnsafe(bytesStart);
  }

  #reserve(size: number): number {
    const start = this.#at;
    this.#at += size;
    if (this.#at > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#at));
      this.#buffer.copy(larger, 0, 0, start);
      this.#buffer = larger;
    }
    return start;
  }

  u8(value: number): void {
    const at = this.#reserveThen(1, value, 0xff);
    this.#buffer.writeUInt8(value, at);
  }

  u16(value: number): void {
    const at = this.#reserveThen(2, value, 0xffff);
    this.#buffer.writeUInt16BE(value, at);
  }

  u32(value: number): void {
    const at = this.#reserveThen(4, value, 0xffffffff);
    this.#buffer.writeUInt32BE(value, at);
  }

  /** A whole number up to 2^53 - 1. */
  count(value: number): void {
    const at = this.#reserveThen(8, value, Number.MAX_SAFE_INTEGER);
    this.#buffer.writeDoubleBE(value, at);
  }

  flag(value: boolean): void {
    this.u8(value ? 1 : 0);
  }

  choice<T extends string>(value: T, choices: readonly T[]): void {
    const index = choices.indexOf(value);
    if (index < 0) assert.fail(`"${value}" has no number on the wire`);
    this.u8(index);
  }

  string(value: string): void {
    const size = Buffer.byteLength(value);
    if (size > STRING_BYTES_MAX) assert.fail(`"${value}" is longer than ${STRING_BYTES_MAX} bytes`);
    this.u8(size);
    const at = this.#reserve(size);
    this.#buffer.write(value, at);
  }

  bytes(value: Buffer): void {
    this.u32(value.length);
    if (value.length > 0) this.raw(value);
  }

  raw(value: Buffer): void {
    const start = this.#reserve(value.length);
    value.copy(this.#buffer, start);
  }

  /** The result is the caller's. */
  finish(): Buffer {
    return this.#buffer.subarray(0, this.#at);
  }

  #reserveThen(size: number, value: number, most: number): number {
    if (!Number.isInteger(value) || value < 0 || value > most) {
      // not `assert(condition, text)`: the text would be made for every field of every leg
      assert.fail(`${value} is not a whole number up to ${most}`);
    }
    return this.#reserve(size);
  }
}

/** Everything wrong is the error that `invalid` makes of the reason; byte strings are views of `buffer`. */
export class ByteReader {
  readonly #buffer: Buffer;
  readonly #invalid: (why: string) => HoldfastError;
  #at: number;

  constructor(buffer: Buffer, invalid: (why: string) => HoldfastError, at = 0) {
    this.#buffer = buffer;
    this.#invalid = invalid;
    this.#at = at;
  }

  #take(size: number): number {
    const start = this.#at;
    this.check(size <= this.#buffer.length - start, "it ends too early");
    this.#at = start + size;
    return start;
  }

  check(condition: boolean, why: string): void {
    if (!condition) throw this.#invalid(why);
  }

  present<T>(value: T | null, why: string): T {
    if (value === null) throw this.#invalid(why);
    return value;
  }

  magic(expected: Buffer, why: string): void {
    const start = this.#take(expected.length);
    this.check(this.#buffer.subarray(start, this.#at).equals(expected), why);
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

  u32(): number {
    return this.#buffer.readUInt32BE(this.#take(4));
  }

  count(): number {
    const value = this.#buffer.readDoubleBE(this.#take(8));
    this.check(
      Number.isSafeInteger(value) && value >= 0 && !Object.is(value, -0),
      "a number is out of range",
    );
    return value;
  }

  flag(): boolean {
    const value = this.u8();
    this.check(value <= 1, "a flag is neither 0 nor 1");
    return value === 1;
  }

  choice<T extends string>(choices: readonly T[]): T {
    return this.present(choices[this.u8()] ?? null, "an unknown state");
  }

  string(): string {
    const size = this.u8();
    const start = this.#take(size);
    const bytes = this.#buffer.subarray(start, start + size);
    this.check(isUtf8(bytes), "a string is not UTF-8");
    return bytes.toString("utf8");
  }

  bytes(most = 0xffffffff): Buffer {
    const size = this.u32();
    this.check(size <= most, "a byte string is too long");
    const start = this.#take(size);
    return this.#buffer.subarray(start, start + size);
  }

  end(why = "it goes on after its end"): void {
    this.check(this.#at === this.#buffer.length, why);
  }
}
