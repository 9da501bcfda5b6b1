/**
 * The section "How fast" of README.md and its picture, made from the results of a run: what stands between the markers is
 * never written by hand, so it cannot say anything else than the run said.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { measuredRounds, median, roundByRound, showSpread, spreadOf } from "../figures.ts";
import type { BenchResults, Figure } from "../results.ts";
import { judge } from "./goals.ts";
import { tableLines } from "./markdown.ts";
import { metricOf } from "./metric.ts";
import { headOf, notesOf } from "./notes.ts";
import { quantile } from "./percentiles.ts";
import { barsAt } from "./pictures.ts";
import { unique } from "./series.ts";
import { beside, standAlone } from "./svg.ts";

export const BEGIN = "<!-- npm run bench -- --readme: begin -->";
export const END = "<!-- npm run bench -- --readme: end -->";
export const PICTURE = "bench/results/how-fast.svg";

/** Where many connections share the proxy, and one CPU is the limit. */
const CONNECTIONS = 32;

const LATENCY_PIECE = "latency-http";

interface Column {
  head: string;
  piece: string;
  metric: string;
  /** in the picture too */
  pictured: boolean;
}

const COLUMNS: Column[] = [
  { head: "HTTP requests/s", piece: "http", metric: "requestsPerSecond", pictured: true },
  { head: "TCP messages/s", piece: "tcp-echo", metric: "messagesPerSecond", pictured: true },
  { head: "WebSocket messages/s", piece: "ws-echo", metric: "messagesPerSecond", pictured: true },
  { head: "CPU s per million HTTP requests", piece: "http", metric: "cpuUsPerRequest", pictured: false },
];

/** Rewrites the section and the picture. @throws TypeError where README.md has no markers, or nothing of it was measured */
export function rewriteReadme(root: string, results: BenchResults): void {
  const file = join(root, "README.md");
  const section = renderSection(results);
  writeFileSync(file, replaceSection(readFileSync(file, "utf8"), section.markdown));
  writeFileSync(join(root, PICTURE), section.picture);
}

export function replaceSection(readme: string, markdown: string): string {
  const [begin, end] = [readme.indexOf(BEGIN), readme.indexOf(END)];
  if (begin < 0 || end < begin) throw new TypeError(`README.md has no "${BEGIN}" before "${END}"`);
  return `${readme.slice(0, begin + BEGIN.length)}\n\n${markdown}\n\n${readme.slice(end)}`;
}

export function renderSection(results: BenchResults): { markdown: string; picture: string } {
  const columns = COLUMNS.map((column) => ({ ...column, figures: figuresOf(results, column) })).filter(
    ({ figures }) => figures.length > 0,
  );
  const bars = columns
    .filter(({ pictured }) => pictured)
    .map(({ head, figures }) => barsAt(`${head}, ${CONNECTIONS} connections`, figures))
    .filter((drawn) => drawn !== null);
  if (bars.length === 0)
    throw new TypeError(`nothing at ${CONNECTIONS} connections was measured in this run`);
  const peers = unique(columns.flatMap(({ figures }) => figures.map(({ peer }) => peer)));
  const added = addedP99(results);
  const table = tableLines({
    caption: "",
    head: ["", ...columns.map(({ head }) => head), ...(added.size > 0 ? ["p99 added, µs"] : [])],
    rows: peers.map((peer) => [
      peer,
      ...columns.map(({ metric, figures }) => {
        const figure = figures.find((each) => each.peer === peer);
        return showSpread(spreadOf(measuredRounds(figure?.rounds ?? [])), metricOf(metric).show);
      }),
      ...(added.size > 0 ? [added.get(peer) ?? "-"] : []),
    ]),
  });
  const verdicts = judge(results);
  const missed = verdicts.filter(({ met }) => met === false);
  const open = verdicts.filter(({ met }) => met === null);
  const facts = Object.fromEntries(headOf(results));
  const warnings = notesOf(results).filter(({ kind }) => kind === "warning");
  const markdown = [
    `![${CONNECTIONS} connections through each contender, on one CPU](${PICTURE})`,
    "",
    `${CONNECTIONS} connections through each contender, one at a time on one and the same CPU; medians of ${facts.rounds} rounds (least-greatest).`,
    ...(added.size > 0
      ? [`Added latency: open loop, ${showLoad(results)}, less that of the direct way.`]
      : []),
    "",
    ...table,
    "",
    `${facts.machine}; ${facts.kernel}; ${facts.runtime}; ${facts.date}; \`${results.command}\`.`,
    "",
    `Of ${verdicts.length - open.length} goals that were measured ${verdicts.filter(({ met }) => met).length} are met${open.length > 0 ? `; ${open.length} were not measured` : ""}.`,
    ...missed.map(({ name, goal, here, verdict }) => `- ${name}: ${goal} wanted, ${here} here: ${verdict}`),
    ...(warnings.length > 0
      ? ["", `${warnings.length} warnings of that run are in its report; the first: ${warnings[0]?.what}`]
      : []),
  ].join("\n");
  return { markdown, picture: standAlone(beside("Requests and messages a second", bars)) };
}

function figuresOf({ pieces }: BenchResults, { piece, metric }: Column): Figure[] {
  const all = pieces.find(({ name }) => name === piece)?.figures ?? [];
  return all.filter((each) => each.metric === metric && each.parameters.connections === CONNECTIONS);
}

/** The middle one of the rates at which it was measured. */
function latencyFigures({ pieces }: BenchResults): Figure[] {
  const all = (pieces.find(({ name }) => name === LATENCY_PIECE)?.figures ?? []).filter(
    ({ metric, parameters }) => metric === "latencyUs" && parameters.connections === CONNECTIONS,
  );
  const rates = unique(all.map(({ parameters }) => Number(parameters.perSecond))).sort((a, b) => a - b);
  const middle = rates[rates.length >> 1];
  return all.filter(({ parameters }) => parameters.perSecond === middle);
}

function showLoad(results: BenchResults): string {
  return `${Number(latencyFigures(results)[0]?.parameters.perSecond).toLocaleString("en")} requests/s`;
}

function addedP99(results: BenchResults): Map<string, string> {
  const figures = latencyFigures(results);
  const p99 = (figure: Figure | undefined): (number | null)[] =>
    (figure?.percentiles ?? []).map((curve) => (curve === null ? null : quantile(curve, 99)));
  const direct = p99(figures.find(({ peer }) => peer === "direct"));
  const shown = figures
    .filter(({ peer }) => peer !== "direct")
    .map((figure): [string, number[]] => [figure.peer, roundByRound(p99(figure), direct, (a, b) => a - b)])
    .filter(([, added]) => added.length > 0)
    .map(([peer, added]): [string, string] => [peer, metricOf("latencyUs").show(median(added))]);
  return new Map(shown);
}
