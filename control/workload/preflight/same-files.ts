/**
 * Files that a move does not carry, because both nodes are to have them: of the root file system and of mounts. CRIU opens
 * and maps them again at the target, and refuses one of another size; one of the same size and another content it would map
 * into the running program. So the source tells which files its processes have open or mapped, and the target compares.
 */
import { createHash } from "node:crypto";
import { closeSync, openSync } from "node:fs";
import { open, readFile, readlink, stat } from "node:fs/promises";
import { join } from "node:path";
import * as files from "#proxy/kernel/files.ts";
import { USED_FILES_MAX, type UsedFile } from "../../api/check.ts";
import type { Add } from "../../api/finding.ts";
import { openIn, using } from "../../runtime/inside.ts";
import { mountedBelow, mountsOf } from "../../runtime/mounted.ts";
import type { OciSpec } from "../../runtime/oci.ts";
import { descriptorsOf } from "../../runtime/processes.ts";
import type { Sandbox } from "../../runtime/runtime.ts";

/** of all files of an application together; more are compared by size only */
const DIGEST_BYTES_MAX = 4 * 1024 ** 3;
/** folders whose files are of the container's own, or of the kernel */
const NOT_SHARED = ["/proc", "/sys", "/dev"];
const DELETED = " (deleted)";
/** kubelet's volumes of objects: `..2026_11_29_17_27_10.344311880/start.sh`, which links lead to */
const OF_KUBELET = /\/\.\.\d{4}(_\d\d){5}\.\d+(\/|$)/;

/** Where the container has files that are not in its own layer: `spec` as made by `buildSpec` or `adaptSpec`. */
export function bindsOf(spec: OciSpec): { source: string; target: string }[] {
  return (spec.mounts ?? [])
    .filter(({ type, options }) => type === "bind" || options?.some((option) => /^r?bind$/.test(option)))
    .map(({ source, destination }) => ({ source: source ?? "", target: destination }));
}

/**
 * At the source. Bounded by {@link USED_FILES_MAX}.
 * @param sharedTargets mounts that other nodes may write to at any time @param more files that are not carried, in use or not
 */
export async function usedFiles(
  container: Sandbox,
  pids: number[],
  sharedTargets: string[],
  more: string[] = [],
): Promise<UsedFile[]> {
  const layer = openSync(container.hostPath("layer"), "r");
  try {
    const paths = new Set([...more, ...(await pathsInUse(pids))]);
    return await usedOutside(layer, container, paths, sharedTargets);
  } finally {
    closeSync(layer);
  }
}

/** @param layer a descriptor of the writable layer, whose files travel, whatever the lower file system has there */
async function usedOutside(
  layer: number,
  container: Sandbox,
  paths: Set<string>,
  sharedTargets: string[],
): Promise<UsedFile[]> {
  const mounted = new Set(mountedBelow(mountsOf(container.init.pid), "/"));
  const used: UsedFile[] = [];
  let digestBytes = 0;
  for (const path of paths) {
    if (used.length === USED_FILES_MAX) break;
    if ([...NOT_SHARED, ...container.ours, ...container.travels].some((folder) => isBelow(path, folder)))
      continue;
    const isInLayer = async (): Promise<boolean> =>
      // of what something is mounted on it has an empty file
      !mounted.has(path.slice(1)) &&
      (await using(
        () => files.openPathBelow(layer, Buffer.from(path)),
        () => true,
      )) === true;
    if (await isInLayer()) continue;
    // null: gone, or of another mount namespace
    await using(
      () => openIn(container, path),
      async (here) => {
        if (await isInLayer()) return; // made anew since, as programs do that write a file and rename it, all the time
        const found = await stat(here);
        const kind = found.isFile() ? "file" : found.isDirectory() ? "folder" : "other";
        const isShared = sharedTargets.some((target) => isBelow(path, target));
        if (isShared || kind !== "file") {
          used.push({ path, kind, bytes: null, mode: null, digest: null });
          return;
        }
        digestBytes += found.size;
        used.push({
          path,
          kind,
          bytes: found.size,
          mode: found.mode & 0o7777,
          digest: digestBytes > DIGEST_BYTES_MAX ? null : await digestOf(here),
        });
      },
    );
  }
  return used;
}

