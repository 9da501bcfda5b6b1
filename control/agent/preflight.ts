/**
 * Why a workload cannot move, found out before anybody is held: which checks there are, for a node, for an application
 * where it runs, and for the node that is to take it. They only look: no client waits, no process stops, nothing is made.
 */
import { HoldfastError } from "#proxy/contract/errors.ts";
import { treeOf } from "../container/processes.ts";
import { applicationPid } from "../container/runtime.ts";
import type { AgentContext } from "./context.ts";
import { blocking, type Check, type CheckReport, type Finding, merged, runChecks } from "./finding.ts";
import { fileChecks } from "./preflight-files.ts";
import { nodeChecks } from "./preflight-node.ts";
import { departureChecks } from "./preflight-source.ts";
import { type ArrivalPlace, arrivalChecks } from "./preflight-target.ts";
import type { Workload } from "./workload.ts";

export function checkNode(context: AgentContext): Promise<CheckReport> {
  return runChecks(nodeChecks, context, { node: context.node, workload: null });
}

/** Of a workload that runs here. */
export async function checkDeparture(workload: Workload): Promise<CheckReport> {
  const scope = { node: workload.context.node, workload: workload.name };
  const running: { pids: number[] | null } = { pids: null };
  const report = await runChecks([runs(running)], workload, scope);
  const { pids } = running;
  if (pids === null) return report;
  return merged(report, await runChecks([...departureChecks, ...fileChecks], { workload, pids }, scope));
}

/** Of a workload that is to come here. */
export function checkArrival(place: ArrivalPlace): Promise<CheckReport> {
  const { name, context } = place.workload;
  return runChecks(arrivalChecks, place, { node: context.node, workload: name });
}

/** Everything that stands in the way, as an error. */
export function refuse(findings: Finding[], here: string): void {
  const inTheWay = blocking(findings);
  if (inTheWay.length === 0) return;
  const lines = inTheWay.map(
    ({ node, what, cure }) => `${node === here ? "" : `node ${node}: `}${what}: ${cure}`,
  );
  throw new HoldfastError(`cannot be moved: ${lines.join("; ")}`, { code: "PREFLIGHT", source: "migration" });
}

/** Without an application there is nothing else to look at. */
function runs(found: { pids: number[] | null }): Check<Workload> {
  return {
    category: "application",
    async run({ container, runtime }, add) {
      if (!(await runtime.isAlive(container)))
        return add(
          "application.container-ended",
          "error",
          "the container has ended",
          "start it again: restart the agent",
        );
      let root: number | null;
      try {
        root = await applicationPid(container);
      } catch {
        return add(
          "application.trees",
          "error",
          "more than one process tree below the container's init",
          "run the application in the foreground, as one tree",
        );
      }
      if (root === null)
        return add(
          "application.ended",
          "error",
          "the application has ended",
          "look at its log; restart the agent to start it again",
        );
      found.pids = await treeOf(root);
    },
  };
}
