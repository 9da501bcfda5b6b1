/**
 * Finds and removes what a laboratory left on the machine: processes, containers, mounts, network namespaces, folders.
 * Everything here is synchronous, so that it also works while the process is ending, and for runs that died long ago.
 *
 * A laboratory is known by its id, `<prefix><pid>-<number>`. Its processes carry `HOLDFAST_LAB=<id>` in their
 * environment, or live in one of its network namespaces, or have one of its folders as their root: a container's
 * environment and namespaces are its own. Processes are ended by pid, and only while they still show that sign.
 */
import { spawnSync } from "node:child_process";
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { mountedHierarchies } from "#control/runtime/cgroups.ts";

export const labMarker = "HOLDFAST_LAB";
/** of ids: a whole laboratory's, one of proxies alone (`test/support/proxy-lab.ts`), a cluster's (`test/kube/cluster.ts`) */
export const labPrefixes = { whole: "hf", proxies: "hfpx", clusters: "hfk" } as const;
const labsDir = "/tmp";
const netnsDir = "/run/netns";
/** where runc and crun keep their containers when not told otherwise */
const runtimeRoots = ["/run/runc", "/run/crun"];
/** a busy machine takes its time to end what was killed */
const killWaitMs = 20_000;

export interface Leftovers {
  processes: { pid: number; command: string }[];
  namespaces: string[];
  nftTables: string[];
  mounts: string[];
  /** control groups named after the laboratory, and those below them */
  cgroups: string[];
  containers: { root: string; id: string }[];
  folders: string[];
}

export function labDir(id: string): string {
  return join(labsDir, id);
}

/** What of laboratory `id` is on the machine now. `spared` are processes that may live on (the caller). */
export function findLeftovers(id: string, spared: readonly number[] = [process.pid]): Leftovers {
  const dir = labDir(id);
  const namespaces = listDir(netnsDir).filter((name) => name.startsWith(`${id}-`));
  return {
    processes: findProcesses(id, namespaces).filter(({ pid }) => !spared.includes(pid)),
    namespaces,
    nftTables: hostTables().filter((table) => table.includes(id)),
    mounts: mountsBelow(dir),
    cgroups: cgroupTreesOf(id),
    containers: findContainers(dir),
    folders: existsSync(dir) ? [dir] : [],
  };
}

export function isClean(left: Leftovers): boolean {
  return Object.values(left).every((list) => list.length === 0);
}

/** Removes everything {@link findLeftovers} finds, and says what could not be removed. */
export function sweep(id: string): Leftovers {
  const dir = labDir(id);
  const cgroups = new Set<string>();
  const until = Date.now() + killWaitMs;
  let left = findLeftovers(id);
  while (left.processes.length > 0 && Date.now() < until) {
    for (const { pid } of left.processes) {
      for (const cgroup of cgroupsOf(pid)) cgroups.add(cgroup);
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // it has ended by itself
      }
    }
    for (const cgroup of cgroups) thaw(cgroup);
    pause(20);
    left = findLeftovers(id);
  }
  for (const { root, id: container } of left.containers) {
    const runtime = root.includes("crun") ? "crun" : "runc";
    spawnSync(runtime, ["--root", root, "delete", "--force", container], { stdio: "ignore" });
    if (existsSync(join(root, container))) rmSync(join(root, container), { recursive: true, force: true });
  }
  for (const mount of mountsBelow(dir)) spawnSync("umount", ["--lazy", mount], { stdio: "ignore" });
  if (left.namespaces.length > 0)
    spawnSync("ip", ["-force", "-batch", "-"], {
      input: left.namespaces.map((name) => `netns del ${name}\n`).join(""),
      stdio: ["pipe", "ignore", "ignore"],
    });
  for (const table of left.nftTables)
    spawnSync("nft", ["delete", "table", ...table.split(" ")], { stdio: "ignore" });
  for (const cgroup of [...cgroups].sort((a, b) => b.length - a.length)) {
    try {
      rmdirSync(cgroup);
    } catch {
      // in use by somebody else, or gone with its container
    }
  }
  removeCgroups(id);
  // A mount that is still there must not have its files removed through it.
  if (mountsBelow(dir).length === 0) rmSync(dir, { recursive: true, force: true });
  return findLeftovers(id);
}

