/** What can be done with any descriptor: fcntl(2), ioctl(2), pipes, locks, event and timer descriptors. */
import { O_CLOEXEC } from "./files.ts";
import { addressOf, check, errno, errnoName, failure, int, intView, libc, pair } from "./libc.ts";
import { KCMP_FILE, SYS_KCMP } from "./processes.ts";

export const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_NB = 4;
export const LOCK_UN = 8;
/** Bytes of the events that wait to be read (ioctl_fionread, inotify(7)). */
export const FIONREAD = 0x541b;
export const F_GETFL = 3;
export const F_SETFL = 4;
/** include/uapi/asm-generic/resource.h */
const RLIMIT_NOFILE = 7;
const F_DUPFD_CLOEXEC = 1030;
export const F_GETOWN = 9;
const SYS_GETDENTS64 = process.arch === "arm64" ? 61 : 217;
const SYS_SIGNALFD4 = process.arch === "arm64" ? 74 : 289;
/** of the kernel's sigset_t */
const SIGNAL_SET_BYTES = 8;
/** _IOW('T', 0, __u64), include/uapi/linux/timerfd.h */
const TFD_IOC_SET_TICKS = 0x40085400;

export function close(fd: number): void {
  check(libc().close(fd), "close");
}

/** A second, close-on-exec descriptor of the same open file. */
export function dupCloexec(fd: number): number {
  return check(libc().fcntl(fd, F_DUPFD_CLOEXEC, 0), "fcntl(F_DUPFD_CLOEXEC)");
}

/** Status flags of the open file (fcntl(2), F_GETFL), which all its descriptors share. */
export function fileFlags(fd: number): number {
  return check(libc().fcntl(fd, F_GETFL, 0), "fcntl(F_GETFL)");
}

/** For all descriptors of the open file, those of other processes too. */
export function setFileFlags(fd: number, flags: number): void {
  check(libc().fcntl(fd, F_SETFL, flags), "fcntl(F_SETFL)");
}

/**
 * signalfd(2) of one that exists: what is taken by it from now on, through all its descriptors, those of other processes too.
 * @param set bit N - 1 is signal N
 */
export function setSignalSet(fd: number, set: bigint): void {
  const bytes = Buffer.alloc(SIGNAL_SET_BYTES);
  bytes.writeBigUInt64LE(set);
  check(libc().syscall(SYS_SIGNALFD4, fd, addressOf(bytes), bytes.length, 0), "signalfd4");
}

