/**
 * As much of one load as each peer carries, closed loop: requests, messages, connections or megabytes a second, what of the
 * peer's CPU each of them costs, and whose CPU was full. Where it was the load's (generator and application share one),
 * the peer could do more than its figure says.
 */
import { type ApplicationKind, contendersBefore, tellProblems } from "./applications.ts";
import type { Sample } from "./contenders.ts";
import { thousands } from "./figures.ts";
import type { Load, LoadReport } from "./load/load.ts";
import { runWrk, type WrkReport, wrkVersion } from "./load/wrk.ts";
import { peers } from "./peers/peers.ts";
import type { BenchPiece, Plan, Run } from "./piece.ts";
import type { Figure } from "./results.ts";

const BULK_BYTES = 4 * 2 ** 20;
const BYTES_PER_MEGABYTE = 1e6;
/** from here on a CPU is full */
const FULL_SHARE = 0.95;
/** a measurement and what comes before and after it, beyond its time; a set of contenders that is started */
const AROUND_SECONDS = 0.2;
const START_SECONDS = 1;

interface Throughput {
  name: string;
  title: string;
  application: ApplicationKind;
  /** what it is measured in: "messages" is messagesPerSecond, and cpuUsPerMessage */
  unit: "requests" | "messages" | "connections" | "megabytes";
  connections: number[];
  quick: number[];
  load?: Pick<Load, "churn" | "bulk">;
  /** by wrk, where it is installed */
  wrk?: true;
}

const MAXIMA: Throughput[] = [
  {
    name: "http",
    title: "HTTP/1.1, kept alive: requests a second, and what each costs",
    application: "http",
    unit: "requests",
    connections: [1, 32, 256],
    quick: [32],
    wrk: true,
  },
  {
    name: "tcp-echo",
    title: "TCP: messages of 64 bytes, there and back",
    application: "tcp",
    unit: "messages",
    connections: [1, 32, 256],
    quick: [32],
  },
  {
    name: "ws-echo",
    title: "WebSocket: messages of 64 bytes, there and back",
    application: "websocket",
    unit: "messages",
    connections: [1, 32, 256],
    quick: [32],
  },
  ...(["down", "up"] as const).map(
    (direction): Throughput => ({
      name: `bulk-${direction}`,
      title: `Bulk ${direction === "down" ? "download" : "upload"}: HTTP bodies of 4 MiB, one after the other`,
      application: "bulk",
      unit: "megabytes",
      connections: [1, 8],
      quick: [8],
      load: { bulk: { direction, bytes: BULK_BYTES } },
    }),
  ),
  {
    name: "churn",
    title: "Churn: connect, one HTTP request, close",
    application: "http",
    unit: "connections",
    connections: [1, 32],
    quick: [32],
    load: { churn: true },
  },
];

/** One for each load. */
export const throughputPieces: readonly BenchPiece[] = MAXIMA.map((each) => ({
  name: each.name,
  title: each.title,
  estimateSeconds: (plan: Plan) =>
    carrying(plan, each.application) *
    (connectionsOf(each, plan).length * (plan.seconds + AROUND_SECONDS) + START_SECONDS),
  measure: (run: Run) => measureThroughput(each, run),
}));

/** How many of the peers that are wanted carry what an application speaks. */
export function carrying({ peers: wanted }: Plan, application: ApplicationKind): number {
  const protocol = application === "bulk" ? "http" : application;
  return peers.filter(({ name, carries }) => wanted.includes(name) && carries?.includes(protocol) !== false)
    .length;
}

/** One round over all peers that carry it. */
async function measureThroughput(of: Throughput, run: Run): Promise<Figure[]> {
  const contenders = await contendersBefore(of.application, run);
  const wrk = of.wrk !== undefined && wrkVersion() !== null;
  if (of.wrk !== undefined && !wrk)
    run.problem(
      of.name,
      "wrk is missing, it is our own generator instead; scripts/setup.sh bench installs it",
    );
  const figures: Figure[] = [];
  for (const connections of connectionsOf(of, run)) {
    for (const peer of contenders.inTurn(run.round)) {
      const { round, seconds } = run;
      const at = { round, peer, connections, load: of.name };
      const measured = await contenders.measure<LoadReport | WrkReport>(at, (port) =>
        wrk
          ? runWrk(contenders.stage, { port, connections, seconds })
          : contenders.generate({ port, connections, perSecond: null, seconds, ...of.load }),
      );
      if (measured === null) continue;
      const { sample, report } = measured;
      const value =
        "perSecondOfAll" in report && of.unit === "megabytes"
          ? (report.perSecondOfAll * BULK_BYTES) / BYTES_PER_MEGABYTE
          : report.perSecond;
      figures.push(...figuresOf(sample, of.unit, value));
      const shown = of.unit === "megabytes" ? `${Math.round(value)} MB/s` : `${thousands(value)}/s`;
      run.say(`${peer.name}, ${connections} connections: ${shown}${limitedByLoad(sample)}`);
    }
  }
  tellProblems(contenders, run);
  return figures;
}

function figuresOf(sample: Sample, unit: Throughput["unit"], value: number): Figure[] {
  const { peer, connections, cpuUsPerRequest, busy, loadBusy } = sample;
  const figure = (metric: string, round: number): Figure => ({
    peer,
    parameters: { connections },
    metric,
    rounds: [round],
  });
  const perRequest = unit === "megabytes" ? BULK_BYTES / BYTES_PER_MEGABYTE : 1;
  const one = { requests: "Request", messages: "Message", connections: "Connection", megabytes: "Megabyte" };
  return [
    figure(`${unit}PerSecond`, value),
    ...(cpuUsPerRequest === null ? [] : [figure(`cpuUsPer${one[unit]}`, cpuUsPerRequest / perRequest)]),
    ...(busy === null ? [] : [figure("peerCpuShare", busy)]),
    figure("loadCpuShare", loadBusy),
  ];
}

/** Said where the peer may be able to do more. Of the direct way the load is always the limit. */
export function limitedByLoad({ busy, loadBusy }: Pick<Sample, "busy" | "loadBusy">): string {
  const limited = busy !== null && busy < FULL_SHARE && loadBusy >= FULL_SHARE;
  return limited ? ` (the load's CPU was full, the peer's ${Math.round(busy * 100)} %: it may do more)` : "";
}

function connectionsOf(of: Throughput, { quick }: Plan): number[] {
  return quick ? of.quick : of.connections;
}
