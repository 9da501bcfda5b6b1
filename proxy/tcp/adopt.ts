/**
 * Adopt and release: build a leg from its snapshot.
 *
 * Two steps, because the peer of an upstream leg does not exist yet when the leg is built:
 *   adoptLeg    socket in repair mode with both queues, options, windows and, where it was sent, our FIN. Sends nothing.
 *   releaseLeg  repair off; unsent bytes and the peer's FIN; shield off. The first moment a packet may leave.
 *
 * Our own FIN, once sent, is put back silently (shutdown while the SEND queue is under repair), so that an ACK or data
 * that a restored peer sends before the release meets a socket that knows it. The peer's FIN can only be injected
 * (inject.ts), which makes the kernel send a duplicate ACK: that belongs to the release.
 *
 * What a fresh socket does not know: congestion window, round-trip time, the peer's last timestamp. Its first
 * retransmission time-out would be 3 s (RFC 6298 5.7: no sample); it is capped at 1 s where the kernel allows (6.15).
 * Sources: net/ipv4/tcp.c (tcp_repair_set_window, tcp_repair_options_est, tcp_send_rcvq), tcp_output.c (tcp_connect,
 * tcp_write_xmit), CRIU's description of the protocol.
 */

import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { type Network, OWN_NETWORK, tcpSocketOf } from "#proxy/kernel/network.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readState } from "#proxy/kernel/tcp-state.ts";
import { fail } from "../contract/error-codes.ts";
import type { AdoptedLeg, Side } from "../contract/leg-surgeon.ts";
import type { LegSnapshot, LegState } from "../contract/snapshot.ts";
import { encodeWindow, finReceived, finSent } from "./capture.ts";
import { FLAG_ACK, FLAG_FIN } from "./inject.ts";
import { atOnce, type LegSteps, WAIT } from "./leg-steps.ts";

/** One write under repair: the kernel allocates each as one buffer of at most 17 pages. */
const CHUNK_BYTES = 64 * 1024;
/** TCP_MAXSEG takes no more; a loopback leg's larger MSS is reached by TCP_REPAIR_OPTIONS. */
const MAXSEG_MAX = 32767;
const MAXSEG_MIN = 88;
const FIRST_RTO_MS_MAX = 1000;
const RTO_MS_MAX = 120_000;
/**
 * An injected segment normally arrives before sendto returns. It takes longer on a busy softirq thread, and goes the
 * wrong way where an IPv6 address has only just been added: the kernel installs its local route from a work queue.
 */
const INJECT_TRIES_MAX = 100;

const TCPOPT_MSS = 2;
const TCPOPT_WINDOW = 3;
const TCPOPT_SACK_PERM = 4;
const TCPOPT_TIMESTAMP = 8;

export interface AdoptOptions {
  /** Drop every incoming segment until {@link releaseLeg}: for a leg whose peer is alive. */
  shielded: boolean;
  /**
   * The local address may come to this node later, at the latest with the release (IP_TRANSPARENT, cleared again at
   * release). Saves the peer an RST: where the address is there before the leg, a segment meets no socket.
   */
  addressAbsent?: boolean;
  /** where the leg belongs; default: the caller's */
  network?: Network;
  /** name of the device that link-local IPv6 addresses are on here; without it they cannot be connected to */
  device?: string | null;
}

export interface ReleaseOptions {
  /**
   * Send a window probe (ESTABLISHED only): the peer answers with what it has and its window, which makes up for ACKs
   * and window updates lost while the leg was shielded. Wanted where `shielded` was.
   */
  probe?: boolean;
  /** that the leg was adopted in; default: the caller's */
  network?: Network;
}

/**
 * The leg as a non-blocking, close-on-exec descriptor in repair mode; nothing is sent. The local address must be on this
 * node (see {@link AdoptOptions.addressAbsent}), in that network namespace; a listener on the same port is no hindrance.
 *
 * Next: {@link releaseLeg}, or close(fd), which sends nothing either.
 * Errors (source "kernel"): LEG_NOT_ADOPTABLE (state CLOSE); EADDRNOTAVAIL (address missing, or 4-tuple in use here);
 * EPERM; LEG_QUEUE_REFUSED (out of memory). Nothing is left behind.
 */
