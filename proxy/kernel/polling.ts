/** Which descriptors are ready: poll(2), epoll(7), and libuv's loop. */
import { constants } from "node:os";
import { check, errno, failure, libc, pair, pollHandle } from "./libc.ts";

export const POLLIN = 1;
export const POLLOUT = 4;
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

/** struct timespec */
const noWait = Buffer.alloc(16);
/** sigset_t of glibc: every signal */
const everySignal = Buffer.alloc(128, 0xff);

/** revents of ppoll(2) with no wait; POLLERR and POLLHUP are reported unasked. A signal that waits would end it without a look: all wait for it. */
export function pollNow(fd: number, events: number): number {
  pair.writeInt32LE(fd, 0);
  pair.writeInt16LE(events, 4);
  pair.writeInt16LE(0, 6);
  check(libc().ppoll(pair, 1, noWait, everySignal), "ppoll");
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
  const error = errno();
  if (error === constants.errno.EINTR) return 0;
  throw failure("epoll_wait", error);
}

/** What the last {@link epollNow} said of its `index`th descriptor. */
export const epollEvent = {
  fd: (index: number): number => events[index * EPOLL_EVENT_WORDS + EPOLL_DATA_WORD] as number,
  generation: (index: number): number => events[index * EPOLL_EVENT_WORDS + EPOLL_DATA_WORD + 1] as number,
  events: (index: number): number => events[index * EPOLL_EVENT_WORDS] as number,
};

/** koffi ends a handle that is collected */
const pollsInLoop: ReturnType<typeof pollHandle>[] = [];

/**
 * `onReadable` is called by libuv's loop as long as `fd` is readable, until the process ends, which this does not hinder. It
 * runs outside Node's own callbacks: what it throws is lost, and promises it settles are seen only with the next of
 * those.
 */
export function pollInLoop(fd: number, onReadable: () => void): void {
  const handle = pollHandle(fd, onReadable);
  handle.unref();
  pollsInLoop.push(handle);
}

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
