/**
 * The one file that calls the kernel through FFI (koffi, libc).
 *
 * Thin: one function a system call, constants under the kernel's own names, no policy. Every failure is a
 * {@link HoldfastError} with source "kernel" and the errno name ("EADDRINUSE") as code. libc is loaded at the first
 * call, so importing this file has no effect. The calls are synchronous and cost about 0.3 to 0.5 µs each; the
 * scratch buffers they share are private to the thread.
 *
 * Left out: what the calls are for (capture.ts, adopt.ts, shield.ts, diag.ts).
 * Sources: include/uapi/linux/{tcp,sockios,filter}.h, asm-generic/socket.h, man pages tcp(7), ip(7), pidfd_open(2).
 */
import { closeSync, constants as fileConstants, fstatSync, openSync } from "node:fs";
import { isIPv4, isIPv6 } from "node:net";
import { constants } from "node:os";
import koffi from "koffi";
import { HoldfastError } from "../contract/errors.ts";
import type { Endpoint } from "../contract/snapshot.ts";

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const AF_NETLINK = 16;
export const AF_PACKET = 17;

export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
export const SOCK_SEQPACKET = 5;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;

export const IPPROTO_IP = 0;
export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_UDP = 17;
export const IPPROTO_IPV6 = 41;
export const IPPROTO_ICMPV6 = 58;
export const IPPROTO_UDPLITE = 136;
export const IPPROTO_RAW = 255;
export const IPPROTO_MPTCP = 262;
export const NETLINK_SOCK_DIAG = 4;

export const IP_TRANSPARENT = 19;
export const IPV6_TRANSPARENT = 75;

export const SOL_SOCKET = 1;
export const SO_REUSEADDR = 2;
export const SO_TYPE = 3;
export const SO_ERROR = 4;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_KEEPALIVE = 9;
export const SO_LINGER = 13;
export const SO_ATTACH_FILTER = 26;
export const SO_DETACH_FILTER = 27;
/** As getpeername(2), but also of a connection that has ended. */
export const SO_PEERNAME = 28;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const SO_PROTOCOL = 38;
export const SO_DOMAIN = 39;
export const SO_ATTACH_BPF = 50;
/** Since 5.15: which of SNDBUF (1) and RCVBUF (2) are pinned by the user; 0 gives both back to autotuning. */
export const SO_BUF_LOCK = 72;

export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_USER_TIMEOUT = 18;
export const TCP_NOTSENT_LOWAT = 25;
export const TCP_NODELAY = 1;
export const TCP_MAXSEG = 2;
export const TCP_QUICKACK = 12;
export const TCP_WINDOW_CLAMP = 10;
export const TCP_INFO = 11;
export const TCP_REPAIR = 19;
export const TCP_REPAIR_QUEUE = 20;
export const TCP_QUEUE_SEQ = 21;
export const TCP_REPAIR_OPTIONS = 22;
export const TCP_TIMESTAMP = 24;
export const TCP_REPAIR_WINDOW = 29;
/** Since 6.15. */
export const TCP_RTO_MAX_MS = 44;

export const TCP_REPAIR_ON = 1;
/** Leaves repair mode with a window probe (ESTABLISHED only). */
export const TCP_REPAIR_OFF = 0;
/** Leaves repair mode and sends nothing. */
export const TCP_REPAIR_OFF_NO_WP = -1;
export const TCP_NO_QUEUE = 0;
export const TCP_RECV_QUEUE = 1;
export const TCP_SEND_QUEUE = 2;

export const TCPI_OPT_TIMESTAMPS = 1;
export const TCPI_OPT_SACK = 2;
export const TCPI_OPT_WSCALE = 4;

/** include/net/tcp_states.h */
export const TCP_ESTABLISHED = 1;
export const TCP_SYN_SENT = 2;
export const TCP_SYN_RECV = 3;
export const TCP_FIN_WAIT1 = 4;
export const TCP_FIN_WAIT2 = 5;
export const TCP_TIME_WAIT = 6;
export const TCP_CLOSE = 7;
export const TCP_CLOSE_WAIT = 8;
export const TCP_LAST_ACK = 9;
export const TCP_LISTEN = 10;
export const TCP_CLOSING = 11;

/** Unread bytes of the receive queue, FIN excluded. */
export const SIOCINQ = 0x541b;
/** Unacknowledged sequence space of the send queue: `write_seq - snd_una`, so our own FIN is included. */
export const SIOCOUTQ = 0x5411;
/** Of those, never sent: `write_seq - snd_nxt`. */
export const SIOCOUTQNSD = 0x894b;

export const MSG_PEEK = 0x2;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;

export const SHUT_RD = 0;
export const SHUT_WR = 1;
export const SHUT_RDWR = 2;

export const CLONE_NEWNET = 0x40000000;
export const CLONE_NEWNS = 0x20000;
export const CLONE_NEWIPC = 0x08000000;
export const CLONE_FS = 0x200;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;
export const MS_NOEXEC = 8;

export const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_NB = 4;
export const LOCK_UN = 8;

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
/** Bytes of the events that wait to be read (ioctl_fionread, inotify(7)). */
export const FIONREAD = 0x541b;

/** include/uapi/linux/openat2.h */
const RESOLVE_NO_MAGICLINKS = 0x02;
const RESOLVE_NO_SYMLINKS = 0x04;
const RESOLVE_IN_ROOT = 0x10;
const O_NOFOLLOW = process.arch === "arm64" ? 0o100000 : 0o400000;
export const O_PATH = 0o10000000;
/** linux/fcntl.h, linux/mount.h */
const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const OPEN_TREE_CLONE = 1;
const MOVE_MOUNT_F_EMPTY_PATH = 4;
const MOUNT_ATTR_RDONLY = 1;
const MAX_HANDLE_SZ = 128;

export const POLLIN = 1;
export const POLLERR = 8;
export const POLLHUP = 16;

/** include/uapi/linux/eventpoll.h */
export const EPOLLIN = 0x001;
export const EPOLLPRI = 0x002;
export const EPOLLOUT = 0x004;
export const EPOLLERR = 0x008;
export const EPOLLHUP = 0x010;
export const EPOLLRDHUP = 0x2000;
export const EPOLLET = 1 << 31;

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CLOEXEC = 0o2000000;
/** struct epoll_event is packed on x86-64 only: u32 events, u64 data */
const EPOLL_EVENT_WORDS = process.arch === "x64" ? 3 : 4;
const EPOLL_DATA_WORD = EPOLL_EVENT_WORDS - 2;
const EPOLL_EVENTS_MAX = 512;

