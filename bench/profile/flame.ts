/**
 * A tree of calls as a flame graph, callers above what they call, as wide as the time they took; and a page with it and the
 * functions that took the most themselves. Self-contained: no script, no network.
 */
import { escapeXml } from "../report/svg.ts";
import { type Call, type Owner, type SelfTime, selfTimes } from "./call-tree.ts";

const WIDTH = 1400;
const ROW = 18;
const CHAR_WIDTH = 6.4;
/** what is less wide is not drawn: its caller's bar is open there */
const WIDTH_MIN = 0.6;
const ROWS_MAX = 80;
export const TOP_FUNCTIONS = 30;

const OWNERS: Record<Owner, string> = {
  holdfast: "Holdfast",
  package: "packages",
  node: "Node's own JavaScript",
  native: "native: Node, V8, libuv, the kernel",
  gc: "garbage collection",
  idle: "idle",
};

const STYLE = `
:root { color-scheme: light dark; --text: #1f2328; --muted: #59636e; --back: #fff; --rule: #d1d9e0;
  --holdfast: #9cc4ff; --package: #d8c7f5; --node: #ffd39a; --native: #d0d7de; --gc: #ffb3b3; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --muted: #9198a1; --back: #0d1117; --rule: #3d444d;
  --holdfast: #1f5fbf; --package: #5d4390; --node: #8a5a13; --native: #444c56; --gc: #8e2f3a; } }
body { margin: 0 auto; padding: 1rem; max-width: 1500px; font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); }
h1 { font-size: 1.4rem; } .scroll { overflow-x: auto; } .flame { width: 100%; min-width: 1000px; height: auto; }
.flame text { font: 11px ui-monospace, monospace; fill: var(--text); pointer-events: none; }
.flame rect { stroke: var(--back); stroke-width: .5; }
${Object.keys(OWNERS)
  .map((owner) => `.of-${owner} { fill: var(--${owner}); background: var(--${owner}); }`)
  .join("\n")}
.flame g:hover > rect { stroke: var(--text); stroke-width: 1.2; }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; } li span { display: inline-block; width: 1.2em; height: .8em; margin-right: .4em; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; } caption { text-align: left; color: var(--muted); }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid var(--rule); white-space: nowrap; } th:nth-child(-n+2), td:nth-child(-n+2) { text-align: right; }
`;

/** @param facts name and value: what was run, where */
export function renderFlamePage(title: string, tree: Call, facts: [string, string][]): string {
  const share = (us: number): string => `${((us / tree.totalUs) * 100).toFixed(1)} %`;
  const row = ({ name, place, selfUs }: SelfTime): string =>
    `<tr><td>${share(selfUs)}</td><td>${(selfUs / 1000).toFixed(0)}</td><td>${escapeXml(name)}</td><td>${escapeXml(place)}</td></tr>`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeXml(title)}</title><link rel="icon" href="data:,"><style>${STYLE}</style></head><body>
<h1>${escapeXml(title)}</h1>
<p>${facts.map(([name, value]) => `${escapeXml(name)}: ${escapeXml(value)}`).join("<br>")}</p>
<ul>${ownerTimes(tree)
    .map(([owner, us]) => `<li><span class="of-${owner}"></span>${OWNERS[owner]}: ${share(us)}</li>`)
    .join("")}</ul>
<div class="scroll">${drawFlame(tree)}</div>
<table><caption>Functions by the time they took themselves</caption><thead><tr><th>self</th><th>ms</th><th>function</th><th>where</th></tr></thead>
<tbody>${selfTimes(tree).slice(0, TOP_FUNCTIONS).map(row).join("")}</tbody></table>
</body></html>
`;
}

/** Self times by whose code it is, most first. */
export function ownerTimes(tree: Call): [Owner, number][] {
  const all = new Map<Owner, number>();
  for (const { owner, selfUs } of selfTimes(tree)) all.set(owner, (all.get(owner) ?? 0) + selfUs);
  return [...all].sort(([, one], [, other]) => other - one);
}

export function drawFlame(tree: Call): string {
  const frames: string[] = [];
  let deepest = 0;
  const draw = (call: Call, x: number, depth: number): void => {
    const width = (call.totalUs / tree.totalUs) * WIDTH;
    if (width < WIDTH_MIN || depth >= ROWS_MAX) return;
    deepest = Math.max(deepest, depth);
    const said = `${call.name} ${call.place}: ${(call.totalUs / 1000).toFixed(1)} ms, ${((call.totalUs / tree.totalUs) * 100).toFixed(1)} %, itself ${(call.selfUs / 1000).toFixed(1)} ms`;
    const chars = Math.floor((width - 4) / CHAR_WIDTH);
    const label = call.name.length <= chars ? call.name : `${call.name.slice(0, chars - 1)}…`;
    const text =
      chars < 3 ? "" : `<text x="${(x + 3).toFixed(1)}" y="${depth * ROW + 13}">${escapeXml(label)}</text>`;
    frames.push(
      `<g><rect class="mark of-${call.owner}" x="${x.toFixed(2)}" y="${depth * ROW}" width="${width.toFixed(2)}" height="${ROW - 1}"><title>${escapeXml(said)}</title></rect>${text}</g>`,
    );
    let from = x;
    for (const child of call.calls) {
      draw(child, from, depth + 1);
      from += (child.totalUs / tree.totalUs) * WIDTH;
    }
  };
  draw(tree, 0, 0);
  return `<svg class="flame" viewBox="0 0 ${WIDTH} ${(deepest + 1) * ROW}" role="img"><title>flame graph</title>${frames.join("")}</svg>`;
}
