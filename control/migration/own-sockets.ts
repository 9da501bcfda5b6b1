/**
 * Sockets of the application's own that know an address of the node they are on, or a peer that is lost in a move. What
 * CRIU would refuse to restore, or restore as something else, is written down while the application is frozen, taken out
 * of the image on the other node, and put back into the restored, stopped application.
 *
 * Only connections that a move ends, or has to begin anew, are touched at the source; the list is on disk before that, so
 * that a rollback, also one by the next agent, puts them back. Everything else is only looked at.
 *
 * Others are also those who came to the application's own port at another address than the proxy does: past it.
 *
 *   state at the source                             at the target
 *   connected to others (`outbound: close`)         what was unread, then reset; a peer that had finished: then its end
 *   reset or refused, and the application has       the same bytes, the same end
 *     not (or has) looked
 *   connecting                                      connects anew, from there
 *   UDP, connected to others                        the same port and peer, from the address of that node
 *   datagrams that were not read                    the same, from the same senders
 *   in multicast groups                             in the same groups, on the device of the same name
 *   bound to the node's address                     bound to that node's address in the same network
 */
import { fstatSync } from "node:fs";
import { join } from "node:path";
import * as z from "zod";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import type { DiagSocket } from "#proxy/kernel/diag.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readImage, writeImage } from "../criu/image-files.ts";
import { type InetSocketChange, type InetSocketImage, rewriteInetSockets } from "../criu/socket-images.ts";
import { inNetworkOf, insideNetworkOf } from "../runtime/network-namespace.ts";
import { innerPid } from "../runtime/processes.ts";
import { isHere, isLoopback, isUnspecified, ownAddressFor, unspecifiedLike } from "./addresses.ts";
import { byInnerPid, readBeside, writeBeside } from "./beside-images.ts";
import { beginConnecting, end, endOf, tcpInfo, unreadOf } from "./ended-connection.ts";
import {
  type DeviceGroup,
  deviceGroups,
  join as joinGroup,
  membership,
  membershipsOf,
} from "./group-memberships.ts";
import { type ApplicationSockets, isTcp, type SocketPlace, withSocketAt } from "./sockets.ts";
import { receiveAgain, unreadDatagram, unreadDatagramsOf } from "./unread-datagrams.ts";

/** In the folder of the images: it goes to the target with them, and outlives an agent. */
export const FILE = "own-sockets.json";
/** Unread bytes carried for one socket: what the kernel keeps for one by default, 20 times. What is beyond is lost. */
const UNREAD_BYTES_MAX = 4 * 1024 * 1024;
const SOCKETS_MAX = 100_000;
const GROUPS_MAX = 10_000;

const endpoint = z.strictObject({
  address: z.ipv4().or(z.ipv6()),
  port: z.number().int().min(0).max(65_535),
});
/** where one descriptor of the socket is: as the container numbers its processes, which a restore keeps */
const place = z.strictObject({ pid: z.number().int().positive(), fd: z.number().int().nonnegative() });
const ended = z.strictObject({
  kind: z.literal("ended"),
  inode: z.number().int(),
  place,
  how: z.enum(["fin", "reset", "refused"]),
  isSeen: z.boolean(),
  unread: z.base64(),
  /** this move has ended it: so it is ended where a rollback goes on, too */
  isCut: z.boolean(),
});
const connecting = z.strictObject({
  kind: z.literal("connecting"),
  inode: z.number().int(),
  place,
  to: endpoint,
});
const internal = z.strictObject({
  /** both its ends are the application's, at an address of the node */
  kind: z.literal("internal"),
  inode: z.number().int(),
});
const datagram = z.strictObject({
  kind: z.literal("datagram"),
  inode: z.number().int(),
  place,
  groups: z.array(membership).max(GROUPS_MAX),
  unread: z.array(unreadDatagram),
});
const record = z.strictObject({
  sockets: z.array(z.discriminatedUnion("kind", [ended, connecting, internal, datagram])).max(SOCKETS_MAX),
});
export type OwnSockets = z.infer<typeof record>;
type OwnSocket = OwnSockets["sockets"][number];

