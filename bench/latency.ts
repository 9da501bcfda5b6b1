/**
 * What a peer adds to a request's latency at fixed rates: our generator, open loop. Added: the percentile through the peer
 * less the same percentile of the direct way in the same round.
 */
import { showSpread, spreadOf, table, thousands } from "./figures.ts";
import type { LoadReport, Percentiles } from "./load/load.ts";
import type { Relays, Sample } from "./relays.ts";

const PERCENTILES = ["p50", "p90", "p99", "p999"] as const;
const DIRECT = "direct";

export interface LatencySample extends Sample {
  /** requests a second that were due */
  perSecond: number;
  report: LoadReport;
}

/** One round over all peers and rates. */
export async function measureLatency(
  relays: Relays,
  options: { round: number; connections: number; rates: number[]; seconds: number },
  say: (line: string) => void,
): Promise<LatencySample[]> {
  const { round, connections, seconds } = options;
  const samples: LatencySample[] = [];
  for (const perSecond of options.rates) {
    for (const peer of relays.inTurn(round)) {
      const at = { round, peer, connections, load: `${perSecond}/s` };
      const measured = await relays.measure(at, (port) =>
        relays.generate({ port, connections, perSecond, seconds }),
      );
      if (measured === null) continue;
      const { sample, report } = measured;
      samples.push({ ...sample, perSecond, report });
      say(`${peer.name}, ${perSecond}/s: p50 ${report.latencyUs.p50} µs, p99 ${report.latencyUs.p99} µs`);
    }
  }
  return samples;
}

export function renderLatency(samples: LatencySample[]): string[] {
  return [...new Set(samples.map(({ perSecond }) => perSecond))].flatMap((rate) => {
    const at = samples.filter(({ perSecond }) => perSecond === rate);
    const direct = at.filter(({ peer }) => peer === DIRECT);
    const cell = (of: LatencySample[], pick: (sample: LatencySample) => number | null): string =>
      showSpread(spreadOf(of.map(pick).filter((value) => value !== null)), micros);
    const added =
      (name: keyof Percentiles) =>
      (sample: LatencySample): number | null => {
        const yardstick = direct.find(({ round }) => round === sample.round);
        return yardstick === undefined
          ? null
          : sample.report.latencyUs[name] - yardstick.report.latencyUs[name];
      };
    return [
      "",
      `Latency at ${thousands(rate)} requests/s over ${at[0]?.connections} connections, from when each was due; µs added to the direct way`,
      "",
      ...table([
        ["", ...PERCENTILES.map((name) => name.replace("p999", "p99.9")), ""],
        ...[...new Set(at.map(({ peer }) => peer))].map((peer) => {
          const of = at.filter((sample) => sample.peer === peer);
          return [
            peer === DIRECT ? "direct (in full)" : peer,
            ...PERCENTILES.map((name) =>
              cell(of, peer === DIRECT ? (sample) => sample.report.latencyUs[name] : added(name)),
            ),
            saturation(of),
          ];
        }),
        [
          "generator late by",
          ...PERCENTILES.map((name) => cell(at, (sample) => sample.report.latenessUs[name])),
          "",
        ],
      ]),
    ];
  });
}

/** A peer that is full has no latency, only a queue that grows as long as the run lasts. */
function saturation(samples: LatencySample[]): string {
  const unanswered = samples.reduce((sum, { report }) => sum + report.unanswered, 0);
  if (unanswered > 0) return `full: ${unanswered} not answered`;
  return samples.some(({ perSecond, report }) => report.perSecond < perSecond * 0.98) ? "full" : "";
}

function micros(us: number): string {
  return Math.abs(us) >= 10_000 ? `${Math.round(us / 1000)}ms` : String(Math.round(us));
}
