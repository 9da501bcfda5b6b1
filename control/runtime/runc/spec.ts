/**
 * The OCI runtime configuration of a workload's container (https://github.com/opencontainers/runtime-spec, config.md).
 * Pure: configuration in, `config.json` out.
 *
 * Source and standby containers are made from the same configuration, so what a restore needs (mounts, IPC and UTS
 * namespaces, capabilities, seccomp) comes from the live container and never from an image.
 */
import { type CapabilityChange, capabilitiesOf } from "../../config/capabilities.ts";
import type { NetworkPlan } from "../../config/container-network.ts";
import { type SeccompProfile, withoutNotCarried } from "../not-carried.ts";
import type { OciMount, OciSpec } from "../oci.ts";
import { ALLOW_ALL, seccompProfile } from "./seccomp.ts";

/** What to run and what to show it, wherever that was written down. */
export interface ContainerPlan {
  command: string[];
  cwd: string;
  env: Record<string, string>;
  mounts: { source: string; target: string; readonly: boolean }[];
  /** over the defaults; a bundle has its own */
  capabilities: CapabilityChange;
  /** null: the node's */
  network: NetworkPlan | null;
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
  /** files and folders of this agent that nobody else is to see, as the container would see them */
  secrets: string[];
}

/** What of /proc and /sys is about the node and not about the container, as Docker hides it; what is not there is left out. */
const MASKED_PATHS = [
  ...["/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"],
  ...["/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"],
  ...["/sys/devices/virtual/powercap", "/sys/firmware"],
];
const READ_ONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/** Of a host that a container is shown: with what keys it proves who it is. For passwords see `shadow.ts`. */
const HOST_SECRETS = [
  ...["/etc/ssl/private", "/root/.ssh"],
  ...["/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ed25519_key"],
];

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
  const held = capabilitiesOf(container.capabilities);
  const capabilities = { bounding: held, effective: held, permitted: held };
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
      namespaces: [
        ...[{ type: "pid" }, { type: "mount" }, { type: "ipc" }, { type: "uts" }],
        ...(options.container.network === null ? [] : [{ type: "network" }]),
      ],
      cgroupsPath: options.cgroupsPath,
      // of devices only those that every container has (runc adds them): a node of a disk opens for nobody
      resources: { devices: [{ allow: false, access: "rwm" }] },
      maskedPaths: MASKED_PATHS,
      readonlyPaths: READ_ONLY_PATHS,
      seccomp: seccompProfile(capabilitiesOf(options.container.capabilities)),
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
    linux: {
      ...linux,
      namespaces,
      cgroupsPath: options.cgroupsPath,
      seccomp: withoutNotCarried((linux.seccomp as SeccompProfile | undefined) ?? ALLOW_ALL),
    },
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
  const linux = spec.linux ?? {};
  const hidden = [...options.secrets, ...(options.isHostView ? HOST_SECRETS : [])];
  const maskedPaths = [...new Set([...(linux.maskedPaths ?? []), ...hidden])];
  return { ...spec, mounts: [...(spec.mounts ?? []), ...volumes, ...ours], linux: { ...linux, maskedPaths } };
}

/** tmpfs mounts whose files have to travel: all but /dev itself (device nodes made by the runtime) and our own. */
export function travellingTmpfs(spec: OciSpec): string[] {
  return (spec.mounts ?? [])
    .filter((mount) => mount.type === "tmpfs" && mount.destination !== "/dev" && mount.destination !== INSIDE)
    .map((mount) => mount.destination);
}