/** Makes the descriptor table large enough for `count` descriptors at once; false above RLIMIT_NOFILE. */
export function growDescriptorTable(count: number): boolean {
  const fd = libc().fcntl(0, F_DUPFD_CLOEXEC, count - 1);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

/** The lowest descriptor that is free, which is the next one to be given out; -errno: none is, or no memory. */
export function lowestFreeDescriptor(): number {
  const fd = libc().fcntl(0, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return -errno();
  close(fd);
  return fd;
}

const limitNow = Buffer.alloc(16);

/** Descriptors this process may have now (RLIMIT_NOFILE, which prlimit(1) changes at any time). */
export function descriptorsMax(): number {
  check(libc().prlimit(0, RLIMIT_NOFILE, null, limitNow), "prlimit(RLIMIT_NOFILE)");
  return Number(limitNow.readBigUInt64LE(0));
}

/** [reading end, writing end], close-on-exec. */
export function pipe(): [number, number] {
  check(libc().pipe2(pair, O_CLOEXEC), "pipe2");
  return [pair.readInt32LE(0), pair.readInt32LE(4)];
}

/** `operation`: LOCK_EX | LOCK_NB …; a lock held by another is HoldfastError code EAGAIN. */
export function flock(fd: number, operation: number): void {
  check(libc().flock(fd, operation), "flock");
}

/** Bytes that a read would give. */
export function bytesUnread(fd: number): number {
  return ioctlInt(fd, FIONREAD);
}

/** read(2); HoldfastError EINVAL where `into` is too small for the next event of an inotify instance. */
export function read(fd: number, into: Buffer): number {
  return check(libc().read(fd, into, into.length), "read");
}

/** Whom signals about an open file go to (fcntl(2) F_GETOWN): a process, or the negative of a group. 0: nobody, as of one opened with O_PATH */
export function ownerOf(fd: number): number {
  const owner = libc().fcntl(fd, F_GETOWN, 0);
  return owner === -1 ? 0 : owner;
}

/** Whether two descriptors of ours are of one open file (kcmp(2) KCMP_FILE). */
export function isSameOpenFile(fd1: number, fd2: number): boolean {
  return check(libc().syscall5(SYS_KCMP, process.pid, process.pid, KCMP_FILE, fd1, fd2), "kcmp") === 0;
}

/** ioctl(2) that reads an int: SIOCINQ, SIOCOUTQ, SIOCOUTQNSD. */
export function ioctlInt(fd: number, request: number): number {
  if (libc().ioctl(fd, request, int) < 0) throw failure(`ioctl(${request.toString(16)})`, errno());
  return intView.getInt32(0, true);
}

/** ioctl(2) that reads and writes a structure: PIDFD_GET_INFO. */
export function ioctlBuffer(fd: number, request: number, structure: Buffer): void {
  check(libc().ioctl(fd, request, structure), `ioctl(${request.toString(16)})`);
}

/** ioctl_tty(2): nobody else may open it, and whether that is so (_IOR('T', 0x40, int)) */
export const TIOCEXCL = 0x540c;
export const TIOCGEXCL = 0x80045440;

const SEEK_SET = 0;
const SEEK_CUR = 1;
const SEEK_DATA = 3;
/** include/uapi/linux/falloc.h */
const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;

/** Of an open file or folder, which all its descriptors share. @throws HoldfastError */
export function positionOf(fd: number): number {
  return check(libc().lseek(fd, 0, SEEK_CUR), "lseek");
}
export function setPosition(fd: number, position: number): void {
  check(libc().lseek(fd, position, SEEK_SET), "lseek");
}

/**
 * Whether a folder has more names from its position on, which stays: for the next name there is no room, so it is not taken (getdents64(2),
 * EINVAL; filldir64() in fs/readdir.c). Put back by its number it might be at another: tmpfs before Linux 6.6 counts the names that are left
 * (dcache_dir_lseek() in fs/libfs.c). A deleted folder has none, nor has what is no folder. Of what a 32-bit program has read it may move the
 * position (hash2pos() in fs/ext4/dir.c goes by who asks).
 */
export function namesFollow(fd: number): boolean {
  const room = Buffer.alloc(1);
  const size = libc().syscall(SYS_GETDENTS64, fd, addressOf(room), room.length, 0);
  const code = size < 0 ? errnoName(errno()) : "";
  if (code === "EINVAL") return true;
  if (code === "ENOENT" || code === "ENOTDIR" || code === "EBADF") return false;
  return check(size, "getdents64") > 0;
}

/** Where the next data of a file begins, from `offset` on (lseek(2)); `offset` where the file system does not tell; null: no more. */
export function seekData(fd: number, offset: number): number | null {
  const found = libc().lseek(fd, offset, SEEK_DATA);
  if (found >= 0) return found;
  const code = errnoName(errno());
  if (code === "ENXIO") return null;
  if (code === "EINVAL") return offset;
  throw failure("lseek", errno());
}

/** ioctl(2) that reads and writes a structure and answers with a number: PAGEMAP_SCAN. */
export function ioctlCount(fd: number, request: number, structure: Buffer): number {
  return check(libc().ioctl(fd, request, structure), `ioctl(${request.toString(16)})`);
}

/** fcntl(2) with a number as argument; -errno where the kernel refuses, as for O_PATH descriptors. */
export function tryFcntl(fd: number, command: number, argument: number): number {
  const result = libc().fcntl(fd, command, argument);
  return result < 0 ? -errno() : result;
}

/** fcntl(2), F_GET_RW_HINT: how long what is written to the file is to live, as its writer expects; 0: it has not said. -errno where none can be had */
export function tryWriteHint(fd: number): number {
  const hint = Buffer.alloc(8);
  const result = libc().fcntl(fd, F_GET_RW_HINT, addressOf(hint));
  return result < 0 ? -errno() : Number(hint.readBigUInt64LE(0));
}

export function setWriteHint(fd: number, value: number): void {
  const hint = Buffer.alloc(8);
  hint.writeBigUInt64LE(BigInt(value));
  check(libc().fcntl(fd, F_SET_RW_HINT, addressOf(hint)), "fcntl(F_SET_RW_HINT)");
}

/** include/uapi/linux/fcntl.h */
const F_GET_RW_HINT = 1035;
const F_SET_RW_HINT = 1036;
export const F_SETOWN = 8;
export const F_SETSIG = 10;
export const F_GETSIG = 11;
export const F_GETLEASE = 1025;
export const F_SETPIPE_SZ = 1031;
export const F_GETPIPE_SZ = 1032;
export const F_ADD_SEALS = 1033;
export const F_GET_SEALS = 1034;

/** As {@link ioctlInt}, for descriptors that may not know the request: -errno. */
export function tryIoctlInt(fd: number, request: number): number {
  intView.setInt32(0, 0, true);
  return libc().ioctl(fd, request, int) < 0 ? -errno() : intView.getInt32(0, true);
}

export interface TimerSetting {
  seconds: number;
  nanoseconds: number;
  intervalSeconds: number;
  intervalNanoseconds: number;
}

/** timerfd_settime(2); forgets the expirations that were not read. */
export function setTimer(fd: number, flags: number, timer: TimerSetting): void {
  const setting = Buffer.alloc(32);
  setting.writeBigInt64LE(BigInt(timer.intervalSeconds), 0);
  setting.writeBigInt64LE(BigInt(timer.intervalNanoseconds), 8);
  setting.writeBigInt64LE(BigInt(timer.seconds), 16);
  setting.writeBigInt64LE(BigInt(timer.nanoseconds), 24);
  check(libc().timerfd_settime(fd, flags, setting, null), "timerfd_settime");
}

/** Expirations of a timerfd that are to be read (CONFIG_CHECKPOINT_RESTORE); more than 0. */
export function setTimerTicks(fd: number, ticks: bigint): void {
  const value = Buffer.alloc(8);
  value.writeBigUInt64LE(ticks, 0);
  check(libc().ioctl(fd, TFD_IOC_SET_TICKS, value), "ioctl(TFD_IOC_SET_TICKS)");
}

export const EFD_SEMAPHORE = 1;
export const EFD_CLOEXEC = 0o2000000;
export const EFD_NONBLOCK = 0o4000;

export function eventfd(count: number, flags: number): number {
  return check(libc().eventfd(count, flags), "eventfd");
}

/** Gives [from, to) of a file, in whole blocks, back to its disk, and reads zeros there from now on (fallocate(2)). False: the file system cannot. */
export function punchHole(fd: number, from: number, to: number): boolean {
  const result = libc().fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from);
  if (result < 0 && errnoName(errno()) === "EOPNOTSUPP") return false;
  check(result, "fallocate(FALLOC_FL_PUNCH_HOLE)");
  return true;
}
