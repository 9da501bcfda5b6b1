/**
 * Datagrams that a UDP socket has received and its application has not read. CRIU 4.2 drops them: what one process of the
 * application has sent to another over the loopback device would be lost.
 *
 * Read by looking (MSG_PEEK with SO_PEEK_OFF, socket(7)), so nothing changes at the source. At the target each is sent to the
 * socket once more, from whom it was, through a raw socket to this node's own address: it travels over the loopback
 * device only. Of a datagram only its bytes and its sender are kept: not the address it came to, nor its time of arrival.
 * Those that the kernel has joined (UDP_GRO) arrive one by one, as they may have at the source.
 */
import { isIPv6 } from "node:net";
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import { internetChecksum } from "#proxy/kernel/checksum.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { ipHeader } from "#proxy/kernel/ip-header.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { isLoopback, isUnspecified, ownAddressFor } from "./addresses.ts";
import { hasArrived } from "./over-loopback.ts";

/** include/uapi/linux/sock_diag.h: nine words */
const SO_MEMINFO = 55;
const MEMINFO_BYTES = 36;
const DATAGRAM_BYTES_MAX = 65_536;
const DATAGRAMS_MAX = 10_000;
const UDP_HEADER_BYTES = 8;

export const unreadDatagram = z.strictObject({
  from: z.strictObject({
    address: z.ipv4().or(z.ipv6()),
    port: z.number().int().min(0).max(65_535),
  }),
  bytes: z.base64(),
});
export type UnreadDatagram = z.infer<typeof unreadDatagram>;

/** What a failed datagram has come back as: an error of the socket, or a message in its error queue (ip(7), IP_RECVERR). */
export function hasErrorUnread(fd: number): boolean {
  return (polling.pollNow(fd, 0) & polling.POLLERR) !== 0;
}

/**
 * Oldest first, at most `bytesMax` bytes of them. Nothing is taken; but an empty one is seen by the first look only, since the
 * kernel cannot tell otherwise that it has gone past it (`peeked`, __skb_try_recv_from_queue() in net/core/datagram.c).
 * @throws HoldfastError `DATAGRAMS_LOST` where the socket's error would be taken by looking
 */
export function unreadDatagramsOf(fd: number, bytesMax: number): UnreadDatagram[] {
  if ((polling.pollNow(fd, polling.POLLIN) & polling.POLLIN) === 0) return [];
  if (hasErrorUnread(fd))
    throw fail(
      "DATAGRAMS_LOST",
      "datagrams wait behind an error that the application has not read, and nobody else may read it",
    );
  const found: UnreadDatagram[] = [];
  const into = Buffer.alloc(DATAGRAM_BYTES_MAX);
  let bytes = 0;
  sock.peekingOn(fd, () => {
    while (found.length < DATAGRAMS_MAX && bytes <= bytesMax) {
      const seen = sock.tryRecvFrom(fd, into, sock.MSG_PEEK | sock.MSG_DONTWAIT);
      if (seen === null) break;
      bytes += seen.length;
      const { from, length, segmentBytes } = seen;
      const each = segmentBytes > 0 ? segmentBytes : Math.max(length, 1);
      // an empty one is one as well
      for (let at = 0; at === 0 || at < length; at += each)
        found.push({ from, bytes: into.toString("base64", at, Math.min(at + each, length)) });
    }
  });
  return found;
}

/** @throws HoldfastError `DATAGRAMS_LOST` when the socket has not got them */
export function receiveAgain(fd: number, datagrams: UnreadDatagram[]): void {
  const local = sock.getsockname(fd);
  for (const { from, bytes } of datagrams) {
    const before = receivedBytes(fd);
    inject(from, local, Buffer.from(bytes, "base64"));
    // one by one: on another CPU the next one could overtake it
    if (hasArrived(() => receivedBytes(fd) > before)) continue;
    throw fail(
      "DATAGRAMS_LOST",
      "datagrams that the application has not read could not be given to it again",
    );
  }
}

/** What the kernel has allocated for datagrams that wait, empty ones too (SO_MEMINFO, SK_MEMINFO_RMEM_ALLOC). */
export function receivedBytes(fd: number): number {
  const words = Buffer.alloc(MEMINFO_BYTES);
  sock.getsockoptBuffer(fd, sock.SOL_SOCKET, SO_MEMINFO, words);
  return words.readUInt32LE(0);
}

function inject(from: Endpoint, local: Endpoint, payload: Buffer): void {
  const sender = { ...from, address: ipText.unmapped(from.address) };
  const source = ipText.addressBytes(sender.address);
  const to = { address: addressHere(local.address, sender.address), port: local.port };
  const target = ipText.addressBytes(to.address);
  const length = UDP_HEADER_BYTES + payload.length;
  const udp = Buffer.alloc(UDP_HEADER_BYTES);
  udp.writeUInt16BE(sender.port, 0);
  udp.writeUInt16BE(to.port, 2);
  udp.writeUInt16BE(length, 4);
  const lengthAndProtocol = Buffer.alloc(4);
  lengthAndProtocol.writeUInt16BE(sock.IPPROTO_UDP, 0);
  lengthAndProtocol.writeUInt16BE(length, 2);
  const sum = internetChecksum(source, target, lengthAndProtocol, udp, payload);
  udp.writeUInt16BE(sum === 0 ? 0xffff : sum, 6); // RFC 768: 0 means none
  const ip = ipHeader({ source, target, protocol: sock.IPPROTO_UDP, bytes: length });
  const domain = source.length === 4 ? ipText.AF_INET : ipText.AF_INET6;
  const raw = sock.socket(domain, sock.SOCK_RAW | sock.SOCK_CLOEXEC, sock.IPPROTO_RAW);
  try {
    sock.sendto(raw, Buffer.concat([ip, udp, payload]), 0, { address: to.address, port: 0 });
  } finally {
    descriptor.close(raw);
  }
}

/** Where a datagram from there reaches the socket on this node. */
function addressHere(bound: string, from: string): string {
  const plain = ipText.unmapped(bound);
  if (!isUnspecified(plain) && isIPv6(plain) === isIPv6(from) && !isGroup(plain)) return plain;
  if (isLoopback(from)) return isIPv6(from) ? "::1" : "127.0.0.1";
  return ownAddressFor(from);
}

function isGroup(address: string): boolean {
  const [first = 0] = ipText.addressBytes(address);
  return isIPv6(address) ? first === 0xff : first >= 224;
}
