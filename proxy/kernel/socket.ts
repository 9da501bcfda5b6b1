/**
 * Sockets: calls and options, under the kernel's names. What the calls are for is in `tcp/` (capture, adopt, shield).
 * Sources: include/uapi/linux/{tcp,sockios,filter}.h, asm-generic/socket.h, man pages tcp(7), ip(7).
 */
import { constants } from "node:os";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import {
  AF_INET,
  AF_INET6,
  decodeSockaddr,
  encodeSockaddr,
  SOCKADDR_IN_BYTES,
  SOCKADDR_IN6_BYTES,
  sockaddr,
} from "./address-text.ts";
import {
  addressOf,
  check,
  errno,
  failure,
  int,
  intView,
  keep,
  length,
  lengthView,
  libc,
  pair,
  type Tolerated,
} from "./libc.ts";
import { controlMessage, messageHeader } from "./message-header.ts";

export const AF_UNIX = 1;
export const AF_NETLINK = 16;
export const AF_PACKET = 17;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
export const SOCK_SEQPACKET = 5;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const IPPROTO_IP = 0;
export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_UDP = 17;
/** include/uapi/linux/udp.h */
export const UDP_SEGMENT = 103;
export const UDP_GRO = 104;
export const IPPROTO_IPV6 = 41;
export const IPPROTO_ICMPV6 = 58;
export const IPPROTO_UDPLITE = 136;
export const IPPROTO_RAW = 255;
export const IPPROTO_MPTCP = 262;
export const NETLINK_SOCK_DIAG = 4;
export const IP_TRANSPARENT = 19;
export const IPV6_TRANSPARENT = 75;
export const SOL_SOCKET = 1;
export const SO_REUSEADDR = 2;
export const SO_TYPE = 3;
export const SO_ERROR = 4;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_KEEPALIVE = 9;
export const SO_LINGER = 13;
export const SO_ATTACH_FILTER = 26;
export const SO_DETACH_FILTER = 27;
/** As getpeername(2), but also of a connection that has ended. */
export const SO_PEERNAME = 28;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const SO_PROTOCOL = 38;
export const SO_DOMAIN = 39;
export const SO_ATTACH_BPF = 50;
/** Since 5.15: which of SNDBUF (1) and RCVBUF (2) are pinned by the user; 0 gives both back to autotuning. */
export const SO_BUF_LOCK = 72;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_USER_TIMEOUT = 18;
export const TCP_NOTSENT_LOWAT = 25;
export const TCP_NODELAY = 1;
export const TCP_MAXSEG = 2;
export const TCP_QUICKACK = 12;
export const TCP_WINDOW_CLAMP = 10;
export const TCP_INFO = 11;
export const TCP_REPAIR = 19;
export const TCP_REPAIR_QUEUE = 20;
export const TCP_QUEUE_SEQ = 21;
export const TCP_REPAIR_OPTIONS = 22;
export const TCP_TIMESTAMP = 24;
export const TCP_REPAIR_WINDOW = 29;
/** Since 6.15. */
export const TCP_RTO_MAX_MS = 44;
export const TCP_REPAIR_ON = 1;
/** Leaves repair mode with a window probe (ESTABLISHED only). */
export const TCP_REPAIR_OFF = 0;
/** Leaves repair mode and sends nothing. */
export const TCP_REPAIR_OFF_NO_WP = -1;
export const TCP_NO_QUEUE = 0;
export const TCP_RECV_QUEUE = 1;
export const TCP_SEND_QUEUE = 2;
export const TCPI_OPT_TIMESTAMPS = 1;
export const TCPI_OPT_SACK = 2;
export const TCPI_OPT_WSCALE = 4;
/** include/net/tcp_states.h */
export const TCP_ESTABLISHED = 1;
export const TCP_SYN_SENT = 2;
export const TCP_SYN_RECV = 3;
export const TCP_FIN_WAIT1 = 4;
export const TCP_FIN_WAIT2 = 5;
export const TCP_TIME_WAIT = 6;
export const TCP_CLOSE = 7;
export const TCP_CLOSE_WAIT = 8;
export const TCP_LAST_ACK = 9;
export const TCP_LISTEN = 10;
export const TCP_CLOSING = 11;
/** Unread bytes of the receive queue, FIN excluded. */
export const SIOCINQ = 0x541b;
/** Unacknowledged sequence space of the send queue: `write_seq - snd_una`, so our own FIN is included. */
export const SIOCOUTQ = 0x5411;
/** Of those, never sent: `write_seq - snd_nxt`. */
export const SIOCOUTQNSD = 0x894b;
const SIOCGSKNS = 0x894c;
/** linux/un.h */
const SIOCUNIXFILE = 0x89e0;
const MSG_OOB = 0x1;
export const MSG_PEEK = 0x2;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const SHUT_RD = 0;
export const SHUT_WR = 1;
export const SHUT_RDWR = 2;
const SYS_BPF = process.arch === "arm64" ? 280 : 321;
const BPF_PROG_LOAD = 5;
const BPF_PROG_TYPE_SOCKET_FILTER = 1;

