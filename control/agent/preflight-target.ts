/** What is asked of a node that is to take a workload, before anything is made there. */
import { readFile } from "node:fs/promises";
import { freemem } from "node:os";
import { listSockets } from "#proxy/tcp/diag.ts";
import { accountingHere } from "../criu/address-space.ts";
import type { PrepareCall } from "../migration/move.ts";
import type { Check } from "./finding.ts";
import type { Workload } from "./workload.ts";

export interface ArrivalPlace {
  workload: Workload;
  prepare: Pick<PrepareCall, "upstreamPorts" | "residentBytes" | "reservedBytes">;
}

export const arrivalChecks: Check<ArrivalPlace>[] = [
  {
    category: "ports",
    async run({ prepare }, add) {
      const listening = listSockets({ states: ["LISTEN"] });
      for (const port of prepare.upstreamPorts) {
        if (listening.some((socket) => socket.local.port === port))
          add(
            "target.port-taken",
            "error",
            `port ${port} is taken`,
            "stop what listens there, or give the workload another upstream port",
          );
      }
    },
  },
  {
    category: "space",
    async run({ workload, prepare: { residentBytes } }, add) {
      const { imagesBytesMax } = workload.limits;
      if (residentBytes > imagesBytesMax)
        add(
          "target.images-limit",
          "error",
          `no space for images: ${mega(residentBytes)} MB needed, limit ${mega(imagesBytesMax)} MB`,
          "raise limits.imagesMbMax",
        );
      // the images and the memory restored from them exist side by side for a moment
      if (residentBytes * 2 > freemem() + (await reclaimableBytes()))
        add(
          "target.no-memory",
          "error",
          `too little memory: ${mega(residentBytes * 2)} MB needed`,
          "free memory on that node, or choose another",
        );
    },
  },
  {
    category: "reservations",
    async run({ prepare: { reservedBytes } }, add) {
      const { leftBytes } = accountingHere();
      // CRIU maps private memory writable while it restores, and the kernel counts all of it
      if (leftBytes !== null && reservedBytes > leftBytes)
        add(
          "target.overcommit",
          "error",
          `vm.overcommit_memory is 2 and leaves ${mega(leftBytes)} MB, the application reserves ${mega(reservedBytes)} MB`,
          "set vm.overcommit_memory to 0, raise vm.overcommit_ratio, or let the application reserve less",
        );
    },
  },
  {
    category: "address",
    async run({ workload: { vip, config } }, add) {
      if (await vip?.isHere())
        add(
          "target.address-there",
          "error",
          `the address ${config.vip?.address} is on this node already`,
          `ip address del it from ${config.vip?.device}`,
        );
    },
  },
];

async function reclaimableBytes(): Promise<number> {
  const meminfo = await readFile("/proc/meminfo", "utf8");
  const kilo = (name: string): number =>
    Number(new RegExp(`^${name}:\\s*(\\d+)`, "m").exec(meminfo)?.[1] ?? 0);
  return Math.max(0, kilo("MemAvailable") - kilo("MemFree")) * 1024;
}

function mega(bytes: number): number {
  return Math.ceil(bytes / 1e6);
}
