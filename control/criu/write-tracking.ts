/**
 * Which pages of a running process were written: asked of the kernel (userfaultfd(2) with WP_ASYNC and PAGEMAP_SCAN, Linux 6.7), so that
 * memory that stays as it is need not be read to know that.
 *
 * A page counts as unwritten only if its mapping was registered by then and the kernel says so; what is new, moved (mremap(2)) or forked is
 * in no such mapping. The descriptor is made in the process by one of its threads (`borrowed-thread.ts`) and is ours alone at once; when
 * it is closed the process is as it was before.
 *
 * What the kernel cannot see are writes by way of pages that somebody held from before: reading with O_DIRECT, or from a file system
 * that does as much by itself. A process that might be in the middle of such a call is not tracked (`mayMissWrites`).
 */
import { close, closeSync, openSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { KCMP_FILES, kcmp, pidfdGetfd, pidfdOpen } from "#proxy/kernel/processes.ts";
import * as userfault from "#proxy/kernel/userfault.ts";
import { borrowThread } from "./borrowed-thread.ts";
import { without } from "./page-ranges.ts";
import { ownPages, type PageRange, takeWrittenPages, unwrittenPages } from "./page-scan.ts";
import { anonymousMappings } from "./process-memory.ts";

/** fcntl(2), in the octal of /proc/PID/fdinfo */
const O_DIRECT = 0o40000;
const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
const SYS_CLOSE = 3;
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
const COPYING =
  /^(socket|pipe):\[|^anon_inode:(\[(eventfd|eventpoll|timerfd|signalfd|pidfd)\]|inotify)$|^\/memfd:/;

const closeByThread = promisify(close);

export class WriteTracking {
  readonly pid: number;
  readonly #fd: number;
  #closed: Promise<void> | null = null;

  private constructor(pid: number, fd: number) {
    this.pid = pid;
    this.#fd = fd;
  }

  /** null: it cannot be, here or of this process */
  static async of(pid: number): Promise<WriteTracking | null> {
    const fd = await userfaultOf(pid);
    if (fd === null) return null;
    try {
      userfault.trackWrites(fd);
      return new WriteTracking(pid, fd);
    } catch (error) {
      closeSync(fd);
      if (error instanceof HoldfastError && error.code === "EINVAL") return null;
      throw error;
    }
  }

  /**
   * Its own pages that were not written since this was last asked, ordered by address; what is written from now on is found by the
   * next look. Something else may make them out of date all the same: {@link mayMissWrites}.
   */
  begin(): PageRange[] {
    const unwritten: PageRange[] = [];
    this.#eachMapping((pagemap, start, end) => {
      try {
        userfault.register(this.#fd, start, end);
        // listed first: what comes in between is written, and not among them
        const own = [...ownPages(pagemap, start, end)];
        for (const range of without(own, [...takeWrittenPages(pagemap, start, end)])) unwritten.push(range);
      } catch (error) {
        // it has changed meanwhile, or is of a kind that cannot be tracked: all of it counts as written
        if (isGone(error) || !(error instanceof HoldfastError)) throw error;
      }
    });
    return unwritten;
  }

  /** … of one that stands still. */
  unwritten(): PageRange[] {
    const unwritten: PageRange[] = [];
    this.#eachMapping((pagemap, start, end) => {
      for (const range of unwrittenPages(pagemap, start, end)) unwritten.push(range);
    });
    return unwritten;
  }

  /** Resolves when the process is as it was before: by a thread, as the kernel goes through all its pages. Safe at any time. */
  close(): Promise<void> {
    this.#closed ??= closeByThread(this.#fd);
    return this.#closed;
  }

  /** A process that ends in the middle ends them. */
  #eachMapping(look: (pagemap: number, start: number, end: number) => void): void {
    let pagemap: number | null = null;
    try {
      const maps = readFileSync(`/proc/${this.pid}/maps`, "utf8");
      pagemap = openSync(`/proc/${this.pid}/pagemap`, "r");
      for (const { start, end } of anonymousMappings(maps)) look(pagemap, start, end);
    } catch (error) {
      if (!isGone(error)) throw error;
    } finally {
      if (pagemap !== null) closeSync(pagemap);
    }
  }
}

/** Memory that is a process's own and of no file. 0: it has ended */
export async function anonymousBytesOf(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
  const kilobytes = (field: string): number =>
    Number(new RegExp(`^${field}:\\s*(\\d+) kB$`, "m").exec(status)?.[1] ?? 0);
  return (kilobytes("RssAnon") + kilobytes("VmSwap")) * 1024;
}

/** Ours alone: the process has it for a moment only. null: it cannot be had */
async function userfaultOf(pid: number): Promise<number | null> {
  const flags = O_CLOEXEC | O_NONBLOCK | userfault.UFFD_USER_MODE_ONLY;
  return borrowThread(pid, async (call) => {
    const there = await call(userfault.SYS_USERFAULTFD, flags);
    if (there < 0) return null;
    const pidfd = pidfdOpen(pid);
    try {
      return pidfdGetfd(pidfd, there);
    } finally {
      closeSync(pidfd);
      await call(SYS_CLOSE, there);
    }
  });
}

/**
 * Whether the process may be in the middle of a call that writes to its memory by way of pages it took hold of before. Such a call's file is
 * open until it is over; so where this finds none after {@link WriteTracking.begin}, what is read afterwards is what the call has written.
 */
export function mayMissWrites(pid: number): boolean {
  const folder = `/proc/${pid}`;
  try {
    for (const tid of readdirSync(`${folder}/task`))
      if (kcmp(pid, Number(tid), KCMP_FILES) !== 0) return true;
    let fileSystems: Map<string, string> | null = null;
    for (const fd of readdirSync(`${folder}/fd`)) {
      const target = linkOf(`${folder}/fd/${fd}`);
      if (target === null || COPYING.test(target)) continue;
      const info = readFileSync(`${folder}/fdinfo/${fd}`, "utf8");
      const flags = Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? "", 8);
      const mount = /^mnt_id:\s*(\d+)$/m.exec(info)?.[1] ?? "";
      fileSystems ??= fileSystemsOf(readFileSync(`${folder}/mountinfo`, "utf8"));
      if ((flags & O_DIRECT) !== 0 || !CACHED.has(fileSystems.get(mount) ?? "")) return true;
    }
    return false;
  } catch (error) {
    if (isGone(error)) return true;
    throw error;
  }
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

function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === "ESRCH" || code === "ENOENT";
}
