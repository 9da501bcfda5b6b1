/**
 * Why a workload cannot move, found out before anybody is held: one finding a line, each with its cure.
 */
import { access, readFile, statfs } from "node:fs/promises";
import { freemem } from "node:os";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { listSockets } from "#proxy/tcp/diag.ts";
import * as kernel from "#proxy/tcp/kernel.ts";
import { descriptorsOf, treeOf } from "../container/processes.ts";
import { applicationPid, pathInside } from "../container/runtime.ts";
import { locksOnSharedMounts } from "../migration/locks.ts";
import type { PrepareCall } from "../migration/move.ts";
import { classifySockets, socketInodes } from "../migration/sockets.ts";
import type { Workload } from "./workload.ts";

export interface Finding {
  /** null: about the node */
  workload: string | null;
  severity: "error" | "warning";
  what: string;
  cure: string;
}

/** Kinds of descriptors that CRIU 4.2 cannot dump, with what to do about each. */
const UNDUMPABLE: Record<string, string> = {
  "anon_inode:[io_uring]":
    "run it under a seccomp profile that refuses io_uring, or set kernel.io_uring_disabled=2",
  "anon_inode:[perf_event]": "switch the application's use of perf events off",
  "anon_inode:[userfaultfd]": "switch the application's use of userfaultfd off",
  "anon_inode:bpf-map": "the application must not hold eBPF maps",
  "anon_inode:bpf-prog": "the application must not hold eBPF programs",
  "anon_inode:[fanotify]": "use inotify in place of fanotify",
};

const SO_PROTOCOL = 38;
const IPPROTO_MPTCP = 262;
/** of a process or descriptor that ends while it is looked at */
const GONE = new Set(["ESRCH", "EBADF"]);

/** At the source, of a workload that runs here. */
export async function preflightDeparture(workload: Workload): Promise<Finding[]> {
  const findings: Finding[] = [];
  const add = (severity: Finding["severity"], what: string, cure: string): void => {
    findings.push({ workload: workload.name, severity, what, cure });
  };
  const { container, config } = workload;
  if (!(await workload.runtime.isAlive(container))) {
    add("error", "the container has ended", "start it again: restart the agent");
    return findings;
  }
  let root: number | null;
  try {
    root = await applicationPid(container);
  } catch {
    add(
      "error",
      "more than one process tree below the container's init",
      "run the application in the foreground, as one tree",
    );
    return findings;
  }
  if (root === null) {
    add("error", "the application has ended", "look at its log; restart the agent to start it again");
    return findings;
  }
  const pids = await treeOf(root);
  await checkDescriptors(pids, add);
  await checkMemory(pids, add);
  await checkIdentity(pids, add);
  await checkSockets(workload, pids, add);
  if (await exists(pathInside(container, "/etc/criu/default.conf"))) {
    add(
      "error",
      "/etc/criu/default.conf of another tool changes how CRIU works",
      "remove it from the container's files",
    );
  }
  for (const { pid, path } of await locksOnSharedMounts(pids, config.container?.mounts ?? [])) {
    add(
      "error",
      `process ${pid} holds a lock on ${path}, which the other node sees too and could not take`,
      "let the application release it before the move, or keep the lock file outside the shared mount",
    );
  }
  for (const mount of config.container?.mounts ?? []) {
    if (!mount.shared && !mount.readonly) {
      add(
        "error",
        `the mount at ${mount.target} is not shared between nodes`,
        "set shared: true once every node sees the same files, or readonly: true",
      );
    }
  }
  return findings;
}

/** At the target, before anything is made. */
export async function preflightArrival(workload: Workload, prepare: PrepareCall): Promise<Finding[]> {
  const findings: Finding[] = [];
  const add = (severity: Finding["severity"], what: string, cure: string): void => {
    findings.push({
      workload: workload.name,
      severity,
      what: `node ${workload.context.node}: ${what}`,
      cure,
    });
  };
  const listening = listSockets({ states: ["LISTEN"] });
  for (const port of prepare.upstreamPorts) {
    if (listening.some((socket) => socket.local.port === port)) {
      add(
        "error",
        `port ${port} is taken`,
        "stop what listens there, or give the workload another upstream port",
      );
    }
  }
  const needed = prepare.residentBytes;
  if (needed > workload.limits.imagesBytesMax) {
    add(
      "error",
      `no space for images: ${mega(needed)} MB needed, limit ${mega(workload.limits.imagesBytesMax)} MB`,
      "raise limits.imagesMbMax",
    );
  }
  // the images and the memory restored from them exist side by side for a moment
  if (needed * 2 > freemem() + (await reclaimableBytes())) {
    add(
      "error",
      `too little memory: ${mega(needed * 2)} MB needed`,
      "free memory on that node, or choose another",
    );
  }
  await workload.vip?.isHere().then((here) => {
    if (here)
      add(
        "error",
        `the address ${workload.config.vip?.address} is on this node already`,
        `ip address del it from ${workload.config.vip?.device}`,
      );
  });
  return findings;
}

