/**
 * Two nodes with three workloads of the same application: one that bare CRIU dumps and restores in place, one that moves
 * in takeover mode, one in forward mode. Each is measured under the same clients.
 *
 * Clients are of two kinds. The *steady* ones send every 10 ms whatever happens, so that their longest gap between two
 * answers is the blackout to 10 ms. The *crowd*, all the others, sends as often as this machine can bear: most of its clients
 * have nothing on its way when the blackout begins, some send in the worst moment, and of each it is known only that its
 * pause was at least its longest gap less the interval of its messages.
 */
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { MoveResult } from "#control/api/migration.ts";
import { createLab, type Lab, nodeBinary, projectRoot } from "#test/lab/lab.ts";
import type { Blackout } from "#test/load/gaps.ts";
import { type Load, startLoad } from "#test/load/load.ts";
import { goneIn, type LoadReport } from "#test/load/protocol.ts";
import { type BareRun, runBareCriu } from "../bare-criu.ts";
import { median } from "../figures.ts";

export const modes = ["bare", "takeover", "forward"] as const;
export type Mode = (typeof modes)[number];
export type Downstream = Exclude<Mode, "bare">;

export interface CutoverSample extends SeenByClients {
  mode: Mode;
  sessions: number;
  memoryMb: number;
  bare: BareRun | null;
  move: MoveResult | null;
}

/** What clients see of a cutover. */
export interface SeenByClients {
  /** of the steady clients: the longest gap between two answers */
  blackoutMs: Blackout;
  /** of the crowd: the longest gap less the interval of its messages, so the least it can have been; null: there is none */
  crowdPauseMs: Blackout | null;
  lost: number;
  repeated: number;
  resets: number;
  /** the first few things that went wrong for clients */
  problems: string[];
  /** when the steady clients began to wait, Unix time */
  waitingSinceMs: number;
}

export interface RowSample {
  mode: Downstream;
  moves: number;
  /** of each move, in order: from the hold to the release */
  holdMs: number[];
  /** of both agents and proxies together, after the second move and after the last */
  rssBytes: { first: number; last: number };
  descriptors: { first: number; last: number };
}

const VIP = "10.99.0.50";
const STEADY_CLIENTS = 20;
const STEADY_INTERVAL_MS = 10;
/** more than a client sends in any blackout: it goes on sending, as one that waits for nobody */
const STEADY_WINDOW = 10_000;
const CROWD_INTERVAL_MS_MIN = 25;
/** of the whole crowd */
const CROWD_MESSAGES_PER_MS = 8;
const WARM_MS = 700;
/** on both sides of the move */
const AROUND_MS = 400;
const DRAIN_MS_MAX = 30_000;
const DEADLINE_MS = 60_000;
const START_MS_MAX = 120_000;
const START_CHECK_MS = 100;
const ROW_SESSIONS = 100;
/** the application's own memory beside what it is told to keep */
const APPLICATION_MB = 256;

const workloads = [
  { name: "bare", listen: 8081, upstream: 9001, host: "0.0.0.0", vip: false },
  { name: "takeover", listen: 8082, upstream: 9002, host: "127.0.0.1", vip: true },
  { name: "forward", listen: 8083, upstream: 9003, host: "127.0.0.1", vip: false },
] as const;

/** How often each client of the crowd sends. */
export function crowdIntervalMs(sessions: number): number {
  return Math.max(CROWD_INTERVAL_MS_MIN, Math.ceil(sessions / CROWD_MESSAGES_PER_MS));
}

export interface LoadSize {
  sessions: number;
  intervalMs: number;
  window?: number;
}

/** Clients of both kinds before, during and after `act`. @param start clients of one kind @throws Error what `act` has thrown */
export async function underLoad<T>(
  start: (size: LoadSize) => Promise<Load>,
  sessions: number,
  act: () => Promise<T>,
): Promise<{ result: T; seen: SeenByClients }> {
  const intervalMs = crowdIntervalMs(sessions);
  const steadySessions = Math.min(sessions, STEADY_CLIENTS);
  const crowdSessions = sessions - steadySessions;
  const loads: Load[] = [];
  try {
    if (crowdSessions > 0) loads.push(await start({ sessions: crowdSessions, intervalMs }));
    loads.push(
      await start({ sessions: steadySessions, intervalMs: STEADY_INTERVAL_MS, window: STEADY_WINDOW }),
    );
    await delay(WARM_MS);
    await Promise.all(loads.map((load) => load.mark()));
    await delay(AROUND_MS);
    const result = await act();
    await delay(AROUND_MS + intervalMs);
    const reports = await Promise.all(loads.map((load) => load.report()));
    const sum = (pick: (report: LoadReport) => number): number =>
      reports.reduce((total, report) => total + pick(report), 0);
    const [steady] = reports.slice(-1) as [LoadReport];
    return {
      result,
      seen: {
        blackoutMs: steady.blackoutMs,
        crowdPauseMs: reports.length === 1 ? null : lessInterval(reports[0] as LoadReport, intervalMs),
        lost: sum((report) => report.lost + report.corrupt),
        repeated: sum((report) => report.repeated),
        resets: sum(goneIn),
        problems: reports.flatMap((report) => report.problems),
        waitingSinceMs: steady.waitingSinceMs,
      },
    };
  } finally {
    await Promise.all(loads.map((load) => load.stop()));
  }
}

export class CutoverLab {
  readonly memoryMb: number;
  readonly #lab: Lab;
  readonly #place: Record<Downstream, "a" | "b"> = { takeover: "a", forward: "a" };

  private constructor(lab: Lab, memoryMb: number) {
    this.#lab = lab;
    this.memoryMb = memoryMb;
  }

