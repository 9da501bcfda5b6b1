/**
 * `npm run test:matrix`, see {@link HELP}. The table in README.md is made by it, and by nothing else. Every result is kept in
 * `.cache/matrix` until the next of the same program and mode, with what was said where it failed.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { projectRoot } from "../lab/lab.ts";
import type { Downstream } from "../support/moved-program.ts";
import { programs } from "./catalogue.ts";
import { moveProgram, notTried, type Outcome } from "./run.ts";
import { renderTable, rewriteReadme } from "./table.ts";

const MOVES = 10;
const kept = join(projectRoot, ".cache/matrix");
const modes: Downstream[] = ["takeover", "forward"];

const HELP = `npm run test:matrix [-- OPTIONS]: moves every program of the catalogue in both modes, and says which of them moved

  --only NAME,...        these programs: ${programs.map(({ name }) => name).join(", ")}; '' for none, as with --readme
  --mode takeover|forward  one mode; default: both
  --moves N              moves of each, there and back; default ${MOVES}
  --tracked              the kernel is asked what they write (limits.trackedMbMin: 0); not for README.md
  --json                 one JSON array on stdout, with the phases of each move, in place of the table
  --readme               writes the table of README.md, from the last result of every program in each mode

Exit status: 0 all moved, 1 one did not, 2 wrong arguments.`;

interface Options {
  help: boolean;
  only: string[] | null;
  modes: Downstream[];
  moves: number;
  tracked: boolean;
  json: boolean;
  readme: boolean;
}

function optionsOf(args: string[]): Options {
  const { values } = parseArgs({
    args,
    options: {
      help: { type: "boolean", default: false },
      only: { type: "string" },
      mode: { type: "string" },
      moves: { type: "string", default: String(MOVES) },
      tracked: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      readme: { type: "boolean", default: false },
    },
  });
  const moves = Number(values.moves);
  if (!Number.isInteger(moves) || moves < 1)
    throw new Error(`--moves: expected a number, not ${values.moves}`);
  const only = values.only?.split(",").filter((name) => name !== "") ?? null;
  const unknown = only?.find((name) => !programs.some((program) => program.name === name));
  if (unknown !== undefined)
    throw new Error(
      `--only: no program ${unknown}; there are ${programs.map(({ name }) => name).join(", ")}`,
    );
  const mode = modes.find((each) => each === values.mode);
  if (values.mode !== undefined && mode === undefined)
    throw new Error("--mode: expected takeover or forward");
  return {
    help: values.help,
    only,
    modes: mode === undefined ? modes : [mode],
    moves,
    tracked: values.tracked,
    json: values.json,
    readme: values.readme,
  };
}

function keep({ story, ...outcome }: Outcome, tracked: boolean): void {
  const file = join(kept, `${outcome.program}-${outcome.downstream}${tracked ? "-tracked" : ""}`);
  writeFileSync(`${file}.json`, JSON.stringify(outcome));
  rmSync(`${file}.log`, { force: true });
  if (story !== null) writeFileSync(`${file}.log`, story);
}

/** The last of each; what has never been run says so in its row. */
function lastOutcomes(): Outcome[] {
  return programs.flatMap((program) =>
    modes.map((mode) => {
      const file = join(kept, `${program.name}-${mode}.json`);
      if (!existsSync(file)) return notTried(program, mode, 0, "not run yet");
      return { ...(JSON.parse(readFileSync(file, "utf8")) as Outcome), story: null };
    }),
  );
}

async function main(): Promise<void> {
  const options = optionsOf(process.argv.slice(2));
  if (options.help) return void process.stdout.write(`${HELP}\n`);
  mkdirSync(kept, { recursive: true });
  const outcomes: Outcome[] = [];
  for (const program of programs.filter(({ name }) => options.only?.includes(name) ?? true)) {
    for (const downstream of options.modes) {
      process.stderr.write(`${program.title}, ${downstream}: `);
      const startedMs = performance.now();
      const limits = options.tracked ? { trackedMbMin: 0 } : {};
      const outcome = await moveProgram(program, downstream, options.moves, limits);
      outcomes.push(outcome);
      keep(outcome, options.tracked);
      const pause =
        outcome.longestPauseMs === null ? "" : `, longest pause ${outcome.longestPauseMs.toFixed(0)} ms`;
      process.stderr.write(
        `${outcome.moved ? "yes" : "NO"}, ${outcome.moves} of ${outcome.asked} moves${pause}, ${((performance.now() - startedMs) / 1000).toFixed(0)} s${outcome.reason === null ? "" : `: ${outcome.reason}`}\n`,
      );
    }
  }
  if (options.json) process.stdout.write(`${JSON.stringify(outcomes.map(({ story, ...rest }) => rest))}\n`);
  else process.stdout.write(`\n${renderTable(outcomes)}\n`);
  if (options.readme) rewriteReadme(projectRoot, lastOutcomes());
  process.exitCode = outcomes.every(({ moved }) => moved) ? 0 : 1;
}

main().catch((error: unknown) => {
  console.error(`test:matrix: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 2;
});
