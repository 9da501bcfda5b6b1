/**
 * TCP sockets of a network namespace, the caller's or another one, by sock_diag(7) over netlink.
 *
 * Answers come at once (the kernel fills them in while we read), so everything here is synchronous: about 100 µs for one
 * port, about 1 µs more for each socket listed. IPv4 and IPv6 are asked in turn; a dual-stack socket's IPv4
 * connection is shown with IPv4 addresses. Left out: other protocols, memory and congestion details.
 * Sources: include/uapi/linux/{netlink,sock_diag,inet_diag}.h, net/ipv4/inet_diag.c.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as ipText from "./address-text.ts";
import * as libc from "./libc.ts";
import * as netlink from "./netlink.ts";
import { type Network, OWN_NETWORK } from "./network.ts";
import * as sock from "./socket.ts";

export type DiagState =
  | "ESTABLISHED"
  | "SYN_SENT"
  | "SYN_RECV"
  | "FIN_WAIT1"
  | "FIN_WAIT2"
  | "TIME_WAIT"
  | "CLOSE"
  | "CLOSE_WAIT"
  | "LAST_ACK"
  | "LISTEN"
  | "CLOSING";

export interface DiagSocket {
  state: DiagState;
  local: Endpoint;
  /** unspecified address and port 0 for LISTEN */
  remote: Endpoint;
  /** 0: no descriptor belongs to it (TIME_WAIT, SYN_RECV, accepted by nobody yet, orphaned) */
  inode: number;
  /** unread bytes; for LISTEN: connections waiting for accept(2) */
  receiveQueue: number;
  /** unacknowledged bytes; for LISTEN: the backlog's bound */
  sendQueue: number;
}

export interface ListOptions {
  /** default: all */
  states?: readonly DiagState[];
  localPort?: number;
  remotePort?: number;
}

const NUMBER_OF_STATE: Record<DiagState, number> = {
  ESTABLISHED: sock.TCP_ESTABLISHED,
  SYN_SENT: sock.TCP_SYN_SENT,
  SYN_RECV: sock.TCP_SYN_RECV,
  FIN_WAIT1: sock.TCP_FIN_WAIT1,
  FIN_WAIT2: sock.TCP_FIN_WAIT2,
  TIME_WAIT: sock.TCP_TIME_WAIT,
  CLOSE: sock.TCP_CLOSE,
  CLOSE_WAIT: sock.TCP_CLOSE_WAIT,
  LAST_ACK: sock.TCP_LAST_ACK,
  LISTEN: sock.TCP_LISTEN,
  CLOSING: sock.TCP_CLOSING,
};
const ALL_STATES = Object.keys(NUMBER_OF_STATE) as DiagState[];
const STATE_OF_NUMBER = new Map(ALL_STATES.map((state) => [NUMBER_OF_STATE[state], state]));
/** TCP_NEW_SYN_RECV: a handshake that has no socket of its own yet */
const NEW_SYN_RECV = 12;

const SOCK_DESTROY = 21;
/** struct inet_diag_req_v2 */
const REQUEST_BYTES = 56;
/** struct inet_diag_msg */
const MESSAGE_BYTES = 72;
/** struct inet_diag_sockid, its cookie last (all ones: any) */
const SOCKID_BYTES = 48;
const COOKIE_BYTES = 8;
const ANY_STATE = 0xffffffff;
/** an attribute behind it, which comes with INET_DIAG_INFO only (inet_sk_diag_fill() in net/ipv4/inet_diag.c) */
const INET_DIAG_MD5SIG = 18;
const WITH_INFO = 1 << 1;

const EOPNOTSUPP = 95;
const ESTALE = 116;

/** Every TCP socket in the states asked for, both families. */
export function listSockets(options: ListOptions = {}, network: Network = OWN_NETWORK): DiagSocket[] {
  const states = options.states ?? ALL_STATES;
  const mask = states.reduce((bits, state) => bits | (1 << NUMBER_OF_STATE[state]), 0);
  const sockets: DiagSocket[] = [];
  network.withDiag((fd) => {
    for (const family of [ipText.AF_INET, ipText.AF_INET6]) {
      for (const message of dump(fd, family, mask, options)) sockets.push(readMessage(message));
    }
  });
  return sockets;
}

