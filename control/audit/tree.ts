/** The tree whose fingerprint is taken: its processes, threads and descriptors, under both nodes' names for them. */
import { listNames, readLink } from "../runtime/read-text.ts";
import type { Holder } from "./sharing.ts";
import type { Space } from "./space.ts";

export interface Task {
  tid: number;
  inner: number;
  /** /proc/PID/task/TID/status */
  status: string;
}

export interface TreeProcess {
  pid: number;
  inner: number;
  isZombie: boolean;
  /** its main thread first */
  threads: Task[];
}

export interface TreeDescriptor extends Holder {
  /** of the process, in the container's numbering */
  inner: number;
  /** `socket:[123]`, `/var/log/x` */
  link: string;
}

export interface Tree {
  initPid: number;
  processes: TreeProcess[];
  /** in the order of the container's numbers, on every node the same */
  descriptors: TreeDescriptor[];
  /** agent's PIDs and TIDs → the container's, init included */
  innerPids: Map<number, number>;
  /** links of the init's namespaces */
  namespaces: Record<string, string>;
}

/** @throws HoldfastError `AUDIT_SPACE`, at the first that is too many */
export function treeFrom(initPid: number, pids: Iterable<number>, space: Space): Tree {
  const innerPids = new Map([[initPid, 1]]);
  const processes: TreeProcess[] = [];
  for (const pid of pids) {
    const threads: Task[] = [];
    for (const name of listNames(`/proc/${pid}/task`)) {
      const tid = Number(name);
      space.take("threads", 1);
      const status = space.text(`/proc/${pid}/task/${tid}/status`);
      if (status === "") continue;
      const inner = innerNumber(status);
      innerPids.set(tid, inner);
      threads.push({ tid, inner, status });
    }
    threads.sort((a, b) => Number(b.tid === pid) - Number(a.tid === pid) || a.inner - b.inner);
    const main = threads[0];
    if (main === undefined) continue;
    const isZombie = /^State:\s*[ZX]/m.test(main.status);
    processes.push({ pid, inner: main.inner, isZombie, threads });
  }
  const descriptors: TreeDescriptor[] = [];
  for (const { pid, inner, isZombie } of [...processes].sort((a, b) => a.inner - b.inner)) {
    if (isZombie) continue;
    const names = listNames(`/proc/${pid}/fd`);
    space.take("descriptors", names.length);
    for (const fd of names.map(Number).sort((a, b) => a - b)) {
      const link = readLink(`/proc/${pid}/fd/${fd}`);
      space.take("bytes", link.length);
      descriptors.push({ pid, fd, inner, name: `${inner}/${fd}`, link });
    }
  }
  const namespaces = Object.fromEntries(
    listNames(`/proc/${initPid}/ns`).map((name) => [name, readLink(`/proc/${initPid}/ns/${name}`)]),
  );
  return { initPid, processes, descriptors, innerPids, namespaces };
}

function innerNumber(status: string): number {
  const line = /^NSpid:\s*(.*)$/m.exec(status)?.[1] ?? "";
  return Number(line.trim().split(/\s+/).at(-1));
}
