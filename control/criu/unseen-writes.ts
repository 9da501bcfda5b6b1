/**
 * Calls that write to a process's memory by way of pages that they took hold of before: what `write-tracking.ts` cannot see. They are
 * reads with O_DIRECT, of file systems that do as much by themselves, of devices, and of sockets that decrypt or receive into their
 * reader's pages.
 *
 * TLS in the kernel is not looked for here: that would mean to take hold of each TCP socket, whose owner may close it meanwhile. A process
 * that has such a socket is not moved (`socket.upper-layer` before a move, the audit in it).
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { getXattr } from "#proxy/kernel/files.ts";
import { KCMP_FILES, kcmp } from "#proxy/kernel/processes.ts";
import { majorOf } from "#proxy/kernel/terminals.ts";
import { isGone } from "./process-memory.ts";

/** fcntl(2), in the octal of /proc/PID/fdinfo */
const O_DIRECT = 0o40000;
/** they copy what is read by way of the page cache, unless with O_DIRECT */
const CACHED = new Set([
  "ext2",
  "ext3",
  "ext4",
  "xfs",
  "btrfs",
  "f2fs",
  "overlay",
  "tmpfs",
  "ramfs",
  "devtmpfs",
  "devpts",
  "proc",
  "sysfs",
  "cgroup",
  "cgroup2",
  "mqueue",
  "squashfs",
  "erofs",
  "iso9660",
  "vfat",
]);
/** nothing of the process's memory is written to by these but in a call of its own */
const COPYING = /^pipe:\[|^anon_inode:(\[(eventfd|eventpoll|timerfd|signalfd|pidfd)\]|inotify)$|^\/memfd:/;
/** of `struct proto`: they copy what arrives in a call of its reader, and to nobody else's memory */
const COPYING_SOCKETS = new Set([
  "TCP",
  "TCPv6",
  "UDP",
  "UDPv6",
  "UDP-Lite",
  "UDPLITEv6",
  "RAW",
  "RAWv6",
  "PING",
  "PINGv6",
  "UNIX",
  "UNIX-STREAM",
  "NETLINK",
]);
/** its name is one of 32 (include/net/sock.h) */
const PROTOCOL_BYTES_MAX = 64;
/** Documentation/admin-guide/devices.txt: /dev/null and its like; consoles and serial lines, /dev/tty and /dev/ptmx, terminals of devpts */
const COPYING_MAJORS = new Set([1, 4, 5, 136, 137, 138, 139, 140, 141, 142, 143]);

/**
 * Whether the process may be in the middle of a call that writes to its memory by way of pages it took hold of before. Such a call's file is
 * open until it is over; so where this finds none after `WriteTracking.begin`, what is read afterwards is what the call has written.
 */
export function mayMissWrites(pid: number): boolean {
  const folder = `/proc/${pid}`;
  try {
    for (const tid of readdirSync(`${folder}/task`))
      if (kcmp(pid, Number(tid), KCMP_FILES) !== 0) return true;
    let fileSystems: Map<string, string> | null = null;
    for (const fd of readdirSync(`${folder}/fd`)) {
      const path = `${folder}/fd/${fd}`;
      const target = linkOf(path);
      if (target === null || COPYING.test(target)) continue;
      if (target.startsWith("socket:[")) {
        if (!isCopyingSocket(path)) return true;
        continue;
      }
      const info = readFileSync(`${folder}/fdinfo/${fd}`, "utf8");
      const flags = Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? "", 8);
      const mount = /^mnt_id:\s*(\d+)$/m.exec(info)?.[1] ?? "";
      fileSystems ??= fileSystemsOf(readFileSync(`${folder}/mountinfo`, "utf8"));
      if ((flags & O_DIRECT) !== 0 || !CACHED.has(fileSystems.get(mount) ?? "")) return true;
      if (!isCopyingFile(path)) return true;
    }
    return false;
  } catch (error) {
    // one that is about its end has no mounts any more (`mounts_open_common`, fs/proc_namespace.c)
    if (isGone(error) || hasNoMounts(error)) return true;
    throw error;
  }
}

function hasNoMounts(error: unknown): boolean {
  const { code, path = "" } = error as NodeJS.ErrnoException;
  return code === "EINVAL" && path.endsWith("/mountinfo");
}

/** By the kernel's name of its protocol (`sockfs_xattr_get`, net/socket.c): nobody takes hold of the socket. One that is closed is over. */
function isCopyingSocket(path: string): boolean {
  try {
    const name = getXattr(path, "system.sockprotoname", PROTOCOL_BYTES_MAX)?.toString("latin1") ?? "";
    return COPYING_SOCKETS.has(name.replace(/\0.*$/s, ""));
  } catch (error) {
    if (isGone(error)) return true;
    throw error;
  }
}

/** A device's driver may do as it likes with the pages that it is given (as SG_IO of a disk): only those are known that are in every container. */
function isCopyingFile(path: string): boolean {
  const file = statSync(path, { throwIfNoEntry: false });
  if (file?.isCharacterDevice()) return COPYING_MAJORS.has(majorOf(file.rdev));
  return file?.isBlockDevice() !== true;
}

/** null: it was closed meanwhile, and so was over */
function linkOf(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch (error) {
    if (isGone(error)) return null;
    throw error;
  }
}

/** mount id → type, of /proc/PID/mountinfo (proc(5)) */
function fileSystemsOf(mountinfo: string): Map<string, string> {
  const types = new Map<string, string>();
  for (const line of mountinfo.split("\n")) {
    const [, id = "", type = ""] = /^(\d+) .* - (\S+) /.exec(line) ?? [];
    types.set(id, type);
  }
  return types;
}
