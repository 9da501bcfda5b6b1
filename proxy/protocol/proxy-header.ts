/**
 * The header by which a load balancer says whom a connection is from: the PROXY protocol, versions 1 and 2. Pure.
 * Source: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
 *
 * Strict, as it demands: what is not exactly a header is invalid, and is known to be with the first byte that is wrong. A checksum
 * (PP2_TYPE_CRC32C) is compared where there is one. What else the header tells (TLS, ALPN, the destination) is not used.
 */
import { Buffer } from "node:buffer";
import { addressBytes, endpointText, isAddress } from "../contract/address.ts";
import type { Endpoint } from "../contract/snapshot.ts";

/** the longest line of version 1, with its CRLF */
const LINE_BYTES_MAX = 107;
/** of version 2; the format allows 65,551, of which a client's certificate is the most that anybody sends */
export const HEADER_BYTES_MAX = 16 * 1024;

const SIGNATURE = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1");
const WORD = Buffer.from("PROXY ", "latin1");
const FIXED_BYTES = 16;
const LF = 0x0a;
const COMMAND = { local: 0, proxy: 1 } as const;
const FAMILY = { unspecified: 0, inet: 1, inet6: 2, unix: 3 } as const;
const STREAM = 1;
const TRANSPORT_MAX = 2;
/** of both ends, by family */
const ADDRESS_BYTES = [0, 12, 36, 216] as const;
const TLV_HEAD_BYTES = 3;
const TLV_CRC32C = 0x03;
const TLV_UNIQUE_ID = 0x05;
const UNIQUE_ID_BYTES_MAX = 128;

export type ProxyHeader =
  | { is: "incomplete" }
  | { is: "invalid"; why: string }
  /** `client`: "address:port"; null: the connection is the sender's own, or from somebody without an IP address */
  | { is: "complete"; bytes: number; client: string | null };

const INCOMPLETE: ProxyHeader = { is: "incomplete" };

/** @param bytes the first of a connection; what follows the header is left alone */
export function readProxyHeader(bytes: Buffer): ProxyHeader {
  if (bytes.length === 0) return INCOMPLETE;
  if (bytes[0] === WORD[0]) return readLine(bytes);
  return bytes[0] === SIGNATURE[0] ? readBinary(bytes) : invalid("it begins with something else");
}

function invalid(why: string): ProxyHeader {
  return { is: "invalid", why };
}

function beginsAs(bytes: Buffer, whole: Buffer): boolean {
  const length = Math.min(bytes.length, whole.length);
  return bytes.compare(whole, 0, length, 0, length) === 0;
}

// ---- version 1

function readLine(bytes: Buffer): ProxyHeader {
  if (!beginsAs(bytes, WORD)) return invalid("it begins with something else");
  const at = bytes.subarray(0, LINE_BYTES_MAX).indexOf(LF);
  if (at < 0) {
    return bytes.length < LINE_BYTES_MAX ? INCOMPLETE : invalid(`its line is over ${LINE_BYTES_MAX} bytes`);
  }
  const line = bytes.toString("latin1", 0, at + 1);
  if (line.indexOf("\r") !== at - 1) return invalid("its line does not end with CRLF");
  const words = line.slice(0, -2).split(" ");
  const [, transport] = words;
  const complete = (client: string | null): ProxyHeader => ({ is: "complete", bytes: at + 1, client });
  // what follows the word is to be ignored
  if (transport === "UNKNOWN") return complete(null);
  if (transport !== "TCP4" && transport !== "TCP6") return invalid("its protocol is none of the three");
  const family = transport === "TCP4" ? 4 : 6;
  const [from = "", to = "", fromPort = "", toPort = ""] = words.slice(2);
  if (words.length !== 6 || ![from, to].every((address) => isAddress(family, address)))
    return invalid("its addresses are not of its protocol");
  if (![fromPort, toPort].every(isPort)) return invalid("its ports are not numbers from 0 to 65535");
  return complete(endpointText(from, Number(fromPort)));
}

function isPort(text: string): boolean {
  return /^(0|[1-9]\d{0,4})$/.test(text) && Number(text) <= 0xffff;
}

// ---- version 2

