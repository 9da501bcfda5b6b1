/** IP addresses as text, as bytes, and as struct sockaddr_in or sockaddr_in6 (ip(7), ipv6(7)). */
import { isIPv4, isIPv6 } from "node:net";
import { fail } from "#proxy/contract/error-codes.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { errno, failure, libc } from "./libc.ts";

export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCKADDR_IN_BYTES = 16;
export const SOCKADDR_IN6_BYTES = 28;
const SCOPE_ID_AT = 24;
export const sockaddr = Buffer.alloc(SOCKADDR_IN6_BYTES);

/** Writes `endpoint` as struct sockaddr_in or sockaddr_in6 into the shared buffer; returns its length. */
/** @param scope number of the device, for IPv6 addresses that mean something on a link only; 0: none */
export function encodeSockaddr(endpoint: Endpoint, scope = 0): number {
  sockaddr.fill(0);
  sockaddr.writeUInt16BE(endpoint.port, 2);
  if (isIPv4(endpoint.address)) {
    sockaddr.writeUInt16LE(AF_INET, 0);
    addressBytes(endpoint.address).copy(sockaddr, 4);
    return SOCKADDR_IN_BYTES;
  }
  sockaddr.writeUInt16LE(AF_INET6, 0);
  addressBytes(endpoint.address).copy(sockaddr, 8);
  sockaddr.writeUInt32LE(scope, SCOPE_ID_AT);
  return SOCKADDR_IN6_BYTES;
}

export function decodeSockaddr(): Endpoint {
  const port = sockaddr.readUInt16BE(2);
  if (sockaddr.readUInt16LE(0) === AF_INET) return { address: formatAddress(sockaddr.subarray(4, 8)), port };
  return { address: formatAddress(sockaddr.subarray(8, 24)), port };
}

/** The kernel's number of a device of this network namespace; an error ENODEV where there is none. */
export function deviceIndex(name: string): number {
  const index = libc().if_nametoindex(name);
  if (index === 0) throw failure(`if_nametoindex(${name})`, errno());
  return index;
}

/** 4 or 16 bytes in network order. */
export function addressBytes(address: string): Buffer {
  if (isIPv4(address)) return Buffer.from(address.split(".").map(Number));
  const bytes = Buffer.alloc(16);
  // isIPv6 lets a zone through ("fe80::1%eth0"); inet_pton does not, and a zone means nothing on another node
  if (!isIPv6(address) || libc().inet_pton(AF_INET6, address, bytes) !== 1) {
    throw fail("ADDRESS_INVALID", `"${address}" is not a numeric IPv4 or IPv6 address without a zone`);
  }
  return bytes;
}

/** Text of 4 or 16 bytes; IPv6 in the form of RFC 5952, v4-mapped as `::ffff:a.b.c.d`. */
export function formatAddress(bytes: Buffer): string {
  if (bytes.length === 4) return `${bytes[0]}.${bytes[1]}.${bytes[2]}.${bytes[3]}`;
  if (isMapped(bytes)) return `::ffff:${formatAddress(bytes.subarray(12))}`;
  const groups: number[] = [];
  for (let at = 0; at < 16; at += 2) groups.push(bytes.readUInt16BE(at));
  let bestStart = -1;
  let bestLength = 1;
  for (let start = 0; start < 8; start++) {
    let end = start;
    while (end < 8 && groups[end] === 0) end++;
    if (end - start > bestLength) [bestStart, bestLength] = [start, end - start];
  }
  const text = (part: number[]) => part.map((group) => group.toString(16)).join(":");
  if (bestStart < 0) return text(groups);
  return `${text(groups.slice(0, bestStart))}::${text(groups.slice(bestStart + bestLength))}`;
}

/** Of a dual-stack socket's IPv4 connection the IPv4 address; any other address as it is. */
export function unmapped(address: string): string {
  return address.startsWith("::ffff:") && address.includes(".") ? address.slice("::ffff:".length) : address;
}

function isMapped(bytes: Buffer): boolean {
  if (bytes.readUInt16BE(10) !== 0xffff) return false;
  for (let at = 0; at < 10; at++) if (bytes[at] !== 0) return false;
  return true;
}
