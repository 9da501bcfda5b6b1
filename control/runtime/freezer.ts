/**
 * Stops a container so that nobody in it can tell: SIGSTOP is reported to parents (wait(2), WUNTRACED), and SIGCONT runs
 * handlers; the freezer of its control group does neither.
 *
 * Everything in the group stops, the container's init too. CRIU has to be outside when that happens, and what it
 * restores inside. Sources: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst (`freezer.state`), cgroup-v2.rst
 * (`cgroup.freeze`, `cgroup.events`).
 */
import { readdirSync, writeFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { type CgroupFolder, cgroupFoldersOf, mountedHierarchies } from "./cgroups.ts";
import { readText } from "./read-text.ts";

const FREEZE_MS_MAX = 2_000;
const POLL_MS = 1;

export class Freezer {
  /** `cgroup.procs` of the hierarchy that freezes */
  readonly procs: string;
  #folder: string;
  #isV1: boolean;

  private constructor({ controllers, folder }: CgroupFolder) {
    this.#folder = folder;
    this.#isV1 = controllers !== "";
    this.procs = join(folder, "cgroup.procs");
  }

  /** null: this machine has no freezer for it */
  static async of(container: { init: { pid: number } }): Promise<Freezer | null> {
    const found = freezing(await cgroupFoldersOf(container.init.pid));
    return found === undefined ? null : new Freezer(found);
  }

  /** Moves processes to where the agent is: they go on when the container freezes. */
  async spare(pids: number[]): Promise<void> {
    const own = freezing(await cgroupFoldersOf(process.pid, { withRoots: true }));
    if (own === undefined) return;
    // the kernel lets some milliseconds pass (RCU): not in the event loop
    for (const pid of pids) await writeFile(join(own.folder, "cgroup.procs"), String(pid));
  }

  /** @throws HoldfastError `FREEZER` when something does not freeze within 2 s; nothing is frozen then */
  async freeze(): Promise<void> {
    this.#write(true);
    const late = performance.now() + FREEZE_MS_MAX;
    while (!this.isComplete) {
      if (performance.now() > late) {
        this.thaw();
        throw fail("FREEZER", `the application's processes do not freeze (${this.#folder})`);
      }
      await delay(POLL_MS);
    }
  }

  /** Frozen, or about to be. */
  get isFrozen(): boolean {
    const text = readText(join(this.#folder, this.#isV1 ? "freezer.state" : "cgroup.freeze")).trim();
    return text !== "" && text !== (this.#isV1 ? "THAWED" : "0");
  }

  /** A signal has a frozen thread look for it, and freeze again. */
  get wakesForSignals(): boolean {
    return !this.#isV1;
  }

  /** Safe to repeat. What has gone needs none. */
  thaw(): void {
    try {
      this.#write(false);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "ENOENT" && code !== "ENODEV") throw error;
    }
  }

  #write(frozen: boolean): void {
    if (this.#isV1) writeFileSync(join(this.#folder, "freezer.state"), frozen ? "FROZEN" : "THAWED");
    else writeFileSync(join(this.#folder, "cgroup.freeze"), frozen ? "1" : "0");
  }

  /** Everything in it has come to rest. */
  get isComplete(): boolean {
    if (this.#isV1) return readText(join(this.#folder, "freezer.state")).trim() === "FROZEN";
    return /^frozen 1$/m.test(readText(join(this.#folder, "cgroup.events")));
  }
}

/** v1 where it has the controller, else the unified hierarchy. */
function freezing(folders: CgroupFolder[]): CgroupFolder | undefined {
  return (
    folders.find(({ controllers }) => controllers.split(",").includes("freezer")) ??
    folders.find(({ controllers }) => controllers === "")
  );
}

/**
 * Lets a frozen container die: a frozen process does not take even SIGKILL (v1), and one that is killed first runs no
 * instruction of its own when it thaws. Does nothing to one that is not frozen.
 * @param cgroupsPath of the container, in every hierarchy
 */
export async function endFrozen(cgroupsPath: string): Promise<void> {
  const mounts = await readFile("/proc/self/mountinfo", "utf8");
  for (const mountPoint of mountedHierarchies(mounts)) {
    for (const [file, thawed] of [
      ["freezer.state", "THAWED"],
      ["cgroup.freeze", "0"],
    ] as const) {
      const state = join(mountPoint, cgroupsPath, file);
      if (["", thawed].includes(readText(state).trim())) continue;
      for (const pid of processesBelow(join(mountPoint, cgroupsPath))) kill(pid);
      writeFileSync(state, thawed);
    }
  }
}

/** Of a group and of those that the container has made in it. */
function processesBelow(folder: string): number[] {
  const own = readText(join(folder, "cgroup.procs")).split("\n");
  const pids = own.filter((pid) => pid !== "").map(Number);
  for (const entry of readdirSync(folder, { withFileTypes: true }))
    if (entry.isDirectory()) pids.push(...processesBelow(join(folder, entry.name)));
  return pids;
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // it has ended
  }
}