export function adoptLeg(snapshot: LegSnapshot, options: AdoptOptions): number {
  return atOnce(adoptSteps(snapshot, options), options.network ?? OWN_NETWORK);
}

export function* adoptSteps(snapshot: LegSnapshot, options: AdoptOptions): LegSteps<number> {
  if (snapshot.state === "CLOSE") {
    throw fail(
      "LEG_NOT_ADOPTABLE",
      "a leg in state CLOSE has nothing to adopt; reset the session's other leg",
    );
  }
  const fd = tcpSocketOf(options.network ?? OWN_NETWORK, snapshot.family);
  try {
    yield* build(fd, snapshot, options);
    return fd;
  } catch (error) {
    descriptor.close(fd);
    throw error;
  }
}

function* build(fd: number, snapshot: LegSnapshot, options: AdoptOptions): LegSteps<void> {
  const { receive, send } = snapshot;
  const sent = send.bytes.subarray(0, send.bytes.length - send.unsentBytes);
  const receiveEnd = receive.seq - (finReceived(snapshot.state) ? 1 : 0);
  const sendEnd = send.seq - (finSent(snapshot.state) ? 1 : 0);

  // as much as the peer was promised, or the adopted leg would drop what the captured one would have taken
  const receiveBytes = receive.bytes.length + snapshot.window.rcv_wnd;
  // its peer may not exist yet: a retransmission would be answered with RST
  const drop = options.shielded ? "all" : sent.length > 0 || finSent(snapshot.state) ? "reset" : "none";
  yield [
    { do: "repair", fd, sendBytes: send.bytes.length, receiveBytes },
    ...(drop === "none" ? [] : [{ do: "filter", fd, drop } as const]),
    ...(options.addressAbsent === true ? [{ do: "foresee", fd, family: snapshot.family } as const] : []),
  ];
  if (sent.length > 0 || finSent(snapshot.state)) limitRto(fd, FIRST_RTO_MS_MAX);

  setQueueSeq(fd, sock.TCP_RECV_QUEUE, receiveEnd - receive.bytes.length);
  setQueueSeq(fd, sock.TCP_SEND_QUEUE, sendEnd - send.bytes.length);
  sock.bind(fd, snapshot.local, scopeOf(snapshot.local.address, options.device));
  // at connect, or the effective MSS stays at 536 until the route changes: TCP_REPAIR_OPTIONS sets the clamp only
  if (snapshot.mss >= MAXSEG_MIN) {
    sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_MAXSEG, Math.min(snapshot.mss, MAXSEG_MAX));
  }
  sock.connect(fd, snapshot.remote, scopeOf(snapshot.remote.address, options.device));
  sock.setsockoptBuffer(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_OPTIONS, repairOptions(snapshot));
  if (snapshot.timestamp !== null) {
    sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_TIMESTAMP, snapshot.timestamp);
  }

  fillQueue(fd, sock.TCP_RECV_QUEUE, receive.bytes);
  fillQueue(fd, sock.TCP_SEND_QUEUE, sent);
  sock.setsockoptBuffer(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_WINDOW, repairWindow(snapshot, receiveEnd));
  if (finSentBeforeRelease(snapshot)) {
    sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_QUEUE, sock.TCP_SEND_QUEUE);
    sock.shutdown(fd, sock.SHUT_WR);
  }
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_QUEUE, sock.TCP_NO_QUEUE);
  if (snapshot.noDelay) sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NODELAY, 1);
  if (snapshot.keepAlive) sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_KEEPALIVE, 1);
  // Both sizes back to autotuning: it only ever grows them, so the leg keeps room for what it had; before 5.15 they stay.
  // Not at the release, which would take away the bounds that the leg has been given meanwhile.
  sock.trySetsockoptInt(fd, sock.SOL_SOCKET, sock.SO_BUF_LOCK, 0, "ENOPROTOOPT");
}

