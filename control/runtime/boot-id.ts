/** Which boot of the machine this is (random(4)): what was so in another one is no more. */
import { readFileSync } from "node:fs";

const FILE = "/proc/sys/kernel/random/boot_id";
let boot: string | undefined;

export function bootId(): string {
  boot ??= readFileSync(FILE, "utf8").trim();
  return boot;
}
