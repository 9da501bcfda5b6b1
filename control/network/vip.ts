/**
 * The address that moves with a workload: put on a device, taken off, announced to the neighbours, looked after.
 *
 * It is put on alone, as /32 or /128. With the prefix of its subnet the kernel would count it among that subnet's addresses, and take
 * all of them off with the first (net.ipv4.conf.*.promote_secondaries is 0). What the prefix is for is a route: clients of the
 * subnet are neighbours on the device's link, also where the node has no other address there.
 *
 *   take    asks the link whether another machine has it, then puts it on; asks again as long as one has
 *   add     at once, for a cutover: whoever had it has just taken it off
 *   (both)  … and from then on it is put back when somebody takes it off, until
 *   remove, park
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import * as libc from "#proxy/kernel/libc.ts";
import { runCommand } from "../runtime/command.ts";
import { announce, type Device, findHolder } from "./announce.ts";
import type { ParkedAddresses } from "./parked-addresses.ts";
import {
  type AddressOnDevice,
  addAddress,
  addSubnetRoute,
  prefixesOf,
  removeAddress,
  removeSubnetRoute,
} from "./rtnetlink.ts";

/** the address; or the device, with all that it had */
const NOT_THERE = new Set(["EADDRNOTAVAIL", "ENODEV"]);

export interface VipConfig {
  address: string;
  prefix: number;
  device: string;
}

export interface VipOptions {
  parked: ParkedAddresses;
  /** what people should know: `fields` name the address */
  log?(level: "warn" | "error", fields: Record<string, unknown>, line: string): void;
  /** between two looks at whether it is still there */
  lookMs?: number;
}

const ANNOUNCE_AGAIN_MS = [30, 120, 500, 2_000];
const LOOK_MS = 1_000;
const LOOPBACK_INDEX = 1;

export class Vip {
  readonly config: VipConfig;
  #device: Device;
  #options: VipOptions;
  #repeats: NodeJS.Timeout[] = [];
  /** it is to be here: set until it is taken off or parked */
  #looking: NodeJS.Timeout | null = null;
  #isAsking = false;
  /** hardware address of the machine that has it meanwhile */
  #holder: string | null = null;

  private constructor(config: VipConfig, device: Device, options: VipOptions) {
    this.config = config;
    this.#device = device;
    this.#options = options;
  }

  /** @throws HoldfastError `VIP_DEVICE` when the device is not there */
  static async open(config: VipConfig, options: VipOptions): Promise<Vip> {
    const shown = await runCommand("ip", ["-o", "link", "show", "dev", config.device], {
      source: "config",
    }).catch((cause: unknown) => {
      throw fail("VIP_DEVICE", `vip.device ${config.device} does not exist on this node`, { cause });
    });
    const index = Number(/^(\d+):/.exec(shown)?.[1] ?? 0);
    const mac = Buffer.from(
      (/link\/ether ([0-9a-f:]{17})/.exec(shown)?.[1] ?? "").replaceAll(":", ""),
      "hex",
    );
    return new Vip(config, { name: config.device, index, mac }, options);
  }

  /** Another machine has it, as far as is known: its hardware address. null: none */
  get holder(): string | null {
    return this.#holder;
  }

