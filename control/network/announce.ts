/**
 * Asks the neighbours whether one of them has an address, and tells them that it now lives here: gratuitous ARP (RFC 5227 section 3, RFC 826) for IPv4, an unsolicited
 * neighbour advertisement (RFC 4861 section 7.2.6) for IPv6, as whole Ethernet frames through a packet socket (packet(7)).
 */
import { setTimeout as delay } from "node:timers/promises";
import * as ipText from "#proxy/kernel/address-text.ts";
import { internetChecksum } from "#proxy/kernel/checksum.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";

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
const ALL_NODES = ipText.addressBytes("ff02::1");
const ALL_NODES_MAC = Buffer.from("333300000001", "hex");

/** Probes, and how long each is waited for: an answer from the same link is a matter of one millisecond. */
const PROBES = 3;
const PROBE_MS = 100;
const PROBE_LOOK_MS = 5;
const ARP_BYTES = 42;

/** Sends one frame; the neighbours' caches follow. @throws HoldfastError from the kernel */
export function announce(device: Device, address: string): void {
  const isIPv6 = address.includes(":");
  const bytes = ipText.addressBytes(address);
  const frame = isIPv6 ? unsolicitedAdvertisement(device.mac, bytes) : gratuitousArp(device.mac, bytes);
  const fd = openPacketSocket(device, isIPv6 ? ETH_P_IPV6 : ETH_P_ARP);
  try {
    sock.send(fd, frame, 0);
  } finally {
    descriptor.close(fd);
  }
}

/**
 * The hardware address of another machine on the link that has this IPv4 address, as "02:00:00:00:00:01"; null: none has
 * answered (RFC 5227 section 2.1.1; three probes within 300 ms in place of its seconds, which are for machines that start all at
 * once). Machines that only claim it, by a gratuitous ARP of theirs meanwhile, count too.
 * @throws HoldfastError from the kernel, as ENETDOWN
 */
export async function findHolder(device: Device, address: string): Promise<string | null> {
  const wanted = ipText.addressBytes(address);
  const frame = arpProbe(device.mac, wanted);
  const fd = openPacketSocket(device, ETH_P_ARP);
  try {
    const answer = Buffer.alloc(2048);
    for (let probe = 0; probe < PROBES; probe++) {
      sock.send(fd, frame, 0);
      for (const untilMs = performance.now() + PROBE_MS; performance.now() < untilMs; ) {
        for (let length = sock.tryRecv(fd, answer); length > 0; length = sock.tryRecv(fd, answer)) {
          const holder = holderIn(answer.subarray(0, length), wanted, device.mac);
          if (holder !== null) return holder;
        }
        await delay(PROBE_LOOK_MS);
      }
    }
    return null;
  } finally {
    descriptor.close(fd);
  }
}

/** Who has, or claims, an address by this frame; `own` does not count. */
export function holderIn(frame: Buffer, address: Buffer, own: Buffer): string | null {
  if (frame.length < ARP_BYTES || frame.readUInt16BE(12) !== ETH_P_ARP) return null;
  const [hardware, sender] = [frame.subarray(22, 28), frame.subarray(28, 32)];
  if (hardware.equals(own) || !sender.equals(address)) return null;
  // Requests count as well (RFC 5227): they name their sender.
  return [...hardware].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

/** Sends and receives whole frames of one protocol on one device; non-blocking. */
function openPacketSocket(device: Device, protocol: number): number {
  // protocol 0: nothing of other devices comes before it is bound
  const fd = sock.socket(AF_PACKET, sock.SOCK_RAW | sock.SOCK_CLOEXEC | sock.SOCK_NONBLOCK, 0);
  try {
    const link = Buffer.alloc(20); // struct sockaddr_ll
    link.writeUInt16LE(AF_PACKET, 0);
    link.writeUInt16BE(protocol, 2);
    link.writeInt32LE(device.index, 4);
    sock.bindRaw(fd, link);
    return fd;
  } catch (error) {
    descriptor.close(fd);
    throw error;
  }
}

/** An ARP request whose sender has no address yet: nobody's cache takes anything from it. */
export function arpProbe(mac: Buffer, address: Buffer): Buffer {
  return arpRequest(mac, Buffer.alloc(4), address);
}

/** An ARP request for our own address, to everybody: caches that know the address take the new hardware address. */
export function gratuitousArp(mac: Buffer, address: Buffer): Buffer {
  return arpRequest(mac, address, address);
}

function arpRequest(mac: Buffer, sender: Buffer, target: Buffer): Buffer {
  const header = Buffer.from("0001080006040001", "hex"); // Ethernet, IPv4, lengths 6 and 4, request
  return Buffer.concat([
    BROADCAST,
    mac,
    Buffer.from("0806", "hex"),
    header,
    mac,
    sender,
    Buffer.alloc(6),
    target,
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
