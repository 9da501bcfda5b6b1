/**
 * The Internet sockets in CRIU's `files.img`, read and rewritten (images/fdinfo.proto and images/sk-inet.proto of CRIU, MIT).
 * CRIU binds each of them to the address it had, which another node may not have.
 *
 * Layout: two magics (u32 LE), then u32 LE length and file_entry, again and again. Only fields that change are written anew;
 * everything else, also what this file does not know, stays byte for byte. Pure: bytes in, bytes out.
 */
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { addressBytes, formatAddress } from "#proxy/tcp/kernel.ts";

const COMMON_MAGIC = 0x54564319;
const FILES_MAGIC = 0x56303138;
const HEAD_BYTES = 8;
/** include/uapi/linux/in.h, asm-generic: the families CRIU writes */
const AF_INET = 2;

const ENTRY_INET = 4;
const INET_INO = 2;
const INET_FAMILY = 3;
const INET_TYPE = 4;
const INET_PROTOCOL = 5;
const INET_STATE = 6;
const INET_LOCAL_PORT = 7;
const INET_REMOTE_PORT = 8;
const INET_LOCAL_ADDRESS = 11;
const INET_REMOTE_ADDRESS = 12;
const INET_OPTIONS = 14;
const INET_SHUTDOWN = 19;
const OPTION_REUSE_ADDRESS = 7;

export interface InetSocketImage {
  /** at the source */
  inode: number;
  /** SOCK_STREAM, … */
  type: number;
  /** IPPROTO_TCP, … */
  protocol: number;
  /** include/net/tcp_states.h */
  state: number;
  /** the unspecified address and port 0 where there is none */
  local: Endpoint;
  remote: Endpoint;
  reuseAddress: boolean;
}

export interface InetSocketChange {
  local: Endpoint;
  remote: Endpoint;
  state: number;
  /** false: neither side is shut down */
  keepShutdown: boolean;
}

/** @throws HoldfastError `FILES_IMAGE_INVALID` */
export function inetSockets(image: Buffer): InetSocketImage[] {
  const sockets: InetSocketImage[] = [];
  rewriteInetSockets(image, (socket) => {
    sockets.push(socket);
    return null;
  });
  return sockets;
}

/**
 * The image with each socket as `change` wants it; null leaves it as it is.
 * @throws HoldfastError `FILES_IMAGE_INVALID`
 */
export function rewriteInetSockets(
  image: Buffer,
  change: (socket: InetSocketImage) => InetSocketChange | null,
): Buffer {
  if (
    image.length < HEAD_BYTES ||
    image.readUInt32LE(0) !== COMMON_MAGIC ||
    image.readUInt32LE(4) !== FILES_MAGIC
  )
    throw invalid();
  const parts: Buffer[] = [image.subarray(0, HEAD_BYTES)];
  for (let at = HEAD_BYTES; at < image.length; ) {
    if (at + 4 > image.length) throw invalid();
    const end = at + 4 + image.readUInt32LE(at);
    if (end > image.length) throw invalid();
    parts.push(rewriteEntry(image.subarray(at, end), change));
    at = end;
  }
  return Buffer.concat(parts);
}

/** `entry` with its length before it. */
function rewriteEntry(entry: Buffer, change: (socket: InetSocketImage) => InetSocketChange | null): Buffer {
  const fields = fieldsOf(entry.subarray(4));
  const inet = fields.find((field) => field.number === ENTRY_INET);
  if (inet === undefined) return entry;
  const socket = readSocket(inet.bytes);
  const wanted = change(socket);
  if (wanted === null) return entry;
  const message = Buffer.concat(
    fields.map((field) => (field === inet ? bytesField(ENTRY_INET, written(inet.bytes, wanted)) : field.raw)),
  );
  const length = Buffer.alloc(4);
  length.writeUInt32LE(message.length, 0);
  return Buffer.concat([length, message]);
}

