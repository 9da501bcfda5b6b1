/**
 * The files that travel with a workload: the writable layer of its overlay and its tmpfs mounts.
 *
 * Two rounds. Before anybody is held everything is copied: the layer before the standby's overlay is mounted on it, then
 * each tmpfs. When the application is stopped only what changed since is copied, or what tar did not read as it was (`scan`, `confirmed`, `difference`), through the standby's mounted overlay, which must not be changed underneath
 * (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems"); so overlayfs' whiteouts (character device
 * 0:0) become deletions and opaque folders become "delete, then create".
 *
 * tar keeps modes, owners, times to the nanosecond, hard links, sparse files, devices and extended attributes. Socket
 * files do not travel: CRIU binds them again.
 */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { type BigIntStats, constants, fstatSync, lstatSync, readdirSync } from "node:fs";
import type { Readable, Writable } from "node:stream";
import { setImmediate as nextTurn } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import * as files from "#proxy/kernel/files.ts";
import { memoryProcsOf } from "./cgroups.ts";
import { below, nameBytes, nameText } from "./file-names.ts";
import { pathOf, using } from "./inside.ts";
import { startTar } from "./tar.ts";
import { cutShortIn, type TarMember } from "./tar-members.ts";

/** relative path ({@link nameText}) → what tells one state of the file from another */
export type Scan = Map<string, string>;

export interface Difference {
  /** to delete at the other side before `changed` is unpacked, deepest first */
  gone: string[];
  changed: string[];
}

/** Another CRIU's knowledge of this node's kernel, in the container's /run: worthless elsewhere. */
const CRIU_CACHE = "criu.kdat";
/** files looked at before other work of this agent has a turn: less than a millisecond where nothing has to be read from a disk */
const LOOKS_A_TURN = 64;
/** PATH_MAX of linux/limits.h, without "./" and the zero at the end */
const PATH_BYTES_MAX = 4_093;
/** S_IFMT, S_IFCHR */
const FORMAT = 0o170000;
const DEVICE = 0o020000;
const GONE = new Set(["ENOENT", "ENOTDIR"]);
const COMPLAINT_MAX = 2_000;
/** a path is at most PATH_MAX, and four characters a byte */
const LINE_MAX = 20_000;
const NO_ROOM = "the container's memory limit has no room for its files";
const HERE = Buffer.from("./");
const END = Buffer.from("\0");
const TAR_ATTRIBUTES = ["--xattrs", "--xattrs-include=*", "--numeric-owner"];

/** A folder of a container, or one that becomes part of it. */
export interface Tree {
  /** a descriptor of the folder */
  fd: number;
  /** init of the container it is in; null: a container that is not there yet, where nobody runs */
  initPid: number | null;
}

const FOLDER = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/**
 * Everything below `root` (a descriptor), which is left out itself, see {@link withRoot}. No link is followed, whoever changes what meanwhile.
 *
 * A few files are looked at at once: clients wait for it, and each look by way of a thread waits for a processor on a node that is busy.
 */
export async function scan(root: number): Promise<Scan> {
  const found: Scan = new Map();
  let looks = 0;
  const visit = async (relative: string, folder: string): Promise<void> => {
    for (const entry of entriesOf(folder)) {
      const name = nameText(entry);
      const path = relative === "" ? name : `${relative}/${name}`;
      if (Buffer.byteLength(path) > PATH_BYTES_MAX && nameBytes(path).length > PATH_BYTES_MAX)
        throw fail(
          "FILES_PATH",
          `a path of the container is longer than ${PATH_BYTES_MAX} bytes, and no program can open it by that: ${path.slice(0, 200)}…`,
          { source: "container" },
        );
      if (++looks % LOOKS_A_TURN === 0) await nextTurn();
      const stat = statOf(below(folder, entry));
      if (stat === null) continue;
      if (stat.isSocket() || path === CRIU_CACHE) continue;
      if (isWhiteout(stat)) found.set(path, WHITEOUT);
      else if (stat.isDirectory()) {
        await using(
          () => files.openInside(root, nameBytes(path), { flags: FOLDER, noSymlinks: true }),
          async (inner) => {
            const opaque = isOpaque(inner) ? OPAQUE : "";
            found.set(path, `directory ${stat.ino} ${stat.mode} ${stat.uid} ${stat.gid} ${opaque}`);
            await visit(path, inner);
          },
        );
      } else
        found.set(
          path,
          `${stat.ino} ${stat.mode} ${stat.uid} ${stat.gid} ${stat.size} ${stat.mtimeNs} ${stat.ctimeNs} ${stat.rdev}`,
        );
    }
  };
  await visit("", pathOf(root));
  return found;
}

