/** Facts of sockets: what they are, whose ends they are, what waits in them, their options and filters. */
import { constants, networkInterfaces } from "node:os";
import { messageOf } from "#proxy/contract/errors.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { listUnixSockets, type UnixSocket } from "../runtime/unix-sockets.ts";
import type { Facts } from "./fingerprint.ts";
import { ERROR_UNREAD } from "./harmless.ts";
import { joinedGroups, type MulticastGroup, membershipFacts } from "./multicast.ts";
import { innerText } from "./proc-text.ts";
import {
  optionsOf,
  readOptions,
  SO_ATTACH_FILTER,
  SO_PEERCRED,
  SO_PROTOCOL,
  SO_TYPE,
} from "./socket-options.ts";
import type { Tree, TreeDescriptor } from "./tree.ts";
import { messagesWaiting } from "./unix-messages.ts";

export interface SocketContext {
  tree: Tree;
  addresses: ReadonlySet<string>;
  /** `socket:[1]` → `12/5` */
  objects: ReadonlyMap<string, string>;
  unix: ReadonlyMap<number, UnixSocket>;
  groups: MulticastGroup[];
  /** addresses of this node */
  here: ReadonlySet<string>;
  /** what only a tree that does not run can be asked may be asked */
  isStopped: boolean;
}

/** struct tcp_info (include/uapi/linux/tcp.h), as far as it is looked at */
const TCP_INFO_BYTES = 32;
const OPTIONS_AT = 5;
const WINDOW_SCALES_AT = 6;
const UNACKED_AT = 24;
const SACKED_AT = 28;
/** timestamps, selective acknowledgements, window scaling: agreed on in the handshake */
const AGREED = sock.TCPI_OPT_TIMESTAMPS | sock.TCPI_OPT_SACK | sock.TCPI_OPT_WSCALE;

const TCP_STATES: Record<number, string> = {
  [sock.TCP_ESTABLISHED]: "ESTABLISHED",
  [sock.TCP_SYN_SENT]: "SYN_SENT",
  [sock.TCP_SYN_RECV]: "SYN_RECV",
  [sock.TCP_FIN_WAIT1]: "FIN_WAIT1",
  [sock.TCP_FIN_WAIT2]: "FIN_WAIT2",
  [sock.TCP_CLOSE]: "CLOSE",
  [sock.TCP_CLOSE_WAIT]: "CLOSE_WAIT",
  [sock.TCP_LAST_ACK]: "LAST_ACK",
  [sock.TCP_LISTEN]: "LISTEN",
  [sock.TCP_CLOSING]: "CLOSING",
};

/** State and queues of a TCP socket: asked of itself, a tenth of the time that sock_diag takes to go through all of them. */
export function tcpFacts(fd: number): Facts {
  const facts: Facts = {};
  if (sock.tryGetsockopt(fd, sock.IPPROTO_TCP, sock.TCP_INFO, TCP_INFO_BYTES) < TCP_INFO_BYTES) return facts;
  const state = sock.socketOption[0] as number;
  facts.state = TCP_STATES[state] ?? String(state);
  if (state === sock.TCP_LISTEN) {
    facts["bytes to read"] = String(sock.socketOptionWord(UNACKED_AT));
    facts.backlog = String(sock.socketOptionWord(SACKED_AT));
    return facts;
  }
  if (state !== sock.TCP_CLOSE) {
    const agreed = (sock.socketOption[OPTIONS_AT] as number) & AGREED;
    facts.agreed = `options ${agreed}, window scales ${sock.socketOption[WINDOW_SCALES_AT]}`;
  }
  facts["bytes to read"] = String(Math.max(0, descriptor.tryIoctlInt(fd, sock.SIOCINQ)));
  // of one that is closed the kernel gives the rest of what it had been counting (tcp_ioctl() in net/ipv4/tcp.c)
  const toSend = state === sock.TCP_CLOSE ? 0 : descriptor.tryIoctlInt(fd, sock.SIOCOUTQ);
  facts["bytes to send"] = String(Math.max(0, toSend));
  return facts;
}

