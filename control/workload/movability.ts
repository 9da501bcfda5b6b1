/** Whether an application could leave its node, and about how long its clients would wait: looked at from outside, nobody is held. */
import type { Finding } from "../api/finding.ts";
import type { Prediction } from "../api/migration.ts";
import { predict } from "../migration/prediction.ts";
import { Rehearsal } from "../migration/rehearsal.ts";
import type { CheckedWorkload } from "./preflight/checked-workload.ts";
import { checkApplication } from "./preflight/preflight.ts";

export interface Movability {
  /** what makes a move impossible; empty: nothing */
  obstacles: Finding[];
  /** null: there is nothing to move */
  estimate: { pauseMs: Prediction["pauseMs"]; memoryBytes: number } | null;
}

/** Of memory that is copied before the hold, what is assumed to have changed since: only a rehearsal measures it. */
const CHANGED = 0.1;

/** @param workload runs here */
export async function movabilityOf(
  workload: CheckedWorkload & {
    readonly keeper: { countSessions(): Promise<number> };
    readonly downstream: "takeover" | "forward" | "gateway";
  },
): Promise<Movability> {
  const { report, pids } = await checkApplication(workload);
  const obstacles = report.findings.filter(({ severity }) => severity === "error");
  if (pids === null) return { obstacles, estimate: null };
  const measured = await new Rehearsal().measured(pids, {
    downstream: workload.downstream,
    legs: await workload.keeper.countSessions(),
    storeMs: 0,
    holdMsMax: workload.config.limits.holdMsMax,
    copiedBytesMax: workload.limits.precopyBytesMax,
    leavesPages: false, // who looks from outside does not ask CRIU: rather too long than too short
  });
  const { imageBytes } = measured;
  const isCopiedBefore = workload.limits.precopyBytesMax > 0;
  const { pauseMs } = predict({
    ...measured,
    lastRoundBytes: isCopiedBefore ? Math.min(imageBytes, workload.limits.precopyBytesMax) * CHANGED : null,
  });
  return { obstacles, estimate: { pauseMs, memoryBytes: imageBytes } };
}
