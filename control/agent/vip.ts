/**
 * The address that moves with a workload: put on a device, taken off (rtnetlink(7)), announced to the neighbours.
 *
 * By netlink and not by ip(8), because both happen while clients wait.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as kernel from "#proxy/tcp/kernel.ts";
import { runCommand } from "../container/command.ts";
import { announce, type Device } from "./announce.ts";

export interface VipConfig {
  address: string;
  prefix: number;
  device: string;
}

const ANNOUNCE_AGAIN_MS = [30, 120, 500, 2_000];
const NETLINK_ROUTE = 0;
const RTM_NEWADDR = 20;
const RTM_DELADDR = 21;
const NLM_F_REQUEST = 0x1;
const NLM_F_ACK = 0x4;
const NLM_F_REPLACE = 0x100;
const NLM_F_CREATE = 0x400;
const NLMSG_ERROR = 2;
const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
/** no duplicate address detection: a moved IPv6 address must work at once */
const IFA_F_NODAD = 0x02;

const LOOPBACK_INDEX = 1;

/**
 * What keeps neighbours from hearing of a parked address (Documentation/networking/ip-sysctl.rst): nobody is answered for it,
 * and who asks on its behalf (a restored connection that leaves repair mode probes its peer's window) does not give it as the
 * asker's, which every neighbour would believe. IPv6 does both only for addresses of the device itself (ndisc_solicit()).
 */
const PARKED: Readonly<Record<string, string>> = { arp_ignore: "1", arp_announce: "2" };

export class Vip {
  readonly config: VipConfig;
  #device: Device;
  #repeats: NodeJS.Timeout[] = [];
  /** of {@link PARKED}: what they were before the address was parked */
  #arpBefore: Map<string, string> | null = null;

  private constructor(config: VipConfig, device: Device) {
    this.config = config;
    this.#device = device;
  }

  /** @throws HoldfastError `VIP_DEVICE` when the device is not there */
  static async open(config: VipConfig): Promise<Vip> {
    const shown = await runCommand("ip", ["-o", "link", "show", "dev", config.device], {
      source: "config",
    }).catch((cause: unknown) => {
      throw new HoldfastError(`vip.device ${config.device} does not exist on this node`, {
        code: "VIP_DEVICE",
        source: "config",
        cause,
      });
    });
    const index = Number(/^(\d+):/.exec(shown)?.[1] ?? 0);
    const mac = Buffer.from(
      (/link\/ether ([0-9a-f:]{17})/.exec(shown)?.[1] ?? "").replaceAll(":", ""),
      "hex",
    );
    return new Vip(config, { name: config.device, index, mac });
  }

  /** Safe to repeat. */
  add(): void {
    const errno = this.#request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
    if (errno !== 0) throw this.#refused("put on", errno);
    this.#unpark();
  }

  /**
   * On the loopback device, where no neighbour is told of it: a connection of the application from this address can only
   * be restored on a node that has it, and it moves later than that. `add` and `remove` end it.
   */
  park(): void {
    if (this.#isIPv4) {
      const before = new Map<string, string>();
      for (const [name, value] of Object.entries(PARKED)) {
        before.set(name, readFileSync(this.#sysctlFile(name), "utf8"));
        writeFileSync(this.#sysctlFile(name), value);
      }
      this.#arpBefore ??= before;
    }
    const errno = this.#request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, LOOPBACK_INDEX);
    if (errno !== 0) throw this.#refused("parked for", errno);
  }

  /** Safe to repeat. Says whether it was there. */
  remove(): boolean {
    this.#quiet();
    this.#unpark();
    const errno = this.#request(RTM_DELADDR, 0);
    const name = errno === 0 ? "" : kernel.errnoName(errno);
    if (errno !== 0 && name !== "EADDRNOTAVAIL") throw this.#refused("taken off", errno);
    return errno === 0;
  }

  async isHere(): Promise<boolean> {
    const shown = await runCommand("ip", ["-o", "address", "show", "dev", this.config.device], {
      source: "kernel",
    });
    return shown.split("\n").some((line) => line.includes(` ${this.config.address}/`));
  }

  /**
   * Neighbours that still know the address at the old node learn the new place. Said again a few times, as long as the
   * address is here: one frame that a busy host drops would cost every client seconds (RFC 5227 section 2.3 repeats, too).
   * A loopback device has no neighbours.
   */
  announce(): void {
    if (this.#device.mac.length !== 6) return;
    this.#quiet();
    this.#say();
    this.#repeats = ANNOUNCE_AGAIN_MS.map((ms) => setTimeout(() => this.#say(), ms).unref());
  }

  #say(): void {
    try {
      announce(this.#device, this.config.address);
    } catch {
      // the device is down or full: said again soon, and neighbours ask in the end
    }
  }

  #quiet(): void {
    for (const timer of this.#repeats) clearTimeout(timer);
    this.#repeats = [];
  }

  #unpark(): void {
    const errno = this.#request(RTM_DELADDR, 0, LOOPBACK_INDEX);
    if (errno !== 0 && kernel.errnoName(errno) !== "EADDRNOTAVAIL")
      throw this.#refused("unparked for", errno);
    for (const [name, value] of this.#arpBefore ?? []) writeFileSync(this.#sysctlFile(name), value);
    this.#arpBefore = null;
  }

  get #isIPv4(): boolean {
    return !this.config.address.includes(":");
  }

  /** /proc/sys/net is that of the reader's network namespace */
  #sysctlFile(name: string): string {
    return `/proc/sys/net/ipv4/conf/${this.#device.name}/${name}`;
  }

  /** struct nlmsghdr, struct ifaddrmsg, IFA_LOCAL and IFA_ADDRESS. Returns the kernel's errno, 0 for done. */
  #request(type: number, flags: number, index = this.#device.index): number {
    const address = kernel.addressBytes(this.config.address);
    const isIPv6 = address.length === 16;
    const attribute = (number: number): Buffer => {
      const head = Buffer.alloc(4);
      head.writeUInt16LE(4 + address.length, 0);
      head.writeUInt16LE(number, 2);
      return Buffer.concat([head, address]);
    };
    const body = Buffer.alloc(8);
    body[0] = isIPv6 ? kernel.AF_INET6 : kernel.AF_INET;
    body[1] = index === LOOPBACK_INDEX ? address.length * 8 : this.config.prefix;
    body[2] = isIPv6 ? IFA_F_NODAD : 0;
    body.writeUInt32LE(index, 4);
    const payload = Buffer.concat([body, attribute(IFA_LOCAL), attribute(IFA_ADDRESS)]);
    const header = Buffer.alloc(16);
    header.writeUInt32LE(header.length + payload.length, 0);
    header.writeUInt16LE(type, 4);
    header.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK | flags, 6);
    const fd = kernel.socket(kernel.AF_NETLINK, kernel.SOCK_RAW | kernel.SOCK_CLOEXEC, NETLINK_ROUTE);
    try {
      kernel.send(fd, Buffer.concat([header, payload]), 0);
      const answer = Buffer.alloc(4096);
      const length = kernel.recv(fd, answer, 0);
      if (length < 20 || answer.readUInt16LE(4) !== NLMSG_ERROR) throw this.#refused("changed", 0);
      return -answer.readInt32LE(16);
    } finally {
      kernel.close(fd);
    }
  }

  #refused(what: string, errno: number): HoldfastError {
    const reason = errno === 0 ? "an answer that is none" : kernel.errnoName(errno);
    return new HoldfastError(
      `the address ${this.config.address} cannot be ${what} ${this.config.device}: ${reason}`,
      {
        code: "VIP_REFUSED",
        source: "kernel",
      },
    );
  }
}
