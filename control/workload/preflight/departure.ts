/** What is asked of an application and its container where it runs. Looked at through /proc and pidfd_getfd(2): nothing stops. */
import { statfs } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { CAPTURE_BYTES_MAX, type Endpoint } from "#proxy/contract/snapshot.ts";
import { type DiagSocket, listenBacklog, listSockets } from "#proxy/kernel/diag.ts";
import type { Check } from "../../api/finding.ts";
import type { WorkloadConfig } from "../../config/config.ts";
import { addressesThatMove } from "../../migration/addresses.ts";
import { locksOnSharedMounts } from "../../migration/locks.ts";
import { classifySockets, socketInodes } from "../../migration/sockets.ts";
import { networkOf } from "../../runtime/network-namespace.ts";
import { imageBytes } from "../../runtime/processes.ts";
import type { CheckedWorkload } from "./checked-workload.ts";
import { checkDatabases } from "./databases.ts";
import { otherUserOf } from "./departure-facts.ts";
import { checkDescriptors } from "./descriptors.ts";
import { checkIpc } from "./ipc.ts";
import { checkMemory } from "./memory.ts";
import { hasSysResource } from "./node.ts";
import { checkProcesses } from "./processes.ts";
import { checkSockets } from "./sockets.ts";
import { availableBytes, mega } from "./space.ts";
import { checkTerminals } from "./terminals.ts";

export interface DeparturePlace {
  workload: CheckedWorkload;
  /** every process of the application, parents first */
  pids: number[];
}

/** in the application's sockets: a move lasts about as much longer as a copy of it takes */
const SLOW_CLIENTS_BYTES = 33_554_432;
const BACKLOG_POLL_MS = 20;
/** an application that its node gives no time to accepts no connection for longer than its clients would be held, and in the end it does */
const ACCEPT_MS_MAX = 5_000;

