/** Facts of descriptors: their files, pipes, events, timers, sockets, and who shares which. */
import { statSync } from "node:fs";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as procs from "#proxy/kernel/processes.ts";
import { giveBack } from "../runtime/borrowed.ts";
import { type DescriptorInfo, descriptorInfo, isCloseOnExec } from "./fdinfo.ts";
import type { Facts } from "./fingerprint.ts";
import { type InnerPids, innerText, mountsOf } from "./proc-text.ts";
import { descriptionsOf } from "./sharing.ts";
import { refreshConnection, type SocketContext, socketContext, socketFacts, tcpKey } from "./sockets.ts";
import type { Space } from "./space.ts";
import type { Tree, TreeDescriptor } from "./tree.ts";

/**
 * What a line of a text costs that becomes a fact, which takes four times as much of this agent's memory (measured: 280 bytes for
 * a watch of 70).
 */
const FACTS_WEIGHT = 4;

/** Descriptors of a tree, looked at as a whole first, and then one by one as often as it takes. */
export class DescriptorLook {
  #tree: Tree;
  #first: Map<TreeDescriptor, TreeDescriptor>;
  #objects: Map<string, string>;
  #sockets: SocketContext;
  #mountPoints = new Map<number, ReadonlyMap<string, string>>();
  /** where files are the container's own: what is shared with others may grow meanwhile */
  #ownMounts = new Set<string>();

  /** @param isRunning nothing is asked that would disturb it */
  constructor(
    tree: Tree,
    { addresses, isRunning = false }: { addresses: string[]; isRunning?: boolean },
    space: Space,
  ) {
    this.#tree = tree;
    for (const { pid } of tree.processes) {
      const mounts = mountsOf(space.text(`/proc/${pid}/mountinfo`));
      this.#mountPoints.set(pid, new Map(mounts.map(({ id, point }) => [id, point])));
      for (const { point, type } of mounts) if (/^(overlay|tmpfs)$/.test(type)) this.#ownMounts.add(point);
    }
    this.#first = descriptionsOf(tree.descriptors, ({ link }) => link);
    this.#objects = objectsOf(tree.descriptors);
    this.#sockets = socketContext(tree, addresses, this.#objects, !isRunning);
  }

  /** Of every descriptor, or of those whose subjects are named, as they are now. */
  addFacts(subjects: Record<string, Facts>, space: Space, only?: ReadonlySet<string>): void {
    const duplicates = new Duplicates();
    try {
      for (const descriptor of this.#tree.descriptors) {
        const subject = `descriptor ${descriptor.name}`;
        if (only !== undefined && !only.has(subject)) continue;
        subjects[subject] = this.#factsOf(descriptor, duplicates, space);
      }
    } finally {
      duplicates.close();
    }
  }

