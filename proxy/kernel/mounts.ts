/** Mounts, also as descriptors that are attached nowhere yet (mount(2), open_tree(2), fsopen(2), mount_setattr(2)). */
import { constants } from "node:os";
import { close } from "./descriptors.ts";
import { AT_FDCWD, O_CLOEXEC } from "./files.ts";
import { addressOf, check, errno, failure, libc } from "./libc.ts";

export const MS_NOSUID = 2;
export const MS_NODEV = 4;
export const MS_NOEXEC = 8;
const AT_EMPTY_PATH = 0x1000;
const OPEN_TREE_CLONE = 1;
const MOVE_MOUNT_F_EMPTY_PATH = 4;
const MOUNT_ATTR_RDONLY = 1;
const SYS_OPEN_TREE = 428;
const SYS_MOVE_MOUNT = 429;
const SYS_FSOPEN = 430;
const SYS_FSCONFIG = 431;
const SYS_FSMOUNT = 432;
const SYS_MOUNT_SETATTR = 442;

/**
 * A mount of `path` that is seen nowhere (open_tree(2), OPEN_TREE_CLONE): ".." of its root is its root, so who has the
 * descriptor reaches what is below it and nothing else. What is mounted below it is not in it.
 */
export function openTree(path: string): number {
  const name = Buffer.from(`${path}\0`);
  return check(
    libc().syscall(SYS_OPEN_TREE, AT_FDCWD, addressOf(name), OPEN_TREE_CLONE | O_CLOEXEC, 0),
    `open_tree(${path})`,
  );
}

/** Makes a mount read-only, or writable again (mount_setattr(2)); others of the same file system stay as they are. */
export function setReadOnly(mountFd: number, readOnly: boolean): void {
  const attributes = Buffer.alloc(32); // struct mount_attr: u64 attr_set, attr_clr, propagation, userns_fd
  attributes.writeBigUInt64LE(BigInt(MOUNT_ATTR_RDONLY), readOnly ? 0 : 8);
  const empty = Buffer.alloc(1);
  check(
    libc().syscall5(
      SYS_MOUNT_SETATTR,
      mountFd,
      addressOf(empty),
      AT_EMPTY_PATH,
      addressOf(attributes),
      attributes.length,
    ),
    "mount_setattr",
  );
}

/** Attaches a mount that is seen nowhere at `path` (move_mount(2)). */
export function attachMount(mountFd: number, path: string): void {
  const [empty, target] = [Buffer.alloc(1), Buffer.from(`${path}\0`)];
  check(
    libc().syscall5(
      SYS_MOVE_MOUNT,
      mountFd,
      addressOf(empty),
      AT_FDCWD,
      addressOf(target),
      MOVE_MOUNT_F_EMPTY_PATH,
    ),
    `move_mount(${path})`,
  );
}

/** mount(2) of a file system that has no device. */
export function mount(type: string, source: string, target: string, flags: number): void {
  check(libc().mount(source, target, type, flags, null), `mount(${target})`);
}

/** umount2(2) with MNT_DETACH: whoever uses it goes on with it. */
export function unmount(target: string): void {
  check(libc().umount2(target, MNT_DETACH), `umount(${target})`);
}

/** False: there is no mount at that path, or it is hidden below another one. */
export function unmountVisible(target: string): boolean {
  if (libc().umount2(target, MNT_DETACH) === 0) return true;
  const error = errno();
  if (error === constants.errno.ENOENT || error === constants.errno.EINVAL) return false;
  throw failure(`umount(${target})`, error);
}

const MNT_DETACH = 2;

/** A new file system without a device, as `tmpfs`, that is mounted nowhere: a descriptor of its root (fsmount(2)). */
export function newMount(type: string): number {
  const createSuper = 6;
  const cloexec = 1;
  const name = Buffer.from(`${type}\0`);
  const context = check(libc().syscall(SYS_FSOPEN, addressOf(name), cloexec, 0, 0), `fsopen(${type})`);
  try {
    check(libc().syscall5(SYS_FSCONFIG, context, createSuper, 0, 0, 0), `fsconfig(${type})`);
    return check(libc().syscall(SYS_FSMOUNT, context, cloexec, 0, 0), `fsmount(${type})`);
  } finally {
    close(context);
  }
}
