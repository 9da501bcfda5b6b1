/** Descriptors that CRIU 4.2 cannot dump, told by what /proc says of them (proc(5), /proc/PID/fd and fdinfo). */
import { readlinkSync, statfsSync, statSync } from "node:fs";
import { F_GETOWN, tryFcntl } from "#proxy/kernel/descriptors.ts";
import type { Add, FindingId } from "../../api/finding.ts";
import { descriptionsOf, type Holder } from "../../audit/sharing.ts";
import { withSocketAt } from "../../migration/sockets.ts";
import { descriptorsOf, isPathOnly } from "../../runtime/processes.ts";
import { readText } from "../../runtime/read-text.ts";

/** anon_inode: kinds that are dumped, or that others look at (watches: inotify, fanotify) */
const DUMPED = new Set([
  "[eventfd]",
  "[eventpoll]",
  "[inotify]",
  "[fanotify]",
  "inotify",
  "[signalfd]",
  "[timerfd]",
  "[pidfd]",
]);

/** … and those that are not, with what to do about each. */
const NOT_DUMPED: Record<string, { id: FindingId; cure: string }> = {
  "[io_uring]": {
    id: "descriptor.io-uring",
    cure: "run it under a seccomp profile that refuses io_uring, or set kernel.io_uring_disabled=2",
  },
  "[perf_event]": { id: "descriptor.perf-event", cure: "switch the application's use of perf events off" },
  "[userfaultfd]": { id: "descriptor.userfaultfd", cure: "switch the application's use of userfaultfd off" },
  "bpf-map": { id: "descriptor.bpf", cure: "the application must not hold eBPF maps" },
  "bpf-prog": { id: "descriptor.bpf", cure: "the application must not hold eBPF programs" },
  "[fanotify]": { id: "descriptor.fanotify", cure: "use inotify in place of fanotify" },
  "[landlock-ruleset]": {
    id: "descriptor.landlock",
    cure: "let the program close its ruleset once it is in force, or do without landlock",
  },
  "seccomp notify": {
    id: "descriptor.seccomp-notify",
    cure: "run what supervises system calls outside the container",
  },
};

/** /proc/PID/fdinfo, `mnt_id`: of a mount of the process's, or of one that nobody can name to it */
const MOUNT_ID = /^mnt_id:\s*(\d+)$/m;
const EVENTPOLL = "anon_inode:[eventpoll]";
/** of an epoll instance: descriptor, inode in hexadecimal */
const WATCH = /^tfd:\s*(\d+) .*\bino:([0-9a-f]+)/gm;
/** Documentation/admin-guide/devices.txt: /dev/tty and /dev/ptmx, /dev/pts/N */
const TERMINAL_MAJORS = new Set([5, 136]);
/** linux/magic.h */
const TMPFS_MAGIC = 0x01021994;
const MQUEUE_MAGIC = 0x19800202;
const SECRETMEM = "/secretmem";

/** @param init the container's: a process that has changed its root is shown fewer mounts than there are */
export async function checkDescriptors(init: number, pids: number[], add: Add): Promise<void> {
  const inTree = new Set(pids);
  const mounts = mountsOf(init);
  const instances: Instance[] = [];
  for (const pid of pids) {
    const mapped = mappedFiles(pid);
    const open = await descriptorsOf(pid);
    const table = new Map(open.map(({ fd, target }) => [fd, target]));
    for (const { fd, target } of open) {
      if (checkPathOnly(pid, fd, target, add)) continue;
      if (mapped.has(target)) checkLock(pid, fd, target, add);
      if (target === EVENTPOLL) instances.push({ pid, fd, name: `${pid}/${fd}`, table });
      if (target.startsWith("pidfd:")) checkPidfd(pid, fd, inTree, add);
      else if (target.startsWith("anon_inode:")) checkAnonymous(pid, fd, target, inTree, add);
      else if (target.startsWith("/")) checkMount(pid, fd, target, mounts, add);
    }
  }
  // it lists all its watches by each descriptor that it has
  const heads = descriptionsOf(instances, () => EVENTPOLL).values();
  for (const instance of new Set(heads)) checkWatches(instance, pids, add);
}

