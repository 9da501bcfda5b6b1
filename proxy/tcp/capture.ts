/**
 * Capture: read one leg out of the kernel with TCP_REPAIR.
 *
 * Preconditions: CAP_NET_ADMIN of whoever takes the steps (checked on the caller, not on the owner of the socket); nobody else reads or writes the
 * descriptor; the leg is shielded first (shield.ts): its peer's kernel goes on even where the peer is frozen.
 *
 * What repair mode does and does not do: the descriptor can be closed without FIN or RST. It does *not* stop receiving,
 * and it does not stop the kernel's timers: a leg with unacknowledged bytes still retransmits, a pending delayed ACK is
 * still sent, zero-window probes and keep-alives go on. All of them repeat what has been sent before, so they are
 * harmless: a peer that takes a byte it had missed cannot tell us so against the shield, and the adopted leg sends it
 * again. They are not silence. New bytes would not be harmless (pacing, tail-loss probes send them without being asked):
 * a captured leg sends none, see `closeSendWindow`. Peeking at a receive queue also sends the ACK that was being delayed. A frozen
 * process's kernel socket may answer that with bytes it had queued: hence the second look at the receive queue.
 *
 *      send queue                               receive queue
 *   snd_una     snd_nxt     write_seq        copied_seq        rcv_nxt
 *      |-- sent ---|-- unsent --|                 |---- unread ----|
 *      '------- SIOCOUTQ -------'                 '---- SIOCINQ ---'
 *                  '-OUTQNSD----' = TCP_QUEUE_SEQ                  ' = TCP_QUEUE_SEQ
 *
 * A FIN takes one sequence number at the end of its queue: it is in both TCP_QUEUE_SEQs and in SIOCOUTQ, not in SIOCINQ.
 * A snapshot's `seq` includes it, `bytes` and `unsentBytes` do not.
 *
 * Not movable: LISTEN, SYN_SENT, SYN_RECV; urgent data is moved as ordinary bytes. TIME_WAIT shows as CLOSE.
 * Sources: net/ipv4/tcp.c (do_tcp_setsockopt, tcp_peek_sndq, tcp_ioctl), CRIU's description of the protocol.
 */

import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { OWN_NETWORK } from "#proxy/kernel/network.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readState, tcpInfo } from "#proxy/kernel/tcp-state.ts";
import { fail } from "../contract/error-codes.ts";
import {
  closedLeg,
  type Endpoint,
  type LegSnapshot,
  type LegState,
  type RepairWindow,
} from "../contract/snapshot.ts";
import { atOnce, type LegSteps } from "./leg-steps.ts";

/** Tries before a leg that keeps changing under our hands is refused. */
const CAPTURE_TRIES_MAX = 5;
/** The first segment of the send queue may be acknowledged in part and is then peeked whole: room for one segment. */
const PARTLY_ACKED_BYTES_MAX = 128 * 1024;
const SCRATCH_BYTES = 512 * 1024;
const NOTHING = Buffer.alloc(0);
const NO_WINDOW: RepairWindow = { snd_wl1: 0, snd_wnd: 0, max_window: 0, rcv_wnd: 0, rcv_wup: 0 };

/** Our FIN stands in the send queue, unacknowledged. */
export function finUnacked(state: LegState): boolean {
  return state === "FIN_WAIT1" || state === "CLOSING" || state === "LAST_ACK";
}

/** We have closed our direction: our FIN is counted in `send.seq`. */
export function finSent(state: LegState): boolean {
  return finUnacked(state) || state === "FIN_WAIT2";
}

/** The peer has closed its direction: its FIN is counted in `receive.seq`. */
export function finReceived(state: LegState): boolean {
  return state === "CLOSE_WAIT" || state === "LAST_ACK" || state === "CLOSING";
}

const window = Buffer.alloc(20);
let scratch: Buffer | undefined;

/**
 * Reads the leg; it stays in repair mode, so that closing `fd` sends nothing. Nothing is consumed.
 *
 * Afterwards: close `fd` once the move is committed, or give the leg back with {@link uncaptureLeg}.
 * Errors (source "kernel"): EPERM; LEG_NOT_MOVABLE; LEG_NOT_QUIET when bytes keep arriving (retryable). After an
 * error the leg is out of repair mode again.
 */
export function captureLeg(fd: number): LegSnapshot {
  return atOnce(captureSteps(fd), OWN_NETWORK);
}

