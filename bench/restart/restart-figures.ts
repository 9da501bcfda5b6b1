/** What clients saw of restarts, as figures and as a table. Pure. */
import { fixed, median, showSpread, spreadOf, table } from "../figures.ts";
import type { Figure } from "../results.ts";
import type { TrafficReport } from "./traffic.ts";

/** ordered: it shuts down and is started again, and a peer that can be told is told. crash: SIGKILL, and nobody is told */
export const restartKinds = ["ordered", "crash"] as const;
export type RestartKind = (typeof restartKinds)[number];

export interface RestartSample {
  peer: string;
  kind: RestartKind;
  round: number;
  report: TrafficReport;
  /** what was carried out more than once, by one life of the application or several: POST requests and messages; GET requests */
  repeated: number;
  repeatedGets: number;
  /** from the application's end to its next life's listening */
  downMs: number;
}

/** Figures of one round. "restart-gapMs": the longest that any client waited between two proper answers. */
export function restartFigures(samples: readonly RestartSample[]): Figure[] {
  return samples.flatMap(({ peer, kind, report, repeated, repeatedGets, downMs }) => {
    const figure = (metric: string, value: number): Figure => ({
      peer,
      parameters: { kind },
      metric,
      rounds: [value],
    });
    return [
      figure("restart-errors", errorsOf(report)),
      figure("restart-lostConnections", report.lostConnections),
      figure("restart-gapMs", Math.max(...report.gapsMs)),
      figure("restart-repeated", repeated),
      figure("restart-repeatedGets", repeatedGets),
      figure("restart-downMs", downMs),
      figure("restart-due", report.due),
    ];
  });
}

export function errorsOf({ errors }: TrafficReport): number {
  return Object.values(errors).reduce((sum, times) => sum + times, 0);
}

export function renderRestart(samples: readonly RestartSample[]): string[] {
  return restartKinds.flatMap((kind) => {
    const measured = samples.filter((each) => each.kind === kind);
    if (measured.length === 0) return [];
    const peers = [...new Set(measured.map(({ peer }) => peer))];
    const downMs = median(measured.map((each) => each.downMs));
    const due = median(measured.map(({ report }) => report.due));
    return [
      "",
      `Restart, ${kind}: the application is unavailable for ${downMs.toFixed(0)} ms, about ${due.toFixed(0)} requests and messages are due`,
      "",
      ...table([
        [
          "",
          "errors",
          "connections lost",
          "longest gap, ms",
          "POST or message twice",
          "GET twice",
          "errors seen",
        ],
        ...peers.map((peer) => {
          const of = measured.filter((each) => each.peer === peer);
          const cell = (pick: (sample: RestartSample) => number): string =>
            showSpread(spreadOf(of.map(pick)), fixed(0));
          return [
            peer,
            cell(({ report }) => errorsOf(report)),
            cell(({ report }) => report.lostConnections),
            cell(({ report }) => Math.max(...report.gapsMs)),
            cell(({ repeated }) => repeated),
            cell(({ repeatedGets }) => repeatedGets),
            [...new Set(of.flatMap(({ report }) => Object.keys(report.errors)))].sort().join(", ") || "-",
          ];
        }),
      ]),
    ];
  });
}