/** A scan of a mount, whose own owner and mode travel, too: a layer's are the image's. */
export function withRoot(found: Scan, root: number): Scan {
  const { ino, mode, uid, gid } = fstatSync(root, { bigint: true });
  return new Map([[".", `directory ${ino} ${mode} ${uid} ${gid} `], ...found]);
}

/** [] where it has gone meanwhile */
function entriesOf(folder: string): Buffer[] {
  return ifThere(() => readdirSync(folder, { encoding: "buffer" })) ?? [];
}

/** null: it has gone meanwhile */
function statOf(path: Buffer): BigIntStats | null {
  return ifThere(() => lstatSync(path, { bigint: true }));
}

function ifThere<T>(look: () => T): T | null {
  try {
    return look();
  } catch (error) {
    if (GONE.has((error as NodeJS.ErrnoException).code ?? "")) return null;
    throw error;
  }
}

const WHITEOUT = "whiteout";
/** nobody knows what the copy has there, and no state is like it */
const UNKNOWN = "unknown";
/** marks of folders: of an overlay's layer; … or not, and it has mounts in it, so that is no matter */
const OPAQUE = "opaque";
const COVERED = "covered";
/** … but that it is a folder, or nothing */
const UNKNOWN_FOLDER = "directory unknown";

/**
 * Pure: what of `before` is in the copy for certain, once tar has read `sent`. A folder that is exchanged for another while tar reads, and
 * back, leaves no trace in the files below, which are then in the copy what the other folder had by their names, or not at all. So only what
 * tar read in the state that the scan saw counts.
 * @param found by {@link TarMembers}
 */
export function confirmed(before: Scan, sent: Iterable<string>, found: Map<string, TarMember>): Scan {
  const known: Scan = new Map(before);
  const twins = twinsIn(before);
  const doubtful = new Set<string>();
  for (const path of sent) {
    const state = before.get(path);
    if (state === undefined) continue;
    const member = found.get(path);
    const isBelow = doubtful.has(path.slice(0, Math.max(path.lastIndexOf("/"), 0)));
    if (state.startsWith("directory")) {
      if (!isBelow && member?.isFolder === true && isFolderAs(state, member)) continue;
      // the root is one descriptor's, and never another
      if (path !== ".") doubtful.add(path);
      known.set(path, member === undefined || member.isFolder ? UNKNOWN_FOLDER : UNKNOWN);
    } else if (member === undefined) known.delete(path);
    else if (isBelow || twins.has(twinOf(path, state)) || !isFileAs(state, member)) known.set(path, UNKNOWN);
  }
  return togetherWithLinks(before, known);
}

function isFolderAs(state: string, { owned, isOpaque }: TarMember): boolean {
  const [, , mode, uid, gid, mark] = state.split(" ");
  return `${mode} ${uid} ${gid}` === owned && (mark === COVERED || (mark === OPAQUE) === isOpaque);
}

function isFileAs(state: string, { owned, content }: TarMember): boolean {
  if (state === WHITEOUT) return / 0$/.test(content) && (Number(owned.split(" ")[0]) & FORMAT) === DEVICE;
  return state.slice(state.indexOf(" ") + 1) === `${owned} ${content}`;
}

