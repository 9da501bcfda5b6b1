/** Control groups (cgroups(7)), v1, v2 or both: where a container is in them, and where they are mounted. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { runCommand } from "./command.ts";

const ROOT = "/sys/fs/cgroup";

/** Where a process is in one hierarchy. */
export interface CgroupFolder {
  /** as /proc/PID/cgroup names them, with commas; "" is the unified hierarchy (v2) */
  controllers: string;
  /** host path */
  folder: string;
}

/** The folder of a process in every hierarchy that is mounted here; the roots are left out if not asked for. */
export async function cgroupFoldersOf(
  pid: number,
  { withRoots = false }: { withRoots?: boolean } = {},
): Promise<CgroupFolder[]> {
  const mounts = await readFile("/proc/self/mountinfo", "utf8");
  const folders: CgroupFolder[] = [];
  for (const { controllers, path } of hierarchiesOf(await readFile(`/proc/${pid}/cgroup`, "utf8"))) {
    const mountPoint = mountPointOf(mounts, controllers);
    if (mountPoint !== null && (withRoots || path !== "/"))
      folders.push({ controllers, folder: join(mountPoint, path) });
  }
  return folders;
}

/** How many threads and processes more its control groups have room for (pids.max; cgroup-v2.rst, cgroup-v1/pids.rst). Infinity: no limit */
export async function roomForThreads(pid: number): Promise<number> {
  let room = Number.POSITIVE_INFINITY;
  for (const { controllers, folder } of await cgroupFoldersOf(pid)) {
    if (controllers !== "" && !controllers.split(",").includes("pids")) continue;
    const read = (name: string): Promise<number> =>
      readFile(join(folder, name), "utf8").then(Number, () => Number.NaN);
    const left = (await read("pids.max")) - (await read("pids.current"));
    if (left < room) room = left; // "max", or no such file, is not a number
  }
  return room;
}

/**
 * Makes a group in every hierarchy, below its root as it is mounted here: for processes that outlive the container of this one, whose
 * end is that of everything in its groups. Returns their `cgroup.procs`.
 */
export function makeTopGroups(name: string): string[] {
  const mounts = readFileSync("/proc/self/mountinfo", "utf8");
  return hierarchiesOf(readFileSync("/proc/self/cgroup", "utf8")).flatMap(({ controllers }) => {
    const root = mountPointOf(mounts, controllers);
    if (root === null) return [];
    const group = join(root, name);
    mkdirSync(group, { recursive: true });
    // a new one has none, and takes no process (cgroup-v1/cpusets.rst)
    for (const file of ["cpuset.cpus", "cpuset.mems"])
      if (controllers !== "" && existsSync(join(group, file)))
        writeFileSync(join(group, file), readFileSync(join(root, file)));
    return [join(group, "cgroup.procs")];
  });
}

/** `cgroup.procs` of every hierarchy a container is in, the roots left out. */
export async function cgroupProcsOf(container: { init: { pid: number } }): Promise<string[]> {
  return (await cgroupFoldersOf(container.init.pid)).map(({ folder }) => join(folder, "cgroup.procs"));
}

/** … of the one that accounts for memory only: others would slow down what joins it, or forbid it devices. [] where there is none */
export async function memoryProcsOf(pid: number): Promise<string[]> {
  const folders = await cgroupFoldersOf(pid);
  const memory = folders.filter(({ controllers }) => controllers.split(",").includes("memory"));
  const own = memory.length > 0 ? memory : folders.filter(({ controllers }) => controllers === "");
  return own.map(({ folder }) => join(folder, "cgroup.procs"));
}

/** Mount points of all control group hierarchies in a mountinfo (proc(5)). */
export function mountedHierarchies(mountinfo: string): string[] {
  return mountinfo.split("\n").flatMap((line) => {
    const [before = "", after = ""] = line.split(" - ");
    return /^cgroup2? /.test(after) ? [before.split(" ")[4] ?? ""] : [];
  });
}

/**
 * `ip netns exec` gives its command a new /sys with nothing mounted in it, and no container runtime works without cgroups.
 * Mounts what is missing, seen only in the mount namespace that ip(8) made. Returns what it mounted.
 */
export async function mountMissingCgroups(): Promise<string[]> {
  const own = hierarchiesOf(readFileSync("/proc/self/cgroup", "utf8"));
  const mounts = readFileSync("/proc/self/mountinfo", "utf8");
  const missing = own.filter(({ controllers }) => mountPointOf(mounts, controllers) === null);
  if (missing.length < own.length || own.length === 0) return []; // some are there: the machine is meant to be like this
  const isV1 = own.some(({ controllers }) => controllers !== "");
  if (isV1)
    await runCommand("mount", ["-t", "tmpfs", "-o", "mode=755", "cgroup", ROOT], { source: "container" });
  const mounted: string[] = [];
  for (const { controllers } of missing) {
    const name = controllers === "" ? "unified" : controllers.replace(/^name=/, "");
    const folder = isV1 ? join(ROOT, name) : ROOT;
    mkdirSync(folder, { recursive: true });
    const type =
      controllers === ""
        ? ["-t", "cgroup2", "cgroup2"]
        : ["-t", "cgroup", "-o", hierarchyOption(controllers), "cgroup"];
    await runCommand("mount", [...type, folder], { source: "container" });
    mounted.push(folder);
  }
  return mounted;
}

function hierarchyOption(controllers: string): string {
  return controllers.startsWith("name=") ? `none,${controllers}` : controllers;
}

/** Lines of /proc/PID/cgroup; controllers "" is the unified hierarchy. */
function hierarchiesOf(text: string): { controllers: string; path: string }[] {
  return text
    .trim()
    .split("\n")
    .flatMap((line) => {
      const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
      return controllers === undefined || path === undefined ? [] : [{ controllers, path }];
    });
}

/** From mountinfo (proc(5)). null: not mounted here */
function mountPointOf(mountinfo: string, controllers: string): string | null {
  const wanted = controllers.split(",");
  for (const line of mountinfo.split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const mountPoint = before.split(" ")[4] ?? "";
    const [type, , superOptions = ""] = after.split(" ");
    const isIt =
      controllers === ""
        ? type === "cgroup2"
        : type === "cgroup" && wanted.every((name) => superOptions.split(",").includes(name));
    if (isIt) return mountPoint;
  }
  return null;
}
