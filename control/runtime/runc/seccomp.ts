/**
 * What a container's processes may not ask of the kernel (seccomp(2)), as an OCI profile. Pure.
 *
 * A list of refusals, not of permissions: a program that uses a call which is newer than this list works, and filters of
 * both kinds cost each call alike. It refuses what Docker's default profile refuses (https://docs.docker.com/engine/security/seccomp/)
 * of what a process without the capability could still try: ways into namespaces of its own, where it would have every
 * capability; and interfaces whose faults reach the kernel (keyrings, which no namespace separates: `not-carried.ts`). The calls of a
 * capability are free again for a container that has it.
 */
import { INT_MASK, type SeccompProfile, type SeccompRule, withoutNotCarried } from "../not-carried.ts";

/** asm-generic/errno.h */
const EPERM = 1;
const ENOSYS = 38;
const EPROTONOSUPPORT = 93;
const AF_VSOCK = 40;
/** linux/sched.h: CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET, _NEWTIME (of unshare only) */
const NAMESPACES = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000];
const NEWTIME = 0x80;

/** What needs a capability that the container may have: then it is not refused here. */
const CALLS_OF: Record<string, string[]> = {
  CAP_SYS_ADMIN: [
    ...[
      "mount",
      "umount",
      "umount2",
      "pivot_root",
      "mount_setattr",
      "move_mount",
      "open_tree",
      "open_tree_attr",
    ],
    ...["fsopen", "fsconfig", "fsmount", "fspick", "setns", "bpf", "perf_event_open", "fanotify_init"],
    ...["quotactl", "quotactl_fd", "lookup_dcookie", "swapon", "swapoff", "sethostname", "setdomainname"],
  ],
  CAP_SYS_MODULE: ["init_module", "finit_module", "delete_module", "create_module", "query_module"],
  CAP_SYS_BOOT: ["reboot", "kexec_load", "kexec_file_load"],
  CAP_SYS_TIME: ["settimeofday", "stime", "clock_settime", "clock_settime64"],
  CAP_SYS_RAWIO: ["iopl", "ioperm"],
  CAP_SYS_PACCT: ["acct"],
  CAP_SYS_PTRACE: ["kcmp", "userfaultfd"],
  CAP_SYS_NICE: [
    "mbind",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "get_mempolicy",
    "move_pages",
    "migrate_pages",
  ],
  CAP_SYSLOG: ["syslog"],
  CAP_DAC_READ_SEARCH: ["open_by_handle_at"],
  CAP_SYS_TTY_CONFIG: ["vhangup"],
};

const ALWAYS = ["nfsservctl", "uselib", "vm86", "vm86old", "sysfs", "ustat"];

/** @param capabilities of the container, as `CAP_SYS_ADMIN` */
/** Of a container that is to have no filter. */
export const ALLOW_ALL: SeccompProfile = {
  defaultAction: "SCMP_ACT_ALLOW",
  architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
};

export function seccompProfile(capabilities: string[]): SeccompProfile {
  const refused = Object.entries(CALLS_OF).flatMap(([capability, names]) =>
    capabilities.includes(capability) ? [] : names,
  );
  return withoutNotCarried({
    ...ALLOW_ALL,
    syscalls: [
      refuse([...ALWAYS, ...refused], EPERM),
      ...(capabilities.includes("CAP_SYS_ADMIN") ? [] : WITHOUT_SYS_ADMIN),
    ],
  });
}

function refuse(
  names: string[],
  errnoRet: number,
  where: { index: number; bits: number; are: number }[] = [],
): SeccompRule {
  const args = where.map(({ index, bits, are }) => ({
    index,
    value: bits,
    valueTwo: are,
    op: "SCMP_CMP_MASKED_EQ",
  }));
  return { names, action: "SCMP_ACT_ERRNO", errnoRet, ...(args.length === 0 ? {} : { args }) };
}

const WITHOUT_SYS_ADMIN: SeccompRule[] = [
  // its flags are in memory, where no filter sees them: the C library goes on with clone(2)
  refuse(["clone3"], ENOSYS),
  // as a process without the capability hears it from the kernel
  ...NAMESPACES.map((flag) => refuse(["clone", "unshare"], EPERM, [{ index: 0, bits: flag, are: flag }])),
  refuse(["unshare"], EPERM, [{ index: 0, bits: NEWTIME, are: NEWTIME }]),
  // the hypervisor's side, which no network namespace separates; with the same error as the others of socket(2): libseccomp
  // wants that where it is one call of several (socketcall)
  refuse(["socket"], EPROTONOSUPPORT, [{ index: 0, bits: INT_MASK, are: AF_VSOCK }]),
];
