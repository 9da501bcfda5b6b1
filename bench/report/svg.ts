/**
 * Pictures of figures as SVG: lines, bars, and bars made of parts. Pure; a picture knows nothing of the page it is on. Its colours
 * are classes of {@link PICTURE_STYLE}, so the same picture is drawn for light, for dark and for paper.
 *
 * Every mark carries its number as `<title>`. Widths of text are guessed from the number of characters: the fonts of who
 * reads it are not known here.
 */

export interface Axis {
  label: string;
  /** `percentile`: as far apart as the nines are (log of 1 / (1 - p)) */
  scale: "linear" | "log" | "percentile";
  /** so much is 1 where it is shown (1024: bytes shown as kB), so that its steps are round; 1 unless said */
  unit?: number;
  show(value: number): string;
}

export interface Point {
  x: number;
  y: number;
  /** least and greatest of the rounds */
  spread?: { min: number; max: number };
}

export interface Line {
  label: string;
  /** classes of its colour and stroke: see {@link PICTURE_STYLE} */
  look: string;
  points: Point[];
  /** few points are marked one by one; the many of a curve are not */
  dots: boolean;
}

export interface Bar {
  label: string;
  look: string;
  value: number;
  spread?: { min: number; max: number };
  /** beside the bar */
  text: string;
}

export interface StackedBar {
  label: string;
  /** from left to right */
  parts: { name: string; look: string; value: number }[];
  text: string;
}

const WIDTH = 460;
const PLOT_HEIGHT = 220;
export const CHAR_WIDTH = 6.6;
export const LINE_HEIGHT = 15;
export const BAR_HEIGHT = 16;
const BAR_GAP = 6;
const TICKS_MAX = 6;
const LABEL_CHARS_MAX = 24;
const EDGE = 8;

/** For the page, and inside of a picture that stands alone. */
export const PICTURE_STYLE = `
.picture { --ink: #1f2328; --faint: #d5d9de; --soft: #656d76; --paper: #ffffff;
  --holdfast: #0b5fff; --direct: #8c959f; --haproxy: #d9730d; --nginx: #1a7f37; --envoy: #a626a4;
  --http-proxy: #c2213f; --httpxy: #8a6d00; --node-pipe: #0f7f8c; --other: #57606a;
  --part-0: #0b5fff; --part-1: #d9730d; --part-2: #1a7f37; --part-3: #a626a4; --part-4: #c2213f; --part-5: #8a6d00;
  --part-6: #0f7f8c; --part-7: #57606a; --part-8: #afb8c1; }
@media (prefers-color-scheme: dark) { .picture { --ink: #e6edf3; --faint: #30363d; --soft: #9198a1; --paper: #0d1117;
  --holdfast: #6cb0ff; --direct: #7d8590; --haproxy: #ffab5e; --nginx: #57d364; --envoy: #e391e0;
  --http-proxy: #ff7b8e; --httpxy: #d9b93a; --node-pipe: #4fd0dd; --other: #a5adb6;
  --part-0: #6cb0ff; --part-1: #ffab5e; --part-2: #57d364; --part-3: #e391e0; --part-4: #ff7b8e; --part-5: #d9b93a;
  --part-6: #4fd0dd; --part-7: #a5adb6; --part-8: #6e7681; } }
@media print { .picture { --ink: #000; --faint: #ccc; --soft: #444; --paper: #fff;
  --holdfast: #0b5fff; --direct: #8c959f; --haproxy: #d9730d; --nginx: #1a7f37; --envoy: #a626a4;
  --http-proxy: #c2213f; --httpxy: #8a6d00; --node-pipe: #0f7f8c; --other: #57606a; } }
.picture text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.picture .soft { fill: var(--soft); }
.picture .heading { font-weight: 600; font-size: 13px; }
.picture .grid { stroke: var(--faint); stroke-width: 1; fill: none; }
.picture .axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.picture .line { fill: none; stroke: var(--colour); stroke-width: 1.6; stroke-linejoin: round; }
.picture .line.ours { stroke-width: 2.8; }
.picture .line.http { stroke-dasharray: 7 3; }
.picture .line.replay, .picture .line.websocket, .picture .line.forward { stroke-dasharray: 2 3; }
.picture .dot, .picture .bar, .picture .part { fill: var(--colour); }
.picture .bar { opacity: .72; } .picture .bar.ours { opacity: 1; }
.picture .part { stroke: var(--paper); stroke-width: 1; }
.picture .in-bar { fill: var(--paper); }
.picture .spread { stroke: var(--ink); stroke-width: 1.2; fill: none; opacity: .75; }
.picture .dot.spread-of { stroke: none; }
${[
  "holdfast",
  "direct",
  "haproxy",
  "nginx",
  "envoy",
  "http-proxy",
  "httpxy",
  "node-pipe",
  "other",
  ...Array.from({ length: 9 }, (_, index) => `part-${index}`),
]
  .map((name) => `.picture .of-${name}, .swatch.of-${name} { --colour: var(--${name}); }`)
  .join("\n")}
`;