/** A file by all that tar says of one, and its own name: who takes another folder's takes one of the same name. */
function twinOf(path: string, state: string): string {
  return `${path.slice(path.lastIndexOf("/") + 1)}/${state.slice(state.indexOf(" ") + 1)}`;
}

/** What tar says of several files alike: made in the same tick of the clock, of one size. */
function twinsIn(before: Scan): Set<string> {
  const inodes = new Map<string, string>();
  const twins = new Set<string>();
  for (const [path, state] of before) {
    if (state === WHITEOUT || state.startsWith("directory")) continue;
    const [twin, inode] = [twinOf(path, state), inodeIn(state)];
    if ((inodes.get(twin) ?? inode) === inode) inodes.set(twin, inode);
    else twins.add(twin);
  }
  return twins;
}

/** All names of a file travel in one round, or they were names of several. */
function togetherWithLinks(before: Scan, known: Scan): Scan {
  const isFile = (state: string): boolean => /^\d/.test(state);
  const doubtful = new Set<string>();
  for (const [path, state] of before)
    if (isFile(state) && known.get(path) !== state) doubtful.add(inodeIn(state));
  for (const [path, state] of known)
    if (isFile(state) && doubtful.has(inodeIn(state))) known.set(path, UNKNOWN);
  return known;
}

/**
 * Pure: what has to happen at the copy of `before` to make it a copy of `after`. What changed comes with the folders that it is in: a folder
 * that was a link for as long as tar read it (the scans know nothing of that) is a link in the copy, which would lead what changed elsewhere.
 */
export function difference(before: Scan, after: Scan): Difference {
  const gone: string[] = [];
  const wanted = new Set<string>();
  for (const path of before.keys()) if (!after.has(path)) gone.push(path);
  for (const [path, state] of after) {
    if (before.get(path) === state) continue;
    // what a link was in the way of must not be written where it leads, nor into a file that has other names by now, as tar does
    const was = before.get(path);
    if (
      state === WHITEOUT ||
      state.endsWith(OPAQUE) ||
      (was !== undefined && (kindOf(was) !== kindOf(state) || isAnother(was, state)))
    )
      gone.push(path);
    if (state !== WHITEOUT)
      for (let at = path.length; at > 0; at = path.lastIndexOf("/", at - 1)) wanted.add(path.slice(0, at));
  }
  const deleted = new Set(gone.filter((path) => after.has(path)));
  if (deleted.size > 0) for (const path of after.keys()) if (isBelowAny(path, deleted)) wanted.add(path);
  const changed = [...after.keys()].filter((path) => wanted.has(path) && after.get(path) !== WHITEOUT);
  // what is unknown may be a link: what seems to be below it must not be looked for where that leads
  const first = (path: string): boolean => before.get(path) === UNKNOWN;
  return {
    gone: [
      ...gone.filter(first).sort((a, b) => a.length - b.length),
      ...gone.filter((path) => !first(path)).sort((a, b) => b.length - a.length),
    ],
    changed,
  };
}

function isBelowAny(path: string, folders: Set<string>): boolean {
  for (let at = path.lastIndexOf("/"); at > 0; at = path.lastIndexOf("/", at - 1))
    if (folders.has(path.slice(0, at))) return true;
  return false;
}

/**
 * What of a layer, or of a mount, is its own: without the empty files and folders that things are mounted on, and without the mark of
 * an opaque folder that has such in it. Deleting one of those at the target would take the mount off.
 */
export function besideMounts(found: Scan, mounted: readonly string[]): Scan {
  const own: Scan = new Map();
  for (const [path, state] of found) {
    if (mounted.some((mount) => path === mount || path.startsWith(`${mount}/`))) continue;
    const hasMounts = mounted.some((mount) => mount.startsWith(`${path}/`));
    own.set(path, hasMounts && state.endsWith(OPAQUE) ? state.slice(0, -OPAQUE.length) + COVERED : state);
  }
  return own;
}

