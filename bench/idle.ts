/**
 * What idle WebSocket sessions cost the proxy: its own memory as they grow in steps, and the requests a second of 32
 * active connections beside them. Its own is what is anonymous in its process (Pss_Anon of smaps_rollup, proc(5)): not Node's
 * program, which it shares with others, and not the kernel's socket buffers.
 *
 * Every session has exchanged one message. Before the first reading the proxy has carried requests, so that warmed-up
 * code is not charged to sessions. Each step is read twice: as it is, and after garbage collection, which the proxy is
 * made to do by a signal. A step is settled when proxy, application and clients agree on the number of sessions and the
 * memory has stopped changing.
 */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { ProxyProcess } from "#test/support/proxy-lab.ts";
import { thousands } from "./figures.ts";
import { Backend } from "./load/backend.ts";
import type { IdleApplicationState } from "./load/idle-application.ts";
import type { IdleClientsAsk } from "./load/idle-clients.ts";
import type { Load, LoadReport } from "./load/load.ts";
import { Program } from "./load/program.ts";
import { startGateway } from "./peers/gateway.ts";
import { type HoldfastPort, startHoldfast } from "./peers/holdfast.ts";
import type { BenchPiece, Plan } from "./piece.ts";
import type { Figure } from "./results.ts";
import type { Stage } from "./stage.ts";

/** gateway: its process, before a proxy that observes nothing */
export type IdleKind = "tcp" | "websocket" | "replay" | "gateway";

const PORT: Record<IdleKind, Pick<HoldfastPort, "protocol" | "continuity">> = {
  tcp: { protocol: "tcp", continuity: "transplant" },
  websocket: { protocol: "websocket", continuity: "transplant" },
  replay: { protocol: "websocket", continuity: "replay" },
  gateway: { protocol: "tcp", continuity: "transplant" },
};
const STEPS = [10, 100, 1_000, 10_000];
const START_SECONDS = 3;
/** to open them, and for the memory to settle, twice */
const STEP_SECONDS = 3;
const ACTIVE_CONNECTIONS = 32;
const WARM_SECONDS = 1;
const STEADY_CHECK_MS = 200;
const STEADY_MS_MAX = 5_000;
const STEADY_BYTES = 128 * 1024;
const AGREE_MS_MAX = 30_000;
/** descriptors of the proxy that are not sessions' */
const DESCRIPTORS_RESERVED = 200;
const COLLECT = "--expose-gc --import=data:text/javascript,process.on('SIGUSR2',()=>gc())";

export interface IdleSample {
  round: number;
  kind: IdleKind;
  sessions: number;
  /** of the proxy, as it is and after garbage collection */
  bytes: number;
  collectedBytes: number;
  /** beyond what it had without sessions */
  bytesPerSession: number;
  collectedBytesPerSession: number;
  /** beside the idle ones, by our generator */
  activePerSecond: number;
  /** what a session of the proxy says it carries */
  protocol: string;
  /** clients that did not stay connected */
  lost: number;
}

/** Most sessions this machine lets a proxy have: two descriptors each, RLIMIT_NOFILE in all. */
export function sessionsMax(): number {
  const limit = Number(
    /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1] ??
      Number.POSITIVE_INFINITY,
  );
  return Math.floor((limit - DESCRIPTORS_RESERVED) / 2);
}

/** One proxy from no session to the last step. @param steps numbers of sessions, rising */
export async function measureIdle(
  stage: Stage,
  backend: Backend,
  options: { round: number; kind: IdleKind; steps: number[]; seconds: number },
  say: (line: string) => void,
): Promise<IdleSample[]> {
  const { round, kind } = options;
  const program = <Ask, Answer>(name: string): Promise<Program<Ask, Answer>> =>
    Program.start(stage, `${import.meta.dirname}/load/${name}.ts`, { cpu: stage.cpus.load });
  const application = await program<"state", IdleApplicationState>("idle-application");
  const clients = await program<IdleClientsAsk, { open: number; lost: number }>("idle-clients");
  const generator = await program<Load, LoadReport>("generator");
  const { port: applicationPort } = await application.ask("state");
  const asked = {
    name: `idle-${kind}-${round}`,
    ports: [
      { to: applicationPort, ...PORT[kind] },
      { to: backend.port, protocol: "http" as const, continuity: "transplant" as const },
    ],
    nodeOptions: COLLECT,
  };
  const { proxy, ports, pid, end } = await startMeasured(stage, kind, asked);
  const [idlePort, activePort] = ports as [number, number];
  const active = (seconds: number): Promise<LoadReport> =>
    generator.ask({
      protocol: "http",
      port: activePort,
      connections: ACTIVE_CONNECTIONS,
      perSecond: null,
      seconds,
    });
  const collected = async (): Promise<number> => {
    process.kill(pid, "SIGUSR2");
    // Answered in a later turn of its event loop than the signal's.
    await proxy.status();
    return steadyBytes(pid);
  };
  const samples: IdleSample[] = [];
  try {
    await active(WARM_SECONDS);
    await proxy.untilSessions(0);
    const without = await collected();
    for (const sessions of options.steps) {
      const { lost } = await clients.ask({ port: idlePort, sessions });
      await agree(sessions - lost, async () => [
        (await proxy.status()).sessions,
        (await application.ask("state")).sessions,
      ]);
      const bytes = await steadyBytes(pid);
      const collectedBytes = await collected();
      const { perSecond } = await active(options.seconds);
      const [session] = await proxy.sessions();
      samples.push({
        round,
        kind,
        sessions,
        bytes,
        collectedBytes,
        bytesPerSession: (bytes - without) / sessions,
        collectedBytesPerSession: (collectedBytes - without) / sessions,
        activePerSecond: perSecond,
        protocol: session?.protocol ?? "nothing",
        lost,
      });
      say(
        `${kind}, ${sessions} idle: ${((collectedBytes - without) / 1024).toFixed(0)} kB more, ${thousands(perSecond)}/s`,
      );
    }
    return samples;
  } finally {
    await Promise.all([end(), clients.kill(), application.kill(), generator.kill()]);
  }
}