  /**
   * What happened to TCP since the first look, when others were still at it: what waits in each connection, and who has
   * ended.
   */
  refreshTcp(subjects: Record<string, Facts>): void {
    const duplicates = new Duplicates();
    try {
      for (const descriptor of this.#tree.descriptors) {
        const facts = subjects[`descriptor ${descriptor.name}`];
        if (facts?.agreed === undefined) continue; // it was no connection, and cannot become one
        const before = [facts.state, facts.agreed, facts["bytes to read"], facts["bytes to send"]].join(" ");
        duplicates.use(descriptor, (fd) => {
          if (tcpKey(fd) !== before) refreshConnection(fd, this.#sockets, facts);
        });
      }
    } finally {
      duplicates.close();
    }
  }

  /** What a file description lists is sorted once, however many descriptors it has. */
  #factsOf(descriptor: TreeDescriptor, duplicates: Duplicates, space: Space): Facts {
    const { pid, fd, link, name } = descriptor;
    const head = this.#first.get(descriptor) ?? descriptor;
    const text = space.text(`/proc/${pid}/fdinfo/${fd}`, head === descriptor ? FACTS_WEIGHT : 1);
    const facts: Facts = { "close on exec": String(isCloseOnExec(text)) };
    if (head !== descriptor) {
      facts["same as"] = `descriptor ${head.name}`;
      return facts;
    }
    const info = descriptorInfo(text, this.#mountPoints.get(pid) ?? new Map(), this.#tree.innerPids);
    facts.file = fileName(link);
    facts.flags = info.flags;
    facts.position = info.pos;
    Object.assign(facts, info.facts);
    const object = this.#objects.get(link);
    if (object !== undefined && object !== name) facts["other end of"] = object;
    const isOwn = this.#ownMounts.has(info.facts.mount ?? "") || link.endsWith(" (deleted)");
    if (link.startsWith("/")) Object.assign(facts, statFacts(descriptor, isOwn));
    const add = (fd: number): void =>
      duplicateFacts(fd, { ...descriptor, info }, this.#tree.innerPids, this.#sockets, facts);
    duplicates.use(descriptor, add);
    space.take("bytes", facts.filter?.length ?? 0);
    return facts;
  }
}

/** First holder of each pipe and socket, by link. */
function objectsOf(descriptors: TreeDescriptor[]): Map<string, string> {
  const objects = new Map<string, string>();
  for (const { link, name } of descriptors)
    if (/^(pipe|socket):/.test(link) && !objects.has(link)) objects.set(link, name);
  return objects;
}

/** `pipe`, `socket`, `anon_inode:[eventfd]`, `/var/log/x`; numbers of inodes left out. */
function fileName(link: string): string {
  return link.replace(/^(\w+):\[\d+\]$/, "$1");
}

/** What fstat(2) says of a file with a path. */
function statFacts({ pid, fd }: TreeDescriptor, withSize: boolean): Facts {
  try {
    const { mode, uid, gid, size, rdev, nlink } = statSync(`/proc/${pid}/fd/${fd}`);
    const facts: Facts = { mode: mode.toString(8), owner: `${uid}:${gid}`, device: String(rdev) };
    facts.linked = String(nlink > 0);
    const isFile = (mode & 0o170000) === 0o100000;
    if (isFile && withSize) facts.size = String(size);
    return facts;
  } catch {
    return {};
  }
}

/** of a process or descriptor that ended while it was looked at, as one that runs may */
const GONE = new Set(["EBADF", "ESRCH", "EINVAL"]);

/** Descriptors of the tree, duplicated one after the other. */
export class Duplicates {
  #pidfds = new Map<number, number>();

  /** What `work` gives; null: it has gone. */
  use<T>({ pid, fd }: TreeDescriptor, work: (fd: number) => T): T | null {
    const ours = this.#duplicate(pid, fd);
    if (ours === null) return null;
    try {
      return work(ours);
    } finally {
      giveBack(ours);
    }
  }

  #duplicate(pid: number, fd: number): number | null {
    try {
      let pidfd = this.#pidfds.get(pid);
      if (pidfd === undefined) {
        pidfd = procs.pidfdOpen(pid);
        this.#pidfds.set(pid, pidfd);
      }
      return procs.pidfdGetfd(pidfd, fd);
    } catch (error) {
      if (error instanceof HoldfastError && GONE.has(error.code)) return null;
      throw error;
    }
  }

  close(): void {
    for (const pidfd of this.#pidfds.values()) descriptor.close(pidfd);
  }
}

interface Looked extends TreeDescriptor {
  info: DescriptorInfo;
}

function isWriteOnly({ info }: Looked): boolean {
  return (Number.parseInt(info.flags, 8) & O_ACCMODE) === O_WRONLY;
}

const O_ACCMODE = 3;
const O_WRONLY = 1;
const F_UNLCK = 2;
const PIPE = /^pipe:|^\/.*$/;
const QUEUED = /^(pipe:|anon_inode:(inotify|\[fanotify\]))/;
const TERMINAL = /^\/dev\/(pts\/|ptmx$|tty|console$)/;
const MEMORY_FILE = /^\/(memfd:|dev\/shm\/|SYSV)/;

/** What only a duplicate tells. */
function duplicateFacts(
  fd: number,
  looked: Looked,
  pids: InnerPids,
  sockets: SocketContext,
  facts: Facts,
): void {
  const { link } = looked;
  const add = (name: string, value: number, usual: number): void => {
    if (value >= 0 && value !== usual) facts[name] = String(value);
  };
  const owner = descriptor.tryFcntl(fd, descriptor.F_GETOWN, 0);
  // a process group is a negative number; errors of F_GETOWN are EBADF (O_PATH) and EINVAL only
  if (owner > 0) facts["signals go to"] = innerText(pids, String(owner));
  add("signal for I/O", descriptor.tryFcntl(fd, descriptor.F_GETSIG, 0), 0);
  if (link.startsWith("socket:")) {
    socketFacts(fd, looked, sockets, facts);
    return;
  }
  if (link.startsWith("/")) {
    add("lease", descriptor.tryFcntl(fd, descriptor.F_GETLEASE, 0), F_UNLCK);
    add("write hint", descriptor.tryWriteHint(fd), 0);
  }
  if (PIPE.test(link)) add("pipe size", descriptor.tryFcntl(fd, descriptor.F_GETPIPE_SZ, 0), 0);
  // of the writing end the reading end tells, if it is the application's at all
  if (QUEUED.test(link) && !(link.startsWith("pipe:") && isWriteOnly(looked)))
    add("bytes waiting", descriptor.tryIoctlInt(fd, descriptor.FIONREAD), 0);
  if (TERMINAL.test(link)) {
    add("exclusive", descriptor.tryIoctlInt(fd, descriptor.TIOCGEXCL), 0);
    // what was sent arrives by this; and whether its other end is open, and output is stopped
    add("ready", polling.pollNow(fd, polling.POLLIN | polling.POLLOUT), polling.POLLOUT);
    add("bytes waiting", descriptor.tryIoctlInt(fd, descriptor.FIONREAD), 0);
  }
  if (MEMORY_FILE.test(link)) add("seals", descriptor.tryFcntl(fd, descriptor.F_GET_SEALS, 0), 0);
}