/** Sweeps the laboratories of `prefix` whose process is gone. Returns their ids. */
export function sweepDeadLabs(prefix: string): string[] {
  const pattern = new RegExp(`^(${prefix}(\\d+)-\\d+)(-|$)`);
  const dead = new Set<string>();
  for (const name of [...listDir(labsDir), ...listDir(netnsDir)]) {
    const [, id, pid] = pattern.exec(name) ?? [];
    if (id !== undefined && pid !== undefined && !ownerLives(id, Number(pid))) dead.add(id);
  }
  for (const id of dead) sweep(id);
  return [...dead];
}

/** In which moment the kernel started a process, in clock ticks since boot; null when there is no such process. */
export function startTimeOf(pid: number): string | null {
  const stat = readText(`/proc/${pid}/stat`);
  return stat === null ? null : (stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? null);
}

/** A frozen process does not take SIGKILL before it thaws. */
function thaw(cgroup: string): void {
  for (const [file, thawed] of [
    ["freezer.state", "THAWED"],
    ["cgroup.freeze", "0"],
  ] as const) {
    if (existsSync(join(cgroup, file))) writeFileSync(join(cgroup, file), thawed);
  }
}

/** A pid may have been given to another process since: the folder remembers when its owner started. */
function ownerLives(id: string, pid: number): boolean {
  const startTime = startTimeOf(pid);
  const recorded = readText(join(labDir(id), "owner"));
  return startTime !== null && (recorded === null || recorded === startTime);
}

/** Ends what runs in a network namespace, or has a folder of `dir` as its root, until nothing does. */
export function killAllIn(namespace: string, dir: string): void {
  const inode = inodeOf(join(netnsDir, namespace));
  const until = Date.now() + killWaitMs;
  for (;;) {
    const living = listDir("/proc")
      .map(Number)
      .filter((pid) => Number.isInteger(pid) && pid !== process.pid)
      .filter((pid) => inodeOf(`/proc/${pid}/ns/net`) === inode || hasOtherRoot(pid, dir))
      .filter((pid) => stateOf(pid) !== "Z");
    if (living.length === 0 || Date.now() > until) return;
    for (const pid of living) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // it has ended by itself
      }
      for (const cgroup of cgroupsOf(pid)) thaw(cgroup);
    }
    pause(5);
  }
}

function hasOtherRoot(pid: number, dir: string): boolean {
  return readLink(`/proc/${pid}/ns/mnt`) !== readLink("/proc/self/ns/mnt") && rootIsIn(pid, dir);
}

