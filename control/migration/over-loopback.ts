/**
 * What is sent over the loopback device is there when send(2) returns, unless the kernel is busy: then ksoftirqd brings it a
 * moment later (net/core/dev.c, process_backlog()).
 */

const WAIT_MS_MAX = 1_000;
const LOOK_MS = 1;
const never = new Int32Array(new SharedArrayBuffer(4));

/** Waits until it is so, 1 s at most, and blocks: mostly there is nothing to wait for. Returns whether it is so. */
export function hasArrived(isSo: () => boolean): boolean {
  const late = performance.now() + WAIT_MS_MAX;
  while (!isSo()) {
    if (performance.now() > late) return false;
    Atomics.wait(never, 0, 0, LOOK_MS);
  }
  return true;
}
