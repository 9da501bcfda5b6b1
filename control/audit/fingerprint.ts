/**
 * What an application has in the kernel, as facts that can be compared: taken of the frozen tree at the source, travels with
 * `restore`, and is taken again of the restored tree that nobody has let go on (`take.ts`, `compare.ts`).
 *
 * Facts are text under a name, gathered by subject. Whatever number is only true on one node (PIDs of the agent's namespace,
 * inodes, mount ids, kernel addresses) is replaced by what it means before it becomes a fact; what cannot be known from
 * outside is listed in {@link UNREADABLE}.
 */
import { z } from "zod";

/**
 * Changes when facts get other names or meanings, so that agents of two versions do not compare what cannot be compared. A source
 * takes the one that both know (`imagesOpenReply`), and a target the source's.
 */
export const FORMAT = 2;
/**
 * Of the version before: command lines are whole, and what is the node's own (memory that threads may use, speculation, file systems
 * of its folders) is as its kernel shows it, so that two nodes have to be alike in that.
 */
export const RAW_FORMAT = 1;

/**
 * `process 12`, `thread 12/15`, `descriptor 12/5`, `memory 12` by inner numbers, and `ipc`, `mounts`, `container`. A
 * descriptor that shares its file description with an earlier one has only what is its own.
 */
export type Facts = Record<string, string>;

export interface Fingerprint {
  format: number;
  subjects: Record<string, Facts>;
  /** clocks as the application reads them, nanoseconds in decimal: CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME */
  clocks: { monotonic: string; boottime: string; realtime: string };
}

const SUBJECTS_MAX = 200_000;
const FACT_CHARS_MAX = 4_000_000;

/** What arrives from the other node. */
export const fingerprintSchema: z.ZodType<Fingerprint> = z.strictObject({
  format: z.number().int(),
  subjects: z
    .record(z.string().max(200), z.record(z.string().max(10_000), z.string().max(FACT_CHARS_MAX)))
    .refine((subjects) => Object.keys(subjects).length <= SUBJECTS_MAX),
  clocks: z.strictObject({
    monotonic: z.string().max(30),
    boottime: z.string().max(30),
    realtime: z.string().max(30),
  }),
});

/**
 * What a process can ask about itself and nobody can ask about it from outside. It is not compared; what is said of each is
 * how it gets across.
 */
export const UNREADABLE: Record<string, string> = {
  "prctl(PR_GET_PDEATHSIG)": "CRIU reads and sets it inside the process",
  "prctl(PR_GET_CHILD_SUBREAPER)": "CRIU reads and sets it inside the process",
  "prctl(PR_GET_SECUREBITS), PR_GET_KEEPCAPS": "CRIU reads and sets them inside the process",
  "prctl(PR_GET_DUMPABLE)": "CRIU reads and sets it inside the process",
  "prctl(PR_GET_MEMORY_MERGE)": "not carried by CRIU 4.2: `check` warns of it where the kernel tells",
  "prctl(PR_GET_MDWE), PR_GET_TSC, PR_SET_SYSCALL_USER_DISPATCH, PR_SCHED_CORE, flags of PR_GET_THP_DISABLE":
    "a container's seccomp filter answers as a kernel without them",
  "arch_prctl(ARCH_GET_XCOMP_PERM), ARCH_GET_XCOMP_GUEST_PERM, ARCH_GET_CPUID, ARCH_FORCE_TAGGED_SVA":
    "a container's seccomp filter answers as a processor without them",
  "prctl(PR_SET_PTRACER)": "not carried by CRIU 4.2: it confines nobody, and crash handlers need it",
  "rest of the time of POSIX timers and of itimers": "CRIU reads and sets it inside the process",
  "contents of seccomp filters": "CRIU reads and sets them; how many there are is compared",
  "landlock domains": "not carried by CRIU 4.2",
  "keyrings (keyctl)": "a container's seccomp filter answers as a kernel without them",
  "memory protection keys that no memory has": "a container's seccomp filter gives out none",
  "NUMA policy (set_mempolicy, mbind)":
    "not carried by CRIU 4.2: `check` warns of that of memory and of the main thread",
  "mlockall(MCL_FUTURE), mlockall(MCL_ONFAULT) for memory to come":
    "not carried by CRIU 4.2: `check` refuses a process that has all its memory locked",
  "SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF":
    "not carried by CRIU 4.2: the kernel chooses by itself",
};

export const emptyFacts = (): Facts => Object.create(null) as Facts;