/**
 * Inodes of the TCP sockets that have keys for signed segments (TCP_MD5SIG), of those that are bound, listen or are connected. Told to whoever
 * has CAP_NET_ADMIN (tcp_diag_get_aux() in net/ipv4/tcp_diag.c).
 */
export function signedSockets(network: Network = OWN_NETWORK): Set<number> {
  return network.withDiag((fd) => {
    const messages = [ipText.AF_INET, ipText.AF_INET6].flatMap((family) =>
      dump(fd, family, ANY_STATE, {}, WITH_INFO),
    );
    return new Set(
      messages
        .filter((message) => hasAttribute(message, INET_DIAG_MD5SIG))
        .map((message) => readMessage(message).inode),
    );
  });
}

/** struct rtattr: its length, itself included, and its type */
function hasAttribute(message: Buffer, wanted: number): boolean {
  for (let at = MESSAGE_BYTES; at + 4 <= message.length; ) {
    const length = message.readUInt16LE(at);
    if (length < 4 || at + length > message.length) throw netlink.unexpectedAnswer();
    if (message.readUInt16LE(at + 2) === wanted) return true;
    at += (length + 3) & ~3;
  }
  return false;
}

/**
 * Connections that wait for the application's accept(2) at this endpoint; null when nobody listens there. A listener on
 * the unspecified address counts, and so does each of several (SO_REUSEPORT).
 */
export function listenBacklog(endpoint: Endpoint, network: Network = OWN_NETWORK): number | null {
  const listeners = listenersOf(endpoint, network);
  if (listeners.length === 0) return null;
  return listeners.reduce((sum, listener) => sum + listener.receiveQueue, 0);
}

/**
 * The inode of the socket that listens there: another one is another instance of the application, since a socket is closed with the last
 * process that has it. 0: there is none. -1: there are several, and nobody knows which of them a connection is for.
 */
export function listenerOf(endpoint: Endpoint, network: Network = OWN_NETWORK): number {
  const [first, ...others] = listenersOf(endpoint, network);
  if (first === undefined) return 0;
  return others.length > 0 ? -1 : first.inode;
}

function listenersOf(endpoint: Endpoint, network: Network): DiagSocket[] {
  return listSockets({ states: ["LISTEN"], localPort: endpoint.port }, network).filter(({ local }) =>
    listensFor(local.address, endpoint.address),
  );
}

function listensFor(listening: string, address: string): boolean {
  if (listening === address || listening === "::" || address === "0.0.0.0" || address === "::") return true;
  return listening === "0.0.0.0" && !address.includes(":");
}

/** Handshakes under way towards this local port. */
export function countSynRecv(localPort: number): number {
  return listSockets({ states: ["SYN_RECV"], localPort }).length;
}

/**
 * Ends the connection with RST; its owner reads ECONNABORTED.
 *
 * In two steps, look up and destroy by cookie. With the addresses alone the kernel falls back to the *listener* on the
 * local port when the connection is gone, and destroys that.
 * Errors (source "kernel"): ENOENT, it is gone already; SOCK_DESTROY_MISSING, the kernel was built without
 * CONFIG_INET_DIAG_DESTROY; EPERM without CAP_NET_ADMIN.
 */
export function destroySocket(connection: { local: Endpoint; remote: Endpoint }): void {
  const { local, remote } = connection;
  const what = `${local.address}:${local.port} to ${remote.address}:${remote.port}`;
  OWN_NETWORK.withDiag((fd) => {
    const id = findConnection(fd, local, remote);
    if (id === null) {
      throw new HoldfastError(`no connection from ${what}`, { code: "ENOENT", source: "kernel" });
    }
    const request = netlink.netlinkRequest(
      SOCK_DESTROY,
      netlink.NLM_F_REQUEST | netlink.NLM_F_ACK,
      REQUEST_BYTES,
    );
    if (sock.send(fd, withQuestion(request, { mask: ANY_STATE, ...id }), 0) !== request.length)
      throw netlink.unexpectedAnswer();
    const answer = Buffer.allocUnsafe(netlink.ANSWER_BYTES);
    const size = sock.recv(fd, answer, 0);
    if (size < netlink.NLMSG_HEADER_BYTES + 4 || answer.readUInt16LE(4) !== netlink.NLMSG_ERROR)
      throw netlink.unexpectedAnswer();
    const errno = -answer.readInt32LE(netlink.NLMSG_HEADER_BYTES);
    if (errno !== 0) throw refused(errno, "SOCK_DESTROY");
  });
}

