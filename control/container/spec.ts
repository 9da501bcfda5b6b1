/**
 * The OCI runtime configuration of a workload's container (https://github.com/opencontainers/runtime-spec, config.md).
 * Pure: configuration in, `config.json` out.
 *
 * Source and standby containers are made from the same configuration, so what a restore needs (mounts, IPC and UTS
 * namespaces, capabilities, seccomp) comes from the live container and never from an image.
 */
/** What to run and what to show it, wherever that was written down. */
export interface ContainerPlan {
  command: string[];
  cwd: string;
  env: Record<string, string>;
  mounts: { source: string; target: string; readonly: boolean }[];
}

/**
 * Where the container sees what Holdfast needs in it. A mount of its own, so that the application can rename it no more than
 * it can write to it; what is below it is read-only too.
 */
const INSIDE = "/.holdfast";
export const INSIDE_RUN = "/.holdfast/run";
export const INSIDE_CRIU = "/.holdfast/criu";

/** PID 1 of every container: reaps, and outlives the application (catatonit(1), `-P`). */
const PAUSE = [`${INSIDE_RUN}/init`, "-P"];

export interface SpecOptions {
  container: ContainerPlan;
  /** host path of the container's root file system */
  rootfs: string;
  /** `rootfs: host` */
  isHostView: boolean;
  /** host path of this instance's tmpfs: images and the writable layer */
  runDir: string;
  /** host folder that holds CRIU with its libraries */
  criuDir: string;
  hostname: string;
  cgroupsPath: string;
}

interface OciMount {
  destination: string;
  type?: string;
  source?: string;
  options?: string[];
}

/** The part of an OCI configuration that Holdfast reads or changes. */
export interface OciSpec {
  ociVersion: string;
  process: { args: string[]; cwd: string; env?: string[]; terminal?: boolean; [key: string]: unknown };
  root: { path: string; readonly?: boolean };
  mounts?: OciMount[];
  hostname?: string;
  linux?: {
    namespaces?: { type: string; path?: string }[];
    cgroupsPath?: string;
    seccomp?: unknown;
    [key: string]: unknown;
  };
  [key: string]: unknown;
}

/** Docker's default set: what a container is used to having. */
const CAPABILITIES = [
  "CAP_CHOWN",
  "CAP_DAC_OVERRIDE",
  "CAP_FSETID",
  "CAP_FOWNER",
  "CAP_MKNOD",
  "CAP_NET_RAW",
  "CAP_SETGID",
  "CAP_SETUID",
  "CAP_SETFCAP",
  "CAP_SETPCAP",
  "CAP_NET_BIND_SERVICE",
  "CAP_SYS_CHROOT",
  "CAP_KILL",
  "CAP_AUDIT_WRITE",
];

/** asm-generic/errno.h */
const EINVAL = 22;
const ENOSYS = 38;
/** linux/prctl.h: no memory that is writable and executable, from now on */
const PR_SET_MDWE = 65;
const EPROTONOSUPPORT = 93;
const AF_INET = 2;
const AF_INET6 = 10;
const IPPROTO_MPTCP = 262;
/** of a register of 64 bits that holds an int */
const INT_MASK = 0xffffffff;

/**
 * What CRIU cannot dump and programs do without: io_uring (they use epoll), MPTCP (they use TCP: Go since 1.24 listens with it
 * unless it is told that the kernel has none).
 */
const SECCOMP = {
  defaultAction: "SCMP_ACT_ALLOW",
  architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
  syscalls: [
    {
      names: ["io_uring_setup", "io_uring_enter", "io_uring_register"],
      action: "SCMP_ACT_ERRNO",
      errnoRet: ENOSYS,
    },
    // what CRIU 4.2 does not carry, and nobody can see from outside: a process would be confined before a move and free after
    // it. A program that finds neither goes on as on an older kernel
    {
      names: ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"],
      action: "SCMP_ACT_ERRNO",
      errnoRet: ENOSYS,
    },
    {
      names: ["prctl"],
      action: "SCMP_ACT_ERRNO",
      errnoRet: EINVAL,
      args: [{ index: 0, value: INT_MASK, valueTwo: PR_SET_MDWE, op: "SCMP_CMP_MASKED_EQ" }],
    },
    ...[AF_INET, AF_INET6].map((family) => ({
      names: ["socket"],
      action: "SCMP_ACT_ERRNO",
      errnoRet: EPROTONOSUPPORT,
      args: [
        { index: 0, value: INT_MASK, valueTwo: family, op: "SCMP_CMP_MASKED_EQ" },
        { index: 2, value: INT_MASK, valueTwo: IPPROTO_MPTCP, op: "SCMP_CMP_MASKED_EQ" },
      ],
    })),
  ],
};

