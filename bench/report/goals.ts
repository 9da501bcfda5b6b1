/**
 * The goals of the data path and of the replay tier, or of Kubernetes, judged by what was measured: each is a ratio (or a number) with its
 * spread over the rounds. Ratios are made round by round, of figures that were measured next to each other.
 */
import { measuredRounds, roundByRound, type Spread, spreadOf } from "../figures.ts";
import type { BenchResults, Figure } from "../results.ts";
import { type Goal, milliseconds, times } from "./goal.ts";
import { KUBE_COMMAND, KUBE_GOALS } from "./kube-goals.ts";
import { p99s, percentilesOf } from "./percentiles.ts";
import { isOurs, parametersText } from "./series.ts";

export interface Verdict {
  name: string;
  /** "≥ 1.30×" */
  goal: string;
  /** of this run; null: not measured */
  spread: Spread | null;
  /** the median with its spread, as text; "-" */
  here: string;
  met: boolean | null;
  /** "met", "missed by 12 %", "not measured", with what the spread says of it */
  verdict: string;
}

/** what a clock of microseconds can tell: nobody adds less than nothing */
const ADDED_US_MIN = 1;

const kilobytes = (bytes: number): string => `${(bytes / 1024).toFixed(1)} kB`;

const GOALS: Goal[] = [
  ...(["tcp-echo", "ws-echo"] as const).flatMap((piece): Goal[] => {
    const [ours, what] =
      piece === "tcp-echo" ? ["holdfast-tcp", "raw TCP"] : ["holdfast-websocket", "WebSocket"];
    return [
      throughput(`${what}, messages/s beside Envoy tcp_proxy`, piece, ours, "envoy-tcp", { atLeast: 1 }),
      throughput(`${what}, messages/s beside HAProxy tcp`, piece, ours, "haproxy-tcp", { atLeast: 0.9 }),
    ];
  }),
  addedLatency(
    "raw TCP, p99 added latency beside Envoy tcp_proxy",
    "latency-tcp-echo",
    "holdfast-tcp",
    "envoy-tcp",
    {
      atMost: 1.1,
    },
  ),
  addedLatency(
    "WebSocket, p99 added latency beside Envoy tcp_proxy",
    "latency-ws-echo",
    "holdfast-websocket",
    "envoy-tcp",
    { atMost: 1.1 },
  ),
  throughput("observed HTTP, requests/s beside Envoy's HTTP", "http", "holdfast-http", "envoy-http", {
    atLeast: 1.3,
  }),
  throughput("observed HTTP, requests/s beside http-proxy", "http", "holdfast-http", "http-proxy", {
    atLeast: 4,
  }),
  throughput("observed HTTP, requests/s beside our unobserved TCP", "http", "holdfast-http", "holdfast-tcp", {
    atLeast: 0.9,
  }),
  ...["http", "tcp-echo", "bulk-down", "bulk-up"].flatMap((piece) =>
    ["holdfast-gateway", "holdfast-gateway-plain"].map((ours) =>
      throughput(
        `${piece}, ${ours} beside Envoy before the proxy`,
        piece,
        ours,
        "envoy-holdfast",
        { atLeast: 0.8 },
        1,
      ),
    ),
  ),
  ...["bulk-down", "bulk-up"].map((piece) =>
    throughput(
      `${piece}, MB/s beside HAProxy tcp`,
      piece,
      "holdfast-tcp",
      "haproxy-tcp",
      { atLeast: 0.9 },
      1,
    ),
  ),
  perSession("idle session, beyond the kernel's memory", "idle-tcp", "holdfast-tcp", { atMost: 8 * 1024 }),
  perSession("idle WebSocket session", "idle-ws", "holdfast-websocket", { atMost: 12 * 1024 }),
  {
    name: "messages/s beside many open sessions as a multiple of those beside 100",
    piece: "idle",
    bound: { atLeast: 0.8 },
    show: times,
    values: (piece) => {
      const all = piece.figures.filter(({ peer, metric }) => isOurs(peer) && metric === "messagesPerSecond");
      return [...new Set(all.map(({ peer }) => peer))].map((peer) => {
        const of = all.filter((each) => each.peer === peer);
        const least = of.find((each) => sessionsOf(each) === 100);
        const most = of.reduce<Figure | undefined>(
          (best, each) => (sessionsOf(each) > sessionsOf(best) ? each : best),
          undefined,
        );
        // Less than a factor of ten is not the growth that is asked for.
        const fits = least !== undefined && most !== undefined && sessionsOf(most) >= 1_000;
        return {
          at: `${piece.name}, ${peer}, ${sessionsOf(most).toLocaleString("en")}`,
          values: fits ? roundByRound(most.rounds, least.rounds, (a, b) => a / b) : [],
        };
      });
    },
  },
  {
    name: "hold to release, beyond bare CRIU's dump and restore",
    piece: "cutover-sessions",
    bound: { atMost: 25 },
    show: milliseconds,
    values: ({ figures }) => {
      const at100 = figures.filter((each) => each.metric === "holdMs" && sessionsOf(each) === 100);
      const bare = at100.find(({ peer }) => peer === "bare-criu");
      return at100
        .filter(({ peer }) => isOurs(peer))
        .map(({ peer, rounds }) => ({
          at: `${peer}, 100 sessions`,
          values: roundByRound(rounds, bare?.rounds ?? [], (a, b) => a - b),
        }));
    },
  },
  throughMesh(50, { atMost: 1.1 }),
  throughMesh(99, { atMost: 1.15 }),
  beside(
    ["a move's pause behind a mesh's Envoys", "mesh-pause", "holdfast-mesh", "holdfast"],
    { atMost: 1.2 },
    ({ metric }) => metric === "blackoutMs",
  ),
  {
    name: "a restart's pause, added by replay",
    piece: "pause",
    bound: { atMost: 2 },
    show: milliseconds,
    values: (piece) =>
      piece.figures
        .filter(({ metric }) => metric === "addedMs")
        .map(({ parameters, rounds }) => ({
          at: parametersText(parameters),
          values: measuredRounds(rounds),
        })),
  },
];

