/** The page of `npm run bench:profile -- cutover`, and what it prints. Pure. */
import type { TimelineSpan } from "#control/api/migration.ts";
import { table } from "../figures.ts";
import { type Course, drawLanes, type Gap, gapsOf, longest } from "../report/lanes.ts";
import { PAGE_STYLE } from "../report/page.ts";
import { escapeXml, PICTURE_STYLE } from "../report/svg.ts";

const SPANS_SHOWN = 15;
const GAPS_SHOWN = 5;

export interface NamedCourse {
  name: string;
  course: Course;
}

/** Each move's picture, and all its spans in a table. Self-contained. @param facts name and value: what was run, where */
export function renderCutoverPage(facts: [string, string][], courses: NamedCourse[]): string {
  const title = "Holdfast: a cutover, process by process";
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title><link rel="icon" href="data:,"><style>${PAGE_STYLE}${PICTURE_STYLE}</style></head><body>
<h1>${title}</h1>
<dl>${facts.map(([name, value]) => `<dt>${escapeXml(name)}</dt><dd>${escapeXml(value)}</dd>`).join("")}</dl>
<p>What CRIU and the proxies did is as their agent saw it. The target's spans may stand too early by the way of one call, a round
trip at most.</p>
${courses.map(section).join("\n")}
</body></html>
`;
}

function section({ name, course }: NamedCourse): string {
  const row = ({ lane, name: what, fromMs, toMs }: TimelineSpan): string =>
    `<tr>${[lane, what, ms(fromMs), ms(toMs - fromMs)].map((cell) => `<td>${escapeXml(cell)}</td>`).join("")}</tr>`;
  return `<h2>${escapeXml(name)}</h2>
${drawLanes(name, course)}
<figure class="table"><table><thead><tr><th>who</th><th>what</th><th>from, ms</th><th>ms</th></tr></thead>
<tbody>${course.spans.map(row).join("")}</tbody></table></figure>`;
}

/** The longest spans of a move, and the longest times in which nobody is known to have been at work. */
export function renderCourse({ name, course }: NamedCourse): string[] {
  const { spans, endMs } = course;
  return [
    "",
    `${name}: ${ms(endMs)} ms from the hold to the release, ${spans.length} spans`,
    "",
    ...table([
      ["longest spans", "from", "ms"],
      ...longest(spans)
        .slice(0, SPANS_SHOWN)
        .map((span) => [nameOf(span), ms(span.fromMs), ms(span.toMs - span.fromMs)]),
    ]),
    "",
    ...table([
      ["longest gaps", "from", "ms"],
      ...gapsOf(course)
        .slice(0, GAPS_SHOWN)
        .map((gap) => [between(gap), ms(gap.fromMs), ms(gap.toMs - gap.fromMs)]),
    ]),
  ];
}

function between({ after, before }: Gap): string {
  return `${after === null ? "the hold" : nameOf(after)} … ${before === null ? "the release" : nameOf(before)}`;
}

function nameOf({ lane, name }: TimelineSpan): string {
  return `${lane}: ${name}`;
}

function ms(value: number): string {
  return value.toFixed(1);
}