// ---- at the source ----

/**
 * Writes down what the target has to know, and ends or takes back the connections in `cut`. While the application is frozen.
 * @param sockets as `classifySockets` has found them
 * @param cut connections to others that do not go along, see `classifySockets`
 */
export async function leaveOwnSockets(
  imagesDir: string,
  { inodes, listed }: Pick<ApplicationSockets, "inodes" | "listed">,
  cut: DiagSocket[],
): Promise<void> {
  const alive = new Set(listed.map(({ inode }) => inode));
  // sessions are many, and all there is to know of them is in the list
  const others = new Map([...inodes].filter(([inode]) => !alive.has(inode)));
  const pids = [...new Set([...inodes.values()].map(({ pid }) => pid))];
  const sockets = [
    ...(await cutConnections(inodes, cut)),
    ...(await deadConnections(others)),
    ...internalConnections(listed),
    ...inNetworkOf(pids, () => internalDatagrams(others)),
    ...(await datagramSockets(others)),
  ];
  writeBeside(imagesDir, FILE, { sockets } satisfies OwnSockets);
  for (const { inode } of cut) {
    const at = inodes.get(inode);
    // its peer hears of it by RST. Not by SOCK_DESTROY, which leaves the socket an address of this node
    if (at !== undefined) withSocketAt(at, sock.disconnect);
  }
}

async function cutConnections(inodes: Map<number, SocketPlace>, cut: DiagSocket[]): Promise<OwnSocket[]> {
  const found: OwnSocket[] = [];
  for (const { inode, state, remote } of cut) {
    const at = inodes.get(inode);
    if (at === undefined) continue;
    const common = { inode, place: await inside(at) };
    if (state === "SYN_SENT") {
      found.push({ kind: "connecting", ...common, to: remote });
      continue;
    }
    const hasFinished = state === "CLOSE_WAIT" || state === "LAST_ACK" || state === "CLOSING";
    const unread = withSocketAt(at, (fd) => unreadOf(fd, UNREAD_BYTES_MAX)) ?? Buffer.alloc(0);
    found.push({
      kind: "ended",
      ...common,
      how: hasFinished ? "fin" : "reset",
      isSeen: false,
      unread: unread.toString("base64"),
      isCut: true,
    });
  }
  return found;
}

/** sock_diag does not list them: in state CLOSE a socket is in no table of the kernel's. */
async function deadConnections(inodes: Map<number, SocketPlace>): Promise<OwnSocket[]> {
  const found: OwnSocket[] = [];
  for (const [inode, at] of inodes) {
    const ending = withSocketAt(at, (fd) =>
      isTcp(fd) && tcpInfo(fd).state === sock.TCP_CLOSE && sock.lastPeer(fd) !== null
        ? endOf(fd, UNREAD_BYTES_MAX)
        : null,
    );
    if (ending === null) continue;
    const { how, isSeen, unread } = ending;
    found.push({
      kind: "ended",
      inode,
      place: await inside(at),
      how,
      isSeen,
      unread: unread.toString("base64"),
      isCut: false,
    });
  }
  return found;
}

/** An application that talks to itself by way of the node's address goes on doing so by way of the other node's. */
function internalConnections(mine: DiagSocket[]): OwnSocket[] {
  const outside = mine.filter(({ local }) => !isLoopback(local.address));
  const ends = new Set(outside.map(({ local, remote }) => endKey(local, remote)));
  return outside
    .filter(({ local, remote }) => ends.has(endKey(remote, local)))
    .map(({ inode }) => ({ kind: "internal", inode }));
}

function internalDatagrams(inodes: Map<number, SocketPlace>): OwnSocket[] {
  const found: OwnSocket[] = [];
  const all: { inode: number; local: Endpoint; remote: Endpoint | null }[] = [];
  for (const [inode, at] of inodes)
    withSocketAt(at, (fd) => {
      if (isDatagram(fd)) all.push({ inode, local: sock.getsockname(fd), remote: sock.lastPeer(fd) });
    });
  for (const { inode, remote } of all) {
    if (remote === null || isLoopback(remote.address) || !isHere(remote.address)) continue;
    if (all.some(({ local }) => local.port === remote.port && canReceive(local.address, remote.address)))
      found.push({ kind: "internal", inode });
  }
  return found;
}

