/**
 * Which pages of a running process were written: asked of the kernel (userfaultfd(2) with WP_ASYNC and PAGEMAP_SCAN, Linux 6.7), so that
 * memory that stays as it is need not be read to know that.
 *
 * A page counts as unwritten only if its mapping was registered by then and the kernel says so; what is new, moved (mremap(2)) or forked is
 * in no such mapping. The descriptor is made in the process by a thread of ours (`guest-thread.ts`) and never anybody else's; when
 * it is closed the process is as it was before.
 *
 * What the kernel cannot see are writes by way of pages that somebody held from before: reading with O_DIRECT, or from a file system
 * that does as much by itself. A process that might be in the middle of such a call is not tracked (`unseen-writes.ts`).
 */
import { close, closeSync, openSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { release } from "node:os";
import { promisify } from "node:util";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { pidfdGetfd, pidfdOpenThread } from "#proxy/kernel/processes.ts";
import * as userfault from "#proxy/kernel/userfault.ts";
import { withGuestThread } from "./guest-thread.ts";
import { union, without } from "./page-ranges.ts";
import { ownPages, type PageRange, takeWrittenPages, unwrittenPages } from "./page-scan.ts";
import { anonymousMappings, isGone } from "./process-memory.ts";

/** fcntl(2) */
const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
/** of more, all counts as written */
const MAPPINGS_MAX = 4_096;
/** close_range(2), linux/close_range.h */
const SYS_CLOSE_RANGE = 436;
const CLOSE_RANGE_UNSHARE = 2;
const DESCRIPTORS_MAX = 0xffff_ffff;
const closeByThread = promisify(close);

export class WriteTracking {
  readonly pid: number;
  readonly #fd: number;
  #closed: Promise<void> | null = null;

  private constructor(pid: number, fd: number) {
    this.pid = pid;
    this.#fd = fd;
  }

  /** null: it cannot be, here or of this process @throws HoldfastError FREEZER: it stands still */
  static async of(pid: number): Promise<WriteTracking | null> {
    if (!canTell(release())) return null;
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
   * next look. Something else may make them out of date all the same: `mayMissWrites`.
   */
  begin(): PageRange[] {
    return this.#ofEachMapping((pagemap, start, end) => {
      // listed first: what comes in between is written, and not among them
      const own = [...ownPages(pagemap, start, end)];
      return without(own, union([...takeWrittenPages(pagemap, start, end)]));
    });
  }

  /** … of one that stands still. */
  unwritten(): PageRange[] {
    return this.#ofEachMapping((pagemap, start, end) => union([...unwrittenPages(pagemap, start, end)]));
  }

  /** Resolves when the process is as it was before: by a thread, as the kernel goes through all its pages. Safe at any time. */
  close(): Promise<void> {
    this.#closed ??= closeByThread(this.#fd);
    return this.#closed;
  }

  /**
   * Each is registered first, each time: the program may have replaced it, and have registered it with a userfaultfd(2) of its own, whose
   * answers the kernel does not tell from ours. A process that ends in the middle ends them.
   */
  #ofEachMapping(find: (pagemap: number, start: number, end: number) => PageRange[]): PageRange[] {
    const ranges: PageRange[] = [];
    let pagemap: number | null = null;
    try {
      const maps = readFileSync(`/proc/${this.pid}/maps`, "utf8");
      pagemap = openSync(`/proc/${this.pid}/pagemap`, "r");
      const mappings = anonymousMappings(maps);
      // each takes calls, in one turn of the event loop
      if (mappings.length > MAPPINGS_MAX) return [];
      for (const { start, end } of mappings) {
        try {
          userfault.register(this.#fd, start, end);
          for (const range of find(pagemap, start, end)) ranges.push(range);
        } catch (error) {
          // it has changed meanwhile, or is of a kind that cannot be tracked: all of it counts as written
          if (isGone(error) || !(error instanceof HoldfastError)) throw error;
        }
      }
    } catch (error) {
      if (!isGone(error)) throw error;
    } finally {
      if (pagemap !== null) closeSync(pagemap);
    }
    return ranges;
  }
}

/** Memory that is a process's own and of no file. 0: it has ended */
export async function anonymousBytesOf(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
  const kilobytes = (field: string): number =>
    Number(new RegExp(`^${field}:\\s*(\\d+) kB$`, "m").exec(status)?.[1] ?? 0);
  return (kilobytes("RssAnon") + kilobytes("VmSwap")) * 1024;
}

/**
 * Whether a kernel tells of each page that was written. From 6.7 on it would, but until 6.12.10 what mremap(2) had moved could count as
 * unwritten (CVE-2025-21696).
 * @param name as uname(2) has it: "6.12.48+deb13-amd64"
 */
export function canTell(name: string): boolean {
  const [major = 0, minor = 0, patch = 0] = name
    .split(/[.+-]/, 3)
    .map((part) => Number.parseInt(part, 10) || 0);
  if (major !== 6) return major > 6;
  return minor > 12 || (minor === 12 && patch > 10);
}

/** Ours alone. null: it cannot be had */
async function userfaultOf(pid: number): Promise<number | null> {
  let fd: number | null = null;
  try {
    await withGuestThread(pid, async ({ tid, call }) => {
      // a table of its own, with nothing in it: nobody inherits the descriptor, and nothing of theirs is open for longer
      if ((await call(SYS_CLOSE_RANGE, 0, DESCRIPTORS_MAX, CLOSE_RANGE_UNSHARE)) !== 0) return;
      const flags = userfault.UFFD_USER_MODE_ONLY | O_CLOEXEC | O_NONBLOCK;
      const there = await call(userfault.SYS_USERFAULTFD, flags);
      if (there >= 0) fd = descriptorOf(tid, there);
    });
    return fd;
  } catch (error) {
    // the guest had it, and is late in ending
    if (fd !== null) closeSync(fd);
    throw error;
  }
}

/** null: we have too many ourselves */
function descriptorOf(tid: number, there: number): number | null {
  let pidfd: number | null = null;
  try {
    pidfd = pidfdOpenThread(tid);
    return pidfdGetfd(pidfd, there);
  } catch (error) {
    if (!(error instanceof HoldfastError)) throw error;
    return null;
  } finally {
    if (pidfd !== null) closeSync(pidfd);
  }
}