/** For TCP over that version of IP, non-blocking and close-on-exec; -errno where there is none. */
export function tryTcpSocket(family: 4 | 6): number {
  const domain = family === 4 ? AF_INET : AF_INET6;
  const fd = libc().socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  return fd < 0 ? -errno() : fd;
}

/** As {@link tryTcpSocket}, or a HoldfastError. */
export function tcpSocket(family: 4 | 6): number {
  const fd = tryTcpSocket(family);
  if (fd < 0) throw failure("socket", -fd);
  return fd;
}

export function socket(domain: number, type: number, protocol: number): number {
  return check(libc().socket(domain, type, protocol), "socket");
}

/** Two ends that keep message boundaries and can carry descriptors; close-on-exec, blocking. */
export function socketpairSeqpacket(): [number, number] {
  check(libc().socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "socketpair");
  return [pair.readInt32LE(0), pair.readInt32LE(4)];
}

export function bind(fd: number, local: Endpoint, scope = 0): void {
  check(libc().bind(fd, sockaddr, encodeSockaddr(local, scope)), `bind to ${local.address}:${local.port}`);
}

export function connect(fd: number, remote: Endpoint, scope = 0): void {
  check(
    libc().connect(fd, sockaddr, encodeSockaddr(remote, scope)),
    `connect to ${remote.address}:${remote.port}`,
  );
}

/** As {@link connect} for a non-blocking socket, nothing thrown: 0 also where it is still on its way; -errno. */
export function tryConnect(fd: number, remote: Endpoint): number {
  if (libc().connect(fd, sockaddr, encodeSockaddr(remote)) === 0) return 0;
  const error = errno();
  return error === constants.errno.EINPROGRESS ? 0 : -error;
}

/** connect(2) to AF_UNSPEC: ends a TCP connection by RST; the socket forgets its peer, and its address unless it was bound. */
export function disconnect(fd: number): void {
  const unspecified = Buffer.alloc(16);
  check(libc().connect(fd, unspecified, unspecified.length), "connect to nobody");
}

/** bind(2) with raw sockaddr bytes, for families other than IP. */
export function bindRaw(fd: number, address: Buffer): void {
  check(libc().bind(fd, address, address.length), "bind");
}

export function listen(fd: number, backlog: number): void {
  check(libc().listen(fd, backlog), "listen");
}

/** `flags`: SOCK_NONBLOCK, SOCK_CLOEXEC */
export function accept(fd: number, flags: number): number {
  return check(libc().accept4(fd, null, null, flags), "accept4");
}

/** A descriptor of the network namespace that a socket belongs to; the caller closes it. Needs CAP_NET_ADMIN. */
export function namespaceOf(fd: number): number {
  return check(libc().ioctlValue(fd, SIOCGSKNS, 0), "ioctl(SIOCGSKNS)");
}

