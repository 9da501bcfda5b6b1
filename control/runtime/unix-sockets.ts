/**
 * Unix sockets of a network namespace, by sock_diag(7): who is connected to whom, and what waits.
 * Sources: include/uapi/linux/{netlink,sock_diag,unix_diag}.h, net/unix/diag.c.
 */
import * as netlink from "#proxy/kernel/netlink.ts";
import { type Network, OWN_NETWORK } from "#proxy/kernel/network.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { networkOf } from "./network-namespace.ts";

export interface UnixSocket {
  inode: number;
  /** SOCK_STREAM, … */
  type: number;
  /** TCP_ESTABLISHED, TCP_LISTEN or TCP_CLOSE */
  state: number;
  /** a path, `@NAME` of an abstract one; null without */
  name: string | null;
  /** 0: none, or one that has gone */
  peer: number;
  /** of a listener: inodes of the clients nobody has accepted; 0: one that has gone again */
  waiting: number[];
  /** unread bytes; of a listener: connections that wait */
  receiveQueue: number;
  /** bytes its peer has not read; of a listener: its backlog */
  sendQueue: number;
  /** 1: receiving is shut down, 2: sending, 3: both */
  shutdown: number;
}

/** struct unix_diag_req, struct unix_diag_msg */
const REQUEST_BYTES = 24;
const MESSAGE_BYTES = 16;
const UDIAG_SHOW = 0x1 | 0x4 | 0x8 | 0x10; // NAME, PEER, ICONS, RQLEN
const UNIX_DIAG_NAME = 0;
const UNIX_DIAG_PEER = 2;
const UNIX_DIAG_ICONS = 3;
const UNIX_DIAG_RQLEN = 4;
const UNIX_DIAG_SHUTDOWN = 6;

/** Of the network, by inode. About 2 µs a socket. */
export function listUnixSockets(network: Network = OWN_NETWORK): Map<number, UnixSocket> {
  return network.withDiag((fd) => {
    const request = netlink.dumpRequest(netlink.SOCK_DIAG_BY_FAMILY, REQUEST_BYTES);
    request.writeUInt8(sock.AF_UNIX, netlink.NLMSG_HEADER_BYTES);
    request.writeUInt32LE(0xffffffff, netlink.NLMSG_HEADER_BYTES + 4);
    request.writeUInt32LE(UDIAG_SHOW, netlink.NLMSG_HEADER_BYTES + 12);
    const messages = netlink.dump(netlink.conversation(fd), request, MESSAGE_BYTES);
    return new Map(messages.map(readMessage).map((socket) => [socket.inode, socket]));
  });
}

/**
 * As {@link listUnixSockets}, of the network that these processes of a container are in, and of the caller's: a path leads from one
 * to a socket of the other.
 */
export function listUnixSocketsAround(pids: number[]): Map<number, UnixSocket> {
  return new Map([...listUnixSockets(), ...listUnixSockets(networkOf(pids))]);
}

/** struct unix_diag_msg, then attributes */
function readMessage(message: Buffer): UnixSocket {
  const socket: UnixSocket = {
    type: message.readUInt8(1),
    state: message.readUInt8(2),
    inode: message.readUInt32LE(4),
    name: null,
    peer: 0,
    waiting: [],
    receiveQueue: 0,
    sendQueue: 0,
    shutdown: 0,
  };
  for (let at = MESSAGE_BYTES; at + 4 <= message.length; ) {
    const length = message.readUInt16LE(at);
    if (length < 4 || at + length > message.length) throw netlink.unexpectedAnswer();
    const value = message.subarray(at + 4, at + length);
    const type = message.readUInt16LE(at + 2);
    if (type === UNIX_DIAG_NAME && value.length > 0)
      socket.name = value[0] === 0 ? `@${value.subarray(1)}` : value.toString().replace(/\0.*$/, "");
    else if (type === UNIX_DIAG_PEER) socket.peer = value.readUInt32LE(0);
    else if (type === UNIX_DIAG_ICONS)
      for (let index = 0; index + 4 <= value.length; index += 4)
        socket.waiting.push(value.readUInt32LE(index));
    else if (type === UNIX_DIAG_SHUTDOWN) socket.shutdown = value.readUInt8(0);
    else if (type === UNIX_DIAG_RQLEN) {
      socket.receiveQueue = value.readUInt32LE(0);
      socket.sendQueue = value.readUInt32LE(4);
    }
    at += (length + 3) & ~3;
  }
  return socket;
}
