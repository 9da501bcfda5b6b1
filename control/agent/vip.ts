/** The address that moves with a workload: put on a device, taken off, announced to the neighbours. */
import { HoldfastError } from "#proxy/contract/errors.ts";
import { runCommand } from "../container/command.ts";
import { announce, type Device } from "./announce.ts";

export interface VipConfig {
  address: string;
  prefix: number;
  device: string;
}

export class Vip {
  readonly config: VipConfig;
  #device: Device;

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

  /** Safe to repeat. `nodad`: a moved IPv6 address must work at once. */
  async add(): Promise<void> {
    const nodad = this.config.address.includes(":") ? ["nodad"] : [];
    await runCommand("ip", ["address", "replace", this.#cidr, "dev", this.config.device, ...nodad], {
      source: "kernel",
    });
  }

  /** Safe to repeat. */
  async remove(): Promise<void> {
    await runCommand("ip", ["address", "del", this.#cidr, "dev", this.config.device], {
      source: "kernel",
    }).catch(async (error) => {
      if (await this.isHere()) throw error;
    });
  }

  async isHere(): Promise<boolean> {
    const shown = await runCommand("ip", ["-o", "address", "show", "dev", this.config.device], {
      source: "kernel",
    });
    return shown.split("\n").some((line) => line.includes(` ${this.config.address}/`));
  }

  /** Neighbours that still know the address at the old node learn the new place. A loopback device has none. */
  announce(): void {
    if (this.#device.mac.length === 6) announce(this.#device, this.config.address);
  }

  get #cidr(): string {
    return `${this.config.address}/${this.config.prefix}`;
  }
}