/** An epoll instance. */
interface Instance extends Holder {
  /** the process's own descriptors, a while ago: most watches are of one of these */
  table: ReadonlyMap<number, string>;
}

/**
 * A name of a file, folder, link or memory device is opened again. Of what else there is CRIU asks the descriptor itself, which the
 * kernel answers with EBADF (open(2), O_PATH).
 */
function checkPathOnly(pid: number, fd: number, target: string, add: Add): boolean {
  if (!isPathOnly(pid, fd) || isOpenedByName(pid, fd, target)) return false;
  add(
    "descriptor.path-only",
    "error",
    `process ${pid} has descriptor ${fd}, opened with O_PATH, of something that CRIU has to ask more of (${target})`,
    "let the application close it before a move, or keep the path in place of the descriptor",
    { pid, fd, path: target },
  );
  return true;
}

function isOpenedByName(pid: number, fd: number, target: string): boolean {
  if (target.startsWith("anon_inode:") || target.startsWith("/memfd:")) return false;
  try {
    const found = statSync(`/proc/${pid}/fd/${fd}`);
    if (found.isCharacterDevice()) return !TERMINAL_MAJORS.has(found.rdev >> 8);
    return !found.isSocket() && !found.isFIFO();
  } catch {
    return true; // closed meanwhile
  }
}

function checkAnonymous(pid: number, fd: number, target: string, inTree: Set<number>, add: Add): void {
  const kind = target.slice("anon_inode:".length);
  if (kind === "[pidfd]") {
    checkPidfd(pid, fd, inTree, add);
    return;
  }
  if (kind === "[eventfd]") checkEventOwner(pid, fd, add);
  const known = NOT_DUMPED[kind];
  if (known === undefined && DUMPED.has(kind)) return;
  add(
    known?.id ?? "descriptor.unknown-kind",
    "error",
    `process ${pid} has descriptor ${fd} of a kind CRIU cannot dump (${target})`,
    known?.cure ?? "let the application close it, or do without",
    { pid, fd },
  );
}

/** One with EFD_SEMAPHORE is made anew by the agent, which cannot give it somebody to send signals to (fcntl(2), F_SETOWN). */
function checkEventOwner(pid: number, fd: number, add: Add): void {
  if (!/^eventfd-semaphore:\s*1$/m.test(info(pid, fd))) return;
  const owner = withSocketAt({ pid, fd }, (ours) => tryFcntl(ours, F_GETOWN, 0)) ?? 0;
  if (owner <= 0) return;
  add(
    "descriptor.eventfd-owner",
    "error",
    `process ${pid} has descriptor ${fd}, an eventfd with EFD_SEMAPHORE that sends signals (F_SETOWN)`,
    "wait for it with poll(2) or epoll(7) in place of signals",
    { pid, fd },
  );
}

/**
 * A watch outlives its descriptor while another one of the same open file is there (epoll(7), question 6). The kernel lists it by
 * the number it had, under which CRIU looks for it.
 * @param pids of all processes, as an instance may be another's too
 */
function checkWatches({ pid, fd, table }: Instance, pids: readonly number[], add: Add): void {
  const listed = (): Watch[] => watchesIn(info(pid, fd));
  const isStray = (watch: Watch): boolean => !pids.some((one) => isOf(watch, linkOf(one, watch.fd)));
  const unknown = listed().filter((watch) => !isOf(watch, table.get(watch.fd)));
  const missed = unknown.filter(isStray);
  if (missed.length === 0) return;
  // meanwhile it may have been closed, and its watch with it: what is listed still, and closed still, stays
  const stays = listed();
  const stray = missed.find(
    (watch) => isStray(watch) && stays.some((one) => one.fd === watch.fd && one.inode === watch.inode),
  );
  if (stray === undefined) return;
  add(
    "descriptor.watch-of-closed",
    "error",
    `process ${pid} waits by descriptor ${fd}, an epoll instance, for descriptor ${stray.fd}, which it has closed while a copy of it is open`,
    "let it take a descriptor from the instance before it closes it (EPOLL_CTL_DEL), or close all copies",
    { pid, fd },
  );
}

interface Watch {
  fd: number;
  inode: number;
}

