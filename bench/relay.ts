/**
 * `npm run bench:relay`: what the proxy costs on the way of every byte, beside other relays, in one interleaved run.
 *
 * Pieces: `requests` (HTTP/1.1 requests a second), `latency` (added at fixed rates, open loop), `idle` (memory and
 * requests beside idle WebSocket sessions), `pause` (what a restart's pause grows by). Every relay runs on one and the same CPU,
 * one at a time; load generators and application share another one. Figures are medians of rounds with the least and
 * the greatest; machines are noisy, so read the ratios. Nothing is discarded but half a second of warming up.
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { availableParallelism, cpus, release } from "node:os";
import { parseArgs } from "node:util";
import { median, table, wholeNumber } from "./figures.ts";
import { type IdleKind, type IdleSample, measureIdle, renderIdle, sessionsMax } from "./idle.ts";
import { type LatencySample, measureLatency, renderLatency } from "./latency.ts";
import { Backend } from "./load/backend.ts";
import { wrkVersion } from "./load/wrk.ts";
import { measurePause, type PauseSample, pauseProblems, renderPause } from "./pause.ts";
import { direct } from "./peers/direct.ts";
import { haproxyHttp, haproxyTcp } from "./peers/haproxy.ts";
import { holdfast } from "./peers/holdfast.ts";
import { httpProxy } from "./peers/http-proxy.ts";
import { httpxy } from "./peers/httpxy.ts";
import { nginxHttp, nginxStream } from "./peers/nginx.ts";
import { nodePipe } from "./peers/node-pipe.ts";
import type { Peer } from "./peers/peer.ts";
import { type Problem, Relays } from "./relays.ts";
import { measureRequests, type RequestSample, ratios, renderRequests } from "./requests.ts";
import { Stage } from "./stage.ts";

const peers: Peer[] = [
  direct,
  holdfast("tcp"),
  holdfast("http"),
  holdfast("replay"),
  nodePipe,
  httpProxy,
  httpxy,
  haproxyTcp,
  haproxyHttp,
  nginxStream,
  nginxHttp,
];
const pieces = ["requests", "latency", "idle", "pause"] as const;
type Piece = (typeof pieces)[number];

const CONNECTIONS = [1, 32, 256];
const LATENCY_CONNECTIONS = 32;
const RATES_PER_SECOND = [1_000, 5_000, 15_000];
/** threads of one process wait for each other a little */
const WAITED_MAX = 0.05;
const IDLE_STEPS = [10, 100, 1_000, 10_000];

const usage = `Usage: npm run bench:relay [-- OPTION...]

  --quick       one round of one second, fewer rates: two minutes, and no more than an impression
  --only NAME,… of ${pieces.join(", ")}; and of the relays
                ${peers.map(({ name }) => name).join(", ")}
  --rounds N    rounds of everything                       (3)
  --seconds N   length of each measurement                 (3)
  --sessions N  idle sessions in the last step             (10000)
  --json FILE   writes everything measured to FILE
  --help        this
`;

interface Options {
  pieces: Piece[];
  peers: Peer[];
  rounds: number;
  seconds: number;
  rates: number[];
  idleKinds: IdleKind[];
  idleSteps: number[];
  restarts: number;
  json: string | undefined;
}

interface Results {
  machine: Record<string, string>;
  versions: Record<string, string>;
  /** relays and tools that are not there */
  missing: Problem[];
  /** counts that do not fit, errors, pieces that could not be measured, ports that are not what their name says */
  problems: Problem[];
  notes: string[];
  requests: RequestSample[];
  latency: LatencySample[];
  idle: IdleSample[];
  pause: PauseSample[];
}

