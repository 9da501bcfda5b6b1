/**
 * Takes the fingerprint of a tree that does not run. Everything here is synchronous and only looks: /proc, sock_diag, and
 * duplicates of the tree's descriptors (pidfd_getfd(2)), of which nothing is read that reading changes.
 */
import { readFileSync } from "node:fs";
import { inNetworkOf } from "../runtime/network-namespace.ts";
import { readText } from "../runtime/read-text.ts";
import { clockFacts } from "./clocks.ts";
import { DescriptorLook } from "./descriptors.ts";
import { type Facts, type Fingerprint, FORMAT, RAW_FORMAT } from "./fingerprint.ts";
import { ERROR_UNREAD, isUnix } from "./harmless.ts";
import { ipcFacts } from "./ipc-objects.ts";
import { condensed, LAST_LINE, memoryFacts } from "./memory-map.ts";
import { mountFacts, mountsOf } from "./proc-text.ts";
import { LIMITS_OF_RESTORED, Space } from "./space.ts";
import { processFacts, TaskLook } from "./tasks.ts";
import { type Tree, type TreeProcess, treeFrom } from "./tree.ts";

export interface TakeOptions {
  /** the container's init, and the application's processes, as the agent sees them; parents first */
  initPid: number;
  pids: number[];
  /** addresses that move with the workload: of others only that they are the node's is compared */
  addresses: string[];
  /** mount points of the node's folders in the container: what is mounted further below them is the node's */
  volumes: string[];
  /** it runs: nothing is asked that would disturb it */
  isRunning?: boolean;
  /** it was allowed at the source */
  isRestored?: boolean;
  /** in which it is to be compared; {@link FORMAT} */
  format?: number;
}

export interface Taken {
  /** made of what was read, at the first use: what is only text by then need not be sorted while clients wait */
  readonly fingerprint: Fingerprint;
  /** where each subject of it is now */
  tree: Tree;
  /** before the fingerprint is used: what others did to TCP connections since the look */
  refreshTcp: () => void;
  /** names of Unix sockets whose messages have descriptors that nobody has received: of those nothing is in the fingerprint */
  passing: () => string[];
  /** … that have an error which whoever reads there would take */
  failed: () => string[];
  /** the same with these subjects looked at again */
  again: (subjects: ReadonlySet<string>) => Fingerprint;
  ms: number;
}

/** @throws HoldfastError `AUDIT_SPACE` where there is more to look at than the bounds allow */
export function takeFingerprint(options: TakeOptions): Taken {
  const startedMs = performance.now();
  const { format = FORMAT, volumes } = options;
  const limits = options.isRestored ? LIMITS_OF_RESTORED : {};
  const space = new Space(limits);
  const tree = treeFrom(options.initPid, options.pids, space);
  const look = new TaskLook(tree, space, format);
  const subjects: Record<string, Facts> = {};
  const maps = new Map<string, string>();
  for (const process of tree.processes) {
    processFacts(look, process, subjects);
    if (process.isZombie) continue;
    const smaps = space.records(`/proc/${process.pid}/smaps`, LAST_LINE, condensed);
    maps.set(`memory ${process.inner}`, smaps);
  }
  const descriptors = inNetworkOf([options.initPid], () => new DescriptorLook(tree, options, space));
  descriptors.addFacts(subjects, space);
  const mounts = mountsOf(readFileSync(`/proc/${options.initPid}/mountinfo`, "utf8"));
  subjects.mounts = mountFacts(
    mounts.filter(({ point }) => !volumes.some((volume) => point.startsWith(`${volume}/`))),
    ({ point, isOfNode }) => {
      if (format === RAW_FORMAT) return "own";
      if (volumes.includes(point)) return "volume";
      return isOfNode ? "node" : "own";
    },
  );
  const root = tree.processes[0];
  if (root !== undefined) subjects.ipc = ipcFacts(root.pid);
  const clocks = clockFacts(root === undefined ? "" : readText(`/proc/${root.pid}/timens_offsets`));
  let made: Fingerprint | null = null;
  const fingerprint = (): Fingerprint => {
    if (made !== null) return made;
    for (const [subject, smaps] of maps) subjects[subject] = memoryFacts(smaps);
    maps.clear();
    made = { format, subjects, clocks };
    return made;
  };
  return {
    get fingerprint() {
      return fingerprint();
    },
    tree,
    passing: () => Object.keys(subjects).filter((subject) => (subjects[subject]?.scm_fds ?? "0") !== "0"),
    failed: () => Object.keys(subjects).filter((subject) => hasUnixError(subjects[subject] ?? {})),
    refreshTcp: () => descriptors.refreshTcp(subjects),
    again: (names) => {
      const fresh = { ...fingerprint().subjects };
      const space = new Space(limits);
      descriptors.addFacts(fresh, space, names);
      if (names.has("ipc") && root !== undefined) fresh.ipc = ipcFacts(root.pid);
      const now = new TaskLook(treeFrom(options.initPid, options.pids, space), space, format);
      for (const process of now.tree.processes)
        if (hasSubject(process, names)) processFacts(now, process, fresh);
      return { ...fingerprint(), subjects: fresh };
    },
    ms: performance.now() - startedMs,
  };
}

function hasUnixError(facts: Facts): boolean {
  return facts[ERROR_UNREAD] !== undefined && isUnix(facts);
}

function hasSubject({ inner, threads }: TreeProcess, names: ReadonlySet<string>): boolean {
  return (
    names.has(`process ${inner}`) || threads.some((thread) => names.has(`thread ${inner}/${thread.inner}`))
  );
}

/** The first look of a process takes several times as long as the next: this is one that nobody waits for, of the agent itself. */
export function rehearse(): void {
  takeFingerprint({ initPid: process.pid, pids: [process.pid], addresses: [], volumes: [], isRunning: true });
}
