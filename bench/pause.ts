/**
 * What the proxy adds to the pause of a restart (`continuity: replay`). An application is ended and started again; a client
 * behind the proxy waits for its answer, another one is connected directly and comes again at once, as often as it
 * is refused: its pause is the least there is. Added: the proxied client's pause less the direct one's, at the same restart.
 *
 *   held      the proxy is told (`pause`), the application ends, the request is sent, the application is back (`resume`)
 *   replayed  the application has the request when it dies (SIGKILL) without answering, and is back (`resume`)
 */

import type { Problem } from "./contenders.ts";
import { median } from "./figures.ts";
import { Program } from "./load/program.ts";
import type { Answer, RestartClientsAsk } from "./load/restart-clients.ts";
import type { RestartingApplicationAsk } from "./load/restarting-application.ts";
import { startHoldfast } from "./peers/holdfast.ts";
import type { BenchPiece } from "./piece.ts";
import type { Figure } from "./results.ts";
import type { Stage } from "./stage.ts";

export type PauseKind = "held" | "replayed";

const RESTARTS = 20;
const RESTARTS_QUICK = 5;
const SECONDS_EACH = 0.5;
const DRAIN_MS = 1_000;
const EPOCH = 1;

export interface PauseSample {
  kind: PauseKind;
  directMs: number;
  proxiedMs: number;
  addedMs: number;
  /** both clients' answers, as they came */
  direct: Answer;
  proxied: Answer;
  /** of the application that was there before, and after */
  lives: [number, number];
}

/** @param restarts of each kind, in turn */
export async function measurePause(
  stage: Stage,
  options: { restarts: number },
  say: (line: string) => void,
): Promise<PauseSample[]> {
  const port = await stage.freePort();
  const start = (): Promise<Program<RestartingApplicationAsk, void>> =>
    Program.start(stage, `${import.meta.dirname}/load/restarting-application.ts`, {
      cpu: stage.cpus.load,
      env: { PORT: String(port) },
    });
  let application = await start();
  const clients = await Program.start<RestartClientsAsk, { direct: Answer; proxied: Answer }>(
    stage,
    `${import.meta.dirname}/load/restart-clients.ts`,
    { cpu: stage.cpus.load },
  );
  const { proxy, ports } = await startHoldfast(stage, {
    name: "pause",
    ports: [{ to: port, protocol: "http", continuity: "replay" }],
  });
  const samples: PauseSample[] = [];
  try {
    await clients.ask({ type: "connect", direct: port, proxied: ports[0] as number });
    for (let restart = 0; restart < options.restarts * 2; restart++) {
      const kind = restart % 2 === 0 ? "held" : "replayed";
      const before = application.pid;
      let answers: Promise<{ direct: Answer; proxied: Answer }>;
      if (kind === "held") {
        await proxy.call("pause", { epoch: EPOCH, drainMs: DRAIN_MS });
        await application.kill();
        answers = clients.ask({ type: "request" });
      } else {
        await application.ask({ type: "stall" });
        const stalled = application.ask({ type: "stalled", requests: 2 });
        answers = clients.ask({ type: "request" });
        await stalled;
        await application.kill();
      }
      application = await start();
      await proxy.call("resume", { epoch: EPOCH });
      const { direct, proxied } = await answers;
      samples.push({
        kind,
        directMs: direct.ms,
        proxiedMs: proxied.ms,
        addedMs: proxied.ms - direct.ms,
        direct,
        proxied,
        lives: [before, application.pid],
      });
      say(`${kind}: direct ${direct.ms.toFixed(1)} ms, proxied ${proxied.ms.toFixed(1)} ms`);
    }
    return samples;
  } finally {
    await Promise.all([proxy.kill(), clients.kill(), application.kill()]);
  }
}

/** Answers that are not the new application's, and a proxied client that had to connect again. */
export function pauseProblems(samples: PauseSample[]): Problem[] {
  return samples.flatMap(({ kind, direct, proxied, lives }, index) => {
    const where = `${kind} request, restart ${index + 1}`;
    const wrong = [
      ...(proxied.pid === lives[1] ? [] : [`the proxied client got ${proxied.instead ?? proxied.pid}`]),
      ...(direct.pid === lives[1] ? [] : [`the direct client got ${direct.instead ?? direct.pid}`]),
      ...(proxied.dials === 0 ? [] : ["the proxied client had to connect again"]),
    ];
    return wrong.map((what) => ({ where, what }));
  });
}

/** As figures: the value of a round is the median of its restarts, and its curve has every one of them. */
export function pauseFigures(samples: PauseSample[]): Figure[] {
  const kinds = [...new Set(samples.map(({ kind }) => kind))];
  return kinds.flatMap((kind) =>
    (["addedMs", "proxiedMs", "directMs"] as const).map((metric): Figure => {
      const values = samples
        .filter((each) => each.kind === kind)
        .map((each) => each[metric])
        .sort((one, other) => one - other);
      return {
        peer: "holdfast-replay",
        parameters: { request: kind },
        metric,
        rounds: [median(values)],
        percentiles: [
          values.map((ms, index) => ({ p: ((index + 1) / values.length) * 100, valueUs: ms * 1_000 })),
        ],
      };
    }),
  );
}

export const pausePiece: BenchPiece = {
  name: "pause",
  title: "Pause of a request at a restart of the application, beside a client that is connected directly",
  estimateSeconds: ({ quick }) => (quick ? RESTARTS_QUICK : RESTARTS) * 2 * SECONDS_EACH,
  async measure(run): Promise<Figure[]> {
    const samples = await measurePause(
      run.stage,
      { restarts: run.quick ? RESTARTS_QUICK : RESTARTS },
      run.say,
    );
    for (const { where, what } of pauseProblems(samples)) run.problem(`pause, ${where}`, what);
    return pauseFigures(samples);
  },
};
