/**
 * `npm run bench`: every benchmark in one interleaved run, and the report of it: results.json, report.md, report.html.
 *
 * A round runs each piece once, and a piece goes over its peers in turn, another first in each round; so what is compared was
 * measured next to each other. Every value of every round is kept. Progress is on stderr, the goals and where the report is on
 * stdout. It can be cut off (Ctrl-C) at any time: nothing is left running, and the report has what was measured by
 * then and says so.
 *
 * Exit status: 0 all measured, 1 with problems (they are in the report), 2 wrong arguments, 130 and 143 cut off.
 */
import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { parseArgs } from "node:util";
import { wholeNumber } from "./figures.ts";
import { direct } from "./peers/direct.ts";
import { peers } from "./peers/peers.ts";
import type { BenchPiece } from "./piece.ts";
import { pieces } from "./pieces.ts";
import { rewriteReadme } from "./report/readme.ts";
import { parseResults } from "./results.ts";
import { newRunFolder, RUNS, run, summaryOf, writeReport } from "./run.ts";

/** of two minutes */
const QUICK = { estimatedSeconds: 95, seconds: 108 };

const usage = `Usage: npm run bench [-- OPTION...]

  --quick         one round of one second each, within two minutes: no more than an impression
  --only NAME,…   only these pieces and peers. Pieces:
${list(pieces.map(({ name }) => name))}
                  peers:
${list(peers.map(({ name }) => name))}
  --rounds N      rounds of everything                       (5; --quick: 1)
  --seconds N     length of each measurement                 (3; --quick: 1)
  --out FOLDER    where the report goes                      (${RUNS}/DATE)
  --render FILE   runs nothing: makes report.md and report.html anew, beside this results.json
  --readme FILE   runs nothing: puts figures and picture of this results.json into README.md
  --help          this
`;

type Options =
  | { do: "help" }
  | { do: "render" | "readme"; file: string }
  | {
      do: "run";
      pieces: BenchPiece[];
      peers: string[];
      quick: boolean;
      rounds: number;
      seconds: number;
      out: string;
    };

function parse(argv: string[]): Options {
  const { values } = parseArgs({
    args: argv,
    options: {
      quick: { type: "boolean", default: false },
      only: { type: "string" },
      rounds: { type: "string" },
      seconds: { type: "string" },
      out: { type: "string" },
      render: { type: "string" },
      readme: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return { do: "help" };
  if (values.readme !== undefined) return { do: "readme", file: values.readme };
  if (values.render !== undefined) return { do: "render", file: values.render };
  const { quick } = values;
  const only = values.only?.split(",") ?? [];
  const unknown = only.find(
    (name) => !pieces.some((piece) => piece.name === name) && !peers.some((peer) => peer.name === name),
  );
  if (unknown !== undefined) throw new TypeError(`--only: there is no ${unknown}`);
  const onlyPieces = pieces.filter(({ name }) => only.includes(name));
  const onlyPeers = peers.map(({ name }) => name).filter((name) => only.includes(name));
  return {
    do: "run",
    pieces: onlyPieces.length > 0 ? onlyPieces : [...pieces],
    // Everything is told beside the direct way.
    peers: onlyPeers.length > 0 ? [...new Set([direct.name, ...onlyPeers])] : peers.map(({ name }) => name),
    quick,
    rounds: wholeNumber(values.rounds ?? (quick ? "1" : "5"), "rounds", 1, 100),
    seconds: wholeNumber(values.seconds ?? (quick ? "1" : "3"), "seconds", 1, 600),
    out: resolve(values.out ?? newRunFolder()),
  };
}

async function measure(options: Extract<Options, { do: "run" }>, argv: string[]): Promise<number> {
  const { status, results } = await run(
    { ...options, command: "npm run bench", cutOff: options.quick ? QUICK : null },
    argv,
  );
  process.stdout.write(`${summaryOf(results, options.out).join("\n")}\n`);
  return status;
}

/** Names as the usage shows them. */
function list(names: string[]): string {
  const lines: string[] = [];
  for (const name of names) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + name.length < 60) lines[lines.length - 1] = `${last}, ${name}`;
    else lines.push(name);
  }
  return lines.map((line) => `                    ${line}`).join("\n");
}

async function main(): Promise<number> {
  const argv = process.argv.slice(2);
  let options: Options;
  try {
    options = parse(argv);
  } catch (error) {
    process.stderr.write(`bench: ${(error as Error).message}\n\n${usage}`);
    return 2;
  }
  switch (options.do) {
    case "help":
      process.stdout.write(usage);
      return 0;
    case "render":
      writeReport(dirname(resolve(options.file)), parseResults(readFileSync(options.file, "utf8")));
      return 0;
    case "readme":
      rewriteReadme(resolve(import.meta.dirname, ".."), parseResults(readFileSync(options.file, "utf8")));
      return 0;
    case "run":
      return await measure(options, argv);
  }
}

process.exitCode = await main();
