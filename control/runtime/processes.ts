/**
 * What /proc says about the processes of a container (proc(5)). All PIDs here are the agent's view of them unless
 * a name says `inner`, which is the number inside the container's PID namespace.
 */
import { constants, lstatSync, readFileSync, readlinkSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { O_PATH } from "#proxy/kernel/files.ts";
import { listNames, readText, withRoom } from "./read-text.ts";

export interface ProcessIdentity {
  pid: number;
  /** clock ticks since boot (stat field 22): tells a process from a later one with the same number */
  startTicks: string;
}

export interface OpenDescriptor {
  fd: number;
  /** e.g. `socket:[123]`, `anon_inode:[io_uring]`, `/var/log/x` */
  target: string;
}

/** null: no such process */
export async function identify(pid: number): Promise<ProcessIdentity | null> {
  const fields = await statFields(pid);
  return fields === null || fields[0] === "Z" ? null : { pid, startTicks: fields[19] ?? "" };
}

/** It lives. One that its parent has not waited for yet does not: it has no namespaces any more. */
export async function isSameProcess(identity: ProcessIdentity): Promise<boolean> {
  const now = await identify(identity.pid);
  return now !== null && now.startTicks === identity.startTicks;
}

/** One letter of stat(5): R, S, D, T (stopped), Z … null: gone */
export async function processState(pid: number): Promise<string | null> {
  return (await statFields(pid))?.[0] ?? null;
}

/** Session id, in the agent's numbering (0: led by a process it cannot see). null: gone */
export async function sessionOf(pid: number): Promise<number | null> {
  const session = (await statFields(pid))?.[3];
  return session === undefined ? null : Number(session);
}

/** null: gone */
export async function parentOf(pid: number): Promise<number | null> {
  const parent = (await statFields(pid))?.[1];
  return parent === undefined ? null : Number(parent);
}

/** Direct children, in order of creation. */
export async function childrenOf(pid: number): Promise<number[]> {
  const children: number[] = [];
  for (const task of await list(`/proc/${pid}/task`))
    children.push(...numbersIn(await read(`/proc/${pid}/task/${task}/children`)));
  return children;
}

function numbersIn(text: string): number[] {
  return [...text.matchAll(/\d+/g)].map(Number);
}

/** Those of them that another thread of their parent has made than its main thread. */
export async function madeByThreads(pids: number[]): Promise<number[]> {
  const made: number[] = [];
  for (const pid of pids)
    for (const task of await list(`/proc/${pid}/task`))
      if (Number(task) !== pid) made.push(...numbersIn(await read(`/proc/${pid}/task/${task}/children`)));
  return made;
}

/** Root of the one tree below a container's init. null: there is none @throws HoldfastError `TREES_MANY` */
export async function rootBelow(init: ProcessIdentity): Promise<number | null> {
  const children: number[] = [];
  // what has ended there waits for the init to reap it
  for (const pid of await childrenOf(init.pid)) if ((await identify(pid)) !== null) children.push(pid);
  if (children.length > 1) {
    throw fail(
      "TREES_MANY",
      `the container has ${children.length} process trees below its init: run the application in the foreground, as one tree, or say subreaper: true of the workload and start it anew`,
    );
  }
  return children[0] ?? null;
}

/** The process and everything below it, parents first. */
export async function treeOf(pid: number): Promise<number[]> {
  const tree = [pid];
  for (const child of await childrenOf(pid)) tree.push(...(await treeOf(child)));
  return tree;
}

/** Every process below an init, parents first, if the application is no longer one tree. */
export async function treesBelow(init: number): Promise<number[]> {
  return (await treeOf(init)).slice(1);
}

/** PID in the innermost namespace the process lives in. null: gone */
export async function innerPid(pid: number): Promise<number | null> {
  const line = /^NSpid:\s*(.*)$/m.exec(await read(`/proc/${pid}/status`))?.[1];
  const last = line?.trim().split(/\s+/).at(-1);
  return last === undefined ? null : Number(last);
}

/** Inner PIDs of those that job control has stopped (state T of stat(5)). */
export async function stoppedOf(pids: number[]): Promise<number[]> {
  const stopped: number[] = [];
  for (const pid of pids) {
    if ((await processState(pid)) !== "T") continue;
    const inner = await innerPid(pid);
    if (inner !== null) stopped.push(inner);
  }
  return stopped;
}

/** Highest thread id, inner numbering, of a set of processes: the restore needs all of them free. */
export async function highestInnerTid(pids: number[]): Promise<number> {
  let highest = 0;
  for (const pid of pids) {
    for (const task of await list(`/proc/${pid}/task`)) {
      const line = /^NSpid:\s*(.*)$/m.exec(await read(`/proc/${pid}/task/${task}/status`))?.[1];
      highest = Math.max(highest, Number(line?.trim().split(/\s+/).at(-1) ?? 0));
    }
  }
  return highest;
}

export async function descriptorsOf(pid: number): Promise<OpenDescriptor[]> {
  const descriptors: OpenDescriptor[] = [];
  for (const fd of await list(`/proc/${pid}/fd`)) {
    try {
      descriptors.push({ fd: Number(fd), target: readlinkSync(`/proc/${pid}/fd/${fd}`) });
    } catch {
      // closed between the listing and the look: nothing to say about it
    }
  }
  return descriptors;
}

/** Opened with O_PATH: the link in /proc can be neither read nor written by (proc_pid_fd(5)). false: it was closed */
export function isPathOnly(pid: number, fd: number): boolean {
  try {
    if ((lstatSync(`/proc/${pid}/fd/${fd}`).mode & constants.S_IRWXU) !== 0) return false;
    const info = readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8");
    return (Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? "0", 8) & O_PATH) !== 0;
  } catch {
    return false;
  }
}