/** Of a state in a scan; of a folder, and of what is no file, it is none. */
export function inodeIn(state: string): string {
  return state.slice(0, state.indexOf(" "));
}

/** Of states of files that are no folders: another inode. */
function isAnother(was: string, state: string): boolean {
  const [old, now] = [was, state].map((one) => /^\d+ /.exec(one)?.[0]);
  return old !== undefined && now !== undefined && old !== now;
}

/** Of a state in a scan. */
function kindOf(state: string): string {
  if (state.startsWith("directory")) return "directory";
  return String(Number(state.split(" ")[1] ?? 0) & FORMAT);
}

/**
 * A tar stream of just these paths. `done` settles when tar has ended, well or not; with those that it has zeros of in place of what it could
 * not read.
 * @param live files may change or vanish while they are read (the second round mends it); otherwise that is an error
 */
export async function packPaths(
  tree: Tree,
  paths: Iterable<string>,
  live: boolean,
): Promise<{ stream: Readable; done: Promise<ReadonlySet<string>> }> {
  const tolerance = live
    ? [
        "--ignore-failed-read",
        "--warning=failed-read",
        "--quoting-style=escape", // as `cutShortIn` reads it
        "--warning=no-file-changed",
        "--warning=no-file-removed",
      ]
    : [];
  const args = [
    ...TAR_ATTRIBUTES,
    "--sparse",
    ...tolerance,
    "--no-recursion",
    "--null",
    "--verbatim-files-from",
    "-T",
    "-",
    "-cf",
    "-",
  ];
  const child = await startTar(tree.initPid, tree.fd, args);
  const [stdin, stream] = [child.stdin as Writable, child.stdout as Readable];
  stdin.on("error", () => {}); // tar's exit status tells
  stdin.end(Buffer.concat([...paths].flatMap((path) => [HERE, nameBytes(path), END])));
  return { stream, done: ended(child, live) };
}

/** Unpacks a stream below a folder, replacing what is there. The container pays for the memory: a tmpfs has no other place for what it holds. */
export async function unpackInto(tree: Tree): Promise<{ stream: Writable; done: Promise<void> }> {
  const args = [...TAR_ATTRIBUTES, "-xpf", "-", "--overwrite", "--delay-directory-restore"];
  const payers = tree.initPid === null ? [] : await memoryProcsOf(tree.initPid);
  const child = await startTar(tree.initPid, tree.fd, args, payers);
  child.stdout?.resume();
  return {
    stream: child.stdin as Writable,
    done: ended(child, false, payers.length > 0 ? NO_ROOM : undefined).then(() => {}),
  };
}

/** tar's status 1 is "some files changed while read": expected of a live source, the second round mends it. */
async function ended(
  child: ChildProcess,
  live: boolean,
  shortage = "memory is short",
): Promise<ReadonlySet<string>> {
  let complaint = "";
  let line = "";
  const cutShort = new Set<string>();
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    complaint = (complaint + text).slice(-COMPLAINT_MAX);
    const lines = (line + text).split("\n");
    line = (lines.pop() ?? "").slice(-LINE_MAX);
    for (const path of lines.map(cutShortIn)) if (path !== null) cutShort.add(path);
  });
  const [status, signal] = (await once(child, "close")) as [number | null, string | null];
  if (status === 0 || (status === 1 && live)) return cutShort;
  // nsenter(1) ends by what its child was ended by
  const reason = signal === "SIGKILL" ? `was killed (SIGKILL): ${shortage}` : `failed (${status ?? signal})`;
  const lastLine = complaint.trim().split("\n").at(-1) ?? "";
  throw fail("FILES_TAR", `tar ${reason}${lastLine === "" ? "" : `: ${lastLine}`}`);
}

function isWhiteout(stat: { isCharacterDevice(): boolean; rdev: bigint }): boolean {
  return stat.isCharacterDevice() && stat.rdev === 0n;
}

function isOpaque(path: string): boolean {
  return files.getXattr(path, "trusted.overlay.opaque")?.toString("latin1") === "y";
}
