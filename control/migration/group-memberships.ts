/**
 * Multicast groups that a socket is in (IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP, source filters). CRIU 4.2 restores none of them, and
 * no call lists them: but the kernel answers, for a group and a device, whether this socket is in it (MCAST_MSFILTER), and which
 * groups there are on a device is in /proc/net/igmp and igmp6.
 * Sources: ip(7), RFC 3678 section 5, include/uapi/linux/in.h, net/ipv4/igmp.c, net/ipv6/mcast.c.
 */
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readText } from "../runtime/read-text.ts";

const MCAST_JOIN_GROUP = 42;
const MCAST_MSFILTER = 48;
const MCAST_EXCLUDE = 0;
/** struct group_filter: u32 interface, sockaddr_storage group, u32 mode, u32 count, sockaddr_storage sources[] */
const GROUP_AT = 8;
const STORAGE_BYTES = 128;
const MODE_AT = GROUP_AT + STORAGE_BYTES;
const COUNT_AT = MODE_AT + 4;
const SOURCES_AT = COUNT_AT + 4;
/** net.ipv4.igmp_max_msf is 10 by default; more are not carried as anything else */
const SOURCES_MAX = 64;

export const membership = z.strictObject({
  device: z.string().max(15),
  group: z.ipv4().or(z.ipv6()),
  mode: z.number().int().min(0).max(1),
  sources: z.array(z.ipv4().or(z.ipv6())).max(SOURCES_MAX),
});
export type Membership = z.infer<typeof membership>;

export interface DeviceGroup {
  device: string;
  /** number of the device on this node */
  index: number;
  group: string;
}

/** Every group that somebody on this node is in. */
export function deviceGroups(): DeviceGroup[] {
  return [
    ...groupsOfIPv4(readText("/proc/thread-self/net/igmp")),
    ...groupsOfIPv6(readText("/proc/thread-self/net/igmp6")),
  ];
}

/** Of an Internet socket. */
export function membershipsOf(fd: number, groups: DeviceGroup[]): Membership[] {
  const isIPv6 = sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_DOMAIN) === ipText.AF_INET6;
  const found: Membership[] = [];
  for (const { device, index, group } of groups) {
    // an IPv6 socket can be in groups of both
    if (group.includes(":") && !isIPv6) continue;
    const filter = Buffer.alloc(SOURCES_AT + SOURCES_MAX * STORAGE_BYTES);
    filter.writeUInt32LE(index, 0);
    writeStorage(filter, GROUP_AT, group);
    filter.writeUInt32LE(SOURCES_MAX, COUNT_AT);
    try {
      sock.getsockoptBuffer(fd, levelOf(group), MCAST_MSFILTER, filter);
    } catch (error) {
      // EADDRNOTAVAIL: not in it
      if (error instanceof HoldfastError && error.source === "kernel") continue;
      throw error;
    }
    const count = Math.min(filter.readUInt32LE(COUNT_AT), SOURCES_MAX);
    const sources = Array.from({ length: count }, (_, source) =>
      readStorage(filter, SOURCES_AT + source * STORAGE_BYTES),
    );
    found.push({ device, group, mode: filter.readUInt32LE(MODE_AT), sources });
  }
  return found;
}

/** @throws HoldfastError `GROUP_DEVICE`: this node has no such device */
export function join(fd: number, { device, group, mode, sources }: Membership, groups: DeviceGroup[]): void {
  // every device that can do multicast is in a group of its own
  const index = groups.find((one) => one.device === device)?.index;
  if (index === undefined)
    throw fail(
      "GROUP_DEVICE",
      `the application is in the multicast group ${group} on ${device}, a device this node does not have`,
    );
  const filter = Buffer.alloc(SOURCES_AT + sources.length * STORAGE_BYTES);
  filter.writeUInt32LE(index, 0);
  writeStorage(filter, GROUP_AT, group);
  filter.writeUInt32LE(mode, MODE_AT);
  filter.writeUInt32LE(sources.length, COUNT_AT);
  for (const [source, address] of sources.entries())
    writeStorage(filter, SOURCES_AT + source * STORAGE_BYTES, address);
  // struct group_req is the beginning of struct group_filter
  sock.setsockoptBuffer(fd, levelOf(group), MCAST_JOIN_GROUP, filter.subarray(0, MODE_AT));
  if (mode !== MCAST_EXCLUDE || sources.length > 0)
    sock.setsockoptBuffer(fd, levelOf(group), MCAST_MSFILTER, filter);
}

function levelOf(group: string): number {
  return group.includes(":") ? sock.IPPROTO_IPV6 : sock.IPPROTO_IP;
}

/** struct sockaddr_in or sockaddr_in6 */
function writeStorage(into: Buffer, at: number, address: string): void {
  const bytes = ipText.addressBytes(address);
  into.writeUInt16LE(bytes.length === 4 ? ipText.AF_INET : ipText.AF_INET6, at);
  bytes.copy(into, at + (bytes.length === 4 ? 4 : 8));
}

function readStorage(from: Buffer, at: number): string {
  const isIPv4 = from.readUInt16LE(at) === ipText.AF_INET;
  const start = at + (isIPv4 ? 4 : 8);
  return ipText.formatAddress(from.subarray(start, start + (isIPv4 ? 4 : 16)));
}

/** "2\teth0 : …", then a line for each group: the address as a number of this machine, in hexadecimal */
function groupsOfIPv4(text: string): DeviceGroup[] {
  const groups: DeviceGroup[] = [];
  let device = { name: "", index: 0 };
  for (const line of text.split("\n").slice(1)) {
    const head = /^(\d+)\s+(\S+)\s*:/.exec(line);
    if (head !== null) device = { name: head[2] ?? "", index: Number(head[1]) };
    const group = /^\s+([0-9A-F]{8})\s/.exec(line)?.[1];
    if (group === undefined) continue;
    const bytes = Buffer.from(group, "hex").reverse();
    groups.push({ device: device.name, index: device.index, group: ipText.formatAddress(bytes) });
  }
  return groups;
}

/** "2    eth0            ff020000000000000000000000000001     1 0000000C 0" */
function groupsOfIPv6(text: string): DeviceGroup[] {
  return [...text.matchAll(/^(\d+)\s+(\S+)\s+([0-9a-f]{32})\s/gm)].map(([, index, device, group]) => ({
    device: device ?? "",
    index: Number(index),
    group: ipText.formatAddress(Buffer.from(group ?? "", "hex")),
  }));
}
