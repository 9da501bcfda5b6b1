/**
 * Addresses of devices and routes to subnets, by rtnetlink(7) and not by ip(8): addresses change hands while clients wait.
 * Requests are answered at once, so everything here is synchronous. Of the caller's network namespace.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";

const NETLINK_ROUTE = 0;
const RTM_NEWADDR = 20;
const RTM_DELADDR = 21;
const RTM_GETADDR = 22;
const RTM_NEWROUTE = 24;
const RTM_DELROUTE = 25;
const NLM_F_REQUEST = 0x1;
const NLM_F_ACK = 0x4;
const NLM_F_REPLACE = 0x100;
const NLM_F_DUMP = 0x300;
const NLM_F_CREATE = 0x400;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const HEADER_BYTES = 16;
const IFADDRMSG_BYTES = 8;
const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
/** no duplicate address detection: a moved IPv6 address must work at once */
const IFA_F_NODAD = 0x02;
const RTA_DST = 1;
const RTA_OIF = 4;
const RTA_PRIORITY = 6;
const RTA_PREFSRC = 7;
const RT_TABLE_MAIN = 254;
/** rtnetlink.h: administrators' and daemons' numbers are above RTPROT_STATIC (4); `ip route` shows ours as "proto 72" */
const RTPROT_HOLDFAST = 72;
const RT_SCOPE_UNIVERSE = 0;
const RT_SCOPE_LINK = 253;
const RTN_UNICAST = 1;
const ANSWER_BYTES = 64 * 1024;

export interface AddressOnDevice {
  address: string;
  /** bits of its subnet; 32 or 128: nothing but itself */
  prefix: number;
  /** kernel's number of the device */
  index: number;
}

/** On the device; safe to repeat. @returns errno, 0: done */
export function addAddress(on: AddressOnDevice): number {
  return changeAddress(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, on);
}

/** Only with this very prefix. @returns errno, EADDRNOTAVAIL: it was not there */
export function removeAddress(on: AddressOnDevice): number {
  return changeAddress(RTM_DELADDR, 0, on);
}

/** The prefixes with which a device has an address; empty: it has not. */
export function prefixesOf(address: string, index: number): number[] {
  const wanted = ipText.addressBytes(address);
  const body = Buffer.alloc(IFADDRMSG_BYTES);
  body[0] = wanted.length === 16 ? ipText.AF_INET6 : ipText.AF_INET;
  const found: number[] = [];
  ask(RTM_GETADDR, NLM_F_DUMP, body, (message) => {
    if (message.length < IFADDRMSG_BYTES || message.readUInt32LE(4) !== index) return;
    const attributes = attributesOf(message.subarray(IFADDRMSG_BYTES));
    // IFA_ADDRESS of a point-to-point device is the peer's
    const own = attributes.get(IFA_LOCAL) ?? attributes.get(IFA_ADDRESS);
    if (own?.equals(wanted)) found.push(message[1] as number);
  });
  return found;
}

function changeAddress(type: number, flags: number, { address, prefix, index }: AddressOnDevice): number {
  const bytes = ipText.addressBytes(address);
  const isIPv6 = bytes.length === 16;
  const body = Buffer.alloc(IFADDRMSG_BYTES);
  body[0] = isIPv6 ? ipText.AF_INET6 : ipText.AF_INET;
  body[1] = prefix;
  body[2] = isIPv6 ? IFA_F_NODAD : 0;
  body.writeUInt32LE(index, 4);
  return ask(type, flags, Buffer.concat([body, attribute(IFA_LOCAL, bytes), attribute(IFA_ADDRESS, bytes)]));
}

/**
 * Neighbours of the subnet that `prefix` makes of an address are on this device's link. Of lower preference than any route
 * that others have made, and one for each address, so that those of several do not get into each other's way.
 * IPv4: the kernel takes it off with the address. @returns errno, 0: done
 */
