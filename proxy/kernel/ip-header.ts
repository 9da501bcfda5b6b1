/** The IP header of a packet that is sent through a raw socket: RFC 791 3.1, RFC 8200 3. No options, no extension headers. */
import { internetChecksum } from "./checksum.ts";

const IPV4_HEADER_BYTES = 20;
const IPV6_HEADER_BYTES = 40;
const HOP_LIMIT = 64;

export interface IpHeader {
  /** addresses of one family, 4 or 16 bytes: see `addressBytes` */
  source: Buffer;
  target: Buffer;
  /** IPPROTO_TCP, IPPROTO_UDP … of what follows */
  protocol: number;
  /** of what follows */
  bytes: number;
}

export function ipHeader(packet: IpHeader): Buffer {
  return packet.source.length === 4 ? ipv4Header(packet) : ipv6Header(packet);
}

function ipv4Header({ source, target, protocol, bytes }: IpHeader): Buffer {
  const header = Buffer.alloc(IPV4_HEADER_BYTES);
  header.writeUInt8(0x45, 0);
  header.writeUInt16BE(IPV4_HEADER_BYTES + bytes, 2);
  header.writeUInt8(HOP_LIMIT, 8);
  header.writeUInt8(protocol, 9);
  source.copy(header, 12);
  target.copy(header, 16);
  header.writeUInt16BE(internetChecksum(header), 10);
  return header;
}

function ipv6Header({ source, target, protocol, bytes }: IpHeader): Buffer {
  const header = Buffer.alloc(IPV6_HEADER_BYTES);
  header.writeUInt8(0x60, 0);
  header.writeUInt16BE(bytes, 4);
  header.writeUInt8(protocol, 6);
  header.writeUInt8(HOP_LIMIT, 7);
  source.copy(header, 8);
  target.copy(header, 24);
  return header;
}
