/** What is asked of an application and its container where it runs. Looked at through /proc and pidfd_getfd(2): nothing stops. */
import { access, readFile } from "node:fs/promises";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { descriptorsOf } from "../container/processes.ts";
import { pathInside } from "../container/runtime.ts";
import { locksOnSharedMounts } from "../migration/locks.ts";
import { classifySockets } from "../migration/sockets.ts";
import type { Check, FindingId } from "./finding.ts";
import { checkIpc } from "./preflight-ipc.ts";
import { hasSysResource } from "./preflight-node.ts";
import { checkSockets } from "./preflight-sockets.ts";
import type { Workload } from "./workload.ts";

export interface DeparturePlace {
  workload: Workload;
  /** every process of the application, parents first */
  pids: number[];
}

/** Kinds of descriptors that CRIU 4.2 cannot dump, with what to do about each. */
const UNDUMPABLE: Record<string, { id: FindingId; cure: string }> = {
  "anon_inode:[io_uring]": {
    id: "descriptor.io-uring",
    cure: "run it under a seccomp profile that refuses io_uring, or set kernel.io_uring_disabled=2",
  },
  "anon_inode:[perf_event]": {
    id: "descriptor.perf-event",
    cure: "switch the application's use of perf events off",
  },
  "anon_inode:[userfaultfd]": {
    id: "descriptor.userfaultfd",
    cure: "switch the application's use of userfaultfd off",
  },
  "anon_inode:bpf-map": { id: "descriptor.bpf", cure: "the application must not hold eBPF maps" },
  "anon_inode:bpf-prog": { id: "descriptor.bpf", cure: "the application must not hold eBPF programs" },
  "anon_inode:[fanotify]": { id: "descriptor.fanotify", cure: "use inotify in place of fanotify" },
};

const CRIU_CONFIGURATION = "/etc/criu/default.conf";

export const departureChecks: Check<DeparturePlace>[] = [
  {
    category: "descriptors",
    async run({ pids }, add) {
      for (const pid of pids) {
        for (const { fd, target } of await descriptorsOf(pid)) {
          const kind = UNDUMPABLE[target];
          if (kind !== undefined)
            add(
              kind.id,
              "error",
              `process ${pid} has descriptor ${fd} of a kind CRIU cannot dump (${target})`,
              kind.cure,
              { pid, fd },
            );
        }
      }
    },
  },
  {
    category: "memory",
    async run({ pids }, add) {
      for (const pid of pids) {
        const maps = await readFile(`/proc/${pid}/maps`, "utf8").catch(() => "");
        const device = maps.split("\n").find((line) => / \/dev\/(?!shm\/|zero|null)/.test(line));
        const path = device?.split(" ").at(-1);
        if (path !== undefined)
          add(
            "memory.device-mapped",
            "error",
            `process ${pid} has a device mapped: ${path}`,
            "the application must not map devices",
            { pid, path },
          );
      }
    },
  },
  {
    category: "ipc",
    run: ({ pids }, add) => checkIpc(pids, add),
  },
  {
    category: "identity",
    async run({ pids }, add) {
      if (await hasSysResource()) return;
      for (const pid of pids) {
        const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
        const uid = /^Uid:\s*(\d+)/m.exec(status)?.[1];
        if (uid !== undefined && uid !== "0")
          add(
            "identity.no-sys-resource",
            "error",
            `process ${pid} runs as uid ${uid} and this agent has no CAP_SYS_RESOURCE`,
            "grant the agent CAP_SYS_RESOURCE, or run the application as root",
            { pid },
          );
      }
    },
  },
  {
    category: "sockets",
    async run({ workload: { config }, pids }, add) {
      const { listening } = await classifySockets(
        pids,
        config.ports.map((port) => port.upstream),
      );
      for (const socket of listening) {
        if (!moves(socket, config.vip?.address))
          add(
            "socket.address-stays",
            "error",
            `the application listens on ${socket.address}:${socket.port}, an address that stays behind`,
            "let it listen on 127.0.0.1, ::1, 0.0.0.0 or ::",
          );
      }
      const ports = config.ports.map(({ upstream }) => upstream.port);
      await checkSockets({ pids, vip: config.vip?.address, upstreamPorts: ports }, add);
    },
  },
  {
    category: "files",
    async run({ workload: { config, container }, pids }, add) {
      if (await exists(pathInside(container, CRIU_CONFIGURATION)))
        add(
          "file.criu-configuration",
          "error",
          `${CRIU_CONFIGURATION} of another tool changes how CRIU works`,
          "remove it from the container's files",
          { path: CRIU_CONFIGURATION },
        );
      const mounts = config.container?.mounts ?? [];
      for (const { pid, path } of await locksOnSharedMounts(pids, mounts))
        add(
          "file.shared-lock",
          "error",
          `process ${pid} holds a lock on ${path}, which the other node sees too and could not take`,
          "let the application release it before the move, or keep the lock file outside the shared mount",
          { pid, path },
        );
      for (const mount of mounts)
        if (!mount.shared && !mount.readonly)
          add(
            "file.mount-not-shared",
            "error",
            `the mount at ${mount.target} is not shared between nodes`,
            "set shared: true once every node sees the same files, or readonly: true",
            { path: mount.target },
          );
    },
  },
];

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

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
