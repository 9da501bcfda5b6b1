/**
 * The Internet sockets in CRIU's `files.img`, read and rewritten (images/fdinfo.proto and images/sk-inet.proto of CRIU, MIT).
 * CRIU binds each of them to the address it had, which another node may not have.
 *
 * Only fields that change are written anew; everything else, also what this file does not know, stays byte for byte. Pure:
 * bytes in, bytes out.
 */
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { addressBytes, formatAddress } from "#proxy/kernel/address-text.ts";
import { decodeImage, encodeImage } from "./image-file.ts";
import { type DecodedField, decodeFields, encodeFields, type Field } from "./protobuf.ts";

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

/** @throws HoldfastError `CRIU_IMAGE`, `CRIU_PROTOCOL` */
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
 * @throws HoldfastError `CRIU_IMAGE`, `CRIU_PROTOCOL`
 */
export function rewriteInetSockets(
  image: Buffer,
  change: (socket: InetSocketImage) => InetSocketChange | null,
): Buffer {
  const entries = decodeImage("files", image);
  return encodeImage(
    "files",
    entries.map((entry) => rewriteEntry(entry, change)),
  );
}

function rewriteEntry(entry: Buffer, change: (socket: InetSocketImage) => InetSocketChange | null): Buffer {
  const fields = decodeFields(entry);
  const inet = fields.find((field) => field.number === ENTRY_INET);
  if (inet === undefined) return entry;
  const wanted = change(readSocket(inet.bytes));
  if (wanted === null) return entry;
  const changed = encodeFields([[ENTRY_INET, written(inet.bytes, wanted)]]);
  return Buffer.concat(fields.map((field) => (field === inet ? changed : field.raw)));
}

function readSocket(message: Buffer): InetSocketImage {
  const fields = decodeFields(message);
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
      : decodeFields(options.bytes).find((field) => field.number === OPTION_REUSE_ADDRESS);
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
  for (const field of decodeFields(message)) if (!given.has(field.number)) parts.push(field.raw);
  parts.push(
    encodeFields([
      [INET_STATE, wanted.state],
      [INET_LOCAL_PORT, wanted.local.port],
      [INET_REMOTE_PORT, wanted.remote.port],
      ...addressFields(INET_LOCAL_ADDRESS, wanted.local.address),
      ...addressFields(INET_REMOTE_ADDRESS, wanted.remote.address),
    ]),
  );
  return Buffer.concat(parts);
}

/** CRIU's `repeated uint32`: four bytes in network order, read as a number of this machine. */
function addressFields(number: number, address: string): Field[] {
  const bytes = addressBytes(address);
  const fields: Field[] = [];
  for (let at = 0; at < bytes.length; at += 4) fields.push([number, bytes.readUInt32LE(at)]);
  return fields;
}

/** One number of an unpacked repeated field, or all of a packed one. */
function words32(field: DecodedField): number[] {
  if (field.bytes.length === 0) return [Number(BigInt.asUintN(32, field.varint))];
  // a packed field is varints without keys: given keys, they read like any other
  const keyed: Buffer[] = [];
  for (let at = 0; at < field.bytes.length; ) {
    let end = at;
    while ((field.bytes[end] ?? 0) >= 0x80) end++;
    keyed.push(Buffer.from([1 << 3]), field.bytes.subarray(at, end + 1));
    at = end + 1;
  }
  return decodeFields(Buffer.concat(keyed)).map(({ varint }) => Number(BigInt.asUintN(32, varint)));
}
