/**
 * The files that travel with a workload: the writable layer of its overlay and its tmpfs mounts.
 *
 * Two rounds. Before anybody is held everything is copied: the layer before the standby's overlay is mounted on it, then
 * each tmpfs. When the application is stopped only what changed since is copied (`scan`, `difference`), through the standby's mounted overlay, which must not be changed underneath
 * (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems"); so overlayfs' whiteouts (character device
 * 0:0) become deletions and opaque folders become "delete, then create".
 *
 * tar keeps modes, owners, times to the nanosecond, hard links, sparse files, devices and extended attributes. Socket
 * files do not travel: CRIU binds them again.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { lstat, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as kernel from "#proxy/tcp/kernel.ts";

/** relative path → what tells one state of the file from another */
export type Scan = Map<string, string>;

export interface Difference {
  /** to delete at the other side before `changed` is unpacked, deepest first */
  gone: string[];
  changed: string[];
}

/** What CRIU learnt about this node's kernel, in the container's /run: worthless elsewhere. */
const CRIU_CACHE = "criu.kdat";
const TAR_ATTRIBUTES = ["--xattrs", "--xattrs-include=*", "--numeric-owner"];

/** Everything below `root`, the root itself left out. A missing root is empty. */
export async function scan(root: string): Promise<Scan> {
  const found: Scan = new Map();
  const visit = async (relative: string): Promise<void> => {
    const entries = await readdir(join(root, relative), { withFileTypes: true }).catch(() => []);
    for (const entry of entries) {
      const path = relative === "" ? entry.name : `${relative}/${entry.name}`;
      const stat = await lstat(join(root, path), { bigint: true }).catch(() => null);
      if (stat === null) continue;
      if (stat.isSocket() || path === CRIU_CACHE) continue;
      if (isWhiteout(stat)) found.set(path, WHITEOUT);
      else if (stat.isDirectory()) {
        const opaque = isOpaque(join(root, path)) ? "opaque" : "";
        found.set(path, `directory ${stat.ino} ${stat.mode} ${stat.uid} ${stat.gid} ${opaque}`);
        await visit(path);
      } else
        found.set(
          path,
          `${stat.ino} ${stat.mode} ${stat.uid} ${stat.gid} ${stat.size} ${stat.mtimeNs} ${stat.ctimeNs} ${stat.rdev}`,
        );
    }
  };
  await visit("");
  return found;
}

const WHITEOUT = "whiteout";

/** Pure: what has to happen at the copy of `before` to make it a copy of `after`. */
export function difference(before: Scan, after: Scan): Difference {
  const gone: string[] = [];
  const changed: string[] = [];
  for (const path of before.keys()) if (!after.has(path)) gone.push(path);
  for (const [path, state] of after) {
    if (before.get(path) === state) continue;
    if (state === WHITEOUT || state.endsWith("opaque")) gone.push(path);
    if (state !== WHITEOUT) changed.push(path);
  }
  return { gone: gone.sort((a, b) => b.length - a.length), changed };
}

/**
 * A tar stream of just these paths. `done` settles when tar has ended, well or not.
 * @param live files may change or vanish while they are read (the second round mends it); otherwise that is an error
 */
export function packPaths(
  root: string,
  paths: Iterable<string>,
  live: boolean,
): { stream: Readable; done: Promise<void> } {
  const tolerance = live
    ? ["--ignore-failed-read", "--warning=no-file-changed", "--warning=no-file-removed"]
    : [];
  const args = [
    "-C",
    root,
    ...TAR_ATTRIBUTES,
    ...tolerance,
    "--no-recursion",
    "--null",
    "--verbatim-files-from",
    "-T",
    "-",
    "-cf",
    "-",
  ];
  const child = spawn("tar", args, { stdio: ["pipe", "pipe", "pipe"] });
  child.stdin.on("error", () => {}); // tar's exit status tells
  child.stdin.end([...paths].map((path) => `./${path}\0`).join(""));
  return { stream: child.stdout, done: ended(child, live) };
}

/** Unpacks a stream below `root`, replacing what is there. */
export function unpackInto(root: string): { stream: Writable; done: Promise<void> } {
  const child = spawn(
    "tar",
    ["-C", root, ...TAR_ATTRIBUTES, "-xpf", "-", "--overwrite", "--delay-directory-restore"],
    { stdio: ["pipe", "ignore", "pipe"] },
  );
  return { stream: child.stdin, done: ended(child, false) };
}

/**
 * Deletes paths below `root`, where nothing runs meanwhile.
 * @throws HoldfastError `FILES_PATH` for a path that would leave it, by `..` or through a symbolic link
 */
export async function removePaths(root: string, paths: string[]): Promise<void> {
  for (const path of paths) {
    if (path.startsWith("/") || path.split("/").some((name) => name === ".." || name === ""))
      throw outside(path);
    if (await hasRealParents(root, path)) await rm(join(root, path), { recursive: true, force: true });
  }
}

/** False: a parent is missing, so the path is gone already. */
async function hasRealParents(root: string, path: string): Promise<boolean> {
  let parent = root;
  for (const name of path.split("/").slice(0, -1)) {
    parent = join(parent, name);
    const stat = await lstat(parent).catch(() => null);
    if (stat === null) return false;
    if (!stat.isDirectory()) throw outside(path);
  }
  return true;
}

function outside(path: string): HoldfastError {
  return new HoldfastError(`refused to delete outside the container: ${path.slice(0, 200)}`, {
    code: "FILES_PATH",
    source: "peer",
  });
}

/** tar's status 1 is "some files changed while read": expected of a live source, the second round mends it. */
async function ended(child: ChildProcess, live: boolean): Promise<void> {
  let complaint = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    complaint = (complaint + text).slice(-2000);
  });
  const [status] = (await once(child, "close")) as [number | null];
  if (status === 0 || (status === 1 && live)) return;
  throw new HoldfastError(`tar failed (${status}): ${complaint.trim().split("\n").at(-1) ?? ""}`, {
    code: "FILES_TAR",
    source: "container",
  });
}

function isWhiteout(stat: { isCharacterDevice(): boolean; rdev: bigint }): boolean {
  return stat.isCharacterDevice() && stat.rdev === 0n;
}

function isOpaque(path: string): boolean {
  return kernel.getXattr(path, "trusted.overlay.opaque")?.toString("latin1") === "y";
}
