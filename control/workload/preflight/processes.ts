/**
 * Processes that CRIU cannot stop, dump or fork anew, and what of them it would leave behind without a word. Only /proc and
 * kcmp(2) are asked: nothing is attached to, nothing stops.
 */
import { readlinkSync } from "node:fs";
import { constants } from "node:os";
import { setTimeout as delay, setImmediate as turn } from "node:timers/promises";
import { KCMP_FILES, KCMP_FS, KCMP_VM, kcmp } from "#proxy/kernel/processes.ts";
import * as ptrace from "#proxy/kernel/ptrace.ts";
import type { Add, Severity } from "../../api/finding.ts";
import { IO_FLUSHER_FLAG, MACHINE_CHECK_FLAGS } from "../../audit/harmless.ts";
import { listNames, readText } from "../../runtime/read-text.ts";
import { type SessionMember, sessionFault } from "./session-tree.ts";

/** Every process has one of each (namespaces(7)); CRIU carries those of the tree's root, and no others. */
const NAMESPACES = [
  "user",
  "mnt",
  "pid",
  "pid_for_children",
  "net",
  "ipc",
  "uts",
  "time",
  "time_for_children",
  "cgroup",
];
/** … which the application's first process must have too: CRIU joins them before it restores */
const CONTAINER_NAMESPACES = ["user", "mnt", "pid", "pid_for_children", "net", "cgroup"];
/** a thread can have these of its own (setns(2), unshare(2)) */
const THREAD_NAMESPACES = ["mnt", "net", "ipc", "uts", "cgroup"];
type Namespaces = Map<string, string | null>;

/** threads looked at before others get a turn */
const THREADS_A_TURN = 200;
const LOOKS = 5;
const LOOK_MS = 50;
/** descriptors that CRIU's parasite opens in the process for a moment (compel: a memfd, a socket), and some to spare */
const DESCRIPTORS_FREE_MIN = 4;
/** include/uapi/linux/sched.h; numbers of vfork(2), clone(2), clone3(2) on x86-64, of the latter two on arm64 */
const CLONE_SYSCALLS = process.arch === "arm64" ? ["220", "435"] : ["58", "56", "435"];

/** exit_code of stat(5), counted from the state on: of a stopped process the signal (do_task_stat() in fs/proc/array.c) */
const EXIT_CODE_AT = 49;
/** flags, counted alike */
const FLAGS_AT = 6;

const STUCK = "process.cannot-stop";

interface Found {
  severity: Severity;
  args: Parameters<Add>;
}

/**
 * Told is what is found at every look: a child of vfork(2) shares its parent's memory until it runs another program, a leader has ended
 * and its session will in a moment. A thread that waits for its disk each time, and has run in between, waits for something else each time.
 * @param init the container's, whose namespaces and cgroups are the container's
 */
export async function checkProcesses(init: number, pids: number[], add: Add): Promise<void> {
  let found = await lookAt(init, pids);
  const isError = ({ severity }: Found): boolean => severity === "error";
  for (let look = 1; look < LOOKS && [...found.values()].some(isError); look++) {
    await delay(LOOK_MS);
    const again = await lookAt(init, pids);
    found = new Map([...found].filter(([key]) => again.has(key)));
  }
  for (const { args } of found.values()) add(...args);
}

/** By the finding's id and what it says: of a parent that calls vfork(2) all the time the child is another one each time. */
async function lookAt(init: number, pids: number[]): Promise<Map<string, Found>> {
  const found = new Map<string, Found>();
  await lookOnce(init, pids, (...args) => {
    const [id, severity, what] = args;
    const ran = id === STUCK && args[4]?.pid !== undefined ? readText(`/proc/${args[4].pid}/schedstat`) : "";
    found.set(`${id} ${what} ${ran}`, { severity, args });
  });
  return found;
}

