/**
 * The one table of what may differ between the application before a move and after it, each with the reason. What is not in it
 * is repaired, or the move rolls back. Nothing that confines a process may be in it; the first test of `audit-compare` checks
 * that.
 */
import { constants } from "node:fs";
import { nameWhenDeleted } from "./deleted-names.ts";
import type { Facts, Fingerprint } from "./fingerprint.ts";
import { SEMAPHORE_UNDO } from "./sharing.ts";

export interface Difference {
  /** `descriptor 12/5` */
  subject: string;
  /** "" where the subject itself is there only once */
  name: string;
  /** null: not there */
  before: string | null;
  after: string | null;
  /** why the kernel would not have it set again, where that was tried */
  refused?: string | undefined;
}

export interface HarmlessRule {
  /** what a subject's name begins with */
  subject: RegExp;
  name: RegExp;
  reason: string;
  /** it is nothing of the kernel's own: the application may notice, so `check` and the move's result tell it */
  isLoss?: true;
  /** only where this holds */
  when?: (
    difference: Difference,
    before: Fingerprint,
    after: Fingerprint,
    circumstances: Circumstances,
  ) => boolean;
}

/** What somebody else has done to the restored tree, and answers for. */
export interface Circumstances {
  /** timers that were armed again: they may have run out since */
  rearmed: ReadonlySet<string>;
  /** sockets whose connections were taken over by `migration/own-sockets.ts` */
  ownSockets: ReadonlySet<string>;
  /** the signal that CRIU stops a restored process with, since it was stopped before the move; null: it was not */
  stopSignalOf: (innerPid: number) => number | null;
}

export const NOTHING_DONE: Circumstances = {
  rearmed: new Set(),
  ownSockets: new Set(),
  stopSignalOf: () => null,
};

const TASK = /^(process|thread) /;
const PROCESS = /^process /;
const DESCRIPTOR = /^descriptor /;
/** TCP_LISTEN and TCP_ESTABLISHED (net/tcp_states.h), which Unix sockets have too */
const LISTENS = "10";
const ESTABLISHED = "1";

/** SIGSTOP and SIGCONT of a signal mask in hexadecimal */
const STOP_SIGNALS = (1n << 18n) | (1n << 17n);
const CHILD_SIGNAL = 1n << 16n;
/** SIGALRM, SIGVTALRM, SIGPROF */
const TIMER_SIGNALS = (1n << 13n) | (1n << 25n) | (1n << 26n);

/** include/linux/sched.h: PF_MCE_PROCESS, PF_MCE_EARLY (PR_MCE_KILL); PF_LOCAL_THROTTLE (PR_SET_IO_FLUSHER) */
export const MACHINE_CHECK_FLAGS = 0x0800_0080;
export const IO_FLUSHER_FLAG = 0x0010_0000;

/** include/uapi/asm-generic/fcntl.h; arm64 has others for the first two */
const OPENING_FLAGS = constants.O_DIRECTORY | constants.O_NOFOLLOW | 0o20000000 | 0o100000;

/** "false" where `status SigBlk` is the mask of a system call that waits */
export const OWN_MASK = "signal mask is its own";

/**
 * Lines of status that kernels since 6.1 have added, and what stands there of a thread that has asked for nothing: with a kernel that lacks the line it is
 * the same thread. Every kernel that lets a thread ask for it has the line.
 */
const ADDED_LINES: Record<string, readonly string[]> = {
  // task_untag_mask() in fs/proc/array.c, Linux 6.4: mm_untag_mask() of x86, and of arm64 (its asm/mmu_context.h)
  "status untag_mask": ["0xffffffffffffffff", "0xffffffffffffff"],
  // arch_proc_pid_thread_features() in arch/x86/kernel/cpu/proc.c, 6.6: no shadow stack
  "status x86_Thread_features": [""],
  "status x86_Thread_features_locked": [""],
  // task_state() in fs/proc/array.c, 6.9: PF_KTHREAD
  "status Kthread": ["0"],
};

/** of a socket for datagrams: its error, or what is in its error queue; of a Unix socket: that its peer did not read all it was sent */
export const ERROR_UNREAD = "unread error";

