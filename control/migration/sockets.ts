/**
 * The application's own TCP sockets, looked at and touched from outside (pidfd_getfd(2), sock_diag(7), tcp_repair).
 */
import { join } from "node:path";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import { type DiagSocket, destroySocket, listSockets } from "#proxy/kernel/diag.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readImage } from "../criu/image-files.ts";
import { inetSockets } from "../criu/socket-images.ts";
import { borrow, giveBack } from "../runtime/borrowed.ts";
import { networkOf } from "../runtime/network-namespace.ts";
import { descriptorsOf } from "../runtime/processes.ts";

const IP_MINTTL = 21;
const IPV6_MINHOPCOUNT = 73;
const TTL_MAX = 255;
const SOCKET = /^socket:\[(\d+)\]$/;

/** One descriptor of a socket: that of a process, as the agent numbers it. */
export interface SocketPlace {
  pid: number;
  fd: number;
}

/** of a process or descriptor that ends while it is looked at */
const GONE = new Set(["ESRCH", "EBADF"]);

/** Inodes of every socket of these processes, each with one place to get it from. */
export async function socketInodes(pids: number[]): Promise<Map<number, SocketPlace>> {
  const inodes = new Map<number, SocketPlace>();
  for (const pid of pids) {
    for (const { fd, target } of await descriptorsOf(pid)) {
      const inode = SOCKET.exec(target)?.[1];
      if (inode !== undefined && !inodes.has(Number(inode))) inodes.set(Number(inode), { pid, fd });
    }
  }
  return inodes;
}

/** Calls `use` with a descriptor of ours for it. null: it has gone */
export function withSocketAt<T>({ pid, fd }: SocketPlace, use: (fd: number) => T): T | null {
  let ours: number;
  try {
    ours = borrow(pid, fd);
  } catch (error) {
    if (error instanceof HoldfastError && GONE.has(error.code)) return null;
    throw error;
  }
  try {
    return use(ours);
  } finally {
    giveBack(ours);
  }
}

/**
 * Puts the tree's connected TCP sockets into repair mode (tcp_repair): they send nothing, not even when they are closed.
 * Returns how many it were.
 */
export function beginRepair(pids: number[]): Promise<number> {
  const connected = new Set(
    listSockets({}, networkOf(pids))
      .filter(({ state }) => state !== "LISTEN" && state !== "CLOSE")
      .map(({ inode }) => inode),
  );
  return eachSocket(pids, (fd, inode) => {
    if (!connected.has(inode) || isInRepair(fd)) return false;
    sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR, sock.TCP_REPAIR_ON);
    return true;
  });
}

/**
 * Ends {@link beginRepair}, and the repair mode that a cut-off dump has left, also of sockets in state CLOSE, which sock_diag does
 * not list: continued like that, every session would be reset. Returns how many it were.
 *
 * Repair mode overwrites SO_REUSEADDR (do_tcp_setsockopt() in net/ipv4/tcp.c). A session left without it keeps the port for as
 * long as its TIME_WAIT lasts: the application could not listen again. What it was is in CRIU's image; an image that CRIU did not
 * finish says nothing, and then a session has what its listener has, as accept(2) gave it.
 */
export async function endRepair(pids: number[], imagesDir: string): Promise<number> {
  const before = reuseByInode(imagesDir);
  const listening = new Map<number, boolean>();
  const mine = await socketInodes(pids);
  for (const { inode, local } of listSockets({ states: ["LISTEN"] }, networkOf(pids))) {
    const at = mine.get(inode);
    if (at !== undefined) listening.set(local.port, withSocketAt(at, isReusing) ?? false);
  }
  return eachSocket(pids, (fd, inode) => {
    if (!isTcp(fd) || !isInRepair(fd)) return false;
    sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR, sock.TCP_REPAIR_OFF_NO_WP);
    const reuse = before.get(inode) ?? listening.get(sock.getsockname(fd).port) ?? false;
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_REUSEADDR, reuse ? 1 : 0);
    return true;
  });
}

function isInRepair(fd: number): boolean {
  return sock.getsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_REPAIR) !== 0;
}

/** Counts the sockets for which `use` says true. @throws what the first that failed has thrown, when all others have had it */
async function eachSocket(pids: number[], use: (fd: number, inode: number) => boolean): Promise<number> {
  let count = 0;
  const failed: unknown[] = [];
  for (const [inode, at] of await socketInodes(pids)) {
    try {
      if (withSocketAt(at, (fd) => use(fd, inode)) === true) count++;
    } catch (error) {
      failed.push(error);
    }
  }
  if (failed.length > 0) throw failed[0];
  return count;
}

function reuseByInode(imagesDir: string): Map<number, boolean> {
  try {
    const image = readImage(join(imagesDir, "files.img"));
    return new Map(inetSockets(image).map(({ inode, reuseAddress }) => [inode, reuseAddress]));
  } catch {
    return new Map(); // cut off, or never begun
  }
}

