/** The relays of a run, ready to be measured: the application, the peers before it, and our generator, all warmed up. */
import { Backend } from "./load/backend.ts";
import type { HttpLoad, HttpReport } from "./load/http-load.ts";
import { Program } from "./load/program.ts";
import { MissingPeer, type Peer, type RunningPeer } from "./peers/peer.ts";
import { CpuMeter, type Stage } from "./stage.ts";

const WARM_SECONDS = 0.5;
const WARM_CONNECTIONS = 32;

/** One load on one peer. */
export interface Sample {
  round: number;
  peer: string;
  connections: number;
  /** as the generator counted, and as the application did */
  requests: number;
  seen: number;
  errors: number;
  /** of the peer's process; null: there is none */
  cpuUsPerRequest: number | null;
  /** share of its CPU it used: below 0.9 something else was the limit */
  busy: number | null;
}

export interface Problem {
  where: string;
  what: string;
}

export class Relays {
  readonly stage: Stage;
  readonly backend: Backend;
  readonly peers: RunningPeer[] = [];
  readonly missing: Problem[] = [];
  /** counts that do not fit, errors that clients saw: none is left out of the figures, all are shown beside them */
  readonly problems: Problem[] = [];
  readonly #generator: Program<HttpLoad, HttpReport>;

  private constructor(stage: Stage, backend: Backend, generator: Program<HttpLoad, HttpReport>) {
    this.stage = stage;
    this.backend = backend;
    this.#generator = generator;
  }

  /** A peer that is not installed, or does not start, is in `missing`. */
  static async start(stage: Stage, peers: Peer[]): Promise<Relays> {
    const backend = await Backend.start(stage);
    const generator = await Program.start<HttpLoad, HttpReport>(
      stage,
      `${import.meta.dirname}/load/http-generator.ts`,
      { cpu: stage.cpus.load },
    );
    const relays = new Relays(stage, backend, generator);
    for (const peer of peers) {
      try {
        const running = await peer.start(stage, backend);
        await relays.generate({
          port: running.port,
          connections: WARM_CONNECTIONS,
          perSecond: null,
          seconds: WARM_SECONDS,
        });
        relays.peers.push(running);
      } catch (error) {
        if (stage.closed) throw error;
        const what = (error as Error).message;
        relays.missing.push({ where: peer.name, what });
        if (!(error instanceof MissingPeer)) relays.problems.push({ where: peer.name, what });
      }
    }
    return relays;
  }

  generate(load: HttpLoad): Promise<HttpReport> {
    return this.#generator.ask(load);
  }

  /** In turn, another first in each round (counted from 1): nobody always has the same neighbour before it. */
  inTurn(round: number): RunningPeer[] {
    const first = (round - 1) % Math.max(1, this.peers.length);
    return [...this.peers.slice(first), ...this.peers.slice(0, first)];
  }

  /**
   * Runs one load on one peer, with what the application and the peer's process say of it.
   * @param unfinished how many requests more than the generator counts the application may have seen
   */
  async measure<Report extends { requests: number; errors: number }>(
    at: { round: number; peer: RunningPeer; connections: number; load: string; unfinished: number },
    run: (port: number) => Promise<Report>,
  ): Promise<{ sample: Sample; report: Report }> {
    const { round, peer, connections } = at;
    const before = await this.#settled();
    const cpu = peer.pid === null ? null : new CpuMeter(peer.pid);
    const report = await run(peer.port);
    const used = cpu?.read() ?? null;
    const seen = (await this.#settled()) - before;
    const { requests, errors } = report;
    const where = `${peer.name}, ${connections} connections, ${at.load}, round ${round}`;
    if (seen < requests || seen > requests + at.unfinished)
      this.problems.push({ where, what: `counted ${requests} requests, the application saw ${seen}` });
    if (errors > 0) this.problems.push({ where, what: `${errors} errors` });
    return {
      sample: {
        round,
        peer: peer.name,
        connections,
        requests,
        seen,
        errors,
        cpuUsPerRequest: used === null || seen === 0 ? null : used.cpuUs / seen,
        busy: used?.busy ?? null,
      },
      report,
    };
  }

  /** The application's count, when requests of connections that were cut off have arrived too. */
  async #settled(): Promise<number> {
    let before = -1;
    for (let tries = 0; tries < 100; tries++) {
      const seen = await this.backend.requestsSeen();
      if (seen === before) return seen;
      before = seen;
    }
    throw new Error("the application sees requests although nobody sends any");
  }
}
