/**
 * Gives a local TCP socket one bare segment that seems to come from its peer.
 *
 * Nothing else restores the peer's FIN: TCP_REPAIR can fill a receive queue with bytes, not with a FIN. The segment is
 * built by hand, sent through a raw socket to our own address and so travels over the loopback device only.
 * Needs CAP_NET_RAW. The socket answers a FIN with an ACK to its real peer: a duplicate there, nothing more.
 * Sources: RFC 9293 3.1, RFC 8200 8.1, man page raw(7).
 */

import * as ipText from "#proxy/kernel/address-text.ts";
import { internetChecksum } from "#proxy/kernel/checksum.ts";
import { ipHeader } from "#proxy/kernel/ip-header.ts";
import type { Network } from "#proxy/kernel/network.ts";
import * as sock from "#proxy/kernel/socket.ts";
import type { Endpoint, LegSnapshot } from "../contract/snapshot.ts";

export const FLAG_FIN = 0x01;
export const FLAG_ACK = 0x10;

const TCP_HEADER_BYTES = 20;
/** further back than any window reaches: at most 2^30 bytes (RFC 7323 2.3) */
const OUT_OF_WINDOW = 2 ** 31 - 1;

export interface BareSegment {
  from: Endpoint;
  to: Endpoint;
  seq: number;
  ack: number;
  flags: number;
  /** as on the wire, already shifted right by the sender's scale */
  window: number;
}

export function injectSegment(segment: BareSegment, network: Network): void {
  const source = ipText.addressBytes(segment.from.address);
  const target = ipText.addressBytes(segment.to.address);
  const tcp = tcpHeader(segment, source, target);
  const ip = ipHeader({ source, target, protocol: sock.IPPROTO_TCP, bytes: tcp.length });
  network.withRaw(source.length === 4 ? 4 : 6, (fd) =>
    sock.sendto(fd, Buffer.concat([ip, tcp]), 0, { address: segment.to.address, port: 0 }),
  );
}

function tcpHeader(segment: BareSegment, source: Buffer, target: Buffer): Buffer {
  const header = Buffer.alloc(TCP_HEADER_BYTES);
  header.writeUInt16BE(segment.from.port, 0);
  header.writeUInt16BE(segment.to.port, 2);
  header.writeUInt32BE(segment.seq >>> 0, 4);
  header.writeUInt32BE(segment.ack >>> 0, 8);
  header.writeUInt8((TCP_HEADER_BYTES / 4) << 4, 12);
  header.writeUInt8(segment.flags, 13);
  header.writeUInt16BE(Math.min(segment.window, 0xffff), 14);
  // pseudo header: addresses, protocol, length; zero padding differs between the families and adds nothing to the sum
  const lengthAndProtocol = Buffer.from([0, sock.IPPROTO_TCP, 0, TCP_HEADER_BYTES]);
  header.writeUInt16BE(internetChecksum(source, target, lengthAndProtocol, header), 16);
  return header;
}

/**
 * Makes a local socket speak to its peer: what is out of its window (here: from before the leg's first byte) it answers with an ACK
 * (RFC 9293 3.10.7.4), and an ACK for which there is no socket is answered with RST. With a FIN, since the kernel answers segments
 * that have no length only once in tcp_invalid_ratelimit ms (`tcp_oow_rate_limited`, net/ipv4/tcp_input.c), and the hold may have
 * asked for that one.
 */
export function provoke(
  { local, remote, send, receive }: Pick<LegSnapshot, "local" | "remote" | "send" | "receive">,
  network: Network,
): void {
  const seq = send.seq - send.bytes.length - OUT_OF_WINDOW;
  const flags = FLAG_FIN | FLAG_ACK;
  injectSegment({ from: local, to: remote, seq, ack: receive.seq, flags, window: 0 }, network);
}
