/** `holdfast lookup NAME`: which workload has the session of that name, and where it is served now. */
import { lookupSchema } from "../api/admin.ts";
import { EXIT } from "../api/exit-status.ts";
import { formatEndpoint } from "../config/endpoint.ts";
import type { AdminClient } from "./admin-client.ts";
import { plain, type Terminal } from "./terminal.ts";

/** @param workload null: whichever has it */
export async function showLookup(
  agent: AdminClient,
  name: string,
  workload: string | null,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const only = workload === null ? "" : `?workload=${encodeURIComponent(workload)}`;
  const found = await agent.ask("GET", `/v1/lookup/${encodeURIComponent(name)}${only}`, lookupSchema);
  if (json) {
    terminal.out.write(`${JSON.stringify(found)}\n`);
    return EXIT.ok;
  }
  const places = found.ports.map(({ address, listen }) =>
    formatEndpoint({ address: plain(address), port: listen }),
  );
  terminal.out.write(
    `${plain(found.workload)} on node ${plain(found.node)} (epoch ${found.epoch}): ${places.join(", ")}\n`,
  );
  return EXIT.ok;
}
