/** The report as Markdown: notes first, then goals, then every piece's tables. */
import type { BenchResults } from "../results.ts";
import { headOf, type Note, notesOf } from "./notes.ts";
import { goalsTable, type Table, tablesOf } from "./tables.ts";

export function renderMarkdown(results: BenchResults): string {
  const notes = notesOf(results);
  return `${[
    "# Holdfast: benchmark",
    "",
    ...headOf(results).map(([name, value]) => `- ${name}: ${value}`),
    ...(notes.length === 0 ? [] : ["", "## Read this first", "", ...notes.map(showNote)]),
    "",
    "## Goals",
    "",
    ...tableLines(goalsTable(results)),
    ...results.pieces.flatMap((piece) => [
      "",
      `## ${piece.title}`,
      ...tablesOf(piece).flatMap((table) => ["", `${table.caption}`, "", ...tableLines(table)]),
    ]),
    "",
    "## Peers",
    "",
    ...results.peers.map(
      ({ name, version, missing }) => `- ${name}: ${missing === null ? version : `MISSING: ${missing}`}`,
    ),
  ].join("\n")}\n`;
}

/** Without its caption. */
export function tableLines({ head, rows }: Table): string[] {
  const line = (cells: string[]): string =>
    `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(head), line(head.map((_, column) => (column === 0 ? "---" : "---:"))), ...rows.map(line)];
}

function showNote({ kind, what }: Note): string {
  return kind === "warning" ? `- **${what}**` : `- ${what}`;
}