async function lookOnce(init: number, pids: number[], add: Add): Promise<void> {
  // a restored tree has some of its own (ipc, time), which go along again: those of its root are the application's
  const [root] = pids;
  const ours: Namespaces = new Map(NAMESPACES.map((kind) => [kind, link(`/proc/${root}/ns/${kind}`)]));
  const container: Namespaces = new Map(NAMESPACES.map((kind) => [kind, link(`/proc/${init}/ns/${kind}`)]));
  if (root !== undefined) checkNamespaces(container, root, CONTAINER_NAMESPACES, `/proc/${root}`, add);
  const members: SessionMember[] = [];
  const living: number[] = [];
  const usual = speculationOf(readText(`/proc/${init}/status`));
  const ownPersonality = readText("/proc/self/personality");
  let seen = 0;
  for (const pid of pids) {
    const stat = statOf(`/proc/${pid}`);
    if (stat === null) continue; // gone
    members.push({ pid, parent: Number(stat[1]), session: Number(stat[3]) });
    const threads = listNames(`/proc/${pid}/task`).map(Number);
    if (stat[0] === "Z") {
      if (threads.length > 1)
        add(
          "process.leader-ended",
          "error",
          `the main thread of process ${pid} has ended and others go on, which CRIU cannot dump`,
          "let the main thread wait for the others",
          { pid },
        );
      continue;
    }
    living.push(pid);
    const statuses = threads.map((tid) => readText(`/proc/${pid}/task/${tid}/status`));
    checkTracer(pid, statuses, add);
    checkProgram(pid, add);
    checkPersonality(ownPersonality, pid, threads, add);
    checkMemoryMerge(pid, add);
    checkSpeculation(usual, pid, statuses, add);
    checkStopSignal(pid, stat, add);
    checkTerminal(pid, stat, add);
    checkNamespaces(ours, pid, NAMESPACES, `/proc/${pid}`, add);
    checkCgroups(init, pid, add);
    checkFreeDescriptors(pid, add);
    for (const tid of threads) {
      const own = statOf(`/proc/${pid}/task/${tid}`);
      if (own?.[0] === "D") checkStuck(tid, add);
      checkFlags(pid, Number(own?.[FLAGS_AT] ?? 0), add);
      if (tid !== pid) checkThread(ours, pid, tid, add);
      if (++seen % THREADS_A_TURN === 0) await turn();
    }
  }
  checkSessions(members, add);
  checkShared(living, add);
}

/** @param statuses of its threads, proc(5); "": it is gone */
function checkTracer(pid: number, statuses: string[], add: Add): void {
  for (const status of statuses) {
    const tracer = /^TracerPid:\s*([1-9]\d*)/m.exec(status)?.[1];
    if (tracer === undefined) continue;
    const name = readText(`/proc/${tracer}/comm`).trim();
    add(
      "process.traced",
      "error",
      `process ${pid} is being traced by process ${tracer} (${name}), and a process can have one tracer only`,
      "detach the debugger or tracer",
      { pid },
    );
    return;
  }
}

/** CRIU opens programs by their names. */
function checkProgram(pid: number, add: Add): void {
  if (link(`/proc/${pid}/exe`)?.startsWith("/memfd:") !== true) return;
  add(
    "process.program-in-memory",
    "error",
    `process ${pid} runs a program that is in memory only (memfd_create(2), fexecve(3)), which CRIU cannot restore`,
    "run it from a file",
    { pid },
  );
}

/** CRIU 4.2 leaves it as its own is, which is this agent's. */
function checkPersonality(usual: string, pid: number, threads: number[], add: Add): void {
  const personality = threads
    .map((tid) => readText(`/proc/${pid}/task/${tid}/personality`))
    .find((one) => one !== "" && one !== usual);
  if (personality === undefined) return;
  add(
    "process.personality",
    "error",
    `process ${pid} has the execution domain ${personality.trim()} (personality(2): setarch, --addr-no-randomize), which would be lost`,
    "start it without",
    { pid },
  );
}

/** Older kernels do not tell. What CRIU makes has it as this agent has. */
function checkMemoryMerge(pid: number, add: Add): void {
  const isOn = (of: number | "self"): boolean =>
    /^ksm_merge_any: yes$/m.test(readText(`/proc/${of}/ksm_stat`));
  if (!isOn(pid) || isOn("self")) return;
  add(
    "process.memory-merge",
    "warning",
    `process ${pid} lets the kernel merge pages of its memory that are alike (PR_SET_MEMORY_MERGE), which is not carried`,
    "nothing, if it is to save memory: what is merged is not lost; else start it without",
    { pid },
  );
}

/** What a thread has asked for, and CRIU does not carry. */
function checkFlags(pid: number, flags: number, add: Add): void {
  const told = (id: "machine-check" | "io-flusher", what: string, cure: string): void =>
    add(`process.${id}`, "error", `process ${pid} ${what}, which would be lost`, cure, { pid });
  if ((flags & MACHINE_CHECK_FLAGS) !== 0)
    told(
      "machine-check",
      "has chosen when it is told of memory that failed (PR_MCE_KILL)",
      "let it leave that to the machine (vm.memory_failure_early_kill)",
    );
  if ((flags & IO_FLUSHER_FLAG) !== 0)
    told(
      "io-flusher",
      "has told the kernel that it serves a disk or file system (PR_SET_IO_FLUSHER)",
      "run what serves disks outside of the application",
    );
}

