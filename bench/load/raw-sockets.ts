/**
 * Nonblocking TCP sockets of 127/8 and epoll, straight from libc: for load generators and applications that must not be the
 * limit of what is measured. One read and one write a message cost a tenth of what they cost by way of `net`.
 *
 * Left out: everything but loopback IPv4; what is written in parts (callers send little, or count bytes).
 * Sources: epoll(7), epoll_pwait2(2), socket(7), ip(7), tcp(7), `tfd` of /proc/PID/fdinfo in proc(5).
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { constants } from "node:os";
import koffi from "koffi";

const AF_INET = 2;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const IPPROTO_IP = 0;
const IP_BIND_ADDRESS_NO_PORT = 24;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
export const EPOLLIN = 1;
export const EPOLLOUT = 4;
const PR_SET_TIMERSLACK = 29;
const BACKLOG = 4096;
const SOCKADDR_BYTES = 16;
const EVENTS_MAX = 512;
/** struct epoll_event is packed on x86-64 only */
const EVENT_BYTES = process.arch === "x64" ? 12 : 16;
const EVENT_DATA_AT = EVENT_BYTES - 8;

const libc = koffi.load("libc.so.6");
const c = {
  socket: libc.func("int socket(int, int, int)"),
  setsockopt: libc.func("int setsockopt(int, int, int, const void *, uint32_t)"),
  bind: libc.func("int bind(int, const void *, uint32_t)"),
  listen: libc.func("int listen(int, int)"),
  getsockname: libc.func("int getsockname(int, void *, void *)"),
  accept4: libc.func("int accept4(int, void *, void *, int)"),
  connect: libc.func("int connect(int, const void *, uint32_t)"),
  read: libc.func("long read(int, void *, size_t)"),
  send: libc.func("long send(int, const void *, size_t, int)"),
  close: libc.func("int close(int)"),
  epollCreate: libc.func("int epoll_create1(int)"),
  epollCtl: libc.func("int epoll_ctl(int, int, int, const void *)"),
  epollWait: libc.func("int epoll_pwait2(int, void *, int, const void *, const void *)"),
  prctl: libc.func("int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)"),
};
const { EAGAIN, EINTR, EINPROGRESS } = constants.errno;
const MSG_NOSIGNAL = 0x4000;
const ON = Buffer.from([1, 0, 0, 0]);

/**
 * Begins to connect to 127.0.0.1. What is written before it is connected is refused (see {@link write}).
 * @param from the last byte of the address of 127.0.0.x to come from, so that ports do not run out
 */
export function connectTo(port: number, from = 1): number {
  const fd = check("socket", c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  check("setsockopt", c.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, ON, ON.length));
  if (from !== 1) {
    // Otherwise a port is taken for this address alone at once, whatever it is connected to.
    check("setsockopt", c.setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, ON, ON.length));
    check("bind", c.bind(fd, address(0, from), SOCKADDR_BYTES));
  }
  if (c.connect(fd, address(port), SOCKADDR_BYTES) < 0 && koffi.errno() !== EINPROGRESS) {
    const error = failure("connect");
    c.close(fd);
    throw error;
  }
  return fd;
}

/** Listens at 127.0.0.1. */
export function listen(): { fd: number; port: number } {
  const fd = check("socket", c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  check("setsockopt", c.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, ON, ON.length));
  check("bind", c.bind(fd, address(0), SOCKADDR_BYTES));
  check("listen", c.listen(fd, BACKLOG));
  const bound = Buffer.alloc(SOCKADDR_BYTES);
  check("getsockname", c.getsockname(fd, bound, Buffer.from([SOCKADDR_BYTES, 0, 0, 0])));
  return { fd, port: bound.readUInt16BE(2) };
}

/** @returns null: nobody is waiting */
export function accept(listener: number): number | null {
  const fd = c.accept4(listener, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return null;
  c.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, ON, ON.length);
  return fd;
}

/** @returns bytes; 0: it has ended, in order or not; null: nothing now */
export function read(fd: number, into: Buffer): number | null {
  const bytes = c.read(fd, into, into.length);
  if (bytes >= 0) return bytes;
  return again() ? null : 0;
}

