/** A round of cutovers as figures, and as the tables of `bench:cutover`. Pure. */
import { PHASES } from "#control/api/migration.ts";
import type { Blackout } from "#test/load/gaps.ts";
import { fixed, median, showSpread, spreadOf, table } from "../figures.ts";
import type { Figure, Percentile } from "../results.ts";
import {
  type CutoverSample,
  crowdIntervalMs,
  drift,
  type Mode,
  modes,
  type RowSample,
} from "./cutover-lab.ts";

const PEERS: Record<Mode, string> = {
  bare: "bare-criu",
  takeover: "holdfast-takeover",
  forward: "holdfast-forward",
};
const TITLES: Record<Mode, string> = { bare: "bare CRIU", takeover: "takeover", forward: "forward" };

/**
 * Figures of one round. `holdMs` is a move from the hold to the release, or bare CRIU's two commands; `phaseMs` has a move's
 * phases, and for all three CRIU's own word of its dump and its restore (phases "criu-dump", "criu-restore").
 */
export function cutoverFigures(samples: readonly CutoverSample[]): Figure[] {
  return samples.flatMap((sample) => {
    const { mode, sessions, memoryMb, bare, move } = sample;
    const downstream = mode === "bare" ? "in-place" : mode;
    const common = { sessions, memoryMb, downstream };
    const figure = (metric: string, value: number, parameters: Figure["parameters"] = {}): Figure => ({
      peer: PEERS[mode],
      parameters: { ...common, ...parameters },
      metric,
      rounds: [value],
    });
    const phase = (name: string, ms: number): Figure => figure("phaseMs", ms, { phase: name });
    const figures = [
      { ...figure("blackoutMs", sample.blackoutMs.p50), percentiles: [curve(sample.blackoutMs)] },
      figure("lost", sample.lost),
      figure("repeated", sample.repeated),
      figure("resets", sample.resets),
    ];
    if (sample.crowdPauseMs !== null)
      figures.push({
        ...figure("crowdPauseMs", sample.crowdPauseMs.p50, { everyMs: crowdIntervalMs(sessions) }),
        percentiles: [curve(sample.crowdPauseMs)],
      });
    if (bare !== null)
      figures.push(
        figure("holdMs", bare.wallMs),
        phase("criu-dump", bare.dumpMs),
        phase("criu-restore", bare.restoreMs),
      );
    if (move !== null) {
      figures.push(figure("holdMs", move.holdMs));
      for (const name of PHASES) {
        const ms = move.phasesMs[name];
        if (ms !== undefined) figures.push(phase(name, ms));
      }
      figures.push(
        phase("criu-dump", move.criuMs.dump),
        phase("criu-restore", move.criuMs.restore),
        figure("captureUsPerLeg", move.legUs.capture),
        figure("adoptUsPerLeg", move.legUs.adopt),
        figure("precopyBytes", move.precopyBytes),
        figure("imageBytes", move.imageBytes),
      );
    }
    return figures;
  });
}

/** @returns a row's figures; `move` is the place of a move in it, from 1 */
export function rowFigures(rows: readonly RowSample[]): Figure[] {
  return rows.flatMap(({ mode, holdMs, rssBytes, descriptors }) => {
    const figure = (metric: string, move: number, value: number): Figure => ({
      peer: PEERS[mode],
      parameters: { downstream: mode, move },
      metric,
      rounds: [value],
    });
    return [
      ...holdMs.map((ms, index) => figure("holdMs", index + 1, ms)),
      figure("memoryBytes", Math.min(2, holdMs.length), rssBytes.first),
      figure("memoryBytes", holdMs.length, rssBytes.last),
      figure("descriptors", Math.min(2, holdMs.length), descriptors.first),
      figure("descriptors", holdMs.length, descriptors.last),
    ];
  });
}

/** What clients lost: a problem, whatever the times are. */
export function cutoverProblems(samples: readonly CutoverSample[]): { where: string; what: string }[] {
  return samples
    .filter(({ lost, repeated, resets }) => lost + repeated + resets > 0)
    .map(({ mode, sessions, memoryMb, lost, repeated, resets, problems }) => ({
      where: `${TITLES[mode]}, ${sessions} sessions, ${memoryMb} MiB`,
      what: `${lost} lost, ${repeated} repeated, ${resets} reset: ${problems.slice(0, 3).join("; ")}`,
    }));
}

