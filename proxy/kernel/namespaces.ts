/** Namespaces (namespaces(7)): entered with this thread, around one call that must not wait for anything. */
import { closeSync, fstatSync, openSync } from "node:fs";
import { check, libc } from "./libc.ts";

export const CLONE_NEWNET = 0x40000000;
export const CLONE_NEWNS = 0x20000;
export const CLONE_NEWIPC = 0x08000000;
export const CLONE_FS = 0x200;

/**
 * Moves the *calling thread* into the namespace of `fd`. libuv's pool and other threads stay where they are: sockets are
 * made by this thread, so that suffices for CLONE_NEWNET.
 */
export function setns(fd: number, flag: number): void {
  check(libc().setns(fd, flag), "setns");
}

/** A new namespace for the calling thread, see {@link setns}. */
export function unshare(flags: number): void {
  check(libc().unshare(flags), "unshare");
}

/** Runs `use`, which must not wait for anything, with this thread in the IPC namespace of a process (ipc_namespaces(7)). */
export function inIpcNamespaceOf<T>(pid: number, use: () => T): T {
  const theirs = openSync(`/proc/${pid}/ns/ipc`, "r");
  try {
    return inNamespace("ipc", CLONE_NEWIPC, theirs, use);
  } finally {
    closeSync(theirs);
  }
}

function inNamespace<T>(kind: "ipc" | "net", type: number, theirs: number, use: () => T): T {
  const own = openSync(`/proc/thread-self/ns/${kind}`, "r");
  try {
    if (fstatSync(own).ino === fstatSync(theirs).ino) return use();
    setns(theirs, type);
    try {
      return use();
    } finally {
      setns(own, type);
    }
  } finally {
    closeSync(own);
  }
}

/**
 * Runs `use`, which must not wait for anything, with this thread in a network namespace: sockets made there stay in it, and
 * /proc/thread-self/net and /proc/sys/net are of it. Where that is the namespace it is in, no capability is needed.
 */
export function inNetworkNamespace<T>(fd: number, use: () => T): T {
  return inNamespace("net", CLONE_NEWNET, fd, use);
}

/**
 * Runs `use`, which must not wait for anything, with this thread in the mount namespace of a process, at its root. The thread
 * gets a root and a working directory of its own for good (CLONE_FS), and has both back as they were.
 */
export function inMountNamespaceOf<T>(pid: number, use: () => T): T {
  unshare(CLONE_FS);
  const folders = { own: -1, theirs: -1, root: -1, here: -1 };
  try {
    folders.own = openSync("/proc/thread-self/ns/mnt", "r");
    folders.theirs = openSync(`/proc/${pid}/ns/mnt`, "r");
    folders.root = openSync("/", "r");
    folders.here = openSync(".", "r");
    setns(folders.theirs, CLONE_NEWNS);
    try {
      return use();
    } finally {
      setns(folders.own, CLONE_NEWNS);
      check(libc().fchdir(folders.root), "fchdir");
      check(libc().chroot("."), "chroot");
      check(libc().fchdir(folders.here), "fchdir");
    }
  } finally {
    for (const fd of Object.values(folders)) if (fd !== -1) closeSync(fd);
  }
}