/** Lines over numbers. @returns null where no two points of a line are there to be joined */
export function drawLines(options: { title: string; x: Axis; y: Axis; lines: Line[] }): string | null {
  const { title, x, y } = options;
  const lines = options.lines
    .map((line) => ({ ...line, points: line.points.filter((point) => drawable(point, x, y)) }))
    .filter(({ points }) => points.length > 0);
  if (!lines.some(({ points }) => points.length > 1)) return null;
  const points = lines.flatMap((line) => line.points);
  const xs = rangeOf(
    x,
    points.map((point) => point.x),
  );
  const ys = rangeOf(
    y,
    points.flatMap((point) => [
      point.y,
      ...(point.spread === undefined ? [] : [point.spread.min, point.spread.max]),
    ]),
  );
  const left = LINE_HEIGHT + 12 + CHAR_WIDTH * Math.max(...ys.ticks.map((tick) => y.show(tick).length));
  const top = LINE_HEIGHT * 2;
  // Half of the last tick's text is beyond the axis.
  const right = WIDTH - EDGE - (CHAR_WIDTH / 2) * Math.max(...xs.ticks.map((tick) => x.show(tick).length));
  const bottom = top + PLOT_HEIGHT;
  const atX = (value: number): number => left + xs.place(value) * (right - left);
  const atY = (value: number): number => bottom - ys.place(value) * PLOT_HEIGHT;
  const grid = [
    ...ys.ticks.map(
      (tick) =>
        `<line class="grid" x1="${round(left)}" x2="${round(right)}" y1="${round(atY(tick))}" y2="${round(atY(tick))}"/>` +
        text(left - 6, atY(tick) + 4, y.show(tick), "end", "soft"),
    ),
    ...xs.ticks.map(
      (tick) =>
        `<line class="grid" y1="${round(top)}" y2="${round(bottom)}" x1="${round(atX(tick))}" x2="${round(atX(tick))}"/>` +
        text(atX(tick), bottom + LINE_HEIGHT + 3, x.show(tick), "middle", "soft"),
    ),
    `<path class="axis" d="M${round(left)} ${round(top)}V${round(bottom)}H${round(right)}"/>`,
    text((left + right) / 2, bottom + LINE_HEIGHT * 2.4, x.label, "middle"),
    `<text class="soft" text-anchor="middle" transform="translate(11 ${round((top + bottom) / 2)}) rotate(-90)">${escapeXml(y.label)}</text>`,
  ];
  const marks = lines.map(({ label, look, points, dots: dotted }) => {
    const sorted = [...points].sort((one, other) => one.x - other.x);
    const path = sorted.map(
      (point, index) => `${index === 0 ? "M" : "L"}${round(atX(point.x))} ${round(atY(point.y))}`,
    );
    const dots = (dotted ? sorted : []).map((point) => {
      const bar =
        point.spread === undefined || point.spread.min === point.spread.max
          ? ""
          : `<path class="spread" d="M${round(atX(point.x))} ${round(atY(point.spread.min))}V${round(atY(point.spread.max))}"/>`;
      const said = `${label}, ${x.show(point.x)}: ${y.show(point.y)}`;
      return `${bar}<circle class="dot" cx="${round(atX(point.x))}" cy="${round(atY(point.y))}" r="2.4">${titleOf(said)}</circle>`;
    });
    return `<g class="series ${look}"><path class="mark line ${look}" d="${path.join("")}">${titleOf(label)}</path>${dots.join("")}</g>`;
  });
  return picture(title, bottom + LINE_HEIGHT * 2.8, [...grid, ...marks]);
}

