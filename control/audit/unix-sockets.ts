/**
 * Unix sockets of the caller's network namespace, by sock_diag(7): what no option tells, as who is connected with whom.
 * Sources: include/uapi/linux/unix_diag.h, net/unix/diag.c.
 */
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as kernel from "#proxy/tcp/kernel.ts";

export interface UnixSocket {
  inode: number;
  /** TCP_ESTABLISHED, TCP_LISTEN or TCP_CLOSE */
  state: number;
  /** 0: not connected */
  peer: number;
  /** connections that wait for accept(2), by inode */
  waiting: number[];
  /** bytes to be read; of one that listens: connections */
  receiveQueue: number;
  /** bytes sent and not read; of one that listens: the backlog */
  sendQueue: number;
  /** 1: receiving is shut down, 2: sending, 3: both */
  shutdown: number;
}

const NLMSG_HEADER_BYTES = 16;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const NLM_F_REQUEST = 0x1;
const NLM_F_DUMP = 0x300;
const SOCK_DIAG_BY_FAMILY = 20;
const UDIAG_SHOW_PEER = 0x04;
const UDIAG_SHOW_ICONS = 0x08;
const UDIAG_SHOW_RQLEN = 0x10;
const UNIX_DIAG_PEER = 2;
const UNIX_DIAG_ICONS = 3;
const UNIX_DIAG_RQLEN = 4;
const UNIX_DIAG_SHUTDOWN = 6;
/** struct unix_diag_req, struct unix_diag_msg */
const REQUEST_BYTES = 24;
const MESSAGE_BYTES = 16;
const ANSWER_BYTES = 64 * 1024;
const ANSWERS_MAX = 100_000;

/** By inode. About 2 µs a socket. */
export function listUnixSockets(): Map<number, UnixSocket> {
  const fd = kernel.socket(
    kernel.AF_NETLINK,
    kernel.SOCK_RAW | kernel.SOCK_CLOEXEC,
    kernel.NETLINK_SOCK_DIAG,
  );
  try {
    const request = Buffer.alloc(NLMSG_HEADER_BYTES + REQUEST_BYTES);
    request.writeUInt32LE(request.length, 0);
    request.writeUInt16LE(SOCK_DIAG_BY_FAMILY, 4);
    request.writeUInt16LE(NLM_F_REQUEST | NLM_F_DUMP, 6);
    request.writeUInt8(kernel.AF_UNIX, NLMSG_HEADER_BYTES);
    request.writeUInt32LE(0xffffffff, NLMSG_HEADER_BYTES + 4);
    request.writeUInt32LE(UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN, NLMSG_HEADER_BYTES + 12);
    if (kernel.send(fd, request, 0) !== request.length) throw unexpected();
    return readDump(fd);
  } finally {
    kernel.close(fd);
  }
}

function readDump(fd: number): Map<number, UnixSocket> {
  const sockets = new Map<number, UnixSocket>();
  const answer = Buffer.allocUnsafe(ANSWER_BYTES);
  for (let answers = 0; answers < ANSWERS_MAX; answers++) {
    const size = kernel.recv(fd, answer, 0);
    let at = 0;
    while (at + NLMSG_HEADER_BYTES <= size) {
      const length = answer.readUInt32LE(at);
      const type = answer.readUInt16LE(at + 4);
      if (type === NLMSG_DONE) return sockets;
      if (type === NLMSG_ERROR || length < NLMSG_HEADER_BYTES + MESSAGE_BYTES || at + length > size)
        throw unexpected();
      const socket = readMessage(answer.subarray(at + NLMSG_HEADER_BYTES, at + length));
      sockets.set(socket.inode, socket);
      at += (length + 3) & ~3;
    }
  }
  throw unexpected();
}

/** struct unix_diag_msg, then attributes (struct nlattr: u16 length, u16 type) */
function readMessage(message: Buffer): UnixSocket {
  const socket: UnixSocket = {
    state: message.readUInt8(2),
    inode: message.readUInt32LE(4),
    peer: 0,
    waiting: [],
    receiveQueue: 0,
    sendQueue: 0,
    shutdown: 0,
  };
  let at = MESSAGE_BYTES;
  while (at + 4 <= message.length) {
    const length = message.readUInt16LE(at);
    if (length < 4 || at + length > message.length) throw unexpected();
    const type = message.readUInt16LE(at + 2);
    const value = message.subarray(at + 4, at + length);
    if (type === UNIX_DIAG_PEER) socket.peer = value.readUInt32LE(0);
    else if (type === UNIX_DIAG_SHUTDOWN) socket.shutdown = value.readUInt8(0);
    else if (type === UNIX_DIAG_RQLEN) {
      socket.receiveQueue = value.readUInt32LE(0);
      socket.sendQueue = value.readUInt32LE(4);
    } else if (type === UNIX_DIAG_ICONS)
      for (let icon = 0; icon + 4 <= value.length; icon += 4) socket.waiting.push(value.readUInt32LE(icon));
    at += (length + 3) & ~3;
  }
  return socket;
}

function unexpected(): HoldfastError {
  return new HoldfastError("sock_diag answered about Unix sockets in a form this version does not know", {
    code: "KERNEL_UNKNOWN",
    source: "kernel",
  });
}
