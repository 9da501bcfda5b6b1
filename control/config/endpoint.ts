/** Addresses with a port, as they are written in configuration and shown to people. */
import { BlockList, isIP } from "node:net";
import type { Endpoint } from "#proxy/contract/snapshot.ts";

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

/** `IP:PORT` or `[IP]:PORT`; null when it is neither. */
export function parseEndpoint(value: string): Endpoint | null {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):(\d{1,5})$/.exec(value);
  if (match === null) return null;
  const [, six, four, digits] = match;
  const address = six ?? four ?? "";
  const number = Number(digits);
  if (isIP(address) !== (six === undefined ? 4 : 6) || number < 1 || number > 65_535) return null;
  return { address, port: number };
}

export function formatEndpoint({ address, port }: Endpoint): string {
  return isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;
}

export function isLoopback(address: string): boolean {
  return loopback.check(address, isIP(address) === 6 ? "ipv6" : "ipv4");
}
