/** Capabilities of containers (capabilities(7)): their names, what a container has by default, and what a file makes of that. Pure. */

export const CAPABILITY_NAMES = [
  ...["AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN"],
  ...["DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE"],
  ...[
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
  ],
  ...["NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT"],
  ...[
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
  ],
  ...["SYS_TTY_CONFIG", "WAKE_ALARM"],
] as const;
export type CapabilityName = (typeof CAPABILITY_NAMES)[number];

export interface CapabilityChange {
  add: CapabilityName[];
  drop: (CapabilityName | "ALL")[];
}

/**
 * Docker's default set without NET_RAW, which would show all the node's traffic, whose network the container shares, and
 * without MKNOD.
 */
const DEFAULT: CapabilityName[] = [
  ...(["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETFCAP", "SETPCAP"] as const),
  ...(["NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"] as const),
];

/** As OCI writes them: `CAP_KILL`. What is both added and dropped is dropped; `ALL` drops the defaults only. */
export function capabilitiesOf({ add, drop }: CapabilityChange): string[] {
  const kept = drop.includes("ALL") ? [] : DEFAULT;
  return [...new Set([...kept, ...add])].filter((name) => !drop.includes(name)).map((name) => `CAP_${name}`);
}
