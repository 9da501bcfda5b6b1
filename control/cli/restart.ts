/** `holdfast restart WORKLOAD`: asks for a restart in place behind held clients, shows its phases and what came of it. */
import { fail } from "#proxy/contract/error-codes.ts";
import { type Restart, restartSchema } from "../api/admin.ts";
import { EXIT } from "../api/exit-status.ts";
import { type Clients, followTask, type OnInterrupt, type Task } from "./cancellable.ts";
import { milliseconds, plain, type Terminal } from "./terminal.ts";

export interface RestartRequest {
  workload: string;
  /** null: the agent's own */
  drainMs: number | null;
}

/** What `stopMsMax` and `unavailableMsMax` may be together at most. */
const SILENT_MS_MAX = 7_300_000;

export async function restart(
  clients: Clients,
  { workload, drainMs }: RestartRequest,
  json: boolean,
  terminal: Terminal,
  onInterrupt: OnInterrupt,
): Promise<number> {
  const task: Task = {
    workload,
    name: "restart",
    body: drainMs === null ? {} : { drainMs },
    silentMsMax: (drainMs ?? 0) + SILENT_MS_MAX,
  };
  const line = await followTask(clients, task, json, terminal, onInterrupt);
  const parsed = restartSchema.safeParse(line?.restart);
  if (!parsed.success) {
    throw fail(
      "AGENT_PROTOCOL",
      "the agent ended the restart without telling its outcome: see `holdfast status`",
    );
  }
  const result = parsed.data;
  terminal.out.write(json ? `${JSON.stringify(result)}\n` : summary(result));
  return result.outcome === "restarted" ? EXIT.ok : EXIT.failed;
}

function summary(result: Restart): string {
  const workload = plain(result.workload);
  if (result.outcome === "cancelled") return `cancelled: ${workload} goes on as before\n`;
  const counts = [
    [result.sessions, "went on"],
    [result.replayed, "requests sent again"],
    [result.refused, "refused"],
    [result.reset, "reset"],
  ] as const;
  const shown = counts.filter(([count], index) => count !== null && (index === 0 || count > 0));
  const lines = [
    `restarted ${workload} on ${plain(result.node)}: clients waited ${milliseconds(result.pauseMs)}`,
  ];
  if (shown.length > 0)
    lines.push(`sessions  ${shown.map(([count, what]) => `${count} ${what}`).join(", ")}`);
  return `${lines.join("\n")}\n`;
}
