/**
 * Gives a socket that no peer is left for what its connection had left to say: bytes that were not read yet, then the end
 * (FIN, or the error of a reset or a refused connect). CRIU carries none of that: it restores a connection that was reset as
 * one that is open, or not at all.
 *
 * The end is a real one, from a peer of ours on the loopback device, so that poll(2), read(2), write(2) and SO_ERROR answer as
 * they did. What differs: the socket's own name (getsockname(2)) is a loopback address, and an error other than ECONNRESET or
 * ECONNREFUSED (a time-out, an unreachable host) comes back as the one of these that fits.
 * Sources: tcp_reset() and tcp_recvmsg_locked() in net/ipv4, man page tcp(7).
 */

import { constants } from "node:fs";
import { isIPv4 } from "node:net";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as libc from "#proxy/kernel/libc.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { hasArrived } from "./over-loopback.ts";

/**
 * fin: the peer had finished; reset: the connection was reset; refused: it never came to be. `isSeen`: the application has
 * had the error, and reads the end of the stream from now on.
 */
export interface ConnectionEnd {
  how: "fin" | "reset" | "refused";
  isSeen: boolean;
  unread: Buffer;
}

/** include/uapi/asm-generic/poll.h: the peer has finished */
const POLLRDHUP = 0x2000;

/** struct tcp_info (include/uapi/linux/tcp.h): where these fields are */
const INFO_BYTES = 144;
const INFO_STATE = 0;
const INFO_BYTES_ACKED = 120;
const INFO_BYTES_RECEIVED = 128;
const INFO_SEGMENTS_IN = 140;

/** Of an Internet TCP socket: its state (include/net/tcp_states.h), and whether it has been ESTABLISHED since it began to connect. */
export function tcpInfo(fd: number): { state: number; wasEstablished: boolean } {
  const info = Buffer.alloc(INFO_BYTES);
  sock.getsockoptBuffer(fd, sock.IPPROTO_TCP, sock.TCP_INFO, info);
  return {
    state: info.readUInt8(INFO_STATE),
    // a reset that answers a SYN is the only segment of its connection
    wasEstablished:
      info.readBigUInt64LE(INFO_BYTES_ACKED) > 0n ||
      info.readBigUInt64LE(INFO_BYTES_RECEIVED) > 0n ||
      info.readUInt32LE(INFO_SEGMENTS_IN) > 1,
  };
}

/** A copy of what the application has not read; nothing is taken, and no error. At most `bytesMax` of it. */
export function unreadOf(fd: number, bytesMax: number): Buffer {
  const bytes = Buffer.alloc(Math.min(descriptor.ioctlInt(fd, sock.SIOCINQ), bytesMax));
  if (bytes.length === 0) return bytes;
  return bytes.subarray(0, sock.recv(fd, bytes, sock.MSG_PEEK | sock.MSG_DONTWAIT));
}

/** What a socket in state CLOSE that has had a peer still says. Takes nothing from it. */
export function endOf(fd: number, bytesMax: number): ConnectionEnd {
  const hasError = (polling.pollNow(fd, 0) & polling.POLLERR) !== 0;
  return {
    how: tcpInfo(fd).wasEstablished ? "reset" : "refused",
    isSeen: !hasError,
    unread: unreadOf(fd, bytesMax),
  };
}

/**
 * Lets a socket that is not connected come to that end. Its application must be stopped.
 * @throws HoldfastError when the socket cannot reach the loopback device (it is bound to another one)
 */
export function end(fd: number, { how, isSeen, unread }: ConnectionEnd): void {
  const isIPv6 = domainOf(fd) === ipText.AF_INET6;
  sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_ERROR); // one left from before would be taken for that of the connect
  withoutBlocking(fd, () => {
    const listener = listenOnLoopback(isIPv6);
    let peer = -1;
    try {
      if (how !== "refused") {
        connectTo(fd, listener.at);
        hasArrived(() => isReady(listener.fd, polling.POLLIN));
        peer = sock.accept(listener.fd, sock.SOCK_CLOEXEC | sock.SOCK_NONBLOCK);
      }
    } finally {
      descriptor.close(listener.fd);
    }
    if (how === "refused") {
      sock.tryConnect(fd, listener.at);
      hasArrived(() => isReady(fd, polling.POLLERR));
      return;
    }
    try {
      give(peer, unread);
      if (how === "reset") abortOnClose(peer);
    } finally {
      descriptor.close(peer);
    }
    hasArrived(() => isReady(fd, how === "reset" ? polling.POLLERR : POLLRDHUP));
  });
  if (isSeen) sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_ERROR);
}

/** Begins to connect and does not wait, whatever the application's socket does. */
export function beginConnecting(fd: number, to: Endpoint): void {
  sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_ERROR);
  const isMapped = isIPv4(to.address) && domainOf(fd) === ipText.AF_INET6;
  const address = isMapped ? `::ffff:${to.address}` : to.address;
  withoutBlocking(fd, () => connectTo(fd, { ...to, address }));
}

function domainOf(fd: number): number {
  return sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_DOMAIN);
}

function connectTo(fd: number, to: Endpoint): void {
  const errno = -sock.tryConnect(fd, to);
  if (errno === 0) return;
  throw new HoldfastError(`a socket of the application cannot be connected to ${to.address}:${to.port}`, {
    code: libc.errnoName(errno),
    source: "kernel",
  });
}

function withoutBlocking(fd: number, work: () => void): void {
  const flags = descriptor.fileFlags(fd);
  descriptor.setFileFlags(fd, flags | constants.O_NONBLOCK);
  try {
    work();
  } finally {
    descriptor.setFileFlags(fd, flags);
  }
}

function listenOnLoopback(isIPv6: boolean): { fd: number; at: Endpoint } {
  const fd = sock.tcpSocket(isIPv6 ? 6 : 4);
  try {
    sock.bind(fd, { address: isIPv6 ? "::1" : "127.0.0.1", port: 0 });
    sock.listen(fd, 1);
    return { fd, at: sock.getsockname(fd) };
  } catch (error) {
    descriptor.close(fd);
    throw error;
  }
}

/** As far as the receive buffer goes. */
function give(fd: number, bytes: Buffer): void {
  if (bytes.length === 0) return;
  sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_SNDBUFFORCE, bytes.length);
  let at = 0;
  while (at < bytes.length) {
    const sent = sock.send(fd, bytes.subarray(at), sock.MSG_DONTWAIT);
    if (sent <= 0) break;
    at += sent;
  }
  // what was not acknowledged a reset would throw away
  hasArrived(() => descriptor.ioctlInt(fd, sock.SIOCOUTQ) === 0);
}

function isReady(fd: number, events: number): boolean {
  return (polling.pollNow(fd, events) & events) !== 0;
}

/** socket(7), SO_LINGER with a time of 0: close(2) resets */
function abortOnClose(fd: number): void {
  const linger = Buffer.alloc(8);
  linger.writeInt32LE(1, 0);
  sock.setsockoptBuffer(fd, sock.SOL_SOCKET, sock.SO_LINGER, linger);
}
