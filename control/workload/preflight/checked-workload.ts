/** What the checks need of a workload. */
import type { WorkloadConfig } from "../../config/config.ts";
import type { Vip } from "../../network/vip.ts";
import type { Runtime, Sandbox } from "../../runtime/runtime.ts";
import type { Problem } from "../claim.ts";
import type { AgentContext } from "../context.ts";
import type { Journal } from "../journal.ts";

export interface CheckedWorkload {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly context: AgentContext;
  readonly journal: Readonly<Journal>;
  readonly limits: { readonly imagesBytesMax: number; readonly precopyBytesMax: number };
  readonly logFile: string;
  readonly runtime: Runtime;
  readonly container: Sandbox;
  readonly vip: Vip | null;
  /** Why it does not run, or did not lately. */
  readonly supervisor: { readonly problem: Problem | null };
  /** What keeps it from moving now, for people. null: nothing */
  readonly busyWith: string | null;
}
