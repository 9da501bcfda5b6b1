/** The goals of {@link KUBE_COMMAND}, whose pieces are named {@link KUBE}…. Pure. */
import { measuredRounds, roundByRound } from "../figures.ts";
import type { Figure, Piece } from "../results.ts";
import { type Goal, milliseconds, times } from "./goal.ts";
import { p99s } from "./percentiles.ts";

export const KUBE_COMMAND = "npm run bench:kube";
export const KUBE = "kube-";

const megabytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MB`;
const seconds = (ms: number): string => `${(ms / 1_000).toFixed(2)} s`;
const count = (value: number): string => value.toFixed(0);

export const KUBE_GOALS: Goal[] = [
  {
    name: "webhook, p99 of its answers",
    piece: `${KUBE}webhook`,
    bound: { atMost: 10 },
    show: milliseconds,
    values: (piece) =>
      figuresOf(piece, "latencyUs", { asked: "webhook" }).map((figure) => ({
        at: `${figure.parameters.perSecond} admissions/s`,
        values: measuredRounds(p99s(figure)).map((us) => us / 1_000),
      })),
  },
  {
    name: "controller, the most memory it had resident",
    piece: `${KUBE}controller`,
    bound: { atMost: 150 * 2 ** 20 },
    show: megabytes,
    values: (piece) =>
      figuresOf(piece, "memoryBytes", { when: "at most" }).map(({ parameters, rounds }) => ({
        at: `${Number(parameters.pods).toLocaleString("en")} pods`,
        values: measuredRounds(rounds),
      })),
  },
  {
    name: "Migration created to clients held, images present",
    piece: `${KUBE}move`,
    bound: { atMost: 3_000 },
    show: seconds,
    values: (piece) =>
      ["forward", "gateway"].map((mode) => ({
        at: `${mode} mode`,
        values: figuresOf(piece, "createdToHoldMs", { mode }).flatMap(({ rounds }) => measuredRounds(rounds)),
      })),
  },
  {
    name: "pause in pods beside that in our own runtime",
    piece: `${KUBE}move`,
    bound: { atMost: 1.2 },
    show: times,
    values: (piece) => [
      {
        at: "",
        values: figuresOf(piece, "holdMs", { runtime: "pods" }).flatMap((inPods) => {
          const { way = "" } = inPods.parameters;
          const [ours] = figuresOf(piece, "holdMs", { runtime: "own", way });
          return roundByRound(inPods.rounds, ours?.rounds ?? [], (a, b) => a / b);
        }),
      },
    ],
  },
  ...(["lost", "repeated", "resets"] as const).map(
    (metric): Goal => ({
      name: `kubectl drain, 3 workloads, 100 clients: ${metric}`,
      piece: `${KUBE}drain`,
      bound: { atMost: 0 },
      show: count,
      values: (piece) => {
        const rounds = figuresOf(piece, metric).flatMap((figure) => measuredRounds(figure.rounds));
        // once is once too often
        const all = rounds.reduce((sum, value) => sum + value, 0);
        return [{ at: "", values: rounds.length === 0 ? [] : [all] }];
      },
    }),
  ),
];

function figuresOf({ figures }: Piece, metric: string, wanted: Figure["parameters"] = {}): Figure[] {
  return figures.filter(
    (one) =>
      one.metric === metric &&
      Object.entries(wanted).every(([name, value]) => one.parameters[name] === value),
  );
}