export const HARMLESS: readonly HarmlessRule[] = [
  {
    subject: TASK,
    name: /^(status State|stat state)$/,
    reason: "the tree is stopped on both sides, by ptrace here and by the freezer or SIGSTOP there",
    when: ({ before, after }) => /^[ZX]/.test(before ?? "") === /^[ZX]/.test(after ?? ""),
  },
  {
    subject: TASK,
    name: /^status (ShdPnd|SigPnd)$/,
    reason:
      "SIGSTOP and SIGCONT are how a restored tree is kept from going on, where there is no freezer; SIGCHLD then tells a parent of it; a timer that ran out while CRIU restored it has sent its signal",
    when: ({ subject, name, before, after }, fingerprint) => {
      const added = (name === "status ShdPnd" ? CHILD_SIGNAL : 0n) | signalsOfTimers(subject, fingerprint);
      return (
        (withoutStops(before) | added) === (withoutStops(after) | added) && !isLost(before, after, added)
      );
    },
  },
  {
    subject: PROCESS,
    name: /^status ShdPnd$/,
    reason:
      "a process that job control had stopped is stopped again by the same signal, which it takes when it thaws",
    when: ({ subject, before, after }, fingerprint, _after, { stopSignalOf }) => {
      const signal = stopSignalOf(Number(subject.slice("process ".length)));
      if (signal === null) return false;
      const added = CHILD_SIGNAL | signalsOfTimers(subject, fingerprint) | (1n << BigInt(signal - 1));
      return (
        (withoutStops(before) | added) === (withoutStops(after) | added) && !isLost(before, after, added)
      );
    },
  },
  {
    subject: PROCESS,
    name: /^shares with its parent$/,
    reason:
      "kcmp(2) takes two that have no semaphores to undo for sharing that, and the first thread that a process makes gives it a list, empty as it is; of SEM_UNDO itself the README says that it is not kept",
    when: ({ before, after }) => withoutUndo(before) === withoutUndo(after),
  },
  {
    subject: TASK,
    name: /^status SigBlk$/,
    reason:
      "sigsuspend(2), ppoll(2) and the like block other signals while they wait; CRIU carries the thread's own mask, and the call is begun again",
    when: ({ subject }, before) => isInCallWithMask(subject, before),
  },
  {
    subject: TASK,
    name: /^status SigBlk$/,
    reason:
      "without a freezer SIGSTOP meets a thread on its way out of CRIU's restorer, which blocks SIGCHLD until its last system call is over",
    when: ({ subject, before, after }, _, { subjects }) => {
      const process = `process ${/^\w+ (\d+)/.exec(subject)?.[1]}`;
      const state = subjects[subject]?.["status State"] ?? subjects[process]?.["status State"] ?? "";
      return state.startsWith("T") && (withoutStops(before) | CHILD_SIGNAL) === withoutStops(after);
    },
  },
  {
    subject: TASK,
    name: new RegExp(`^${OWN_MASK}$`),
    reason:
      "tells of what the mask is at the source; a restored thread has left the call and begins it again",
  },
  {
    subject: DESCRIPTOR,
    name: /^lock (FLOCK|OFDLCK) /,
    reason:
      "such a lock belongs to the open file, and whoever has it open asks for it once more: who has asked first, and may have ended since (flock(1)), nobody is told",
    when: ({ before, after }) => before !== null && withoutAsker(before) === withoutAsker(after),
  },
  {
    subject: TASK,
    name: /^status TracerPid$/,
    reason: "CRIU traces the tree at the source",
  },
  {
    subject: TASK,
    name: /^status (FDSize|Vm(Peak|Size|HWM|RSS|Data|Stk|Exe|Lib|PTE|Swap)|Rss(Anon|File|Shmem)|HugetlbPages|SigQ|SigQ|nonvoluntary_ctxt_switches|voluntary_ctxt_switches|Cpus_allowed_list|Mems_allowed_list|CoreDumping)$/,
    reason:
      "accounts of the kernel; what they follow from (mappings, limits, masks) is compared by itself, the list forms repeat the masks",
  },
  {
    subject: TASK,
    name: /^status Cpus_allowed$/,
    reason: "compared as `CPU affinity`, which knows the CPUs of the container on each node",
  },
  {
    subject: TASK,
    name: new RegExp(`^(${Object.keys(ADDED_LINES).join("|")})$`),
    reason:
      "one of the two kernels does not have the line, and the other says in it that nothing was asked for",
    when: ({ name, before, after }) =>
      (before === null) !== (after === null) && ADDED_LINES[name]?.includes(before ?? after ?? "") === true,
  },
  {
    subject: TASK,
    name: /^stat flags$/,
    reason: "what the kernel does with it; what a program has asked for itself is not among it",
    when: ({ before, after }) => askedFor(before) === askedFor(after),
  },
  {
    subject: TASK,
    name: /^stat (minflt|cminflt|majflt|cmajflt|vsize|rss|rsslim|kstkesp|kstkeip|wchan|nswap|cnswap|processor|delayacct_blkio_ticks)$/,
    reason: "what the kernel did for it here; limits and mappings are compared by themselves",
  },
  {
    subject: TASK,
    name: /^stat (signal|blocked|sigignore|sigcatch)$/,
    reason: "a decimal form of the masks of status, which are compared",
  },
  {
    subject: TASK,
    name: /^stat (utime|stime|cutime|cstime|guest_time|cguest_time|starttime|itrealvalue)$/,
    reason:
      "CPU time and start are counted by this kernel since the process began here, and cannot be set; what counts down to a limit is carried by CRIU",
  },
  {
    subject: TASK,
    name: /^stat (tty|tpgid)$/,
    isLoss: true,
    reason:
      "a controlling terminal is inherited by fork(2) alone, and CRIU 4.2 gives it to the session's leader after its children were made: they keep the terminal's descriptors, signals and groups, but cannot open /dev/tty",
    when: ({ subject, name, after }, before) => {
      const facts = before.subjects[subject];
      const isLeader = facts?.["status NSsid"] === facts?.["status NSpid"] || subject.startsWith("thread ");
      return !isLeader && after === (name === "stat tty" ? "0" : "-1");
    },
  },
  {
    subject: PROCESS,
    name: /^cgroup /,
    reason: "where a controller is mounted on one node only, there is no group to compare",
    when: ({ before, after }) => before === null || after === null,
  },
  {
    subject: PROCESS,
    name: /^autogroup$/,
    reason:
      "the number of a session's group of the scheduler is counted by the kernel; its nice value is compared",
    when: ({ before, after }) => niceOfGroup(before) === niceOfGroup(after),
  },
  {
    subject: /^(process|descriptor) /,
    name: /^(exe|cwd|root|file)$/,
    reason: "a file whose name is gone is restored under a name of CRIU's, which is gone as well",
    when: ({ before, after }) =>
      before !== null && after !== null && nameWhenDeleted(before) === nameWhenDeleted(after),
  },
  {
    subject: DESCRIPTOR,
    name: /^(file|mount)$/,
    reason:
      "an open message queue has no path of its own (mq_open(3)); it is opened again where the container shows its queues",
    when: ({ subject }, before, after) => {
      const [was, is] = [before.subjects[subject], after.subjects[subject]];
      const isQueue = after.subjects.mounts?.[`mount ${is?.mount}`]?.startsWith("mqueue ") === true;
      return isQueue && was?.mount === "of the kernel" && is?.file === `${is?.mount}${was?.file}`;
    },
  },
  {
    subject: DESCRIPTOR,
    name: /^flags$/,
    reason:
      "O_DIRECTORY, O_NOFOLLOW, O_TMPFILE and O_LARGEFILE say how a file was opened, and do nothing afterwards",
    when: ({ before, after }) => withoutOpening(before) === withoutOpening(after),
  },
  {
    subject: DESCRIPTOR,
    name: /^(state|local address|peer address|peer is here|bytes to read|bytes to send|agreed|TCP_MAXSEG|TCP_WINDOW_CLAMP)$/,
    reason:
      "connections of the application's own that end or begin anew with a move: what is left of each is put back by `migration/own-sockets.ts`, which knows what it was",
    when: ({ subject }, before, _, { ownSockets }) =>
      ownSockets.has(before.subjects[subject]?.["same as"] ?? subject),
  },
  {
    subject: DESCRIPTOR,
    name: /^bytes to (send|read)$/,
    reason:
      "between two ends that are both the application's what was on its way arrives while CRIU restores: what one end had to send the other has to read",
    when: ({ subject }, before, after) => hasArrived(subject, before, after),
  },
  {
    subject: DESCRIPTOR,
    name: /^bytes to read$/,
    reason:
      "of a socket for datagrams it is the size of the first: those that the kernel has joined (UDP_GRO) come one by one from `migration/unread-datagrams.ts`",
    when: ({ subject, before, after }, { subjects }) =>
      subjects[subject]?.UDP_GRO === "1" && Number(after) > 0 && Number(after) < Number(before),
  },
  {
    subject: DESCRIPTOR,
    name: /^peer address$/,
    reason:
      "an application that talks to itself by way of its node's address goes on by way of the other node's",
    when: ({ subject, before, after }, one, other) =>
      [one, other].every((side) => side.subjects[subject]?.["peer is here"] === "true") &&
      portOf(before) === portOf(after),
  },
  {
    subject: DESCRIPTOR,
    name: /^peer's credentials$/,
    reason:
      "sockets that had no peer with credentials are made as pairs by CRIU, which have: those of the process itself",
    when: ({ before }) => before === null,
  },
  {
    subject: DESCRIPTOR,
    name: /^(peer's credentials|local address|peer address)$/,
    isLoss: true,
    reason:
      "CRIU makes connected Unix sockets as pairs: SO_PEERCRED names the process that made the pair, and the listener's path is no name of an accepted socket any more; who a peer is was asked when it came",
    when: ({ subject, name, before, after }, { subjects }) => {
      const facts = subjects[subject];
      if (facts === undefined || !isUnix(facts)) return false;
      // one whose peer has gone was made as one of a pair, too
      if (name === "peer's credentials") return facts.state !== LISTENS && userOf(before) === userOf(after);
      return (facts["connected with"] !== undefined || isOrphan(facts)) && isNameless(after);
    },
  },
  {
    subject: DESCRIPTOR,
    name: new RegExp(`^${ERROR_UNREAD}$`),
    isLoss: true,
    reason:
      "that an earlier datagram did not arrive, or when it was sent, is told once: whoever reads it takes it, and no call sets it",
    when: ({ subject, after }, { subjects }) => after === null && !isUnix(subjects[subject] ?? {}),
  },
  {
    subject: DESCRIPTOR,
    name: /^watch of \d+/,
    isLoss: true,
    reason:
      "a watch with EPOLLONESHOT that has told what it had to is set by CRIU as a new one is, and epoll_ctl(2) adds EPOLLERR and EPOLLHUP to it: of a peer that hangs up the application may hear once before it asks again",
    when: ({ before, after }) => {
      const [was, now] = [watchOf(before), watchOf(after)];
      const isUsedUp = was.events === (was.events & EPOLL_PRIVATE) && (was.events & EPOLLONESHOT) !== 0;
      return isUsedUp && now.events === was.events + EPOLL_ALWAYS && now.data === was.data;
    },
  },
  {
    subject: DESCRIPTOR,
    name: /^peer is here$/,
    reason: "follows from the peer's address, which is compared",
  },
  {
    subject: DESCRIPTOR,
    name: /^TCP_MAXSEG$/,
    reason: "of a connection it is what the kernel has found out about the path; it finds out again",
    when: ({ subject }, before) => isConnection(before.subjects[subject] ?? {}),
  },
  {
    subject: DESCRIPTOR,
    name: /^IPV6_V6ONLY$/,
    reason:
      "the kernel sets it where a socket is bound to an address of IPv6 (`__inet6_bind`, net/ipv6/af_inet6.c), as CRIU does with a connection whose address the kernel had chosen: it has no other peers",
    when: ({ subject, before, after }, { subjects }) =>
      before === null && after === "1" && isConnection(subjects[subject] ?? {}),
  },
  {
    subject: DESCRIPTOR,
    name: /^SO_(RCV|SND)BUF$/,
    reason:
      "the kernel lets buffers grow by odd numbers, and sets only even ones (socket(7)): one byte of a size that nobody has asked for",
    when: ({ before, after }) => Number(before) % 2 === 1 && Number(before) - Number(after) === 1,
  },
  {
    subject: DESCRIPTOR,
    name: /^(IP|IPV6)_MULTICAST_(TTL|IF|HOPS)$/,
    reason: "of a stream socket, which has no multicast, the kernel keeps here how its first segment came",
    when: ({ subject }, before) => /, type 1,/.test(before.subjects[subject]?.socket ?? ""),
  },
  {
    subject: DESCRIPTOR,
    name: /^mount$/,
    reason: "the kernel's own mounts (pipes, sockets, anonymous inodes) are not the container's",
    when: ({ before, after }) => before === "of the kernel" && after === "of the kernel",
  },
];

/** What prctl(2) keeps in a thread's flags, of stat(5). */
function askedFor(flags: string | null): number {
  return Number(flags ?? 0) & (MACHINE_CHECK_FLAGS | IO_FLUSHER_FLAG);
}

/** fs/eventpoll.c, EP_PRIVATE_BITS: what is left of a used-up watch. Added to each other one: EPOLLERR, EPOLLHUP */
const EPOLLONESHOT = 2 ** 30;
const EPOLL_PRIVATE = 0xf0000000 - 2 ** 32;
const EPOLL_ALWAYS = 0x18;

/** `events: 40000018 data: 7f9100000008`; as a signed number of 32 bits, as `&` makes them */
function watchOf(fact: string | null): { events: number; data: string } {
  const [, events = "", data = ""] = /^events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)/.exec(fact ?? "") ?? [];
  return { events: Number.parseInt(events, 16) | 0, data };
}