/** Changes when {@link tcpFacts} do; "": not TCP */
export function tcpKey(fd: number): string {
  return Object.values(tcpFacts(fd)).join(" ");
}

/** 0: not a socket */
export function socketInode(link: string): number {
  return Number(/^socket:\[(\d+)\]$/.exec(link)?.[1] ?? 0);
}

const FILTER_BYTES_MAX = 4096 * 8;

export function socketContext(
  tree: Tree,
  addresses: string[],
  objects: ReadonlyMap<string, string>,
  isStopped: boolean,
): SocketContext {
  const hasSockets = tree.descriptors.some(({ link }) => link.startsWith("socket:"));
  return {
    tree,
    addresses: new Set(addresses),
    objects,
    unix: hasSockets ? listUnixSockets() : new Map(),
    groups: hasSockets ? joinedGroups() : [],
    here: new Set(hasSockets ? nodeAddresses() : []),
    isStopped,
  };
}

export function socketFacts(
  fd: number,
  { link }: TreeDescriptor,
  context: SocketContext,
  facts: Facts,
): void {
  const word = (option: number): number =>
    sock.tryGetsockopt(fd, sock.SOL_SOCKET, option, 4) === 4 ? sock.socketOptionWord(0) : -1;
  const domain = word(sock.SO_DOMAIN);
  const protocol = word(SO_PROTOCOL);
  const type = word(SO_TYPE);
  facts.socket = `domain ${domain}, type ${type}, protocol ${protocol}`;
  const inode = socketInode(link);
  if (domain === sock.AF_UNIX) {
    unixFacts(inode, context, facts);
    const other = peerCredentials(fd, context);
    if (other !== null) facts["peer's credentials"] = other;
    const waiting = context.isStopped && type !== sock.SOCK_STREAM ? messagesWaiting(fd, type) : "";
    if (waiting !== "") facts["messages waiting"] = waiting;
  }
  if (type === sock.SOCK_STREAM && sock.hasUrgentData(fd)) facts["urgent data"] = "waits";
  connectionFacts(fd, protocol === sock.IPPROTO_TCP && type === sock.SOCK_STREAM, context, facts);
  const isInternet = domain === ipText.AF_INET || domain === ipText.AF_INET6;
  if (protocol !== sock.IPPROTO_TCP && isInternet)
    facts["bytes to read"] = String(Math.max(0, descriptor.tryIoctlInt(fd, descriptor.FIONREAD)));
  const tellsErrors = domain === sock.AF_UNIX || (protocol !== sock.IPPROTO_TCP && isInternet);
  if (tellsErrors && (polling.pollNow(fd, 0) & polling.POLLERR) !== 0) facts[ERROR_UNREAD] = "waiting";
  readOptions(fd, optionsOf(domain, type, protocol), facts);
  if (type !== sock.SOCK_STREAM && (domain === ipText.AF_INET || domain === ipText.AF_INET6))
    membershipFacts(fd, domain, context.groups, facts);
  addFilter(fd, facts);
}

const OF_CONNECTION = [
  "state",
  "agreed",
  "bytes to read",
  "bytes to send",
  "local address",
  "peer address",
  "peer is here",
];

/** Of TCP: what happened to a connection since {@link socketFacts}; its options stay as they were read. */
export function refreshConnection(fd: number, context: SocketContext, facts: Facts): void {
  for (const name of OF_CONNECTION) delete facts[name];
  connectionFacts(fd, true, context, facts);
}

function connectionFacts(fd: number, isTcp: boolean, context: SocketContext, facts: Facts): void {
  const local = sock.getsocknameRaw(fd);
  const peer = sock.getpeernameRaw(fd);
  if (local !== null) facts["local address"] = addressText(local, context.addresses);
  if (peer !== null) {
    facts["peer address"] = addressText(peer);
    if (isOfThisNode(peer, context.here)) facts["peer is here"] = "true";
  }
  if (isTcp) Object.assign(facts, tcpFacts(fd));
}