function parse(argv: string[]): Options | "help" {
  const { values } = parseArgs({
    args: argv,
    options: {
      quick: { type: "boolean", default: false },
      only: { type: "string" },
      rounds: { type: "string" },
      seconds: { type: "string" },
      sessions: { type: "string", default: "10000" },
      json: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return "help";
  const { quick } = values;
  const only = values.only?.split(",") ?? [];
  const unknown = only.find(
    (name) => !pieces.some((piece) => piece === name) && !peers.some((peer) => peer.name === name),
  );
  if (unknown !== undefined) throw new TypeError(`--only: there is no ${unknown}`);
  const onlyPieces = pieces.filter((piece) => only.includes(piece));
  const onlyPeers = peers.filter((peer) => only.includes(peer.name));
  const sessions = wholeNumber(values.sessions, "sessions", 1, 100_000);
  return {
    pieces: onlyPieces.length > 0 ? onlyPieces : [...pieces],
    // Everything is told beside the direct way.
    peers: onlyPeers.length > 0 ? [...new Set([direct, ...onlyPeers])] : peers,
    rounds: wholeNumber(values.rounds ?? (quick ? "1" : "3"), "rounds", 1, 100),
    seconds: wholeNumber(values.seconds ?? (quick ? "1" : "3"), "seconds", 1, 600),
    rates: quick ? RATES_PER_SECOND.slice(1, 2) : RATES_PER_SECOND,
    idleKinds: quick ? ["websocket"] : ["tcp", "websocket", "replay"],
    idleSteps: [...IDLE_STEPS.filter((step) => step < sessions), sessions],
    restarts: quick ? 5 : 20,
    json: values.json,
  };
}

async function measure(stage: Stage, options: Options, results: Results): Promise<void> {
  const say =
    (what: string) =>
    (line: string): void => {
      process.stderr.write(`${what}: ${line}\n`);
    };
  const wants = (piece: Piece): boolean => options.pieces.includes(piece);
  if (wants("requests") || wants("latency")) await measureRelays(stage, options, results, say);
  if (wants("idle")) {
    const most = sessionsMax();
    const steps = options.idleSteps.map((step) => Math.min(step, most));
    if (options.idleSteps.some((step) => step > most))
      results.notes.push(
        `idle: ${Math.max(...options.idleSteps)} sessions were asked for, RLIMIT_NOFILE allows a proxy ${most} here`,
      );
    const backend = await Backend.start(stage, "idle-backend");
    for (let round = 1; round <= options.rounds; round++) {
      for (const kind of options.idleKinds) {
        await attempt(stage, results, `idle, ${kind}, round ${round}`, async () => {
          const { seconds } = options;
          const each = { round, kind, steps: [...new Set(steps)], seconds };
          results.idle.push(...(await measureIdle(stage, backend, each, say(`idle, round ${round}`))));
        });
      }
    }
  }
  if (wants("pause")) {
    await attempt(stage, results, "pause", async () => {
      results.pause.push(...(await measurePause(stage, { restarts: options.restarts }, say("pause"))));
      results.problems.push(...pauseProblems(results.pause));
    });
  }
}

async function measureRelays(
  stage: Stage,
  options: Options,
  results: Results,
  say: (what: string) => (line: string) => void,
): Promise<void> {
  process.stderr.write(`starting ${options.peers.map(({ name }) => name).join(", ")}\n`);
  const relays = await Relays.start(stage, options.peers);
  const wrk = wrkVersion();
  if (wrk === null)
    results.missing.push({ where: "wrk", what: "is not installed; scripts/setup.sh bench installs it" });
  results.missing.push(...relays.missing);
  results.versions["application (nginx)"] = relays.backend.version;
  results.versions.wrk = wrk ?? "missing";
  for (const { name, version, note } of relays.peers) {
    if (name !== direct.name) results.versions[name] = version;
    if (note !== null) relays.problems.push({ where: name, what: note });
  }
  try {
    for (let round = 1; round <= options.rounds; round++) {
      const { seconds, rates } = options;
      if (options.pieces.includes("requests"))
        results.requests.push(
          ...(await measureRequests(
            relays,
            { round, seconds, connections: CONNECTIONS, wrk: wrk !== null },
            say(`requests, round ${round}`),
          )),
        );
      if (options.pieces.includes("latency"))
        results.latency.push(
          ...(await measureLatency(
            relays,
            { round, seconds, rates, connections: LATENCY_CONNECTIONS },
            say(`latency, round ${round}`),
          )),
        );
    }
  } finally {
    results.problems.push(...relays.problems);
  }
}

/** One piece that cannot be measured does not take the others with it, and is not passed over in silence. */
async function attempt(
  stage: Stage,
  results: Results,
  where: string,
  run: () => Promise<void>,
): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (stage.closed) throw error;
    results.problems.push({ where, what: `not measured: ${(error as Error).message}` });
  }
}

/** What is to be reached, and what was. */
function renderGoals({ requests, idle, pause }: Results): string[] {
  const tool = requests.some((each) => each.tool === "wrk") ? "wrk" : "own";
  const main = requests.filter((each) => each.tool === tool);
  const rows: string[][] = [["", "goal", "here", ""]];
  const row = (
    name: string,
    goal: string,
    values: number[],
    digits: number,
    reached: (value: number) => boolean,
  ): void => {
    if (values.length === 0) rows.push([name, goal, "-", "not measured"]);
    else {
      const value = median(values);
      rows.push([name, goal, value.toFixed(digits), reached(value) ? "reached" : "MISSED"]);
    }
  };
  // One connection waits for its round trips, whoever relays them.
  const crowds = CONNECTIONS.filter((connections) => connections > 1);
  for (const connections of main.length > 0 ? crowds : []) {
    const of = (other: string): number[] => ratios(main, "holdfast-http", other, connections);
    row(
      `observed HTTP beside unobserved, ${connections} connections`,
      ">= 0.90",
      of("holdfast-tcp"),
      2,
      (value) => value >= 0.9,
    );
    row(
      `observed HTTP beside http-proxy, ${connections} connections`,
      ">= 4.00",
      of("http-proxy"),
      2,
      (value) => value >= 4,
    );
  }
  const most = Math.max(...idle.map(({ sessions }) => sessions));
  for (const kind of new Set(idle.map((sample) => sample.kind))) {
    if (kind === "tcp") continue;
    const last = idle.filter((sample) => sample.kind === kind && sample.sessions === most);
    row(
      `kB an idle session, ${kind}, ${most} open`,
      "<= 12.0",
      last.map(({ bytesPerSession }) => bytesPerSession / 1024),
      1,
      (value) => value <= 12,
    );
  }
  for (const kind of new Set(pause.map((sample) => sample.kind))) {
    const added = pause.filter((sample) => sample.kind === kind).map(({ addedMs }) => addedMs);
    row(`ms added to the pause, ${kind} request`, "<= 2.0", added, 1, (value) => value <= 2);
  }
  return rows.length === 1 ? [] : ["", "Goals", "", ...table(rows)];
}

/** Relays have a CPU of their own, so they never wait for it, unless this machine has something else to do. */
function othersAtWork({ requests, latency }: Results): string[] {
  const waited = [...requests, ...latency].map((sample) => sample.waited).filter((share) => share !== null);
  if (waited.length === 0 || median(waited) < WAITED_MAX) return [];
  return [
    "",
    `NOT A CALM MACHINE: the relays were ready to run and did not for ${Math.round(median(waited) * 100)} % of the time ` +
      `(median; at most ${Math.round(Math.max(...waited) * 100)} %). Something else used their CPU; do not trust these figures.`,
  ];
}

function render(results: Results): string {
  const listed = (title: string, problems: Problem[]): string[] =>
    problems.length === 0 ? [] : ["", title, "", ...problems.map(({ where, what }) => `  ${where}: ${what}`)];
  const { versions } = results;
  return `${[
    Object.values(results.machine).join(", "),
    ...Object.entries(versions).map(([name, version]) => `  ${name} ${version}`),
    ...listed("MISSING, and so not in any figure:", results.missing),
    ...(results.requests.length > 0 ? ["", ...renderRequests(results.requests)] : []),
    ...(results.latency.length > 0 ? renderLatency(results.latency) : []),
    ...(results.idle.length > 0 ? renderIdle(results.idle) : []),
    ...(results.pause.length > 0 ? renderPause(results.pause) : []),
    ...renderGoals(results),
    ...othersAtWork(results),
    ...(results.notes.length > 0 ? ["", ...results.notes] : []),
    ...listed(
      "PROBLEMS: figures of these are void or are something else than their name says",
      results.problems,
    ),
  ].join("\n")}\n`;
}

/** @returns "-" outside of a checkout */
function commit(): string {
  try {
    return execFileSync("git", ["rev-parse", "--short", "HEAD"], {
      cwd: import.meta.dirname,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    }).trim();
  } catch {
    return "-";
  }
}

async function main(): Promise<number> {
  let options: Options;
  try {
    const parsed = parse(process.argv.slice(2));
    if (parsed === "help") {
      process.stdout.write(usage);
      return 0;
    }
    options = parsed;
  } catch (error) {
    process.stderr.write(`bench:relay: ${(error as Error).message}\n\n${usage}`);
    return 2;
  }
  const results: Results = {
    machine: {
      cpu: `${availableParallelism()} × ${cpus()[0]?.model ?? "?"}`,
      kernel: `Linux ${release()}`,
      node: `Node ${process.version}`,
      commit: `commit ${commit()}`,
    },
    versions: {},
    missing: [],
    problems: [],
    notes: [],
    requests: [],
    latency: [],
    idle: [],
    pause: [],
  };
  const stage = new Stage();
  let interrupted = 0;
  for (const [signal, status] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    process.once(signal, () => {
      interrupted = status;
      void stage.close();
    });
  }
  try {
    if (stage.cpus.server === stage.cpus.load)
      results.notes.push("There is one CPU only: relays, load and application share it.");
    await measure(stage, options, results);
  } catch (error) {
    // What the end of its processes breaks is not worth a word.
    if (interrupted === 0) throw error;
  } finally {
    await stage.close();
  }
  if (interrupted !== 0) return interrupted;
  process.stdout.write(render(results));
  if (options.json !== undefined) {
    const { pieces, rounds, seconds } = options;
    writeFileSync(
      options.json,
      `${JSON.stringify({ options: { pieces, rounds, seconds }, ...results }, null, 2)}\n`,
    );
  }
  return results.problems.length > 0 ? 1 : 0;
}

process.exitCode = await main();