/** null: it is not harmless */
export function harmlessRule(
  difference: Difference,
  before: Fingerprint,
  after: Fingerprint,
  circumstances: Circumstances = NOTHING_DONE,
): HarmlessRule | null {
  const rule = HARMLESS.find(
    ({ subject, name, when }) =>
      subject.test(difference.subject) &&
      name.test(difference.name) &&
      (when === undefined || when(difference, before, after, circumstances)),
  );
  return rule ?? null;
}

/** A thread has only those facts that differ from its process's. */
function isInCallWithMask(subject: string, { subjects }: Fingerprint): boolean {
  const process = `process ${/^\w+ (\d+)/.exec(subject)?.[1]}`;
  return (subjects[subject]?.[OWN_MASK] ?? subjects[process]?.[OWN_MASK]) === "false";
}

/** `process 12, uid 0, gid 0`: a peer with other rights is another peer */
function userOf(credentials: string | null): string {
  return credentials?.replace(/^process [^,]*, /, "") ?? "";
}

/** Of TCP, in whatever state. */
function isConnection({ socket = "", state = "" }: Facts): boolean {
  return /, type 1,/.test(socket) && !/^(LISTEN|CLOSE)$/.test(state);
}

/** A socket of AF_UNIX, by its facts. */
export function isUnix({ socket }: Facts): boolean {
  return socket?.startsWith("domain 1,") === true;
}