function unixFacts(inode: number, context: SocketContext, facts: Facts): void {
  const unix = context.unix.get(inode);
  if (unix !== undefined) {
    facts.state = String(unix.state);
    facts.shutdown = String(unix.shutdown);
    facts["bytes to read"] = String(unix.receiveQueue);
    if (unix.state === sock.TCP_LISTEN) facts.backlog = String(unix.sendQueue);
    if (unix.waiting.length > 0) facts["connections waiting"] = String(unix.waiting.length);
    if (unix.peer !== 0) facts["connected with"] = context.objects.get(`socket:[${unix.peer}]`) ?? "outside";
  }
}

/** struct ucred of whoever made the other end: who it is counts, in the container's numbers. */
function peerCredentials(fd: number, context: SocketContext): string | null {
  if (sock.tryGetsockopt(fd, sock.SOL_SOCKET, SO_PEERCRED, 12) !== 12) return null;
  const pid = sock.socketOptionWord(0);
  if (pid === 0) return null;
  return [
    `process ${innerText(context.tree.innerPids, String(pid))}`,
    `uid ${sock.socketOptionWord(4)}`,
    `gid ${sock.socketOptionWord(8)}`,
  ].join(", ");
}

/** getsockopt(SO_GET_FILTER) counts in instructions, and refuses eBPF programs with EACCES. */
function addFilter(fd: number, facts: Facts): void {
  const count = sock.tryGetsockopt(fd, sock.SOL_SOCKET, SO_ATTACH_FILTER, 0);
  if (count === -constants.errno.EACCES) facts.filter = "an eBPF program";
  if (count <= 0) return;
  const instructions = Buffer.alloc(FILTER_BYTES_MAX);
  try {
    sock.getsockoptBuffer(fd, sock.SOL_SOCKET, SO_ATTACH_FILTER, instructions);
    facts.filter = instructions.toString("hex", 0, count * 8);
  } catch (error) {
    facts.filter = messageOf(error); // taken off, by one that runs
  }
}

/** struct sockaddr as text; an address that is the node's own is called that, for the other node has another. */
export function addressText(raw: Buffer, addresses?: ReadonlySet<string>): string {
  const family = raw.length >= 2 ? raw.readUInt16LE(0) : 0;
  if (family === ipText.AF_INET || family === ipText.AF_INET6) {
    const isV4 = family === ipText.AF_INET;
    const address = ipText.formatAddress(isV4 ? raw.subarray(4, 8) : raw.subarray(8, 24));
    const port = raw.readUInt16BE(2);
    const isKnown = addresses === undefined || isEverywhere(address, addresses);
    return `${isKnown ? address : "of the node"}:${port}`;
  }
  if (family === sock.AF_UNIX) {
    const path = raw.subarray(2);
    if (path.length === 0) return "";
    // abstract names begin with a zero byte and may hold more; others end at the first
    const end = path[0] === 0 ? path.length : path.indexOf(0) < 0 ? path.length : path.indexOf(0);
    return path.toString("latin1", 0, end).replaceAll("\0", "@");
  }
  return raw.toString("hex");
}

/** What `isEverywhere` calls "of the node". Costs some 0.1 ms. */
function nodeAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((addresses) =>
    (addresses ?? []).filter(({ internal }) => !internal).map(({ address }) => address),
  );
}

function isOfThisNode(raw: Buffer, here: ReadonlySet<string>): boolean {
  const family = raw.readUInt16LE(0);
  if (family !== ipText.AF_INET && family !== ipText.AF_INET6) return false;
  const bytes = family === ipText.AF_INET ? raw.subarray(4, 8) : raw.subarray(8, 24);
  return here.has(ipText.unmapped(ipText.formatAddress(bytes)));
}

/** Loopback, unspecified, and what moves along. */
function isEverywhere(address: string, addresses: ReadonlySet<string>): boolean {
  const plain = ipText.unmapped(address);
  return (
    plain.startsWith("127.") ||
    plain === "0.0.0.0" ||
    plain === "::" ||
    plain === "::1" ||
    addresses.has(plain)
  );
}
