/** Labels of AppArmor or SELinux on processes (/proc/PID/attr/current): the target must know them, or CRIU fails to set them. */
import { readFile } from "node:fs/promises";
import type { Add } from "../../api/finding.ts";

const LABELS_MAX = 100;
/** where securityfs lists the profiles an AppArmor kernel has loaded, one a line: `NAME (MODE)` */
const APPARMOR_PROFILES = "/sys/kernel/security/apparmor/profiles";
const SELINUX = "/sys/fs/selinux/enforce";

/** Of these processes, those that confine; without a security module: none. */
export async function securityLabels(pids: number[]): Promise<string[]> {
  const labels = new Set<string>();
  for (const pid of pids) {
    const text = await readFile(`/proc/${pid}/attr/current`, "utf8").catch(() => "");
    const label = text.replace(/[\0\n]+$/, "");
    if (label !== "" && !/^(unconfined|kernel)$/.test(label)) labels.add(label);
    if (labels.size === LABELS_MAX) break;
  }
  return [...labels];
}

/** At the target. */
export async function checkLabels(labels: string[], add: Add): Promise<void> {
  if (labels.length === 0) return;
  const selinux = (await readFile(SELINUX, "utf8").catch(() => null)) !== null;
  const profiles = await readFile(APPARMOR_PROFILES, "utf8").catch(() => null);
  for (const label of labels) {
    // user:role:type:level, against `profile (mode)`
    const isSelinux = /^[^: ]+:[^: ]+:[^: ]+/.test(label);
    const name = label.replace(/ \(\w+\)$/, "");
    const known = isSelinux
      ? selinux
      : profiles?.split("\n").some((line) => line.startsWith(`${name} (`)) === true;
    if (!known)
      add(
        "target.security-label",
        "error",
        `a process is confined by ${label}, which that node does not have`,
        isSelinux ? "enable SELinux there with the same policy" : "load the same AppArmor profile there",
      );
  }
}
