/** The tables of a report: every figure of every piece is in one of them. Pure; markdown.ts and page.ts write them. */
import { measuredRounds, roundByRound, showSpread, spreadOf } from "../figures.ts";
import type { BenchResults, Figure, Piece } from "../results.ts";
import { judge } from "./goals.ts";
import { metricOf } from "./metric.ts";
import { quantile } from "./percentiles.ts";
import { columnOf, columnsOf, isOurs, metricsOf, seriesOf, unique } from "./series.ts";

export interface Table {
  /** "": what stands above it says it */
  caption: string;
  head: string[];
  /** the first cell names the row */
  rows: string[][];
}

const PERCENTILES = [50, 90, 99, 99.9] as const;
const DIRECT = "direct";

export function goalsTable(results: BenchResults): Table {
  return {
    caption: "",
    head: ["goal", "wanted", "here (least–greatest)", "verdict"],
    rows: judge(results).map(({ name, goal, here, verdict }) => [name, goal, here, verdict]),
  };
}

export function tablesOf(piece: Piece): Table[] {
  return metricsOf(piece.figures).flatMap((metric) => {
    const figures = piece.figures.filter((each) => each.metric === metric);
    if (metric === "phaseMs") return phases(figures);
    return [
      grid(metricOf(metric).label, figures),
      ...(figures.some(({ percentiles }) => percentiles !== undefined) ? percentileTables(figures) : []),
      ...(/PerSecond$/.test(metric) ? multiples(metric, figures) : []),
    ];
  });
}

/** A series a row, what it was measured at in columns: medians, least and greatest. */
function grid(caption: string, figures: Figure[]): Table {
  const columns = columnsOf(figures);
  return {
    caption: `${caption}: median (least–greatest)`,
    head: ["", ...columns.map((column) => column || " ")],
    rows: unique(figures.map(seriesOf)).map((series) => [
      series,
      ...columns.map((column) => {
        const figure = figures.find((each) => seriesOf(each) === series && columnOf(each) === column);
        return figure === undefined ? "-" : showRounds(figure);
      }),
    ]),
  };
}

function showRounds({ metric, rounds }: Figure): string {
  const shown = showSpread(spreadOf(measuredRounds(rounds)), metricOf(metric).show);
  const missing = rounds.length - measuredRounds(rounds).length;
  return missing === 0 || missing === rounds.length
    ? shown
    : `${shown} [${missing} of ${rounds.length} rounds missing]`;
}

/** Ours as multiples of each other, its rounds beside the other's. */
function multiples(metric: string, figures: Figure[]): Table[] {
  const columns = columnsOf(figures);
  const all = unique(figures.map(seriesOf));
  const find = (series: string, column: string): Figure | undefined =>
    figures.find((each) => seriesOf(each) === series && columnOf(each) === column);
  return unique(figures.filter(({ peer }) => isOurs(peer)).map(seriesOf)).map((ours) => ({
    caption: `${ours}: ${metricOf(metric).label} as a multiple of …`,
    head: ["", ...columns.map((column) => column || " ")],
    rows: all
      .filter((series) => series !== ours)
      .map((series) => [
        series,
        ...columns.map((column) =>
          showSpread(
            spreadOf(
              roundByRound(
                find(ours, column)?.rounds ?? [],
                find(series, column)?.rounds ?? [],
                (a, b) => a / b,
              ),
            ),
            (value) => value.toFixed(2),
          ),
        ),
      ]),
  }));
}

/** Where the direct way was measured too: what each adds to it. */
function percentileTables(figures: Figure[]): Table[] {
  return columnsOf(figures).map((column) => {
    const here = figures.filter((each) => columnOf(each) === column);
    const direct = here.find(({ peer }) => peer === DIRECT);
    const metric = here[0]?.metric ?? "latencyUs";
    // Curves are in µs, whatever the figure's own unit is.
    const inMs = metric.endsWith("Ms");
    const show = (us: number): string => metricOf(metric).show(inMs ? us / 1000 : us);
    const at = (figure: Figure, p: number): (number | null)[] =>
      (figure.percentiles ?? []).map((curve) => (curve === null ? null : quantile(curve, p)));
    return {
      caption: `${metricOf(metric).label}${column === "" ? "" : `, ${column}`}: percentiles${direct === undefined ? "" : ", added to the direct way (which is in full)"}`,
      head: ["", ...PERCENTILES.map((p) => `p${p}`), "max, in full"],
      rows: here.map((figure) => [
        seriesOf(figure),
        ...PERCENTILES.map((p) => {
          const added =
            direct === undefined || figure === direct
              ? measuredRounds(at(figure, p))
              : roundByRound(at(figure, p), at(direct, p), (a, b) => a - b);
          return showSpread(spreadOf(added), show);
        }),
        showSpread(spreadOf(measuredRounds(at(figure, 100))), show),
      ]),
    };
  });
}

function phases(figures: Figure[]): Table[] {
  return columnsOf(figures).map((column) => {
    const here = figures.filter((each) => columnOf(each) === column);
    const series = unique(here.map(seriesOf));
    return {
      caption: `Phases at ${column}: ms`,
      head: ["", ...series],
      rows: unique(here.map(({ parameters }) => String(parameters.phase))).map((phase) => [
        phase,
        ...series.map((name) => {
          const figure = here.find((each) => seriesOf(each) === name && each.parameters.phase === phase);
          return figure === undefined ? "-" : showRounds(figure);
        }),
      ]),
    };
  });
}