export function* captureSteps(fd: number): LegSteps<LegSnapshot> {
  yield [{ do: "repair", fd, sendBytes: 0, receiveBytes: 0 }];
  let repairWindow = NO_WINDOW;
  try {
    repairWindow = closeSendWindow(fd);
    for (let attempt = 0; attempt < CAPTURE_TRIES_MAX; attempt++) {
      const snapshot = readLeg(fd, repairWindow);
      if (snapshot !== null) return snapshot;
      // an acknowledgement opened it again
      const now = closeSendWindow(fd);
      if (now.snd_wnd > 0) repairWindow = now;
    }
    throw fail("LEG_NOT_QUIET", "the leg's queues keep changing; shield the leg or freeze its peer first");
  } catch (error) {
    yield* uncaptureSteps(fd, { window: repairWindow });
    throw error;
  }
}

/**
 * Rollback: the leg goes on as if nothing had happened. `probe`: ask the peer for a sign of life, for what it sent while
 * the leg was shielded (ESTABLISHED only). SO_REUSEADDR, which leaving repair mode clears, is set, as on every accepted
 * socket of a listener that has it.
 */
export function uncaptureLeg(
  fd: number,
  snapshot: Pick<LegSnapshot, "window">,
  options: { probe?: boolean } = {},
): void {
  atOnce(uncaptureSteps(fd, snapshot, options), OWN_NETWORK);
}

/** @param options.shielded it is, and the shield is taken away when the windows are as they were: what arrives then counts from those */
export function* uncaptureSteps(
  fd: number,
  snapshot: Pick<LegSnapshot, "window">,
  options: { probe?: boolean; shielded?: boolean } = {},
): LegSteps<void> {
  if (snapshot.window.snd_wnd > 0) setWindow(fd, snapshot.window);
  yield [
    ...(options.shielded === true ? [{ do: "filter", fd, drop: "none" } as const] : []),
    { do: "speak", fd, probe: options.probe === true },
  ];
  sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_REUSEADDR, 1);
}

/**
 * Gives the windows as they are. Against a send window of 0 the kernel sends no byte that it has not sent before, whichever
 * timer fires: a peer that got one would acknowledge what the adopted leg believes not sent yet, and be refused for good.
 */
function closeSendWindow(fd: number): RepairWindow {
  const size = sock.getsockoptBuffer(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_WINDOW, window);
  if (size !== window.length) {
    throw fail(
      "KERNEL_UNKNOWN",
      `struct tcp_repair_window has ${size} bytes on this kernel, expected ${window.length}`,
    );
  }
  const open: RepairWindow = {
    snd_wl1: window.readUInt32LE(0),
    snd_wnd: window.readUInt32LE(4),
    max_window: window.readUInt32LE(8),
    rcv_wnd: window.readUInt32LE(12),
    rcv_wup: window.readUInt32LE(16),
  };
  if (open.snd_wnd > 0 && descriptor.ioctlInt(fd, sock.SIOCOUTQ) > 0) setWindow(fd, { ...open, snd_wnd: 0 });
  return open;
}

function setWindow(fd: number, repairWindow: RepairWindow): void {
  sock.setsockoptBuffer(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_WINDOW, encodeWindow(repairWindow));
}

/**
 * struct tcp_repair_window.
 *
 * Where a receive buffer that was made smaller has no room for what is on its way, the kernel takes back the window that it had announced
 * (ICSK_ACK_NOMEM in tcp_select_window), and the segment that told the peer's window last may lie behind its new end. The kernel refuses to be told
 * so again (tcp_repair_set_window: EINVAL). An earlier one is right as well: it only says from which segments on the peer's window is believed.
 */
export function encodeWindow(repairWindow: RepairWindow): Buffer {
  const receiveEnd = repairWindow.rcv_wup + repairWindow.rcv_wnd;
  const isBeyond = ((repairWindow.snd_wl1 - receiveEnd) | 0) > 0;
  window.writeUInt32LE(isBeyond ? receiveEnd >>> 0 : repairWindow.snd_wl1, 0);
  window.writeUInt32LE(repairWindow.snd_wnd, 4);
  window.writeUInt32LE(repairWindow.max_window, 8);
  window.writeUInt32LE(repairWindow.rcv_wnd, 12);
  window.writeUInt32LE(repairWindow.rcv_wup, 16);
  return window;
}

/**
 * null: bytes or an acknowledgement arrived while reading, try again. A segment that another CPU had let past the filter
 * just before the shield was up may still come.
 */
