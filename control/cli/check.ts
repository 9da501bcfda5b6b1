/** `holdfast check`: what was looked at, under headings, and what stands in the way, each with its id and cure. */

import { fail } from "#proxy/contract/error-codes.ts";
import { type CheckAnswer, checkSchema } from "../api/admin.ts";
import { EXIT } from "../api/exit-status.ts";
import type { AdminClient } from "./admin-client.ts";
import { type Clients, followTask, type OnInterrupt, type Task } from "./cancellable.ts";
import { plain, type Terminal } from "./terminal.ts";

export interface CheckRequest {
  /** null: all workloads of the node */
  workload: string | null;
  /** null: every peer that has the workload in its configuration */
  to: string | null;
  /** ids of findings that do not block, as the one who asks knows better */
  allow: string[];
}

type Finding = CheckAnswer["findings"][number] & { allowed?: true };

/** the longest phase of a rehearsal: copying files and memory */
const SILENT_MS_MAX = 600_000;
const MARKS = { error: "✖", warning: "!", allowed: "-" } as const;

export async function showCheck(
  agent: AdminClient,
  request: CheckRequest,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const { workload, to } = request;
  const query = new URLSearchParams({
    ...(workload === null ? {} : { workload }),
    ...(to === null ? {} : { to }),
  });
  const path = `/v1/check${query.size === 0 ? "" : `?${query}`}`;
  return show(await agent.ask("GET", path, checkSchema), request.allow, asJson(json), terminal);
}

/** `check WORKLOAD --to NODE --dry-run` */
export async function rehearse(
  clients: Clients,
  { workload, to, allow }: CheckRequest & { workload: string; to: string },
  json: boolean,
  terminal: Terminal,
  onInterrupt: OnInterrupt,
): Promise<number> {
  const task: Task = { workload, name: "check", body: { to }, silentMsMax: SILENT_MS_MAX };
  const result = await followTask(clients, task, json, terminal, onInterrupt);
  if (result?.check === undefined)
    throw fail("AGENT_PROTOCOL", "the agent ended the rehearsal without telling what came of it");
  return show(result.check, allow, asJson(json), terminal);
}

/** @param serialise null: a table @returns the exit status */
export function show(
  answer: CheckAnswer,
  allow: string[],
  serialise: ((value: unknown) => string) | null,
  terminal: Terminal,
): number {
  const findings = answer.findings.map(
    (finding): Finding => (isAllowed(finding.id, allow) ? { ...finding, allowed: true } : finding),
  );
  const shown = { ...answer, findings };
  terminal.out.write(serialise?.(shown) ?? `${render(shown)}${predicted(answer.prediction)}`);
  return findings.some((finding) => markOf(finding) === "error") ? EXIT.failed : EXIT.ok;
}

function asJson(json: boolean): ((value: unknown) => string) | null {
  return json ? (value) => `${JSON.stringify(value)}\n` : null;
}

function predicted(prediction: CheckAnswer["prediction"]): string {
  if (prediction === undefined) return "";
  const wide = ({ low, high }: { low: number; high: number }): string =>
    `${low.toFixed(0)}-${high.toFixed(0)} ms`;
  const { pauseMs, parts } = prediction;
  return [
    `clients would wait about ${pauseMs.likely.toFixed(0)} ms (${wide(pauseMs)})`,
    ...parts.map(
      ({ phase, ms, from }) =>
        `  ${plain(phase).padEnd(10)} ${`${ms.likely.toFixed(0)} ms`.padStart(8)}  ${wide(ms).padStart(14)}  ${plain(from)}`,
    ),
    "",
  ].join("\n");
}

/** An id allows itself and what is below it: `target.config-differs` allows `target.config-differs.ports`. */
function isAllowed(id: string, allow: string[]): boolean {
  return allow.some((one) => id === one || id.startsWith(`${one}.`));
}

function markOf({ allowed, severity }: Finding): keyof typeof MARKS {
  return allowed === true ? "allowed" : severity;
}

function render({ checked, findings }: { checked: CheckAnswer["checked"]; findings: Finding[] }): string {
  const lines: string[] = [];
  const all = [...checked, ...findings];
  for (const scope of new Set(all.map(scopeOf))) {
    lines.push(plain(scope));
    const here = findings.filter((finding) => scopeOf(finding) === scope);
    for (const category of new Set(all.filter((one) => scopeOf(one) === scope).map((one) => one.category))) {
      const found = here.filter((finding) => finding.category === category);
      if (found.length === 0) lines.push(`  ✔ ${plain(category ?? "")}`);
      for (const finding of found) {
        const { id, what, cure } = finding;
        lines.push(`  ${MARKS[markOf(finding)]} ${plain(what)} → ${plain(cure)}  [${plain(id)}]`);
      }
    }
  }
  const count = (of: keyof typeof MARKS) => findings.filter((finding) => markOf(finding) === of).length;
  if (findings.length === 0) lines.push("✔ nothing stands in the way of a move");
  else {
    const allowed = count("allowed") === 0 ? "" : `, ${count("allowed")} allowed`;
    lines.push(`${count("error")} blocking, ${count("warning")} warnings${allowed}`);
  }
  return `${lines.join("\n")}\n`;
}

function scopeOf({ node, workload }: { node?: string | undefined; workload: string | null }): string {
  const on = node === undefined ? "" : ` on node ${node}`;
  if (workload !== null) return `workload ${workload}${on}`;
  return node === undefined ? "cluster" : `node ${node}`;
}
