/** Facts of processes and their threads: credentials, confinement, signals, limits, scheduling, names, namespaces. */
import { createHash } from "node:crypto";
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import * as procs from "#proxy/kernel/processes.ts";
import { readBytes, readLink, readText } from "../runtime/read-text.ts";
import { type Facts, RAW_FORMAT } from "./fingerprint.ts";
import { OWN_MASK } from "./harmless.ts";
import { cgroupFacts, limitFacts, statFacts, statusFacts, timerFacts } from "./proc-text.ts";
import { sharedTables } from "./sharing.ts";
import type { Space } from "./space.ts";
import type { Task, Tree, TreeProcess } from "./tree.ts";

/** enough of a command line to know the program by, and what sets it apart */
const COMMAND_BYTES = 200;
const NAMESPACES = [
  "cgroup",
  "ipc",
  "mnt",
  "net",
  "pid",
  "pid_for_children",
  "time",
  "time_for_children",
  "user",
  "uts",
];
/** Files of one value each. */
const VALUES = [
  "personality",
  "oom_score_adj",
  "coredump_filter",
  "uid_map",
  "gid_map",
  "setgroups",
  "projid_map",
  "autogroup",
  "attr/current",
  "attr/exec",
  "attr/fscreate",
  "attr/keycreate",
  "attr/sockcreate",
];
/** Of who has logged in and started the agent: the container's own unless a process has set it. */
const VALUES_OF_LOGIN = ["loginuid", "sessionid"];
const OF_ZOMBIE = [
  "name",
  "status State",
  "status PPid",
  "status NSpid",
  "status NSpgid",
  "status NSsid",
  "status Uid",
  "stat exit_signal",
  "stat exit_code",
];
/** enough of a program to have its headers and, where the linker put it there, its build id */
const EXE_BYTES = 65_536;

/** include/uapi/linux/sched.h */
const SCHED_OTHER = 0;
const SCHED_BATCH = 3;
const SCHEDULING_FIELDS = [
  "policy",
  "flags",
  "nice",
  "priority",
  "runtime",
  "deadline",
  "period",
  "utilMin",
  "utilMax",
] as const;

/**
 * System calls that block other signals while they wait: status shows those then, and the thread's own mask nowhere.
 * rt_sigsuspend, pselect6, ppoll, epoll_pwait, epoll_pwait2, io_pgetevents (arch/x86/entry/syscalls/syscall_64.tbl,
 * include/uapi/asm-generic/unistd.h).
 */
const WITH_A_MASK = new Set(
  process.arch === "arm64" ? [133, 72, 73, 22, 441, 292] : [130, 270, 271, 281, 441, 333],
);

/** What {@link processFacts} said under `scheduling`. */
export function schedulingOf(fact: string): procs.SchedulingAttributes | null {
  const values = new Map(fact.split(", ").map((part) => part.split(" ") as [string, string]));
  const number = (name: string): number => Number(values.get(name) ?? 0);
  if (!values.has("policy")) return null;
  return {
    policy: number("policy"),
    flags: values.get("flags") ?? "0",
    nice: number("nice"),
    priority: number("priority"),
    runtime: values.get("runtime") ?? "0",
    deadline: values.get("deadline") ?? "0",
    period: values.get("period") ?? "0",
    utilMin: number("utilMin"),
    utilMax: number("utilMax"),
  };
}

/** What all tasks of a tree are looked at with. */
export class TaskLook {
  readonly tree: Tree;
  readonly space: Space;
  readonly isRaw: boolean;
  /** what the container's init has in its status: what a thread was given and has not asked for */
  readonly usual: Facts;

  /** @param format of the fingerprint */
  constructor(tree: Tree, space: Space, format: number) {
    this.tree = tree;
    this.space = space;
    this.isRaw = format === RAW_FORMAT;
    this.usual = this.isRaw ? {} : statusFacts(readText(`/proc/${tree.initPid}/status`), tree.innerPids);
  }
}

/** @throws HoldfastError `AUDIT_SPACE` */
export function processFacts(look: TaskLook, process: TreeProcess, subjects: Record<string, Facts>): void {
  const { tree, space } = look;
  const { pid, inner, isZombie, threads } = process;
  const main = threads[0];
  if (main === undefined) return;
  const facts = taskFacts(look, pid, main);
  subjects[`process ${inner}`] = facts;
  if (isZombie) {
    // nobody is confined by what it had: what its parent is told when it looks is what is left of it
    subjects[`process ${inner}`] = Object.fromEntries(
      OF_ZOMBIE.flatMap((name) => (facts[name] === undefined ? [] : [[name, facts[name]]])),
    );
    return;
  }
  Object.assign(facts, limitFacts(readText(`/proc/${pid}/limits`)));
  Object.assign(facts, timerFacts(space.text(`/proc/${pid}/timers`), tree.innerPids));
  const groups = readText(`/proc/${pid}/cgroup`);
  const groupsOfInit = readText(`/proc/${tree.initPid}/cgroup`);
  Object.assign(facts, cgroupFacts(groups, groupsOfInit));
  for (const name of VALUES) facts[name] = readText(`/proc/${pid}/${name}`).trim().replace(/\s+/g, " ");
  for (const name of VALUES_OF_LOGIN) {
    const value = readText(`/proc/${pid}/${name}`);
    facts[name] = value === readText(`/proc/${tree.initPid}/${name}`) ? "the container's" : value;
  }
  const command = space.bytes(`/proc/${pid}/cmdline`);
  facts["command line"] = look.isRaw ? wordsOf(command) : commandLine(command);
  facts.environment = createHash("sha256")
    .update(space.bytes(`/proc/${pid}/environ`))
    .digest("hex");
  facts["auxiliary vector"] = readBytes(`/proc/${pid}/auxv`).toString("hex");
  for (const name of ["exe", "cwd", "root"]) facts[name] = readLink(`/proc/${pid}/${name}`);
  facts["program file"] = programFile(pid);
  for (const name of NAMESPACES) facts[`namespace ${name}`] = namespaceOf(tree, pid, name);
  const parent = tree.processes.find((other) => String(other.inner) === facts["status PPid"]);
  if (parent !== undefined) facts["shares with its parent"] = sharedTables(pid, parent.pid);
  for (const thread of threads.slice(1)) {
    // most of what a thread has is its process's
    const own: Facts = {};
    for (const [name, value] of Object.entries(taskFacts(look, pid, thread)))
      if (facts[name] !== value) own[name] = value;
    const ownGroups = readText(`/proc/${pid}/task/${thread.tid}/cgroup`);
    if (ownGroups !== groups)
      for (const [name, value] of Object.entries(cgroupFacts(ownGroups, groupsOfInit)))
        if (facts[name] !== value) own[name] = value;
    const shared = sharedTables(thread.tid, pid);
    own["shares with its process"] = shared;
    for (const name of ["namespace mnt", "namespace net", "namespace uts", "namespace ipc"]) {
      const namespace = namespaceOf(tree, thread.tid, name.slice("namespace ".length));
      if (facts[name] !== namespace) own[name] = namespace;
    }
    subjects[`thread ${inner}/${thread.inner}`] = own;
  }
}

