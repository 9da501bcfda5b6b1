/**
 * Devices whose neighbours are not to hear of addresses that are parked on the loopback device. How a device was before is on record
 * until its last address leaves: two workloads may move here at once, and an agent may be killed meanwhile.
 *
 * Nobody is answered for such an address, and who asks on its behalf (a restored connection that leaves repair mode probes its peer's
 * window) does not give it as the asker's, which every neighbour would believe (Documentation/networking/ip-sysctl.rst). IPv6 does both only for
 * addresses of the device itself (ndisc_solicit()).
 */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { bootId } from "../runtime/boot-id.ts";
import { isShortage } from "../runtime/read-text.ts";

const PARKED = { arp_ignore: "1", arp_announce: "2" } as const;

const deviceSchema = z.object({
  /** what they were; of {@link PARKED} */
  before: z.record(z.string(), z.string()),
  addresses: z.array(z.string()),
});
const recordSchema = z.object({ boot: z.string(), devices: z.record(z.string(), deviceSchema) });
type Devices = z.infer<typeof recordSchema>["devices"];

export class ParkedAddresses {
  readonly #path: string;

  /** @param path of the record */
  constructor(path: string) {
    this.#path = path;
  }

  /** Before the address is anywhere here. Safe to repeat. */
  hide(device: string, address: string): void {
    const devices = this.#read();
    const { before, addresses } = devices[device] ?? { before: {}, addresses: [] };
    for (const name of Object.keys(PARKED)) before[name] ??= readFileSync(sysctlFile(device, name), "utf8");
    this.#write({ ...devices, [device]: { before, addresses: [...new Set(addresses).add(address)] } });
    for (const [name, value] of Object.entries(PARKED)) writeFileSync(sysctlFile(device, name), value);
  }

  /** It is parked no more. Safe to repeat. */
  show(device: string, address: string): void {
    const devices = this.#read();
    const parked = devices[device];
    if (parked?.addresses.includes(address) !== true) return;
    const addresses = parked.addresses.filter((other) => other !== address);
    const { [device]: _, ...others } = devices;
    if (addresses.length > 0) {
      this.#write({ ...others, [device]: { ...parked, addresses } });
      return;
    }
    for (const [name, value] of Object.entries(parked.before)) restore(sysctlFile(device, name), value);
    this.#write(others);
  }

  /** @throws Error a shortage, which says nothing of the file; one that is damaged, or of another boot, is as none */
  #read(): Devices {
    try {
      const record = recordSchema.parse(JSON.parse(readFileSync(this.#path, "utf8")));
      return record.boot === bootId() ? record.devices : {};
    } catch (error) {
      if (isShortage(error)) throw error;
      return {};
    }
  }

  #write(devices: Devices): void {
    writeFileSync(`${this.#path}.new`, JSON.stringify({ boot: bootId(), devices }), { mode: 0o600 });
    renameSync(`${this.#path}.new`, this.#path);
  }
}

/** Of a device that has gone there is nothing to be put back. */
function restore(file: string, value: string): void {
  try {
    writeFileSync(file, value);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
}

/** /proc/sys/net is that of the reader's network namespace */
function sysctlFile(device: string, name: string): string {
  return `/proc/sys/net/ipv4/conf/${device}/${name}`;
}