function readLeg(fd: number, repairWindow: RepairWindow): LegSnapshot | null {
  // the send queue first: while SEND is selected a timer or an ACK would mark unsent bytes as sent without sending them
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_QUEUE, sock.TCP_SEND_QUEUE);
  const sendSeq = sock.getsockoptUint(fd, sock.IPPROTO_TCP, sock.TCP_QUEUE_SEQ);
  const outq = descriptor.ioctlInt(fd, sock.SIOCOUTQ);
  const sendPeek = outq === 0 ? NOTHING : peek(fd, outq + PARTLY_ACKED_BYTES_MAX);

  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_QUEUE, sock.TCP_RECV_QUEUE);
  const unsent = outq === 0 ? 0 : descriptor.ioctlInt(fd, sock.SIOCOUTQNSD);
  const receiveSeq = sock.getsockoptUint(fd, sock.IPPROTO_TCP, sock.TCP_QUEUE_SEQ);
  const inq = descriptor.ioctlInt(fd, sock.SIOCINQ);
  const unread = inq === 0 ? NOTHING : peek(fd, inq);

  const state = readState(fd);
  const options = tcpInfo[5] as number;
  const scales = tcpInfo[6] as number;
  const family = localFamily(fd);
  if (state === "CLOSE") return closedLegOf(fd, family.local, unread);

  const snapshot: LegSnapshot = {
    family: family.family,
    local: family.local,
    remote: unmapped(sock.getpeername(fd)),
    state,
    mss: sock.getsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_MAXSEG),
    sackOk: (options & sock.TCPI_OPT_SACK) !== 0,
    windowScale: (options & sock.TCPI_OPT_WSCALE) === 0 ? null : { snd: scales & 0x0f, rcv: scales >> 4 },
    timestamp:
      (options & sock.TCPI_OPT_TIMESTAMPS) === 0
        ? null
        : sock.getsockoptUint(fd, sock.IPPROTO_TCP, sock.TCP_TIMESTAMP),
    window: repairWindow,
    receive: { seq: receiveSeq, bytes: unread },
    send: { seq: sendSeq, ...sendQueue(state, outq, unsent, sendPeek) },
    noDelay: sock.getsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NODELAY) !== 0,
    keepAlive: sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_KEEPALIVE) !== 0,
  };
  // data or a FIN that arrived meanwhile moves rcv_nxt; an acknowledgement, and what it lets go, the send queue
  const quiet =
    sock.getsockoptUint(fd, sock.IPPROTO_TCP, sock.TCP_QUEUE_SEQ) === receiveSeq &&
    unread.length === inq &&
    (outq === 0 ||
      (descriptor.ioctlInt(fd, sock.SIOCOUTQ) === outq &&
        descriptor.ioctlInt(fd, sock.SIOCOUTQNSD) === unsent));
  return quiet ? snapshot : null;
}

/** Takes our FIN out of the counts and an already acknowledged head out of the bytes. */
function sendQueue(
  state: LegState,
  outq: number,
  unsent: number,
  peeked: Buffer,
): { bytes: Buffer; unsentBytes: number } {
  const fin = finUnacked(state) ? 1 : 0;
  const length = Math.max(0, outq - fin);
  const bytes = peeked.length > length ? peeked.subarray(peeked.length - length) : peeked;
  return { bytes, unsentBytes: Math.min(bytes.length, Math.max(0, unsent - fin)) };
}

/** At most `most` bytes of the selected queue, in memory of their own. */
function peek(fd: number, most: number): Buffer {
  scratch ??= Buffer.allocUnsafeSlow(SCRATCH_BYTES);
  const into = most <= scratch.length ? scratch : Buffer.allocUnsafeSlow(most);
  const view = most < into.length ? into.subarray(0, most) : into;
  const length = sock.recv(fd, view, sock.MSG_PEEK | sock.MSG_DONTWAIT);
  return into === scratch ? Buffer.from(view.subarray(0, length)) : view.subarray(0, length);
}

/**
 * CLOSE is a reset leg, or one that both sides have closed in order (TIME_WAIT belongs to the kernel then, not to the
 * descriptor). Only the latter's unread bytes still belong to somebody. POLLERR tells them apart without taking the
 * error from a later rollback.
 */
function closedLegOf(fd: number, local: Endpoint, unread: Buffer): LegSnapshot {
  const reset = (polling.pollNow(fd, 0) & polling.POLLERR) !== 0;
  const nobody = { address: local.address.includes(":") ? "::" : "0.0.0.0", port: 0 };
  return closedLeg(local, nobody, reset ? NOTHING : unread);
}

function localFamily(fd: number): { local: Endpoint; family: 4 | 6 } {
  const local = unmapped(sock.getsockname(fd));
  return { local, family: local.address.includes(":") ? 6 : 4 };
}

/** A dual-stack listener's IPv4 connection is an IPv4 connection. */
function unmapped({ address, port }: Endpoint): Endpoint {
  return { address: ipText.unmapped(address), port };
}