export const F_GETFL = 3;
export const F_SETFL = 4;
/** include/uapi/asm-generic/resource.h */
const RLIMIT_NOFILE = 7;
const F_DUPFD_CLOEXEC = 1030;
export const F_GETOWN = 9;
/** include/uapi/linux/limits.h */
const XATTR_SIZE_MAX = 65536;
const O_CLOEXEC = 0o2000000;
/** The same on every architecture that uses the generic table, and on x86-64. */
const SYS_PIDFD_SEND_SIGNAL = 424;
const SYS_OPEN_TREE = 428;
const SYS_MOVE_MOUNT = 429;
const SYS_FSOPEN = 430;
const SYS_FSCONFIG = 431;
const SYS_FSMOUNT = 432;
const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;
const SYS_OPENAT2 = 437;
const SYS_MOUNT_SETATTR = 442;
const SYS_KCMP = process.arch === "arm64" ? 272 : 312;
const SYS_BPF = process.arch === "arm64" ? 280 : 321;
const SYS_IOPRIO_SET = process.arch === "arm64" ? 30 : 251;
const SYS_IOPRIO_GET = process.arch === "arm64" ? 31 : 252;
const SYS_SCHED_SETATTR = process.arch === "arm64" ? 274 : 314;
const SYS_SCHED_GETATTR = process.arch === "arm64" ? 275 : 315;
const IOPRIO_WHO_PROCESS = 1;
/** struct sched_attr, SCHED_ATTR_SIZE_VER1 (include/uapi/linux/sched/types.h) */
const SCHED_ATTR_BYTES = 56;
/** cpumask of 8,192 CPUs: as large as a kernel is built for */
const CPUSET_BYTES = 1024;
/** _IOW('T', 0, __u64), include/uapi/linux/timerfd.h */
const TFD_IOC_SET_TICKS = 0x40085400;
const BPF_PROG_LOAD = 5;
const BPF_PROG_TYPE_SOCKET_FILTER = 1;

type Argument = number | bigint | Buffer | null | string;
/** Nothing there to remove; an option that an older kernel does not know. */
type Tolerated = "ENOENT" | "ENOPROTOOPT" | "EPERM";

type Call = ((...args: Argument[]) => number) & {
  /** runs in a thread of libuv's pool; the last argument is called with its outcome */
  async(...args: (Argument | ((error: Error | null, result: number) => void))[]): void;
};

interface Libc {
  socket: Call;
  close: Call;
  bind: Call;
  connect: Call;
  listen: Call;
  accept4: Call;
  getsockname: Call;
  getpeername: Call;
  setsockopt: Call;
  getsockopt: Call;
  ioctl: Call;
  lseek: Call;
  recv: Call;
  recvfrom: Call;
  send: Call;
  sendto: Call;
  sendmsg: Call;
  recvmsg: Call;
  shutdown: Call;
  fcntl: Call;
  poll: Call;
  epoll_create1: Call;
  epoll_ctl: Call;
  epoll_wait: Call;
  socketpair: Call;
  pipe2: Call;
  setns: Call;
  unshare: Call;
  flock: Call;
  syscall: Call;
  syscall5: Call;
  inet_pton: Call;
  getxattr: Call;
  mount: Call;
  umount2: Call;
  fchdir: Call;
  chroot: Call;
  mq_open: Call;
  mq_getattr: Call;
  mq_receive: Call;
  mq_send: Call;
  ioctlValue: Call;
  read: Call;
  open: Call;
  open_by_handle_at: Call;
  inotify_init1: Call;
  inotify_add_watch: Call;
  inotify_rm_watch: Call;
  sched_getaffinity: Call;
  sched_setaffinity: Call;
  timerfd_settime: Call;
  eventfd: Call;
  prlimit: Call;
  if_nametoindex: Call;
  semctl: Call;
  shmctl: Call;
}

let loaded: Libc | undefined;

function libc(): Libc {
  if (loaded !== undefined) return loaded;
  const library = koffi.load("libc.so.6");
  const call = (declaration: string): Call => library.func(declaration) as unknown as Call;
  loaded = {
    socket: call("int socket(int, int, int)"),
    close: call("int close(int)"),
    bind: call("int bind(int, const void *, uint32_t)"),
    connect: call("int connect(int, const void *, uint32_t)"),
    listen: call("int listen(int, int)"),
    accept4: call("int accept4(int, void *, void *, int)"),
    getsockname: call("int getsockname(int, void *, void *)"),
    getpeername: call("int getpeername(int, void *, void *)"),
    setsockopt: call("int setsockopt(int, int, int, const void *, uint32_t)"),
    getsockopt: call("int getsockopt(int, int, int, void *, void *)"),
    ioctl: call("int ioctl(int, ulong, void *)"),
    recv: call("long recv(int, void *, size_t, int)"),
    recvfrom: call("long recvfrom(int, void *, size_t, int, void *, void *)"),
    send: call("long send(int, const void *, size_t, int)"),
    sendto: call("long sendto(int, const void *, size_t, int, const void *, uint32_t)"),
    sendmsg: call("long sendmsg(int, const void *, int)"),
    recvmsg: call("long recvmsg(int, void *, int)"),
    shutdown: call("int shutdown(int, int)"),
    fcntl: call("int fcntl(int, int, long)"),
    poll: call("int poll(void *, ulong, int)"),
    epoll_create1: call("int epoll_create1(int)"),
    epoll_ctl: call("int epoll_ctl(int, int, int, void *)"),
    epoll_wait: call("int epoll_wait(int, void *, int, int)"),
    socketpair: call("int socketpair(int, int, int, void *)"),
    pipe2: call("int pipe2(void *, int)"),
    setns: call("int setns(int, int)"),
    unshare: call("int unshare(int)"),
    flock: call("int flock(int, int)"),
    syscall: call("long syscall(long, long, long, long, long)"),
    syscall5: call("long syscall(long, long, long, long, long, long)"),
    inet_pton: call("int inet_pton(int, const char *, void *)"),
    lseek: call("long lseek(int, long, int)"),
    getxattr: call("long getxattr(const char *, const char *, void *, size_t)"),
    mount: call("int mount(const char *, const char *, const char *, ulong, const void *)"),
    umount2: call("int umount2(const char *, int)"),
    fchdir: call("int fchdir(int)"),
    chroot: call("int chroot(const char *)"),
    mq_open: call("int mq_open(const char *, int, uint32_t, const void *)"),
    mq_getattr: call("int mq_getattr(int, void *)"),
    mq_receive: call("long mq_receive(int, void *, size_t, void *)"),
    mq_send: call("int mq_send(int, const void *, size_t, uint32_t)"),
    ioctlValue: call("int ioctl(int, ulong, long)"),
    read: call("long read(int, void *, size_t)"),
    open: call("int open(const char *, int)"),
    open_by_handle_at: call("int open_by_handle_at(int, void *, int)"),
    inotify_init1: call("int inotify_init1(int)"),
    inotify_add_watch: call("int inotify_add_watch(int, const char *, uint32_t)"),
    inotify_rm_watch: call("int inotify_rm_watch(int, int)"),
    sched_getaffinity: call("int sched_getaffinity(int, size_t, void *)"),
    sched_setaffinity: call("int sched_setaffinity(int, size_t, const void *)"),
    timerfd_settime: call("int timerfd_settime(int, int, const void *, void *)"),
    eventfd: call("int eventfd(uint32_t, int)"),
    prlimit: call("int prlimit(int, int, const void *, void *)"),
    if_nametoindex: call("uint32_t if_nametoindex(const char *)"),
    semctl: call("int semctl(int, int, int, void *)"),
    shmctl: call("int shmctl(int, int, void *)"),
  };
  return loaded;
}

