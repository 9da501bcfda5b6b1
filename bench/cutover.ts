/**
 * `npm run bench:cutover`: what a move costs beside bare CRIU, in one run.
 *
 * For each number of sessions and each size of the application, the same application with the same clients is dumped and
 * restored by bare CRIU in place, moved in takeover and in forward mode, in turn, several rounds. Then many moves in a
 * row, looking at growth. Figures are medians of the rounds, with the least and the greatest; machines are noisy, so
 * read the ratios. `npm run bench` has the same as pieces beside its others (cutover/cutover-pieces.ts).
 */
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { cutoverFigures, renderCutover, rowFigures } from "./cutover/cutover-figures.ts";
import type { CutoverSample, RowSample } from "./cutover/cutover-lab.ts";
import { measureCutover, measureRow } from "./cutover/cutover-pieces.ts";
import { wholeNumber } from "./figures.ts";
import { addRound, type Figure } from "./results.ts";

const usage = `Usage: npm run bench:cutover [-- OPTION...]

  --sessions N,N,…  numbers of clients                                        (100,1000)
  --app-mb N,N,…    MiB that the application keeps beside its own memory      (32)
  --rounds N        rounds of bare, takeover, forward for each                  (3)
  --row N           moves in a row for the growth figures, 0: none            (20)
  --quick           10 and 100 sessions, 1 round, no row: two minutes at most
  --json FILE       writes the figures to FILE, in the shape of npm run bench
  --help            this
`;

interface Options {
  sessions: number[];
  memoryMb: number[];
  rounds: number;
  row: number;
  json: string | undefined;
}

function parse(): Options | "help" {
  const { values } = parseArgs({
    options: {
      sessions: { type: "string" },
      "app-mb": { type: "string", default: "32" },
      rounds: { type: "string" },
      row: { type: "string" },
      quick: { type: "boolean", default: false },
      json: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return "help";
  const { quick } = values;
  const list = (text: string, option: string, min: number, max: number): number[] =>
    text.split(",").map((each) => wholeNumber(each, option, min, max));
  return {
    sessions: list(values.sessions ?? (quick ? "10,100" : "100,1000"), "sessions", 1, 10_000),
    memoryMb: list(values["app-mb"], "app-mb", 0, 16_384),
    rounds: wholeNumber(values.rounds ?? (quick ? "1" : "3"), "rounds", 1, 100),
    row: wholeNumber(values.row ?? (quick ? "0" : "20"), "row", 0, 1_000),
    json: values.json,
  };
}

async function main(): Promise<number> {
  let options: Options;
  try {
    const parsed = parse();
    if (parsed === "help") {
      process.stdout.write(usage);
      return 0;
    }
    options = parsed;
  } catch (error) {
    process.stderr.write(`bench:cutover: ${(error as Error).message}\n\n${usage}`);
    return 2;
  }
  const problems: { where: string; what: string }[] = [];
  const reporting = {
    say: (line: string): void => void process.stderr.write(`${line}\n`),
    problem: (where: string, what: string): void => void problems.push({ where, what }),
  };
  // A signal ends laboratories by itself.
  const closing = (): void => {};
  const samples: CutoverSample[] = [];
  const figures: Figure[] = [];
  for (let round = 1; round <= options.rounds; round++) {
    const measured: CutoverSample[] = [];
    for (const memoryMb of options.memoryMb) {
      reporting.say(`round ${round}/${options.rounds}, application of ${memoryMb} MiB`);
      const sizes = { sessions: options.sessions, memoryMb };
      measured.push(...(await measureCutover({ ...reporting, round }, sizes, closing)));
    }
    samples.push(...measured);
    addRound(figures, round - 1, cutoverFigures(measured));
  }
  const rows: RowSample[] = options.row === 0 ? [] : await measureRow(reporting, options.row, closing);
  process.stdout.write(
    `${[
      `Cutover beside bare CRIU. ${cpus().length} × ${cpus()[0]?.model ?? "?"}.`,
      ...renderCutover(samples, rows),
      ...problems.map(({ where, what }) => `\nPROBLEM: ${where}: ${what}`),
    ].join("\n")}\n`,
  );
  if (options.json !== undefined) {
    const pieces = [
      { name: "cutover", title: "Cutover beside bare CRIU", figures },
      { name: "cutover-row", title: "Moves in a row", figures: rowFigures(rows) },
    ];
    writeFileSync(options.json, `${JSON.stringify({ pieces, problems }, null, 2)}\n`);
  }
  return problems.length > 0 ? 1 : 0;
}

process.exitCode = await main();
