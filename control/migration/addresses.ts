/**
 * Addresses that a socket of the application knows and this node does not have. A move leaves them behind, as a journey does:
 * a socket that sends gets the address this node has in that network. What listens there for others is refused
 * beforehand (`workload/preflight/sockets.ts`).
 */
import { isIPv6 } from "node:net";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";
import type { WorkloadConfig } from "../config/config.ts";

/** any port: nothing is sent */
const DISCARD_PORT = 9;

/** The VIP, and those of a container's own network. */
export function addressesThatMove({ vip, container }: WorkloadConfig): string[] {
  const own = container?.network ?? null;
  return [...(vip === null ? [] : [vip.address]), ...(own === null ? [] : [own.address])];
}

export function isUnspecified(address: string): boolean {
  return address === "0.0.0.0" || address === "::";
}

export function isLoopback(address: string): boolean {
  return address === "::1" || ipText.unmapped(address).startsWith("127.");
}

/** fe80::/10: means nothing without the device it is on */
export function isLinkLocal(address: string): boolean {
  return /^fe[89ab]/i.test(address);
}

/** Whether a socket can be bound to it here: addresses of this node, and those of groups. */
export function isHere(address: string): boolean {
  if (isUnspecified(address) || isLoopback(address)) return true;
  return withUdp(address, (fd, plain) => {
    try {
      sock.bind(fd, { address: plain, port: 0 });
      return true;
    } catch (error) {
      if (error instanceof HoldfastError && error.code === "EADDRNOTAVAIL") return false;
      throw error;
    }
  });
}

/**
 * The address from which this node sends to the network of `address`, written as that one is (an IPv4 address in IPv6
 * stays one).
 * @throws HoldfastError `ADDRESS_UNREACHABLE`
 */
export function ownAddressFor(address: string): string {
  const own = withUdp(address, (fd, plain) => {
    try {
      sock.connect(fd, { address: plain, port: DISCARD_PORT });
      return sock.getsockname(fd).address;
    } catch (cause) {
      throw fail(
        "ADDRESS_UNREACHABLE",
        `a socket of the application is bound to ${address}, and this node has no way into that network: ${messageOf(cause)}`,
        { cause },
      );
    }
  });
  return ipText.unmapped(address) === address ? own : `::ffff:${own}`;
}

export function unspecifiedLike(address: string): string {
  return isIPv6(address) ? "::" : "0.0.0.0";
}

function withUdp<T>(address: string, use: (fd: number, plain: string) => T): T {
  const plain = ipText.unmapped(address);
  const domain = isIPv6(plain) ? ipText.AF_INET6 : ipText.AF_INET;
  const fd = sock.socket(domain, sock.SOCK_DGRAM | sock.SOCK_CLOEXEC, 0);
  try {
    return use(fd, plain);
  } finally {
    descriptor.close(fd);
  }
}
