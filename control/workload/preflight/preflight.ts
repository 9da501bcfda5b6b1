/**
 * Why a workload cannot move, found out before anybody is held: which checks there are, for a node, for an application
 * where it runs, and for the node that is to take it. They only look: no client waits, no process stops, nothing is made.
 *
 * `check` and `migrate` call the same {@link checkMove}.
 */
import type { Channel } from "#proxy/contract/channel.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { type CheckCall, type CheckReply, checkReply, type DepartureFacts } from "../../api/check.ts";
import { type Add, type Check, type CheckReport, merged, runChecks } from "../../api/finding.ts";
import { treeOf } from "../../runtime/processes.ts";
import type { AgentContext } from "../context.ts";
import { arrivalChecks } from "./arrival.ts";
import type { CheckedWorkload } from "./checked-workload.ts";
import { addClockFinding, clockOf } from "./clocks.ts";
import { departureChecks } from "./departure.ts";
import { departureFactsOf } from "./departure-facts.ts";
import { fileChecks } from "./files.ts";
import { nodeChecks } from "./node.ts";

const ASK_MS_MAX = 20_000;

export function checkNode(context: AgentContext): Promise<CheckReport> {
  return runChecks(nodeChecks, context, { node: context.node, workload: null });
}

export interface Departing {
  report: CheckReport;
  /** null: nothing that could move is running */
  facts: DepartureFacts | null;
}

/** Of a workload that runs here. */
export async function checkDeparture(workload: CheckedWorkload): Promise<Departing> {
  const { report, pids } = await checkApplication(workload);
  return { report, facts: pids === null ? null : await departureFactsOf(workload, pids) };
}

/** … itself, without what a target has to know. @property pids parents first; null: nothing that could move is running */
export async function checkApplication(
  workload: CheckedWorkload,
): Promise<{ report: CheckReport; pids: number[] | null }> {
  const scope = { node: workload.context.node, workload: workload.name };
  const running: { pids: number[] | null } = { pids: null };
  const report = await runChecks([runs(running)], workload, scope);
  const { pids } = running;
  if (pids === null) return { report, pids };
  const found = await runChecks([...departureChecks, ...fileChecks], { workload, pids }, scope);
  return { report: merged(report, found), pids };
}

/** Of a workload that runs here and is to go to the node at the other end of `channel`: everything there is to find. */
export async function checkMove(
  workload: CheckedWorkload,
  to: string,
  channel: Channel,
): Promise<CheckReport & { facts: DepartureFacts | null }> {
  const [node, { report, facts }] = await Promise.all([
    checkNode(workload.context),
    checkDeparture(workload),
  ]);
  const target =
    facts === null ? { checked: [], findings: [] } : await askTarget(workload, to, channel, facts);
  return { ...merged(node, report, target), facts };
}

/** What the target has to say. An answer that cannot be had is a finding. */
export async function askTarget(
  workload: CheckedWorkload,
  to: string,
  channel: Channel,
  facts: DepartureFacts,
): Promise<CheckReport> {
  const scope = { node: to, workload: workload.name };
  const { context, name, journal } = workload;
  const call: CheckCall = { workload: name, from: context.node, epoch: journal.epoch, facts };
  let reply: CheckReply | null = null;
  const asked: Check<null> = {
    category: "agent",
    async run(_, add) {
      const sentAtMs = Date.now();
      const { result } = await channel
        .call("check", call, { timeoutMs: ASK_MS_MAX })
        .catch((error: unknown) => {
          notAsked(add, error);
          return { result: null };
        });
      if (result === null) return;
      reply = checkReply.parse(result);
      const receivedAtMs = Date.now();
      const { receivedAtMs: theyReceivedAtMs, sentAtMs: theySentAtMs } = reply;
      addClockFinding(clockOf({ sentAtMs, theyReceivedAtMs, theySentAtMs, receivedAtMs }), add);
    },
  };
  const report = await runChecks([asked], null, scope);
  return merged(report, (reply as CheckReply | null)?.report ?? { checked: [], findings: [] });
}

/** A node that cannot be dialled. */
export function unreachable(node: string, error: unknown): Promise<CheckReport> {
  const dial: Check<null> = { category: "agent", run: async (_, add) => notAsked(add, error) };
  return runChecks([dial], null, { node, workload: null });
}

function notAsked(add: Add, error: unknown): void {
  add(
    "target.unreachable",
    "error",
    `its agent cannot be asked: ${messageOf(error)}`,
    "start it, or correct its address in peers:",
  );
}

/** At the target, which answers with its own node's findings too. `workload` null: it is not in its configuration. */
export async function answerCheck(
  context: AgentContext,
  workload: CheckedWorkload | null,
  call: CheckCall,
): Promise<CheckReply> {
  const receivedAtMs = Date.now();
  const report = merged(
    await checkNode(context),
    workload === null ? await notConfigured(context, call.workload) : await checkArrival(workload, call),
  );
  return { report, receivedAtMs, sentAtMs: Date.now() };
}

/** Of a workload that is to come here. */
export function checkArrival(workload: CheckedWorkload, call: CheckCall): Promise<CheckReport> {
  const scope = { node: workload.context.node, workload: workload.name };
  return runChecks(arrivalChecks, { workload, call }, scope);
}

export const NOT_CONFIGURED = "target.workload-unknown";

function notConfigured(context: AgentContext, name: string): Promise<CheckReport> {
  const check: Check<null> = {
    category: "configuration",
    run: async (_, add) =>
      add(
        NOT_CONFIGURED,
        "error",
        `workload ${name} is not configured on this node`,
        "add it to the agent's file, with start: false, and start the agent again",
      ),
  };
  return runChecks([check], null, { node: context.node, workload: name });
}

/** Without an application there is nothing else to look at. */
function runs(found: { pids: number[] | null }): Check<CheckedWorkload> {
  return {
    category: "application",
    async run({ container, name, logFile, supervisor }, add) {
      if (!(await container.isAlive()))
        return add(
          "application.container-ended",
          "error",
          "the container has ended",
          `it is started again by itself; if not, \`holdfast restart ${name}\`; the log: ${logFile}`,
        );
      let root: number | null;
      try {
        root = await container.applicationRoot();
      } catch {
        return add(
          "application.trees",
          "error",
          "more than one process tree below the container's init",
          'run its daemons in the foreground, as one tree; or say subreaper: true of the workload (a pod: annotation holdfast.dev/subreaper: "true") and start it anew: they stay its own then',
        );
      }
      const { problem } = supervisor;
      // what has been started again is there, and may move
      if (problem !== null)
        add(
          problem.id ?? "application.ended",
          root === null ? "error" : "warning",
          problem.what,
          problem.cure,
        );
      else if (root === null)
        add(
          "application.ended",
          "error",
          "the application has ended",
          `see its log, ${logFile}; \`holdfast restart ${name}\` starts it again`,
        );
      if (root === null) return;
      found.pids = await treeOf(root);
    },
  };
}