/**
 * A descriptor (O_PATH) of the file that a Unix socket was bound to, whatever that is called by now; the caller closes it. Needs
 * CAP_NET_ADMIN. @throws HoldfastError `ENOENT`: it has no file
 */
export function fileOfUnixSocket(fd: number): number {
  return check(libc().ioctlValue(fd, SIOCUNIXFILE, 0), "ioctl(SIOCUNIXFILE)");
}

export function getsockname(fd: number): Endpoint {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getsockname(fd, sockaddr, length), "getsockname");
  return decodeSockaddr();
}

/** Port number of a netlink socket (struct sockaddr_nl); 0 while it is not bound. */
export function netlinkPort(fd: number): number {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getsockname(fd, sockaddr, length), "getsockname");
  return sockaddr.readUInt32LE(4);
}

/** Number of the device that a packet socket is bound to (struct sockaddr_ll); 0: to all of them. */
export function packetDevice(fd: number): number {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getsockname(fd, sockaddr, length), "getsockname");
  return sockaddr.readInt32LE(4);
}

/** Fails with ENOTCONN once the peer has reset the connection. */
export function getpeername(fd: number): Endpoint {
  lengthView.setUint32(0, sockaddr.length, true);
  check(libc().getpeername(fd, sockaddr, length), "getpeername");
  return decodeSockaddr();
}

/** {@link SO_PEERNAME} of an Internet socket; null where it has never had a peer, or has none any more. */
export function lastPeer(fd: number): Endpoint | null {
  // a length that is greater than the address is refused (EINVAL)
  for (const bytes of [SOCKADDR_IN6_BYTES, SOCKADDR_IN_BYTES]) {
    lengthView.setUint32(0, bytes, true);
    if (libc().getsockopt(fd, SOL_SOCKET, SO_PEERNAME, sockaddr, length) >= 0) return decodeSockaddr();
    const error = errno();
    if (error === constants.errno.ENOTCONN) return null;
    if (error !== constants.errno.EINVAL) throw failure("getsockopt(SO_PEERNAME)", error);
  }
  return null;
}

/** `value` as a 32-bit integer; numbers up to 2^32 - 1 are taken modulo 2^32. */
export function setsockoptInt(fd: number, level: number, option: number, value: number): void {
  intView.setInt32(0, value, true);
  if (libc().setsockopt(fd, level, option, int, 4) < 0) {
    throw failure(`setsockopt(${level}, ${option}, ${value})`, errno());
  }
}

/** False where the kernel answers `tolerated` ("ENOENT"): a refusal that is expected costs no exception. */
export function trySetsockoptInt(
  fd: number,
  level: number,
  option: number,
  value: number,
  tolerated: Tolerated,
): boolean {
  intView.setInt32(0, value, true);
  if (libc().setsockopt(fd, level, option, int, 4) >= 0) return true;
  const error = errno();
  if (error === constants.errno[tolerated]) return false;
  throw failure(`setsockopt(${level}, ${option}, ${value})`, error);
}

export function setsockoptBuffer(fd: number, level: number, option: number, value: Buffer): void {
  if (libc().setsockopt(fd, level, option, value, value.length) < 0) {
    throw failure(`setsockopt(${level}, ${option})`, errno());
  }
}

/** Signed. */
export function getsockoptInt(fd: number, level: number, option: number): number {
  lengthView.setUint32(0, 4, true);
  if (libc().getsockopt(fd, level, option, int, length) < 0) {
    throw failure(`getsockopt(${level}, ${option})`, errno());
  }
  return intView.getInt32(0, true);
}

/** As {@link getsockoptInt}, for sequence numbers and timestamps. */
export function getsockoptUint(fd: number, level: number, option: number): number {
  return getsockoptInt(fd, level, option) >>> 0;
}

/** Fills `into`; returns how many bytes the kernel gave. */
export function getsockoptBuffer(fd: number, level: number, option: number, into: Buffer): number {
  lengthView.setUint32(0, into.length, true);
  if (libc().getsockopt(fd, level, option, into, length) < 0) {
    throw failure(`getsockopt(${level}, ${option})`, errno());
  }
  return lengthView.getUint32(0, true);
}