export const departureChecks: Check<DeparturePlace>[] = [
  {
    category: "processes",
    run: ({ workload: { container }, pids }, add) => checkProcesses(container.init.pid, pids, add),
  },
  {
    category: "descriptors",
    async run({ workload: { container }, pids }, add) {
      await checkDescriptors(container.init.pid, pids, add);
      await checkTerminals(pids, add);
    },
  },
  { category: "memory", run: ({ pids }, add) => checkMemory(pids, add) },
  {
    category: "ipc",
    run: ({ pids }, add) => checkIpc(pids, add),
  },
  {
    category: "identity",
    async run({ pids }, add) {
      const other = await otherUserOf(pids);
      if (other !== null && !(await hasSysResource()))
        add(
          "identity.no-sys-resource",
          "error",
          `process ${other.pid} runs as uid ${other.uid} and this agent has no CAP_SYS_RESOURCE`,
          "grant the agent CAP_SYS_RESOURCE, or run the application as root",
          { pid: other.pid },
        );
    },
  },
  {
    category: "sockets",
    async run({ workload: { config, container }, pids }, add) {
      const { listening } = await classifySockets(
        pids,
        config.ports.map((port) => port.upstream),
      );
      for (const socket of listening) {
        if (!moves(socket, addressesThatMove(config)))
          add(
            "socket.address-stays",
            "error",
            `the application listens on ${socket.address}:${socket.port}, an address that stays behind`,
            "let it listen on 127.0.0.1, ::1, 0.0.0.0 or ::",
          );
      }
      const ports = config.ports.map(({ upstream }) => upstream.port);
      const initPid = container.init.pid;
      await checkSockets({ initPid, pids, moving: addressesThatMove(config), upstreamPorts: ports }, add);
    },
  },
  {
    category: "address",
    async run({ workload: { vip, config } }, add) {
      if (vip === null && config.vip !== null)
        add(
          "source.no-device",
          "error",
          `the agent found no device ${config.vip.device} for the address ${config.vip.address}, so it cannot take it off this node`,
          "make the device, or correct vip.device, and start the agent again",
        );
      if (vip === null || vip.holder === null) return;
      add(
        "source.address-elsewhere",
        "error",
        `another machine (${vip.holder}) has the address ${vip.config.address}, so it is not on this node`,
        "take it off that machine; this node puts it on when nobody answers for it any more",
      );
    },
  },
  {
    category: "ports",
    async run({ workload: { config, logFile }, pids }, add) {
      const listening = listSockets({ states: ["LISTEN"] }, networkOf(pids));
      const own = await socketInodes(pids);
      for (const { upstream } of config.ports) {
        const there = listening.filter(
          ({ local }) =>
            local.port === upstream.port && ["0.0.0.0", "::", upstream.address].includes(local.address),
        );
        if (there.length === 0)
          add(
            "application.not-listening",
            "warning",
            `the application does not listen on ${upstream.address}:${upstream.port}, where the workload's clients are led to`,
            `correct upstream: in the configuration, or wait until the application is ready; its log: ${logFile}`,
          );
        for (const socket of there.filter(({ inode }) => !own.has(inode)).slice(0, 1))
          add(
            "application.other-listener",
            "error",
            `${socket.local.address}:${upstream.port}, where the workload's clients are led to, is not the application's own: its end of their connections would stay behind`,
            "stop the other program, or correct upstream: in the configuration",
          );
      }
    },
  },
  {
    category: "sessions",
    async run({ workload, pids }, add) {
      const { config } = workload;
      const { downstreamBytes, upstreamBytes, applicationBytes } = queuedBytes(config, pids);
      if (downstreamBytes > CAPTURE_BYTES_MAX || upstreamBytes > CAPTURE_BYTES_MAX)
        add(
          "session.snapshot-limit",
          "error",
          `${Math.max(downstreamBytes, upstreamBytes)} bytes are queued on connections, more than a capture can have (${CAPTURE_BYTES_MAX})`,
          "wait until slow clients, or the application, have read",
        );
      if (applicationBytes > SLOW_CLIENTS_BYTES)
        add(
          "session.slow-clients",
          "warning",
          `${mega(applicationBytes)} MB wait in the application's own sockets for clients that do not read, and are carried while all clients wait`,
          "wait until they have read, end them (userTimeoutMs of the port), or let the application send less ahead (SO_SNDBUF)",
        );
      const waiting = await notAccepted(config, pids);
      if (waiting > 0)
        add(
          "session.not-accepted",
          "error",
          `${waiting} connections wait for the application to accept them, and it does not`,
          "let the application accept them",
        );
    },
  },
  {
    category: "space",
    async run({ workload: { container, limits }, pids }, add) {
      const needed = await imageBytes(pids);
      const free = await statfs(container.hostPath());
      if (needed > free.bavail * free.bsize)
        add(
          "space.images-limit",
          "error",
          `no space for images: ${mega(needed)} MB needed, ${mega(free.bavail * free.bsize)} MB left beside the container's files`,
          "raise limits.imagesMbMax (twice that is what both together may take)",
        );
      // images, and what the agent keeps of the first copy to compare with
      const memory = needed + Math.min(needed, limits.precopyBytesMax);
      if (memory > (await availableBytes()))
        add(
          "space.no-memory",
          "error",
          `too little memory: ${mega(memory)} MB needed for images`,
          "free memory on this node",
        );
    },
  },
  {
    category: "files",
    async run({ workload: { config, container }, pids }, add) {
      await checkDatabases(container, pids, add);
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

/**
 * Bytes that travel with connections: what has not been read, or acknowledged, at the proxy's ends of them; and what the application
 * has written and the proxy not taken.
 */
function queuedBytes(
  { ports, listenAddress }: WorkloadConfig,
  pids: number[],
): {
  downstreamBytes: number;
  upstreamBytes: number;
  applicationBytes: number;
} {
  const sum = (sockets: DiagSocket[]): number =>
    sockets
      .filter(({ state }) => state !== "LISTEN")
      .reduce((bytes, { receiveQueue, sendQueue }) => bytes + receiveQueue + sendQueue, 0);
  const all = listSockets({}, networkOf(pids));
  return {
    downstreamBytes: sum(
      listSockets().filter(
        ({ local }) => local.address === listenAddress && ports.some(({ listen }) => listen === local.port),
      ),
    ),
    upstreamBytes: sum(
      all.filter(({ remote }) =>
        ports.some(({ upstream }) => upstream.port === remote.port && upstream.address === remote.address),
      ),
    ),
    applicationBytes: all
      .filter(
        ({ state, local, remote }) =>
          state !== "LISTEN" &&
          remote.address === local.address &&
          ports.some(({ upstream }) => upstream.port === local.port),
      )
      .reduce((bytes, { sendQueue }) => bytes + sendQueue, 0),
  };
}

/** Looks until none waits, as the hold does. Clients go on meanwhile. */
async function notAccepted({ ports, limits }: WorkloadConfig, pids: number[]): Promise<number> {
  const until = performance.now() + Math.max(limits.holdMsMax, ACCEPT_MS_MAX);
  for (;;) {
    const network = networkOf(pids);
    const waiting = ports.reduce((sum, { upstream }) => sum + (listenBacklog(upstream, network) ?? 0), 0);
    if (waiting === 0 || performance.now() > until) return waiting;
    await delay(BACKLOG_POLL_MS);
  }
}

function moves(socket: Endpoint, moving: string[]): boolean {
  const { address } = socket;
  return (
    address === "0.0.0.0" ||
    address === "::" ||
    address === "::1" ||
    address.startsWith("127.") ||
    moving.includes(address)
  );
}