/** All of them, also what this run has not measured: its verdict says so. */
export function judge({ command, pieces }: Pick<BenchResults, "command" | "pieces">): Verdict[] {
  return (command.startsWith(KUBE_COMMAND) ? KUBE_GOALS : GOALS).flatMap((goal): Verdict[] => {
    const found = pieces
      .filter(({ name }) => name === goal.piece || name.startsWith(`${goal.piece}-`))
      .flatMap((piece) => goal.values(piece))
      .filter(({ values }) => values.length > 0);
    if (found.length === 0) return [verdictOf(goal, "", [])];
    return found.map(({ at, values }) => verdictOf(goal, at, values));
  });
}

function verdictOf({ name, bound, show }: Goal, at: string, values: number[]): Verdict {
  const spread = spreadOf(values);
  const atLeast = "atLeast" in bound;
  const limit = "atLeast" in bound ? bound.atLeast : bound.atMost;
  const common = {
    name: at === "" ? name : `${name}, ${at}`,
    goal: `${atLeast ? "≥" : "≤"} ${show(limit)}`,
    spread,
  };
  if (spread === null) return { ...common, here: "-", met: null, verdict: "not measured" };
  const reached = (value: number): boolean => (atLeast ? value >= limit : value <= limit);
  const met = reached(spread.median);
  const divided = reached(spread.min) !== reached(spread.max);
  const missedBy = Math.abs(spread.median / limit - 1) * 100;
  // there is no share of nothing
  const by = limit === 0 ? "" : ` by ${missedBy < 1 ? "less than 1" : Math.round(missedBy)} %`;
  const verdict = met ? "met" : `MISSED${by}`;
  const here = `${show(spread.median)}${values.length > 1 ? ` (${show(spread.min)}–${show(spread.max)})` : ""}`;
  return { ...common, here, met, verdict: divided ? `${verdict}; not in every round` : verdict };
}