/** What CRIU drops of them. */
async function datagramSockets(inodes: Map<number, SocketPlace>): Promise<OwnSocket[]> {
  let groups: DeviceGroup[] | null = null;
  const found: OwnSocket[] = [];
  for (const [inode, at] of inodes) {
    const seen = withSocketAt(at, (fd) => {
      if (!isInternet(fd) || typeOf(fd) === sock.SOCK_STREAM) return null;
      groups ??= inNetworkOf([at.pid], deviceGroups);
      const unread = isDatagram(fd) ? unreadDatagramsOf(fd, UNREAD_BYTES_MAX) : [];
      return { groups: membershipsOf(fd, groups), unread };
    });
    if (seen !== null && seen.groups.length + seen.unread.length > 0)
      found.push({ kind: "datagram", inode, place: await inside(at), ...seen });
  }
  return found;
}

function endKey(one: Endpoint, other: Endpoint): string {
  return `${one.address} ${one.port} ${other.address} ${other.port}`;
}

function canReceive(bound: string, address: string): boolean {
  return isUnspecified(bound) || ipText.unmapped(bound) === ipText.unmapped(address);
}

// ---- at the target ----

/** null: the source had nothing to say. @throws HoldfastError `OWN_SOCKETS_INVALID` */
export function readOwnSockets(imagesDir: string): OwnSockets | null {
  return readBeside(imagesDir, FILE, record, "OWN_SOCKETS_INVALID");
}

/**
 * Rewrites the images so that every socket can be restored here.
 * @returns true when one is bound to `vip`, which has to be on this node for that
 */
export function fitOwnSockets(
  imagesDir: string,
  own: OwnSockets,
  { initPid, vip }: { initPid: number; vip: string | undefined },
): boolean {
  return insideNetworkOf(initPid, () => fitHere(imagesDir, own, vip));
}

function fitHere(imagesDir: string, own: OwnSockets, vip: string | undefined): boolean {
  const path = join(imagesDir, "files.img");
  let needsVip = false;
  const here = new Map<string, boolean>();
  const moves = (address: string): boolean => {
    if (ipText.unmapped(address) === vip) return true;
    const known = here.get(address) ?? isHere(address);
    here.set(address, known);
    return known;
  };
  const kinds = new Map<number, OwnSocket["kind"]>();
  for (const { inode, kind } of own.sockets) if (kind !== "datagram") kinds.set(inode, kind);
  const image = rewriteInetSockets(readImage(path), (socket) => {
    if (ipText.unmapped(socket.local.address) === vip && !kinds.has(socket.inode)) needsVip = true;
    return fitted(socket, kinds.get(socket.inode), moves);
  });
  writeImage(path, image);
  return needsVip;
}

function fitted(
  socket: InetSocketImage,
  kind: OwnSocket["kind"] | undefined,
  moves: (address: string) => boolean,
): InetSocketChange | null {
  const { local, remote, state } = socket;
  const nobody = { address: unspecifiedLike(local.address), port: 0 };
  const stays = !moves(local.address);
  if (kind === "ended") return { local: nobody, remote: nobody, state: sock.TCP_CLOSE, keepShutdown: false };
  if (kind === "connecting") {
    // an address that is left belongs to an explicit bind(2); of a port alone nobody knows
    const bound = isUnspecified(local.address)
      ? nobody
      : { ...local, address: stays ? ownAddressFor(local.address) : local.address };
    return { local: bound, remote: nobody, state: sock.TCP_CLOSE, keepShutdown: false };
  }
  if (!stays) return null;
  const mine = { ...local, address: ownAddressFor(local.address) };
  if (kind === "internal") {
    const there = moves(remote.address) ? remote.address : ownAddressFor(remote.address);
    return { local: mine, remote: { ...remote, address: there }, state, keepShutdown: true };
  }
  const isTcp = socket.type === sock.SOCK_STREAM;
  // a listener or a connection at an address that is not here: CRIU says so, and the move rolls back
  if (isTcp && state !== sock.TCP_CLOSE) return null;
  // connect(2) finds the address that reaches the peer
  const bound = isTcp || remote.port === 0 ? mine : { ...local, address: nobody.address };
  return { local: bound, remote, state, keepShutdown: true };
}

