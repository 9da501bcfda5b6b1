/** Results of a benchmark that never ran: every kind of figure, with values that are told from each other at a glance. */
import type { BenchResults, Figure, Percentile } from "#bench/results.ts";

export const PEERS = [
  "direct",
  "haproxy-tcp",
  "haproxy-http",
  "nginx-stream",
  "nginx-http",
  "envoy-tcp",
  "envoy-http",
  "node-pipe",
  "http-proxy",
  "httpxy",
  "holdfast-tcp",
  "holdfast-http",
  "holdfast-websocket",
];

/** @param rounds of every figure; each is one per cent more than the one before */
export function madeUpResults(rounds = 3): BenchResults {
  const inRounds = (value: number): number[] =>
    Array.from({ length: rounds }, (_, round) => value * (1 + round / 100));
  const figure = (peer: string, metric: string, value: number, parameters: Figure["parameters"]): Figure => ({
    peer,
    parameters,
    metric,
    rounds: inRounds(value),
  });
  const rates = PEERS.flatMap((peer, rank) =>
    [1, 32, 256].flatMap((connections) => [
      figure(peer, "requestsPerSecond", (1_000 * (30 + rank * 4) * Math.log2(connections + 1)) / 5, {
        connections,
      }),
      ...(peer === "direct" ? [] : [figure(peer, "cpuUsPerRequest", 12 + rank, { connections })]),
    ]),
  );
  const latency = PEERS.flatMap((peer, rank) =>
    [1, 32].map((connections): Figure => {
      const curves = inRounds(40 + 15 * rank + connections).map((us) => curve(us));
      return {
        peer,
        parameters: { connections, perSecond: 5_000 },
        metric: "latencyUs",
        rounds: inRounds(40 + 15 * rank + connections),
        percentiles: curves,
      };
    }),
  );
  const idle = ["haproxy-tcp", "holdfast-tcp", "holdfast-websocket"].flatMap((peer, rank) =>
    [10, 100, 1_000, 10_000].flatMap((sessions) => [
      figure(peer, "messagesPerSecond", 40_000 - rank * 3_000 - sessions / 2, { sessions }),
      figure(peer, "memoryBytesPerSession", 6_000 + 2_000 * rank + 80_000 / sessions, { sessions }),
    ]),
  );
  const phases: Record<string, Record<string, number>> = {
    "bare-criu": { "criu-dump": 60, "criu-restore": 45 },
    "holdfast-takeover": {
      prepare: 900,
      hold: 11,
      capture: 20,
      dump: 62,
      transfer: 40,
      restore: 48,
      commit: 33,
      release: 70,
      retire: 200,
      "criu-dump": 66,
      "criu-restore": 50,
    },
    "holdfast-forward": {
      hold: 8,
      capture: 18,
      dump: 60,
      transfer: 38,
      restore: 47,
      commit: 9,
      release: 36,
      "criu-dump": 66,
      "criu-restore": 50,
    },
  };
  const moves = [10, 100, 1_000].flatMap((sessions) =>
    Object.entries(phases).flatMap(([peer, parts]) => {
      const common = { sessions, memoryMb: 32, downstream: peer.replace(/^.*-/, "") };
      const blackoutMs = Object.values(parts).reduce((sum, ms) => sum + ms, sessions / 10);
      return [
        ...Object.entries(parts).map(([phase, ms]) =>
          figure(peer, "phaseMs", ms * (1 + sessions / 1_000), { ...common, phase }),
        ),
        {
          ...figure(peer, "blackoutMs", blackoutMs, common),
          percentiles: inRounds(blackoutMs * 1_000).map(curve),
        },
        figure(peer, "lost", 0, common),
      ];
    }),
  );
  return {
    version: 1,
    command: "npm run bench -- --quick",
    startedAt: "2026-01-02T03:04:05.678Z",
    endedAt: "2026-01-02T03:09:10.000Z",
    machine: {
      cpu: "Made up of nothing @ 3 GHz",
      cores: 2,
      memoryBytes: 8 * 2 ** 30,
      kernel: "Linux 6.1.0",
      node: "Node v26.10.0",
      commit: "0000000",
      calm: false,
      notes: ["There is one note."],
    },
    peers: [
      ...PEERS.map((name) => ({ name, version: "1.2.3", missing: null })),
      { name: "absent", version: "-", missing: "nobody has <it> & nobody will" },
    ],
    pieces: [
      { name: "http", title: "HTTP/1.1 requests, kept alive", figures: rates },
      { name: "latency-http", title: "Latency at fixed rates", figures: latency },
      { name: "idle-tcp", title: "Idle sessions", figures: idle },
      { name: "cutover-sessions", title: "Cutover against sessions", figures: moves },
    ],
    problems: [{ where: "httpxy, round 2", what: "3 errors" }],
  };
}

/** A tail as they have it: slower by a factor with every nine. */
function curve(us: number): Percentile[] {
  return [0, 25, 50, 75, 87.5, 90, 95, 97.5, 99, 99.5, 99.9, 99.95, 99.99, 100].map((p) => ({
    p,
    valueUs: Math.round(us * (1 + 0.8 * -Math.log10(Math.max(1e-5, 1 - p / 100)))),
  }));
}