function readSocket(message: Buffer): InetSocketImage {
  const fields = fieldsOf(message);
  const number = (wanted: number): number =>
    Number(fields.findLast((field) => field.number === wanted)?.varint ?? 0n);
  const isIPv4 = number(INET_FAMILY) === AF_INET;
  const address = (wanted: number): string => {
    const words = fields.filter((field) => field.number === wanted).flatMap(words32);
    const bytes = Buffer.alloc(16);
    words.slice(0, 4).forEach((word, index) => void bytes.writeUInt32LE(word, index * 4));
    return formatAddress(bytes.subarray(0, isIPv4 ? 4 : 16));
  };
  const options = fields.find((field) => field.number === INET_OPTIONS);
  const reuse =
    options === undefined
      ? undefined
      : fieldsOf(options.bytes).find((field) => field.number === OPTION_REUSE_ADDRESS);
  return {
    inode: number(INET_INO),
    type: number(INET_TYPE),
    protocol: number(INET_PROTOCOL),
    state: number(INET_STATE),
    local: { address: address(INET_LOCAL_ADDRESS), port: number(INET_LOCAL_PORT) },
    remote: { address: address(INET_REMOTE_ADDRESS), port: number(INET_REMOTE_PORT) },
    reuseAddress: reuse?.varint === 1n,
  };
}

function written(message: Buffer, wanted: InetSocketChange): Buffer {
  const parts: Buffer[] = [];
  const given = new Set([
    INET_STATE,
    INET_LOCAL_PORT,
    INET_REMOTE_PORT,
    INET_LOCAL_ADDRESS,
    INET_REMOTE_ADDRESS,
    ...(wanted.keepShutdown ? [] : [INET_SHUTDOWN]),
  ]);
  for (const field of fieldsOf(message)) if (!given.has(field.number)) parts.push(field.raw);
  parts.push(
    varintField(INET_STATE, wanted.state),
    varintField(INET_LOCAL_PORT, wanted.local.port),
    varintField(INET_REMOTE_PORT, wanted.remote.port),
    ...addressFields(INET_LOCAL_ADDRESS, wanted.local.address),
    ...addressFields(INET_REMOTE_ADDRESS, wanted.remote.address),
  );
  return Buffer.concat(parts);
}

/** CRIU's `repeated uint32`: four bytes in network order, read as a number of this machine. */
function addressFields(number: number, address: string): Buffer[] {
  const bytes = addressBytes(address);
  const fields: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += 4) fields.push(varintField(number, bytes.readUInt32LE(at)));
  return fields;
}

// ---- Protocol Buffers (https://protobuf.dev/programming-guides/encoding/)

interface Field {
  number: number;
  varint: bigint;
  /** of a length-delimited field */
  bytes: Buffer;
  /** with its key */
  raw: Buffer;
}

function fieldsOf(message: Buffer): Field[] {
  const fields: Field[] = [];
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = message[at++];
      if (byte === undefined) throw invalid();
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw invalid();
  };
  while (at < message.length) {
    const from = at;
    const key = varint();
    const wire = Number(key & 7n);
    let value = 0n;
    let bytes: Buffer = Buffer.alloc(0);
    if (wire === 0) value = varint();
    else {
      const length = wire === 2 ? Number(varint()) : wire === 1 ? 8 : wire === 5 ? 4 : -1;
      if (length < 0 || at + length > message.length) throw invalid();
      bytes = message.subarray(at, at + length);
      at += length;
    }
    fields.push({ number: Number(key >> 3n), varint: value, bytes, raw: message.subarray(from, at) });
  }
  return fields;
}

/** One number of an unpacked repeated field, or all of a packed one. */
function words32(field: Field): number[] {
  if (field.bytes.length === 0) return [Number(BigInt.asUintN(32, field.varint))];
  // a packed field is varints without keys: given keys, they read like any other
  const keyed: Buffer[] = [];
  for (let at = 0; at < field.bytes.length; ) {
    let end = at;
    while ((field.bytes[end] ?? 0) >= 0x80) end++;
    keyed.push(Buffer.from([1 << 3]), field.bytes.subarray(at, end + 1));
    at = end + 1;
  }
  return fieldsOf(Buffer.concat(keyed)).map(({ varint }) => Number(BigInt.asUintN(32, varint)));
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  do {
    const low = rest % 128;
    rest = Math.floor(rest / 128);
    bytes.push(rest === 0 ? low : low | 0x80);
  } while (rest !== 0);
  return Buffer.from(bytes);
}

function varintField(number: number, value: number): Buffer {
  return Buffer.concat([varint(number * 8), varint(value)]);
}

function bytesField(number: number, bytes: Buffer): Buffer {
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

function invalid(): HoldfastError {
  return new HoldfastError("files.img is not what this version of CRIU writes", {
    code: "FILES_IMAGE_INVALID",
    source: "criu",
  });
}