/** @returns the process whose memory is meant, and the workload's proxy, which knows of its sessions */
async function startMeasured(
  stage: Stage,
  kind: IdleKind,
  options: { name: string; ports: HoldfastPort[]; nodeOptions: string },
): Promise<{ proxy: ProxyProcess; ports: number[]; pid: number; end(): Promise<unknown> }> {
  if (kind === "gateway") {
    const { proxy, gateway, ports } = await startGateway(stage, options);
    return {
      proxy,
      ports,
      pid: gateway.pid as number,
      end: () => Promise.all([stage.end(gateway), proxy.kill()]),
    };
  }
  const { proxy, ports } = await startHoldfast(stage, options);
  return { proxy, ports, pid: proxy.process.pid as number, end: () => proxy.kill() };
}

/** As figures, beyond what the proxy had without sessions: `collected` after garbage collection. */
export function idleFigures(samples: IdleSample[]): Figure[] {
  return samples.flatMap(({ kind, sessions, collectedBytes, collectedBytesPerSession, activePerSecond }) => {
    const figure = (metric: string, value: number): Figure => ({
      peer: `holdfast-${kind}`,
      parameters: { sessions },
      metric,
      rounds: [value],
    });
    return [
      figure("collectedBytes", collectedBytes),
      figure("collectedBytesPerSession", collectedBytesPerSession),
      figure("requestsPerSecond", activePerSecond),
    ];
  });
}

export const idlePiece: BenchPiece = {
  name: "idle-collected",
  title:
    "Idle WebSocket sessions of the proxy: its memory after garbage collection, and requests a second beside them",
  estimateSeconds: (plan) =>
    kindsOf(plan).length * (START_SECONDS + STEPS.length * (plan.seconds + STEP_SECONDS)),
  async measure(run): Promise<Figure[]> {
    const backend = await Backend.start(run.stage, `idle-backend-${run.round}`);
    const most = sessionsMax();
    const steps = [...new Set(STEPS.map((step) => Math.min(step, most)))];
    const figures: Figure[] = [];
    for (const kind of kindsOf(run)) {
      const { round, seconds } = run;
      const samples = await measureIdle(run.stage, backend, { round, kind, steps, seconds }, run.say);
      for (const { sessions, lost, protocol } of samples) {
        const where = `idle-collected, ${kind}, ${sessions} sessions, round ${round}`;
        if (lost > 0) run.problem(where, `${lost} sessions were lost`);
        if (protocol !== PORT[kind].protocol) run.problem(where, `its sessions say they are ${protocol}`);
      }
      figures.push(...idleFigures(samples));
    }
    return figures;
  },
};

function kindsOf({ quick }: Plan): IdleKind[] {
  return quick ? ["websocket"] : ["tcp", "websocket", "replay", "gateway"];
}

/** Resolves when they all say so. */
export async function agree(count: number, ask: () => Promise<number[]>): Promise<void> {
  const deadlineMs = performance.now() + AGREE_MS_MAX;
  for (;;) {
    const counts = await ask();
    if (counts.every((each) => each === count)) return;
    if (performance.now() > deadlineMs)
      throw new Error(`${counts.join(" and ")} sessions instead of ${count}`);
    await delay(STEADY_CHECK_MS);
  }
}

/** What is anonymous in a process, when it has stopped changing, or at the latest after a while. */
export async function steadyBytes(pid: number): Promise<number> {
  const deadlineMs = performance.now() + STEADY_MS_MAX;
  for (let before = anonymousBytes(pid); ; ) {
    await delay(STEADY_CHECK_MS);
    const now = anonymousBytes(pid);
    if (Math.abs(now - before) <= STEADY_BYTES || performance.now() > deadlineMs) return now;
    before = now;
  }
}

function anonymousBytes(pid: number): number {
  return Number(/^Pss_Anon:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1]) * 1024;
}
