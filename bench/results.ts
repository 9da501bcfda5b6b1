/**
 * What the benchmarks measure, in one shape: a command's pieces, each a list of figures with the value of every round.
 * Nothing is discarded and nothing is averaged here: medians, spread and ratios are made where they are shown
 * (figures.ts, report/). A file of it is read back by {@link parseResults}.
 */
import { z } from "zod";

/** One point of an HDR curve: `p` per cent of all answers took at most so long. `p` is less than or equal to 100. */
const percentile = z.strictObject({ p: z.number().min(0).max(100), valueUs: z.number() });

const figure = z.strictObject({
  peer: z.string(),
  /** what was asked for: connections, perSecond, sessions, memoryMb, phase, tool, … */
  parameters: z.record(z.string(), z.union([z.number(), z.string()])),
  /** with its unit last: requestsPerSecond, latencyUs, cpuUsPerRequest, memoryBytesPerSession, blackoutMs, phaseMs, … */
  metric: z.string(),
  /** one value a round; null: it was not measured in that round (a problem says why) */
  rounds: z.array(z.number().nullable()),
  /** of a latency or a blackout: one whole curve a round, beside `rounds` */
  percentiles: z.array(z.array(percentile).nullable()).optional(),
});

const piece = z.strictObject({ name: z.string(), title: z.string(), figures: z.array(figure) });

const problem = z.strictObject({ where: z.string(), what: z.string() });

const benchResults = z.strictObject({
  version: z.literal(1),
  /** as it can be typed again */
  command: z.string(),
  /** ISO 8601, UTC */
  startedAt: z.string(),
  /** null: it was cut off, and what is here is what it had by then */
  endedAt: z.string().nullable(),
  machine: z.strictObject({
    cpu: z.string(),
    cores: z.number(),
    memoryBytes: z.number(),
    kernel: z.string(),
    node: z.string(),
    /** of this checkout; "-" outside of one */
    commit: z.string(),
    /** whether anybody else was at work on it */
    calm: z.boolean(),
    /** what a reader must know before the first figure */
    notes: z.array(z.string()),
  }),
  peers: z.array(
    z.strictObject({
      name: z.string(),
      version: z.string(),
      /** why it is in no figure; null: it is there */
      missing: z.string().nullable(),
    }),
  ),
  pieces: z.array(piece),
  /** counts that do not fit, errors, what could not be measured, tools that disagree */
  problems: z.array(problem),
});

export type Percentile = z.infer<typeof percentile>;
export type Figure = z.infer<typeof figure>;
export type Piece = z.infer<typeof piece>;
export type BenchResults = z.infer<typeof benchResults>;

/** @throws TypeError what is wrong with it, and where */
export function parseResults(json: string): BenchResults {
  const parsed = benchResults.safeParse(JSON.parse(json));
  if (!parsed.success) throw new TypeError(`not a result of npm run bench: ${z.prettifyError(parsed.error)}`);
  return parsed.data;
}

/**
 * Puts one more round's figures to those of the rounds before it. A figure that one of them lacks has null there, so that
 * the same index is the same round in all of them.
 * @param roundsBefore how many rounds `figures` holds
 * @param measured one or more rounds; the same number for all of them
 */
export function addRound(figures: Figure[], roundsBefore: number, measured: Figure[]): void {
  const added = Math.max(1, ...measured.map(({ rounds }) => rounds.length));
  const known = new Map(figures.map((each) => [identityOf(each), each]));
  for (const one of measured) {
    let all = known.get(identityOf(one));
    if (all === undefined) {
      all = { ...one, rounds: [] };
      if (one.percentiles !== undefined) all.percentiles = [];
      known.set(identityOf(one), all);
      figures.push(all);
    }
    pad(all, roundsBefore);
    all.rounds.push(...one.rounds);
    if (one.percentiles !== undefined) all.percentiles?.push(...one.percentiles);
  }
  for (const figure of figures) pad(figure, roundsBefore + added);
}

function pad(figure: Figure, rounds: number): void {
  while (figure.rounds.length < rounds) figure.rounds.push(null);
  while (figure.percentiles !== undefined && figure.percentiles.length < rounds)
    figure.percentiles.push(null);
}

function identityOf({ peer, metric, parameters }: Figure): string {
  const sorted = Object.entries(parameters).sort(([one], [other]) => (one < other ? -1 : 1));
  return JSON.stringify([peer, metric, sorted]);
}
