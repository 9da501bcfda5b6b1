/**
 * libc through FFI (koffi): the one file that loads it. The other files of this folder give one function a system call, with
 * constants under the kernel's own names and no policy.
 *
 * Every failure is a {@link HoldfastError} with source "kernel" and the errno name ("EADDRINUSE") as code. libc is loaded at the
 * first call, so importing these files has no effect. The calls are synchronous and cost about 0.3 to 0.5 µs each; the
 * scratch buffers they share are private to the thread.
 */
import { constants } from "node:os";
import koffi from "koffi";
import { HoldfastError } from "#proxy/contract/errors.ts";

type Argument = number | bigint | Buffer | null | string;

/** Nothing there to remove; an option that an older kernel does not know. */
export type Tolerated = "ENOENT" | "ENOPROTOOPT" | "EPERM";

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
  fallocate: Call;
  recv: Call;
  recvfrom: Call;
  send: Call;
  sendto: Call;
  sendmsg: Call;
  recvmsg: Call;
  shutdown: Call;
  fcntl: Call;
  poll: Call;
  ppoll: Call;
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

export function libc(): Libc {
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
    ppoll: call("int ppoll(void *, ulong, void *, void *)"),
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
    fallocate: call("int fallocate(int, int, long, long)"),
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
export function failure(call: string, errno: number): HoldfastError {
  const code = errnoName(errno);
  const retryable = code === "EAGAIN" || code === "EINTR" || code === "ENOMEM" || code === "ENOBUFS";
  const hint =
    code === "EPERM" || code === "EACCES"
      ? "; the caller lacks a capability (CAP_NET_ADMIN, CAP_NET_RAW)"
      : "";
  return new HoldfastError(`${call} failed with ${code}${hint}`, { code, source: "kernel", retryable });
}

export function check(result: number, call: string): number {
  if (result < 0) throw failure(call, koffi.errno());
  return result;
}

export const int = Buffer.alloc(4);
export const intView = new DataView(int.buffer, int.byteOffset, 4);
export const length = Buffer.alloc(4);
export const lengthView = new DataView(length.buffer, length.byteOffset, 4);
export const pair = Buffer.alloc(8);

/** Address of a buffer's memory, for structures that hold pointers. Keep `buffer` referenced until after the call. */
export function addressOf(buffer: Buffer): bigint {
  return koffi.address(buffer);
}

/** What the kernel was given the address of has to be reachable until it has returned. */
export function keep(..._buffers: Buffer[]): void {}

/** Of this thread's last call. */
export function errno(): number {
  return koffi.errno();
}

/** Of libuv's loop; koffi ends a handle that is collected. */
export function pollHandle(fd: number, onReadable: () => void): ReturnType<typeof koffi.node.poll> {
  return koffi.node.poll(fd, onReadable);
}
