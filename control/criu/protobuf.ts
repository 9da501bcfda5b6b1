/**
 * The Protocol Buffers wire format, as far as CRIU uses it (https://protobuf.dev/programming-guides/encoding/). Pure.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";

/** A field to encode: number → value. Booleans and numbers are varints; strings, bytes and messages length-delimited. */
export type Field = [number: number, value: boolean | number | bigint | string | Buffer | Field[]];

export function encodeFields(fields: Field[]): Buffer {
  const parts: Buffer[] = [];
  for (const [number, value] of fields) {
    if (typeof value === "boolean" || typeof value === "number" || typeof value === "bigint") {
      parts.push(encodeVarint(BigInt(number) << 3n), encodeVarint(BigInt.asUintN(64, BigInt(value))));
    } else {
      const bytes =
        typeof value === "string" ? Buffer.from(value) : Buffer.isBuffer(value) ? value : encodeFields(value);
      parts.push(encodeVarint((BigInt(number) << 3n) | 2n), encodeVarint(BigInt(bytes.length)), bytes);
    }
  }
  return Buffer.concat(parts);
}

function encodeVarint(value: bigint): Buffer {
  const bytes: number[] = [];
  let rest = value;
  do {
    const low = Number(rest & 0x7fn);
    rest >>= 7n;
    bytes.push(rest === 0n ? low : low | 0x80);
  } while (rest !== 0n);
  return Buffer.from(bytes);
}

export interface DecodedField {
  number: number;
  isVarint: boolean;
  /** of a varint, else 0 */
  varint: bigint;
  /** of what is length-delimited, else empty */
  bytes: Buffer;
  /** the whole field, with its key */
  raw: Buffer;
}

export function decodeFields(bytes: Buffer): DecodedField[] {
  const fields: DecodedField[] = [];
  let at = 0;
  const malformed = (): HoldfastError =>
    fail("CRIU_PROTOCOL", "malformed Protocol Buffers message from CRIU");
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = bytes[at++];
      if (byte === undefined) throw malformed();
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw malformed();
  };
  while (at < bytes.length) {
    const from = at;
    const key = varint();
    const field: DecodedField = {
      number: Number(key >> 3n),
      isVarint: (key & 7n) === 0n,
      varint: 0n,
      bytes: Buffer.alloc(0),
      raw: bytes,
    };
    if (field.isVarint) field.varint = varint();
    else {
      const wire = Number(key & 7n);
      const length = wire === 2 ? Number(varint()) : wire === 1 ? 8 : wire === 5 ? 4 : -1;
      if (length < 0 || at + length > bytes.length) throw malformed();
      field.bytes = bytes.subarray(at, at + length);
      at += length;
    }
    field.raw = bytes.subarray(from, at);
    fields.push(field);
  }
  return fields;
}

/** The message in which each field of that number has what `change` makes of it; all else is the same byte for byte. */
export function changeField(message: Buffer, wanted: number, change: (bytes: Buffer) => Buffer): Buffer {
  return Buffer.concat(
    decodeFields(message).map(({ number, bytes, raw }) =>
      number === wanted ? encodeFields([[wanted, change(bytes)]]) : raw,
    ),
  );
}