/** Its beginning, by which a difference is told, and its size and a digest, by which it is found. */
function commandLine(command: Buffer): string {
  const more = command.length > COMMAND_BYTES ? "…" : "";
  const digest = createHash("sha256").update(command).digest("hex");
  return `${wordsOf(command.subarray(0, COMMAND_BYTES))}${more} (${command.length} bytes, ${digest.slice(0, 16)})`;
}

function wordsOf(command: Buffer): string {
  return command.toString("utf8").replaceAll("\0", " ").trim();
}

/** The container's number of each thread of the tree, and the agent's. */
export function taskNumbers(tree: Tree): Map<string, number> {
  const numbers = new Map<string, number>();
  for (const { inner, pid, threads } of tree.processes) {
    numbers.set(`process ${inner}`, pid);
    for (const thread of threads) numbers.set(`thread ${inner}/${thread.inner}`, thread.tid);
  }
  return numbers;
}

/** What each thread has of its own. */
function taskFacts({ tree, usual }: TaskLook, pid: number, { tid, status }: Task): Facts {
  const facts = statusFacts(status, tree.innerPids, usual);
  const folder = `/proc/${pid}/task/${tid}`;
  Object.assign(facts, statFacts(readText(`${folder}/stat`), tree.innerPids));
  facts[OWN_MASK] = String(!WITH_A_MASK.has(Number.parseInt(readText(`${folder}/syscall`), 10)));
  facts.name = readText(`${folder}/comm`).trimEnd();
  facts["timer slack"] = readText(`/proc/${tid}/timerslack_ns`).trim();
  facts["I/O priority"] = ioPriority(tid);
  facts["CPU affinity"] = affinity(tree, tid);
  facts.scheduling = scheduling(tree, tid);
  return facts;
}

/**
 * As `sched_setattr` takes it. A time slice that is the machine's usual one, as the container's init has it, is none of the
 * thread's own.
 */
function scheduling(tree: Tree, tid: number): string {
  const own = procs.getSchedulingAttributes(tid);
  if (own === null) return "";
  const usual = procs.getSchedulingAttributes(tree.initPid);
  const isFair = own.policy === SCHED_OTHER || own.policy === SCHED_BATCH;
  const runtime = isFair && own.runtime === usual?.runtime ? "0" : own.runtime;
  return SCHEDULING_FIELDS.map((field) => `${field} ${field === "runtime" ? runtime : own[field]}`).join(
    ", ",
  );
}

/** include/uapi/linux/ioprio.h: a class of 0 is "as the nice value says", whatever the level. */
function ioPriority(tid: number): string {
  const priority = procs.getIoPriority(tid);
  return priority === null || priority >> 13 === 0 ? "0" : String(priority);
}

/** Who may run wherever the container may runs so on a node with other CPUs as well. */
function affinity(tree: Tree, tid: number): string {
  const own = procs.getAffinity(tid);
  return own === null ? "" : own === procs.getAffinity(tree.initPid) ? "the container's" : own;
}

/** Namespaces that CRIU makes for the tree as a whole. What is in them is compared by itself. */
const OF_THE_TREE = new Set(["ipc", "time", "time_for_children"]);

/** `the tree's`, `the container's`, or the first process of the tree that is in the same one. */
function namespaceOf(tree: Tree, task: number, name: string): string {
  const link = readLink(`/proc/${task}/ns/${name}`);
  const root = tree.processes[0]?.pid ?? tree.initPid;
  if (OF_THE_TREE.has(name) && link === readLink(`/proc/${root}/ns/${name}`)) return "the tree's";
  if (link === tree.namespaces[name]) return "the container's";
  const first = tree.processes.find(({ pid }) => readLink(`/proc/${pid}/ns/${name}`) === link);
  return first === undefined ? "another" : `of process ${first.inner}`;
}

/** Size and a digest of its beginning: another version at the same path is another program. */
function programFile(pid: number): string {
  let fd = -1;
  try {
    fd = openSync(`/proc/${pid}/exe`, "r");
    const head = Buffer.alloc(EXE_BYTES);
    const length = readSync(fd, head, 0, head.length, 0);
    const digest = createHash("sha256").update(head.subarray(0, length)).digest("hex");
    return `${fstatSync(fd).size} bytes, ${digest.slice(0, 16)}`;
  } catch {
    return "";
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}