export function curve({ p50, p99, max }: Blackout): Percentile[] {
  return [
    { p: 50, valueUs: p50 * 1000 },
    { p: 99, valueUs: p99 * 1000 },
    { p: 100, valueUs: max * 1000 },
  ];
}

/** One table for each number of sessions and size of the application: medians, with the least and the greatest. */
export function renderCutover(samples: readonly CutoverSample[], rows: readonly RowSample[]): string[] {
  const lines: string[] = [];
  const sizes = new Map(samples.map((each) => [`${each.sessions} ${each.memoryMb}`, each]));
  for (const { sessions, memoryMb } of sizes.values()) {
    const of = (mode: Mode): CutoverSample[] =>
      samples.filter(
        (each) => each.mode === mode && each.sessions === sessions && each.memoryMb === memoryMb,
      );
    lines.push(
      "",
      `${sessions} sessions, application with ${memoryMb} MiB beside its own, ${of("bare").length} rounds`,
      "",
      ...tableOf(of, sessions),
    );
  }
  for (const { mode, moves, holdMs, rssBytes, descriptors } of rows) {
    const { first, last } = drift(holdMs);
    const mb = (bytes: number): string => (bytes / 1e6).toFixed(0);
    lines.push(
      "",
      `${moves} moves in a row by ${mode}: hold ${first.toFixed(1)} → ${last.toFixed(1)} ms, ` +
        `memory ${mb(rssBytes.first)} → ${mb(rssBytes.last)} MB, descriptors ${descriptors.first} → ${descriptors.last}`,
    );
  }
  return lines;
}

function tableOf(of: (mode: Mode) => CutoverSample[], sessions: number): string[] {
  const rows: string[][] = [["ms", ...modes.map((mode) => TITLES[mode])]];
  const row = (name: string, pick: (sample: CutoverSample) => number | null, digits = 1): void => {
    const cells = modes.map((mode) => {
      const values = of(mode)
        .map(pick)
        .filter((value) => value !== null);
      return showSpread(spreadOf(values), fixed(digits));
    });
    if (cells.some((cell) => cell !== "-")) rows.push([name, ...cells]);
  };
  const bareHoldMs = median(of("bare").map(({ bare }) => bare?.wallMs ?? 0));
  const bareBlackoutMs = median(of("bare").map(({ blackoutMs }) => blackoutMs.p50));
  row("blackout, p50", ({ blackoutMs }) => blackoutMs.p50);
  row("blackout, max", ({ blackoutMs }) => blackoutMs.max);
  row(
    "… p50, ratio to bare",
    ({ blackoutMs }) => (bareBlackoutMs === 0 ? null : blackoutMs.p50 / bareBlackoutMs),
    2,
  );
  row(`crowd (each ${crowdIntervalMs(sessions)} ms), p99`, ({ crowdPauseMs }) => crowdPauseMs?.p99 ?? null);
  row("crowd, max", ({ crowdPauseMs }) => crowdPauseMs?.max ?? null);
  row("dump + restore, or hold to release", ({ bare, move }) => bare?.wallMs ?? move?.holdMs ?? null);
  row("… added to bare", ({ move }) => (move === null ? null : move.holdMs - bareHoldMs));
  row("CRIU dump", ({ bare, move }) => bare?.dumpMs ?? move?.criuMs.dump ?? null);
  row("CRIU restore", ({ bare, move }) => bare?.restoreMs ?? move?.criuMs.restore ?? null);
  for (const phase of PHASES) row(`  ${phase}`, ({ move }) => move?.phasesMs[phase] ?? null);
  row("capture a leg, µs", ({ move }) => move?.legUs.capture ?? null);
  row("adopt a leg, µs", ({ move }) => move?.legUs.adopt ?? null);
  row("sent before the hold, MB", ({ move }) => (move === null ? null : move.precopyBytes / 1e6));
  row("sent while clients waited, MB", ({ move }) => (move === null ? null : move.imageBytes / 1e6));
  const total = (mode: Mode, field: "lost" | "repeated" | "resets"): number =>
    of(mode).reduce((all, sample) => all + sample[field], 0);
  rows.push([
    "lost / repeated / reset",
    ...modes.map((mode) =>
      (["lost", "repeated", "resets"] as const).map((field) => total(mode, field)).join(" / "),
    ),
  ]);
  return table(rows);
}