/** One bar below the other, from nought. */
export function drawBars(options: { title: string; bars: Bar[] }): string | null {
  const bars = options.bars.filter(({ value }) => Number.isFinite(value));
  if (bars.length === 0) return null;
  const left = labelWidth(bars.map(({ label }) => label));
  const right = WIDTH - CHAR_WIDTH * Math.max(...bars.map((bar) => bar.text.length)) - 14;
  const most = Math.max(...bars.flatMap(({ value, spread }) => [value, spread?.max ?? value]));
  const width = (value: number): number => (most > 0 ? Math.max(0, value / most) * (right - left) : 0);
  const rows = bars.map(({ label, look, value, spread, text: said }, index) => {
    const y = LINE_HEIGHT * 1.8 + index * (BAR_HEIGHT + BAR_GAP);
    const middle = y + BAR_HEIGHT / 2;
    const whisker =
      spread === undefined || spread.min === spread.max
        ? ""
        : `<path class="spread" d="M${round(left + width(spread.min))} ${round(middle)}H${round(left + width(spread.max))}"/>`;
    const end = left + Math.max(width(value), width(spread?.max ?? 0));
    return (
      text(left - 6, middle + 4, shorten(label), "end") +
      `<rect class="mark bar ${look}" x="${round(left)}" y="${round(y)}" width="${round(width(value))}" height="${BAR_HEIGHT}">${titleOf(`${label}: ${said}`)}</rect>` +
      whisker +
      text(end + 6, middle + 4, said, "start", "soft")
    );
  });
  return picture(options.title, LINE_HEIGHT * 2 + bars.length * (BAR_HEIGHT + BAR_GAP), rows);
}

/** What follows what, one course of events below the other, on one scale of time. */
export function drawStacks(options: { title: string; axis: Axis; bars: StackedBar[] }): string | null {
  const bars = options.bars
    .map((bar) => ({ ...bar, parts: bar.parts.filter(({ value }) => Number.isFinite(value) && value > 0) }))
    .filter(({ parts }) => parts.length > 0);
  if (bars.length === 0) return null;
  const total = (bar: StackedBar): number => bar.parts.reduce((sum, { value }) => sum + value, 0);
  const range = rangeOf(options.axis, [0, ...bars.map(total)]);
  const left = labelWidth(bars.map(({ label }) => label));
  const right = WIDTH - CHAR_WIDTH * Math.max(...bars.map((bar) => bar.text.length)) - 14;
  const at = (value: number): number => left + range.place(value) * (right - left);
  const top = LINE_HEIGHT * 1.8;
  const bottom = top + bars.length * (BAR_HEIGHT + BAR_GAP);
  const grid = range.ticks.map(
    (tick) =>
      `<line class="grid" x1="${round(at(tick))}" x2="${round(at(tick))}" y1="${round(top - 4)}" y2="${round(bottom)}"/>` +
      text(at(tick), bottom + LINE_HEIGHT, options.axis.show(tick), "middle", "soft"),
  );
  const rows = bars.map((bar, index) => {
    const y = top + index * (BAR_HEIGHT + BAR_GAP);
    let before = 0;
    const parts = bar.parts.map(({ name, look, value }) => {
      const from = at(before);
      before += value;
      const said = `${bar.label}, ${name}: ${options.axis.show(value)}`;
      return `<rect class="mark part ${look}" x="${round(from)}" y="${round(y)}" width="${round(at(before) - from)}" height="${BAR_HEIGHT}">${titleOf(said)}</rect>`;
    });
    const middle = y + BAR_HEIGHT / 2 + 4;
    return (
      text(left - 6, middle, shorten(bar.label), "end") +
      parts.join("") +
      text(at(before) + 6, middle, bar.text, "start", "soft")
    );
  });
  const label = text((left + right) / 2, bottom + LINE_HEIGHT * 2.2, options.axis.label, "middle");
  return picture(options.title, bottom + LINE_HEIGHT * 2.6, [...grid, ...rows, label]);
}

/** Pictures next to each other as one. */
export function beside(title: string, drawn: string[]): string {
  const heights = drawn.map((each) => Number(/viewBox="0 0 \d+ (\d+)"/.exec(each)?.[1]));
  const inside = drawn.map((each, index) =>
    each.replace("<svg ", `<svg x="${index * WIDTH}" y="0" width="${WIDTH}" height="${heights[index]}" `),
  );
  return `<svg class="picture" viewBox="0 0 ${WIDTH * drawn.length} ${Math.max(...heights)}" role="img"><title>${escapeXml(title)}</title>${inside.join("")}</svg>`;
}