/** A figure of ours beside another's, round by round. @param isMeant which of ours @param roundsOf what of them is compared */
function beside(
  [name, piece, ours, other]: [name: string, piece: string, ours: string, other: string],
  bound: Goal["bound"],
  isMeant: (figure: Figure) => boolean,
  roundsOf: (figure: Figure | undefined) => (number | null)[] = (figure) => figure?.rounds ?? [],
): Goal {
  return {
    name,
    piece,
    bound,
    show: times,
    values: ({ figures }) =>
      figures
        .filter((figure) => figure.peer === ours && isMeant(figure))
        .map((one) => ({
          at: parametersText(one.parameters),
          values: roundByRound(roundsOf(one), roundsOf(counterpart(figures, one, other)), (a, b) => a / b),
        })),
  };
}

/** @param connectionsMin one connection alone waits for its round trips, whoever carries them: that is latency's business */
function throughput(
  name: string,
  piece: string,
  ours: string,
  other: string,
  bound: Goal["bound"],
  connectionsMin = 2,
): Goal {
  return beside(
    [name, piece, ours, other],
    bound,
    ({ metric, parameters }) =>
      /^(requests|messages|megabytes)PerSecond$/.test(metric) &&
      Number(parameters.connections ?? connectionsMin) >= connectionsMin,
  );
}

function addedLatency(name: string, piece: string, ours: string, other: string, bound: Goal["bound"]): Goal {
  return {
    name,
    piece,
    bound,
    show: times,
    values: ({ figures }) =>
      figures
        .filter(({ peer, metric }) => peer === ours && metric === "latencyUs")
        .map((one) => {
          const [theirs, direct] = [other, "direct"].map((peer) => counterpart(figures, one, peer));
          const added = (figure: Figure | undefined): (number | null)[] => {
            const rounds = p99s(figure);
            const yardstick = p99s(direct);
            return rounds.map((p99, round) => {
              const least = yardstick[round] ?? null;
              return p99 === null || least === null ? null : Math.max(p99 - least, ADDED_US_MIN);
            });
          };
          return {
            at: parametersText(one.parameters),
            values: roundByRound(added(one), added(theirs), (a, b) => a / b),
          };
        }),
  };
}

/** HTTP through a mesh's Envoys and Holdfast beside the same without it. */
function throughMesh(percentile: number, bound: Goal["bound"]): Goal {
  const name = `HTTP through a mesh, p${percentile} with Holdfast beside the mesh alone`;
  return beside(
    [name, "mesh", "holdfast-mesh", "mesh"],
    bound,
    ({ metric }) => metric === "latencyUs",
    (figure) => percentilesOf(figure, percentile),
  );
}

function perSession(name: string, piece: string, peer: string, bound: Goal["bound"]): Goal {
  return {
    name,
    piece,
    bound,
    show: kilobytes,
    values: ({ figures }) => {
      const of = figures.filter((each) => each.peer === peer && each.metric === "memoryBytesPerSession");
      const most = Math.max(...of.map(sessionsOf));
      // A few sessions are lost in the noise of the process.
      return of
        .filter((each) => sessionsOf(each) === most)
        .map(({ parameters, rounds }) => ({
          at: parametersText(parameters),
          values: measuredRounds(rounds),
        }));
    },
  };
}

/** The same figure of another peer. */
function counterpart(figures: Figure[], one: Figure, peer: string): Figure | undefined {
  return figures.find(
    (each) =>
      each.peer === peer &&
      each.metric === one.metric &&
      parametersText(each.parameters) === parametersText(one.parameters),
  );
}

function sessionsOf(figure: Figure | undefined): number {
  return Number(figure?.parameters.sessions ?? 0);
}
