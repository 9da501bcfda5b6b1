/** `holdfast stop WORKLOAD`: ends the application, its proxy and its record in the store. Clients are reset. */
import type { AdminClient } from "./admin-client.ts";
import { EXIT } from "./exit-status.ts";
import { PhaseRenderer, plain, type Terminal } from "./terminal.ts";

const SILENT_MS_MAX = 60_000;

export async function stopWorkload(
  agent: AdminClient,
  workload: string,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const phases = json ? null : new PhaseRenderer(terminal.out);
  const path = `/v1/workloads/${encodeURIComponent(workload)}/stop`;
  try {
    for await (const line of agent.follow(path, {}, SILENT_MS_MAX)) {
      if (line.type === "phase") phases?.show(line);
      if (line.type !== "result") continue;
      phases?.stop();
      const { type: _type, ...result } = line;
      terminal.out.write(
        json ? `${JSON.stringify({ workload, ...result })}\n` : `stopped ${plain(workload)}\n`,
      );
    }
    return EXIT.ok;
  } finally {
    phases?.stop();
  }
}
