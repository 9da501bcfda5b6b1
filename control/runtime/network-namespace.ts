/**
 * Network namespaces of containers (network_namespaces(7)): what is looked at, made or changed in one goes through here.
 * A namespace is found by a process in it.
 */
import { closeSync, fstatSync, openSync, readlinkSync } from "node:fs";
import { HANDED_SOCKETS, type HandedSocket } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import { type Network, OWN_NETWORK } from "#proxy/kernel/network.ts";
import * as sock from "#proxy/kernel/socket.ts";

/** how long a proxy waits for a handed socket */
const SOL_TIMEOUT_MS = 500;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;

/**
 * Runs `use`, which must not wait and only looks, in the network namespace that these processes of a container share. Where all have
 * ended nothing of theirs is to be found anywhere. What changes something: {@link insideNetworkOf}.
 */
export function inNetworkOf<T>(pids: number[], use: () => T): T {
  for (const pid of pids) {
    const namespace = openNamespace(pid);
    if (namespace === null) continue;
    try {
      return namespaces.inNetworkNamespace(namespace, use);
    } finally {
      closeSync(namespace);
    }
  }
  return use();
}

/** That namespace as a maker of sockets, for calls that take the network they look at. */
export function networkOf(pids: number[]): Network {
  return networkBy((use) => inNetworkOf(pids, use));
}

function networkBy(inside: <T>(use: () => T) => T): Network {
  return {
    tryTcpSocket: (family) => inside(() => OWN_NETWORK.tryTcpSocket(family)),
    withDiag: (use) => inside(() => OWN_NETWORK.withDiag(use)),
    withRaw: (family, use) => inside(() => OWN_NETWORK.withRaw(family, use)),
  };
}

/** One that is kept open, whatever becomes of the processes in it. */
export class KeptNetwork {
  readonly sockets: Network = networkBy((use) => this.run(use));
  readonly #namespace: number;
  readonly #inode: number;

  private constructor(namespace: number) {
    this.#namespace = namespace;
    this.#inode = fstatSync(namespace).ino;
  }

  /** null: the process has ended. That it is still there now says that it was its network. */
  static of(pid: number): KeptNetwork | null {
    const namespace = openNamespace(pid);
    return namespace === null ? null : new KeptNetwork(namespace);
  }

  /** Runs `use`, which must not wait, in it. */
  run<T>(use: () => T): T {
    return namespaces.inNetworkNamespace(this.#namespace, use);
  }

  /** Whether a socket of ours belongs to it. */
  has(socket: number): boolean {
    const namespace = sock.namespaceOf(socket);
    try {
      return fstatSync(namespace).ino === this.#inode;
    } finally {
      closeSync(namespace);
    }
  }

  close(): void {
    closeSync(this.#namespace);
  }
}

/**
 * Runs `use`, which must not wait and may change things, in a container's network namespace and nowhere else.
 * @throws HoldfastError `CONTAINER_ENDED`
 */
export function insideNetworkOf<T>(initPid: number, use: () => T): T {
  const namespace = openNamespace(initPid);
  if (namespace === null)
    throw fail("CONTAINER_ENDED", `process ${initPid}, whose network this is about, has ended`, {
      retryable: true,
    });
  try {
    return namespaces.inNetworkNamespace(namespace, use);
  } finally {
    closeSync(namespace);
  }
}

/** null: it has ended, and has no namespaces any more */
function openNamespace(pid: number): number | null {
  try {
    return openSync(`/proc/${pid}/ns/net`, "r");
  } catch {
    return null;
  }
}

/** Whether a container is in another network namespace than this agent; null where it has ended. */
export function hasOwnNetwork(initPid: number): boolean | null {
  const link = (pid: number | "thread-self"): string | null => {
    try {
      return readlinkSync(`/proc/${pid}/ns/net`);
    } catch {
      return null;
    }
  };
  const theirs = link(initPid);
  return theirs === null ? null : theirs !== link("thread-self");
}

/**
 * Sockets of a container's network for its proxy, by their names (`HANDED_SOCKETS`). The caller closes them.
 * @throws HoldfastError of the kernel
 */
export function makeHandedSockets(initPid: number): Map<HandedSocket, number> {
  return insideNetworkOf(initPid, () => {
    const made = new Map<HandedSocket, number>();
    try {
      for (const name of HANDED_SOCKETS) {
        const fd = makeSocket(name);
        if (fd !== null) made.set(name, fd);
      }
      return made;
    } catch (error) {
      for (const fd of made.values()) descriptor.close(fd);
      throw error;
    }
  });
}

/** null: this node has no IPv6 */
function makeSocket(name: HandedSocket): number | null {
  const { AF_INET, AF_INET6 } = ipText;
  const { SOCK_RAW, SOCK_STREAM, SOCK_CLOEXEC } = sock;
  if (name === "diag") return sock.socket(sock.AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, sock.NETLINK_SOCK_DIAG);
  const isV6 = name.endsWith("6");
  try {
    if (name.startsWith("raw"))
      return sock.socket(isV6 ? AF_INET6 : AF_INET, SOCK_RAW | SOCK_CLOEXEC, sock.IPPROTO_RAW);
    const fd = sock.socket(isV6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, sock.IPPROTO_TCP);
    try {
      // the loopback device answers at once; whatever keeps it from that must not keep the proxy
      for (const option of [SO_RCVTIMEO, SO_SNDTIMEO])
        sock.setsockoptBuffer(fd, sock.SOL_SOCKET, option, timeval(SOL_TIMEOUT_MS));
      return fd;
    } catch (error) {
      descriptor.close(fd);
      throw error;
    }
  } catch (error) {
    if (isV6 && error instanceof HoldfastError && ["EAFNOSUPPORT", "EADDRNOTAVAIL"].includes(error.code))
      return null;
    throw error;
  }
}

function timeval(ms: number): Buffer {
  const value = Buffer.alloc(16);
  value.writeBigInt64LE(BigInt(Math.floor(ms / 1_000)), 0);
  value.writeBigInt64LE(BigInt((ms % 1_000) * 1_000), 8);
  return value;
}