const BASE_MOUNTS: OciMount[] = [
  { destination: "/proc", type: "proc", source: "proc" },
  {
    destination: "/dev",
    type: "tmpfs",
    source: "tmpfs",
    options: ["nosuid", "strictatime", "mode=755", "size=65536k"],
  },
  {
    destination: "/dev/pts",
    type: "devpts",
    source: "devpts",
    options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
  },
  {
    destination: "/dev/shm",
    type: "tmpfs",
    source: "shm",
    options: ["nosuid", "noexec", "nodev", "mode=1777"],
  },
  { destination: "/dev/mqueue", type: "mqueue", source: "mqueue", options: ["nosuid", "noexec", "nodev"] },
  { destination: "/sys", type: "sysfs", source: "sysfs", options: ["nosuid", "noexec", "nodev", "ro"] },
];

/** Not over a view of the host: there /tmp is part of what is to be seen, and writes go to the private layer. */
const TMP_MOUNT: OciMount = {
  destination: "/tmp",
  type: "tmpfs",
  source: "tmpfs",
  options: ["nosuid", "nodev", "mode=1777"],
};

/** CRIU keeps what it learnt about the kernel in /run/criu.kdat, but only on a tmpfs; without it each call probes for 35 ms. */
const RUN_MOUNT: OciMount = {
  destination: "/run",
  type: "tmpfs",
  source: "tmpfs",
  options: ["nosuid", "nodev", "mode=755"],
};

/** How the application is started; a bundle brings its own. */
export function processOf(container: ContainerPlan, bundle: OciSpec | null): OciSpec["process"] {
  if (bundle !== null) return { ...bundle.process, terminal: false };
  const env = {
    PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    HOME: "/root",
    ...container.env,
  };
  const capabilities = { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES };
  return {
    terminal: false,
    user: { uid: 0, gid: 0 },
    args: container.command,
    env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
    cwd: container.cwd,
    noNewPrivileges: true,
    capabilities,
  };
}

/** A container described by our own configuration. */
export function buildSpec(options: SpecOptions): OciSpec {
  return addOurs(options, {
    ociVersion: "1.0.2",
    process: { ...processOf(options.container, null), args: PAUSE },
    root: { path: options.rootfs, readonly: false },
    hostname: options.hostname,
    mounts: [...BASE_MOUNTS, ...(options.isHostView ? [] : [TMP_MOUNT]), RUN_MOUNT],
    linux: {
      namespaces: [{ type: "pid" }, { type: "mount" }, { type: "ipc" }, { type: "uts" }],
      cgroupsPath: options.cgroupsPath,
      seccomp: SECCOMP,
    },
  });
}

/** A bundle made by others: its own process, mounts and limits stay; the init, our folders and the node's network are put in. */
export function adaptSpec(options: SpecOptions, bundle: OciSpec): OciSpec {
  const linux = bundle.linux ?? {};
  const namespaces = (linux.namespaces ?? []).filter(
    (namespace) => namespace.type !== "network" && namespace.path === undefined,
  );
  for (const type of ["pid", "mount", "ipc", "uts"]) {
    if (!namespaces.some((namespace) => namespace.type === type)) namespaces.push({ type });
  }
  const mounts = bundle.mounts ?? [];
  const hasRun = mounts.some((mount) => mount.destination === "/run");
  return addOurs(options, {
    ...bundle,
    process: { ...processOf(options.container, bundle), args: PAUSE },
    root: { path: options.rootfs, readonly: false },
    mounts: hasRun ? mounts : [...mounts, RUN_MOUNT],
    linux: { ...linux, namespaces, cgroupsPath: options.cgroupsPath },
  });
}

function addOurs(options: SpecOptions, spec: OciSpec): OciSpec {
  const volumes = options.container.mounts.map((mount) => ({
    destination: mount.target,
    type: "bind",
    source: mount.source,
    options: ["rbind", mount.readonly ? "ro" : "rw"],
  }));
  const ours: OciMount[] = [
    {
      destination: INSIDE,
      type: "tmpfs",
      source: "holdfast",
      options: ["ro", "nosuid", "nodev", "mode=755", "size=4k"],
    },
    { destination: INSIDE_RUN, type: "bind", source: options.runDir, options: ["rbind", "ro"] },
    { destination: INSIDE_CRIU, type: "bind", source: options.criuDir, options: ["rbind", "ro"] },
  ];
  return { ...spec, mounts: [...(spec.mounts ?? []), ...volumes, ...ours] };
}

/** tmpfs mounts whose files have to travel: all but /dev itself (device nodes made by the runtime) and our own. */
export function travellingTmpfs(spec: OciSpec): string[] {
  return (spec.mounts ?? [])
    .filter((mount) => mount.type === "tmpfs" && mount.destination !== "/dev" && mount.destination !== INSIDE)
    .map((mount) => mount.destination);
}
