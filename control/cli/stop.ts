/** `holdfast start WORKLOAD` and `holdfast stop WORKLOAD`, which ends the application and its proxy: clients are reset. */

import { EXIT } from "../api/exit-status.ts";
import type { AdminClient } from "./admin-client.ts";
import { PhaseRenderer, plain, type Terminal } from "./terminal.ts";

const SILENT_MS_MAX = 60_000;

export function stopWorkload(
  agent: AdminClient,
  workload: string,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  return ask(agent, workload, { what: "stop", done: "stopped", body: {} }, json, terminal);
}

/** @param force a person says that no other node has it */
export function startWorkload(
  agent: AdminClient,
  workload: string,
  force: boolean,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  return ask(agent, workload, { what: "start", done: "started", body: { force } }, json, terminal);
}

async function ask(
  agent: AdminClient,
  workload: string,
  { what, done, body }: { what: "start" | "stop"; done: string; body: object },
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const phases = json ? null : new PhaseRenderer(terminal.out);
  const path = `/v1/workloads/${encodeURIComponent(workload)}/${what}`;
  try {
    for await (const line of agent.follow(path, body, SILENT_MS_MAX)) {
      if (line.type === "phase") phases?.show(line);
      if (line.type !== "result") continue;
      phases?.stop();
      const { type: _type, ...result } = line;
      terminal.out.write(
        json ? `${JSON.stringify({ workload, ...result })}\n` : `${done} ${plain(workload)}\n`,
      );
    }
    return EXIT.ok;
  } finally {
    phases?.stop();
  }
}
