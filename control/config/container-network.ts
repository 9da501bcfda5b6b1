/** The network of a container that has one of its own: which addresses it gets, and what they must not be. */
import { createHash } from "node:crypto";
import { isIPv4 } from "node:net";
import type { File, FileWorkload } from "./schema.ts";

export interface NetworkPlan {
  /** IPv4, of the container */
  address: string;
  prefix: number;
  /** of the node, towards the container */
  gateway: string;
}

type FileNetwork = NonNullable<FileWorkload["container"]>["network"];

/** 169.254.1.0 to 169.254.168.255: below the addresses that clouds use themselves (169.254.169.254 and above it) */
const THIRD_OCTETS = 168;
/** of 4 addresses each: the network's, the gateway's, the container's, broadcast */
const BLOCKS = THIRD_OCTETS * 64;
const PREFIX = 30;

/**
 * null: the node's network. Without addresses of its own in the file a container gets two link-local ones (RFC 3927) that follow from the
 * workload's name: they mean something on its node alone, and are the same on every node, so that a move changes none.
 */
export function planOf(workload: string, network: FileNetwork): NetworkPlan | null {
  if (network === "host") return null;
  if (network !== "own") {
    const { address, gateway } = network;
    return { address: address.address, prefix: address.prefix, gateway };
  }
  const block = createHash("sha256").update(workload).digest().readUInt32BE(0) % BLOCKS;
  const third = 1 + Math.floor(block / 64);
  const last = (block % 64) * 4;
  return { address: `169.254.${third}.${last + 2}`, prefix: PREFIX, gateway: `169.254.${third}.${last + 1}` };
}

/** @param fail called with the key's path and what was expected */
export function checkNetworks({ workloads }: File, fail: (at: string, message: string) => never): void {
  const taken: { name: string; network: number; mask: number }[] = [];
  for (const [index, { name, container, outbound }] of workloads.entries()) {
    const plan = container === undefined ? null : planOf(name, container.network);
    if (plan === null) continue;
    const at = `workloads[${index}]`;
    if (outbound === "keep")
      fail(
        `${at}.outbound`,
        "expected close (behind a network of its own, the container has no connections at the vip), got keep",
      );
    const { address, prefix, gateway } = plan;
    if (!isIPv4(address) || prefix < 8 || prefix > 30)
      fail(
        `${at}.container.network.address`,
        `expected an IPv4 address with a prefix of 8-30, got ${address}/${prefix}`,
      );
    const mask = prefixMask(prefix);
    const network = numberOf(address) & mask;
    if (gateway === address || (numberOf(gateway) & mask) !== network)
      fail(
        `${at}.container.network.gateway`,
        `expected another address of ${address}/${prefix}, got ${gateway}`,
      );
    for (const other of taken) {
      const common = mask & other.mask;
      if ((network & common) === (other.network & common))
        fail(
          `${at}.container.network`,
          `expected addresses that no other workload has, got ${address}/${prefix}, which overlaps that of ${other.name} (choose one: { address: IP/PREFIX, gateway: IP }, the same on every node)`,
        );
    }
    taken.push({ name, network, mask });
  }
}

function prefixMask(prefix: number): number {
  return -1 << (32 - prefix);
}

function numberOf(address: string): number {
  return address.split(".").reduce((number, octet) => (number << 8) | Number(octet), 0);
}
