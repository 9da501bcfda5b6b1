/** `holdfast check`: the preflight of the node and of each workload, one finding a line, with the cure. */
import { type CheckAnswer, checkSchema } from "./admin-api.ts";
import type { AdminClient } from "./admin-client.ts";
import { EXIT } from "./exit-status.ts";
import { plain, type Terminal } from "./terminal.ts";

const MARKS = { error: "✖", warning: "!" } as const;

export async function showCheck(agent: AdminClient, json: boolean, terminal: Terminal): Promise<number> {
  const answer = await agent.ask("GET", "/v1/check", checkSchema);
  terminal.out.write(json ? `${JSON.stringify(answer)}\n` : render(answer));
  return answer.findings.some(({ severity }) => severity === "error") ? EXIT.failed : EXIT.ok;
}

function render({ findings }: CheckAnswer): string {
  if (findings.length === 0) return "✔ nothing stands in the way of a move\n";
  const lines: string[] = [];
  for (const scope of new Set(findings.map(({ workload }) => workload))) {
    lines.push(scope === null ? "node" : `workload ${plain(scope)}`);
    for (const { workload, severity, what, cure } of findings) {
      if (workload === scope) lines.push(`  ${MARKS[severity]} ${plain(what)} → ${plain(cure)}`);
    }
  }
  const count = (of: keyof typeof MARKS) => findings.filter(({ severity }) => severity === of).length;
  lines.push(`${count("error")} blocking, ${count("warning")} warnings`);
  return `${lines.join("\n")}\n`;
}
