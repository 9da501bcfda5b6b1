/**
 * What a peer adds to a request's latency at fixed rates: our generator, open loop. Added: the percentile through the peer
 * less the same percentile of the direct way in the same round.
 *
 * As pieces of `npm run bench` it gives whole curves (`latencyUs`; its value of a round is the median), and how late the
 * generator itself was: a curve is worth nothing below that.
 */
import { type ApplicationKind, contendersBefore, tellProblems } from "./applications.ts";
import type { Contenders, Sample } from "./contenders.ts";
import type { LoadReport } from "./load/load.ts";
import type { BenchPiece, Plan, Run } from "./piece.ts";
import type { Figure } from "./results.ts";
import { carrying } from "./throughput.ts";

const RATES_PER_SECOND = [1_000, 5_000, 15_000];
/** settling, and opening connections */
const AROUND_SECONDS = 0.2;

interface LatencyLoad {
  name: string;
  title: string;
  application: ApplicationKind;
  /** which rates at which numbers of connections */
  loads: { connections: number; rates: number[] }[];
}

const everywhere = [1, 32, 256].map((connections) => ({ connections, rates: RATES_PER_SECOND }));
const LATENCY_LOADS: LatencyLoad[] = [
  {
    name: "latency-tcp-echo",
    title: "Latency of TCP messages of 64 bytes at fixed rates, from when each was due",
    application: "tcp",
    loads: everywhere,
  },
  {
    name: "latency-http",
    title: "Latency of HTTP requests at fixed rates, from when each was due",
    application: "http",
    loads: everywhere,
  },
  {
    name: "latency-ws-echo",
    title: "Latency of WebSocket messages of 64 bytes at fixed rates, from when each was due",
    application: "websocket",
    loads: [{ connections: 32, rates: RATES_PER_SECOND }],
  },
];
const QUICK_LOADS: LatencyLoad["loads"] = [{ connections: 32, rates: [5_000] }];

/** One for each kind of load. */
export const latencyPieces: readonly BenchPiece[] = LATENCY_LOADS.map(
  ({ name, title, application, loads }) => ({
    name,
    title,
    estimateSeconds: (plan: Plan) =>
      carrying(plan, application) *
      (plan.quick ? QUICK_LOADS : loads).reduce((sum, { rates }) => sum + rates.length, 0) *
      (plan.seconds + AROUND_SECONDS),
    measure: async (run: Run): Promise<Figure[]> => {
      const contenders = await contendersBefore(application, run);
      const figures: Figure[] = [];
      for (const { connections, rates } of run.quick ? QUICK_LOADS : loads) {
        const { round, seconds } = run;
        const samples = await measureLatency(contenders, { round, connections, rates, seconds }, run.say);
        figures.push(...samples.flatMap(latencyFigures));
      }
      tellProblems(contenders, run);
      return figures;
    },
  }),
);

export interface LatencySample extends Sample {
  /** requests a second that were due */
  perSecond: number;
  report: LoadReport;
}

/** One round over all peers and rates. */
export async function measureLatency(
  contenders: Contenders,
  options: { round: number; connections: number; rates: number[]; seconds: number },
  say: (line: string) => void,
): Promise<LatencySample[]> {
  const { round, connections, seconds } = options;
  const samples: LatencySample[] = [];
  for (const perSecond of options.rates) {
    for (const peer of contenders.inTurn(round)) {
      const at = { round, peer, connections, load: `${perSecond}/s` };
      const measured = await contenders.measure(at, (port) =>
        contenders.generate({ port, connections, perSecond, seconds }),
      );
      if (measured === null) continue;
      const { sample, report } = measured;
      samples.push({ ...sample, perSecond, report });
      say(`${peer.name}, ${perSecond}/s: p50 ${report.latencyUs.p50} µs, p99 ${report.latencyUs.p99} µs`);
    }
  }
  return samples;
}

/** Whole curves, and how late the generator was. */
export function latencyFigures({
  peer,
  connections,
  perSecond,
  cpuUsPerRequest,
  loadBusy,
  report,
}: LatencySample): Figure[] {
  const figure = (metric: string, value: number): Figure => ({
    peer,
    parameters: { connections, perSecond },
    metric,
    rounds: [value],
  });
  return [
    { ...figure("latencyUs", report.latencyUs.p50), percentiles: [report.curve] },
    figure("unanswered", report.unanswered),
    figure("generatorLateP99Us", report.latenessUs.p99),
    ...(cpuUsPerRequest === null ? [] : [figure("cpuUsPerRequest", cpuUsPerRequest)]),
    figure("loadCpuShare", loadBusy),
  ];
}