/** Paths that are mapped, open, run, or a process's working or root directory. */
async function pathsInUse(pids: number[]): Promise<Set<string>> {
  const paths = new Set<string>();
  const use = (path: string | undefined): void => {
    if (path?.startsWith("/") && !path.endsWith(DELETED)) paths.add(path);
  };
  for (const pid of pids) {
    const maps = await readFile(`/proc/${pid}/maps`, "utf8").catch(() => "");
    for (const line of maps.split("\n")) use(mappedPath(line));
    for (const { target } of await descriptorsOf(pid)) use(target);
    for (const link of ["exe", "cwd", "root"]) use(await readlink(`/proc/${pid}/${link}`).catch(() => ""));
  }
  paths.delete("/");
  return paths;
}

/** proc(5), /proc/PID/maps: a newline in a name is written \012 */
export function mappedPath(line: string): string | undefined {
  return /^\S+ \S+ \S+ \S+ \d+ +(\/.*)$/.exec(line)?.[1]?.replaceAll("\\012", "\n");
}

/**
 * At the target: tells of files that are not there or not the same.
 * @param lower the container's root file system on this node
 * @param binds its mounts, {@link bindsOf}
 */
export async function compareFiles(
  used: UsedFile[],
  lower: string,
  binds: { source: string; target: string }[],
  add: Add,
): Promise<void> {
  const cureOf = (path: string): string =>
    OF_KUBELET.test(path)
      ? "ConfigMaps and Secrets are in a folder of another name in each pod: do not keep a file of theirs open (a script that ends with exec does not), or copy it to an emptyDir or the container's root file system, and use it there"
      : "install the same files on both nodes, or put what differs into the container's root file system or a shared mount";
  for (const { path, kind, bytes, mode, digest } of used) {
    const here = placeOf(path, lower, binds);
    const found = await stat(here).catch(() => null);
    const told = (id: "missing" | "differs", what: string): void =>
      add(
        `target.file-${id}`,
        "error",
        `${path}, which the application has open, mapped or mounted alone, ${what}`,
        cureOf(path),
        { path },
      );
    if (found === null) {
      told("missing", here === path ? "is not there" : `is not there (${here})`);
      continue;
    }
    const kindHere = found.isFile() ? "file" : found.isDirectory() ? "folder" : "other";
    if (kindHere !== kind) told("differs", `is not a ${kind} there`);
    else if (bytes !== null && found.size !== bytes)
      told("differs", `has ${found.size} bytes there, ${bytes} here`);
    else if (mode !== null && (found.mode & 0o7777) !== mode)
      told("differs", `has mode ${(found.mode & 0o7777).toString(8)} there, ${mode.toString(8)} here`);
    else if (digest !== null && (await digestOf(here)) !== digest)
      told("differs", "has another content there");
  }
}

/** Host path of what the container sees at `path`: the innermost mount it is below counts. */
export function placeOf(path: string, lower: string, binds: { source: string; target: string }[]): string {
  const [bind] = binds
    .filter(({ target }) => isBelow(path, target))
    .sort((one, other) => other.target.length - one.target.length);
  return bind === undefined ? join(lower, path) : join(bind.source, path.slice(bind.target.length));
}

function isBelow(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith("/") ? folder : `${folder}/`);
}

const known = new Map<string, string>();
const KNOWN_MAX = 10_000;
const READ_BYTES_MAX = 256 * 1024;

/** Of a file that is read through one piece of memory: a new one a read is page faults and collections, half as much again. */
async function hashOf(path: string, readBytes: number): Promise<string> {
  await using file = await open(path);
  const hash = createHash("sha256");
  const buffer = Buffer.allocUnsafe(Math.max(1, readBytes));
  for (;;) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, null);
    if (bytesRead === 0) return hash.digest("hex");
    hash.update(buffer.subarray(0, bytesRead));
  }
}

/** Remembered as long as the file is the same: hashing Node.js takes 0.1 s. null: it cannot be read */
async function digestOf(path: string): Promise<string | null> {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
    const state = `${dev} ${ino} ${size} ${mtimeNs} ${ctimeNs}`;
    const before = known.get(state);
    if (before !== undefined) return before;
    const digest = await hashOf(path, Math.min(Number(size), READ_BYTES_MAX));
    if (known.size >= KNOWN_MAX) known.clear();
    known.set(state, digest);
    return digest;
  } catch {
    return null;
  }
}
