/**
 * One run of pieces, whatever they measure: round by round, with progress on stderr, cut off in order by a signal, and its report: results.json,
 * report.md, report.html. What may be asked for is the command's.
 */
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CalmWatch } from "./calm.ts";
import { conduct } from "./conduct.ts";
import { Contenders } from "./contenders.ts";
import { table } from "./figures.ts";
import { describeMachine } from "./machine.ts";
import { peers } from "./peers/peers.ts";
import type { BenchPiece } from "./piece.ts";
import { judge } from "./report/goals.ts";
import { renderMarkdown } from "./report/markdown.ts";
import { renderPage } from "./report/page.ts";
import type { BenchResults } from "./results.ts";
import { Stage } from "./stage.ts";

/** where reports go when nobody says where */
export const RUNS = join(process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast", "bench/runs");

/** before the first measurement, and after the end */
const LOOKS_OUTSIDE = 3;

export function newRunFolder(): string {
  const at = new Date().toISOString();
  return join(RUNS, at.replace(/\.\d+Z$/, "").replaceAll(":", "-"));
}

export interface RunOptions {
  /** without its arguments */
  command: string;
  pieces: BenchPiece[];
  /** names; [] where no piece has any */
  peers: string[];
  quick: boolean;
  rounds: number;
  seconds: number;
  /** what fits by its estimate, and when a run that takes longer than that is cut off */
  cutOff: { estimatedSeconds: number; seconds: number } | null;
  /** it leaves things at work between measurements: whether the machine is calm is seen before the first and after the end */
  staysBusy?: boolean;
  /** folder of the report */
  out: string;
}

/** Measures, and writes the report: also of a run that is cut off. */
export async function run(
  options: RunOptions,
  argv: string[],
): Promise<{ status: number; results: BenchResults }> {
  const { cutOff } = options;
  const results: BenchResults = {
    version: 1,
    command: [options.command, ...(argv.length > 0 ? ["--", ...argv] : [])].join(" "),
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
  stage.closeOnSignals((status, signal) => {
    if (interrupted === 0) say(`${signal}: ending what runs`);
    interrupted ||= status;
  });
  const cut = (): void => {
    results.problems.push({
      where: "--quick",
      what: `cut off after ${cutOff?.seconds} s: this machine is slow, or busy`,
    });
    interrupted ||= 1;
    void stage.close();
  };
  const tooSlow = cutOff === null ? undefined : setTimeout(cut, cutOff.seconds * 1_000).unref();
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
  const looks = options.staysBusy ? LOOKS_OUTSIDE : 1;
  try {
    for (let look = 0; look < looks; look++) await calm.look();
    if (stage.cpus.server === stage.cpus.load)
      results.machine.notes.push("There is one CPU only: contenders, load and application share it.");
    await conduct(
      { ...options, secondsMax: cutOff?.estimatedSeconds ?? null },
      {
        stage,
        contenders: () => (contenders ??= startContenders()),
        introduce,
        say,
        problem: (where, what) => results.problems.push({ where, what }),
        note: (what) => results.machine.notes.push(what),
        between: async () => {
          await keep();
          if (!options.staysBusy) await calm.look();
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
  if (options.staysBusy && interrupted === 0) for (let look = 0; look < looks; look++) await calm.look();
  results.machine.calm = calm.calm;
  results.machine.notes.push(calm.describe());
  if (contenders !== null) await keep().catch(() => {});
  writeResults(options.out, results);
  writeReport(options.out, results);
  say(`${results.problems.length} problems; the report is in ${options.out}`);
  return { status: interrupted !== 0 ? interrupted : results.problems.length > 0 ? 1 : 0, results };
}

/** Goals that were measured, and where the report is: for the screen. */
export function summaryOf(results: BenchResults, folder: string): string[] {
  const goals = judge(results).filter(({ met }) => met !== null);
  const rows = goals.map(({ name, goal, here, verdict }) => [name, goal, here, verdict]);
  return [...table(rows), join(folder, "report.html")];
}

/** Whole, or as it was before: also when we are killed. */
function writeResults(folder: string, results: BenchResults): void {
  const file = join(folder, "results.json");
  writeFileSync(`${file}.new`, `${JSON.stringify(results, null, 1)}\n`);
  renameSync(`${file}.new`, file);
}

export function writeReport(folder: string, results: BenchResults): void {
  writeFileSync(join(folder, "report.md"), renderMarkdown(results));
  writeFileSync(join(folder, "report.html"), renderPage(results));
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}