/** A Unix connection whose peer has gone: the kernel still calls it established. One of datagrams is none, and keeps its name. */
function isOrphan({ socket, state }: Facts): boolean {
  return state === ESTABLISHED && / type [15],/.test(socket ?? "");
}

function isNameless(address: string | null): boolean {
  return address === null || address === "";
}

function portOf(address: string | null): string {
  return address?.slice(address.lastIndexOf(":")) ?? "";
}

/**
 * Of both directions of a connection inside the tree: nothing was taken from what was there to read, and what came is what was
 * to be sent. Of unacknowledged bytes the kernel does not tell how many the other end has already, before or after.
 */
function hasArrived(subject: string, before: Fingerprint, after: Fingerprint): boolean {
  const mine = before.subjects[subject];
  const isOther = ({ "local address": local, "peer address": peer }: Facts): boolean =>
    local !== undefined && local === mine?.["peer address"] && peer === mine?.["local address"];
  const other = Object.keys(before.subjects).find((name) => isOther(before.subjects[name] ?? {}));
  if (other === undefined) return false;
  return [
    [subject, other],
    [other, subject],
  ].every(([from = "", to = ""]) => {
    const count = (fingerprint: Fingerprint, name: string, what: "send" | "read"): number =>
      Number(fingerprint.subjects[name]?.[`bytes to ${what}`] ?? Number.NaN);
    const left = count(before, from, "send") - count(after, from, "send");
    const came = count(after, to, "read") - count(before, to, "read");
    return left >= 0 && came >= 0 && came <= count(before, from, "send");
  });
}

