/** Files by path, below a root, or by handle; extended attributes; watches on files (openat2(2), open_by_handle_at(2), inotify(7)). */
import { HoldfastError } from "#proxy/contract/errors.ts";
import { addressOf, check, errno, failure, libc } from "./libc.ts";

import { SOCK_NONBLOCK } from "./socket.ts";

/** include/uapi/linux/inotify.h */
export const IN_ACCESS = 0x1;
export const IN_MODIFY = 0x2;
export const IN_ATTRIB = 0x4;
export const IN_CLOSE_WRITE = 0x8;
export const IN_CLOSE_NOWRITE = 0x10;
export const IN_OPEN = 0x20;
export const IN_MOVED_FROM = 0x40;
export const IN_MOVED_TO = 0x80;
export const IN_CREATE = 0x100;
export const IN_DELETE = 0x200;
export const IN_DELETE_SELF = 0x400;
export const IN_MOVE_SELF = 0x800;
export const IN_UNMOUNT = 0x2000;
export const IN_Q_OVERFLOW = 0x4000;
export const IN_IGNORED = 0x8000;
export const IN_MASK_CREATE = 0x10000000;
export const IN_MASK_ADD = 0x20000000;
export const IN_ISDIR = 0x40000000;
/** _IOW('I', 0, __s32), needs CONFIG_CHECKPOINT_RESTORE; the argument is the number itself, not its address */
const INOTIFY_IOC_SETNEXTWD = 0x40044900;
/** include/uapi/linux/openat2.h */
const RESOLVE_NO_MAGICLINKS = 0x02;
const RESOLVE_NO_SYMLINKS = 0x04;
const RESOLVE_IN_ROOT = 0x10;
const O_NOFOLLOW = process.arch === "arm64" ? 0o100000 : 0o400000;
export const O_PATH = 0o10000000;
/** linux/fcntl.h, linux/mount.h */
export const AT_FDCWD = -100;
const MAX_HANDLE_SZ = 128;
/** include/uapi/linux/limits.h */
const XATTR_SIZE_MAX = 65536;
export const O_CLOEXEC = 0o2000000;
const SYS_OPENAT2 = 437;

/** An extended attribute of a file, of at most so many bytes; null where the file has none of that name. */
export function getXattr(path: string, name: string, bytesMax = XATTR_SIZE_MAX): Buffer | null {
  const value = Buffer.alloc(bytesMax);
  const size = libc().getxattr(path, name, value, value.length);
  if (size >= 0) return Buffer.from(value.subarray(0, size));
  const error = failure(`getxattr(${path}, ${name})`, errno());
  if (error.code === "ENODATA" || error.code === "EOPNOTSUPP") return null;
  throw error;
}

/** A file itself, close-on-exec, not opened for anything (open(2), O_PATH): nobody is told. Follows links, as those of /proc. */
export function openPath(path: string): number {
  return check(libc().open(path, O_PATH | O_CLOEXEC), `open(${path})`);
}

/**
 * As {@link openPath}, `path` taken below `root` as if that were "/", and through no symbolic link: one at the end is
 * what is opened (openat2(2)).
 * @param path bytes, without the final zero
 */
export function openPathBelow(root: number, path: Buffer): number {
  return openInside(root, path, { flags: O_PATH | O_NOFOLLOW, noSymlinks: true });
}

/** How {@link openInside} opens: `path` is "/" or what it leads to. */
export interface OpenInside {
  /** open(2) flags; O_CLOEXEC is added */
  flags: number;
  /** of a file that O_CREAT makes, but for the umask */
  mode?: number;
  /** a symbolic link anywhere in the path is HoldfastError code ELOOP */
  noSymlinks?: boolean;
}

/**
 * Opens `path` as if `root` were "/": links and ".." lead nowhere outside, and links of /proc nowhere at all (openat2(2),
 * RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS).
 * @param path bytes, or text in UTF-8, without the final zero
 */
export function openInside(root: number, path: Buffer | string, how: OpenInside): number {
  const resolve =
    RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (how.noSymlinks === true ? RESOLVE_NO_SYMLINKS : 0);
  const structure = Buffer.alloc(24); // struct open_how: u64 flags, mode, resolve
  structure.writeBigUInt64LE(BigInt(how.flags | O_CLOEXEC), 0);
  structure.writeBigUInt64LE(BigInt(how.mode ?? 0), 8);
  structure.writeBigUInt64LE(BigInt(resolve), 16);
  const name = Buffer.concat([Buffer.from(path as Buffer), Buffer.alloc(1)]);
  return check(
    libc().syscall(SYS_OPENAT2, root, addressOf(name), addressOf(structure), structure.length),
    `openat2(${path.toString()})`,
  );
}

/**
 * The file of a handle (name_to_handle_at(2)), as {@link openPath}. HoldfastError ESTALE, EOPNOTSUPP: not of that file
 * system, or gone.
 * @param mount any descriptor, not O_PATH, on the file system the handle is of
 */
export function openByHandle(mount: number, type: number, handle: Buffer): number {
  if (handle.length > MAX_HANDLE_SZ)
    throw new HoldfastError(`a file handle of ${handle.length} bytes`, { code: "EINVAL", source: "kernel" });
  const structure = Buffer.alloc(8 + handle.length); // struct file_handle: u32 bytes, i32 type, bytes
  structure.writeUInt32LE(handle.length, 0);
  structure.writeInt32LE(type, 4);
  handle.copy(structure, 8);
  return check(libc().open_by_handle_at(mount, structure, O_PATH | O_CLOEXEC), "open_by_handle_at");
}

/** An instance of inotify(7) of our own, non-blocking, close-on-exec. */
export function inotifyInit(): number {
  return check(libc().inotify_init1(SOCK_NONBLOCK | O_CLOEXEC), "inotify_init1");
}

/** Watches the file that `file` is a descriptor of; its number, that of the watch there is already where there is one. */
export function inotifyAdd(inotify: number, file: number, mask: number): number {
  return check(
    libc().inotify_add_watch(inotify, `/proc/self/fd/${file}`, mask >>> 0),
    "inotify_add_watch (fs.inotify.max_user_watches?)",
  );
}

/** Leaves an event IN_IGNORED behind. */
export function inotifyRemove(inotify: number, wd: number): void {
  check(libc().inotify_rm_watch(inotify, wd), "inotify_rm_watch");
}

/** The next new watch gets this number, or the next free one after it. */
export function inotifySetNext(inotify: number, wd: number): void {
  check(libc().ioctlValue(inotify, INOTIFY_IOC_SETNEXTWD, wd), "ioctl(INOTIFY_IOC_SETNEXTWD)");
}
