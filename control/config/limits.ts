/** Bounds that the file may change: what they are, in the units of the file. */
import type { ProxyLimits } from "#proxy/contract/commands.ts";

export interface WorkloadLimits extends ProxyLimits {
  /** a move that has not committed by then is rolled back */
  deadlineMs: number;
  /** size of the tmpfs for images and the writable layer, MiB */
  imagesMbMax: number;
  /** memory of the application that is copied before the hold, MiB; a larger one is copied during the dump; 0: never before */
  precopyMbMax: number;
  /** every page is compared, restored and source, before a move commits: it lasts longer by that */
  verifyMemory: boolean;
  /** what the application writes to its standard output and error is kept on the node up to this, MiB */
  logMbMax: number;
  /** snapshots and held bytes of one move, in the store */
  storedLegsBytesMax: number;
}

export interface AgentLimits {
  /** held bytes in memory, MiB */
  heldMbMax: number;
  /** … and on disk */
  spillMbMax: number;
}
