/** Addresses as text, in the one way to write each. */
import { isIPv4, isIPv6, SocketAddress } from "node:net";
import type { Endpoint } from "./snapshot.ts";

export function isAddress(family: 4 | 6, text: string): boolean {
  return family === 4 ? isIPv4(text) : isIPv6(text) && !text.includes("%");
}

/**
 * "192.0.2.1:80", "[2001:db8::1]:80"; an IPv4 address within an IPv6 one as what it is.
 * @param address numeric (see {@link isAddress})
 */
export function endpointText(address: string, port: number): string {
  if (isIPv4(address)) return `${address}:${port}`;
  const text = new SocketAddress({ address, family: "ipv6" }).address;
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(text)?.[1];
  return mapped === undefined ? `[${text}]:${port}` : `${mapped}:${port}`;
}

/** Of "address:port" and "[address]:port", a zone (`%eth0`) left out. null: it is neither */
export function endpointIn(text: string): Endpoint | null {
  const [, address, port] = /^\[?([^\]%]*?)(?:%[^\]]*)?\]?:(\d+)$/.exec(text) ?? [];
  return address === undefined ? null : { address, port: Number(port) };
}

/** The 4 or 16 bytes of a numeric address. null: it is none */
export function addressBytes(address: string): Buffer | null {
  if (isIPv4(address)) return Buffer.from(address.split(".").map(Number));
  if (!isAddress(6, address)) return null;
  // in its canonical form the last 32 bits may be written as IPv4
  const text = new SocketAddress({ address, family: "ipv6" }).address;
  const [, head = "", four = ""] = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text) ?? [];
  const tail = Buffer.from(four.split(".").map(Number)).toString("hex");
  const [before = [], after = []] = (four === "" ? text : `${head}${tail.slice(0, 4)}:${tail.slice(4)}`)
    .split("::")
    .map((part) => (part === "" ? [] : part.split(":")));
  const gap = Array.from({ length: 8 - before.length - after.length }, () => "0");
  const groups = [...before, ...gap, ...after].map((group) => group.padStart(4, "0"));
  return Buffer.from(groups.join(""), "hex");
}
