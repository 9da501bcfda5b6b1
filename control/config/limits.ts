/** What bounds a workload and an agent, each once: what it is, its unit, its default and what the file may set it to. */
import { defaultsOf, type Limit, MS_MAX, PROXY_LIMITS, type ProxyLimits } from "#proxy/contract/limits.ts";

const MIB_MAX = 1_048_576;

/** … beside its proxy's */
export const MOVE_LIMITS = {
  /** a move that has not committed by then is rolled back */
  deadlineMs: { unit: "ms", default: 10_000, min: 100, max: MS_MAX },
  /** size of the tmpfs for images and the writable layer */
  imagesMbMax: { unit: "MiB", default: 2_048, min: 1, max: MIB_MAX },
  /** memory of the application that is copied before the hold; what is beyond is sent while clients wait; 0: never before */
  precopyMbMax: { unit: "MiB", default: 1_024, min: 0, max: MIB_MAX },
  /** of a process with as much memory of its own the kernel is asked which pages it writes, in place of comparing all; the most: never */
  trackedMbMin: { unit: "MiB", default: MIB_MAX, min: 0, max: MIB_MAX },
  /** snapshots and held bytes of one move, in the store */
  storedLegsBytesMax: { unit: "bytes", default: 8_388_608, min: 65_536, max: 268_435_456 },
  /** what the application writes to its standard output and error is kept on the node up to this */
  logMbMax: { unit: "MiB", default: 256, min: 1, max: MIB_MAX },
} as const satisfies Record<string, Limit>;

export const AGENT_LIMITS = {
  /** held bytes in memory */
  heldMbMax: { unit: "MiB", default: 512, min: 0, max: MIB_MAX },
  /** … and on disk */
  spillMbMax: { unit: "MiB", default: 4_096, min: 0, max: MIB_MAX },
} as const satisfies Record<string, Limit>;

export type WorkloadLimits = ProxyLimits & { [Name in keyof typeof MOVE_LIMITS]: number } & {
  /** every page is compared, restored and source, before a move commits: it lasts longer by that */
  verifyMemory: boolean;
};
export type AgentLimits = { [Name in keyof typeof AGENT_LIMITS]: number };

export const DEFAULT_LIMITS: WorkloadLimits = {
  ...defaultsOf(PROXY_LIMITS),
  ...defaultsOf(MOVE_LIMITS),
  verifyMemory: false,
};
export const DEFAULT_AGENT_LIMITS: AgentLimits = defaultsOf(AGENT_LIMITS);

/** Those of a workload's limits that are its proxy's. */
export function proxyLimitsOf(limits: WorkloadLimits): ProxyLimits {
  const names = Object.keys(PROXY_LIMITS) as (keyof ProxyLimits)[];
  return Object.fromEntries(names.map((name) => [name, limits[name]])) as ProxyLimits;
}