  /**
   * The hardware address of another machine on the link that has it; null: none has answered within 300 ms, or it is here. Not asked
   * of IPv6, nor where there are no neighbours. Never rejects: what hinders the question is logged, and does not hinder the address.
   */
  async ask(): Promise<string | null> {
    if (!this.#isIPv4 || this.#device.mac.length !== 6) return null;
    try {
      if (this.isHere()) return null;
      return await findHolder(this.#device, this.config.address);
    } catch (error) {
      this.#tell("warn", { reason: messageOf(error) }, "cannot ask whether another machine has the address");
      return null;
    }
  }

  /**
   * Puts it on and announces it, unless another machine on the link has it: then this is logged, and asked again each second
   * until it is free. @param asked of {@link ask}, where that was begun before. @returns whether it is here
   * @throws HoldfastError `VIP_REFUSED`
   */
  async take(asked: Promise<string | null> = this.ask()): Promise<boolean> {
    this.#lookAfter();
    this.#isAsking = true;
    try {
      const holder = await asked;
      if (this.#looking === null) return false;
      this.#found(holder);
      if (holder !== null) return false;
      this.add();
      this.announce();
      return true;
    } finally {
      this.#isAsking = false;
    }
  }

  /** At once, whoever may have it. Safe to repeat. @throws HoldfastError `VIP_REFUSED` */
  add(): void {
    const errno = addAddress(this.#alone());
    if (errno !== 0) throw this.#refused("put on", errno);
    this.#holder = null;
    this.#lookAfter();
    this.#addRoute();
    this.#unpark();
  }

  /**
   * On the loopback device, where no neighbour is told of it: a connection of the application from this address can only
   * be restored on a node that has it, and it moves later than that. `add` and `remove` end it.
   */
  park(): void {
    this.close();
    if (this.#isIPv4) this.#options.parked.hide(this.config.device, this.config.address);
    const errno = addAddress(this.#alone(LOOPBACK_INDEX));
    if (errno !== 0) throw this.#refused("parked for", errno);
  }

  /** Safe to repeat. Says whether it was there, with whatever prefix. */
  remove(): boolean {
    this.close();
    this.#unpark();
    const prefixes = new Set([this.#alone().prefix, ...prefixesOf(this.config.address, this.#device.index)]);
    let wasThere = false;
    for (const prefix of prefixes) {
      const errno = removeAddress({ ...this.#alone(), prefix });
      if (errno === 0) wasThere = true;
      else if (!NOT_THERE.has(libc.errnoName(errno))) throw this.#refused("taken off", errno);
    }
    if (!this.#isIPv4 && this.#hasRoute) removeSubnetRoute(this.#inSubnet());
    return wasThere;
  }

  isHere(): boolean {
    return prefixesOf(this.config.address, this.#device.index).length > 0;
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

  /** Looks after it no more, and leaves it where it is. */
  close(): void {
    this.#quiet();
    if (this.#looking !== null) clearInterval(this.#looking);
    this.#looking = null;
    this.#holder = null;
  }

  #lookAfter(): void {
    this.#looking ??= setInterval(() => void this.#look(), this.#options.lookMs ?? LOOK_MS).unref();
  }

  async #look(): Promise<void> {
    if (this.#isAsking) return;
    try {
      if (this.isHere()) return;
      const wasHeld = this.#holder !== null;
      if (!(await this.take())) return;
      this.#tell(
        "warn",
        {},
        wasHeld
          ? "the address has become free: put on"
          : "the address had been taken off by somebody else: put back",
      );
    } catch (error) {
      this.#tell("warn", { reason: messageOf(error) }, "the address is not here; it is tried again");
    }
  }

  #found(holder: string | null): void {
    if (holder !== null && holder !== this.#holder)
      this.#tell(
        "error",
        { holder, cure: "take it off that machine; it is put on here when nobody answers for it any more" },
        "another machine has the address, so it is not put on here: clients do not reach the workload",
      );
    this.#holder = holder;
  }

  #tell(level: "warn" | "error", fields: Record<string, unknown>, line: string): void {
    const { address, device } = this.config;
    this.#options.log?.(level, { address, device, ...fields }, line);
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
    const errno = removeAddress(this.#alone(LOOPBACK_INDEX));
    if (errno !== 0 && libc.errnoName(errno) !== "EADDRNOTAVAIL") throw this.#refused("unparked for", errno);
    if (this.#isIPv4) this.#options.parked.show(this.config.device, this.config.address);
  }

  /** A client beyond a router is reached without it, so that it cannot be made is not the end. */
  #addRoute(): void {
    if (!this.#hasRoute) return;
    const errno = addSubnetRoute(this.#inSubnet());
    if (errno !== 0)
      this.#tell(
        "warn",
        { reason: libc.errnoName(errno) },
        "no route to the address's subnet: its clients there may not be answered",
      );
  }

  get #hasRoute(): boolean {
    return this.config.prefix < this.#alone().prefix && this.#device.index !== LOOPBACK_INDEX;
  }

  #alone(index = this.#device.index): AddressOnDevice {
    return { address: this.config.address, prefix: this.#isIPv4 ? 32 : 128, index };
  }

  #inSubnet(): AddressOnDevice {
    return { ...this.#alone(), prefix: this.config.prefix };
  }

  get #isIPv4(): boolean {
    return !this.config.address.includes(":");
  }

  #refused(what: string, errno: number): HoldfastError {
    return fail(
      "VIP_REFUSED",
      `the address ${this.config.address} cannot be ${what} ${this.config.device}: ${libc.errnoName(errno)}`,
    );
  }
}
