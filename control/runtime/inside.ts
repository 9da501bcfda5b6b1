/**
 * Files as a container sees them, opened by the agent. The application may have put a link anywhere, at any time; a path
 * below /proc/PID/root would follow it into the host's files. So nothing is opened in a container but from here: from a
 * descriptor of its root, where links and ".." stay inside (openat2(2)), and every later step from a descriptor too.
 *
 * What is opened may be of any kind: who reads looks at that first (a fifo would keep the agent waiting).
 */
import { closeSync, constants, fstatSync, openSync, readlinkSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as files from "#proxy/kernel/files.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";

interface Container {
  init: { pid: number };
}

/** A descriptor (O_PATH) of the container's root, close-on-exec; the caller closes it. */
export function openRoot(container: Container): number {
  return files.openPath(`/proc/${container.init.pid}/root`);
}

/**
 * The path without links of what the container has at `path`: whoever follows one from outside (`/var/run` to `/run`, in each image of
 * Debian's) comes to a file of its own. @throws HoldfastError of the kernel: `ENOENT`, `ELOOP` …
 */
export function realPathIn(container: Container, path: string): string {
  const fd = openIn(container, path);
  try {
    return readlinkSync(pathOf(fd));
  } finally {
    closeSync(fd);
  }
}

/**
 * A descriptor (O_PATH) of a mount of its own, seen nowhere, of what the container has at `path`: to be written to even where that is
 * mounted read-only, and without what is mounted in it. The caller closes it.
 */
export function openAsMount({ init }: Container, path: string): number {
  const mount = namespaces.inMountNamespaceOf(init.pid, () => mounts.openTree(path));
  mounts.setReadOnly(mount, false);
  return mount;
}

/**
 * A descriptor (O_PATH) of what the container sees at `path`, links followed as it would follow them; the caller closes it.
 * @throws HoldfastError of the kernel: `ENOENT`, `ELOOP` …
 */
export function openIn(container: Container, path: string | Buffer): number {
  return open(container, path, { flags: files.O_PATH });
}

/** As {@link openIn}, of a folder, to be read. @throws HoldfastError also `ENOTDIR` */
export function openFolderIn(container: Container, path: string | Buffer): number {
  return open(container, path, { flags: constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NONBLOCK });
}

function open(container: Container, path: string | Buffer, how: files.OpenInside): number {
  const root = openRoot(container);
  try {
    return files.openInside(root, path, how);
  } finally {
    closeSync(root);
  }
}

/** A path by which this process, and what it starts, gets at what a descriptor of its own is of. */
export function pathOf(fd: number): string {
  return `/proc/${process.pid}/fd/${fd}`;
}

/** Uses a descriptor from {@link openIn} or {@link openFolderIn}, and closes it. null: there is no such file */
export async function using<T>(
  open: () => number,
  use: (path: string, fd: number) => Promise<T> | T,
): Promise<T | null> {
  let fd: number;
  try {
    fd = open();
  } catch {
    return null;
  }
  try {
    return await use(pathOf(fd), fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * The pipe that takes what a container's processes write, to be written to: what its init has as standard output (1) or error (2).
 * The caller closes it.
 * @throws HoldfastError `OUTPUT_REPLACED`
 */
export function openOutput(container: Container, which: 1 | 2): number {
  const output = openPipe(container.init.pid, which, constants.O_WRONLY);
  descriptor.setFileFlags(output, descriptor.fileFlags(output) & ~constants.O_NONBLOCK);
  return output;
}

/**
 * The reading end of the pipe that a container's init has as standard output, which does not wait; the caller closes it. Either end of a
 * pipe can be opened by the name of the other (proc(5)).
 * @throws HoldfastError `OUTPUT_REPLACED`
 */
export function openOutputEnd(initPid: number): number {
  return openPipe(initPid, 1, constants.O_RDONLY);
}

/**
 * Who can trace that init may have put anything there: a terminal would become the agent's own, and its keys end it (open(2), O_NOCTTY),
 * a device does something when it is opened, a fifo waits. So nothing is opened before it is known for a pipe, by a descriptor that opens
 * nothing, and that is what is opened then.
 */
function openPipe(initPid: number, fd: 1 | 2, access: number): number {
  const found = files.openPath(`/proc/${initPid}/fd/${fd}`);
  try {
    const path = `/proc/self/fd/${found}`;
    if (!fstatSync(found).isFIFO() || !/^pipe:\[\d+\]$/.test(readlinkSync(path)))
      throw fail(
        "OUTPUT_REPLACED",
        "the standard output or error of the container's init is not the pipe it was given: stop the workload and start it again",
      );
    return openSync(path, access | constants.O_NONBLOCK | constants.O_NOCTTY);
  } finally {
    closeSync(found);
  }
}

/**
 * The container's own null device for reading, which CRIU finds again in its files. null: the application has put something
 * else in its place
 */
export function openNull(container: Container): number | null {
  const nullDevice = (1 << 8) | 3; // Documentation/admin-guide/devices.txt
  let found = -1;
  try {
    found = open(container, "/dev/null", { flags: files.O_PATH, noSymlinks: true });
    const { rdev } = fstatSync(found);
    if (!fstatSync(found).isCharacterDevice() || rdev !== nullDevice) return null;
    return open(container, "/dev/null", { flags: constants.O_RDONLY, noSymlinks: true });
  } catch {
    return null;
  } finally {
    if (found !== -1) closeSync(found);
  }
}
