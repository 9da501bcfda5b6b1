/** What sendmsg(2) and recvmsg(2) take beside a message's bytes (cmsg(3)). */
import { addressOf } from "./libc.ts";

export const CONTROL_HEADER_BYTES = 16;
const MESSAGE_HEADER_BYTES = 56;
const CONTROL_LENGTH_AT = 40;
const ALIGNMENT = 8;

/** struct msghdr with one part; the buffers must live as long as it is used. */
export function messageHeader(
  name: Buffer | null,
  part: Buffer,
  control: Buffer,
): { header: Buffer; vector: Buffer } {
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(addressOf(part), 0);
  vector.writeBigUInt64LE(BigInt(part.length), 8);
  const header = Buffer.alloc(MESSAGE_HEADER_BYTES);
  if (name !== null) {
    header.writeBigUInt64LE(addressOf(name), 0);
    header.writeUInt32LE(name.length, 8);
  }
  header.writeBigUInt64LE(addressOf(vector), 16);
  header.writeBigUInt64LE(1n, 24);
  header.writeBigUInt64LE(addressOf(control), 32);
  header.writeBigUInt64LE(BigInt(control.length), CONTROL_LENGTH_AT);
  return { header, vector };
}

/** The bytes of one that came, by its level and type; null: none did. */
export function controlMessage(header: Buffer, control: Buffer, level: number, type: number): Buffer | null {
  const length = Number(header.readBigUInt64LE(CONTROL_LENGTH_AT));
  for (let at = 0; at + CONTROL_HEADER_BYTES <= length; ) {
    const size = Number(control.readBigUInt64LE(at));
    if (size < CONTROL_HEADER_BYTES) break;
    if (control.readInt32LE(at + 8) === level && control.readInt32LE(at + 12) === type)
      return control.subarray(at + CONTROL_HEADER_BYTES, at + size);
    at += Math.ceil(size / ALIGNMENT) * ALIGNMENT;
  }
  return null;
}
