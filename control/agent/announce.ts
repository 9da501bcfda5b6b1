/**
 * Tells the neighbours that an address now lives here: gratuitous ARP (RFC 5227 section 3, RFC 826) for IPv4, an unsolicited
 * neighbour advertisement (RFC 4861 section 7.2.6) for IPv6, as whole Ethernet frames through a packet socket (packet(7)).
 */
import { internetChecksum } from "#proxy/tcp/checksum.ts";
import * as kernel from "#proxy/tcp/kernel.ts";

export interface Device {
  name: string;
  /** kernel's number, as in `ip link` */
  index: number;
  /** hardware address, 6 bytes */
  mac: Buffer;
}

const AF_PACKET = 17;
const ETH_P_ARP = 0x0806;
const ETH_P_IPV6 = 0x86dd;
const BROADCAST = Buffer.from("ffffffffffff", "hex");
const ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136;
const IPPROTO_ICMPV6 = 58;
/** all-nodes multicast, and its Ethernet address (RFC 2464) */
const ALL_NODES = kernel.addressBytes("ff02::1");
const ALL_NODES_MAC = Buffer.from("333300000001", "hex");

/** Sends one frame; the neighbours' caches follow. @throws HoldfastError from the kernel */
export function announce(device: Device, address: string): void {
  const isIPv6 = address.includes(":");
  const protocol = isIPv6 ? ETH_P_IPV6 : ETH_P_ARP;
  const bytes = kernel.addressBytes(address);
  const frame = isIPv6 ? unsolicitedAdvertisement(device.mac, bytes) : gratuitousArp(device.mac, bytes);
  const swapped = ((protocol & 0xff) << 8) | (protocol >> 8); // htons
  const fd = kernel.socket(AF_PACKET, kernel.SOCK_RAW | kernel.SOCK_CLOEXEC, swapped);
  try {
    const link = Buffer.alloc(20); // struct sockaddr_ll
    link.writeUInt16LE(AF_PACKET, 0);
    link.writeUInt16BE(protocol, 2);
    link.writeInt32LE(device.index, 4);
    kernel.bindRaw(fd, link);
    kernel.send(fd, frame, 0);
  } finally {
    kernel.close(fd);
  }
}

/** An ARP request for our own address, to everybody: caches that know the address take the new hardware address. */
export function gratuitousArp(mac: Buffer, address: Buffer): Buffer {
  const header = Buffer.from("0001080006040001", "hex"); // Ethernet, IPv4, lengths 6 and 4, request
  return Buffer.concat([
    BROADCAST,
    mac,
    Buffer.from("0806", "hex"),
    header,
    mac,
    address,
    Buffer.alloc(6),
    address,
    Buffer.alloc(18),
  ]);
}

export function unsolicitedAdvertisement(mac: Buffer, address: Buffer): Buffer {
  const overrideFlag = 0x20;
  const targetLinkLayerOption = Buffer.concat([Buffer.from([2, 1]), mac]);
  const message = Buffer.concat([
    Buffer.from([ICMPV6_NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, overrideFlag, 0, 0, 0]),
    address,
    targetLinkLayerOption,
  ]);
  const pseudo = Buffer.alloc(8);
  pseudo.writeUInt32BE(message.length, 0);
  pseudo[7] = IPPROTO_ICMPV6;
  message.writeUInt16BE(internetChecksum(address, ALL_NODES, pseudo, message), 2);
  const header = Buffer.alloc(8);
  header[0] = 0x60;
  header.writeUInt16BE(message.length, 4);
  header[6] = IPPROTO_ICMPV6;
  header[7] = 255; // hop limit: anything else is refused
  return Buffer.concat([ALL_NODES_MAC, mac, Buffer.from("86dd", "hex"), header, address, ALL_NODES, message]);
}