/** The kernel's own identity of a socket: struct inet_diag_sockid with its cookie. */
interface SocketId {
  family: number;
  sockid: Buffer;
}

function findConnection(fd: number, local: Endpoint, remote: Endpoint): SocketId | null {
  const ports = { localPort: local.port, remotePort: remote.port };
  const mask = ANY_STATE & ~(1 << sock.TCP_LISTEN);
  for (const family of [ipText.AF_INET, ipText.AF_INET6]) {
    for (const message of dump(fd, family, mask, ports)) {
      const socket = readMessage(message);
      if (isSame(socket.local, local) && isSame(socket.remote, remote))
        return { family: message[0] as number, sockid: message.subarray(4, 4 + SOCKID_BYTES) };
    }
  }
  return null;
}

function isSame(one: Endpoint, other: Endpoint): boolean {
  return one.port === other.port && ipText.unmapped(one.address) === ipText.unmapped(other.address);
}

// ---- netlink

interface Question {
  family: number;
  mask: number;
  sockid: Buffer;
}

/** struct inet_diag_req_v2 */
function withQuestion(request: Buffer, { family, mask, sockid }: Question): Buffer {
  request.writeUInt8(family, netlink.NLMSG_HEADER_BYTES);
  request.writeUInt8(sock.IPPROTO_TCP, netlink.NLMSG_HEADER_BYTES + 1);
  request.writeUInt32LE(mask >>> 0, netlink.NLMSG_HEADER_BYTES + 4);
  sockid.copy(request, netlink.NLMSG_HEADER_BYTES + 8);
  return request;
}

/** struct inet_diag_sockid with two ports and no cookie */
function portsOnly(options: ListOptions): Buffer {
  const sockid = Buffer.alloc(SOCKID_BYTES);
  sockid.writeUInt16BE(options.localPort ?? 0, 0);
  sockid.writeUInt16BE(options.remotePort ?? 0, 2);
  sockid.fill(0xff, SOCKID_BYTES - COOKIE_BYTES);
  return sockid;
}

/** Each a struct inet_diag_msg. */
function dump(fd: number, family: number, mask: number, ports: ListOptions, extensions = 0): Buffer[] {
  const request = netlink.dumpRequest(netlink.SOCK_DIAG_BY_FAMILY, REQUEST_BYTES);
  request.writeUInt8(extensions, netlink.NLMSG_HEADER_BYTES + 2);
  withQuestion(request, { family, mask, sockid: portsOnly(ports) });
  return netlink.dump(netlink.conversation(fd), request, MESSAGE_BYTES);
}

/** struct inet_diag_msg */
function readMessage(message: Buffer): DiagSocket {
  const addressBytes = message[0] === ipText.AF_INET ? 4 : 16;
  const endpoint = (addressAt: number, portAt: number): Endpoint => ({
    address: ipText.unmapped(ipText.formatAddress(message.subarray(addressAt, addressAt + addressBytes))),
    port: message.readUInt16BE(portAt),
  });
  const number = message[1] as number;
  return {
    state: STATE_OF_NUMBER.get(number === NEW_SYN_RECV ? sock.TCP_SYN_RECV : number) ?? "CLOSE",
    local: endpoint(8, 4),
    remote: endpoint(24, 6),
    inode: message.readUInt32LE(68),
    receiveQueue: message.readUInt32LE(56),
    sendQueue: message.readUInt32LE(60),
  };
}

function refused(errno: number, what: string): HoldfastError {
  if (errno === EOPNOTSUPP) {
    return fail(
      "SOCK_DESTROY_MISSING",
      `this kernel has no ${what}; build it with CONFIG_INET_DIAG_DESTROY, or leave the connections to time out`,
    );
  }
  // between look-up and destruction it ended, and another took its place
  const code = errno === ESTALE ? "ENOENT" : libc.errnoName(errno);
  return new HoldfastError(`the kernel refused ${what} with ${code}`, { code, source: "kernel" });
}