/**
 * From here on the leg is a live socket. Returns the unsent bytes the kernel did not take (normally none): the caller
 * writes them before anything else, and where the snapshot's state has our FIN (FIN_WAIT1, CLOSING, LAST_ACK) ends the
 * socket after them; with nothing left over the FIN is already sent.
 *
 * Next: `TcpLeg.attach`.
 * Errors (source "kernel"): LEG_FIN_NOT_RESTORED when the injected FIN does not arrive (a firewall on loopback).
 */
export function releaseLeg(fd: number, snapshot: LegSnapshot, options: ReleaseOptions = {}): Buffer {
  const { probe = false, network = OWN_NETWORK } = options;
  return atOnce(releaseSteps({ fd, snapshot, side: "upstream", probe }), network);
}

export function* releaseSteps({ fd, snapshot, side, probe }: AdoptedLeg): LegSteps<Buffer> {
  yield [
    { do: "filter", fd, drop: "none" },
    { do: "speak", fd, probe },
  ];
  sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_REUSEADDR, 1);
  endTransparent(fd, snapshot.family);
  const { send } = snapshot;
  const rest =
    send.unsentBytes === 0 ? send.bytes.subarray(0, 0) : write(fd, send.bytes.subarray(-send.unsentBytes));
  if (finReceived(snapshot.state)) yield* injectPeerFin(fd, snapshot, side);
  if (finSent(snapshot.state) && rest.length === 0 && !finSentBeforeRelease(snapshot)) {
    sock.shutdown(fd, sock.SHUT_WR);
  }
  if (snapshot.state === "FIN_WAIT2") yield* injectPeerAck(fd, snapshot, side);
  restoreBuffers(fd, snapshot);
  return rest;
}

/** Our FIN had left (or would have, right behind the last byte), and nothing stands before it. */
function finSentBeforeRelease(snapshot: LegSnapshot): boolean {
  // LAST_ACK: the peer's FIN comes first, or the socket would be in CLOSING
  return finSent(snapshot.state) && snapshot.state !== "LAST_ACK" && snapshot.send.unsentBytes === 0;
}

/** fe80::/10 (RFC 4291 2.5.6): the same address may be on every link. */
function scopeOf(address: string, device: string | null | undefined): number {
  if (device == null || !/^fe[89ab]/i.test(address)) return 0;
  return ipText.deviceIndex(device);
}

// ---- queues

function setQueueSeq(fd: number, queue: number, seq: number): void {
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_QUEUE, queue);
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_QUEUE_SEQ, seq | 0);
}

function fillQueue(fd: number, queue: number, bytes: Buffer): void {
  if (bytes.length === 0) return;
  sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR_QUEUE, queue);
  const rest = write(fd, bytes);
  if (rest.length === 0) return;
  throw fail(
    "LEG_QUEUE_REFUSED",
    `the kernel took ${bytes.length - rest.length} of ${bytes.length} bytes of a leg's queue; raise net.ipv4.tcp_mem or free memory`,
  );
}

/** Returns what was not taken. */
function write(fd: number, bytes: Buffer): Buffer {
  let at = 0;
  let chunkBytes = CHUNK_BYTES;
  while (at < bytes.length) {
    const taken = sock.send(fd, bytes.subarray(at, at + chunkBytes), sock.MSG_DONTWAIT);
    if (taken > 0) at += taken;
    else if (chunkBytes > 1024) chunkBytes >>= 2;
    else break;
  }
  return bytes.subarray(at);
}

/** Without a privilege: only its beginning takes one. */
function endTransparent(fd: number, family: 4 | 6): void {
  if (family === 4) sock.setsockoptInt(fd, sock.IPPROTO_IP, sock.IP_TRANSPARENT, 0);
  else sock.setsockoptInt(fd, sock.IPPROTO_IPV6, sock.IPV6_TRANSPARENT, 0);
}

