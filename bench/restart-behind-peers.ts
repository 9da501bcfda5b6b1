/**
 * What clients see when the application behind a proxy is restarted, or dies: errors, lost connections, the longest gap, and what
 * was carried out twice. The same clients at the same rate through each peer; the application is one process that takes as
 * long to come back as it takes, for all of them. Nothing of it depends on how fast a peer is.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Program } from "./load/program.ts";
import type { RestartingApplicationAsk } from "./load/restarting-application.ts";
import { MissingPeer } from "./peers/peer.ts";
import type { BenchPiece, Plan, Run } from "./piece.ts";
import {
  type RestartKind,
  type RestartSample,
  restartFigures,
  restartKinds,
} from "./restart/restart-figures.ts";
import { type RestartPeer, type RunningRestartPeer, restartPeers } from "./restart/restart-peers.ts";
import type { TrafficAsk, TrafficReport } from "./restart/traffic.ts";
import type { Stage } from "./stage.ts";

const HTTP_CLIENTS = 20;
const WEBSOCKET_CLIENTS = 20;
/** of each client */
const EVERY_MS = 20;
/** so that some requests are under way whenever it dies */
const SERVICE_MS = 5;
const BEFORE_MS = 500;
const AFTER_MS = 300;
const RECOVER_MS_MAX = 15_000;
const SECONDS_EACH = 3;

type Application = Program<RestartingApplicationAsk, void>;
type Traffic = Program<TrafficAsk, undefined | number | TrafficReport>;
type Reporting = Pick<Run, "say" | "problem">;

/** One round: each peer, each kind of restart. A peer that is missing or fails is a problem, and the others go on. */
export async function measureRestarts(
  stage: Stage,
  { round, peers }: { round: number; peers: readonly RestartPeer[] },
  { say, problem }: Reporting,
): Promise<RestartSample[]> {
  const samples: RestartSample[] = [];
  const traffic: Traffic = await Program.start(stage, `${import.meta.dirname}/restart/traffic.ts`, {
    cpu: stage.cpus.load,
  });
  try {
    for (const peer of inTurn(peers, round)) {
      for (const kind of restartKinds) {
        const where = `restart, ${kind}, behind ${peer.name}`;
        try {
          const { sample, problems } = await restartBehind(stage, traffic, { peer, kind, round });
          samples.push(sample);
          for (const what of problems) problem(where, what);
          const { report, repeated } = sample;
          say(`${peer.name}, ${kind}: ${JSON.stringify(report.errors)}, ${repeated} carried out twice`);
        } catch (error) {
          if (stage.closed) throw error;
          const missing = error instanceof MissingPeer;
          problem(where, missing ? `missing: ${error.message}` : `not measured: ${(error as Error).message}`);
        }
      }
    }
  } finally {
    await traffic.kill();
  }
  return samples;
}

async function restartBehind(
  stage: Stage,
  traffic: Traffic,
  { peer, kind, round }: { peer: RestartPeer; kind: RestartKind; round: number },
): Promise<{ sample: RestartSample; problems: string[] }> {
  const port = await stage.freePort();
  const run = `${peer.name}-${kind}-${round}`;
  const executed = join(stage.directory, `executed-${run}`);
  const start = (): Promise<Application> =>
    Program.start(stage, `${import.meta.dirname}/load/restarting-application.ts`, {
      cpu: stage.cpus.load,
      env: { PORT: String(port), SERVICE_MS: String(SERVICE_MS), EXECUTED: executed },
    });
  let application = await start();
  let running: RunningRestartPeer | null = null;
  try {
    running = await peer.start(stage, { port });
    await traffic.ask({
      type: "start",
      port: running.port,
      http: HTTP_CLIENTS,
      websocket: WEBSOCKET_CLIENTS,
      everyMs: EVERY_MS,
      run,
    });
    await delay(BEFORE_MS);
    const isTold = kind === "ordered";
    if (isTold) {
      await running.pause?.();
      await application.ask({ type: "leave" });
    }
    const endedMs = performance.now();
    await application.kill();
    application = await start();
    const downMs = performance.now() - endedMs;
    if (isTold) await running.resume?.();
    const waiting = (await traffic.ask({ type: "recovered", msMax: RECOVER_MS_MAX })) as number;
    await delay(AFTER_MS);
    const report = (await traffic.ask({ type: "stop" })) as TrafficReport;
    const carriedOut = countLines(readFileSync(executed, "utf8"));
    const again = [...carriedOut].filter(([, times]) => times > 1).map(([id]) => id);
    const repeatedGets = again.filter((id) => id.startsWith("get-")).length;
    const invented = report.answered.filter((id) => !carriedOut.has(id)).length;
    const problems: string[] = [];
    if (waiting > 0) problems.push(`${waiting} clients had no answer ${RECOVER_MS_MAX} ms after it was back`);
    if (invented > 0) problems.push(`${invented} answers to what the application had not carried out`);
    if (report.answeredTwice > 0) problems.push(`${report.answeredTwice} answers came twice`);
    const repeated = again.length - repeatedGets;
    return { sample: { peer: peer.name, kind, round, report, repeated, repeatedGets, downMs }, problems };
  } finally {
    await application.kill();
    await running?.end();
  }
}

function inTurn<T>(all: readonly T[], round: number): T[] {
  const first = (round - 1) % Math.max(1, all.length);
  return [...all.slice(first), ...all.slice(0, first)];
}

function countLines(text: string): Map<string, number> {
  const counts = new Map<string, number>();
  for (const line of text.split("\n")) if (line !== "") counts.set(line, (counts.get(line) ?? 0) + 1);
  return counts;
}

function wanted({ peers }: Plan): RestartPeer[] {
  return restartPeers.filter(({ name }) => peers.includes(name));
}

export const restartPiece: BenchPiece = {
  name: "restart",
  title: `The application behind a peer is restarted, or dies: what ${HTTP_CLIENTS} HTTP and ${WEBSOCKET_CLIENTS} WebSocket clients see`,
  estimateSeconds: (plan) => wanted(plan).length * restartKinds.length * SECONDS_EACH,
  async measure(run) {
    const { stage, round } = run;
    return restartFigures(await measureRestarts(stage, { round, peers: wanted(run) }, run));
  },
};
