/**
 * The table of programs in README.md, made from what a run found: what stands between the markers is never written by
 * hand, so it cannot say anything else than the run said.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { arch, cpus, release } from "node:os";
import { join } from "node:path";
import type { Downstream } from "../support/moved-program.ts";
import type { Outcome } from "./run.ts";

export const BEGIN = "<!-- npm run test:matrix -- --readme: begin -->";
export const END = "<!-- npm run test:matrix -- --readme: end -->";

/** @throws TypeError where README.md has no markers */
export function rewriteReadme(root: string, outcomes: Outcome[]): void {
  const file = join(root, "README.md");
  const days = [...new Set(outcomes.map(({ date }) => date.slice(0, 10)))].sort();
  const head = `${cpus().length} × ${cpus()[0]?.model ?? arch()}; Linux ${release()}; ${days.join(", ")}.`;
  writeFileSync(file, replaceSection(readFileSync(file, "utf8"), `${renderTable(outcomes)}\n\n${head}`));
}

export function replaceSection(readme: string, markdown: string): string {
  const [begin, end] = [readme.indexOf(BEGIN), readme.indexOf(END)];
  if (begin < 0 || end < begin) throw new TypeError(`README.md has no "${BEGIN}" before "${END}"`);
  return `${readme.slice(0, begin + BEGIN.length)}\n\n${markdown}\n\n${readme.slice(end)}`;
}

/** One row a program: what it is, whether it moved in each mode, and what its clients noticed. */
export function renderTable(outcomes: Outcome[]): string {
  const names = [...new Set(outcomes.map(({ program }) => program))];
  const rows = names.map((name) => {
    const mine = outcomes.filter(({ program }) => program === name);
    const of = (downstream: Downstream): Outcome | undefined =>
      mine.find((each) => each.downstream === downstream);
    const [first] = mine;
    const pauses = mine.map(({ longestPauseMs }) => longestPauseMs).filter((each) => each !== null);
    return [
      first?.title ?? name,
      first?.version ?? "?",
      verdictOf(of("takeover")),
      verdictOf(of("forward")),
      pauses.length === 0 ? "-" : `${Math.max(...pauses).toFixed(0)} ms`,
      noteOf(mine),
    ];
  });
  return [HEAD, HEAD.map(() => "---"), ...rows].map(rowLine).join("\n");
}

const HEAD = [
  "program",
  "version",
  "takeover",
  "forward",
  "longest pause a client saw",
  "what was looked at, or why not",
];

function rowLine(cells: string[]): string {
  return `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
}

function verdictOf(outcome: Outcome | undefined): string {
  if (outcome === undefined || outcome.asked === 0) return "-";
  return outcome.moved ? `yes, ${outcome.moves} moves` : `**no**, ${outcome.moves} of ${outcome.asked}`;
}

/** Why not, told once where it is the same in both modes; else what was looked at. */
function noteOf(outcomes: Outcome[]): string {
  const failed = outcomes.filter(({ reason }) => reason !== null);
  const [first, ...others] = failed;
  if (first === undefined) return outcomes[0]?.keeps ?? "";
  if (failed.length === outcomes.length && others.every(({ reason }) => reason === first.reason))
    return first.reason ?? "";
  return failed.map(({ downstream, reason }) => `${downstream}: ${reason}`).join("; ");
}
