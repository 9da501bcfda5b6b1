/** `holdfast logs`: what the application of a workload has written on this node, as it is. */

import { EXIT } from "../api/exit-status.ts";
import type { AdminClient } from "./admin-client.ts";
import type { Terminal } from "./terminal.ts";

export interface LogsRequest {
  workload: string;
  lines: number;
  follow: boolean;
}

export async function showLogs(
  agent: AdminClient,
  { workload, lines, follow }: LogsRequest,
  terminal: Terminal,
): Promise<number> {
  const path = `/v1/workloads/${encodeURIComponent(workload)}/logs?lines=${lines}&follow=${follow ? 1 : 0}`;
  const decoder = new TextDecoder(); // a letter may come in two pieces
  for await (const chunk of agent.bytes(path)) terminal.out.write(decoder.decode(chunk, { stream: true }));
  return EXIT.ok;
}
