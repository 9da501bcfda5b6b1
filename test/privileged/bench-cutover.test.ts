/**
 * `npm run bench:cutover` and its pieces, in short real runs: bare CRIU and moves are measured under the same clients, who lose
 * nothing. Nothing is said here of how large a figure is.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { describe, it } from "node:test";
import {
  cutoverFigures,
  cutoverProblems,
  renderCutover,
  rowFigures,
} from "#bench/cutover/cutover-figures.ts";
import { crowdIntervalMs } from "#bench/cutover/cutover-lab.ts";
import { measureCutover, measureRow } from "#bench/cutover/cutover-pieces.ts";
import { gapsOf } from "#bench/report/lanes.ts";
import type { Figure } from "#bench/results.ts";
import { LANES, PHASES } from "#control/api/migration.ts";
import { projectRoot } from "../lab/lab.ts";
import { lacking } from "../support/moved-program.ts";

const skip = lacking("runc");
const PEERS = ["bare-criu", "holdfast-takeover", "holdfast-forward"];
const SESSIONS = 40;

describe("the cutover beside bare CRIU", { skip, timeout: 600_000 }, () => {
  const problems: string[] = [];
  const reporting = {
    say: (): void => {},
    problem: (where: string, what: string): void => void problems.push(`${where}: ${what}`),
  };

  it("is measured for all three under clients who lose nothing, phase by phase", async () => {
    let toldHowToClose = 0;
    const samples = await measureCutover(
      { ...reporting, round: 2 },
      { sessions: [SESSIONS], memoryMb: 8, isWarmedUp: false },
      () => toldHowToClose++,
    );
    assert.deepEqual(problems, []);
    assert.deepEqual(cutoverProblems(samples), []);
    assert.equal(toldHowToClose, 1);
    assert.deepEqual(
      samples.map(({ mode }) => mode),
      ["takeover", "forward", "bare"],
      "in turn: another one first in each round",
    );
    const figures = cutoverFigures(samples);
    const of = (peer: string, metric: string): Figure[] =>
      figures.filter((figure) => figure.peer === peer && figure.metric === metric);
    for (const peer of PEERS) {
      const [blackout] = of(peer, "blackoutMs");
      const [crowd] = of(peer, "crowdPauseMs");
      const [hold] = of(peer, "holdMs");
      assert.ok(blackout && crowd && hold, peer);
      assert.equal(crowd.parameters.everyMs, crowdIntervalMs(SESSIONS));
      const values = blackout.percentiles?.[0]?.map(({ valueUs }) => valueUs) ?? [];
      assert.equal(values.length, 3);
      const [p50 = 0, p99 = 0, max = 0] = values;
      assert.ok(0 < p50 && p50 <= p99 && p99 <= max, `${peer}: ${values}`);
      assert.equal(blackout.rounds[0], p50 / 1000);
      // A client who sends all the time cannot see less than the time in which nobody answers.
      assert.ok(
        max / 1000 >= (hold.rounds[0] ?? 0) * 0.5,
        `${peer}: ${max / 1000} ms of ${hold.rounds[0]} ms`,
      );
      const phases = of(peer, "phaseMs").map(({ parameters }) => parameters.phase);
      const criu = ["criu-dump", "criu-restore"];
      assert.deepEqual(phases, peer === "bare-criu" ? criu : [...PHASES, ...criu]);
    }
    for (const { mode, move } of samples) {
      if (move === null) continue;
      const { holdMs, timeline: spans = [] } = move;
      const lanes = new Set(spans.map(({ lane }) => lane));
      assert.equal(lanes.size, LANES.length, `${mode}: ${[...lanes]}`);
      const [longest] = gapsOf({ spans, endMs: holdMs });
      const gapMs = (longest?.toMs ?? 0) - (longest?.fromMs ?? 0);
      assert.ok(gapMs < holdMs / 2, `${mode}: nobody was at work for ${gapMs} of ${holdMs} ms`);
    }
    const text = renderCutover(samples, []).join("\n");
    assert.match(text, /^blackout, p50(\s+\d+\.\d){3}$/m);
    assert.match(text, /^lost \/ repeated \/ reset(\s+0 \/ 0 \/ 0){3}$/m);
  });

  it("is shown by a row of moves to grow or not", async () => {
    const rows = await measureRow(reporting, 2, () => {});
    const figures = rowFigures(rows);
    assert.deepEqual(
      rows.map(({ mode, holdMs }) => [mode, holdMs.length]),
      [
        ["takeover", 2],
        ["forward", 2],
      ],
    );
    for (const metric of ["holdMs", "memoryBytes", "descriptors"]) {
      const found = figures.filter((figure) => figure.metric === metric);
      assert.ok(found.length > 0, metric);
      for (const { peer, rounds } of found) assert.ok((rounds[0] ?? 0) > 0, `${metric} of ${peer}`);
    }
    assert.match(renderCutover([], rows).join("\n"), /^2 moves in a row by forward: hold \d/m);
  });

  it("names what clients lost", () => {
    const blackoutMs = { p50: 1, p99: 2, max: 3 };
    const sample = {
      mode: "bare" as const,
      sessions: 3,
      memoryMb: 0,
      blackoutMs,
      crowdPauseMs: null,
      lost: 2,
      repeated: 0,
      resets: 1,
      problems: ["closed with 1006"],
      waitingSinceMs: 0,
      bare: null,
      move: null,
    };
    assert.deepEqual(cutoverProblems([{ ...sample, lost: 0, resets: 0 }, sample]), [
      { where: "bare CRIU, 3 sessions, 0 MiB", what: "2 lost, 0 repeated, 1 reset: closed with 1006" },
    ]);
  });

  it("refuses what it does not know, before anything is started", async () => {
    const child = spawn(process.execPath, [join(projectRoot, "bench/cutover.ts"), "--sessions", "0"], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let stderr = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    const [status] = await once(child, "close");
    assert.equal(status, 2);
    assert.match(stderr, /--sessions: expected a whole number 1-10000, got 0/);
  });
});