export function addSubnetRoute(on: AddressOnDevice): number {
  return changeRoute(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, on);
}

/** @returns errno, ESRCH: it was not there */
export function removeSubnetRoute(on: AddressOnDevice): number {
  return changeRoute(RTM_DELROUTE, 0, on);
}

function changeRoute(type: number, flags: number, { address, prefix, index }: AddressOnDevice): number {
  const bytes = ipText.addressBytes(address);
  const isIPv6 = bytes.length === 16;
  const body = Buffer.alloc(12); // struct rtmsg
  body[0] = isIPv6 ? ipText.AF_INET6 : ipText.AF_INET;
  body[1] = prefix;
  body[4] = RT_TABLE_MAIN;
  body[5] = RTPROT_HOLDFAST;
  body[6] = isIPv6 ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
  body[7] = RTN_UNICAST;
  const attributes = [
    attribute(RTA_DST, networkOf(bytes, prefix)),
    attribute(RTA_OIF, uint32(index)),
    attribute(RTA_PRIORITY, uint32(metricOf(bytes))),
  ];
  // IPv6 would keep the route of an address that is gone, with another source
  if (!isIPv6) attributes.push(attribute(RTA_PREFSRC, bytes));
  return ask(type, flags, Buffer.concat([body, ...attributes]));
}

/** The address with the bits that are not of its subnet cleared. */
export function networkOf(bytes: Buffer, prefix: number): Buffer {
  return Buffer.from(
    bytes.map((byte, at) => {
      const bits = Math.min(8, Math.max(0, prefix - at * 8));
      return byte & (0xff << (8 - bits));
    }),
  );
}

/** Differs for two addresses of a subnet that differ in their last 24 bits, and is worse than what people and daemons choose. */
function metricOf(bytes: Buffer): number {
  return 0x70_00_00_00 + bytes.readUIntBE(bytes.length - 3, 3);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** struct rtattr: length, type, then the value, padded to 4 bytes */
function attribute(type: number, value: Buffer): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt16LE(4 + value.length, 0);
  head.writeUInt16LE(type, 2);
  return Buffer.concat([head, value, Buffer.alloc(-value.length & 3)]);
}

function attributesOf(bytes: Buffer): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  for (let at = 0; at + 4 <= bytes.length; ) {
    const length = bytes.readUInt16LE(at);
    if (length < 4) break;
    found.set(bytes.readUInt16LE(at + 2), bytes.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
  return found;
}

/** One request and its answers. @returns errno, 0: done */
function ask(
  type: number,
  flags: number,
  payload: Buffer,
  onMessage: (payload: Buffer) => void = () => {},
): number {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(header.length + payload.length, 0);
  header.writeUInt16LE(type, 4);
  header.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK | flags, 6);
  const fd = sock.socket(sock.AF_NETLINK, sock.SOCK_RAW | sock.SOCK_CLOEXEC, NETLINK_ROUTE);
  try {
    sock.send(fd, Buffer.concat([header, payload]), 0);
    const answer = Buffer.alloc(ANSWER_BYTES);
    for (;;) {
      const length = sock.recv(fd, answer, 0);
      for (let at = 0; at + HEADER_BYTES <= length; ) {
        const size = answer.readUInt32LE(at);
        if (size < HEADER_BYTES || at + size > length) throw noAnswer();
        const message = answer.subarray(at + HEADER_BYTES, at + size);
        const kind = answer.readUInt16LE(at + 4);
        if (kind === NLMSG_DONE) return 0;
        if (kind === NLMSG_ERROR) return message.length < 4 ? 0 : -message.readInt32LE(0);
        onMessage(message);
        at += (size + 3) & ~3;
      }
      if (length <= 0) throw noAnswer();
    }
  } finally {
    descriptor.close(fd);
  }
}

function noAnswer(): HoldfastError {
  return fail("KERNEL_UNKNOWN", "the kernel's answer about addresses cannot be read");
}
