/**
 * Which file a watch of inotify(7) is on. The kernel says it by numbers only (`/proc/PID/fdinfo/FD`, proc(5)): inode, device
 * and a file handle. A move needs a name, as handles and numbers mean nothing on another node.
 *
 * A handle of an overlay cannot be opened, but holds that of the file below it (struct ovl_fh, fs/overlayfs/overlayfs.h),
 * which can: its name there is its name in the container. What is found by whatever way counts only when a watch
 * of our own on it shows the same numbers and handle: a guess never becomes a watch on another file.
 */
import {
  closeSync,
  constants,
  type Dirent,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
} from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import * as files from "#proxy/kernel/files.ts";
import type { Place } from "../api/watches.ts";
import { openRoot, using } from "../runtime/inside.ts";
import { innerPid } from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import { takeEvents } from "./watch-events.ts";

/** One watch, as the kernel tells of it. */
export interface SeenWatch {
  wd: number;
  /** events and the flags IN_ONESHOT and IN_EXCL_UNLINK */
  mask: number;
  /** inode, device and handle: what `identity` compares */
  identity: string;
  ino: bigint;
  /** major << 20 | minor */
  device: number;
  handleType: number;
  handle: Buffer;
}

const WATCH =
  /^inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+) ignored_mask:[0-9a-f]+ (?:fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+))?/gm;

/** Pure: the watches in the text of an fdinfo file. */
export function readWatches(fdinfo: string): SeenWatch[] {
  return [...fdinfo.matchAll(WATCH)].map(([, wd, ino, device, mask, bytes, type, handle]) => ({
    wd: Number.parseInt(wd ?? "", 16),
    mask: Number.parseInt(mask ?? "", 16),
    identity: `${device}:${ino}:${type ?? ""}:${handle ?? ""}`,
    ino: BigInt(`0x${ino}`),
    device: Number.parseInt(device ?? "", 16),
    handleType: Number.parseInt(type ?? "0", 16),
    handle: Buffer.from(handle ?? "", "hex").subarray(0, Number.parseInt(bytes ?? "0", 16)),
  }));
}

/** OVL_FILEID_V1, include/linux/exportfs.h; struct ovl_fb after three bytes: version, magic, len, flags, type, uuid, fid */
const OVERLAY_HANDLE = 0xf8;
const OVERLAY_MAGIC = 0xfb;
const OVERLAY_PATH_UPPER = 4;
const OVERLAY_HEAD_BYTES = 21;
const OVERLAY_PADDING_BYTES = 3;

/** Pure: the handle that an overlay's one wraps. null: not of a format known here */
export function unwrapOverlayHandle(
  handle: Buffer,
): { isUpper: boolean; type: number; handle: Buffer } | null {
  const inner = handle.subarray(OVERLAY_PADDING_BYTES);
  const [version, magic, length, flags, type] = inner;
  if (version !== 0 || magic !== OVERLAY_MAGIC || length === undefined || type === undefined) return null;
  if (length > inner.length || length <= OVERLAY_HEAD_BYTES) return null;
  return {
    isUpper: ((flags ?? 0) & OVERLAY_PATH_UPPER) !== 0,
    type,
    handle: inner.subarray(OVERLAY_HEAD_BYTES, length),
  };
}

/** A file with a name that is not unique below an overlay: several of its inodes look the same. */
export function isAmbiguous(watch: SeenWatch, file: number): boolean {
  if (watch.handleType !== OVERLAY_HANDLE || unwrapOverlayHandle(watch.handle)?.isUpper !== false)
    return false;
  const stat = statSync(`/proc/self/fd/${file}`);
  return !stat.isDirectory() && stat.nlink > 1;
}

const BASE_FLAGS = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
const PROBE_MASK = files.IN_DELETE_SELF;
/** how many files a search looks at */
const SEARCHED_FILES_MAX = 50_000;

interface Mount {
  device: number;
  mountpoint: string;
}

/** Finds the files behind watches in one container. Keeps descriptors; `close` it. */
export class WatchedFiles {
  readonly #root: number;
  readonly #layers: { fd: number; prefix: string }[];
  readonly #mounts: Mount[];
  readonly #bases = new Map<string, number | null>();
  /** an instance of our own; to close one waits for the kernel's clean-up, which nobody should be held for */
  readonly #probe = files.inotifyInit();
  #known = new Map<string, Place>();

  /** @param lower folder the container's root file system is made from */
  constructor(container: Sandbox, lower: string) {
    this.#root = openRoot(container);
    const layer = openSync(container.hostPath("layer"), "r");
    const below = openSync(lower, "r");
    this.#layers = [layer, below].map((fd) => ({ fd, prefix: linkOf(fd).replace(/\/$/, "") }));
    this.#mounts = readFileSync(`/proc/${container.init.pid}/mountinfo`, "latin1")
      .split("\n")
      .flatMap((line) => {
        const [, , device, , mountpoint] = line.split(" ");
        const [major = 0, minor = 0] = (device ?? "").split(":").map(Number);
        const isOurs =
          mountpoint === undefined || container.ours.some((ours) => mountpoint.startsWith(`${ours}/`));
        return isOurs ? [] : [{ device: (major << 20) | minor, mountpoint: unescaped(mountpoint) }];
      });
  }

