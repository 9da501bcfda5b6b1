/**
 * A timeline as a picture: a lane for each process, in it a bar for each span, and its name beside the bar or in it. What overlaps,
 * names included, goes into another row of the lane. And what a timeline comes to in numbers. Pure.
 */
import { LANES, type TimelineSpan } from "#control/api/migration.ts";
import {
  type Axis,
  BAR_HEIGHT,
  CHAR_WIDTH,
  LINE_HEIGHT,
  picture,
  rangeOf,
  round,
  text,
  titleOf,
} from "./svg.ts";

const WIDTH = 1400;
const LEFT = 110;
const EDGE = 24;
const ROW = BAR_HEIGHT + 2;
const LANE_GAP = 8;
/** between a bar, or its end, and its name */
const NAME_GAP = 4;
/** between what stands in one row */
const GAP = 3;
const BAR_MIN = 1.5;

export interface Course {
  /** in ms from the hold */
  spans: readonly TimelineSpan[];
  /** when clients went on */
  endMs: number;
}

/** When no lane was at work, as far as it is known. */
export interface Gap {
  fromMs: number;
  toMs: number;
  /** what had ended last, and what began then; null: the hold, or the release */
  after: TimelineSpan | null;
  before: TimelineSpan | null;
}

interface Placed {
  bar: string;
  name: string;
  /** of both together */
  left: number;
  right: number;
}

/** @param title above it */
export function drawLanes(title: string, { spans, endMs }: Course): string {
  const axis: Axis = { label: "ms since the hold", scale: "linear", show: String };
  const range = rangeOf(axis, [endMs, ...spans.flatMap(({ fromMs, toMs }) => [fromMs, toMs])]);
  const at = (ms: number): number => LEFT + range.place(ms) * (WIDTH - EDGE - LEFT);
  const top = LINE_HEIGHT * 3;
  const drawn: string[] = [];
  let y = top;
  for (const [number, lane] of LANES.entries()) {
    const rows = inRows(spans.filter((span) => span.lane === lane).map((span) => place(span, at)));
    if (rows.length === 0) continue;
    drawn.push(text(4, y + BAR_HEIGHT - 4, lane, "start"));
    for (const row of rows) {
      drawn.push(
        ...row.map(
          ({ bar, name }) =>
            `<g class="of-part-${number}" transform="translate(0 ${round(y)})">${bar}${name}</g>`,
        ),
      );
      y += ROW;
    }
    y += LANE_GAP;
    drawn.push(`<path class="grid" d="M4 ${round(y - LANE_GAP / 2)}H${WIDTH - 4}"/>`);
  }
  const grid = range.ticks.map(
    (tick) =>
      `<path class="grid" d="M${round(at(tick))} ${top - 6}V${round(y)}"/>` +
      text(at(tick), y + LINE_HEIGHT, axis.show(tick), "middle", "soft"),
  );
  const edges = [
    { ms: 0, name: "hold" },
    { ms: endMs, name: `release, ${endMs.toFixed(1)}` },
  ].map(
    ({ ms, name }) =>
      `<path class="spread" d="M${round(at(ms))} ${top - 8}V${round(y)}"/>` +
      text(at(ms), top - 12, name, ms === 0 ? "start" : "end"),
  );
  const label = text((LEFT + WIDTH) / 2, y + LINE_HEIGHT * 2.2, axis.label, "middle");
  return picture(title, y + LINE_HEIGHT * 2.6, [...grid, ...drawn, ...edges, label], WIDTH);
}

/** The name is in the bar, or right of it, or left where it would not be seen there. */
function place({ lane, name, fromMs, toMs }: TimelineSpan, at: (ms: number) => number): Placed {
  const from = at(fromMs);
  const width = Math.max(BAR_MIN, at(toMs) - from);
  const to = from + width;
  const long = name.length * CHAR_WIDTH;
  const said = `${lane}, ${name}: ${fromMs.toFixed(1)} to ${toMs.toFixed(1)} ms, ${(toMs - fromMs).toFixed(1)} ms`;
  const bar = `<rect class="mark part" x="${round(from)}" y="0" width="${round(width)}" height="${BAR_HEIGHT}">${titleOf(said)}</rect>`;
  const write = (x: number, anchor: "start" | "end", look = ""): string =>
    text(x, BAR_HEIGHT - 4, name, anchor, look);
  if (long + 2 * NAME_GAP <= width)
    return { bar, name: write(from + NAME_GAP, "start", "in-bar"), left: from, right: to };
  if (to + NAME_GAP + long <= WIDTH)
    return { bar, name: write(to + NAME_GAP, "start"), left: from, right: to + NAME_GAP + long };
  return { bar, name: write(from - NAME_GAP, "end"), left: from - NAME_GAP - long, right: to };
}

/** Each in the first row that has room for it. */
function inRows(all: Placed[]): Placed[][] {
  const rows: Placed[][] = [];
  for (const each of all) {
    const isFree = (row: Placed[]): boolean =>
      row.every(({ left, right }) => each.left >= right + GAP || each.right + GAP <= left);
    const row = rows.find(isFree);
    if (row === undefined) rows.push([each]);
    else row.push(each);
  }
  return rows;
}

/** From the hold to the release, the longest first. */
export function gapsOf({ spans, endMs }: Course): Gap[] {
  const gaps: Gap[] = [];
  let until = 0;
  let after: TimelineSpan | null = null;
  const sorted = [...spans].sort((one, other) => one.fromMs - other.fromMs);
  for (const before of [...sorted.filter(({ fromMs }) => fromMs < endMs), null]) {
    const toMs = before?.fromMs ?? endMs;
    if (toMs > until) gaps.push({ fromMs: until, toMs, after, before });
    if (before === null || before.toMs <= until) continue;
    until = before.toMs;
    after = before;
  }
  return gaps.sort((one, other) => other.toMs - other.fromMs - (one.toMs - one.fromMs));
}

/** Spans by how long they are, the longest first. */
export function longest(spans: readonly TimelineSpan[]): TimelineSpan[] {
  return [...spans].sort((one, other) => other.toMs - other.fromMs - (one.toMs - one.fromMs));
}
