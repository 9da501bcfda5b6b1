/** `holdfast check`: the preflight of the node and of each workload, one finding a line, with the cure. */
import { type CheckAnswer, checkSchema } from "./admin-api.ts";
import type { AdminClient } from "./admin-client.ts";
import { EXIT } from "./exit-status.ts";
import { plain, type Terminal } from "./terminal.ts";

const MARKS = { ok: "✔", warning: "!", blocking: "✖" } as const;

export async function showCheck(agent: AdminClient, json: boolean, terminal: Terminal): Promise<number> {
  const answer = await agent.ask("GET", "/v1/check", checkSchema);
  terminal.out.write(json ? `${JSON.stringify(answer)}\n` : render(answer));
  return answer.findings.some(({ level }) => level === "blocking") ? EXIT.failed : EXIT.ok;
}

function render({ findings }: CheckAnswer): string {
  const lines: string[] = [];
  for (const scope of new Set(findings.map((finding) => finding.scope))) {
    lines.push(plain(scope === "node" ? "node" : `workload ${scope}`));
    for (const { scope: of, check, level, message, cure } of findings) {
      if (of !== scope) continue;
      const hint = cure && level !== "ok" ? ` → ${plain(cure)}` : "";
      lines.push(`  ${MARKS[level]} ${plain(check)}: ${plain(message)}${hint}`);
    }
  }
  const count = (level: keyof typeof MARKS) => findings.filter((finding) => finding.level === level).length;
  lines.push(`${count("blocking")} blocking, ${count("warning")} warnings, ${count("ok")} fine`);
  return `${lines.join("\n")}\n`;
}