const errnoNames = new Map<number, string>();

/** "ENOENT" for 2; `ERRNO_n` where Node knows no name. */
export function errnoName(errno: number): string {
  if (errnoNames.size === 0) {
    for (const [name, value] of Object.entries(constants.errno)) {
      if (!errnoNames.has(value)) errnoNames.set(value, name);
    }
  }
  return errnoNames.get(errno) ?? `ERRNO_${errno}`;
}

/** EAGAIN, EINTR and shortage pass by themselves; everything else needs somebody to change something. */
function failure(call: string, errno: number): HoldfastError {
  const code = errnoName(errno);
  const retryable = code === "EAGAIN" || code === "EINTR" || code === "ENOMEM" || code === "ENOBUFS";
  const hint =
    code === "EPERM" || code === "EACCES"
      ? "; the caller lacks a capability (CAP_NET_ADMIN, CAP_NET_RAW)"
      : "";
  return new HoldfastError(`${call} failed with ${code}${hint}`, { code, source: "kernel", retryable });
}

function check(result: number, call: string): number {
  if (result < 0) throw failure(call, koffi.errno());
  return result;
}

const int = Buffer.alloc(4);
const intView = new DataView(int.buffer, int.byteOffset, 4);
const length = Buffer.alloc(4);
const lengthView = new DataView(length.buffer, length.byteOffset, 4);
const pair = Buffer.alloc(8);
const SOCKADDR_IN_BYTES = 16;
const SOCKADDR_IN6_BYTES = 28;
const SCOPE_ID_AT = 24;
const sockaddr = Buffer.alloc(SOCKADDR_IN6_BYTES);

/** Writes `endpoint` as struct sockaddr_in or sockaddr_in6 into the shared buffer; returns its length. */
/** @param scope number of the device, for IPv6 addresses that mean something on a link only; 0: none */
function encodeSockaddr(endpoint: Endpoint, scope = 0): number {
  sockaddr.fill(0);
  sockaddr.writeUInt16BE(endpoint.port, 2);
  if (isIPv4(endpoint.address)) {
    sockaddr.writeUInt16LE(AF_INET, 0);
    addressBytes(endpoint.address).copy(sockaddr, 4);
    return SOCKADDR_IN_BYTES;
  }
  sockaddr.writeUInt16LE(AF_INET6, 0);
  addressBytes(endpoint.address).copy(sockaddr, 8);
  sockaddr.writeUInt32LE(scope, SCOPE_ID_AT);
  return SOCKADDR_IN6_BYTES;
}

function decodeSockaddr(): Endpoint {
  const port = sockaddr.readUInt16BE(2);
  if (sockaddr.readUInt16LE(0) === AF_INET) return { address: formatAddress(sockaddr.subarray(4, 8)), port };
  return { address: formatAddress(sockaddr.subarray(8, 24)), port };
}

/** The kernel's number of a device of this network namespace; an error ENODEV where there is none. */
export function deviceIndex(name: string): number {
  const index = libc().if_nametoindex(name);
  if (index === 0) throw failure(`if_nametoindex(${name})`, koffi.errno());
  return index;
}

/** 4 or 16 bytes in network order. */
export function addressBytes(address: string): Buffer {
  if (isIPv4(address)) return Buffer.from(address.split(".").map(Number));
  const bytes = Buffer.alloc(16);
  // isIPv6 lets a zone through ("fe80::1%eth0"); inet_pton does not, and a zone means nothing on another node
  if (!isIPv6(address) || libc().inet_pton(AF_INET6, address, bytes) !== 1) {
    throw new HoldfastError(`"${address}" is not a numeric IPv4 or IPv6 address without a zone`, {
      code: "ADDRESS_INVALID",
      source: "config",
    });
  }
  return bytes;
}

/** Text of 4 or 16 bytes; IPv6 in the form of RFC 5952, v4-mapped as `::ffff:a.b.c.d`. */
export function formatAddress(bytes: Buffer): string {
  if (bytes.length === 4) return `${bytes[0]}.${bytes[1]}.${bytes[2]}.${bytes[3]}`;
  if (isMapped(bytes)) return `::ffff:${formatAddress(bytes.subarray(12))}`;
  const groups: number[] = [];
  for (let at = 0; at < 16; at += 2) groups.push(bytes.readUInt16BE(at));
  let bestStart = -1;
  let bestLength = 1;
  for (let start = 0; start < 8; start++) {
    let end = start;
    while (end < 8 && groups[end] === 0) end++;
    if (end - start > bestLength) [bestStart, bestLength] = [start, end - start];
  }
  const text = (part: number[]) => part.map((group) => group.toString(16)).join(":");
  if (bestStart < 0) return text(groups);
  return `${text(groups.slice(0, bestStart))}::${text(groups.slice(bestStart + bestLength))}`;
}

/** Of a dual-stack socket's IPv4 connection the IPv4 address; any other address as it is. */
export function unmapped(address: string): string {
  return address.startsWith("::ffff:") && address.includes(".") ? address.slice("::ffff:".length) : address;
}

function isMapped(bytes: Buffer): boolean {
  if (bytes.readUInt16BE(10) !== 0xffff) return false;
  for (let at = 0; at < 10; at++) if (bytes[at] !== 0) return false;
  return true;
}

// ---- descriptors

/** For TCP over that version of IP, non-blocking and close-on-exec; -errno where there is none. */
export function tryTcpSocket(family: 4 | 6): number {
  const domain = family === 4 ? AF_INET : AF_INET6;
  const fd = libc().socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  return fd < 0 ? -koffi.errno() : fd;
}

/** As {@link tryTcpSocket}, or a HoldfastError. */
export function tcpSocket(family: 4 | 6): number {
  const fd = tryTcpSocket(family);
  if (fd < 0) throw failure("socket", -fd);
  return fd;
}

