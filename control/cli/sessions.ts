/** `holdfast sessions WORKLOAD`: a line for each session this node has a part in. */
import { sessionsSchema } from "./admin-api.ts";
import type { AdminClient } from "./admin-client.ts";
import { EXIT } from "./exit-status.ts";
import { duration, plain, type Terminal, table } from "./terminal.ts";

export async function showSessions(
  agent: AdminClient,
  workload: string,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const answer = await agent.ask(
    "GET",
    `/v1/workloads/${encodeURIComponent(workload)}/sessions`,
    sessionsSchema,
  );
  if (json) {
    terminal.out.write(`${JSON.stringify(answer)}\n`);
    return EXIT.ok;
  }
  const text = (value: unknown) => (value === undefined || value === null ? "-" : plain(String(value)));
  const rows = answer.sessions.map((one) => [
    text(one.id),
    text(one.client),
    text(one.port),
    text(one.edge),
    text(one.place),
    text(one.state),
    text(one.bytesIn),
    text(one.bytesOut),
    duration(one.ageMs),
  ]);
  const head = ["SESSION", "CLIENT", "PORT", "EDGE", "PLACE", "STATE", "BYTES IN", "BYTES OUT", "AGE"];
  terminal.out.write(rows.length === 0 ? "no sessions\n" : table(head, rows));
  return EXIT.ok;
}
