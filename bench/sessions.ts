/**
 * What open, idle sessions cost each peer, as they grow from 10 to as many as RLIMIT_NOFILE allows: its own memory, and the
 * messages a second of 32 active connections beside them. A session has exchanged one message and then says nothing.
 *
 * Memory is what is anonymous in the peer's process (Pss_Anon of smaps_rollup, proc(5)): not its program, not the kernel's
 * socket buffers; as it is, garbage included (idle.ts has Holdfast's after a collection too). Every peer is started anew for
 * it in each round, and has carried messages before the first reading.
 */
import { existsSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { type EchoApplication, startEcho } from "./applications.ts";
import { thousands } from "./figures.ts";
import { agree, sessionsMax, steadyBytes } from "./idle.ts";
import type { Held, Hold, Load, LoadReport } from "./load/load.ts";
import { CpuWatch } from "./load/load-cpu.ts";
import { Program } from "./load/program.ts";
import { MissingPeer, type Peer, type RunningPeer } from "./peers/peer.ts";
import { peers } from "./peers/peers.ts";
import type { BenchPiece, Plan, Run } from "./piece.ts";
import type { Figure } from "./results.ts";
import { CpuMeter, type Stage } from "./stage.ts";
import { carrying, limitedByLoad } from "./throughput.ts";

type SessionKind = "tcp" | "websocket";

const ACTIVE_CONNECTIONS = 32;
const STEPS = [10, 100, 1_000, 10_000];
const STEPS_QUICK = [100, 1_000];
/** fewer are lost in the noise of the process */
const SESSIONS_TOLD_MIN = 1_000;
const WARM_SECONDS = 1;
const START_SECONDS = 2;
/** to open them, and for the memory to settle */
const STEP_SECONDS = 2;
const END_CHECK_MS = 10;

/** One for each kind of sessions. */
export const sessionPieces: readonly BenchPiece[] = (["tcp", "websocket"] as const).map((kind) => ({
  name: kind === "tcp" ? "idle-tcp" : "idle-ws",
  title: `Idle ${kind === "tcp" ? "TCP" : "WebSocket"} sessions: memory of the process, and messages a second beside them`,
  estimateSeconds: (plan: Plan) =>
    carrying(plan, kind) * (START_SECONDS + stepsOf(plan).length * (plan.seconds + STEP_SECONDS)),
  measure: (run: Run) => measureSessions(kind, run),
}));

/** One round over all peers that carry such sessions. */
async function measureSessions(kind: SessionKind, run: Run): Promise<Figure[]> {
  const { stage } = run;
  const application = await startEcho(stage, kind);
  const generator = await startGenerator<Load, LoadReport>(stage);
  const figures: Figure[] = [];
  try {
    for (const peer of inTurn(kind, run)) {
      try {
        figures.push(...(await measurePeer(peer, { run, kind, application, generator })));
      } catch (error) {
        if (stage.closed) throw error;
        const what = (error as Error).message;
        run.problem(`${peer.name}, idle ${kind}, round ${run.round}`, `not measured: ${what}`);
        // Its sessions would be counted with the next one's.
        await agree(0, async () => [await application.sessions()]);
      }
    }
    return figures;
  } finally {
    await Promise.all([generator.kill(), application.end()]);
  }
}

function inTurn(kind: SessionKind, { peers: wanted, round }: Run): Peer[] {
  const those = peers.filter(
    ({ name, carries }) => wanted.includes(name) && carries?.includes(kind) !== false,
  );
  const first = (round - 1) % Math.max(1, those.length);
  return [...those.slice(first), ...those.slice(0, first)];
}

async function measurePeer(
  peer: Peer,
  at: {
    run: Run;
    kind: SessionKind;
    application: EchoApplication;
    generator: Program<Load, LoadReport>;
  },
): Promise<Figure[]> {
  const { run, kind, application, generator } = at;
  const { stage } = run;
  let running: RunningPeer;
  try {
    running = await peer.start(stage, application);
  } catch (error) {
    // That it is missing is said once, with the peers.
    if (error instanceof MissingPeer) return [];
    throw error;
  }
  const { port, pid } = running;
  const holder = await startGenerator<Hold, Held>(stage);
  const figures: Figure[] = [];
  const figure = (sessions: number, metric: string, value: number): void => {
    figures.push({ peer: peer.name, parameters: { sessions }, metric, rounds: [value] });
  };
  const active = (seconds: number): Promise<LoadReport> =>
    generator.ask({ protocol: kind, port, connections: ACTIVE_CONNECTIONS, perSecond: null, seconds });
  const settled = (sessions: number): Promise<void> =>
    agree(sessions, async () => [await application.sessions()]);
  try {
    await active(WARM_SECONDS);
    await settled(0);
    const withoutBytes = pid === null ? 0 : await steadyBytes(pid);
    for (const sessions of stepsOf(run)) {
      const where = `${peer.name}, ${sessions} idle ${kind}, round ${run.round}`;
      const { lost } = await holder.ask({ protocol: kind, port, hold: sessions });
      if (lost > 0) run.problem(where, `${lost} sessions were lost`);
      await settled(sessions - lost);
      let perSessionText = "";
      if (pid !== null) {
        const bytes = await steadyBytes(pid);
        const perSession = (bytes - withoutBytes) / sessions;
        figure(sessions, "memoryBytes", bytes);
        if (sessions >= SESSIONS_TOLD_MIN) figure(sessions, "memoryBytesPerSession", perSession);
        perSessionText = `${(perSession / 1024).toFixed(1)} kB each, `;
      }
      const load = new CpuWatch(stage.cpus.load);
      const cpu = pid === null ? null : new CpuMeter(pid);
      const report = await active(run.seconds);
      const [busy, loadBusy] = [cpu?.read().busy ?? null, load.read()];
      if (report.errors > 0) run.problem(where, `${report.errors} errors: ${report.problem}`);
      figure(sessions, "messagesPerSecond", report.perSecond);
      if (busy !== null) figure(sessions, "peerCpuShare", busy);
      figure(sessions, "loadCpuShare", loadBusy);
      run.say(
        `${peer.name}, ${sessions} idle: ${perSessionText}${thousands(report.perSecond)}/s beside` +
          limitedByLoad({ busy, loadBusy }),
      );
      await settled(sessions - lost);
    }
    return figures;
  } finally {
    await holder.kill();
    await settled(0).finally(() => end(pid));
  }
}

/** Of a peer of this piece only. Resolves when it is gone, and its memory with it. */
async function end(pid: number | null): Promise<void> {
  if (pid === null || !existsSync(`/proc/${pid}`)) return;
  process.kill(pid, "SIGKILL");
  while (existsSync(`/proc/${pid}`)) await delay(END_CHECK_MS);
}

function startGenerator<Ask, Answer>(stage: Stage): Promise<Program<Ask, Answer>> {
  return Program.start(stage, `${import.meta.dirname}/load/generator.ts`, { cpu: stage.cpus.load });
}

/** As far as descriptors go, in steps that rise. */
function stepsOf({ quick }: Plan): number[] {
  const most = sessionsMax();
  return [...new Set((quick ? STEPS_QUICK : STEPS).map((step) => Math.min(step, most)))];
}
