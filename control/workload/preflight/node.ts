/** What is asked of a node, whatever runs on it. */
import { readFile, statfs } from "node:fs/promises";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Check } from "../../api/finding.ts";
import { kernelCacheOf } from "../../criu/worker.ts";
import type { AgentContext } from "../context.ts";

/** capabilities(7): numbers of include/uapi/linux/capability.h */
const NEEDED = { CAP_NET_ADMIN: 12, CAP_NET_RAW: 13, CAP_SYS_PTRACE: 19, CAP_SYS_ADMIN: 21 };
const CAP_SYS_RESOURCE = 24;
const LOG_BYTES_MIN = 64 * 1024 * 1024;

export const nodeChecks: Check<AgentContext>[] = [
  {
    category: "capabilities",
    async run(_, add) {
      for (const [name, bit] of Object.entries(NEEDED)) {
        if (!(await hasCapability(bit)))
          add(
            "node.no-capability",
            "error",
            `capability ${name} is missing`,
            "run the agent as root with full capabilities",
          );
      }
      if (!(await hasSysResource()))
        add(
          "node.no-sys-resource",
          "warning",
          "capability CAP_SYS_RESOURCE is missing",
          "grant it if applications run as users other than root: those cannot be moved without it",
        );
    },
  },
  {
    category: "CRIU",
    async run(node, add) {
      try {
        await kernelCacheOf(node.criu.sealed());
      } catch (error) {
        add(
          "node.criu",
          "error",
          `CRIU cannot be used here: ${messageOf(error)}`,
          "run scripts/setup.sh, on Linux 5.12 or newer, and the agent as root with full capabilities",
        );
      }
    },
  },
  {
    category: "store",
    run: ({ store }, add) =>
      store
        .ping()
        .catch((error: unknown) =>
          add(
            "node.store-silent",
            "error",
            `the store does not answer: ${messageOf(error)}`,
            "start it, or correct store: in the configuration",
          ),
        ),
  },
  {
    category: "disk",
    async run({ stateDir }, add) {
      const space = await statfs(stateDir);
      if (space.bavail * space.bsize < LOG_BYTES_MIN)
        add(
          "node.disk-full",
          "warning",
          `less than ${LOG_BYTES_MIN / 1024 / 1024} MiB free at ${stateDir}`,
          "free some for logs",
          { path: stateDir },
        );
    },
  },
];

/** Of this agent: without it CRIU cannot restore a process of a user other than root (prctl(2), PR_SET_MM). */
export function hasSysResource(): Promise<boolean> {
  return hasCapability(CAP_SYS_RESOURCE);
}

async function hasCapability(bit: number): Promise<boolean> {
  const status = await readFile("/proc/self/status", "utf8");
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  return (effective & (1n << BigInt(bit))) !== 0n;
}