/** Of `sharedTables`. */
function withoutUndo(shared: string | null): string {
  return (shared ?? "")
    .split(", ")
    .filter((name) => name !== "" && name !== SEMAPHORE_UNDO)
    .join(", ");
}

/** Of a lock, `ADVISORY WRITE by 12`. */
function withoutAsker(lock: string | null): string {
  return (lock ?? "").replace(/ by .*$/, "");
}

/** A pending signal that is pending no more. */
function isLost(before: string | null, after: string | null, signal: bigint): boolean {
  return (withoutStops(before) & ~withoutStops(after) & signal) !== 0n;
}

/** setitimer(2) and timer_create(2): what a process's timers send it, and its threads. */
function signalsOfTimers(subject: string, { subjects }: Fingerprint): bigint {
  const process = subjects[`process ${/^\w+ (\d+)/.exec(subject)?.[1]}`] ?? {};
  let signals = TIMER_SIGNALS;
  for (const [name, value] of Object.entries(process))
    if (/^POSIX timer \d+ signal$/.test(name)) signals |= 1n << BigInt(Number.parseInt(value, 10) - 1);
  return signals;
}

function withoutStops(mask: string | null): bigint {
  return BigInt(`0x${mask ?? "0"}`) & ~STOP_SIGNALS;
}

/** of flags in octal */
function withoutOpening(flags: string | null): number {
  return Number.parseInt(flags ?? "0", 8) & ~OPENING_FLAGS;
}

/** `/autogroup-41 nice 0` */
function niceOfGroup(text: string | null): string {
  return / nice (-?\d+)$/.exec(text ?? "")?.[1] ?? "";
}
