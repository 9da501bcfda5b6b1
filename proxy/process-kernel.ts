/** Kernel and engine as processes of ours use them, a workload's proxy and a gateway alike. */
import { setFlagsFromString } from "node:v8";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { countSynRecv, listenBacklog, listenerOf } from "#proxy/kernel/diag.ts";
import { OWN_NETWORK, type UpstreamNetwork } from "#proxy/kernel/network.ts";
import { shieldListener, unshieldListener } from "#proxy/kernel/shield.ts";
import * as sock from "#proxy/kernel/socket.ts";
import {
  bound,
  boundQueues,
  boundUnread,
  boundUnsent,
  setPeerTimeouts,
  sockets,
} from "#proxy/kernel/stream-sockets.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";

/**
 * Memory of Buffers is outside V8's heap, and V8 collects everything for each few megabytes of it: about half of what links cost a process
 * that carries much. Counted with the heap, it has the process collect as often as the heap alone would have.
 */
setFlagsFromString("--external-memory-accounted-in-global-limit");

/** include/uapi/linux/in.h; of IPv6 sockets too (they share the flag) */
const IP_FREEBIND = 15;

/** Of a process without capabilities, to which nobody is led before it is released: clients who come all the same wait. */
export function unprivilegedLegKernelOf(upstream: UpstreamNetwork): LegKernel {
  return {
    ...legKernelOf(upstream),
    bindShielded: (endpoint) => bound(endpoint, undefined, upstream),
    shieldListener: () => {},
    unshieldListener: () => {},
  };
}

/** @param upstream where the application is */
export function legKernelOf(upstream: UpstreamNetwork): LegKernel {
  const networks = { upstream, downstream: OWN_NETWORK };
  return {
    ...sockets,
    dial: (to) => sockets.dial(to, upstream),
    bindUpstream: (on) => bound(on, undefined, upstream),
    acknowledge: (fd) => sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_QUICKACK, 1),
    setPeerTimeouts,
    boundQueues,
    boundUnread,
    boundUnsent,
    bindShielded: (endpoint, side) =>
      bound(
        endpoint,
        (fd) => {
          sock.setsockoptInt(fd, sock.IPPROTO_IP, IP_FREEBIND, 1);
          shieldListener(fd);
        },
        networks[side],
      ),
    bindFree: (endpoint) => bound(endpoint, (fd) => sock.setsockoptInt(fd, sock.IPPROTO_IP, IP_FREEBIND, 1)),
    shieldListener,
    unshieldListener,
    listenerOf: (endpoint) => listenerOf(endpoint, upstream),
    isListening: (endpoint) => listenBacklog(endpoint, upstream) !== null,
    listenBacklog: (endpoint, side) => listenBacklog(endpoint, networks[side]) ?? 0,
    punchHole: descriptor.punchHole,
    countSynRecv,
  };
}

/** Room for 4,000 sessions' legs, doubled while they are captured. */
const DESCRIPTORS_RESERVED = 16_000;

/**
 * The kernel doubles a process's descriptor table when it is full, and waits for an RCU grace period each time (5 to 10
 * ms for a process with threads). It never shrinks it: so grow it now, not in the middle of a cutover.
 */
export function reserveDescriptors(): void {
  // where RLIMIT_NOFILE is lower, as far as it goes
  for (let count = DESCRIPTORS_RESERVED; count > 256; count >>= 1) {
    if (descriptor.growDescriptorTable(count)) return;
  }
}