function findProcesses(id: string, namespaces: string[]): { pid: number; command: string }[] {
  const nets = new Set(
    namespaces.map((name) => inodeOf(join(netnsDir, name))).filter((inode) => inode !== null),
  );
  const marker = `${labMarker}=${id}`;
  const ownMounts = readLink("/proc/self/ns/mnt");
  const found: { pid: number; command: string }[] = [];
  for (const name of listDir("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const environment = readText(`/proc/${pid}/environ`);
    const belongs =
      environment?.split("\0").includes(marker) ||
      nets.has(inodeOf(`/proc/${pid}/ns/net`) ?? -1) ||
      (readLink(`/proc/${pid}/ns/mnt`) !== ownMounts && rootIsIn(pid, labDir(id)));
    if (!belongs || stateOf(pid) === "Z") continue;
    const command = readText(`/proc/${pid}/cmdline`)?.replaceAll("\0", " ").trim() ?? "";
    found.push({ pid, command });
  }
  return found;
}

/** Whether what the process sees as / comes from below `dir`: a bind mount of it, or an overlay that writes to it. */
function rootIsIn(pid: number, dir: string): boolean {
  const lines = readText(`/proc/${pid}/mountinfo`)?.split("\n") ?? [];
  return lines.some((line) => line.split(" ")[4] === "/" && `${line},`.includes(`${dir}/`));
}

function findContainers(dir: string): { root: string; id: string }[] {
  const roots = [...runtimeRoots, ...runtimeRootsBelow(dir)];
  return roots.flatMap((root) =>
    listDir(root)
      .filter((id) => {
        const state = readText(join(root, id, "state.json")) ?? readText(join(root, id, "status"));
        return state?.includes(`${dir}/`) ?? false;
      })
      .map((id) => ({ root, id })),
  );
}

/** Folders below a laboratory's that hold a runtime's state: `ROOT/ID/state.json` (runc), `ROOT/ID/status` (crun). */
function runtimeRootsBelow(dir: string, depth = 4): string[] {
  if (depth === 0) return [];
  return listDir(dir, true).flatMap((name) => {
    const child = join(dir, name);
    const holds = listDir(child, true).some(
      (id) => existsSync(join(child, id, "state.json")) || existsSync(join(child, id, "status")),
    );
    return holds ? [child] : runtimeRootsBelow(child, depth - 1);
  });
}

/** Deepest first, the order in which they can be taken away. */
function mountsBelow(dir: string): string[] {
  const lines = readText("/proc/self/mountinfo")?.split("\n") ?? [];
  return lines
    .map((line) => line.split(" ")[4] ?? "")
    .filter((mount) => mount === dir || mount.startsWith(`${dir}/`))
    .reverse();
}

function hostTables(): string[] {
  const { stdout } = spawnSync("nft", ["list", "tables"], { encoding: "utf8" });
  return (stdout ?? "")
    .split("\n")
    .filter((line) => line.startsWith("table "))
    .map((line) => line.slice("table ".length).trim());
}

/** The cgroup folders that are a process's own, not shared with us. */
function cgroupsOf(pid: number): string[] {
  const pathsOf = (who: number | "self") =>
    (readText(`/proc/${who}/cgroup`) ?? "").split("\n").filter((line) => line.includes(":"));
  const own = new Set(pathsOf("self"));
  return pathsOf(pid)
    .filter((line) => !own.has(line) && !line.endsWith(":/"))
    .map((line) => {
      const [, controllers = "", path = ""] = line.split(":");
      return join("/sys/fs/cgroup", controllers.replace(/^name=/, ""), path);
    });
}

/** In every hierarchy, deepest first: the order in which they can be removed. */
function cgroupTreesOf(id: string): string[] {
  const below = (group: string): string[] => [
    ...listDir(group, true).flatMap((name) => below(join(group, name))),
    group,
  ];
  return mountedHierarchies(readText("/proc/self/mountinfo") ?? "").flatMap((hierarchy) =>
    existsSync(join(hierarchy, id)) ? below(join(hierarchy, id)) : [],
  );
}

/** The kernel lets go of a group some time after its last process has ended. */
function removeCgroups(id: string): void {
  const until = Date.now() + killWaitMs;
  for (let left = cgroupTreesOf(id); left.length > 0; left = cgroupTreesOf(id)) {
    for (const group of left) {
      try {
        rmdirSync(group);
      } catch {
        // not yet
      }
    }
    if (Date.now() > until) return;
    if (cgroupTreesOf(id).length > 0) pause(20);
  }
}

function stateOf(pid: number): string | undefined {
  const stat = readText(`/proc/${pid}/stat`);
  return stat?.slice(stat.lastIndexOf(")") + 2)[0];
}

function listDir(dir: string, foldersOnly = false): string[] {
  try {
    return readdirSync(dir, { withFileTypes: true })
      .filter((entry) => !foldersOnly || entry.isDirectory())
      .map((entry) => entry.name);
  } catch {
    return [];
  }
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

function readLink(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch {
    return null;
  }
}

function inodeOf(path: string): number | null {
  return statSyncOrNull(path)?.ino ?? null;
}

function statSyncOrNull(path: string) {
  try {
    return statSync(path);
  } catch {
    return null;
  }
}

function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
