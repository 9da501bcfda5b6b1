/**
 * What Holdfast adds to an HTTP request in a mesh: through the client's and the server's Envoy with mutual TLS, and the same with Holdfast
 * between the server's and the application.
 */
import { tellProblems } from "./applications.ts";
import { Contenders } from "./contenders.ts";
import { latencyFigures, measureLatency } from "./latency.ts";
import { meshAlone, meshHoldfast } from "./peers/mesh.ts";
import type { BenchPiece, Run } from "./piece.ts";
import type { Figure } from "./results.ts";
import type { Stage } from "./stage.ts";

const LOAD = { connections: 32, rates: [1_000] };
const CONTENDERS = 2;
const AROUND_SECONDS = 1;

const started = new WeakMap<Stage, Promise<Contenders>>();

/** One set a run. */
async function contendersOf(run: Run): Promise<Contenders> {
  const known = started.get(run.stage);
  if (known !== undefined) return known;
  const starting = Contenders.start(run.stage, [meshAlone, meshHoldfast]);
  started.set(run.stage, starting);
  run.introduce(await starting);
  return starting;
}

export const meshPiece: BenchPiece = {
  name: "mesh",
  title: "Latency of HTTP requests through two Envoys with mutual TLS, without Holdfast and with it",
  estimateSeconds: ({ seconds }) => CONTENDERS * (seconds + AROUND_SECONDS),
  async measure(run): Promise<Figure[]> {
    const contenders = await contendersOf(run);
    const { round, seconds } = run;
    const samples = await measureLatency(contenders, { round, ...LOAD, seconds }, run.say);
    tellProblems(contenders, run);
    return samples.flatMap(latencyFigures);
  },
};
