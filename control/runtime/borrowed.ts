/**
 * Descriptors of other processes, had for a moment: our own duplicates (pidfd_getfd(2)).
 *
 * Their owner may close its own meanwhile, and then ours is the last. close(2) of a socket with SO_LINGER waits then until the peer has
 * taken everything, for as long as the owner has said, nonblocking or not, and this agent's one thread with it. The option is the owner's,
 * and stays. But who ends does not wait (`inet_release` in net/ipv4/af_inet.c, PF_EXITING): such a socket is given to a process that ends
 * when ours is closed.
 */
import { type ChildProcess, spawn } from "node:child_process";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as procs from "#proxy/kernel/processes.ts";
import * as sock from "#proxy/kernel/socket.ts";

/** struct linger: on, seconds */
const LINGER_BYTES = 8;
/** so many sockets are let go by one process, and not more are kept until then */
const KEPT_MAX = 128;
const AGAIN_MS = 1_000;

/** sockets that are let go before anything else is done */
const kept: number[] = [];

/** Our own, close-on-exec; to be given back by {@link giveBack}. @throws HoldfastError of the kernel: `ESRCH`, `EBADF` … */
export function borrow(pid: number, fd: number): number {
  const pidfd = procs.pidfdOpen(pid);
  try {
    return procs.pidfdGetfd(pidfd, fd);
  } finally {
    descriptor.close(pidfd);
  }
}

/** Closes it, and does not wait, but for who sets SO_LINGER and closes its own between the two calls here (measured: less than 1 µs apart). */
export function giveBack(ours: number): void {
  if (!isLingering(ours)) {
    descriptor.close(ours);
    return;
  }
  kept.push(ours);
  if (kept.length >= KEPT_MAX) letGo();
  else if (kept.length === 1) setImmediate(letGo);
}

function isLingering(fd: number): boolean {
  if (sock.tryGetsockopt(fd, sock.SOL_SOCKET, sock.SO_LINGER, LINGER_BYTES) !== LINGER_BYTES) return false;
  return sock.socketOptionWord(0) !== 0 && sock.socketOptionWord(4) !== 0;
}

function letGo(): void {
  if (kept.length === 0) return;
  const holder = holderOf(kept);
  if (holder === null) {
    setTimeout(letGo, AGAIN_MS).unref();
    return;
  }
  for (const fd of kept.splice(0)) descriptor.close(fd);
  holder.kill("SIGKILL");
}

/** A process that has them, too, and ends with this one at the latest. null: none can be had now */
function holderOf(fds: number[]): ChildProcess | null {
  let holder: ChildProcess;
  try {
    holder = spawn("/bin/cat", { stdio: ["pipe", "ignore", "ignore", ...fds], cwd: "/", env: {} });
  } catch {
    return null; // no memory; what else there may be a shortage of it says later
  }
  holder.on("error", () => {}); // it has no number then
  return holder.pid === undefined ? null : holder;
}
