/** Headers of the PROXY protocol, as load balancers make them, and as none does. */
export const SIGNATURE = Buffer.from("0d0a0d0a000d0a515549540a", "hex");

export function tlv(type: number, value: Buffer | string): Buffer {
  const bytes = Buffer.from(value as string);
  return Buffer.concat([Buffer.from([type, bytes.length >> 8, bytes.length & 0xff]), bytes]);
}

/** Version 2. @param command version and command, 0x21 for PROXY; @param family family and transport, 0x11 for TCP over IPv4 */
export function binaryHeader(command: number, family: number, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  return Buffer.concat([
    SIGNATURE,
    Buffer.from([command, family, body.length >> 8, body.length & 0xff]),
    body,
  ]);
}

/** A client's, version 2 with a TLV. */
export function headerOf(address: string, port: number): Buffer {
  const ends = Buffer.from([...address.split(".").map(Number), 127, 0, 0, 1, port >> 8, port & 0xff, 0, 80]);
  return binaryHeader(0x21, 0x11, ends, tlv(0x02, "chat.example"));
}