/** What the audit calls those that {@link putBackOwnSockets} answers for (`audit/fingerprint.ts`). */
export function ownSubjects({ sockets }: OwnSockets): string[] {
  return sockets.flatMap((socket) =>
    socket.kind === "ended" || socket.kind === "connecting"
      ? [`descriptor ${socket.place.pid}/${socket.place.fd}`]
      : [],
  );
}

/**
 * Into the restored application, which is stopped.
 * @param pids as the agent numbers them
 */
export async function putBackOwnSockets(pids: number[], own: OwnSockets): Promise<void> {
  await putBack(pids, own.sockets);
}

/** Into an application that stays where it is: only what {@link leaveOwnSockets} has touched. May be repeated. */
export async function takeBackOwnSockets(imagesDir: string, pids: number[]): Promise<void> {
  const own = readOwnSockets(imagesDir);
  if (own === null) return;
  await putBack(
    pids,
    own.sockets.filter((socket) => socket.kind === "connecting" || (socket.kind === "ended" && socket.isCut)),
    (fd, { inode }) => fstatSync(fd).ino === inode, // its program may have another one there by now
  );
}

async function putBack(
  pids: number[],
  sockets: OwnSocket[],
  isIt: (fd: number, socket: OwnSocket) => boolean = () => true,
): Promise<void> {
  if (sockets.length === 0) return;
  const groups = sockets.some(({ kind }) => kind === "datagram") ? inNetworkOf(pids, deviceGroups) : [];
  const byInner = await byInnerPid(pids);
  for (const socket of sockets) {
    if (socket.kind === "internal") continue;
    const pid = byInner.get(socket.place.pid);
    if (pid === undefined) continue;
    inNetworkOf([pid], () =>
      withSocketAt({ pid, fd: socket.place.fd }, (fd) => {
        if (isIt(fd, socket)) putBackOne(fd, socket, groups);
      }),
    );
  }
}

function putBackOne(
  fd: number,
  socket: Exclude<OwnSocket, { kind: "internal" }>,
  groups: DeviceGroup[],
): void {
  if (socket.kind === "datagram") {
    // the kernel lists the newest first
    for (const group of socket.groups.toReversed()) joinGroup(fd, group, groups);
    if (socket.unread.length > 0) receiveAgain(fd, socket.unread);
    return;
  }
  // one that is connected again has been put back before
  if (!isTcp(fd) || tcpInfo(fd).state !== sock.TCP_CLOSE || sock.lastPeer(fd) !== null) return;
  if (socket.kind === "connecting") beginConnecting(fd, socket.to);
  else end(fd, { ...socket, unread: Buffer.from(socket.unread, "base64") });
}

// ---- parts ----

async function inside({ pid, fd }: SocketPlace): Promise<{ pid: number; fd: number }> {
  return { pid: (await innerPid(pid)) ?? -1, fd };
}

function isDatagram(fd: number): boolean {
  const protocol = isInternet(fd) && typeOf(fd) === sock.SOCK_DGRAM ? protocolOf(fd) : -1;
  return protocol === sock.IPPROTO_UDP || protocol === sock.IPPROTO_UDPLITE;
}

function isInternet(fd: number): boolean {
  const domain = sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_DOMAIN);
  return domain === ipText.AF_INET || domain === ipText.AF_INET6;
}

function protocolOf(fd: number): number {
  return sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_PROTOCOL);
}

function typeOf(fd: number): number {
  return sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_TYPE);
}
