/**
 * The application's own TCP sockets, looked at and touched from outside (pidfd_getfd(2), sock_diag(7), tcp_repair).
 */
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { type DiagSocket, destroySocket, listSockets } from "#proxy/tcp/diag.ts";
import * as kernel from "#proxy/tcp/kernel.ts";
import { descriptorsOf } from "../container/processes.ts";

const IP_MINTTL = 21;
const IPV6_MINHOPCOUNT = 73;
const TTL_MAX = 255;
const SOCKET = /^socket:\[(\d+)\]$/;

/** Inodes of every socket of these processes, each with one place to get it from. */
export async function socketInodes(pids: number[]): Promise<Map<number, { pid: number; fd: number }>> {
  const inodes = new Map<number, { pid: number; fd: number }>();
  for (const pid of pids) {
    for (const { fd, target } of await descriptorsOf(pid)) {
      const inode = SOCKET.exec(target)?.[1];
      if (inode !== undefined && !inodes.has(Number(inode))) inodes.set(Number(inode), { pid, fd });
    }
  }
  return inodes;
}

/**
 * Puts the tree's connected TCP sockets into repair mode (tcp_repair): they send nothing, not even when they are closed.
 * Returns how many it were.
 */
export function beginRepair(pids: number[]): Promise<number> {
  return eachTcpSocket(pids, (fd, { state }) => {
    if (state === "LISTEN" || state === "CLOSE" || isInRepair(fd)) return false;
    kernel.setsockoptInt(fd, kernel.IPPROTO_TCP, kernel.TCP_REPAIR, kernel.TCP_REPAIR_ON);
    return true;
  });
}

/**
 * Ends {@link beginRepair}, and the repair mode that a cut-off dump has left: continued like that, every session would be
 * reset. Returns how many it were.
 */
export function endRepair(pids: number[]): Promise<number> {
  return eachTcpSocket(pids, (fd) => {
    if (!isInRepair(fd)) return false;
    kernel.setsockoptInt(fd, kernel.IPPROTO_TCP, kernel.TCP_REPAIR, kernel.TCP_REPAIR_OFF_NO_WP);
    return true;
  });
}

function isInRepair(fd: number): boolean {
  return kernel.getsockoptInt(fd, kernel.IPPROTO_TCP, kernel.TCP_REPAIR) !== 0;
}

/** Counts the sockets for which `use` says true. */
async function eachTcpSocket(
  pids: number[],
  use: (fd: number, socket: DiagSocket) => boolean,
): Promise<number> {
  const inodes = await socketInodes(pids);
  const tcp = new Map(listSockets().map((socket) => [socket.inode, socket]));
  const pidfds = new Map<number, number>();
  let count = 0;
  try {
    for (const [inode, { pid, fd }] of inodes) {
      const socket = tcp.get(inode);
      if (socket === undefined) continue;
      const pidfd = pidfds.get(pid) ?? kernel.pidfdOpen(pid);
      pidfds.set(pid, pidfd);
      const ours = kernel.pidfdGetfd(pidfd, fd);
      try {
        if (use(ours, socket)) count++;
      } finally {
        kernel.close(ours);
      }
    }
  } finally {
    for (const pidfd of pidfds.values()) kernel.close(pidfd);
  }
  return count;
}

export interface ApplicationSockets {
  /** LISTEN sockets of the tree */
  listening: Endpoint[];
  /** connections to peers outside the tree that are not sessions: they cannot follow to another address */
  outbound: DiagSocket[];
}

/**
 * Sorts the tree's TCP sockets.
 * @param upstreams where the proxy connects to: connections there are sessions
 */
export async function classifySockets(pids: number[], upstreams: Endpoint[]): Promise<ApplicationSockets> {
  const inodes = await socketInodes(pids);
  const all = listSockets();
  const mine = all.filter((socket) => inodes.has(socket.inode));
  const isSession = (socket: DiagSocket): boolean =>
    upstreams.some((upstream) => upstream.port === socket.local.port);
  const isInternal = (socket: DiagSocket): boolean =>
    mine.some(
      (other) => sameEndpoint(other.local, socket.remote) && sameEndpoint(other.remote, socket.local),
    );
  const connected = mine.filter((socket) => socket.state !== "LISTEN" && socket.state !== "CLOSE");
  return {
    listening: mine.filter((socket) => socket.state === "LISTEN").map((socket) => socket.local),
    outbound: connected.filter((socket) => !isSession(socket) && !isInternal(socket)),
  };
}

/**
 * Both ends learn that the connection is over, the peer by RST, the application when it goes on; it connects again as it
 * does today. Not by SOCK_DESTROY: that leaves the socket an address of this node, which no other node can bind it to.
 */
export async function closeOutbound(pids: number[], sockets: DiagSocket[]): Promise<void> {
  await withSockets(pids, sockets, kernel.disconnect);
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
    listSockets().filter((socket) => socket.local.address === address && socket.state !== "LISTEN"),
    (fd, socket) => setTtlMin(fd, socket, 0),
  );
}

/**
 * After a restored tree was ended here: its ends of the sessions say farewell to peers that hear nothing any more, and
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
  if (local.address.includes(":")) kernel.setsockoptInt(fd, kernel.IPPROTO_IPV6, IPV6_MINHOPCOUNT, ttl);
  else kernel.setsockoptInt(fd, kernel.IPPROTO_IP, IP_MINTTL, ttl);
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
    if (place === undefined) continue; // not the application's, or it ended by itself
    const pidfd = kernel.pidfdOpen(place.pid);
    try {
      const ours = kernel.pidfdGetfd(pidfd, place.fd);
      try {
        use(ours, socket);
      } finally {
        kernel.close(ours);
      }
    } finally {
      kernel.close(pidfd);
    }
  }
}

function sameEndpoint(a: Endpoint, b: Endpoint): boolean {
  return a.port === b.port && a.address === b.address;
}