/** One picture as a file of its own. */
export function standAlone(drawn: string): string {
  return drawn
    .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    .replace(
      "</title>",
      `</title><style>${PICTURE_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>`,
    );
}

export function escapeXml(raw: string): string {
  const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return raw.replace(/[&<>"]/g, (character) => entities[character] ?? character);
}

/** A heading, and what is below it. */
export function picture(title: string, height: number, marks: string[], width = WIDTH): string {
  const heading = `<text class="heading" x="4" y="${LINE_HEIGHT}">${escapeXml(title)}</text>`;
  return `<svg class="picture" viewBox="0 0 ${width} ${Math.ceil(height)}" role="img"><title>${escapeXml(title)}</title>${heading}${marks.join("")}</svg>`;
}

function drawable(point: Point, x: Axis, y: Axis): boolean {
  const fits = (value: number, { scale }: Axis): boolean =>
    Number.isFinite(value) &&
    (scale === "linear" || (scale === "log" ? value > 0 : value >= 0 && value < 100));
  return fits(point.x, x) && fits(point.y, y);
}

interface Range {
  ticks: number[];
  /** 0 … 1 */
  place(value: number): number;
}

/** What of an axis `values`, at least one, take. */
export function rangeOf({ scale, unit = 1 }: Axis, values: number[]): Range {
  const [min, max] = [Math.min(...values), Math.max(...values)];
  if (scale === "percentile") {
    const nines = (p: number): number => -Math.log10(1 - p / 100);
    const ticks = [50, 90, 99, 99.9, 99.99, 99.999].filter((p) => p >= min && p <= max);
    return { ticks, place: (p) => (nines(p) - nines(min)) / (nines(max) - nines(min) || 1) };
  }
  if (scale === "log") {
    const positive = values.filter((value) => value > 0);
    const low = floor125(Math.min(...positive));
    const high = Math.max(ceil125(Math.max(...positive)), low * 10);
    const ticks = steps125(low, high);
    return { ticks, place: (value) => Math.log(Math.max(value, low) / low) / Math.log(high / low) };
  }
  const low = Math.min(0, min);
  const step = unit * ceil125((max - low || 1) / unit / (TICKS_MAX - 1));
  const high = Math.ceil(max / step) * step || step;
  const first = Math.floor(low / step) * step;
  const ticks = Array.from(
    { length: Math.round((high - first) / step) + 1 },
    (_, index) => first + index * step,
  );
  return { ticks, place: (value) => (value - first) / (high - first) };
}

/** 1, 2, 5, 10, 20, … between; where these are too many, the powers of ten. */
function steps125(low: number, high: number): number[] {
  const all: number[] = [];
  for (let exponent = Math.floor(Math.log10(low)); 10 ** exponent <= high * 1.001; exponent++)
    all.push(...[1, 2, 5].map((digit) => digit * 10 ** exponent));
  const inside = all.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length <= TICKS_MAX + 1
    ? inside
    : inside.filter((tick) => Math.abs(Math.log10(tick) - Math.round(Math.log10(tick))) < 1e-9);
}

function ceil125(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 5, 10].find((digit) => digit * power >= value * 0.999_999) ?? 10);
}

function floor125(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([5, 2, 1].find((digit) => digit * power <= value * 1.000_001) ?? 1);
}

export function text(
  x: number,
  y: number,
  said: string,
  anchor: "start" | "middle" | "end",
  look = "",
): string {
  const classes = look === "" ? "" : ` class="${look}"`;
  return `<text${classes} x="${round(x)}" y="${round(y)}" text-anchor="${anchor}">${escapeXml(said)}</text>`;
}

export function titleOf(said: string): string {
  return `<title>${escapeXml(said)}</title>`;
}

function labelWidth(labels: string[]): number {
  return 12 + CHAR_WIDTH * Math.max(...labels.map((label) => shorten(label).length));
}

function shorten(label: string): string {
  return label.length <= LABEL_CHARS_MAX ? label : `${label.slice(0, LABEL_CHARS_MAX - 1)}…`;
}

/** To tenths of a unit of the picture. */
export function round(value: number): number {
  return Math.round(value * 10) / 10;
}
