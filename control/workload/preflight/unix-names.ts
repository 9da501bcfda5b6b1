/**
 * Unix sockets whose file has another name than the one that bind(2) was given, which is all that CRIU carries: clients that come by the
 * other one find nothing at the target. The kernel gives the file itself (SIOCUNIXFILE, unix(7)), whatever it is called by now.
 */
import { type BigIntStats, closeSync, fstatSync, readlinkSync } from "node:fs";
import { basename } from "node:path";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as files from "#proxy/kernel/files.ts";
import * as sock from "#proxy/kernel/socket.ts";
import type { SocketPlace } from "../../migration/sockets.ts";
import type { UnixSocket } from "../../runtime/unix-sockets.ts";

/** of a path in /proc, when that name was deleted */
const DELETED = " (deleted)";

/**
 * A file that was deleted under all its names has none at the target either, and is well.
 * @param fd ours, of the socket
 * @param place whose paths its name is one of: its holder's, or its container's
 */
export function isRenamed(
  fd: number,
  socket: UnixSocket,
  { pid, initPid }: Pick<SocketPlace, "pid"> & { initPid: number },
): boolean {
  const { name } = socket;
  if (name === null || name.startsWith("@") || !hasClientsByName(socket)) return false;
  const file = fileOf(fd);
  if (file === null) return false;
  try {
    const { nlink, dev, ino } = fstatSync(file, { bigint: true });
    if (nlink !== 1n) return nlink > 1n;
    const path = readlinkSync(`/proc/self/fd/${file}`);
    // the one name it has is another: it was linked, and the bound name deleted
    if (path.endsWith(DELETED)) return true;
    // nothing tells what folder its process was in when it bound it, or in what root
    if (!name.startsWith("/")) return basename(path) !== basename(name);
    if (path.endsWith(name)) return false;
    // in its own root, or in that of its container, which it may have left since
    return ![pid, initPid].some((one) => {
      const bound = statFrom(one, name);
      return bound?.dev === dev && bound.ino === ino;
    });
  } finally {
    closeSync(file);
  }
}

/** A connection has its listener's name, and needs none. */
function hasClientsByName({ type, state }: UnixSocket): boolean {
  return type === sock.SOCK_DGRAM || state !== sock.TCP_ESTABLISHED;
}

/** null: it has none, or the kernel does not tell */
function fileOf(fd: number): number | null {
  try {
    return sock.fileOfUnixSocket(fd);
  } catch (error) {
    if (error instanceof HoldfastError) return null;
    throw error;
  }
}

/** What a process sees at a path. null: nothing */
function statFrom(pid: number, path: string): BigIntStats | null {
  const opened: number[] = [];
  try {
    const root = files.openPath(`/proc/${pid}/root`);
    opened.push(root);
    const found = files.openInside(root, path, { flags: files.O_PATH });
    opened.push(found);
    return fstatSync(found, { bigint: true });
  } catch {
    return null;
  } finally {
    for (const fd of opened) closeSync(fd);
  }
}
