/**
 * `npm run demo:kube`: in a real Kubernetes cluster of two nodes the chart is installed, nodes are drained by kubectl, and the clients of two
 * applications that keep their state in memory check every byte meanwhile. Nothing in it is mocked.
 *
 * Exit status: 0 no message was lost or repeated and no connection reset in any move; 1 one was, or a move did not
 * happen; 2 wrong arguments; 130 interrupted.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { MigrationStatus } from "#control/api/resources.ts";
import { table as alignedTable } from "../bench/figures.ts";
import { createCluster, type KubeObject } from "../test/kube/cluster.ts";
import { AGENT, APPS, INSIDE, REDIS } from "../test/kube/images.ts";
import type { LabProcess } from "../test/lab/lab.ts";
import type { Blackout } from "../test/load/gaps.ts";
import { type Load, startLoad } from "../test/load/load.ts";
import { APPLICATIONS, type Application, GAMES, type MovedPod, Stage } from "./kube-stage.ts";
import { Screen } from "./screen.ts";

const usage = `Usage: npm run demo:kube [-- OPTION...]

A Kubernetes cluster of two nodes on this machine. The chart is installed, two Deployments run on node a with clients outside of
the cluster; kubectl drain empties node a, then, after its uncordon, node b, and holdfast migrate moves one pod more. The first run
builds Kubernetes (a quarter of an hour).

  --websockets N  clients of chat, each sending 40 messages a second   (50)
  --tcp N         clients of echo, each sending 20 kB a second         (10)
  --json          one JSON object on stdout and nothing else there (with: npm run -s demo:kube -- --json)
  --help          this

Clients come to node a's address at ports 8080 and 8081 from first to last: in forward mode the proxies of that node hold their sockets,
so they need it also when the applications have left it. Gateways of the chart are not in it yet.
StatefulSets are not in it: their pods keep their names, and need a third node to move.

Exit status: 0 nothing lost, repeated or reset; 1 something was, or a move failed; 2 wrong arguments.
`;

/** One entry of `moves` in the JSON. */
interface Move {
  /** what has moved it */
  by: string;
  workload: string;
  /** null: none was made */
  migration: string | null;
  from: string;
  to: string;
  fromPod: string;
  toPod: string;
  /** Succeeded, Failed, Aborted; NotMoved: there was no Migration */
  outcome: string;
  reason: string | null;
  /** of the Migration; more than 1: the ones before were taken back */
  attempts: number;
  /** how clients follow */
  downstream: string | null;
  sessions: number;
  messages: number;
  lost: number;
  repeated: number;
  resets: number;
  /** the longest pause that each client saw, in the whole of the drain or command */
  blackoutMs: Blackout;
  /** of the application, by the agents */
  pauseMs: number | null;
  bytes: number | null;
  /** of the Migration */
  phasesMs: Record<string, number>;
}

/** One entry of `drains`. */
interface Drain {
  node: string;
  status: number | null;
  tookMs: number;
  /** what kubectl printed */
  printed: string[];
}

interface Shown {
  moves: Move[];
  drains: Drain[];
}

interface DemoOptions {
  sessions: Record<string, number>;
  json: boolean;
  help: boolean;
}

const NODES = ["a", "b"] as const;
const PREFIX = "hfkdemo";
/** drains of both nodes with both applications, and one pod by a command */
const MOVES = 5;
const INTERVAL_MS = 25;
const BEFORE_MS = 1_000;
const AFTER_MS = 2_000;
/** how long answers may take until they count as lost */
const DRAIN_MS_MAX = 30_000;

class UsageError extends Error {}

