/**
 * The contenders of a run, ready to be measured: an application, the peers before it that carry what it speaks, and our generator,
 * all warmed up.
 */
import { setTimeout as delay } from "node:timers/promises";
import { listSockets } from "#proxy/kernel/diag.ts";
import { Backend } from "./load/backend.ts";
import type { Load, LoadReport, Protocol } from "./load/load.ts";
import { CpuWatch } from "./load/load-cpu.ts";
import { Program } from "./load/program.ts";
import { MissingPeer, type Peer, type RunningPeer } from "./peers/peer.ts";
import { CpuMeter, type Stage } from "./stage.ts";

const SETTLE_MS_MAX = 20_000;
const SETTLE_CHECK_MS = 5;
const WARM_SECONDS = 0.5;
const WARM_CONNECTIONS = 32;

/** One load on one peer. */
export interface Sample {
  round: number;
  peer: string;
  connections: number;
  /** requests: answered, as the generator counts, and seen, as the application does */
  answered: number;
  seen: number;
  errors: number;
  /** of the peer's process; null: there is none */
  cpuUsPerRequest: number | null;
  /** share of its CPU it used: below 0.9 something else was the limit */
  busy: number | null;
  /** share of the time it was ready and did not run, on a CPU that should be its own: somebody else was on it */
  waited: number | null;
  /** share of the load's CPU that was used, by generator and application: at 0.95 they were the limit, not the peer */
  loadBusy: number;
}

/** What peers stand before. */
export interface Application {
  /** at 127.0.0.1 */
  readonly port: number;
  readonly protocol: Protocol;
  readonly version: string;
  /** requests, or messages, since it was started */
  requestsSeen(): Promise<number>;
}

/** What every generator tells. */
interface Counts {
  answered: number;
  /** at most: what was under way when it ended is among it */
  sent: number;
  errors: number;
}

interface LoadAt {
  round: number;
  peer: RunningPeer;
  connections: number;
  /** what it is, for whoever reads a problem */
  load: string;
}

export interface Problem {
  where: string;
  what: string;
}

export class Contenders {
  readonly stage: Stage;
  readonly backend: Application;
  readonly peers: RunningPeer[] = [];
  readonly missing: Problem[] = [];
  /** counts that do not fit, errors that clients saw: none is left out of the figures, all are shown beside them */
  readonly problems: Problem[] = [];
  readonly #generator: Program<Load, LoadReport>;

  private constructor(stage: Stage, backend: Application, generator: Program<Load, LoadReport>) {
    this.stage = stage;
    this.backend = backend;
    this.#generator = generator;
  }

  /**
   * A peer that is not installed, or does not start, is in `missing`.
   * @param application nginx with a short answer where it is left out
   * @param warmSeconds how long each carries a load before anything is measured
   */
  static async start(
    stage: Stage,
    peers: readonly Peer[],
    application?: Application,
    warmSeconds = WARM_SECONDS,
  ): Promise<Contenders> {
    const backend = application ?? (await Backend.start(stage));
    const generator = await Program.start<Load, LoadReport>(
      stage,
      `${import.meta.dirname}/load/generator.ts`,
      { cpu: stage.cpus.load },
    );
    const contenders = new Contenders(stage, backend, generator);
    for (const peer of peers) {
      if (peer.carries?.includes(backend.protocol) === false) continue;
      try {
        const running = await peer.start(stage, backend);
        await contenders.generate({
          port: running.port,
          connections: WARM_CONNECTIONS,
          perSecond: null,
          seconds: warmSeconds,
        });
        contenders.peers.push(running);
      } catch (error) {
        if (stage.closed) throw error;
        const what = (error as Error).message;
        contenders.missing.push({ where: peer.name, what });
        if (!(error instanceof MissingPeer)) contenders.problems.push({ where: peer.name, what });
      }
    }
    return contenders;
  }

  /** @param load of what the application speaks, where it says nothing else */
  generate(load: Omit<Load, "protocol">): Promise<LoadReport> {
    return this.#generator.ask({ protocol: this.backend.protocol, ...load });
  }

  /** In turn, another first in each round (counted from 1): nobody always has the same neighbour before it. */
  inTurn(round: number): RunningPeer[] {
    const first = (round - 1) % Math.max(1, this.peers.length);
    return [...this.peers.slice(first), ...this.peers.slice(0, first)];
  }

  /**
   * Runs one load on one peer, with what the application and the peer's process say of it.
   * @returns null where it cannot be measured (the peer has ended): that is a problem, and the others go on
   */
  async measure<Report extends Counts>(
    at: LoadAt,
    run: (port: number) => Promise<Report>,
  ): Promise<{ sample: Sample; report: Report } | null> {
    const where = `${at.peer.name}, ${at.connections} connections, ${at.load}, round ${at.round}`;
    try {
      const { sample, report } = await this.#measure(at, run);
      const { answered, sent, errors } = report;
      if (sample.seen < answered || sample.seen > sent) {
        const what = `${answered} requests answered, ${sent} sent, the application saw ${sample.seen}`;
        this.problems.push({ where, what });
      }
      if (errors > 0) this.problems.push({ where, what: `${errors} errors` });
      return { sample, report };
    } catch (error) {
      if (this.stage.closed) throw error;
      this.problems.push({ where, what: `not measured: ${(error as Error).message}` });
      return null;
    }
  }

  async #measure<Report extends Counts>(
    { round, peer, connections }: LoadAt,
    run: (port: number) => Promise<Report>,
  ): Promise<{ sample: Sample; report: Report }> {
    const before = await this.#seen(peer);
    const cpu = peer.pid === null ? null : new CpuMeter(peer.pid);
    const load = new CpuWatch(this.stage.cpus.load);
    const report = await run(peer.port);
    const used = cpu?.read() ?? null;
    const loadBusy = load.read();
    const seen = (await this.#seen(peer)) - before;
    const { answered, errors } = report;
    return {
      sample: {
        round,
        peer: peer.name,
        connections,
        answered,
        seen,
        errors,
        cpuUsPerRequest: used === null || seen === 0 ? null : used.cpuUs / seen,
        busy: used?.busy ?? null,
        waited: used?.waited ?? null,
        loadBusy,
      },
      report,
    };
  }

  /**
   * The application's count, when the peer is done with its clients: a request that it had read before it noticed that its
   * client is gone arrives late.
   */
  async #seen(peer: RunningPeer): Promise<number> {
    const deadlineMs = performance.now() + SETTLE_MS_MAX;
    for (let before = -1; ; ) {
      const seen = await this.backend.requestsSeen();
      if (seen === before && (peer.pid === null || !hasClients(peer))) return seen;
      if (performance.now() > deadlineMs) throw new Error(`${peer.name} does not let go of its clients`);
      before = seen;
      await delay(SETTLE_CHECK_MS);
    }
  }
}

function hasClients({ port }: RunningPeer): boolean {
  return listSockets({ states: ["ESTABLISHED", "CLOSE_WAIT"], localPort: port }).length > 0;
}
