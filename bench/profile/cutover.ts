/**
 * `npm run bench:profile -- cutover`: one move in each mode as a timeline, what every process was at while clients waited. Of
 * several moves the one of the median pause is taken, as it was: no span of it is made of others.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { MoveResult } from "#control/api/migration.ts";
import { CutoverLab, type Downstream } from "../cutover/cutover-lab.ts";
import { describeMachine } from "../machine.ts";
import { drawLanes } from "../report/lanes.ts";
import { standAlone } from "../report/svg.ts";
import { type NamedCourse, renderCourse, renderCutoverPage } from "./cutover-page.ts";

const MODES: readonly Downstream[] = ["forward", "takeover"];
const MEMORY_MB = 32;
/** each agent's first move of a kind runs cold code: there and back */
const WARM_MOVES = 2;
const WARM_SESSIONS = 10;

export interface CutoverOptions {
  sessions: number;
  /** measured, in each mode */
  moves: number;
  /** the folder that it is written to */
  out: string;
}

/** @returns the lines to print. @throws Error when a move does not succeed, or tells no timeline */
export async function profileCutover({ sessions, moves, out }: CutoverOptions): Promise<string[]> {
  const courses: NamedCourse[] = [];
  const results: MoveResult[] = [];
  const lab = await CutoverLab.open(MEMORY_MB);
  try {
    for (const mode of MODES) {
      for (let move = 0; move < WARM_MOVES; move++) await lab.sample(mode, WARM_SESSIONS);
      const moved: MoveResult[] = [];
      for (let move = 0; move < moves; move++) {
        const { move: result } = await lab.sample(mode, sessions);
        if (result !== null) moved.push(result);
      }
      const result = medianMove(moved);
      results.push(result);
      courses.push({ name: nameOf(mode, moved), course: courseOf(result) });
    }
  } finally {
    await lab.close();
  }
  const machine = describeMachine();
  const facts: [string, string][] = [
    [
      "moves",
      `${moves} in each mode, ${sessions} sessions, application with ${MEMORY_MB} MiB beside its own`,
    ],
    [
      "machine",
      `${machine.cores} × ${machine.cpu}, ${machine.kernel}, ${machine.node}, commit ${machine.commit}`,
    ],
    ["date", new Date().toISOString()],
  ];
  mkdirSync(out, { recursive: true });
  writeFileSync(join(out, "moves.json"), `${JSON.stringify(results, null, 2)}\n`);
  writeFileSync(join(out, "cutover.html"), renderCutoverPage(facts, courses));
  for (const [number, { name, course }] of courses.entries())
    writeFileSync(join(out, `${MODES[number]}.svg`), standAlone(drawLanes(name, course)));
  return [
    ...facts.map(([fact, value]) => `${fact}: ${value}`),
    ...courses.flatMap(renderCourse),
    "",
    join(out, "cutover.html"),
  ];
}

/** Of an even number the lower of the two. @throws Error when there is none */
export function medianMove(moved: readonly MoveResult[]): MoveResult {
  const sorted = [...moved].sort((one, other) => one.holdMs - other.holdMs);
  const middle = sorted[(sorted.length - 1) >> 1];
  if (middle === undefined) throw new Error("nothing has moved");
  return middle;
}

function courseOf({ timeline, holdMs, workload }: MoveResult): NamedCourse["course"] {
  if (timeline === undefined) throw new Error(`the move of ${workload} has told no timeline`);
  return { spans: timeline, endMs: holdMs };
}

function nameOf(mode: Downstream, moved: readonly MoveResult[]): string {
  const all = moved.map(({ holdMs }) => holdMs);
  const [least, most] = [Math.min(...all), Math.max(...all)].map((ms) => ms.toFixed(0));
  return `${mode}, the median of ${moved.length} moves of ${least} to ${most} ms`;
}