function restoreBuffers(fd: number, snapshot: LegSnapshot): void {
  if (snapshot.send.bytes.length > 0 || finSent(snapshot.state)) limitRto(fd, RTO_MS_MAX);
  if (snapshot.mss >= MAXSEG_MIN) sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_MAXSEG, 0);
}

function limitRto(fd: number, rtoMsMax: number): void {
  // a refinement: on an older kernel the leg is right without it
  sock.trySetsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_RTO_MAX_MS, rtoMsMax, "ENOPROTOOPT");
}

// ---- options and windows

/** struct tcp_repair_opt[]: u32 code, u32 value */
function repairOptions(snapshot: LegSnapshot): Buffer {
  const options: [code: number, value: number][] = [];
  if (snapshot.sackOk) options.push([TCPOPT_SACK_PERM, 0]);
  // always: connect under repair has already chosen a receive scale of its own, and would announce windows with it
  const scale = snapshot.windowScale ?? { snd: 0, rcv: 0 };
  options.push([TCPOPT_WINDOW, scale.snd | (scale.rcv << 16)]);
  if (snapshot.timestamp !== null) options.push([TCPOPT_TIMESTAMP, 0]);
  options.push([TCPOPT_MSS, snapshot.mss]);
  const bytes = Buffer.alloc(options.length * 8);
  options.forEach(([code, value], index) => {
    bytes.writeUInt32LE(code, index * 8);
    bytes.writeUInt32LE(value, index * 8 + 4);
  });
  return bytes;
}

/** The peer's FIN is not in yet: what has been acknowledged ends before it. */
function repairWindow(snapshot: LegSnapshot, receiveEnd: number): Buffer {
  const { window } = snapshot;
  const beyond = (window.rcv_wup - receiveEnd) | 0;
  const back = Math.max(beyond, 0);
  return encodeWindow({ ...window, rcv_wnd: window.rcv_wnd + back, rcv_wup: (window.rcv_wup - back) >>> 0 });
}

// ---- the peer's half of a half-closed leg

function* injectPeerFin(fd: number, snapshot: LegSnapshot, side: Side): LegSteps<void> {
  const finSeq = (snapshot.receive.seq - 1) >>> 0;
  // acknowledges nothing new: our own FIN and unacknowledged bytes stay so
  const ack = (snapshot.send.seq - (finSent(snapshot.state) ? 1 : 0) - snapshot.send.bytes.length) >>> 0;
  yield* inject(fd, snapshot, { seq: finSeq, ack, flags: FLAG_FIN | FLAG_ACK }, finReceived, side);
}

/** FIN_WAIT2: the peer has acknowledged our FIN and would do so again only after a retransmission. */
function* injectPeerAck(fd: number, snapshot: LegSnapshot, side: Side): LegSteps<void> {
  const segment = { seq: snapshot.receive.seq, ack: snapshot.send.seq, flags: FLAG_ACK };
  yield* inject(fd, snapshot, segment, (state) => state !== "FIN_WAIT1", side);
}

/** Does nothing where the peer itself has been faster, or has reset the leg. */
function* inject(
  fd: number,
  snapshot: LegSnapshot,
  segment: { seq: number; ack: number; flags: number },
  arrived: (state: LegState) => boolean,
  side: Side,
): LegSteps<void> {
  const window = Math.floor(snapshot.window.snd_wnd / 2 ** (snapshot.windowScale?.snd ?? 0));
  for (let attempt = 0; attempt < INJECT_TRIES_MAX; attempt++) {
    const state = readState(fd);
    if (state === "CLOSE" || arrived(state)) return;
    if (attempt > 0) yield WAIT;
    // again each time: a copy is an old segment to TCP, and a lost one did not come this way
    const { remote: from, local: to } = snapshot;
    yield [{ do: "inject", side, segment: { from, to, ...segment, window } }];
  }
  throw fail(
    "LEG_FIN_NOT_RESTORED",
    `a segment injected for ${snapshot.local.address}:${snapshot.local.port} did not arrive; let the loopback device through the firewall`,
  );
}
