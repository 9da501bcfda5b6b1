/**
 * `holdfast migrate WORKLOAD --to NODE`: asks for a move and follows it. The agent does the work; if this process goes
 * away, the move goes on. The first Ctrl-C asks the agent to cancel and waits for the outcome, the second one leaves.
 */
import * as z from "zod";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { type Move, moveSchema } from "./admin-api.ts";
import type { AdminClient } from "./admin-client.ts";
import { EXIT } from "./exit-status.ts";
import { milliseconds, PhaseRenderer, plain, type Terminal } from "./terminal.ts";

export interface MigrateRequest {
  workload: string;
  to: string;
  /** null: the workload's own */
  deadlineMs: number | null;
}

/** Tells of Ctrl-C; `leave` is called for the second one. */
export type OnInterrupt = (first: () => void, leave: () => void) => () => void;

/** The longest deadline a workload may have by default, and then the time of a rollback. */
const SILENT_MS_MAX = 120_000;

/** @param cancelClient a connection of its own, as the first one is busy with the move */
export async function migrate(
  agent: AdminClient,
  cancelClient: AdminClient,
  request: MigrateRequest,
  json: boolean,
  terminal: Terminal,
  onInterrupt: OnInterrupt,
): Promise<number> {
  const path = `/v1/workloads/${encodeURIComponent(request.workload)}`;
  const phases = json ? null : new PhaseRenderer(terminal.out);
  let cancelling: Promise<void> = Promise.resolve();
  const tell = (line: string) => (phases === null ? terminal.err.write(`${line}\n`) : phases.note(line));
  const cancel = async () => {
    tell("cancelling; waiting for the outcome (Ctrl-C again to leave, the agent goes on)");
    try {
      await cancelClient.ask("POST", `${path}/cancel`, z.looseObject({}));
    } catch (error) {
      tell(`the agent did not cancel: ${plain(messageOf(error))}`);
    }
  };
  const stopListening = onInterrupt(
    () => {
      cancelling = cancel();
    },
    () => phases?.stop(),
  );
  const body = { to: request.to, ...(request.deadlineMs === null ? {} : { deadlineMs: request.deadlineMs }) };
  const silentMsMax = (request.deadlineMs ?? 0) + SILENT_MS_MAX;
  try {
    for await (const line of agent.follow(`${path}/migrate`, body, silentMsMax)) {
      if (line.type === "phase") phases?.show(line);
      if (line.type !== "result") continue;
      const move = readMove(line.move);
      phases?.stop();
      terminal.out.write(json ? `${JSON.stringify(move)}\n` : summary(request.workload, move));
      return move.outcome === "moved" ? EXIT.ok : EXIT.failed;
    }
    throw noResult();
  } finally {
    phases?.stop();
    stopListening();
    await cancelling;
  }
}

function readMove(move: unknown): Move {
  const parsed = moveSchema.safeParse(move);
  if (!parsed.success) throw noResult();
  return parsed.data;
}

function noResult(): HoldfastError {
  return new HoldfastError("the agent ended the move without telling its outcome: see `holdfast status`", {
    code: "AGENT_PROTOCOL",
    source: "peer",
  });
}

function summary(workload: string, move: Move): string {
  const { blackoutMs, criuMs } = move;
  const from = plain(move.from);
  const to = plain(move.to);
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
  return `${lines.join("\n")}\n`;
}