export function socket(domain: number, type: number, protocol: number): number {
  return check(libc().socket(domain, type, protocol), "socket");
}

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

/** Makes the descriptor table large enough for `count` descriptors at once; false above RLIMIT_NOFILE. */
export function growDescriptorTable(count: number): boolean {
  const fd = libc().fcntl(0, F_DUPFD_CLOEXEC, count - 1);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

/** The lowest descriptor that is free, which is the next one to be given out; -errno: none is, or no memory. */
export function lowestFreeDescriptor(): number {
  const fd = libc().fcntl(0, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return -koffi.errno();
  close(fd);
  return fd;
}

const limitNow = Buffer.alloc(16);

/** Descriptors this process may have now (RLIMIT_NOFILE, which prlimit(1) changes at any time). */
export function descriptorsMax(): number {
  check(libc().prlimit(0, RLIMIT_NOFILE, null, limitNow), "prlimit(RLIMIT_NOFILE)");
  return Number(limitNow.readBigUInt64LE(0));
}

/** Two ends that keep message boundaries and can carry descriptors; close-on-exec, blocking. */
export function socketpairSeqpacket(): [number, number] {
  check(libc().socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "socketpair");
  return [pair.readInt32LE(0), pair.readInt32LE(4)];
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

/** An extended attribute of a file (at most 64 kB); null where the file has none of that name. */
export function getXattr(path: string, name: string): Buffer | null {
  const value = Buffer.alloc(XATTR_SIZE_MAX);
  const size = libc().getxattr(path, name, value, value.length);
  if (size >= 0) return Buffer.from(value.subarray(0, size));
  const error = failure(`getxattr(${path}, ${name})`, koffi.errno());
  if (error.code === "ENODATA" || error.code === "EOPNOTSUPP") return null;
  throw error;
}

// ---- files and watches on them

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
  structure.writeBigUInt64LE(BigInt(resolve), 16);
  const name = Buffer.concat([Buffer.from(path as Buffer), Buffer.alloc(1)]);
  return check(
    libc().syscall(SYS_OPENAT2, root, addressOf(name), addressOf(structure), structure.length),
    `openat2(${path.toString()})`,
  );
}

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

/** Bytes that a read would give. */
export function bytesUnread(fd: number): number {
  return ioctlInt(fd, FIONREAD);
}

/** read(2); HoldfastError EINVAL where `into` is too small for the next event of an inotify instance. */
export function read(fd: number, into: Buffer): number {
  return check(libc().read(fd, into, into.length), "read");
}

/** Whom signals about an open file go to (fcntl(2) F_GETOWN); 0: nobody */
export function ownerOf(fd: number): number {
  return libc().fcntl(fd, F_GETOWN, 0);
}

/** Whether two descriptors of ours are of one open file (kcmp(2) KCMP_FILE). */
export function isSameOpenFile(fd1: number, fd2: number): boolean {
  return check(libc().syscall5(SYS_KCMP, process.pid, process.pid, KCMP_FILE, fd1, fd2), "kcmp") === 0;
}

// ---- sockets

export function bind(fd: number, local: Endpoint, scope = 0): void {
  check(libc().bind(fd, sockaddr, encodeSockaddr(local, scope)), `bind to ${local.address}:${local.port}`);
}

export function connect(fd: number, remote: Endpoint, scope = 0): void {
  check(
    libc().connect(fd, sockaddr, encodeSockaddr(remote, scope)),
    `connect to ${remote.address}:${remote.port}`,
  );
}

/** As {@link connect} for a non-blocking socket, nothing thrown: 0 also where it is still on its way; -errno. */
export function tryConnect(fd: number, remote: Endpoint): number {
  if (libc().connect(fd, sockaddr, encodeSockaddr(remote)) === 0) return 0;
  const errno = koffi.errno();
  return errno === constants.errno.EINPROGRESS ? 0 : -errno;
}

/** connect(2) to AF_UNSPEC: ends a TCP connection by RST; the socket forgets its peer, and its address unless it was bound. */
export function disconnect(fd: number): void {
  const unspecified = Buffer.alloc(16);
  check(libc().connect(fd, unspecified, unspecified.length), "connect to nobody");
}

/** bind(2) with raw sockaddr bytes, for families other than IP. */
export function bindRaw(fd: number, address: Buffer): void {
  check(libc().bind(fd, address, address.length), "bind");
}

export function listen(fd: number, backlog: number): void {
  check(libc().listen(fd, backlog), "listen");
}

/** `flags`: SOCK_NONBLOCK, SOCK_CLOEXEC */
export function accept(fd: number, flags: number): number {
  return check(libc().accept4(fd, null, null, flags), "accept4");
}

export function getsockname(fd: number): Endpoint {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getsockname(fd, sockaddr, length), "getsockname");
  return decodeSockaddr();
}

/** Port number of a netlink socket (struct sockaddr_nl); 0 while it is not bound. */
export function netlinkPort(fd: number): number {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getsockname(fd, sockaddr, length), "getsockname");
  return sockaddr.readUInt32LE(4);
}

/** Number of the device that a packet socket is bound to (struct sockaddr_ll); 0: to all of them. */
export function packetDevice(fd: number): number {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getsockname(fd, sockaddr, length), "getsockname");
  return sockaddr.readInt32LE(4);
}

/** Fails with ENOTCONN once the peer has reset the connection. */
export function getpeername(fd: number): Endpoint {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getpeername(fd, sockaddr, length), "getpeername");
  return decodeSockaddr();
}

/** {@link SO_PEERNAME} of an Internet socket; null where it has never had a peer, or has none any more. */
export function lastPeer(fd: number): Endpoint | null {
  // a length that is greater than the address is refused (EINVAL)
  for (const bytes of [SOCKADDR_IN6_BYTES, SOCKADDR_IN_BYTES]) {
    lengthView.setUint32(0, bytes, true);
    if (libc().getsockopt(fd, SOL_SOCKET, SO_PEERNAME, sockaddr, length) >= 0) return decodeSockaddr();
    const errno = koffi.errno();
    if (errno === constants.errno.ENOTCONN) return null;
    if (errno !== constants.errno.EINVAL) throw failure("getsockopt(SO_PEERNAME)", errno);
  }
  return null;
}

/** `value` as a 32-bit integer; numbers up to 2^32 - 1 are taken modulo 2^32. */
export function setsockoptInt(fd: number, level: number, option: number, value: number): void {
  intView.setInt32(0, value, true);
  if (libc().setsockopt(fd, level, option, int, 4) < 0) {
    throw failure(`setsockopt(${level}, ${option}, ${value})`, koffi.errno());
  }
}