/** Resident set in bytes. 0: gone */
export async function residentBytes(pid: number): Promise<number> {
  return Number(/^VmRSS:\s*(\d+) kB$/m.exec(await read(`/proc/${pid}/status`))?.[1] ?? 0) * 1024;
}

/**
 * What images of these processes take, in bytes: anonymous memory of each (pages a fork shares are written for each), shared
 * memory once. Files that are mapped and unchanged are not in images.
 */
export async function imageBytes(pids: number[]): Promise<number> {
  let anonymous = 0;
  let shared = 0;
  let sharers = 0;
  for (const pid of pids) {
    const status = await read(`/proc/${pid}/status`);
    const kilo = (name: string): number =>
      Number(new RegExp(`^${name}:\\s*(\\d+) kB$`, "m").exec(status)?.[1] ?? 0);
    anonymous += kilo("RssAnon") + kilo("VmSwap");
    const shmem = kilo("RssShmem");
    shared += shmem;
    if (shmem > 0) sharers++;
  }
  if (sharers > 1) {
    shared = 0;
    // a page that n processes have mapped counts 1/n for each (Documentation/ABI/testing/procfs-smaps_rollup)
    for (const pid of pids)
      shared += Number(/^Pss_Shmem:\s*(\d+) kB$/m.exec(await read(`/proc/${pid}/smaps_rollup`))?.[1] ?? 0);
  }
  return (anonymous + shared) * 1024;
}

async function statFields(pid: number): Promise<string[] | null> {
  const text = await read(`/proc/${pid}/stat`);
  // the command name may contain anything, but ends with the last parenthesis
  return text === "" ? null : text.slice(text.lastIndexOf(")") + 2).split(" ");
}

// /proc never waits for a disk: asking at once takes a few microseconds, by way of a thread a hundred

function list(path: string): Promise<string[]> {
  return withRoom(() => listNames(path));
}

function read(path: string): Promise<string> {
  return withRoom(() => readText(path));
}
