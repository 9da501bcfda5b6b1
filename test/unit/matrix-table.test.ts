/** The table of programs in README.md: made by a run of all of them, and by nothing else. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { programs } from "../matrix/catalogue.ts";
import type { Outcome } from "../matrix/run.ts";
import { BEGIN, END, renderTable, replaceSection } from "../matrix/table.ts";

const outcome: Outcome = {
  program: "memcached",
  title: "memcached",
  version: "1.6.18",
  keeps: "items",
  downstream: "takeover",
  date: "2026-01-02T03:04:05.678Z",
  moved: true,
  moves: 10,
  asked: 10,
  longestPauseMs: 123.4,
  phasesMs: [],
  reason: null,
  story: null,
};

describe("the table of the matrix", () => {
  it("has a row a program with both modes and the longer of their pauses", () => {
    const table = renderTable([outcome, { ...outcome, downstream: "forward", longestPauseMs: 200 }]);
    assert.match(
      table,
      /^\| memcached \| 1\.6\.18 \| yes, 10 moves \| yes, 10 moves \| 200 ms \| items \|$/m,
    );
  });

  it("says of a program that did not move after how many moves, and why, in one line", () => {
    const failed = { ...outcome, downstream: "forward" as const, moved: false, moves: 3, reason: "a | b" };
    assert.match(
      renderTable([outcome, failed]),
      /\| \*\*no\*\*, 3 of 10 \| 123 ms \| forward: a \\\| b \|$/m,
    );
  });

  it("says a reason that both modes have once", () => {
    const failed = { ...outcome, moved: false, moves: 0, longestPauseMs: null, reason: "refused" };
    const table = renderTable([failed, { ...failed, downstream: "forward" }]);
    assert.match(table, /\| \*\*no\*\*, 0 of 10 \| \*\*no\*\*, 0 of 10 \| - \| refused \|$/m);
  });

  it("replaces what stands between its markers, and needs them", () => {
    assert.equal(replaceSection(`a ${BEGIN} old ${END} z`, "new"), `a ${BEGIN}\n\nnew\n\n${END} z`);
    assert.throws(() => replaceSection("a z", "new"), TypeError);
  });
});

describe("README.md's table", () => {
  const readme = readFileSync(join(import.meta.dirname, "../../README.md"), "utf8");
  const section = readme.slice(readme.indexOf(BEGIN), readme.indexOf(END));

  it("has every program of the catalogue", () => {
    for (const { title } of programs) assert.ok(section.includes(`| ${title} |`), `no row for ${title}`);
  });

  it("is of programs with names that are all different", () => {
    assert.equal(new Set(programs.map(({ name }) => name)).size, programs.length);
  });
});
