/** `holdfast check`: what was looked at, under headings, and what stands in the way, each with its id and cure. */
import { type CheckAnswer, checkSchema } from "./admin-api.ts";
import type { AdminClient } from "./admin-client.ts";
import { EXIT } from "./exit-status.ts";
import { plain, type Terminal } from "./terminal.ts";

export interface CheckRequest {
  /** ids of findings that do not block, as the one who asks knows better */
  allow: string[];
}

type Finding = CheckAnswer["findings"][number] & { allowed?: true };

const MARKS = { error: "✖", warning: "!", allowed: "-" } as const;

export async function showCheck(
  agent: AdminClient,
  request: CheckRequest,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const answer = await agent.ask("GET", "/v1/check", checkSchema);
  const findings = answer.findings.map(
    (finding): Finding => (isAllowed(finding.id, request.allow) ? { ...finding, allowed: true } : finding),
  );
  terminal.out.write(json ? `${JSON.stringify({ ...answer, findings })}\n` : render({ ...answer, findings }));
  return findings.some((finding) => markOf(finding) === "error") ? EXIT.failed : EXIT.ok;
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
  return workload === null ? `node${node === undefined ? "" : ` ${node}`}` : `workload ${workload}${on}`;
}