/** @returns bytes it took; 0: it has ended; null: none now */
export function write(fd: number, bytes: Buffer, length = bytes.length): number | null {
  const taken = c.send(fd, bytes, length, MSG_NOSIGNAL);
  if (taken >= 0) return taken;
  return again() ? null : 0;
}

/** Sends a FIN, or an RST where something is unread. */
export function close(fd: number): void {
  c.close(fd);
}

/** An epoll of its own. */
export class Poller {
  readonly #fd = check("epoll_create1", c.epollCreate(0));
  readonly #events = Buffer.alloc(EVENT_BYTES * EVENTS_MAX);
  readonly #event = Buffer.alloc(EVENT_BYTES);
  /** struct timespec */
  readonly #timeout = Buffer.alloc(16);

  constructor() {
    // The kernel adds 50 µs to every sleep otherwise, so that it may wake several sleepers at once.
    c.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
  }

  watch(fd: number, events: number): void {
    this.#control(EPOLL_CTL_ADD, fd, events);
  }

  change(fd: number, events: number): void {
    this.#control(EPOLL_CTL_MOD, fd, events);
  }

  forget(fd: number): void {
    this.#control(EPOLL_CTL_DEL, fd, 0);
  }

  /**
   * Blocks the whole process.
   * @param untilMs as `performance.now()` counts, to the microsecond
   * @returns how many events there are, for {@link fdAt} and {@link eventsAt}
   */
  wait(untilMs: number): number {
    const waitMs = Math.max(0, untilMs - performance.now());
    const seconds = Math.floor(waitMs / 1000);
    this.#timeout.writeUIntLE(seconds, 0, 6);
    this.#timeout.writeUIntLE(Math.floor((waitMs - seconds * 1000) * 1e6), 8, 6);
    const count = c.epollWait(this.#fd, this.#events, EVENTS_MAX, this.#timeout, null);
    if (count < 0 && koffi.errno() === EINTR) return 0;
    return check("epoll_pwait2", count);
  }

  fdAt(index: number): number {
    return this.#events.readInt32LE(index * EVENT_BYTES + EVENT_DATA_AT);
  }

  eventsAt(index: number): number {
    return this.#events.readUInt32LE(index * EVENT_BYTES);
  }

  close(): void {
    c.close(this.#fd);
  }

  #control(operation: number, fd: number, events: number): void {
    this.#event.writeUInt32LE(events, 0);
    this.#event.writeInt32LE(fd, EVENT_DATA_AT);
    check("epoll_ctl", c.epollCtl(this.#fd, operation, fd, this.#event));
  }
}

/**
 * The epoll of Node's event loop. It can be polled as any other descriptor: it is readable when the loop has something to do.
 * @param watched a descriptor the loop reads from: of the process's epolls this tells the loop's
 */
export function eventLoopFd(watched: number): number {
  const watches = new RegExp(`^tfd:\\s*${watched}\\s`, "m");
  for (const name of readdirSync("/proc/self/fd")) {
    try {
      if (readlinkSync(`/proc/self/fd/${name}`) !== "anon_inode:[eventpoll]") continue;
      if (watches.test(readFileSync(`/proc/self/fdinfo/${name}`, "utf8"))) return Number(name);
    } catch {
      // the directory's own descriptor, closed by now
    }
  }
  throw new Error(`no epoll of this process watches descriptor ${watched}`);
}

/** struct sockaddr_in of 127.0.0.x */
function address(port: number, last = 1): Buffer {
  const bytes = Buffer.alloc(SOCKADDR_BYTES);
  bytes.writeUInt16LE(AF_INET, 0);
  bytes.writeUInt16BE(port, 2);
  bytes.set([127, 0, 0, last], 4);
  return bytes;
}

function again(): boolean {
  const errno = koffi.errno();
  return errno === EAGAIN || errno === EINTR;
}

function check(call: string, result: number): number {
  if (result < 0) throw failure(call);
  return result;
}

function failure(call: string): Error {
  const errno = koffi.errno();
  const name = Object.entries(constants.errno).find(([, number]) => number === errno)?.[0];
  return new Error(`${call}: ${name ?? `errno ${errno}`}`);
}
