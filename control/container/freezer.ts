/**
 * Stops a process tree so that nobody can tell: SIGSTOP is reported to parents (wait(2), WUNTRACED), and SIGCONT runs
 * handlers; the freezer of a control group does neither.
 *
 * The tree gets a control group of its own below the container's, in the one hierarchy that can freeze, so that the
 * container's init and CRIU go on. Sources: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst (`freezer.state`),
 * cgroup-v2.rst (`cgroup.freeze`, `cgroup.events`).
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { type CgroupFolder, cgroupFoldersOf, mountedHierarchies } from "./cgroups.ts";

/** group of the application's tree, below the container's */
const GROUP = "holdfast-tree";
const FREEZE_MS_MAX = 2_000;
const POLL_MS = 1;

export class Freezer {
  #folder: string;
  #isV1: boolean;

  private constructor(container: CgroupFolder) {
    this.#folder = join(container.folder, GROUP);
    this.#isV1 = container.controllers !== "";
  }

  /** null: this machine has no freezer for it */
  static async of(container: { init: { pid: number } }): Promise<Freezer | null> {
    const folders = await cgroupFoldersOf(container.init.pid);
    const v1 = folders.find(({ controllers }) => controllers.split(",").includes("freezer"));
    const v2 = folders.find(({ controllers }) => controllers === "");
    const found = v1 ?? v2;
    return found === undefined ? null : new Freezer(found);
  }

  /**
   * Moves the processes into the group and freezes it. Call it while they cannot fork.
   * @throws HoldfastError `FREEZER` when one of them does not freeze within 2 s; nothing is frozen then
   */
  async freeze(pids: number[]): Promise<void> {
    mkdirSync(this.#folder, { recursive: true });
    for (const pid of pids) enter(this.#folder, pid);
    this.#write(true);
    const late = performance.now() + FREEZE_MS_MAX;
    while (!this.#isComplete()) {
      if (performance.now() > late) {
        this.thaw();
        throw new HoldfastError(`the application's processes do not freeze (${this.#folder})`, {
          code: "FREEZER",
          source: "kernel",
          retryable: true,
        });
      }
      await delay(POLL_MS);
    }
  }

  /** Frozen, or about to be. */
  get isFrozen(): boolean {
    const text = readText(join(this.#folder, this.#isV1 ? "freezer.state" : "cgroup.freeze")).trim();
    return text !== "" && text !== (this.#isV1 ? "THAWED" : "0");
  }

  /** Safe to repeat. */
  thaw(): void {
    if (this.isFrozen) this.#write(false);
  }

  #write(frozen: boolean): void {
    if (this.#isV1) writeFileSync(join(this.#folder, "freezer.state"), frozen ? "FROZEN" : "THAWED");
    else writeFileSync(join(this.#folder, "cgroup.freeze"), frozen ? "1" : "0");
  }

  #isComplete(): boolean {
    if (this.#isV1) return readText(join(this.#folder, "freezer.state")).trim() === "FROZEN";
    return /^frozen 1$/m.test(readText(join(this.#folder, "cgroup.events")));
  }
}

/**
 * Lets a frozen tree of a container die: a frozen process does not take even SIGKILL (v1), and one that is killed first
 * runs no instruction of its own when it thaws.
 * @param cgroupsPath of the container, in every hierarchy
 */
export async function endFrozen(cgroupsPath: string): Promise<void> {
  const mounts = await readFile("/proc/self/mountinfo", "utf8");
  for (const mountPoint of mountedHierarchies(mounts)) {
    const folder = join(mountPoint, cgroupsPath, GROUP);
    for (const pid of readText(join(folder, "cgroup.procs")).split("\n")) {
      if (pid === "") continue;
      try {
        process.kill(Number(pid), "SIGKILL");
      } catch {
        // it has ended
      }
    }
    for (const [file, thawed] of [
      ["freezer.state", "THAWED"],
      ["cgroup.freeze", "0"],
    ] as const) {
      if (readText(join(folder, file)) !== "") writeFileSync(join(folder, file), thawed);
    }
  }
}

function enter(folder: string, pid: number): void {
  try {
    writeFileSync(join(folder, "cgroup.procs"), String(pid));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // a zombie, or gone
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
