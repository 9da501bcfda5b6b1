/**
 * The same HTTP load by three generators, wrk, h2load and ours, on the same peers: what they say has to agree where the peer is
 * the limit. A disagreement beyond noise is a problem of the run, since one of them then measures something else.
 *
 * Each tool runs twice in a round, in turn: the noise is what it differs from itself, and at least {@link NOISE}. Where the
 * peer's CPU was not full, the tools' own cost is in the figure, and they are not compared.
 */

import { tellProblems } from "./applications.ts";
import type { Contenders } from "./contenders.ts";
import { median, thousands } from "./figures.ts";
import { h2loadVersion, runH2load } from "./load/h2load.ts";
import type { LoadReport } from "./load/load.ts";
import { runWrk, type WrkReport, wrkVersion } from "./load/wrk.ts";
import type { BenchPiece, Run } from "./piece.ts";
import type { Figure } from "./results.ts";
import { carrying } from "./throughput.ts";

const CONNECTIONS = 32;
const REPETITIONS = 2;
/** by how much two tools may differ before anybody calls it a disagreement, where they differ less from themselves */
export const NOISE = 0.1;
/** from here on the peer is the limit */
const BUSY_MIN = 0.9;
const AROUND_SECONDS = 0.2;

const TOOLS = ["wrk", "h2load", "ours"] as const;
type Tool = (typeof TOOLS)[number];

/** Of one tool on one peer: a value for each repetition. */
export interface ToolRates {
  tool: Tool;
  perSecond: number[];
  /** median share of its CPU that the peer used; null: there is no peer between */
  busy: number | null;
}

export const toolsPiece: BenchPiece = {
  name: "tools",
  title: `HTTP requests a second at ${CONNECTIONS} connections by three tools: wrk, h2load and our generator`,
  estimateSeconds: (plan) =>
    carrying(plan, "http") * TOOLS.length * REPETITIONS * (plan.seconds + AROUND_SECONDS),
  measure: async (run) => {
    const contenders = await run.contenders();
    const there = TOOLS.filter((tool) => {
      const missing =
        (tool === "wrk" && wrkVersion() === null) || (tool === "h2load" && h2loadVersion() === null);
      if (missing) run.problem("tools", `${tool} is missing; scripts/setup.sh bench installs it`);
      return !missing;
    });
    const figures: Figure[] = [];
    for (const peer of contenders.inTurn(run.round)) {
      const rates = there.map((tool): ToolRates => ({ tool, perSecond: [], busy: null }));
      const busy = new Map<Tool, number[]>();
      for (let repetition = 0; repetition < REPETITIONS; repetition++) {
        for (const of of rates) {
          const at = { round: run.round, peer, connections: CONNECTIONS, load: of.tool };
          const measured = await contenders.measure(at, (port) => runTool(of.tool, contenders, port, run));
          if (measured === null) continue;
          of.perSecond.push(measured.report.perSecond);
          if (measured.sample.busy !== null)
            busy.set(of.tool, [...(busy.get(of.tool) ?? []), measured.sample.busy]);
        }
      }
      for (const of of rates) {
        if (of.perSecond.length === 0) continue;
        const shares = busy.get(of.tool);
        of.busy = shares === undefined ? null : median(shares);
        const [connections, rounds] = [CONNECTIONS, [median(of.perSecond)]];
        const parameters = { connections, tool: of.tool };
        figures.push({ peer: peer.name, parameters, metric: "requestsPerSecond", rounds });
      }
      for (const what of disagreements(rates)) run.problem(`tools, ${peer.name}, round ${run.round}`, what);
      run.say(
        `${peer.name}: ${rates.map(({ tool, perSecond }) => `${tool} ${thousands(median(perSecond))}/s`).join(", ")}`,
      );
    }
    tellProblems(contenders, run);
    return figures;
  },
};

function runTool(
  tool: Tool,
  contenders: Contenders,
  port: number,
  { seconds }: Pick<Run, "seconds">,
): Promise<WrkReport | LoadReport> {
  const load = { port, connections: CONNECTIONS, seconds };
  switch (tool) {
    case "wrk":
      return runWrk(contenders.stage, load);
    case "h2load":
      return runH2load(contenders.stage, load);
    case "ours":
      return contenders.generate({ ...load, perSecond: null });
  }
}

/** Pairs of tools that are further apart than they are from themselves. Empty where the peer was not the limit for both. */
export function disagreements(rates: readonly ToolRates[]): string[] {
  const comparable = rates.filter(({ busy, perSecond }) => perSecond.length > 0 && (busy ?? 0) >= BUSY_MIN);
  return comparable.flatMap((one, index) =>
    comparable.slice(index + 1).flatMap((other) => {
      const [a, b] = [median(one.perSecond), median(other.perSecond)];
      const noise = Math.max(NOISE, spread(one.perSecond), spread(other.perSecond));
      const apart = Math.abs(b / a - 1);
      if (apart <= noise) return [];
      const percent = (share: number): string => `${Math.round(share * 100)} %`;
      return [
        `DISAGREEMENT: ${one.tool} says ${thousands(a)}/s, ${other.tool} ${thousands(b)}/s, ` +
          `${percent(apart)} apart with ${percent(noise)} noise`,
      ];
    }),
  );
}

function spread(values: readonly number[]): number {
  return (Math.max(...values) - Math.min(...values)) / median(values);
}
