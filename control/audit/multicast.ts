/**
 * Groups that a socket has joined. No option lists them, but one tells of a given group whether the socket is a member of it
 * (MCAST_MSFILTER, ip(7)), and /proc/net/igmp and igmp6 list what anybody on this node has joined.
 * Sources: include/uapi/linux/in.h, net/ipv4/igmp.c.
 */
import * as ipText from "#proxy/kernel/address-text.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readText } from "../runtime/read-text.ts";
import type { Facts } from "./fingerprint.ts";

const MCAST_JOIN_GROUP = 42;
const MCAST_MSFILTER = 48;
const MCAST_EXCLUDE = 0;
/** struct group_filter without sources: u32 interface, padding, sockaddr_storage, u32 mode, u32 count */
const FILTER_BYTES = 144;
const GROUP_AT = 8;
const MODE_AT = 136;
const COUNT_AT = 140;
/** struct group_req */
const REQUEST_BYTES = 136;
/** joined by every interface, by no socket: 224.0.0.1, ff01::1, ff02::1 */
const ALL_NODES = /^(e0000001|ff0[12]0{27}1)$/;

export interface MulticastGroup {
  device: string;
  index: number;
  /** 4 or 16 bytes in hexadecimal */
  group: string;
}

/** What has been joined on this node. */
export function joinedGroups(): MulticastGroup[] {
  return [...groupsOfIgmp(readText("/proc/net/igmp")), ...groupsOfIgmp6(readText("/proc/net/igmp6"))];
}

/** Pure. `2 eth0 : 1 V3`, and below it a line for each group, its address as a little-endian number. */
export function groupsOfIgmp(text: string): MulticastGroup[] {
  const groups: MulticastGroup[] = [];
  let device = "";
  let index = 0;
  for (const line of text.split("\n")) {
    const head = /^(\d+)\s+(\S+)\s*:/.exec(line);
    if (head !== null) {
      index = Number(head[1]);
      device = head[2] ?? "";
    }
    const address = /^\s+([0-9A-F]{8})\s/.exec(line)?.[1];
    if (address === undefined) continue;
    const group = Buffer.from(address, "hex").reverse().toString("hex");
    if (!ALL_NODES.test(group)) groups.push({ device, index, group });
  }
  return groups;
}

/** Pure. `2 eth0 ff020000000000000000000000000001 1 0000000C 0` */
export function groupsOfIgmp6(text: string): MulticastGroup[] {
  return text.split("\n").flatMap((line) => {
    const [, index, device, group] = /^(\d+)\s+(\S+)\s+([0-9a-f]{32})\s/.exec(line) ?? [];
    if (index === undefined || device === undefined || group === undefined || ALL_NODES.test(group))
      return [];
    return [{ device, index: Number(index), group }];
  });
}

/** `multicast lo 239.1.1.1` → mode and number of sources */
export function membershipFacts(fd: number, domain: number, groups: MulticastGroup[], facts: Facts): void {
  for (const group of groups) {
    const isV4 = group.group.length === 8;
    if ((domain === ipText.AF_INET) !== isV4) continue;
    const filter = Buffer.alloc(FILTER_BYTES);
    writeGroup(filter, group);
    let size = 0;
    try {
      size = sock.getsockoptBuffer(fd, levelOf(isV4), MCAST_MSFILTER, filter);
    } catch {
      continue; // EADDRNOTAVAIL: it is not a member
    }
    if (size < FILTER_BYTES) continue;
    const mode = filter.readUInt32LE(MODE_AT) === MCAST_EXCLUDE ? "all but" : "only";
    facts[factName(group)] = `${mode} ${filter.readUInt32LE(COUNT_AT)} sources`;
  }
}

const NAME = /^multicast (\S+) ([0-9a-f.:]+)$/;

function factName({ device, group }: MulticastGroup): string {
  return `multicast ${device} ${ipText.formatAddress(Buffer.from(group, "hex"))}`;
}

/** Joins the group that a fact of {@link membershipFacts} names; false: it is not one, or has sources to choose from. */
export function joinGroup(fd: number, name: string, fact: string): boolean {
  const [, device = "", address = ""] = NAME.exec(name) ?? [];
  if (address === "" || fact !== "all but 0 sources") return false;
  const index = indexOf(device);
  if (!(index > 0)) return false;
  const bytes = ipText.addressBytes(address);
  const request = Buffer.alloc(REQUEST_BYTES);
  writeGroup(request, { device, index, group: bytes.toString("hex") });
  sock.setsockoptBuffer(fd, levelOf(bytes.length === 4), MCAST_JOIN_GROUP, request);
  return true;
}

/** From /proc/net, which is of this network namespace whatever is mounted at /sys. */
function indexOf(device: string): number {
  const line = readText("/proc/net/if_inet6")
    .split("\n")
    .find((candidate) => candidate.endsWith(` ${device}`));
  const viaIgmp = new RegExp(`^(\\d+)\\s+${device}\\s*:`, "m").exec(readText("/proc/net/igmp"))?.[1];
  return Number(viaIgmp ?? Number.parseInt(line?.split(/\s+/)[1] ?? "0", 16));
}

function levelOf(isV4: boolean): number {
  return isV4 ? sock.IPPROTO_IP : sock.IPPROTO_IPV6;
}

/** struct group_req begins as struct group_filter does. */
function writeGroup(into: Buffer, { index, group }: MulticastGroup): void {
  const bytes = Buffer.from(group, "hex");
  into.writeUInt32LE(index, 0);
  into.writeUInt16LE(bytes.length === 4 ? ipText.AF_INET : ipText.AF_INET6, GROUP_AT);
  bytes.copy(into, GROUP_AT + (bytes.length === 4 ? 4 : 8));
}
