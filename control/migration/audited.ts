/** What the audit looks at, in words of a workload: the same at both sides of a move. */

import type { TakeOptions } from "../audit/take.ts";
import type { WorkloadConfig } from "../config/config.ts";
import { treeOf } from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import { addressesThatMove } from "./addresses.ts";

/** @param root of the application's processes, as the agent sees it */
export async function audited(
  config: WorkloadConfig,
  container: Sandbox,
  root: number,
): Promise<TakeOptions> {
  return {
    initPid: container.init.pid,
    pids: await treeOf(root),
    addresses: addressesThatMove(config),
    volumes: (config.container?.mounts ?? []).map(({ target }) => target),
  };
}
