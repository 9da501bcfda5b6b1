/** What `check` shows for a workload: of this node, and of each that it could go to. */
import type { Channel } from "#proxy/contract/channel.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { DepartureFacts } from "../api/check.ts";
import { type Check, type CheckReport, type Finding, merged, runChecks } from "../api/finding.ts";
import { DEBT_MS_MAX } from "./moves.ts";
import type { CheckedWorkload } from "./preflight/checked-workload.ts";
import { askTarget, checkDeparture, NOT_CONFIGURED, unreachable } from "./preflight/preflight.ts";
import type { WorkloadStatus } from "./status.ts";

export interface CheckableWorkload extends CheckedWorkload {
  readonly runsHere: boolean;
  readonly outbox: { flushed(timeoutMs: number): Promise<void> };
  status(): Promise<WorkloadStatus>;
}

const DIAL_MS_MAX = 2_000;

/** @param to null: all nodes */
export async function checkWorkload(host: CheckableWorkload, to: string | null): Promise<CheckReport> {
  if (host.journal.role !== "owner" || !host.runsHere) return checkNotRunning(host);
  await host.outbox.flushed(DEBT_MS_MAX); // else the store names another epoch to the target
  const { report, facts } = await checkDeparture(host);
  if (facts === null) return report;
  const peers = to === null ? Object.keys(host.context.peers) : [to];
  const asked = await Promise.all(peers.map((peer) => checkAt(host, peer, facts, to !== null)));
  return merged(report, ...asked);
}

/** What keeps it from running here. Empty where it is not meant to. */
async function checkNotRunning(host: CheckableWorkload): Promise<CheckReport> {
  const { problem, state } = await host.status();
  const isMeantTo = state === "failed" || state === "down" || state === "waiting";
  if (problem === null || !isMeantTo) return { checked: [], findings: [] };
  const start: Check<null> = {
    category: "start",
    run: async (_, add) => add(problem.id ?? "start.waits", "error", problem.what, problem.cure),
  };
  return runChecks([start], null, { node: host.context.node, workload: host.name });
}

/** @param wanted false: a node that is not meant for it, or cannot be asked, is no obstacle */
async function checkAt(
  host: CheckableWorkload,
  peer: string,
  facts: DepartureFacts,
  wanted: boolean,
): Promise<CheckReport> {
  let channel: Channel;
  try {
    channel = await host.context.dial(peer, DIAL_MS_MAX);
  } catch (error) {
    if (error instanceof HoldfastError && error.code === "NODE_UNKNOWN") throw error;
    const report = await unreachable(peer, error);
    if (!wanted) for (const finding of report.findings) finding.severity = "warning";
    return report;
  }
  try {
    const report = await askTarget(host, peer, channel, facts);
    const notMeant = report.findings.find(({ id }) => id === NOT_CONFIGURED);
    if (notMeant === undefined) return report;
    // in a cluster any node may be the target: there is no standby before a move
    if (host.config.pod !== null && wanted) Object.assign(notMeant, withoutStandby(peer, host.name));
    else if (!wanted) return { checked: [], findings: [] };
    return report;
  } finally {
    channel.close();
  }
}

function withoutStandby(node: string, workload: string): Pick<Finding, "id" | "severity" | "what" | "cure"> {
  return {
    id: "target.no-standby",
    severity: "warning",
    what: `${workload} has no standby on node ${node}, so only the node was looked at`,
    cure: "a Migration makes one; with dryRun: true it says whether the pod could go there",
  };
}