function readBinary(bytes: Buffer): ProxyHeader {
  if (!beginsAs(bytes, SIGNATURE)) return invalid("its signature is another one");
  const versionAndCommand = bytes[12];
  if (versionAndCommand === undefined) return INCOMPLETE;
  if (versionAndCommand >> 4 !== 2) return invalid(`its version is ${versionAndCommand >> 4}`);
  const command = versionAndCommand & 0xf;
  if (command > COMMAND.proxy) return invalid(`its command is ${command}`);
  const protocol = bytes[13];
  if (protocol === undefined) return INCOMPLETE;
  const [family, transport] = [protocol >> 4, protocol & 0xf];
  const isLocal = command === COMMAND.local;
  // the family of a LOCAL one is to be ignored
  if (!isLocal && (family > FAMILY.unix || transport > TRANSPORT_MAX))
    return invalid(`its protocol is 0x${protocol.toString(16).padStart(2, "0")}`);
  if (bytes.length < FIXED_BYTES) return INCOMPLETE;
  const length = FIXED_BYTES + bytes.readUInt16BE(14);
  if (length > HEADER_BYTES_MAX) return invalid(`it has ${length} bytes, more than ${HEADER_BYTES_MAX}`);
  const isNamed = !isLocal && family !== FAMILY.unspecified && transport !== 0;
  const addressBytes = isNamed ? (ADDRESS_BYTES[family] as number) : 0;
  if (length < FIXED_BYTES + addressBytes) return invalid("it is too short for its addresses");
  if (bytes.length < length) return INCOMPLETE;
  const header = bytes.subarray(0, length);
  const wrong = lookAtVectors(header, FIXED_BYTES + addressBytes);
  // Where no family tells how long the addresses are, what is there may be some.
  if (wrong !== null && (isNamed || wrong === WRONG_CHECKSUM)) return invalid(wrong);
  return { is: "complete", bytes: length, client: isNamed ? clientOf(header, family) : null };
}

function clientOf(header: Buffer, family: number): string | null {
  const at = FIXED_BYTES;
  if (family === FAMILY.inet)
    return endpointText([...header.subarray(at, at + 4)].join("."), header.readUInt16BE(at + 8));
  if (family !== FAMILY.inet6) return null;
  const groups = Array.from({ length: 8 }, (_, index) => header.readUInt16BE(at + 2 * index).toString(16));
  return endpointText(groups.join(":"), header.readUInt16BE(at + 32));
}

const WRONG_CHECKSUM = "its checksum is wrong";

/** The TLVs from `at` on: what is wrong with them; null: nothing. */
function lookAtVectors(header: Buffer, at: number): string | null {
  while (at < header.length) {
    if (at + TLV_HEAD_BYTES > header.length) return "it ends within a TLV";
    const type = header[at] as number;
    const length = header.readUInt16BE(at + 1);
    at += TLV_HEAD_BYTES;
    if (at + length > header.length) return "it ends within a TLV";
    if (type === TLV_UNIQUE_ID && length > UNIQUE_ID_BYTES_MAX) return "its unique id is too long";
    if (type === TLV_CRC32C) {
      if (length !== 4) return "its checksum has not 4 bytes";
      const zeroed = Buffer.from(header);
      zeroed.writeUInt32BE(0, at);
      if (crc32c(zeroed) !== header.readUInt32BE(at)) return WRONG_CHECKSUM;
    }
    at += length;
  }
  return null;
}

// ---- written

/** Version 2. Addresses of two families are written as those of IPv6; what is no address at all gives a header that names nobody. */
export function writeProxyHeader(client: Endpoint | null, destination: Endpoint): Buffer {
  const ends = client === null ? [] : [client, destination];
  const found = ends.map(({ address }) => addressBytes(address)).filter((bytes) => bytes !== null);
  if (client === null || found.length < ends.length) return binary(FAMILY.unspecified << 4, []);
  const isFour = found.every(({ length }) => length === 4);
  const addresses = isFour ? found : found.map(sixBytes);
  const ports = ends.map(({ port }) => Buffer.of(port >> 8, port & 0xff));
  return binary(((isFour ? FAMILY.inet : FAMILY.inet6) << 4) | STREAM, [...addresses, ...ports]);
}

function binary(protocol: number, parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  const head = Buffer.of((2 << 4) | COMMAND.proxy, protocol, body.length >> 8, body.length & 0xff);
  return Buffer.concat([SIGNATURE, head, body]);
}

/** An IPv4 address as it is written within one of IPv6 (RFC 4291 2.5.5.2). */
function sixBytes(address: Buffer): Buffer {
  return address.length === 16 ? address : Buffer.concat([Buffer.alloc(10), Buffer.of(0xff, 0xff), address]);
}

// ---- CRC-32C (Castagnoli), RFC 4960 appendix B: reflected, so zlib's, with another polynomial

const CRC32C_POLYNOMIAL = 0x82f63b78;
let table: Uint32Array | null = null;

/** @returns u32 */
export function crc32c(bytes: Buffer): number {
  table ??= Uint32Array.from({ length: 256 }, (_, index) => {
    let crc = index;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ CRC32C_POLYNOMIAL : crc >>> 1;
    return crc;
  });
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (table[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