function watchesIn(info: string): Watch[] {
  return Array.from(info.matchAll(WATCH), ([, fd, inode = ""]) => ({
    fd: Number(fd),
    inode: Number.parseInt(inode, 16),
  }));
}

/** @param target what the descriptor of that number is of; undefined: there is none. Only of sockets and pipes it tells which one */
function isOf({ inode }: Watch, target: string | undefined): boolean {
  const own = /^(?:socket|pipe):\[(\d+)\]$/.exec(target ?? "")?.[1];
  return target !== undefined && (own === undefined || Number(own) === inode);
}

function linkOf(pid: number, fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return undefined; // closed
  }
}

/** Since Linux 6.9 pidfds have a file system of their own, and show as `pidfd:[INODE]`. Of processes that have ended they are dumped. */
function checkPidfd(pid: number, fd: number, inTree: Set<number>, add: Add): void {
  const of = Number(/^Pid:\s*(-?\d+)$/m.exec(info(pid, fd))?.[1] ?? -1);
  if (of <= 0 || inTree.has(of)) return;
  add(
    "descriptor.pidfd",
    "error",
    `process ${pid} has descriptor ${fd} of process ${of}, which is not part of the application`,
    "let it watch its own processes only",
    { pid, fd },
  );
}

/**
 * A POSIX lock ends when its process closes any descriptor of the file (fcntl(2)), and CRIU 4.2 closes those that it maps files
 * with after it has restored the locks (pie/restorer.c): SQLite's lock of its shared memory would be gone.
 */
function checkLock(pid: number, fd: number, target: string, add: Add): void {
  if (!/^lock:\s*\d+:\s*POSIX /m.test(info(pid, fd))) return;
  add(
    "file.mapped-lock",
    "error",
    `process ${pid} holds a POSIX lock on a file that it has also mapped (${target}), and CRIU would lose the lock`,
    "let SQLite do without shared memory (PRAGMA locking_mode=EXCLUSIVE before WAL), Deno without its caches (a DENO_DIR that cannot be written)",
    { pid, fd, path: target },
  );
}

/** Paths in /proc/PID/maps. */
function mappedFiles(pid: number): Set<string> {
  const files = new Set<string>();
  for (const line of readText(`/proc/${pid}/maps`).split("\n")) {
    const at = line.indexOf("/");
    if (at > 0) files.add(line.slice(at));
  }
  return files;
}

function checkMount(pid: number, fd: number, target: string, mounts: Set<string>, add: Add): void {
  const mount = MOUNT_ID.exec(info(pid, fd))?.[1];
  if (mount === undefined || mounts.has(mount) || target.startsWith(SECRETMEM)) return;
  if (typeOf(pid, fd) === MQUEUE_MAGIC) return; // mq_open(3) uses a mount of the kernel's own; preflight-ipc looks at them
  // memory that only descriptors name: memfd_create(2) and alike, when it is tmpfs
  if (/^\/(memfd:|dev\/zero|SYSV)/.test(target) && typeOf(pid, fd) === TMPFS_MAGIC) return;
  add(
    target.startsWith("/memfd:") ? "descriptor.huge-memfd" : "descriptor.other-mount",
    "error",
    target.startsWith("/memfd:")
      ? `process ${pid} has descriptor ${fd} of memory in huge pages (${target}), which CRIU finds no mount of`
      : `process ${pid} has descriptor ${fd} of a file that is on no mount of the container (${target})`,
    target.startsWith("/memfd:")
      ? "let it use memfd_create without MFD_HUGETLB"
      : "let it open the file itself, inside the container",
    { pid, fd, path: target },
  );
}

/** Numbers of the mounts it sees, /proc/PID/mountinfo's first column. */
function mountsOf(pid: number): Set<string> {
  const text = readText(`/proc/${pid}/mountinfo`);
  return new Set(text.split("\n").map((line) => line.slice(0, line.indexOf(" "))));
}

function info(pid: number, fd: number): string {
  return readText(`/proc/${pid}/fdinfo/${fd}`);
}

function typeOf(pid: number, fd: number): number | null {
  try {
    return statfsSync(`/proc/${pid}/fd/${fd}`).type;
  } catch {
    return null;
  }
}
