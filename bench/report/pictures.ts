/**
 * The pictures of a piece: curves of percentiles where there are any, what grows over what it grows with, the phases of a
 * move one after the other, and else bars. Lines and bars are medians of the rounds; a thin line is from the least to the
 * greatest.
 */
import { measuredRounds, median, spreadOf } from "../figures.ts";
import type { Figure, Piece } from "../results.ts";
import { isPictured, metricOf } from "./metric.ts";
import { middleCurve } from "./percentiles.ts";
import { columnOf, columnsOf, growingWith, isOurs, metricsOf, seriesOf, unique } from "./series.ts";
import { type Axis, drawBars, drawLines, drawStacks, type Line } from "./svg.ts";

/** what a move does while clients wait, in its order */
const PHASES = ["hold", "capture", "dump", "transfer", "restore", "commit", "release"];
const BARE_PHASES = ["criu-dump", "criu-restore"];
/** as many colours as there are for parts */
const PARTS = 9;
const FAMILIES = ["direct", "haproxy", "nginx", "envoy", "http-proxy", "httpxy", "node-pipe"];
/** what a figure grows with is shown as it grows, not as so many bars */
const GROWTHS = ["sessions", "memoryMb", "move"];

export interface Swatch {
  label: string;
  look: string;
}

export interface Pictures {
  /** SVG elements */
  drawn: string[];
  legend: Swatch[];
}

export function picturesOf(piece: Piece): Pictures {
  const legend = new Map<string, string>();
  const metrics = metricsOf(piece.figures).filter(isPictured);
  // At a rate that is given, what it costs is not what the piece is about.
  const pictured = metrics.includes("latencyUs") ? ["latencyUs"] : metrics;
  const drawn = pictured.flatMap((metric) => {
    const figures = piece.figures.filter((each) => each.metric === metric);
    if (metric === "phaseMs") return timelines(figures, legend);
    const growth = growingWith(figures).filter((name) => GROWTHS.includes(name));
    const pictures = [
      ...(metric === "latencyUs" ? curves(figures) : []),
      ...growth.flatMap((name) => growthOver(name, figures)),
    ];
    const shown = pictures.length > 0 ? pictures : bars(figures);
    if (pictures.length > 0) for (const figure of figures) legend.set(seriesOf(figure), lookOf(figure));
    return shown;
  });
  return {
    drawn: drawn.filter((picture) => picture !== null),
    legend: [...legend].map(([label, look]) => ({ label, look })),
  };
}

/** The one picture of the README: bars of one piece at one set of parameters. */
export function barsAt(title: string, figures: Figure[]): string | null {
  return drawBars({
    title,
    bars: figures.flatMap((figure) => {
      const spread = spreadOf(measuredRounds(figure.rounds));
      if (spread === null) return [];
      return [
        {
          label: seriesOf(figure),
          look: lookOf(figure),
          value: spread.median,
          spread,
          text: metricOf(figure.metric).show(spread.median),
        },
      ];
    }),
  });
}

/** Colour of its family, stroke of its mode. */
export function lookOf(figure: Pick<Figure, "peer" | "parameters">): string {
  const { peer } = figure;
  const family = isOurs(peer) ? "holdfast" : (FAMILIES.find((name) => peer.startsWith(name)) ?? "other");
  const mode = /(?:^|-)(http|replay|websocket)$/.exec(peer)?.[1];
  const words = Object.entries(figure.parameters).flatMap(([, value]) =>
    value === "forward" ? ["forward"] : [],
  );
  return [
    `of-${family}`,
    ...(isOurs(peer) ? ["ours"] : []),
    ...(mode === undefined ? [] : [mode]),
    ...words,
  ].join(" ");
}

function bars(figures: Figure[]): (string | null)[] {
  return columnsOf(figures).map((column) => {
    const here = figures.filter((each) => columnOf(each) === column);
    const label = metricOf(here[0]?.metric ?? "").label;
    return barsAt(column === "" ? label : `${label}, ${column}`, here);
  });
}