/** A thread that does without a processor's guesses (PR_SET_SPECULATION_CTRL, prctl(2)) would have them again. */
function checkSpeculation(usual: string, pid: number, statuses: string[], add: Add): void {
  if (statuses.every((status) => status === "" || speculationOf(status) === usual)) return;
  add(
    "process.speculation",
    "error",
    `process ${pid} has switched off its processor's speculation (PR_SET_SPECULATION_CTRL), which would be lost`,
    "let the application leave it to the machine, or switch it off for all (spec_store_bypass_disable=, Linux's command line)",
    { pid },
  );
}

function speculationOf(status: string): string {
  return (status.match(/^Speculation.*$/gm) ?? []).join();
}

/**
 * A process that its terminal has stopped, because it read or wrote from the background. /proc tells by which signal until the
 * parent has asked, and that a shell does at once: then it may have been Ctrl-Z as well.
 */
function checkStopSignal(pid: number, stat: string[], add: Add): void {
  const [state, , group, , terminal, foreground] = stat;
  if (state !== "T") return;
  const signal = Number(stat[EXIT_CODE_AT] ?? 0);
  const isByTerminal = signal === constants.signals.SIGTTIN || signal === constants.signals.SIGTTOU;
  const mayBe = signal === 0 && terminal !== "0" && group !== foreground;
  if (!isByTerminal && !mayBe) return;
  add(
    "process.stopped-by-terminal",
    isByTerminal ? "error" : "warning",
    `process ${pid} ${isByTerminal ? "was" : "may have been"} stopped for reading or writing its terminal from the background (SIGTTIN, SIGTTOU), and CRIU dumps only what SIGSTOP or SIGTSTP stopped`,
    "bring the job to the foreground and stop it there (fg, Ctrl-Z), or end it",
    { pid },
  );
}

/** CRIU gives a controlling terminal to the session's leader only, after its children were made (see `audit/harmless.ts`). */
function checkTerminal(pid: number, stat: string[], add: Add): void {
  const terminal = stat[4];
  if (terminal === "0" || innermost(pid, "NSsid") === innermost(pid, "NSpid")) return;
  add(
    "process.controlling-terminal",
    "warning",
    `process ${pid} has a controlling terminal that another process leads: after a move it cannot open /dev/tty, nor is it stopped when it reads from the background`,
    "move it when no program runs in that terminal, if one of them needs that",
    { pid },
  );
}

function innermost(pid: number, name: "NSsid" | "NSpid"): string {
  const numbers = new RegExp(`^${name}:(.*)$`, "m").exec(readText(`/proc/${pid}/status`))?.[1] ?? "";
  return numbers.trim().split(/\s+/).at(-1) ?? "";
}

function checkNamespaces(ours: Namespaces, pid: number, kinds: string[], where: string, add: Add): void {
  const other = kinds.filter((kind) => {
    const own = link(`${where}/ns/${kind}`);
    // pid_for_children is empty between unshare(2) and the first child
    return own !== ours.get(kind) && (own !== null || kind === "pid_for_children");
  });
  if (other.length > 0 && !isExiting(pid))
    add(
      "process.namespace",
      "error",
      `process ${pid} has namespaces of its own inside the container (${other.join(", ")}), which are not carried`,
      "run it without a sandbox of its own (unshare, bubblewrap, a browser's sandbox), the container is one",
      { pid },
    );
}

/** Below the container's is well: the freezer of a move has a group of its own there. */
function checkCgroups(init: number, pid: number, add: Add): void {
  const own = groupsOf(pid);
  for (const [controllers, path] of groupsOf(init)) {
    const group = own.get(controllers);
    if (group === undefined || group === path || path === "/" || group.startsWith(`${path}/`)) continue;
    if (isExiting(pid)) return;
    add(
      "process.other-cgroup",
      "error",
      `process ${pid} is in another cgroup (${group}) than the container (${path}): at the target it would be in the container's`,
      "move it back, or set its limits on the container",
      { pid },
    );
    return;
  }
}

/** One that exits leaves its groups and namespaces before it is a zombie: PF_EXITING of stat's flags (include/linux/sched.h). */
function isExiting(pid: number): boolean {
  const flags = statOf(`/proc/${pid}`)?.[FLAGS_AT];
  return flags === undefined || (Number(flags) & 0x4) !== 0;
}