  /** @param memoryMb MiB of random memory that each application keeps, beside its own */
  static async open(memoryMb: number): Promise<CutoverLab> {
    const lab = await createLab({ nodes: ["a", "b"] });
    const room = memoryMb + APPLICATION_MB;
    const configured = (node: string): object[] =>
      workloads
        .filter(({ name }) => name !== "bare" || node === "a")
        .map(({ name, listen, upstream, host, vip }) => ({
          name,
          start: node === "a",
          // Bare CRIU ends what it has dumped, and nobody else is to start it again.
          restart: name === "bare" ? "never" : "always",
          container: {
            command: [nodeBinary, "server.js"],
            cwd: `${projectRoot}/test/apps/chat`,
            env: { PORT: String(upstream), HOST: host, APP_MB: String(memoryMb) },
            rootfs: "host",
          },
          ports: [{ listen, upstream: `127.0.0.1:${upstream}` }],
          limits: {
            deadlineMs: DEADLINE_MS,
            imagesMbMax: Math.max(2_048, room),
            precopyMbMax: Math.max(1_024, room),
          },
          ...(vip ? { vip: { address: `${VIP}/24`, device: "eth0" } } : {}),
        }));
    try {
      for (const node of ["b", "a"])
        await lab.startAgent(node, { workloads: configured(node) }, { timeoutMs: START_MS_MAX });
      await untilRunning(lab);
    } catch (error) {
      await lab.close();
      throw error;
    }
    return new CutoverLab(lab, memoryMb);
  }

  close(): Promise<void> {
    return this.#lab.close();
  }

  /** One move, or one dump and restore in place, under load. @throws Error when it does not succeed */
  async sample(mode: Mode, sessions: number): Promise<CutoverSample> {
    const { result, seen } = await underLoad(
      (options) => this.#load(mode, options),
      sessions,
      async () =>
        mode === "bare"
          ? { bare: await runBareCriu(this.#lab.stateDir("a"), "bare"), move: null }
          : { bare: null, move: await this.#move(mode) },
    );
    return { mode, sessions, memoryMb: this.memoryMb, ...seen, ...result };
  }

  /** Many moves of one workload with the same clients. @throws Error when a client loses anything */
  async row(mode: Downstream, moves: number): Promise<RowSample> {
    const load = await this.#load(mode, {
      sessions: ROW_SESSIONS,
      intervalMs: crowdIntervalMs(ROW_SESSIONS),
    });
    try {
      const holdMs: number[] = [];
      let first = this.#resources();
      for (let i = 1; i <= moves; i++) {
        holdMs.push((await this.#move(mode)).holdMs);
        if (i === 2) first = this.#resources();
      }
      const last = this.#resources();
      const report = await load.report();
      if (report.lost + report.corrupt + report.repeated + report.resets > 0)
        throw new Error(`clients lost something: ${report.problems.join("; ")}`);
      return {
        mode,
        moves,
        holdMs,
        rssBytes: { first: first.rssBytes, last: last.rssBytes },
        descriptors: { first: first.descriptors, last: last.descriptors },
      };
    } finally {
      await load.stop();
    }
  }

  #load(mode: Mode, options: LoadSize): Promise<Load> {
    const a = this.#lab.place("a").address;
    const target = {
      bare: { address: a, port: 9001 },
      takeover: { address: VIP, port: 8082 },
      forward: { address: a, port: 8083 },
    }[mode];
    return startLoad(this.#lab, "ws", { target, drainMsMax: DRAIN_MS_MAX, ...options });
  }

  async #move(workload: Downstream): Promise<MoveResult> {
    const from = this.#place[workload];
    const to = from === "a" ? "b" : "a";
    const { json, stderr } = await this.#lab.cli(from, ["migrate", workload, "--to", to, "--json"]);
    const move = json as MoveResult | undefined;
    if (move?.outcome !== "moved")
      throw new Error(`${workload} did not move to ${to}: ${move?.reason ?? stderr}`);
    this.#place[workload] = to;
    return move;
  }

  /** Agents and proxies of this laboratory: everything of ours that lives longer than a move. */
  #resources(): { rssBytes: number; descriptors: number } {
    let rssKb = 0;
    let descriptors = 0;
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
      try {
        const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
        if (!command.includes(this.#lab.dir) || !/proxy\/main\.ts|cli\/main\.ts agent/.test(command))
          continue;
        rssKb += Number(/^VmRSS:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
        descriptors += readdirSync(`/proc/${pid}/fd`).length;
      } catch {
        // it ended meanwhile
      }
    }
    return { rssBytes: rssKb * 1024, descriptors };
  }
}

/** An agent answers before a workload that is slow to start is served. */
async function untilRunning(lab: Lab): Promise<void> {
  const deadlineMs = performance.now() + START_MS_MAX;
  for (;;) {
    const { json, stderr } = await lab.cli("a", ["status", "--json"]);
    const states = (json as { workloads: { name: string; state: string }[] } | undefined)?.workloads ?? [];
    if (states.length === workloads.length && states.every(({ state }) => state === "running")) return;
    if (performance.now() > deadlineMs)
      throw new Error(`not all applications run: ${JSON.stringify(states)} ${stderr}`);
    await delay(START_CHECK_MS);
  }
}

function lessInterval({ blackoutMs }: LoadReport, intervalMs: number): Blackout {
  const less = (ms: number): number => Math.max(0, ms - intervalMs);
  return { p50: less(blackoutMs.p50), p99: less(blackoutMs.p99), max: less(blackoutMs.max) };
}

/** What a row of moves grew by: medians of its first and its last five. */
export function drift(holdMs: readonly number[]): { first: number; last: number } {
  return { first: median(holdMs.slice(0, 5)), last: median(holdMs.slice(-5)) };
}