/** The node itself: what `check` says first. */
export async function preflightNode(stateDir: string, storePing: () => Promise<void>): Promise<Finding[]> {
  const findings: Finding[] = [];
  const add = (severity: Finding["severity"], what: string, cure: string): void => {
    findings.push({ workload: null, severity, what, cure });
  };
  const capabilities = BigInt(
    `0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(await readFile("/proc/self/status", "utf8"))?.[1] ?? "0"}`,
  );
  for (const [name, bit] of Object.entries({
    CAP_NET_ADMIN: 12,
    CAP_NET_RAW: 13,
    CAP_SYS_PTRACE: 19,
    CAP_SYS_ADMIN: 21,
  })) {
    if ((capabilities & (1n << BigInt(bit))) === 0n)
      add("error", `capability ${name} is missing`, "run the agent as root with full capabilities");
  }
  if ((capabilities & (1n << 24n)) === 0n) {
    add(
      "warning",
      "capability CAP_SYS_RESOURCE is missing",
      "grant it if applications run as users other than root: those cannot be moved without it",
    );
  }
  await storePing().catch((error: Error) =>
    add(
      "error",
      `the store does not answer: ${error.message}`,
      "start it, or correct store: in the configuration",
    ),
  );
  const space = await statfs(stateDir);
  if (space.bavail * space.bsize < 64 * 1024 * 1024)
    add("warning", `less than 64 MB free at ${stateDir}`, "free some for logs");
  return findings;
}

async function checkDescriptors(
  pids: number[],
  add: (severity: "error", what: string, cure: string) => void,
): Promise<void> {
  for (const pid of pids) {
    for (const { fd, target } of await descriptorsOf(pid)) {
      const cure = UNDUMPABLE[target];
      if (cure !== undefined)
        add("error", `process ${pid} has descriptor ${fd} of a kind CRIU cannot dump (${target})`, cure);
    }
  }
}

async function checkMemory(
  pids: number[],
  add: (severity: "error", what: string, cure: string) => void,
): Promise<void> {
  for (const pid of pids) {
    const maps = await readFile(`/proc/${pid}/maps`, "utf8").catch(() => "");
    // System V segments without an IPC namespace of the container's own cannot be told from the host's; ours always have one
    const device = maps.split("\n").find((line) => / \/dev\/(?!shm\/|zero|null)/.test(line));
    if (device !== undefined)
      add(
        "error",
        `process ${pid} has a device mapped: ${device.split(" ").at(-1)}`,
        "the application must not map devices",
      );
  }
}

async function checkIdentity(
  pids: number[],
  add: (severity: "error", what: string, cure: string) => void,
): Promise<void> {
  const own = await readFile("/proc/self/status", "utf8");
  const hasSysResource =
    (BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(own)?.[1] ?? "0"}`) & (1n << 24n)) !== 0n;
  if (hasSysResource) return;
  for (const pid of pids) {
    const uid = /^Uid:\s*(\d+)/m.exec(await readFile(`/proc/${pid}/status`, "utf8").catch(() => ""))?.[1];
    if (uid !== undefined && uid !== "0") {
      add(
        "error",
        `process ${pid} runs as uid ${uid} and this agent has no CAP_SYS_RESOURCE`,
        "grant the agent CAP_SYS_RESOURCE, or run the application as root",
      );
    }
  }
}

async function checkSockets(
  workload: Workload,
  pids: number[],
  add: (severity: "error", what: string, cure: string) => void,
): Promise<void> {
  const { config } = workload;
  const { listening } = await classifySockets(
    pids,
    config.ports.map((port) => port.upstream),
  );
  for (const socket of listening) {
    if (!moves(socket, config.vip?.address)) {
      add(
        "error",
        `the application listens on ${socket.address}:${socket.port}, an address that stays behind`,
        "let it listen on 127.0.0.1, ::1, 0.0.0.0 or ::",
      );
    }
  }
  // sock_diag lists MPTCP as TCP: only the socket itself tells
  for (const [inode, { pid, fd }] of await socketInodes(pids)) {
    if (protocolOf(pid, fd) === IPPROTO_MPTCP)
      add(
        "error",
        `socket ${inode} of process ${pid} is MPTCP, which CRIU cannot dump`,
        "let the application use plain TCP (a Go program: GODEBUG=multipathtcp=0 in its environment)",
      );
  }
}

/** socket(7) SO_PROTOCOL of another process's socket. null: it has gone */
function protocolOf(pid: number, fd: number): number | null {
  try {
    const pidfd = kernel.pidfdOpen(pid);
    try {
      const ours = kernel.pidfdGetfd(pidfd, fd);
      try {
        return kernel.getsockoptInt(ours, kernel.SOL_SOCKET, SO_PROTOCOL);
      } finally {
        kernel.close(ours);
      }
    } finally {
      kernel.close(pidfd);
    }
  } catch (error) {
    if (error instanceof HoldfastError && GONE.has(error.code)) return null;
    throw error;
  }
}

function moves(socket: Endpoint, vip: string | undefined): boolean {
  const { address } = socket;
  return (
    address === "0.0.0.0" ||
    address === "::" ||
    address === "::1" ||
    address.startsWith("127.") ||
    address === vip
  );
}

async function reclaimableBytes(): Promise<number> {
  const meminfo = await readFile("/proc/meminfo", "utf8");
  const kilo = (name: string): number =>
    Number(new RegExp(`^${name}:\\s*(\\d+)`, "m").exec(meminfo)?.[1] ?? 0);
  return Math.max(0, kilo("MemAvailable") - kilo("MemFree")) * 1024;
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

function mega(bytes: number): number {
  return Math.ceil(bytes / 1e6);
}
