/** `holdfast migrate WORKLOAD --to NODE`: asks for a move, shows its phases and what came of it. */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { type Move, moveSchema } from "../api/admin.ts";
import { EXIT } from "../api/exit-status.ts";
import { type Clients, followTask, type OnInterrupt, type Task } from "./cancellable.ts";
import { milliseconds, plain, type Terminal } from "./terminal.ts";

export interface MigrateRequest {
  workload: string;
  to: string;
  /** null: the workload's own */
  deadlineMs: number | null;
}

/** The longest deadline a workload may have by default, and then the time of a rollback. */
const SILENT_MS_MAX = 120_000;

export async function migrate(
  clients: Clients,
  request: MigrateRequest,
  json: boolean,
  terminal: Terminal,
  onInterrupt: OnInterrupt,
): Promise<number> {
  const { workload, to, deadlineMs } = request;
  const task: Task = {
    workload,
    name: "migrate",
    body: { to, ...(deadlineMs === null ? {} : { deadlineMs }) },
    silentMsMax: (deadlineMs ?? 0) + SILENT_MS_MAX,
  };
  const result = await followTask(clients, task, json, terminal, onInterrupt);
  const parsed = moveSchema.safeParse(result?.move);
  if (!parsed.success) throw noResult();
  const move = parsed.data;
  terminal.out.write(json ? `${JSON.stringify(move)}\n` : summary(workload, move));
  return move.outcome === "moved" ? EXIT.ok : EXIT.failed;
}

function noResult(): HoldfastError {
  return fail(
    "AGENT_PROTOCOL",
    "the agent ended the move without telling its outcome: see `holdfast status`",
  );
}

function summary(workload: string, move: Move): string {
  const { blackoutMs, criuMs } = move;
  const from = plain(move.from);
  const to = plain(move.to);
  const blocking = move.check?.findings.filter(({ severity }) => severity === "error") ?? [];
  if (move.outcome === "rolled-back" && blocking.length > 0) {
    const lines = blocking.map(
      ({ id, node, what, cure }) =>
        `  ✖ ${node === undefined ? "" : `node ${plain(node)}: `}${plain(what)} → ${plain(cure)}  [${plain(id)}]\n`,
    );
    return `refused: ${plain(workload)} stays on ${from}, and nobody was held\n${lines.join("")}`;
  }
  if (move.outcome === "rolled-back") {
    return `rolled back: ${plain(workload)} stays on ${from}: ${plain(move.reason ?? "no reason given")}\n`;
  }
  const sessions = move.sessions === null ? "" : `, ${move.sessions} sessions`;
  const lines = [`moved ${plain(workload)} from ${from} to ${to} (${plain(move.downstream)})${sessions}`];
  if (blackoutMs.max !== null) {
    lines.push(
      `blackout  p50 ${milliseconds(blackoutMs.p50)}  p99 ${milliseconds(blackoutMs.p99)}  max ${milliseconds(blackoutMs.max)}`,
    );
  }
  if (criuMs.dump !== null || criuMs.restore !== null) {
    lines.push(`criu      dump ${milliseconds(criuMs.dump)}  restore ${milliseconds(criuMs.restore)}`);
  }
  for (const line of move.notKept) lines.push(`not kept  ${plain(line)}`);
  return `${lines.join("\n")}\n`;
}
