/** `kubectl drain` of a node with three applications and their clients, there and back. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Load } from "#test/load/load.ts";
import { goneIn, type LoadReport } from "#test/load/protocol.ts";
import type { BenchPiece, Run } from "../piece.ts";
import { KUBE } from "../report/kube-goals.ts";
import type { Figure } from "../results.ts";
import {
  APPLICATIONS,
  type Application,
  type KubeLab,
  type Node,
  OPEN_SECONDS,
  type SharedLab,
} from "./laboratory.ts";

const INTERVAL_MS = 25;
/** on both sides of the drain */
const AROUND_MS = 1_000;
const WAYS: readonly [Node, Node][] = [
  ["a", "b"],
  ["b", "a"],
];

export function drainPiece(shared: SharedLab): BenchPiece {
  const sessions = APPLICATIONS.reduce((sum, application) => sum + application.sessions, 0);
  return {
    name: `${KUBE}drain`,
    title: `kubectl drain of a node with ${APPLICATIONS.length} applications and ${sessions} clients, there and back`,
    estimateSeconds: () => OPEN_SECONDS + 90,
    async measure(run) {
      const lab = await shared.open(run);
      const loads = new Map<Application, Load>();
      try {
        for (const application of APPLICATIONS)
          loads.set(
            application,
            await lab.clientsOf(application, { sessions: application.sessions, intervalMs: INTERVAL_MS }),
          );
        const figures: Figure[] = [];
        for (const [from, to] of WAYS) figures.push(...(await drain(run, lab, loads, from, to)));
        return figures;
      } finally {
        await Promise.all([...loads.values()].map((load) => load.stop()));
      }
    },
  };
}

/** @throws Error it failed, or a move in it */
async function drain(
  run: Run,
  lab: KubeLab,
  loads: ReadonlyMap<Application, Load>,
  from: Node,
  to: Node,
): Promise<Figure[]> {
  const { stage, cluster } = lab;
  const pods = new Map<string, Application>();
  for (const application of APPLICATIONS)
    pods.set((await stage.servingPod(application.name, from)).metadata.name, application);
  for (const load of loads.values()) await load.mark();
  await sleep(AROUND_MS);
  const startedMs = performance.now();
  const sinceMs = performance.timeOrigin + startedMs;
  const printed: string[] = [];
  const status = await stage.ended(stage.drain(from), (line) => void printed.push(line));
  const tookMs = performance.now() - startedMs;
  if (status !== 0) throw new Error(`kubectl drain ${from} ended with ${status}: ${printed.at(-1)}`);
  const moves = await lab.migrationsSince(sinceMs);
  for (const { name } of APPLICATIONS) await stage.servingPod(name, to);
  await cluster.kubectl(["uncordon", from]);
  await sleep(AROUND_MS);
  const reports = new Map<Application, LoadReport>();
  for (const [application, load] of loads) reports.set(application, await load.report());

  const figure = (metric: string, value: number, parameters: Figure["parameters"] = {}): Figure => ({
    ...{ peer: "holdfast", parameters: { node: from, ...parameters }, metric, rounds: [value] },
  });
  const all = [...reports.values()];
  const sum = (of: (report: LoadReport) => number): number =>
    all.reduce((total, report) => total + of(report), 0);
  const [lost, repeated, resets] = [
    sum((report) => report.lost + report.corrupt),
    sum((report) => report.repeated),
    sum(goneIn),
  ];
  const says = `${(tookMs / 1_000).toFixed(1)} s, ${lost} lost, ${repeated} repeated, ${resets} reset`;
  run.say(`drain of ${from}: ${says}`);
  if (lost + repeated + resets > 0)
    run.problem(`drain of ${from}`, `${says}: ${all.flatMap(({ problems }) => problems).join("; ")}`);
  const moved = moves.flatMap(({ createdMs, migration, holdMs }): Figure[] => {
    const application = pods.get(migration.spec.pod);
    const report = application === undefined ? undefined : reports.get(application);
    if (application === undefined || report === undefined) return [];
    const of = { application: application.name };
    return [
      figure("createdToHoldMs", report.waitingSinceMs - createdMs, of),
      figure("holdMs", holdMs, of),
      figure("blackoutMs", report.blackoutMs.p50, of),
    ];
  });
  if (moved.length / 3 !== APPLICATIONS.length)
    run.problem(
      `drain of ${from}`,
      `${moved.length / 3} of ${APPLICATIONS.length} pods moved: the others were ended, and made anew`,
    );
  return [
    ...[
      figure("tookMs", tookMs),
      figure("lost", lost),
      figure("repeated", repeated),
      figure("resets", resets),
    ],
    ...moved,
  ];
}
