/** What stands before the first figure: what was run where, and what a reader has to know to believe it or not. */
import type { BenchResults } from "../results.ts";

export interface Note {
  /** warning: figures are void or are something else than their name says */
  kind: "warning" | "note";
  what: string;
}

/** Name and value, in the order in which they are read. */
export function headOf({ command, startedAt, endedAt, machine, pieces }: BenchResults): [string, string][] {
  const rounds = Math.max(
    0,
    ...pieces.flatMap(({ figures }) => figures.map((figure) => figure.rounds.length)),
  );
  const tookSeconds = endedAt === null ? null : (Date.parse(endedAt) - Date.parse(startedAt)) / 1000;
  return [
    ["command", command],
    ["date", `${startedAt.replace("T", " ").replace(/\.\d+Z$/, "")} UTC`],
    [
      "took",
      tookSeconds === null
        ? "cut off"
        : `${Math.floor(tookSeconds / 60)} min ${Math.round(tookSeconds % 60)} s`,
    ],
    ["rounds", String(rounds)],
    ["machine", `${machine.cores} × ${machine.cpu}, ${(machine.memoryBytes / 2 ** 30).toFixed(1)} GiB`],
    ["kernel", machine.kernel],
    ["runtime", machine.node],
    ["commit", machine.commit],
  ];
}

export function notesOf({ endedAt, machine, peers, problems }: BenchResults): Note[] {
  const warning = (what: string): Note => ({ kind: "warning", what });
  return [
    ...(endedAt === null
      ? [warning("This run was cut off: only what it had measured by then is here.")]
      : []),
    ...(machine.calm
      ? []
      : [warning("NOT A CALM MACHINE: something else used its CPUs. Do not trust these figures.")]),
    ...machine.notes.map((what): Note => ({ kind: "note", what })),
    ...peers
      .filter(({ missing }) => missing !== null)
      .map(({ name, missing }) => warning(`Missing, and so in no figure: ${name} (${missing})`)),
    ...problems.map(({ where, what }) => warning(`${where}: ${what}`)),
  ];
}