  close(): void {
    closeSync(this.#root);
    closeSync(this.#probe);
    for (const { fd } of this.#layers) closeSync(fd);
    for (const fd of this.#bases.values()) if (fd !== null) closeSync(fd);
    this.#bases.clear();
  }

  /**
   * Each watch's file, by its identity: where it is, and a descriptor (O_PATH) of it that the caller closes. Watches whose
   * file cannot be found are missing in the answer.
   */
  async find(
    watches: SeenWatch[],
    pids: number[],
    options: { search: boolean },
  ): Promise<Map<string, Candidate>> {
    const found = new Map<string, Candidate>();
    const wanted = new Map(watches.map((watch) => [watch.identity, watch]));
    const take = (candidates: Candidate[]): void => {
      for (const [index, identity] of this.#identitiesOf(candidates).entries()) {
        const candidate = candidates[index] as Candidate;
        if (wanted.delete(identity)) found.set(identity, candidate);
        else closeSync(candidate.fd);
      }
    };
    try {
      take(this.#again(wanted));
      take([...wanted.values()].flatMap((watch) => this.#byHandle(watch)));
      if (wanted.size > 0) take(await this.#byLinks(wanted, pids));
      if (wanted.size > 0 && options.search) take(await this.#bySearch(wanted, pids));
    } catch (error) {
      for (const { fd } of found.values()) closeSync(fd);
      throw error;
    }
    for (const [identity, { place }] of found) this.#known.set(identity, place);
    return found;
  }

  /**
   * Other names that a file of the image has in its folder. Looked for below the overlay, where the program does not hear of it.
   * The caller closes the descriptors.
   */
  namesakes(place: Place): Candidate[] {
    const [, lower] = this.#layers;
    if (lower === undefined || !("path" in place)) return [];
    const folder = place.path.replace(/[^/]*$/, "");
    const below = (name: string): Buffer => Buffer.from(`${lower.prefix}${folder}${name}`, "latin1");
    const inode = inodeOf(below(place.path.slice(folder.length)));
    const names = opened(() => readdirSync(below(""), "latin1")) ?? [];
    return names
      .map((name) => `${folder}${name}`)
      .filter((path) => path !== place.path && inodeOf(below(path.slice(folder.length))) === inode)
      .flatMap((path) => this.#at(path));
  }

  /** Where they were found before. */
  #again(wanted: Map<string, SeenWatch>): Candidate[] {
    return [...wanted.keys()].flatMap((identity) => {
      const place = this.#known.get(identity);
      return place === undefined || !("path" in place) ? [] : this.#at(place.path);
    });
  }

  #byHandle(watch: SeenWatch): Candidate[] {
    const overlay = watch.handleType === OVERLAY_HANDLE ? unwrapOverlayHandle(watch.handle) : null;
    if (overlay !== null) {
      const layer = this.#layers[overlay.isUpper ? 0 : 1];
      const path = layer === undefined ? null : nameOf(layer.fd, overlay.type, overlay.handle);
      if (layer === undefined || path === null || !path.startsWith(layer.prefix)) return [];
      return this.#at(path.slice(layer.prefix.length) || "/");
    }
    if (watch.handle.length === 0) return [];
    for (const mount of this.#mounts) {
      if (mount.device !== watch.device) continue;
      const base = this.#base(mount.mountpoint);
      const path = base === null ? null : nameOf(base, watch.handleType, watch.handle);
      const candidate = path === null ? [] : this.#at(path);
      if (candidate.length > 0) return candidate;
    }
    return [];
  }

  /** What processes have open; the only way to a file that was deleted. */
  async #byLinks(wanted: Map<string, SeenWatch>, pids: number[]): Promise<Candidate[]> {
    const inodes = new Set([...wanted.values()].map(({ ino }) => ino));
    const candidates: Candidate[] = [];
    for (const pid of pids) {
      const inner = await innerPid(pid);
      const links = ["cwd", "root", "exe", ...descriptors(pid).map((fd) => `fd/${fd}`)];
      for (const link of links) {
        const file = `/proc/${pid}/${link}`;
        if (inner === null || !inodes.has(inodeOf(file))) continue;
        const fd = opened(() => files.openPath(file));
        if (fd === null) continue;
        const path = linkOf(fd);
        // a name first: that of the other node's descriptor could be of a deleted file that is not deleted here
        if (path.startsWith("/")) candidates.push(...this.#at(path));
        candidates.push({ place: { pid: inner, link }, fd });
      }
    }
    return candidates;
  }

  /**
   * By its inode number, where a handle tells nothing: a file of the image that was renamed has its old name in it (all
   * renamed ones are in the layer), and an image on an overlay has handles that cannot be opened.
   */
  async #bySearch(wanted: Map<string, SeenWatch>, pids: number[]): Promise<Candidate[]> {
    const inodes = new Set([...wanted.values()].map(({ ino }) => ino));
    const candidates: Candidate[] = [];
    const seen = new Set<string>();
    // every folder from a descriptor of `root`, and through no link: names come and go meanwhile
    const list = (root: number, folder: string): Promise<Dirent[] | null> =>
      using(
        () =>
          files.openInside(root, Buffer.from(folder === "" ? "." : folder, "latin1"), {
            flags: BASE_FLAGS | constants.O_DIRECTORY,
            noSymlinks: true,
          }),
        (path) => readdir(path, { withFileTypes: true, encoding: "latin1" }).catch(() => []),
      );
    const look = async (path: string): Promise<void> => {
      const ino = await using(
        () => files.openPathBelow(this.#root, Buffer.from(path, "latin1")),
        async (here) => (await stat(here, { bigint: true })).ino,
      );
      if (ino !== null && inodes.has(ino)) candidates.push(...this.#at(path));
    };
    const visit = async (folder: string, root: number): Promise<void> => {
      if (seen.size > SEARCHED_FILES_MAX || inodes.size === 0) return;
      for (const entry of (await list(root, folder)) ?? []) {
        const path = `${folder}/${entry.name}`;
        if (seen.has(path) || seen.size > SEARCHED_FILES_MAX) continue;
        seen.add(path);
        await look(path);
        if (entry.isDirectory()) await visit(path, root);
      }
    };
    for (const layer of this.#layers.slice(0, 1)) await visit("", layer.fd);
    const folders = pids.map((pid) => opened(() => readlinkSync(`/proc/${pid}/cwd`, "latin1")));
    for (const folder of new Set([...folders, "/etc"])) {
      if (folder === null || folder === "/") continue;
      await look(folder);
      await visit(folder, this.#root);
    }
    return candidates;
  }

  /** What the kernel calls each of these files when it is watched. */
  #identitiesOf(candidates: Candidate[]): string[] {
    const wds: number[] = [];
    try {
      for (const { fd } of candidates) wds.push(files.inotifyAdd(this.#probe, fd, PROBE_MASK));
      const info = candidates.length === 0 ? "" : readFileSync(`/proc/self/fdinfo/${this.#probe}`, "latin1");
      const seen = new Map(readWatches(info).map(({ wd, identity }) => [wd, identity]));
      return wds.map((wd) => seen.get(wd) ?? "");
    } finally {
      for (const wd of new Set(wds)) files.inotifyRemove(this.#probe, wd);
      takeEvents(this.#probe);
    }
  }

  #at(path: string): Candidate[] {
    const fd = opened(() => files.openPathBelow(this.#root, Buffer.from(path, "latin1")));
    return fd === null ? [] : [{ place: { path }, fd }];
  }

  /**
   * A descriptor on a mounted file system of the container, kept, as to open it is an event to who watches it. null: it
   * cannot be opened
   */
  #base(mountpoint: string): number | null {
    const known = this.#bases.get(mountpoint);
    if (known !== undefined) return known;
    const fd = opened(() =>
      files.openInside(this.#root, Buffer.from(mountpoint, "latin1"), { flags: BASE_FLAGS }),
    );
    this.#bases.set(mountpoint, fd);
    return fd;
  }
}

/** Where a watched file may be, and a descriptor (O_PATH) of what is there. */
export interface Candidate {
  place: Place;
  fd: number;
}

/** The file at a place; the caller closes it. @throws HoldfastError `WATCH_FILE` */
export function openPlace(place: Place, root: number, pidOf: Map<number, number>): number {
  try {
    if ("path" in place) return files.openPathBelow(root, Buffer.from(place.path, "latin1"));
    return files.openPath(`/proc/${pidOf.get(place.pid) ?? -1}/${place.link}`);
  } catch (cause) {
    throw fail("WATCH_FILE", `the watched file ${tell(place)} is not there`, { retryable: false, cause });
  }
}

export function tell(place: Place): string {
  return "path" in place
    ? Buffer.from(place.path, "latin1").toString("utf8")
    : `that process ${place.pid} has open as ${place.link}`;
}

/** The name of a handle's file where the file system of `base` is mounted. null: it cannot be opened by its handle */
function nameOf(base: number, type: number, handle: Buffer): string | null {
  const fd = opened(() => files.openByHandle(base, type, handle));
  if (fd === null) return null;
  try {
    return linkOf(fd);
  } finally {
    closeSync(fd);
  }
}

function linkOf(fd: number): string {
  return readlinkSync(`/proc/self/fd/${fd}`, "latin1");
}

function descriptors(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`);
  } catch {
    return [];
  }
}

/** -1: nothing there */
function inodeOf(path: string | Buffer): bigint {
  try {
    return statSync(path, { bigint: true }).ino;
  } catch {
    return -1n;
  }
}

function opened<T>(open: () => T): T | null {
  try {
    return open();
  } catch {
    return null; // what cannot be opened is not what was looked for
  }
}

/** mountinfo writes blanks and the like in octal (proc(5)) */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}
