/**
 * One bare TCP segment, which a socket here takes for its peer's: built by hand, sent through a raw socket to our own address, and so
 * on the loopback device only. Needs CAP_NET_RAW. Sources: RFC 9293 3.1, RFC 8200 8.1, man page raw(7).
 */
import type { BareSegment } from "#proxy/contract/privileged-steps.ts";
import * as ipText from "./address-text.ts";
import { internetChecksum } from "./checksum.ts";
import { ipHeader } from "./ip-header.ts";
import type { Network } from "./network.ts";
import * as sock from "./socket.ts";

const TCP_HEADER_BYTES = 20;

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
