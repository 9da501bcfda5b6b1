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
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { CalmWatch } from "./calm.ts";
import { conduct } from "./conduct.ts";
import { Contenders } from "./contenders.ts";
import { table, wholeNumber } from "./figures.ts";
import { describeMachine } from "./machine.ts";
import { direct } from "./peers/direct.ts";
import { peers } from "./peers/peers.ts";
import type { BenchPiece } from "./piece.ts";
import { pieces } from "./pieces.ts";
import { judge } from "./report/goals.ts";
import { renderMarkdown } from "./report/markdown.ts";
import { renderPage } from "./report/page.ts";
import { rewriteReadme } from "./report/readme.ts";
import { type BenchResults, parseResults } from "./results.ts";
import { Stage } from "./stage.ts";

const CACHE = process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast";
/** of two minutes: what fits by its estimate, and when a run that takes longer than that is cut off */
const QUICK_SECONDS_MAX = 95;
const QUICK_CUT_OFF_SECONDS = 108;

const usage = `Usage: npm run bench [-- OPTION...]

  --quick         one round of one second each, within two minutes: no more than an impression
  --only NAME,…   only these pieces and peers. Pieces:
${list(pieces.map(({ name }) => name))}
                  peers:
${list(peers.map(({ name }) => name))}
  --rounds N      rounds of everything                       (5; --quick: 1)
  --seconds N     length of each measurement                 (3; --quick: 1)
  --out FOLDER    where the report goes                      (${CACHE}/bench/runs/DATE)
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
    out: resolve(
      values.out ??
        join(
          CACHE,
          "bench/runs",
          new Date()
            .toISOString()
            .replace(/\.\d+Z$/, "")
            .replaceAll(":", "-"),
        ),
    ),
  };
}

async function run(options: Extract<Options, { do: "run" }>, argv: string[]): Promise<number> {
  const results: BenchResults = {
    version: 1,
    command: ["npm run bench", ...(argv.length > 0 ? ["--", ...argv] : [])].join(" "),
    startedAt: new Date().toISOString(),
    endedAt: null,
    machine: describeMachine(),
    peers: [],
    pieces: [],
    problems: [],
  };
  mkdirSync(options.out, { recursive: true });
  const stage = new Stage();
  let interrupted = 0;
  // Not `once`: whoever else ends on a signal raises it again, and the report is still to be written.
  for (const [signal, status] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    process.on(signal, () => {
      if (interrupted === 0) say(`${signal}: ending what runs`);
      interrupted ||= status;
      void stage.close();
    });
  }
  const tooSlow = setTimeout(() => {
    if (!options.quick) return;
    results.problems.push({
      where: "--quick",
      what: `cut off after ${QUICK_CUT_OFF_SECONDS} s: this machine is slow, or busy`,
    });
    interrupted ||= 1;
    void stage.close();
  }, QUICK_CUT_OFF_SECONDS * 1000).unref();
  const calm = new CalmWatch();
  let contenders: Promise<Contenders> | null = null;
  const introduce = (started: Contenders): void => {
    const shown = [
      ...started.peers.map(({ name, version }) => ({ name, version, missing: null })),
      ...started.missing.map(({ where, what }) => ({ name: where, version: "-", missing: what })),
    ];
    results.peers.push(...shown.filter(({ name }) => !results.peers.some((peer) => peer.name === name)));
    for (const { name, note } of started.peers)
      if (note !== null) results.problems.push({ where: name, what: note });
  };
  const startContenders = async (): Promise<Contenders> => {
    say(`starting ${options.peers.join(", ")}`);
    const started = await Contenders.start(
      stage,
      peers.filter(({ name }) => options.peers.includes(name)),
    );
    introduce(started);
    return started;
  };
  const keep = async (): Promise<void> => {
    if (contenders !== null) results.problems.push(...(await contenders).problems.splice(0));
    writeResults(options.out, results);
  };
  try {
    await calm.look();
    if (stage.cpus.server === stage.cpus.load)
      results.machine.notes.push("There is one CPU only: contenders, load and application share it.");
    await conduct(
      { ...options, secondsMax: options.quick ? QUICK_SECONDS_MAX : null },
      {
        stage,
        contenders: () => (contenders ??= startContenders()),
        introduce,
        say,
        problem: (where, what) => results.problems.push({ where, what }),
        note: (what) => results.machine.notes.push(what),
        between: async () => {
          await keep();
          await calm.look();
        },
        nowSeconds: () => performance.now() / 1000,
      },
      results.pieces,
    );
    results.endedAt = new Date().toISOString();
  } catch (error) {
    // What the end of its processes breaks is not worth a word.
    if (interrupted === 0) results.problems.push({ where: "the run", what: (error as Error).message });
  } finally {
    clearTimeout(tooSlow);
    await stage.close();
  }
  results.machine.calm = calm.calm;
  results.machine.notes.push(calm.describe());
  if (contenders !== null) await keep().catch(() => {});
  writeResults(options.out, results);
  writeReport(options.out, results);
  say(`${results.problems.length} problems; the report is in ${options.out}`);
  const goals = judge(results).filter(({ met }) => met !== null);
  const rows = goals.map(({ name, goal, here, verdict }) => [name, goal, here, verdict]);
  process.stdout.write(`${[...table(rows), join(options.out, "report.html")].join("\n")}\n`);
  return interrupted !== 0 ? interrupted : results.problems.length > 0 ? 1 : 0;
}

/** Whole, or as it was before: also when we are killed. */
function writeResults(folder: string, results: BenchResults): void {
  const file = join(folder, "results.json");
  writeFileSync(`${file}.new`, `${JSON.stringify(results, null, 1)}\n`);
  renameSync(`${file}.new`, file);
}

function writeReport(folder: string, results: BenchResults): void {
  writeFileSync(join(folder, "report.md"), renderMarkdown(results));
  writeFileSync(join(folder, "report.html"), renderPage(results));
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
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
      return await run(options, argv);
  }
}

process.exitCode = await main();