/** cgroups(7), /proc/PID/cgroup: `NUMBER:CONTROLLERS:PATH` */
function groupsOf(pid: number): Map<string, string> {
  const groups = new Map<string, string>();
  for (const line of readText(`/proc/${pid}/cgroup`).split("\n")) {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (controllers !== undefined && path !== undefined) groups.set(controllers, path);
  }
  return groups;
}

/** getrlimit(2), RLIMIT_NOFILE: a new descriptor must be below the soft limit. */
function checkFreeDescriptors(pid: number, add: Add): void {
  const limit = Number(/^Max open files\s+(\d+)/m.exec(readText(`/proc/${pid}/limits`))?.[1] ?? Infinity);
  const below = listNames(`/proc/${pid}/fd`).filter((fd) => Number(fd) < limit).length;
  if (limit - below < DESCRIPTORS_FREE_MIN)
    add(
      "process.no-descriptor",
      "error",
      `process ${pid} has ${below} of ${limit} descriptors open, and CRIU needs some in it for a moment`,
      "raise its limit of open files, or find out what it does not close",
      { pid },
    );
}

/** A thread is restored with the process's descriptors, folders, namespaces and cgroups. */
function checkThread(ours: Namespaces, pid: number, tid: number, add: Add): void {
  checkNamespaces(ours, pid, THREAD_NAMESPACES, `/proc/${pid}/task/${tid}`, add);
  const told = (id: "descriptors" | "folder" | "cgroup", what: string, cure: string): void =>
    add(
      `process.thread-${id}`,
      "error",
      `thread ${tid} of process ${pid} has ${what} of its own, which would be lost`,
      cure,
      { pid },
    );
  const alone = "let the program do that in a process of its own (unshare(2) in a thread)";
  if (kcmp(pid, tid, KCMP_FILES) > 0) told("descriptors", "descriptors", alone);
  if (kcmp(pid, tid, KCMP_FS) > 0) told("folder", "a working folder", alone);
  const groups = readText(`/proc/${pid}/task/${tid}/cgroup`);
  if (groups !== "" && groups !== readText(`/proc/${pid}/cgroup`) && !isExiting(tid))
    told("cgroup", "a cgroup", "move it back, or set its limits on the container");
}

/** CRIU gives each process memory, folders and handlers of its own; two that share them (clone(2), without CLONE_THREAD) it refuses. */
function checkShared(pids: number[], add: Add): void {
  for (const [type, what] of [
    [KCMP_VM, "memory"],
    [KCMP_FS, "its working folder"],
  ] as const) {
    // kcmp(2) orders what it compares: 1 less, 2 greater, so equal ones are neighbours when sorted
    const order = [0, -1, 1];
    const sorted = [...pids].sort((one, other) => order[kcmp(one, other, type)] ?? one - other);
    for (const [index, pid] of sorted.entries()) {
      const before = sorted[index - 1];
      if (before === undefined || kcmp(before, pid, type) !== 0) continue;
      add(
        "process.shared",
        "error",
        `processes ${before} and ${pid} share ${what} (clone(2)) without being threads, which CRIU cannot restore`,
        "let the child run another program, or be a thread",
        { pid },
      );
    }
  }
}

function checkSessions(members: SessionMember[], add: Add): void {
  const lost = sessionFault(members, ptrace.isSupported);
  if (lost !== null)
    add(
      "process.session",
      "error",
      `process ${lost.pid} is in session ${lost.session}, whose leader has ended or is not above it: CRIU cannot put it there again`,
      "run it in the foreground (a daemon that has forked twice is such a process)",
      { pid: lost.pid },
    );
}

/** In uninterruptible sleep: no signal, no freezer and no CRIU stops it, and clients would wait for that. */
function checkStuck(pid: number, add: Add): void {
  const call = readText(`/proc/${pid}/syscall`).split(" ")[0] ?? "";
  const isVfork = CLONE_SYSCALLS.includes(call);
  add(
    STUCK,
    "error",
    isVfork
      ? `process ${pid} waits for a child made by vfork(2), and cannot be stopped until that runs another program or ends`
      : `process ${pid} waits in the kernel and cannot be stopped (state D)`,
    isVfork
      ? "see what keeps the child"
      : "see what it waits for: a disk or a network file system that does not answer",
    { pid },
  );
}

/** Fields of stat(5) from the third on: state, ppid, pgrp, session, … null: gone */
function statOf(folder: string): string[] | null {
  const text = readText(`${folder}/stat`);
  return text === "" ? null : text.slice(text.lastIndexOf(")") + 2).split(" ");
}

function link(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch {
    return null;
  }
}
