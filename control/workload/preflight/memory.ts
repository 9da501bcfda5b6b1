/** Mappings that CRIU 4.2 cannot dump, or restores without what protects them (proc(5), /proc/PID/smaps). */
import { readFile } from "node:fs/promises";
import type { Add } from "../../api/finding.ts";
import { type Mapping, mappingsOf } from "../../audit/memory-map.ts";

/** devices whose mappings are memory like any other */
const PLAIN_DEVICES = /^\/dev\/(shm\/|zero\b|null\b)/;

/** memory that is not a file's by its name: anon_inode:[perf_event], socket:[7] (TCP_ZEROCOPY_RECEIVE, rings of packet sockets); and what the kernel's own file systems show */
const OF_KERNEL = /^([^/[]|\/(sys|proc)\/)/;

/** vdso, vvar: the kernel places them, and seals them by itself where it is made so */
const KERNEL_OWN = /^\[v/;

/** What CRIU does not set again; each is said once of a process. */
const LOST: { id: `memory.${string}`; has: (mapping: Mapping) => boolean; what: string; cure: string }[] = [
  {
    id: "memory.protection-key",
    has: ({ key }) => key !== 0,
    what: "memory with a protection key of its own (pkeys(7))",
    cure: "start it anew: a container's seccomp profile gives out none since this version",
  },
  {
    id: "memory.asynchronous-io",
    // CRIU 4.2 makes the ring anew with what has ended; what is under way has no file in /proc
    has: ({ name }) => name.startsWith("/[aio]"),
    what: "requests of Linux AIO (io_setup(2)), which may be under way",
    cure: "start it anew: a container's seccomp profile gives out none since this version",
  },
  {
    id: "memory.sealed",
    has: ({ flags, name }) => flags.includes("sl") && !KERNEL_OWN.test(name),
    what: "sealed memory (mseal(2))",
    cure: "let the application do without it",
  },
  {
    id: "memory.locked-on-fault",
    has: ({ flags }) => flags.includes("lf"),
    what: "memory that is locked page by page as it is used (MLOCK_ONFAULT, MCL_ONFAULT)",
    cure: "let it lock memory as a whole (mlock(2)), or not at all",
  },
  {
    id: "memory.tagged",
    has: ({ flags }) => flags.includes("mt"),
    what: "memory with tags (PROT_MTE)",
    cure: "let the application do without it",
  },
];

/** VM_SPECIAL and the other memory that mlockall(2) passes by, by smaps's letters (mlock_fixup() in mm/mlock.c) */
const NEVER_LOCKED = ["io", "de", "pf", "mm", "ht", "dp"];

export async function checkMemory(pids: number[], add: Add): Promise<void> {
  for (const pid of pids) {
    const smaps = await readFile(`/proc/${pid}/smaps`, "utf8").catch(() => "");
    const lost = new Set<(typeof LOST)[number]>();
    const mappings = [...mappingsOf(smaps)];
    checkLockedToCome(pid, mappings, add);
    checkPolicy(pid, await readFile(`/proc/${pid}/numa_maps`, "utf8").catch(() => ""), add);
    for (const mapping of mappings) {
      const { name } = mapping;
      if (name.startsWith("/dev/") && !PLAIN_DEVICES.test(name))
        add(
          "memory.device-mapped",
          "error",
          `process ${pid} has a device mapped: ${name}`,
          "the application must not map devices",
          { pid, path: name },
        );
      if (OF_KERNEL.test(name))
        add(
          "memory.kernel-mapped",
          "error",
          `process ${pid} has memory of a kernel object mapped: ${name}`,
          "let the application unmap and close it, or do without",
          { pid },
        );
      if (name === "[uprobes]")
        add(
          "memory.uprobes",
          "error",
          `process ${pid} is being traced by uprobes (perf, bpftrace), whose memory is the kernel's`,
          "end the tracing, and restart the application if the mapping stays",
          { pid },
        );
      for (const kind of LOST) if (kind.has(mapping)) lost.add(kind);
    }
    for (const { id, what, cure } of lost)
      add(id, "error", `process ${pid} has ${what}, which would be lost`, cure, { pid });
  }
}

/**
 * The kernel shows nobody what mlockall(2) has said of memory to come. But where it was said of that there is only, what has come since
 * is not locked.
 */
function checkLockedToCome(pid: number, mappings: Mapping[], add: Add): void {
  const lockable = mappings.filter(
    ({ flags, name }) => !KERNEL_OWN.test(name) && !NEVER_LOCKED.some((flag) => flags.includes(flag)),
  );
  if (lockable.length === 0 || !lockable.every(({ flags }) => flags.includes("lo"))) return;
  add(
    "memory.locked-to-come",
    "error",
    `process ${pid} has all its memory locked, as mlockall(MCL_FUTURE) has it, and what it gets after a move would not be`,
    "start it without (Vault: disable_mlock, memcached: no -k), on a machine without swap space; or let it lock what it has (MCL_CURRENT)",
    { pid },
  );
}

/** proc_pid_numa_maps(5): of memory without a policy of its own the main thread's is shown. */
function checkPolicy(pid: number, maps: string, add: Add): void {
  const policy = /^[0-9a-f]+ (?!default\b)(\S+)/m.exec(maps)?.[1];
  if (policy === undefined) return;
  add(
    "memory.numa-policy",
    "warning",
    `process ${pid} has chosen on which NUMA nodes its memory is to be (${policy}: set_mempolicy(2), mbind(2), numactl), which is not carried`,
    "nothing, if the target has one NUMA node; else choose for the container (cpuset)",
    { pid },
  );
}