function isReusing(fd: number): boolean {
  return sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_REUSEADDR) !== 0;
}

export function isTcp(fd: number): boolean {
  const of = (option: number): number => sock.getsockoptInt(fd, sock.SOL_SOCKET, option);
  const domain = of(sock.SO_DOMAIN);
  if (domain !== ipText.AF_INET && domain !== ipText.AF_INET6) return false;
  return of(sock.SO_TYPE) === sock.SOCK_STREAM && of(sock.SO_PROTOCOL) === sock.IPPROTO_TCP;
}

export interface ApplicationSockets {
  /** LISTEN sockets of the tree */
  listening: Endpoint[];
  /** connections with peers outside the tree that are not sessions, whoever began them: they cannot follow to another address */
  outbound: DiagSocket[];
  /** all its TCP sockets that sock_diag lists: those in state CLOSE are not among them */
  listed: DiagSocket[];
  /** every socket of the tree, see {@link socketInodes} */
  inodes: Map<number, SocketPlace>;
}

/**
 * Sorts the tree's TCP sockets.
 * @param upstreams where the proxy connects to: connections at that address and port are sessions
 */
export async function classifySockets(pids: number[], upstreams: Endpoint[]): Promise<ApplicationSockets> {
  const inodes = await socketInodes(pids);
  const all = listSockets({}, networkOf(pids));
  const mine = all.filter((socket) => inodes.has(socket.inode));
  // who has come to that port at another address, as to the pod's own, has come past the proxy
  const led = new Set(upstreams.map((upstream) => endpointKey(upstream)));
  const isSession = ({ local }: DiagSocket): boolean => led.has(endpointKey(local));
  const ends = new Set(mine.map(({ local, remote }) => connectionKey(local, remote)));
  const isInternal = ({ local, remote }: DiagSocket): boolean => ends.has(connectionKey(remote, local));
  const connected = mine.filter((socket) => socket.state !== "LISTEN" && socket.state !== "CLOSE");
  return {
    inodes,
    listed: mine,
    listening: mine.filter((socket) => socket.state === "LISTEN").map((socket) => socket.local),
    outbound: connected.filter((socket) => !isSession(socket) && !isInternal(socket)),
  };
}

/**
 * Outbound connections that go along: repair mode would still take and acknowledge what their peers send to a node that
 * they have left. Not by a filter, which CRIU would dump, but by a minimum TTL (ip(7), IP_MINTTL) no segment reaches;
 * CRIU knows nothing of it, so the restored socket hears.
 */
export async function shieldOutbound(pids: number[], sockets: DiagSocket[]): Promise<void> {
  await withSockets(pids, sockets, (fd, socket) => setTtlMin(fd, socket, TTL_MAX));
}

/** Ends {@link shieldOutbound} where the application goes on after all. May be repeated. */
export async function unshieldOutbound(pids: number[], address: string): Promise<void> {
  await withSockets(
    pids,
    listSockets({}, networkOf(pids)).filter(
      (socket) => socket.local.address === address && socket.state !== "LISTEN",
    ),
    (fd, socket) => setTtlMin(fd, socket, 0),
  );
}

/**
 * After a restored tree was ended here, in the node's network (one of its own ended with it): its ends of the sessions say farewell to peers that hear nothing any more, and
 * their four-tuples stay taken for seconds.
 */
export function endLeftConnections(ports: number[]): void {
  for (const socket of listSockets()) {
    const orphaned = socket.inode === 0 && socket.state !== "TIME_WAIT";
    if (!orphaned || !ports.includes(socket.local.port)) continue;
    try {
      destroySocket(socket);
    } catch {
      // it ended by itself
    }
  }
}

function setTtlMin(fd: number, { local }: DiagSocket, ttl: number): void {
  if (local.address.includes(":")) sock.setsockoptInt(fd, sock.IPPROTO_IPV6, IPV6_MINHOPCOUNT, ttl);
  else sock.setsockoptInt(fd, sock.IPPROTO_IP, IP_MINTTL, ttl);
}

async function withSockets(
  pids: number[],
  sockets: DiagSocket[],
  use: (fd: number, socket: DiagSocket) => void,
): Promise<void> {
  if (sockets.length === 0) return;
  const inodes = await socketInodes(pids);
  for (const socket of sockets) {
    const place = inodes.get(socket.inode);
    if (place !== undefined) withSocketAt(place, (fd) => use(fd, socket)); // else it ended by itself
  }
}

/** The same for each way to write an address, as `[0:0::1]` in a configuration. */
function endpointKey({ address, port }: Endpoint): string {
  return `${ipText.unmapped(ipText.formatAddress(ipText.addressBytes(address)))} ${port}`;
}

function connectionKey(from: Endpoint, to: Endpoint): string {
  return `${from.address} ${from.port} ${to.address} ${to.port}`;
}
