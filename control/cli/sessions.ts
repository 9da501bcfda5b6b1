/** `holdfast sessions WORKLOAD`: a line for each session this node has a part in. */
import { sessionsSchema } from "../api/admin.ts";
import { EXIT } from "../api/exit-status.ts";
import type { AdminClient } from "./admin-client.ts";
import { duration, plain, type Terminal, table } from "./terminal.ts";

const NAME_CHARS_MAX = 24;

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
  const shorten = (name: string) =>
    name.length > NAME_CHARS_MAX ? `${name.slice(0, NAME_CHARS_MAX - 1)}…` : name;
  // a column for what nobody has would only make the others hard to read
  const isNamed = answer.sessions.some(({ name }) => name !== undefined && name !== null);
  const rows = answer.sessions.map((one) => [
    text(one.id),
    text(one.client),
    text(one.port),
    text(one.anchor),
    text(one.place),
    text(one.state),
    text(one.protocol),
    ...(isNamed ? [shorten(text(one.name))] : []),
    text(one.requestsInFlight),
    text(one.bytesIn),
    text(one.bytesOut),
    duration(one.ageMs),
  ]);
  const named = isNamed ? ["NAME"] : [];
  const head = [
    "SESSION",
    "CLIENT",
    "PORT",
    "ANCHOR",
    "PLACE",
    "STATE",
    "PROTOCOL",
    ...named,
    "IN FLIGHT",
  ].concat(["BYTES IN", "BYTES OUT", "AGE"]);
  terminal.out.write(rows.length === 0 ? "no sessions\n" : table(head, rows));
  return EXIT.ok;
}