/** False where the kernel answers `tolerated` ("ENOENT"): a refusal that is expected costs no exception. */
export function trySetsockoptInt(
  fd: number,
  level: number,
  option: number,
  value: number,
  tolerated: Tolerated,
): boolean {
  intView.setInt32(0, value, true);
  if (libc().setsockopt(fd, level, option, int, 4) >= 0) return true;
  const errno = koffi.errno();
  if (errno === constants.errno[tolerated]) return false;
  throw failure(`setsockopt(${level}, ${option}, ${value})`, errno);
}

export function setsockoptBuffer(fd: number, level: number, option: number, value: Buffer): void {
  if (libc().setsockopt(fd, level, option, value, value.length) < 0) {
    throw failure(`setsockopt(${level}, ${option})`, koffi.errno());
  }
}

/** Signed. */
export function getsockoptInt(fd: number, level: number, option: number): number {
  lengthView.setUint32(0, 4, true);
  if (libc().getsockopt(fd, level, option, int, length) < 0) {
    throw failure(`getsockopt(${level}, ${option})`, koffi.errno());
  }
  return intView.getInt32(0, true);
}

/** As {@link getsockoptInt}, for sequence numbers and timestamps. */
export function getsockoptUint(fd: number, level: number, option: number): number {
  return getsockoptInt(fd, level, option) >>> 0;
}

/** Fills `into`; returns how many bytes the kernel gave. */
export function getsockoptBuffer(fd: number, level: number, option: number, into: Buffer): number {
  lengthView.setUint32(0, into.length, true);
  if (libc().getsockopt(fd, level, option, into, length) < 0) {
    throw failure(`getsockopt(${level}, ${option})`, koffi.errno());
  }
  return lengthView.getUint32(0, true);
}

/** ioctl(2) that reads an int: SIOCINQ, SIOCOUTQ, SIOCOUTQNSD. */
export function ioctlInt(fd: number, request: number): number {
  if (libc().ioctl(fd, request, int) < 0) throw failure(`ioctl(${request.toString(16)})`, koffi.errno());
  return intView.getInt32(0, true);
}

/** ioctl(2) that reads and writes a structure: PIDFD_GET_INFO. */
export function ioctlBuffer(fd: number, request: number, structure: Buffer): void {
  check(libc().ioctl(fd, request, structure), `ioctl(${request.toString(16)})`);
}

const SEEK_DATA = 3;

/** Where the next data of a file begins, from `offset` on (lseek(2)); `offset` where the file system does not tell; null: no more. */
export function seekData(fd: number, offset: number): number | null {
  const found = libc().lseek(fd, offset, SEEK_DATA);
  if (found >= 0) return found;
  const code = errnoName(koffi.errno());
  if (code === "ENXIO") return null;
  if (code === "EINVAL") return offset;
  throw failure("lseek", koffi.errno());
}

/** ioctl(2) that reads and writes a structure and answers with a number: PAGEMAP_SCAN. */
export function ioctlCount(fd: number, request: number, structure: Buffer): number {
  return check(libc().ioctl(fd, request, structure), `ioctl(${request.toString(16)})`);
}

/** Bytes read; 0 at the end of the stream; HoldfastError code EAGAIN when nothing is there. */
export function recv(fd: number, into: Buffer, flags: number): number {
  return check(libc().recv(fd, into, into.length, flags), "recv");
}

/** Bytes taken, possibly fewer than given; -1 instead of an error when the queue is full (EAGAIN, ENOBUFS, ENOMEM). */
export function send(fd: number, bytes: Buffer, flags: number): number {
  const sent = libc().send(fd, bytes, bytes.length, flags | MSG_NOSIGNAL);
  if (sent >= 0) return sent;
  const error = failure("send", koffi.errno());
  if (error.retryable) return -1;
  throw error;
}

