/**
 * Sockets, pipes and secrets of an application that CRIU cannot carry, or would carry wrongly without a word, by looking at
 * every descriptor of every process (pidfd_getfd(2)) and at sock_diag(7). What passes by itself (connections that wait to be
 * accepted, netlink messages that wait to be read) is waited for, and told only when it stays.
 *
 * What can be carried is in `migration/own-sockets.ts`. Sources: CRIU 4.2, criu/sk-*.c, sockets.c, pipes.c.
 */
import { constants, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import { listSockets, signedSockets } from "#proxy/kernel/diag.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { type Add, type FindingId, passes, type Severity, type Subject } from "../../api/finding.ts";
import { isNextLost } from "../../audit/unix-messages.ts";
import { isHere, isLinkLocal, isLoopback, isUnspecified } from "../../migration/addresses.ts";
import { type SocketPlace, socketInodes, withSocketAt } from "../../migration/sockets.ts";
import { hasErrorUnread } from "../../migration/unread-datagrams.ts";
import { inNetworkOf, networkOf } from "../../runtime/network-namespace.ts";
import { descriptorsOf, isPathOnly } from "../../runtime/processes.ts";
import { listUnixSocketsAround, type UnixSocket } from "../../runtime/unix-sockets.ts";
import { isRenamed } from "./unix-names.ts";

/** For what passes by itself: an accept queue is emptied in milliseconds by an application that is well. */
const QUIET_MS_MAX = 1_000;
const POLL_MS = 20;

/** include/linux/socket.h: families CRIU does not know, by the names people know them by */
const FAMILIES: Record<number, string> = {
  15: "AF_KEY",
  21: "AF_RDS",
  24: "AF_PPPOX",
  29: "AF_CAN",
  30: "AF_TIPC",
  31: "AF_BLUETOOTH",
  38: "AF_ALG",
  40: "AF_VSOCK",
  41: "AF_KCM",
  42: "AF_QIPCRTR",
  43: "AF_SMC",
  44: "AF_XDP",
};
const AF_PACKET = 17;
const PROTOCOLS: Record<number, string> = { 33: "DCCP", 115: "L2TP", 132: "SCTP", 256: "SMC" };
const CARRIED_PROTOCOLS: number[] = [
  sock.IPPROTO_IP,
  sock.IPPROTO_ICMP,
  sock.IPPROTO_TCP,
  sock.IPPROTO_UDP,
  sock.IPPROTO_ICMPV6,
  sock.IPPROTO_UDPLITE,
];
const SO_PASSCRED = 16;
const SO_PASSSEC = 34;
const SO_PASSPIDFD = 76;
/** asm-generic/socket.h */
const SO_TIMESTAMPING = 37;
const SO_ZEROCOPY = 60;
/** linux/net_tstamp.h */
const SOF_TIMESTAMPING_OPT_ID = 1 << 7;
const TCP_ULP = 31;
/** linux/tcp.h: struct tcp_ao_info_opt, all zero to ask for it */
const TCP_AO_INFO = 40;
const AO_INFO_BYTES = 48;
const UDP_CORK = 1;
const SOL_NETLINK = 270;
const NETLINK_LIST_MEMBERSHIPS = 9;
/** CRIU gives back the first 32 groups, by bind(2) */
const NETLINK_GROUP_BYTES = 4;
const NAME_BYTES_MAX = 128;
const GROUP_BYTES_MAX = 4096;
const { O_DIRECT, O_RDWR } = constants;
/** fcntl(2) */
const O_ACCMODE = 3;

export interface SocketsPlace {
  /** of the container */
  initPid: number;
  /** every process of the application, as the agent numbers them */
  pids: number[];
  /** addresses that move along */
  moving: string[];
  /** where the proxy connects to: what waits there is waited for in the hold */
  upstreamPorts: number[];
}

interface Told {
  id: FindingId;
  severity: Severity;
  what: string;
  cure: string;
  place?: Subject;
}

/** Looks again, for a bounded time, as long as there is something that passes by itself. */
export async function checkSockets(place: SocketsPlace, add: Add): Promise<void> {
  const untilMs = performance.now() + QUIET_MS_MAX;
  let told = await look(place);
  while (told.some(({ id }) => passes(id)) && performance.now() < untilMs) {
    await delay(POLL_MS);
    told = await look(place);
  }
  for (const { id, severity, what, cure, place: at } of told) add(id, severity, what, cure, at);
}

async function look(place: SocketsPlace): Promise<Told[]> {
  const connected = inNetworkOf(place.pids, connectedRaw);
  const inodes = await socketInodes(place.pids);
  const told: Told[] = [];
  for (const [inode, at] of inodes) {
    if (isPathOnly(at.pid, at.fd)) continue; // refused by itself, and knows nothing
    const found = withSocketAt(at, (fd) => lookAt(fd, inode, place));
    for (const one of found ?? []) told.push({ ...one, place: at });
    if (connected.has(inode))
      told.push({
        id: "socket.raw-connected",
        severity: "error",
        what: `raw or ping socket ${inode} is connected to a peer, which CRIU does not carry`,
        cure: "let the application name the peer each time it sends (sendto(2))",
        place: at,
      });
  }
  return [
    ...told,
    ...tcpBacklogs(inodes, place),
    ...md5Keys(inodes, place),
    ...unixSockets(inodes, place),
    ...(await pipesAndSecrets(place.pids)),
  ];
}

// ---- one socket ----

function lookAt(fd: number, inode: number, place: SocketsPlace): Told[] {
  const domain = option(fd, sock.SO_DOMAIN);
  if (domain === ipText.AF_INET || domain === ipText.AF_INET6) return lookAtInternet(fd, inode, place);
  if (domain === sock.AF_NETLINK) return lookAtNetlink(fd, inode);
  if (domain === AF_PACKET) return lookAtPacket(fd, inode);
  if (domain === sock.AF_UNIX) return lookAtUnix(fd, inode);
  const name = FAMILIES[domain] ?? `family ${domain}`;
  return [
    {
      id: "socket.family",
      severity: "error",
      what: `socket ${inode} is of ${name}, which CRIU cannot dump`,
      cure: "let the application close it before a move, or do without it",
    },
  ];
}

function lookAtInternet(fd: number, inode: number, place: SocketsPlace): Told[] {
  const type = option(fd, sock.SO_TYPE);
  const protocol = option(fd, sock.SO_PROTOCOL);
  if (protocol === sock.IPPROTO_MPTCP)
    return [
      {
        id: "socket.mptcp",
        severity: "error",
        what: `socket ${inode} is MPTCP, which CRIU cannot dump`,
        cure: "let the application use plain TCP (a Go program: GODEBUG=multipathtcp=0 in its environment)",
      },
    ];
  const isKnownType = [sock.SOCK_STREAM, sock.SOCK_DGRAM, sock.SOCK_RAW].includes(type);
  if (!isKnownType || (type !== sock.SOCK_RAW && !CARRIED_PROTOCOLS.includes(protocol)))
    return [
      {
        id: "socket.protocol",
        severity: "error",
        what: `socket ${inode} speaks ${PROTOCOLS[protocol] ?? `protocol ${protocol}`}, which CRIU cannot dump`,
        cure: "let the application close it before a move, or do without it",
      },
    ];
  const told: Told[] = [];
  if (hasProgram(fd))
    told.push({
      id: "socket.ebpf-filter",
      severity: "error",
      what: `socket ${inode} has an eBPF program as its filter, which cannot be read out of it`,
      cure: "let the application use a classic filter (SO_ATTACH_FILTER), or none",
    });
  told.push(...numberedNotifications(fd, inode));
  const isTcp = type === sock.SOCK_STREAM && protocol === sock.IPPROTO_TCP;
  if (isTcp) told.push(...urgentData(fd, inode));
  if (isTcp && hasAuthentication(fd)) told.push(signedSegments(inode, "TCP-AO"));
  const isUdp = protocol === sock.IPPROTO_UDP || protocol === sock.IPPROTO_UDPLITE;
  const layer = isTcp ? optionText(fd, sock.IPPROTO_TCP, TCP_ULP) : "";
  if (layer !== "")
    told.push({
      id: "socket.upper-layer",
      severity: "error",
      what: `socket ${inode} has ${layer === "tls" ? "TLS in the kernel" : layer}, whose state cannot be read out of it`,
      cure: "let the application do that itself (with OpenSSL: without SSL_OP_ENABLE_KTLS)",
    });
  if (type === sock.SOCK_DGRAM && isUdp && sock.getsockoptInt(fd, sock.IPPROTO_UDP, UDP_CORK) !== 0)
    told.push({
      id: "socket.corked",
      severity: "error",
      what: `UDP socket ${inode} is corked (UDP_CORK)`,
      cure: "let the application send what it has begun",
    });
  if (!isTcp) told.push(...errorUnread(fd, inode));
  return [...told, ...lookAtAddresses(fd, inode, isTcp, place)];
}

/** Of a socket for datagrams. Those that wait behind an error nobody can look at without taking the error. */
function errorUnread(fd: number, inode: number): Told[] {
  if (!hasErrorUnread(fd)) return [];
  const isInFront = (polling.pollNow(fd, polling.POLLIN) & polling.POLLIN) !== 0;
  return [
    {
      id: isInFront ? "socket.error-before-datagrams" : "socket.error-unread",
      severity: isInFront ? "error" : "warning",
      what: `socket ${inode} has an error that the application has not read (a datagram came back, or a time of sending waits), which is not carried${isInFront ? ", and datagrams behind it" : ""}`,
      cure: isInFront
        ? "let the application read what it is sent"
        : "nothing, if it need not know; else let it read the error first",
    },
  ];
}

/** What the error queue tells has a number, which the kernel counts and nobody can read or set: after a move it begins at 0, and what waits is lost. */
function numberedNotifications(fd: number, inode: number): Told[] {
  const isZeroCopy = option(fd, SO_ZEROCOPY) !== 0;
  const isNumbered = (option(fd, SO_TIMESTAMPING) & SOF_TIMESTAMPING_OPT_ID) !== 0;
  if (!isZeroCopy && !isNumbered) return [];
  return [
    {
      id: "socket.numbered-notifications",
      severity: "error",
      what: `socket ${inode} is told what was sent by number (${isZeroCopy ? "SO_ZEROCOPY" : "SOF_TIMESTAMPING_OPT_ID"}), which CRIU does not carry`,
      cure: "let the application send without it",
    },
  ];
}

function lookAtUnix(fd: number, inode: number): Told[] {
  const type = option(fd, sock.SO_TYPE);
  if (hasErrorUnread(fd))
    return [
      {
        id: "socket.unix-error",
        severity: "error",
        what: `Unix socket ${inode} has an error that the application has not read (its peer has closed it, or turned to another, and had not read all that it was sent), which CRIU does not carry`,
        cure: "let it read the socket, or close it",
      },
    ];
  if (type === sock.SOCK_STREAM) return urgentData(fd, inode);
  if (!isNextLost(fd, type)) return [];
  return [
    {
      id: "socket.unix-message",
      severity: "error",
      what: `Unix socket ${inode} has a message that the application has not read, without bytes or from a socket with a name, which CRIU does not carry`,
      cure: "let it read what it is sent",
    },
  ];
}

/** Of a stream. CRIU takes TCP's for ordinary bytes, and leaves that of Unix sockets out. */
function urgentData(fd: number, inode: number): Told[] {
  if (!sock.hasUrgentData(fd)) return [];
  return [
    {
      id: "socket.urgent-data",
      severity: "error",
      what: `socket ${inode} has urgent data (MSG_OOB) that nobody has read, which CRIU does not carry`,
      cure: "let the application read it, or do without urgent data",
    },
  ];
}

function lookAtAddresses(fd: number, inode: number, isTcp: boolean, { pids, moving }: SocketsPlace): Told[] {
  const local = sock.getsockname(fd);
  const remote = sock.lastPeer(fd);
  // connections that a move ends or keeps: `own-sockets.ts`
  if (isTcp && remote !== null) return [];
  const stays = (address: string): boolean =>
    !isUnspecified(address) && !isLoopback(address) && !moving.includes(ipText.unmapped(address));
  const scoped = [local, remote].find((end) => end !== null && isLinkLocal(end.address));
  if (scoped)
    return [
      {
        id: "socket.link-local",
        severity: "error",
        what: `socket ${inode} knows ${shown(scoped)}, an address that means nothing without this node's device`,
        cure: "let the application use addresses of a greater scope",
      },
    ];
  if (!stays(local.address)) return [];
  if (!inNetworkOf(pids, () => isHere(local.address)))
    return [
      {
        id: "socket.foreign-address",
        severity: "error",
        what: `socket ${inode} is bound to ${shown(local)}, an address of no node`,
        cure: "let the application bind to an address it has (not IP_FREEBIND, IP_TRANSPARENT)",
      },
    ];
  if (isTcp || remote !== null) return [];
  return [
    {
      id: "socket.address-changes",
      severity: "warning",
      what: `the application receives datagrams at ${shown(local)}, an address of this node: after a move at that of the other`,
      cure: "let it bind to 0.0.0.0 or ::, or to the VIP",
    },
  ];
}

function lookAtNetlink(fd: number, inode: number): Told[] {
  const told: Told[] = [];
  if ((polling.pollNow(fd, polling.POLLIN) & polling.POLLIN) !== 0)
    told.push({
      id: "socket.netlink-unread",
      severity: "error",
      what: `netlink socket ${inode} has messages that the application has not read`,
      cure: "let it read them, or close the socket",
    });
  const groups = Buffer.alloc(GROUP_BYTES_MAX);
  const size = sock.getsockoptBuffer(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups);
  const beyond = groups
    .subarray(NETLINK_GROUP_BYTES, Math.min(size, groups.length))
    .some((byte) => byte !== 0);
  if (beyond || (size > 0 && sock.netlinkPort(fd) === 0))
    told.push({
      id: "socket.netlink-groups",
      severity: "error",
      what: `netlink socket ${inode} is in a group that CRIU cannot dump (${beyond ? "beyond the first 32" : "without being bound"})`,
      cure: "let the application close it before a move, or ask instead of listening",
    });
  return told;
}

function lookAtPacket(fd: number, inode: number): Told[] {
  const device = sock.packetDevice(fd);
  if (device === 0) return [];
  return [
    {
      id: "socket.packet-device",
      severity: "error",
      what: `packet socket ${inode} is bound to device number ${device}, which is another one on another node`,
      cure: "let the application close it before a move, or listen on all devices",
    },
  ];
}

/** SO_GET_FILTER gives classic instructions, and refuses to give others (sk_get_filter() in net/core/filter.c). */
function hasProgram(fd: number): boolean {
  try {
    sock.getsockoptBuffer(fd, sock.SOL_SOCKET, sock.SO_ATTACH_FILTER, Buffer.alloc(0));
    return false;
  } catch (error) {
    if (error instanceof HoldfastError && error.code === "EACCES") return true;
    throw error;
  }
}

/** Whether it has keys of TCP-AO, or asks for segments that are signed so (tcp_ao_get_sock_info() in net/ipv4/tcp_ao.c). */
function hasAuthentication(fd: number): boolean {
  try {
    sock.getsockoptBuffer(fd, sock.IPPROTO_TCP, TCP_AO_INFO, Buffer.alloc(AO_INFO_BYTES));
    return true;
  } catch (error) {
    // it has none; the kernel has none
    if (error instanceof HoldfastError && ["ENOENT", "ENOPROTOOPT"].includes(error.code)) return false;
    throw error;
  }
}

/** Only whoever was started before containers' filters refused it has such keys (`not-carried.ts`), or was given the socket. */
function signedSegments(inode: number, by: string): Told {
  return {
    id: "socket.signed-segments",
    severity: "error",
    what: `socket ${inode} has keys for signed segments (${by}), which CRIU does not carry: after a move it would take unsigned ones`,
    cure: "start the application again, and let it do without (TLS, or a network that only its peers reach)",
  };
}

/** Inodes of raw and ping sockets with a peer: getpeername(2) knows none without a port (proc(5), /proc/net). */
function connectedRaw(): Set<number> {
  const inodes = new Set<number>();
  for (const table of ["raw", "raw6", "icmp", "icmp6"]) {
    const text = textOf(`/proc/thread-self/net/${table}`);
    for (const line of text.split("\n").slice(1)) {
      const fields = line.trim().split(/\s+/);
      if (/[1-9A-F]/.test(fields[2]?.split(":")[0] ?? "")) inodes.add(Number(fields[9]));
    }
  }
  return inodes;
}

// ---- sockets beside each other ----

/** Connections to other listeners of the application than the ports: nobody waits for those in the hold. */
function tcpBacklogs(inodes: Map<number, SocketPlace>, { pids, upstreamPorts }: SocketsPlace): Told[] {
  const told: Told[] = [];
  const listening = listSockets({ states: ["LISTEN"] }, networkOf(pids));
  for (const { inode, local, receiveQueue } of listening) {
    const place = inodes.get(inode);
    if (place === undefined || receiveQueue === 0 || upstreamPorts.includes(local.port)) continue;
    told.push({
      id: "socket.backlog",
      severity: "error",
      what: `${receiveQueue} connections to ${shown(local)} wait for the application to accept them`,
      cure: "let it accept them, or close the listener",
      place,
    });
  }
  return told;
}

function md5Keys(inodes: Map<number, SocketPlace>, { pids }: SocketsPlace): Told[] {
  return [...signedSockets(networkOf(pids))].flatMap((inode) => {
    const place = inodes.get(inode);
    return place === undefined ? [] : [{ ...signedSegments(inode, "TCP_MD5SIG"), place }];
  });
}

function unixSockets(inodes: Map<number, SocketPlace>, { pids, initPid }: SocketsPlace): Told[] {
  const all = listUnixSocketsAround(pids);
  const told: Told[] = [];
  for (const [inode, place] of inodes) {
    const socket = all.get(inode);
    if (socket === undefined) continue;
    const peer = socket.peer === 0 ? undefined : all.get(socket.peer);
    if (peer !== undefined && !inodes.has(socket.peer)) told.push(...unixOutside(socket, peer, place));
    if (peer !== undefined && inodes.has(socket.peer) && peer.peer !== inode && peer.name === null)
      told.push({
        id: "socket.unix-one-way",
        severity: "error",
        what: `Unix socket ${socket.name ?? inode} is connected to one without a name that is connected to another by now, which CRIU cannot dump`,
        cure: "let the application close it, or give the other one a name",
        place,
      });
    if (socket.waiting.some((client) => !isCarriedInQueue(all.get(client), inodes)))
      told.push({
        id: "socket.unix-backlog",
        severity: "error",
        what: `connections to the Unix socket ${socket.name ?? inode} wait for the application to accept them`,
        cure: "let it accept them, or close the listener",
        place,
      });
    if ((socket.receiveQueue > 0 || socket.waiting.length > 0) && passesDescriptors(place))
      told.push({
        id: "socket.unix-descriptors",
        severity: "error",
        what: `Unix socket ${socket.name ?? inode} has messages with descriptors (SCM_RIGHTS) that the application has not received, and nobody else has them`,
        cure: "let it receive them",
        place,
      });
    if (
      socket.state !== sock.TCP_LISTEN &&
      socket.receiveQueue > 0 &&
      (withSocketAt(place, sendsCredentials) ?? false)
    )
      told.push({
        id: "socket.unix-credentials",
        severity: "error",
        what: `Unix socket ${socket.name ?? inode} has messages with credentials (SO_PASSCRED) that the application has not read`,
        cure: "let it read them",
        place,
      });
    if (withSocketAt(place, (fd) => isRenamed(fd, socket, { pid: place.pid, initPid })) === true)
      told.push({
        id: "socket.unix-renamed",
        severity: "error",
        what: `Unix socket ${socket.name} of process ${place.pid} was renamed, or linked to another name, and after a move it has only the name it was bound to`,
        cure: "let the application bind the name that clients use, or listen on an abstract name or TCP (supervisord: inet_http_server; HAProxy: abns@)",
        place,
      });
  }
  return told;
}

/** proc_pid_fdinfo(5), `scm_fds` (unix_show_fdinfo() in net/unix/af_unix.c): of a listener, those that its waiting connections have */
function passesDescriptors({ pid, fd }: SocketPlace): boolean {
  return /^scm_fds:\s*[1-9]/m.test(textOf(`/proc/${pid}/fdinfo/${fd}`));
}

function unixOutside(socket: UnixSocket, peer: UnixSocket, place: SocketPlace): Told[] {
  // CRIU connects a datagram socket to the same name again
  if (socket.type === sock.SOCK_DGRAM && peer.name !== null) return [];
  const whom = peer.name ?? socket.name ?? "a socket without a name";
  return [
    {
      id: "socket.unix-outside",
      severity: "error",
      what: `process ${place.pid} is connected by a Unix socket to a process outside the container (${whom})`,
      cure: "let the application close it before a move, or run that process in the container, or use TCP",
      place,
    },
  ];
}

/** CRIU connects a client of ours again that waits and has sent nothing. */
function isCarriedInQueue(client: UnixSocket | undefined, inodes: Map<number, SocketPlace>): boolean {
  return client !== undefined && inodes.has(client.inode) && client.sendQueue === 0;
}

function sendsCredentials(fd: number): boolean {
  return [SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD].some((name) => {
    try {
      return option(fd, name) !== 0;
    } catch {
      return false; // this kernel does not have it
    }
  });
}

// ---- what is not a socket ----

async function pipesAndSecrets(pids: number[]): Promise<Told[]> {
  const told: Told[] = [];
  for (const pid of pids) {
    for (const { fd, target } of await descriptorsOf(pid)) {
      const place = { pid, fd };
      const flags = target.startsWith("pipe:[") ? await flagsOf(place) : 0;
      if ((flags & O_ACCMODE) === O_RDWR)
        told.push({
          id: "descriptor.pipe-both-ways",
          severity: "error",
          what: `process ${pid} has a pipe open for reading and writing as descriptor ${fd} (opened again by /dev/fd or /proc), which CRIU restores for one of them only`,
          cure: "let the application use a named pipe (mkfifo), or a socket pair; of bash: read -t 1 <> <(:) → sleep 1",
          place,
        });
      if ((flags & O_DIRECT) !== 0)
        told.push({
          id: "descriptor.packet-pipe",
          severity: "error",
          what: `process ${pid} has a pipe in packet mode (O_DIRECT) as descriptor ${fd}, which CRIU cannot dump`,
          cure: "let the application use a socket pair (SOCK_SEQPACKET) instead",
          place,
        });
    }
    const maps = await readFile(`/proc/${pid}/maps`, "utf8").catch(() => "");
    if (maps.includes(" /secretmem"))
      told.push({
        id: "memory.secret",
        severity: "error",
        what: `process ${pid} has secret memory (memfd_secret), which nobody else can read`,
        cure: "run the application without it (OpenSSL, libsodium and gnupg fall back to mlock)",
        place: { pid },
      });
  }
  return told;
}

/** proc_pid_fdinfo(5). 0: it was closed */
async function flagsOf({ pid, fd }: SocketPlace): Promise<number> {
  const info = await readFile(`/proc/${pid}/fdinfo/${fd}`, "utf8").catch(() => "");
  return Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? "0", 8);
}

// ---- parts ----

function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // a kernel without IPv6
  }
}

function option(fd: number, name: number): number {
  return sock.getsockoptInt(fd, sock.SOL_SOCKET, name);
}

/** Empty where there is none. */
function optionText(fd: number, level: number, name: number): string {
  const value = Buffer.alloc(NAME_BYTES_MAX);
  const size = sock.getsockoptBuffer(fd, level, name, value);
  return value.subarray(0, size).toString().replace(/\0.*$/s, "");
}

function shown({ address, port }: Endpoint): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}