function curves(figures: Figure[]): (string | null)[] {
  const x: Axis = { label: "percentile", scale: "percentile", show: (p) => `${p}%` };
  const y: Axis = { label: "µs (log)", scale: "log", show: metricOf("latencyUs").show };
  return columnsOf(figures).map((column) => {
    const lines = figures
      .filter((each) => columnOf(each) === column)
      .map((figure): Line => {
        const points = middleCurve(figure.percentiles ?? []).map(({ p, valueUs }) => ({ x: p, y: valueUs }));
        return { label: seriesOf(figure), look: lookOf(figure), points, dots: false };
      });
    return drawLines({ title: column, x, y, lines: oursLast(lines) });
  });
}

function growthOver(name: string, figures: Figure[]): (string | null)[] {
  const [first] = figures;
  if (first === undefined) return [];
  const metric = metricOf(first.metric);
  // Whatever else was changed makes a picture of its own.
  const rest = (figure: Figure): string => {
    const { [name]: _, ...others } = figure.parameters;
    return columnOf({ ...figure, parameters: others });
  };
  return unique(figures.map(rest)).map((others) => {
    const here = figures.filter((each) => rest(each) === others && typeof each.parameters[name] === "number");
    const lines = unique(here.map(seriesOf)).map((series): Line => {
      const of = here.filter((each) => seriesOf(each) === series);
      return {
        label: series,
        look: lookOf(of[0] as Figure),
        dots: true,
        points: of.flatMap(({ parameters, rounds }) => {
          const spread = spreadOf(measuredRounds(rounds));
          return spread === null ? [] : [{ x: Number(parameters[name]), y: spread.median, spread }];
        }),
      };
    });
    const xs = lines.flatMap(({ points }) => points.map((point) => point.x));
    return drawLines({
      title: `${metric.label}${others === "" ? "" : `, ${others}`}`,
      x: {
        label: name === "memoryMb" ? "memory of the application, MB" : name,
        scale: Math.min(...xs) > 0 ? "log" : "linear",
        show: (value) => value.toLocaleString("en"),
      },
      y: { label: metric.label, scale: "linear", show: metric.show, unit: metric.unit ?? 1 },
      lines: oursLast(lines),
    });
  });
}

/** Moves and what bare CRIU does, one below the other: only what clients wait for. */
function timelines(figures: Figure[], legend: Map<string, string>): (string | null)[] {
  const named = unique(figures.map(({ parameters }) => String(parameters.phase)));
  const order = [...PHASES, ...BARE_PHASES].filter((phase) => named.includes(phase));
  const lookOfPhase = (phase: string): string => `of-part-${order.indexOf(phase) % PARTS}`;
  for (const phase of order) legend.set(phase, lookOfPhase(phase));
  const show = metricOf("phaseMs").show;
  return columnsOf(figures).map((column) => {
    const here = figures.filter((each) => columnOf(each) === column);
    const stacks = unique(here.map(seriesOf)).map((series) => {
      const of = here.filter((each) => seriesOf(each) === series);
      // CRIU's own part of a move lies inside of the move's phases.
      const phases = of.some(({ parameters }) => parameters.phase === "hold") ? PHASES : BARE_PHASES;
      const parts = phases.flatMap((phase) => {
        const values = measuredRounds(of.find(({ parameters }) => parameters.phase === phase)?.rounds ?? []);
        return values.length === 0 ? [] : [{ name: phase, look: lookOfPhase(phase), value: median(values) }];
      });
      const total = parts.reduce((sum, { value }) => sum + value, 0);
      return { label: series, parts, text: `${show(total)} ms` };
    });
    const axis: Axis = { label: "ms since the hold (or the dump) began", scale: "linear", show };
    return drawStacks({ title: column || "phases", axis, bars: stacks });
  });
}

function oursLast(lines: Line[]): Line[] {
  const ours = (line: Line): number => (line.look.includes("ours") ? 1 : 0);
  return [...lines].sort((one, other) => ours(one) - ours(other));
}