/** As {@link send} with MSG_DONTWAIT, for the hot path: nothing is thrown, -errno where nothing is taken. */
export function trySend(fd: number, bytes: Buffer): number {
  const sent = libc().send(fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? -koffi.errno() : sent;
}

/** As {@link recv} with MSG_DONTWAIT, for the hot path: nothing is thrown, -errno where nothing is read. */
export function tryRecv(fd: number, into: Buffer): number {
  const received = libc().recv(fd, into, into.length, MSG_DONTWAIT);
  return received < 0 ? -koffi.errno() : received;
}

/** A datagram of an Internet socket, and who sent it; null when none is there. */
export function tryRecvFrom(
  fd: number,
  into: Buffer,
  flags: number,
): { length: number; from: Endpoint } | null {
  lengthView.setUint32(0, sockaddr.length, true);
  const received = libc().recvfrom(fd, into, into.length, flags, sockaddr, length);
  if (received >= 0) return { length: received, from: decodeSockaddr() };
  const errno = koffi.errno();
  if (errno === constants.errno.EAGAIN) return null;
  throw failure("recvfrom", errno);
}

/** A connection, non-blocking and close-on-exec; -errno where there is none. */
export function tryAccept(fd: number): number {
  const accepted = libc().accept4(fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return accepted < 0 ? -koffi.errno() : accepted;
}

export function sendto(fd: number, bytes: Buffer, flags: number, to: Endpoint): number {
  const size = encodeSockaddr(to);
  return check(libc().sendto(fd, bytes, bytes.length, flags, sockaddr, size), `sendto ${to.address}`);
}

/** A program for SO_ATTACH_BPF (bpf(2)), compiled once for any number of sockets; a close-on-exec descriptor. */
export function loadSocketFilter(instructions: Buffer): number {
  const license = Buffer.from("\0");
  // union bpf_attr: u32 prog_type, u32 insn_cnt, u64 insns, u64 license, then the log, which is off
  const attr = Buffer.alloc(48);
  attr.writeUInt32LE(BPF_PROG_TYPE_SOCKET_FILTER, 0);
  attr.writeUInt32LE(instructions.length / 8, 4);
  attr.writeBigUInt64LE(addressOf(instructions), 8);
  attr.writeBigUInt64LE(addressOf(license), 16);
  return check(libc().syscall(SYS_BPF, BPF_PROG_LOAD, addressOf(attr), attr.length, 0), "bpf(BPF_PROG_LOAD)");
}

export function shutdown(fd: number, how: number): void {
  check(libc().shutdown(fd, how), "shutdown");
}

/** revents of poll(2) with no wait; POLLERR and POLLHUP are reported unasked. */
export function pollNow(fd: number, events: number): number {
  pair.writeInt32LE(fd, 0);
  pair.writeInt16LE(events, 4);
  pair.writeInt16LE(0, 6);
  check(libc().poll(pair, 1, 0), "poll");
  return pair.readInt16LE(6);
}

export function epollCreate(): number {
  return check(libc().epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
}

const event = new Int32Array(EPOLL_EVENT_WORDS);
const eventBytes = Buffer.from(event.buffer);
const events = new Int32Array(EPOLL_EVENT_WORDS * EPOLL_EVENTS_MAX);
const eventsBytes = Buffer.from(events.buffer);

/** `generation` comes back with each event, to tell it from one of an earlier descriptor of the same number. */
export function epollAdd(epoll: number, fd: number, interest: number, generation: number): void {
  event[0] = interest;
  event[EPOLL_DATA_WORD] = fd;
  event[EPOLL_DATA_WORD + 1] = generation;
  check(libc().epoll_ctl(epoll, EPOLL_CTL_ADD, fd, eventBytes), "epoll_ctl(EPOLL_CTL_ADD)");
}

export function epollDelete(epoll: number, fd: number): void {
  check(libc().epoll_ctl(epoll, EPOLL_CTL_DEL, fd, eventBytes), "epoll_ctl(EPOLL_CTL_DEL)");
}

/** Does not wait. The events are read with {@link epollEvent} until the next call; a signal may make it 0 of them. */
export function epollNow(epoll: number): number {
  const count = libc().epoll_wait(epoll, eventsBytes, EPOLL_EVENTS_MAX, 0);
  if (count >= 0) return count;
  const errno = koffi.errno();
  if (errno === constants.errno.EINTR) return 0;
  throw failure("epoll_wait", errno);
}

/** What the last {@link epollNow} said of its `index`th descriptor. */
export const epollEvent = {
  fd: (index: number): number => events[index * EPOLL_EVENT_WORDS + EPOLL_DATA_WORD] as number,
  generation: (index: number): number => events[index * EPOLL_EVENT_WORDS + EPOLL_DATA_WORD + 1] as number,
  events: (index: number): number => events[index * EPOLL_EVENT_WORDS] as number,
};

/** koffi ends a handle that is collected */
const pollsInLoop: ReturnType<typeof koffi.node.poll>[] = [];

/**
 * `onReadable` is called by libuv's loop as long as `fd` is readable, until the process ends, which this does not hinder. It
 * runs outside Node's own callbacks: what it throws is lost, and promises it settles are seen only with the next of
 * those.
 */
export function pollInLoop(fd: number, onReadable: () => void): void {
  const handle = koffi.node.poll(fd, onReadable);
  handle.unref();
  pollsInLoop.push(handle);
}

/** Address of a buffer's memory, for structures that hold pointers. Keep `buffer` referenced until after the call. */
export function addressOf(buffer: Buffer): bigint {
  return koffi.address(buffer);
}

// ---- waiting without blocking the event loop

/** One thread of the pool is taken for at most this long at a time. */
const WAIT_SLICE_MS = 100;

/**
 * Resolves when `fd` is readable (a pidfd: when its process has ended). A thread of libuv's pool waits in poll(2) meanwhile,
 * in slices, so `signal` takes effect (its reason is the rejection) within a slice; close the descriptor only after this
 * has settled.
 */
export async function waitReadable(fd: number, signal?: AbortSignal): Promise<void> {
  const pollfd = Buffer.alloc(8);
  pollfd.writeInt32LE(fd, 0);
  pollfd.writeInt16LE(POLLIN, 4);
  for (;;) {
    signal?.throwIfAborted();
    if (pollNow(fd, POLLIN) !== 0) return;
    await new Promise<void>((resolve, reject) => {
      // the result is looked at by pollNow: errno belongs to the other thread
      libc().poll.async(pollfd, 1, WAIT_SLICE_MS, (error: Error | null) =>
        error ? reject(error) : resolve(),
      );
    });
  }
}

/**
 * One message into `into` when it comes; 0 at the end. A thread of libuv's pool waits in recv(2) meanwhile, so this is for
 * the few descriptors that Node's own sockets cannot be (SOCK_SEQPACKET). To end the wait, `shutdown` the descriptor first
 * and close it only after this has settled.
 */
export function recvAsync(fd: number, into: Buffer): Promise<number> {
  return new Promise((resolve, reject) => {
    libc().recv.async(fd, into, into.length, 0, (error: Error | null, received: number) => {
      if (error !== null) reject(error);
      else if (received < 0) reject(failure("recv", koffi.errno()));
      else resolve(received);
    });
  });
}

// ---- descriptors between processes (unix(7), SCM_RIGHTS)

/** A socket that takes messages at a path, close-on-exec and non-blocking. */
export function bindUnixDatagram(path: string): number {
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  try {
    const address = unixAddress(path);
    check(libc().bind(fd, address, address.length), `bind(${path})`);
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

/** sun_path, with the NUL that ends it */
const UNIX_PATH_BYTES = 108;

function unixAddress(path: string): Buffer {
  const address = Buffer.alloc(2 + UNIX_PATH_BYTES);
  address.writeUInt16LE(AF_UNIX, 0);
  if (address.write(path, 2) >= UNIX_PATH_BYTES)
    throw failure(`sockaddr_un(${path})`, constants.errno.ENAMETOOLONG);
  return address;
}

/** SCM_MAX_FD is 253; nobody here sends as many */
const DESCRIPTORS_SENT_MAX = 16;
const CONTROL_HEADER_BYTES = 16;
const SCM_RIGHTS = 1;
const MSG_CMSG_CLOEXEC = 0x40000000;
const MESSAGE_HEADER_BYTES = 56;
const CONTROL_LENGTH_AT = 40;

/** struct msghdr with one part; the buffers must live as long as it is used. */
function messageHeader(
  name: Buffer | null,
  part: Buffer,
  control: Buffer,
): { header: Buffer; vector: Buffer } {
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(addressOf(part), 0);
  vector.writeBigUInt64LE(BigInt(part.length), 8);
  const header = Buffer.alloc(MESSAGE_HEADER_BYTES);
  if (name !== null) {
    header.writeBigUInt64LE(addressOf(name), 0);
    header.writeUInt32LE(name.length, 8);
  }
  header.writeBigUInt64LE(addressOf(vector), 16);
  header.writeBigUInt64LE(1n, 24);
  header.writeBigUInt64LE(addressOf(control), 32);
  header.writeBigUInt64LE(BigInt(control.length), CONTROL_LENGTH_AT);
  return { header, vector };
}

/** Sends a message and duplicates of descriptors to the socket at a path; does not wait for room. */
export function sendDescriptors(path: string, message: Buffer, descriptors: number[]): void {
  const control = Buffer.alloc(CONTROL_HEADER_BYTES + Math.ceil(descriptors.length / 2) * 8);
  control.writeBigUInt64LE(BigInt(CONTROL_HEADER_BYTES + descriptors.length * 4), 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  descriptors.forEach((fd, index) => {
    control.writeInt32LE(fd, CONTROL_HEADER_BYTES + index * 4);
  });
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  try {
    const address = unixAddress(path);
    const { header, vector } = messageHeader(address, message, control);
    check(libc().sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL), `sendmsg(${path})`);
    keep(address, vector, message, control);
  } finally {
    close(fd);
  }
}

/** Takes one message with its descriptors, close-on-exec; null: there is none. */
export function receiveDescriptors(
  fd: number,
  bytesMax: number,
): { message: Buffer; descriptors: number[] } | null {
  const part = Buffer.alloc(bytesMax);
  const control = Buffer.alloc(CONTROL_HEADER_BYTES + DESCRIPTORS_SENT_MAX * 4);
  const { header, vector } = messageHeader(null, part, control);
  const size = libc().recvmsg(fd, header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0) {
    const errno = koffi.errno();
    if (errno === constants.errno.EAGAIN) return null;
    throw failure("recvmsg", errno);
  }
  keep(vector);
  const descriptors: number[] = [];
  const length = Number(header.readBigUInt64LE(CONTROL_LENGTH_AT));
  if (length >= CONTROL_HEADER_BYTES && control.readInt32LE(12) === SCM_RIGHTS)
    for (let at = CONTROL_HEADER_BYTES; at + 4 <= Number(control.readBigUInt64LE(0)); at += 4)
      descriptors.push(control.readInt32LE(at));
  return { message: part.subarray(0, size), descriptors };
}

/** What the kernel was given the address of has to be reachable until it has returned. */
function keep(..._buffers: Buffer[]): void {}

// ---- processes and namespaces

/** A descriptor of the process, close-on-exec; readable once it has ended. */
export function pidfdOpen(pid: number): number {
  return check(libc().syscall(SYS_PIDFD_OPEN, pid, 0, 0, 0), `pidfd_open(${pid})`);
}

/** Our own, close-on-exec duplicate of another process's descriptor (needs PTRACE_MODE_ATTACH on it). */
export function pidfdGetfd(pidfd: number, fd: number): number {
  return check(libc().syscall(SYS_PIDFD_GETFD, pidfd, fd, 0, 0), `pidfd_getfd(${fd})`);
}

export function pidfdSendSignal(pidfd: number, signal: number): void {
  check(libc().syscall(SYS_PIDFD_SEND_SIGNAL, pidfd, signal, 0, 0), `pidfd_send_signal(${signal})`);
}

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
  const own = openSync("/proc/thread-self/ns/ipc", "r");
  try {
    const theirs = openSync(`/proc/${pid}/ns/ipc`, "r");
    try {
      setns(theirs, CLONE_NEWIPC);
    } finally {
      closeSync(theirs);
    }
    try {
      return use();
    } finally {
      setns(own, CLONE_NEWIPC);
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
  const own = openSync("/proc/thread-self/ns/net", "r");
  try {
    if (fstatSync(own).ino === fstatSync(fd).ino) return use();
    setns(fd, CLONE_NEWNET);
    try {
      return use();
    } finally {
      setns(own, CLONE_NEWNET);
    }
  } finally {
    closeSync(own);
  }
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
  const errno = koffi.errno();
  if (errno === constants.errno.ENOENT || errno === constants.errno.EINVAL) return false;
  throw failure(`umount(${target})`, errno);
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

// ---- POSIX message queues (mq_overview(7)): of the IPC namespace that the calling thread is in

/** A mount of the namespace's queues that is seen nowhere: a descriptor of its folder. */
export function queueFolder(): number {
  return newMount("mqueue");
}

export interface QueueAttributes {
  messagesMax: number;
  messageBytesMax: number;
  messages: number;
}

/** struct mq_attr is eight longs: flags, maxmsg, msgsize, curmsgs, and room. */
const QUEUE_ATTRIBUTES_BYTES = 64;

export function queueAttributes(fd: number): QueueAttributes {
  const attributes = Buffer.alloc(QUEUE_ATTRIBUTES_BYTES);
  check(libc().mq_getattr(fd, attributes), "mq_getattr");
  return {
    messagesMax: Number(attributes.readBigInt64LE(8)),
    messageBytesMax: Number(attributes.readBigInt64LE(16)),
    messages: Number(attributes.readBigInt64LE(24)),
  };
}

/** Makes a queue that must not be there yet. `name` begins with a slash. */
export function createQueue(name: string, attributes: Omit<QueueAttributes, "messages">): number {
  const structure = Buffer.alloc(QUEUE_ATTRIBUTES_BYTES);
  structure.writeBigInt64LE(BigInt(attributes.messagesMax), 8);
  structure.writeBigInt64LE(BigInt(attributes.messageBytesMax), 16);
  const { O_RDWR, O_CREAT, O_EXCL, O_NONBLOCK } = fileConstants;
  const flags = O_CLOEXEC | O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK;
  return check(libc().mq_open(name, flags, 0o600, structure), `mq_open(${name})`);
}

export interface QueueMessage {
  priority: number;
  bytes: Buffer;
}

/** Takes the oldest message of the highest priority. The descriptor must be non-blocking. */
export function receiveMessage(fd: number, bytesMax: number): QueueMessage {
  const bytes = Buffer.alloc(bytesMax);
  const priority = Buffer.alloc(4);
  const length = check(libc().mq_receive(fd, bytes, bytes.length, priority), "mq_receive");
  return { priority: priority.readUInt32LE(0), bytes: bytes.subarray(0, length) };
}

export function sendMessage(fd: number, { priority, bytes }: QueueMessage): void {
  check(libc().mq_send(fd, bytes, bytes.length, priority), "mq_send");
}

// ---- what another process has, seen and set from outside

/** kcmp(2): KCMP_FILE compares two descriptors; the others two tasks' tables, and take no index. */
export const KCMP_FILE = 0;
export const KCMP_VM = 1;
export const KCMP_FILES = 2;
export const KCMP_FS = 3;
export const KCMP_SIGHAND = 4;
export const KCMP_IO = 5;
export const KCMP_SYSVSEM = 6;

/**
 * kcmp(2): 0 when both are the same object of the kernel, 1 or 2 (less, greater) in an order that is fixed until the next
 * boot; -errno where one of them is gone. Needs PTRACE_MODE_READ_REALCREDS on both.
 */
export function kcmp(one: number, other: number, type: number, index1 = 0, index2 = 0): number {
  const order = libc().syscall5(SYS_KCMP, one, other, type, index1, index2);
  return order < 0 ? -koffi.errno() : order;
}

/** fcntl(2) with a number as argument; -errno where the kernel refuses, as for O_PATH descriptors. */
export function tryFcntl(fd: number, command: number, argument: number): number {
  const result = libc().fcntl(fd, command, argument);
  return result < 0 ? -koffi.errno() : result;
}

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
  return libc().ioctl(fd, request, int) < 0 ? -koffi.errno() : intView.getInt32(0, true);
}

/** What {@link tryGetsockopt} read last. */
export const socketOption = Buffer.alloc(64);
const socketOptionView = new DataView(socketOption.buffer, socketOption.byteOffset, socketOption.length);

/**
 * Reads an option of at most 64 bytes into {@link socketOption}. Returns how many bytes it has, or -errno: most options are
 * refused by most sockets.
 */
export function tryGetsockopt(fd: number, level: number, option: number, size: number): number {
  lengthView.setUint32(0, size, true);
  if (libc().getsockopt(fd, level, option, socketOption, length) < 0) return -koffi.errno();
  return lengthView.getUint32(0, true);
}

/** The 32-bit word at `at` of {@link socketOption}. */
export function socketOptionWord(at: number): number {
  return socketOptionView.getInt32(at, true);
}

/** 0, or -errno */
export function trySetsockoptBuffer(fd: number, level: number, option: number, value: Buffer): number {
  return libc().setsockopt(fd, level, option, value, value.length) < 0 ? -koffi.errno() : 0;
}

/** struct sockaddr of any family, as getsockname(2) gives it; null where there is none. At most 110 bytes. */
export function getsocknameRaw(fd: number): Buffer | null {
  const address = Buffer.alloc(128);
  lengthView.setUint32(0, address.length, true);
  return libc().getsockname(fd, address, length) < 0
    ? null
    : address.subarray(0, lengthView.getUint32(0, true));
}

/** As {@link getsocknameRaw}, of the peer. */
export function getpeernameRaw(fd: number): Buffer | null {
  const address = Buffer.alloc(128);
  lengthView.setUint32(0, address.length, true);
  return libc().getpeername(fd, address, length) < 0
    ? null
    : address.subarray(0, lengthView.getUint32(0, true));
}

/** CPUs a thread may run on, as hexadecimal text, the highest first; null: gone. */
export function getAffinity(tid: number): string | null {
  const mask = Buffer.alloc(CPUSET_BYTES);
  if (libc().sched_getaffinity(tid, mask.length, mask) < 0) return null;
  return BigInt(`0x${mask.reverse().toString("hex")}`).toString(16);
}

/** @param mask as {@link getAffinity} gives it; CPUs that this machine lacks are left out by the kernel */
export function setAffinity(tid: number, mask: string): void {
  const bytes = Buffer.from(mask.padStart(CPUSET_BYTES * 2, "0"), "hex").reverse();
  check(libc().sched_setaffinity(tid, bytes.length, bytes), `sched_setaffinity(${tid}, ${mask})`);
}

/** ioprio_get(2) of one thread, class << 13 | level; null: gone */
export function getIoPriority(tid: number): number | null {
  const priority = libc().syscall(SYS_IOPRIO_GET, IOPRIO_WHO_PROCESS, tid, 0, 0);
  return priority < 0 ? null : priority;
}

export function setIoPriority(tid: number, priority: number): void {
  check(
    libc().syscall(SYS_IOPRIO_SET, IOPRIO_WHO_PROCESS, tid, priority, 0),
    `ioprio_set(${tid}, ${priority})`,
  );
}

/** struct sched_attr (include/uapi/linux/sched/types.h); 64-bit fields in decimal */
export interface SchedulingAttributes {
  policy: number;
  flags: string;
  nice: number;
  priority: number;
  /** nanoseconds; of a fair policy: its time slice, 0: the machine's usual one */
  runtime: string;
  deadline: string;
  period: string;
  utilMin: number;
  utilMax: number;
}

/** sched_getattr(2); null: gone */
export function getSchedulingAttributes(tid: number): SchedulingAttributes | null {
  const bytes = Buffer.alloc(SCHED_ATTR_BYTES);
  if (libc().syscall(SYS_SCHED_GETATTR, tid, addressOf(bytes), bytes.length, 0) < 0) return null;
  return {
    policy: bytes.readUInt32LE(4),
    flags: String(bytes.readBigUInt64LE(8)),
    nice: bytes.readInt32LE(16),
    priority: bytes.readUInt32LE(20),
    runtime: String(bytes.readBigUInt64LE(24)),
    deadline: String(bytes.readBigUInt64LE(32)),
    period: String(bytes.readBigUInt64LE(40)),
    utilMin: bytes.readUInt32LE(48),
    utilMax: bytes.readUInt32LE(52),
  };
}

/** sched_setattr(2) */
export function setSchedulingAttributes(tid: number, attributes: SchedulingAttributes): void {
  const bytes = Buffer.alloc(SCHED_ATTR_BYTES);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(attributes.policy, 4);
  bytes.writeBigUInt64LE(BigInt(attributes.flags), 8);
  bytes.writeInt32LE(attributes.nice, 16);
  bytes.writeUInt32LE(attributes.priority, 20);
  bytes.writeBigUInt64LE(BigInt(attributes.runtime), 24);
  bytes.writeBigUInt64LE(BigInt(attributes.deadline), 32);
  bytes.writeBigUInt64LE(BigInt(attributes.period), 40);
  bytes.writeUInt32LE(attributes.utilMin, 48);
  bytes.writeUInt32LE(attributes.utilMax, 52);
  check(libc().syscall(SYS_SCHED_SETATTR, tid, addressOf(bytes), 0, 0), `sched_setattr(${tid})`);
}

/** prlimit(2) of another process; RLIM_INFINITY is 2^64 - 1. */
export function setResourceLimit(pid: number, resource: number, soft: bigint, hard: bigint): void {
  const limits = Buffer.alloc(16);
  limits.writeBigUInt64LE(soft, 0);
  limits.writeBigUInt64LE(hard, 8);
  check(libc().prlimit(pid, resource, limits, null), `prlimit(${pid}, ${resource})`);
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

const GETALL = 13;
const SEMAPHORES_MAX = 32_000;

/** Values of a System V semaphore set in the calling thread's IPC namespace; null: gone, or not to be read. */
export function semaphoreValues(id: number, count: number): number[] | null {
  const values = Buffer.alloc(Math.min(count, SEMAPHORES_MAX) * 2);
  if (libc().semctl(id, 0, GETALL, values) < 0) return null;
  return Array.from({ length: values.length / 2 }, (_, index) => values.readUInt16LE(index * 2));
}

const IPC_RMID = 0;

/** shmctl(2) with IPC_RMID, in the calling thread's IPC namespace: the segment goes when nobody has it attached any more. */
export function removeSharedMemory(id: number): void {
  check(libc().shmctl(id, IPC_RMID, null), `shmctl(${id}, IPC_RMID)`);
}
