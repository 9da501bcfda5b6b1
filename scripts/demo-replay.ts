/** `npm run demo -- --tier replay`: an application is restarted behind its clients, who notice a pause and nothing else. */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { table } from "../bench/figures.ts";
import { createLab, type LabAgent, nodeBinary, projectRoot } from "../test/lab/lab.ts";
import type { Blackout } from "../test/load/gaps.ts";
import { type Load, startLoad } from "../test/load/load.ts";
import { follow, untilAppAnswers } from "./follow.ts";
import type { Screen } from "./screen.ts";

const port = 8080;
const beforeRestartMs = 400;
const afterRestartMs = 800;

export interface RestartRow {
  sessions: number;
  /** requests and messages answered */
  answers: number;
  lost: number;
  repeated: number;
  /** answers with an error, or with what was not asked for */
  failed: number;
  resets: number;
  blackoutMs: Blackout;
  phasesMs: Record<string, number>;
  /** held clients → the application listens again */
  pauseMs: number;
  replayed: number;
}

interface RestartResult {
  outcome: string;
  reason: string | null;
  pauseMs: number;
  replayed: number;
  phasesMs: Record<string, number>;
}

export function isPerfectRestart({ lost, repeated, failed, resets }: RestartRow): boolean {
  return lost === 0 && repeated === 0 && failed === 0 && resets === 0;
}

export async function demoReplay(
  options: { sessions: number; restarts: number; intervalMs: number },
  screen: Screen,
  rows: RestartRow[],
): Promise<void> {
  const lab = await createLab({ nodes: ["a"], prefix: "hfdemo" });
  try {
    const { address } = lab.place("a");
    screen.live("  starting Redis, a node and its agent");
    const agent = await lab.startAgent("a", {
      workloads: [
        {
          name: "chat",
          start: true,
          container: {
            command: [nodeBinary, "server.js"],
            cwd: join(projectRoot, "test/apps/lives"),
            env: { PORT: "9000" },
            rootfs: "host",
          },
          ports: [{ listen: port, upstream: "127.0.0.1:9000", continuity: "replay" }],
        },
      ],
    });
    await untilAppAnswers(lab, `http://${address}:${port}/`);
    const load = await startLoad(lab, "lives", {
      target: { address, port },
      sessions: options.sessions,
      intervalMs: options.intervalMs,
    });
    screen.line(`  Redis, node a, the application and ${options.sessions} clients are up`);
    for (let index = 0; index < options.restarts; index++) rows.push(await demoRestart(agent, load, screen));
    await load.stop();
  } finally {
    await lab.close();
  }
  screen.line();
}

async function demoRestart(agent: LabAgent, load: Load, screen: Screen): Promise<RestartRow> {
  screen.line(`  ${screen.paint("cyan", "holdfast restart chat")}`);
  await load.mark();
  await sleep(beforeRestartMs);
  const { restart } = await follow<{ restart: RestartResult }>(
    agent,
    "/v1/workloads/chat/restart",
    {},
    (event) => {
      if (event.state === "start") screen.live(`    ${event.phase}`);
      else
        screen.line(
          `    ${screen.paint("green", "✔")} ${event.phase.padEnd(22)} ${(event.ms ?? 0).toFixed(1).padStart(9)} ms`,
        );
    },
  );
  await sleep(afterRestartMs);
  const report = await load.report();
  for (const problem of report.problems) process.stderr.write(`    ${problem}\n`);
  if (restart.outcome !== "restarted") throw new Error(restart.reason ?? restart.outcome);
  const row: RestartRow = {
    sessions: report.sessions,
    answers: report.messages,
    lost: report.lost,
    repeated: report.repeated,
    failed: report.corrupt,
    resets: report.resets,
    blackoutMs: report.blackoutMs,
    phasesMs: restart.phasesMs,
    pauseMs: restart.pauseMs,
    replayed: restart.replayed,
  };
  const verdict = `${row.lost} lost, ${row.repeated} repeated, ${row.failed} failed, ${row.resets} resets`;
  screen.line(
    `    ${report.messages.toLocaleString("en")} answers checked: ${screen.paint(isPerfectRestart(row) ? "green" : "red", verdict)}; ` +
      `longest pause a client saw: p50 ${report.blackoutMs.p50} ms, max ${report.blackoutMs.max} ms`,
  );
  return row;
}

/** A column for each restart, a row for each figure. */
export function restartTable(rows: RestartRow[]): string[] {
  const figure = (name: string, of: (row: RestartRow) => string | number) => [
    name,
    ...rows.map((row) => String(of(row))),
  ];
  return table([
    figure("restart", (row) => rows.indexOf(row) + 1),
    figure("sessions", ({ sessions }) => sessions),
    figure("answers", ({ answers }) => answers),
    figure("lost", ({ lost }) => lost),
    figure("repeated", ({ repeated }) => repeated),
    figure("failed", ({ failed }) => failed),
    figure("resets", ({ resets }) => resets),
    figure("blackout p50 ms", ({ blackoutMs }) => blackoutMs.p50.toFixed(1)),
    figure("blackout max ms", ({ blackoutMs }) => blackoutMs.max.toFixed(1)),
    figure("application away ms", ({ pauseMs }) => pauseMs.toFixed(1)),
  ]);
}