/** Bytes read; 0 at the end of the stream; HoldfastError code EAGAIN when nothing is there. */
export function recv(fd: number, into: Buffer, flags: number): number {
  return check(libc().recv(fd, into, into.length, flags), "recv");
}

/** Bytes taken, possibly fewer than given; -1 instead of an error when the queue is full (EAGAIN, ENOBUFS, ENOMEM). */
export function send(fd: number, bytes: Buffer, flags: number): number {
  const sent = libc().send(fd, bytes, bytes.length, flags | MSG_NOSIGNAL);
  if (sent >= 0) return sent;
  const error = failure("send", errno());
  if (error.retryable) return -1;
  throw error;
}

/** As {@link send} with MSG_DONTWAIT, for the hot path: nothing is thrown, -errno where nothing is taken. */
export function trySend(fd: number, bytes: Buffer): number {
  const sent = libc().send(fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? -errno() : sent;
}

/** As {@link recv} with MSG_DONTWAIT, for the hot path: nothing is thrown, -errno where nothing is read. */
export function tryRecv(fd: number, into: Buffer): number {
  const received = libc().recv(fd, into, into.length, MSG_DONTWAIT);
  return received < 0 ? -errno() : received;
}

const urgentByte = Buffer.alloc(1);

/** Whether urgent data of a stream waits that is not in line (tcp(7), unix(7)); it goes on waiting. */
export function hasUrgentData(fd: number): boolean {
  return libc().recv(fd, urgentByte, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) > 0;
}

const nameBuffer = Buffer.alloc(128);

/** The next message, which goes on waiting, and the struct sockaddr of who sent it; null when none is there. */
export function tryPeekMessage(fd: number, into: Buffer): { length: number; from: Buffer } | null {
  lengthView.setUint32(0, nameBuffer.length, true);
  const flags = MSG_PEEK | MSG_DONTWAIT;
  const received = libc().recvfrom(fd, into, into.length, flags, nameBuffer, length);
  if (received >= 0) return { length: received, from: nameBuffer.subarray(0, lengthView.getUint32(0, true)) };
  const error = errno();
  if (error === constants.errno.EAGAIN) return null;
  throw failure("recvfrom", error);
}

const SO_PEEK_OFF = 42;

/** Whether MSG_PEEK goes on where it was (SO_PEEK_OFF, socket(7)): then each look moves it. */
export function peeksOn(fd: number): boolean {
  return getsockoptInt(fd, SOL_SOCKET, SO_PEEK_OFF) >= 0;
}

/** Meanwhile each MSG_PEEK goes on behind what the one before has seen, from the oldest on: for all who have the socket. */
export function peekingOn<T>(fd: number, look: () => T): T {
  const before = getsockoptInt(fd, SOL_SOCKET, SO_PEEK_OFF);
  setsockoptInt(fd, SOL_SOCKET, SO_PEEK_OFF, 0);
  try {
    return look();
  } finally {
    setsockoptInt(fd, SOL_SOCKET, SO_PEEK_OFF, before);
  }
}

/** room for what a socket may be told with a datagram, all of it */
const CONTROL_BYTES = 1024;

/**
 * A datagram of an Internet socket, and who sent it; null when none is there.
 * @returns `segmentBytes`: several of that size, the last perhaps shorter, that the kernel has joined (UDP_GRO, udp(7)); 0: it is one
 */
export function tryRecvFrom(
  fd: number,
  into: Buffer,
  flags: number,
): { length: number; from: Endpoint; segmentBytes: number } | null {
  const control = Buffer.alloc(CONTROL_BYTES);
  const { header, vector } = messageHeader(sockaddr, into, control);
  const received = libc().recvmsg(fd, header, flags);
  if (received < 0) {
    const error = errno();
    if (error === constants.errno.EAGAIN) return null;
    throw failure("recvmsg", error);
  }
  keep(vector);
  const segmentBytes = controlMessage(header, control, IPPROTO_UDP, UDP_GRO)?.readInt32LE(0) ?? 0;
  return { length: received, from: decodeSockaddr(), segmentBytes };
}

/** A connection, non-blocking and close-on-exec; -errno where there is none. */
export function tryAccept(fd: number): number {
  const accepted = libc().accept4(fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return accepted < 0 ? -errno() : accepted;
}

export function sendto(fd: number, bytes: Buffer, flags: number, to: Endpoint): number {
  const size = encodeSockaddr(to);
  return check(libc().sendto(fd, bytes, bytes.length, flags, sockaddr, size), `sendto ${to.address}`);
}

/** A program for SO_ATTACH_BPF (bpf(2)), compiled once for any number of sockets; a close-on-exec descriptor. */
export function loadSocketFilter(instructions: Buffer): number {
  const license = Buffer.from("\0");
  // union bpf_attr: u32 prog_type, u32 insn_cnt, u64 insns, u64 license, then the log, which is off
  const attr = Buffer.alloc(48);
  attr.writeUInt32LE(BPF_PROG_TYPE_SOCKET_FILTER, 0);
  attr.writeUInt32LE(instructions.length / 8, 4);
  attr.writeBigUInt64LE(addressOf(instructions), 8);
  attr.writeBigUInt64LE(addressOf(license), 16);
  return check(libc().syscall(SYS_BPF, BPF_PROG_LOAD, addressOf(attr), attr.length, 0), "bpf(BPF_PROG_LOAD)");
}

export function shutdown(fd: number, how: number): void {
  check(libc().shutdown(fd, how), "shutdown");
}

/**
 * One message into `into` when it comes; 0 at the end. A thread of libuv's pool waits in recv(2) meanwhile, so this is for
 * the few descriptors that Node's own sockets cannot be (SOCK_SEQPACKET). To end the wait, `shutdown` the descriptor first
 * and close it only after this has settled.
 */
export function recvAsync(fd: number, into: Buffer): Promise<number> {
  return new Promise((resolve, reject) => {
    libc().recv.async(fd, into, into.length, 0, (error: Error | null, received: number) => {
      if (error !== null) reject(error);
      else if (received < 0) reject(failure("recv", errno()));
      else resolve(received);
    });
  });
}

/** What {@link tryGetsockopt} read last. */
export const socketOption = Buffer.alloc(64);
const socketOptionView = new DataView(socketOption.buffer, socketOption.byteOffset, socketOption.length);

/**
 * Reads an option of at most 64 bytes into {@link socketOption}. Returns how many bytes it has, or -errno: most options are
 * refused by most sockets.
 */
export function tryGetsockopt(fd: number, level: number, option: number, size: number): number {
  lengthView.setUint32(0, size, true);
  if (libc().getsockopt(fd, level, option, socketOption, length) < 0) return -errno();
  return lengthView.getUint32(0, true);
}

/** The 32-bit word at `at` of {@link socketOption}. */
export function socketOptionWord(at: number): number {
  return socketOptionView.getInt32(at, true);
}

/** 0, or -errno */
export function trySetsockoptBuffer(fd: number, level: number, option: number, value: Buffer): number {
  return libc().setsockopt(fd, level, option, value, value.length) < 0 ? -errno() : 0;
}

/** struct sockaddr of any family, as getsockname(2) gives it; null where there is none. At most 110 bytes. */
export function getsocknameRaw(fd: number): Buffer | null {
  const address = Buffer.alloc(128);
  lengthView.setUint32(0, address.length, true);
  return libc().getsockname(fd, address, length) < 0
    ? null
    : address.subarray(0, lengthView.getUint32(0, true));
}

/** As {@link getsocknameRaw}, of the peer. */
export function getpeernameRaw(fd: number): Buffer | null {
  const address = Buffer.alloc(128);
  lengthView.setUint32(0, address.length, true);
  return libc().getpeername(fd, address, length) < 0
    ? null
    : address.subarray(0, lengthView.getUint32(0, true));
}