function parseOptions(argv: string[]): DemoOptions {
  let values: Record<string, string | boolean | undefined>;
  try {
    values = parseArgs({
      args: argv,
      options: {
        websockets: { type: "string", default: "50" },
        tcp: { type: "string", default: "10" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
  const integer = (name: string): number => {
    const text = String(values[name]);
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < 1 || value > 5_000)
      throw new UsageError(`--${name}: expected a whole number from 1 to 5000, got ${text}`);
    return value;
  };
  return {
    sessions: { chat: integer("websockets"), echo: integer("tcp") },
    json: values.json === true,
    help: values.help === true,
  };
}

async function demo(
  { sessions }: DemoOptions,
  screen: Screen,
  shown: Shown,
  onStage: (stage: Stage) => void,
): Promise<void> {
  const since = elapsed();
  const step = (text: string): void =>
    screen.line(`  ${screen.paint("green", "✔")} ${text} ${screen.paint("dim", `(${since()} s)`)}`);
  screen.live("  starting etcd, the control plane and two nodes");
  const images = [AGENT, APPS, INSIDE, REDIS];
  const cluster = await createCluster({ nodes: [...NODES], images, prefix: PREFIX, redis: false });
  const stage = new Stage(cluster);
  onStage(stage);
  try {
    step("a cluster of two nodes is up");
    screen.live("  helm install");
    await stage.install();
    step("helm install: controller, webhook, agents and a Redis are ready");
    screen.live("  starting chat and echo");
    await stage.deploy("a");
    step(
      `two Deployments in namespace ${GAMES}, which has the label holdfast.dev/inject=enabled, run on node a`,
    );
    const loads = new Map<Application, Load>();
    const { address } = cluster.lab.place("a");
    for (const application of APPLICATIONS)
      loads.set(
        application,
        await startLoad(cluster.lab, application.kind, {
          target: { address, port: application.listen },
          sessions: sessions[application.name] ?? 1,
          intervalMs: INTERVAL_MS,
          drainMsMax: DRAIN_MS_MAX,
        }),
      );
    step(
      `${sessions.chat} WebSocket clients of chat (${address}:8080) and ${sessions.echo} TCP clients of echo (${address}:8081) check every byte`,
    );
    screen.line(
      "    (forward mode: node a holds their sockets from first to last; gateways of the chart are not in it yet)",
    );
    for (const [from, to] of [
      ["a", "b"],
      ["b", "a"],
    ] as const)
      await drain({ stage, loads, screen, shown, from, to });
    await migrate({ stage, loads, screen, shown, from: "a", to: "b" });
    screen.line(`  ${screen.paint("cyan", "kubectl get migrations")}`);
    for (const line of await stage.migrations()) screen.line(`    ${screen.paint("dim", line)}`);
    for (const load of loads.values()) await load.stop();
  } catch (error) {
    if (!cluster.lab.closing) process.stderr.write(`${await stage.state().catch(String)}\n`);
    throw error;
  } finally {
    screen.live("  clearing up");
    await cluster.close();
  }
  screen.line();
}

interface Act {
  stage: Stage;
  loads: Map<Application, Load>;
  screen: Screen;
  shown: Shown;
  from: string;
  to: string;
}

async function drain(act: Act): Promise<void> {
  const { stage, screen, shown, from } = act;
  const printed: string[] = [];
  await perform(act, `kubectl drain ${from}`, {
    applications: APPLICATIONS,
    start: () => stage.drain(from),
    onLine: (line) => {
      // kubectl says every five seconds why a pod is still there
      if (!printed.includes(line)) screen.line(`    ${screen.paint("dim", line)}`);
      printed.push(line);
    },
    onEnd: (status, tookMs) => {
      shown.drains.push({ node: from, status, tookMs, printed });
      screen.line(`    over in ${(tookMs / 1_000).toFixed(1)} s`);
    },
  });
  await stage.kubectl("uncordon", from);
  screen.line(`    node ${from} is uncordoned`);
}

async function migrate(act: Act): Promise<void> {
  const { stage, screen, to } = act;
  await perform(act, "holdfast migrate", {
    applications: APPLICATIONS.slice(0, 1),
    start: (sources) => {
      const [source] = sources.values();
      return stage.migrate(source?.metadata.name ?? "", to);
    },
    onLine: (line) => screen.line(`    ${screen.paint("dim", line)}`),
    onEnd: () => {},
  });
}

interface Command {
  /** that it moves */
  applications: Application[];
  start(sources: Map<Application, KubeObject>): LabProcess;
  /** each line that it prints */
  onLine(line: string): void;
  onEnd(status: number | null, tookMs: number): void;
}

/** Moves applications by one command, and says what their clients saw of it. @throws Error when it, or a move, has failed */
async function perform(
  { stage, loads, screen, shown, from, to }: Act,
  by: string,
  { applications, start, onLine, onEnd }: Command,
): Promise<void> {
  screen.line(`  ${screen.paint("cyan", by)}: ${from} → ${to}`);
  const sources = new Map<Application, KubeObject>();
  for (const application of applications)
    sources.set(application, await stage.servingPod(application.name, from));
  for (const load of loads.values()) await load.mark();
  await sleep(BEFORE_MS);
  const show = (): void => {
    const messages = [...loads.values()].reduce((sum, load) => sum + load.messages, 0);
    const alive = [...loads.values()].reduce((sum, load) => sum + load.alive, 0);
    screen.live(`    ${messages.toLocaleString("en")} answers, ${alive} clients connected`);
  };
  for (const load of loads.values()) load.onProgress(show);
  const startedMs = performance.now();
  const status = await stage.ended(start(sources), onLine);
  onEnd(status, Math.round(performance.now() - startedMs));
  const moved = await stage.movesOf(sources);
  for (const { application, toNode } of moved) await stage.servingPod(application.name, toNode || undefined);
  await sleep(AFTER_MS);
  for (const load of loads.values()) load.onProgress(() => {});
  for (const one of moved) {
    const load = loads.get(one.application);
    if (load === undefined) throw new Error("unreachable");
    const move = await moveOf(by, one, load);
    shown.moves.push(move);
    screen.line(
      `    ${move.workload}: ${move.fromPod} → ${move.toPod}, ${move.messages.toLocaleString("en")} answers checked: ${verdict(screen, move)}; ` +
        `longest pause a client saw: p50 ${move.blackoutMs.p50} ms, max ${move.blackoutMs.max} ms`,
    );
  }
  for (const { outcome, workload, reason } of shown.moves.filter((move) => move.by === by))
    if (outcome !== "Succeeded") throw new Error(`${by}: ${workload}: ${reason}`);
  if (status !== 0) throw new Error(`${by}: exit status ${status}`);
}

async function moveOf(by: string, moved: MovedPod, load: Load): Promise<Move> {
  const { application, status } = moved;
  const report = await load.report();
  for (const problem of report.problems) process.stderr.write(`    ${application.name}: ${problem}\n`);
  return {
    by,
    workload: application.name,
    migration: moved.migration,
    from: moved.fromNode,
    to: moved.toNode,
    fromPod: moved.fromPod,
    toPod: moved.toPod,
    outcome: status.phase ?? "NotMoved",
    reason: status.message ?? (moved.migration === null ? "it was ended and started anew" : null),
    attempts: status.attempt ?? 1,
    downstream: status.move?.downstream ?? null,
    sessions: report.sessions,
    messages: report.messages,
    lost: report.lost + report.corrupt,
    repeated: report.repeated,
    resets: report.resets,
    blackoutMs: report.blackoutMs,
    pauseMs: status.move?.pauseMs ?? null,
    bytes: status.move?.bytes ?? null,
    phasesMs: phasesOf(status),
  };
}

/** How long it was in each phase but the last; in each attempt, together. */
function phasesOf({ phaseTransitionTimestamps: at = [] }: MigrationStatus): Record<string, number> {
  const phases: Record<string, number> = {};
  for (const [index, { phase, timestamp }] of at.entries()) {
    const next = at[index + 1];
    if (next !== undefined)
      phases[phase] = (phases[phase] ?? 0) + Date.parse(next.timestamp) - Date.parse(timestamp);
  }
  return phases;
}

function elapsed(): () => string {
  const startedMs = performance.now();
  return () => ((performance.now() - startedMs) / 1_000).toFixed(1);
}

function isPerfect({ lost, repeated, resets, outcome }: Move): boolean {
  return lost === 0 && repeated === 0 && resets === 0 && outcome === "Succeeded";
}

function verdict(screen: Screen, move: Move): string {
  const text = `${move.lost} lost, ${move.repeated} repeated, ${move.resets} resets`;
  return screen.paint(isPerfect(move) ? "green" : "red", text);
}

/** A column for each move, a row for each figure. */
function table(moves: Move[]): string[] {
  const phases = [...new Set(moves.flatMap(({ phasesMs }) => Object.keys(phasesMs)))];
  const figure = (name: string, of: (move: Move) => string | number) => [
    name,
    ...moves.map((move) => String(of(move))),
  ];
  return alignedTable([
    figure("application", ({ workload }) => workload),
    figure("by", ({ by }) => by),
    figure("move", ({ from, to }) => `${from} → ${to}`),
    figure("downstream", ({ downstream }) => downstream ?? "-"),
    figure("attempts", ({ attempts }) => attempts),
    figure("sessions", ({ sessions }) => sessions),
    figure("answers", ({ messages }) => messages),
    figure("lost", ({ lost }) => lost),
    figure("repeated", ({ repeated }) => repeated),
    figure("resets", ({ resets }) => resets),
    figure("pause p50 ms", ({ blackoutMs }) => blackoutMs.p50.toFixed(1)),
    figure("pause p99 ms", ({ blackoutMs }) => blackoutMs.p99.toFixed(1)),
    figure("pause max ms", ({ blackoutMs }) => blackoutMs.max.toFixed(1)),
    figure("by the agents, ms", ({ pauseMs }) => pauseMs?.toFixed(1) ?? "-"),
    figure("phases, ms", () => ""),
    ...phases.map((name) => figure(`  ${name}`, ({ phasesMs }) => phasesMs[name] ?? "-")),
  ]);
}

async function main(): Promise<number> {
  const options = parseOptions(process.argv.slice(2));
  if (options.help) {
    process.stdout.write(usage);
    return 0;
  }
  const screen = new Screen(options.json);
  // The laboratory clears itself away on a signal; what breaks meanwhile needs no telling.
  let interrupted = false;
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      interrupted = true;
      screen.line();
      process.stderr.write("demo:kube: stopping\n");
    });
  screen.line(
    `${screen.paint("bold", "Holdfast on Kubernetes")}: kubectl drain, there and back, under the eyes of ${options.sessions.chat} WebSocket and ${options.sessions.echo} TCP clients\n`,
  );
  const shown: Shown = { moves: [], drains: [] };
  let stage: Stage | null = null;
  try {
    await demo(options, screen, shown, (made) => {
      stage = made;
    });
  } catch (error) {
    if (interrupted) return 130;
    screen.line();
    process.stderr.write(`demo:kube: ${error instanceof Error ? error.message : String(error)}\n`);
  }
  if (interrupted) return 130;
  const { moves } = shown;
  const perfect = moves.length === MOVES && moves.every(isPerfect);
  if (options.json) {
    const commands = (stage as Stage | null)?.commands ?? [];
    process.stdout.write(`${JSON.stringify({ ...shown, commands })}\n`);
  } else if (moves.length > 0) {
    for (const line of table(moves)) screen.line(line);
    screen.line();
    const summary = perfect
      ? "Every client kept its connection; nothing lost, nothing repeated."
      : `${moves.filter(isPerfect).length} of ${MOVES} moves went without anybody noticing.`;
    screen.line(screen.paint(perfect ? "green" : "red", summary));
    screen.line(
      "Pods of StatefulSets move, too, where there is a third node: test/kube/stateful-set.test.ts.",
    );
  }
  return perfect ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`demo:kube: ${error instanceof Error ? error.message : String(error)}\n`);
  if (error instanceof UsageError) process.stderr.write("try: npm run demo:kube -- --help\n");
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
