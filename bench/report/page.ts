/**
 * The report as one HTML page that needs nothing else: no network, no script, its pictures inside as SVG. For a wide window, a
 * phone, light, dark and paper.
 */
import type { BenchResults, Piece } from "../results.ts";
import { headOf, notesOf } from "./notes.ts";
import { picturesOf, type Swatch } from "./pictures.ts";
import { escapeXml, PICTURE_STYLE } from "./svg.ts";
import { goalsTable, type Table, tablesOf } from "./tables.ts";

/** Of a page with pictures and tables. */
export const PAGE_STYLE = `
:root { color-scheme: light dark; --text: #1f2328; --muted: #59636e; --back: #ffffff; --rule: #d1d9e0; --soft-back: #f6f8fa;
  --good: #1a7f37; --bad: #b3172f; --warn-back: #fff4d6; --warn-rule: #d4a72c; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --muted: #9198a1; --back: #0d1117; --rule: #3d444d;
  --soft-back: #151b23; --good: #57d364; --bad: #ff7b8e; --warn-back: #2b2410; --warn-rule: #8f7420; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1500px; font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); }
h1 { font-size: 1.6rem; margin: .3rem 0 1rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 0 1rem; } dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
nav { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; } a { color: inherit; }
.notes { border: 1px solid var(--warn-rule); background: var(--warn-back); border-radius: 6px; padding: .6rem 1rem .6rem 2rem; margin: 1rem 0; }
.notes .warning { font-weight: 600; } .notes li { overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 1rem 1.4rem; align-items: start; }
.pictures svg { width: 100%; max-width: 560px; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .4rem 0 .8rem; padding: 0; list-style: none; font-size: .9rem; }
.legend li { white-space: nowrap; } .swatch { vertical-align: middle; margin-right: .4rem; width: 26px; height: 10px; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
figure { max-width: 100%; overflow-x: auto; margin: .2rem 0 1.2rem; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
figcaption { color: var(--muted); padding: .5rem 0 .2rem; position: sticky; left: 0; } th, td { padding: .15rem .7rem .15rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; } .goals td:first-child { white-space: normal; min-width: 14rem; }
tr.ours { background: var(--soft-back); font-weight: 600; } .met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
@media (max-width: 640px) { .goals td, .goals th { white-space: normal; padding-right: .5rem; } .goals td:first-child { min-width: 8rem; } }
@media print { :root { color-scheme: light; --text: #000; --back: #fff; --muted: #444; --rule: #bbb; --soft-back: #f3f3f3; --good: #1a7f37; --bad: #b3172f; --warn-back: #fff; }
  body { font-size: 10pt; padding: 0; max-width: none; } nav { display: none; } .pictures { grid-template-columns: 1fr 1fr; } .pictures svg, tr, .legend { break-inside: avoid; }
  h2, figcaption { break-after: avoid; } figure { overflow: visible; } table { font-size: 7.5pt; } td, th { white-space: normal; } }
`;

export function renderPage(results: BenchResults): string {
  const notes = notesOf(results);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Holdfast: benchmark of ${escapeXml(results.startedAt.slice(0, 10))}</title>
<link rel="icon" href="data:,"><style>${PAGE_STYLE}${PICTURE_STYLE}</style></head><body>
<h1>Holdfast: benchmark</h1>
${notes.length === 0 ? "" : `<ul class="notes">${notes.map(({ kind, what }) => `<li class="${kind}">${escapeXml(what)}</li>`).join("")}</ul>`}
<dl>${headOf(results)
    .map(([name, value]) => `<dt>${escapeXml(name)}</dt><dd>${escapeXml(value)}</dd>`)
    .join("")}</dl>
<nav>${[["goals", "Goals"], ...results.pieces.map(({ name }) => [name, name]), ["peers", "Peers"]]
    .map(([name = "", title = ""]) => `<a href="#${escapeXml(name)}">${escapeXml(title)}</a>`)
    .join("")}</nav>
<h2 id="goals">Goals</h2>
${renderTable(goalsTable(results), "goals")}
<p>Figures are medians of the rounds, with the least and the greatest; nothing is discarded. A ratio is made within a round, of
what was measured next to each other. Thin lines in the pictures reach from the least to the greatest.</p>
${results.pieces.map(renderPiece).join("\n")}
<h2 id="peers">Peers</h2>
<dl>${results.peers
    .map(
      ({ name, version, missing }) =>
        `<dt>${escapeXml(name)}</dt><dd>${escapeXml(missing === null ? version : `MISSING: ${missing}`)}</dd>`,
    )
    .join("")}</dl>
</body></html>
`;
}

function renderPiece(piece: Piece): string {
  const { drawn, legend } = picturesOf(piece);
  return `<section><h2 id="${escapeXml(piece.name)}">${escapeXml(piece.title)}</h2>
${legend.length === 0 ? "" : `<ul class="legend">${legend.map(renderSwatch).join("")}</ul>`}
<div class="pictures">${drawn.join("\n")}</div>
<div class="tables">${tablesOf(piece)
    .map((table) => renderTable(table))
    .join("\n")}</div></section>`;
}

/** A piece of the line, or of the part, that it stands for. */
function renderSwatch({ label, look }: Swatch): string {
  const sample = look.startsWith("of-part")
    ? `<rect class="part ${look}" width="26" height="10"/>`
    : `<line class="line ${look}" x1="0" y1="5" x2="26" y2="5"/>`;
  return `<li><svg class="swatch picture ${look}" viewBox="0 0 26 10" aria-hidden="true">${sample}</svg>${escapeXml(label)}</li>`;
}

function renderTable({ caption, head, rows }: Table, look = ""): string {
  const cell = (said: string): string => {
    const judged = /^(met|MISSED)\b/.exec(said)?.[1];
    return `<td${judged === undefined ? "" : ` class="${judged.toLowerCase()}"`}>${escapeXml(said)}</td>`;
  };
  const row = (cells: string[]): string =>
    `<tr${/^holdfast/.test(cells[0] ?? "") ? ' class="ours"' : ""}>${cells.map(cell).join("")}</tr>`;
  const above = caption === "" ? "" : `<figcaption>${escapeXml(caption)}</figcaption>`;
  return `<figure class="table">${above}<table class="${look}"><thead><tr>${head
    .map((name) => `<th scope="col">${escapeXml(name)}</th>`)
    .join("")}</tr></thead><tbody>${rows.map(row).join("")}</tbody></table></figure>`;
}
