/**
 * `npm run demo:kube`: in a real Kubernetes cluster of three nodes the chart is installed, nodes are drained by kubectl, one is then switched
 * off, and the clients of two applications that keep their state in memory check every byte meanwhile. Nothing in it is mocked.
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
import { goneIn, type LoadReport } from "../test/load/protocol.ts";
import { APPLICATIONS, type Application, EDGE, GAMES, type MovedPod, Stage } from "./kube-stage.ts";
import { Screen } from "./screen.ts";

const usage = `Usage: npm run demo:kube [-- OPTION...]

A Kubernetes cluster of three nodes on this machine. The chart is installed; a Deployment (chat) and a StatefulSet (echo) run on node a, with
clients outside of the cluster, who come to their Services. kubectl drain empties node a; after its uncordon holdfast migrate moves
chat back, and kubectl drain of node b moves echo. Node b, which is empty then, is switched off. The first run builds Kubernetes (a quarter
of an hour).

  --websockets N  clients of chat, each sending 40 messages a second   (50)
  --tcp N         clients of echo, each sending 20 kB a second         (10)
  --json          one JSON object on stdout and nothing else there (with: npm run -s demo:kube -- --json)
  --help          this

Gateways, of the chart, hold the clients' sockets. They are on node c, with the other parts of Holdfast but the agents. The StatefulSet's
pod keeps its name: echo waits on node c while the pod is made anew, so it moves twice each time, and its clients wait twice.

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
  /** where the application was in between, as its pod keeps its name; null: it moved once */
  via: string | null;
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
  /** of the application, by the agents; both ways together */
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

/** One entry of `off`: what clients of an application saw of a node that was switched off when it was empty. */
interface Off extends Pick<Move, "workload" | "messages" | "lost" | "repeated" | "resets" | "blackoutMs"> {
  node: string;
}

interface Shown {
  moves: Move[];
  drains: Drain[];
  off: Off[];
}

interface DemoOptions {
  sessions: Record<string, number>;
  json: boolean;
  help: boolean;
}

const NODES = ["a", "b"] as const;
const PREFIX = "hfkdemo";
/** a drain with both applications, one back by a command, and a drain with the other */
const MOVES = APPLICATIONS.length * 2;
const INTERVAL_MS = 25;
const BEFORE_MS = 1_000;
const AFTER_MS = 2_000;
const OFF_MS = 5_000;
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
  screen.live("  starting etcd, the control plane and three nodes");
  const images = [AGENT, APPS, INSIDE, REDIS];
  const cluster = await createCluster({ nodes: [...NODES, EDGE], images, prefix: PREFIX, redis: false });
  const stage = new Stage(cluster);
  onStage(stage);
  try {
    step("a cluster of three nodes is up");
    screen.live("  helm install");
    await stage.install();
    step("helm install: controller, webhook, gateways, agents and a Redis are ready");
    screen.live("  starting chat and echo");
    await stage.deploy("a");
    step(
      `Deployment chat and StatefulSet echo run on node a, in namespace ${GAMES} with the label holdfast.dev/inject=enabled`,
    );
    step("their Services have the label holdfast.dev/gateway=enabled: clients come to gateways, on node c");
    const loads = new Map<Application, Load>();
    const { address } = cluster.lab.place(EDGE);
    for (const application of APPLICATIONS)
      loads.set(
        application,
        await startLoad(cluster.lab, application.kind, {
          target: { address, port: application.nodePort },
          sessions: sessions[application.name] ?? 1,
          intervalMs: INTERVAL_MS,
          drainMsMax: DRAIN_MS_MAX,
        }),
      );
    const [chat, echo] = APPLICATIONS.map(({ nodePort }) => `${address}:${nodePort}`);
    step(
      `${sessions.chat} WebSocket clients of chat (${chat}) and ${sessions.echo} TCP clients of echo (${echo}) check every byte`,
    );
    const act = { stage, loads, screen, shown };
    const [a, b] = NODES;
    await drain({ ...act, from: a, to: b });
    await stage.kubectl("uncordon", a);
    screen.line(`    node ${a} is uncordoned`);
    await migrate({ ...act, from: b, to: a });
    await drain({ ...act, from: b, to: a });
    await switchOff(act, b);
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
    applications: await stage.applicationsOn(from),
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
}

/** Everything on the node ends at once, and its cable is pulled; clients are looked at for a while. */
async function switchOff(
  { stage, loads, screen, shown }: Omit<Act, "from" | "to">,
  node: string,
): Promise<void> {
  screen.line(`  ${screen.paint("cyan", `node ${node} is switched off`)}`);
  for (const load of loads.values()) await load.mark();
  await stage.cluster.switchOff(node);
  await sleep(OFF_MS);
  for (const [{ name }, load] of loads) {
    const seen = seenIn(await load.report(), name);
    shown.off.push({ node, workload: name, ...seen });
    screen.line(`    ${name}: ${sight(screen, seen)}`);
  }
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
    const ways = move.via === null ? "" : ` by way of node ${move.via}`;
    screen.line(`    ${move.workload}: ${move.fromPod} → ${move.toPod}${ways}, ${sight(screen, move)}`);
  }
  for (const [application, load] of loads) {
    if (moved.some((one) => one.application === application)) continue;
    const seen = seenIn(await load.report(), application.name);
    if (!isPerfect(seen))
      throw new Error(`${by}: ${application.name}, which does not move: ${sight(screen, seen)}`);
  }
  for (const { outcome, workload, reason } of shown.moves.filter((move) => move.by === by))
    if (outcome !== "Succeeded") throw new Error(`${by}: ${workload}: ${reason}`);
  if (status !== 0) throw new Error(`${by}: exit status ${status}`);
}

async function moveOf(by: string, moved: MovedPod, load: Load): Promise<Move> {
  const { application, status } = moved;
  const report = await load.report();
  return {
    by,
    workload: application.name,
    migration: moved.migration,
    from: moved.fromNode,
    to: moved.toNode,
    via: status.origin === undefined ? null : (status.source?.node ?? null),
    fromPod: moved.fromPod,
    toPod: moved.toPod,
    outcome: status.phase ?? "NotMoved",
    reason: status.message ?? (moved.migration === null ? "it was ended and started anew" : null),
    // the second way begins with one of its own
    attempts: (status.attempt ?? 1) - (status.origin === undefined ? 0 : 1),
    downstream: status.move?.downstream ?? null,
    sessions: report.sessions,
    ...seenIn(report, application.name),
    pauseMs: sumOf(status, "pauseMs"),
    bytes: sumOf(status, "bytes"),
    phasesMs: phasesOf(status),
  };
}

/** What clients have seen since the last mark; what is not as it should be goes to stderr, with its reason. */
type Seen = Pick<Move, "messages" | "lost" | "repeated" | "resets" | "blackoutMs">;

function seenIn(report: LoadReport, name: string): Seen {
  const { messages, lost, corrupt, repeated, blackoutMs, problems } = report;
  for (const problem of problems) process.stderr.write(`    ${name}: ${problem}\n`);
  return { messages, lost: lost + corrupt, repeated, resets: goneIn(report), blackoutMs };
}

/** Of both ways, where a pod keeps its name. null: the agents said nothing of it */
function sumOf({ origin, move }: MigrationStatus, figure: "pauseMs" | "bytes"): number | null {
  const figures = [origin?.move?.[figure], move?.[figure]].filter((one) => one !== undefined);
  return figures.length === 0 ? null : figures.reduce((sum, one) => sum + one, 0);
}

/** How long it was in each phase but the last; in each attempt, and each way, together. */
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

/** @param seen without an outcome it was no move */
function isPerfect({ lost, repeated, resets, outcome = "Succeeded" }: Seen & { outcome?: string }): boolean {
  return lost === 0 && repeated === 0 && resets === 0 && outcome === "Succeeded";
}

function sight(screen: Screen, seen: Seen & { outcome?: string }): string {
  const { messages, lost, repeated, resets, blackoutMs } = seen;
  const text = `${lost} lost, ${repeated} repeated, ${resets} resets`;
  return (
    `${messages.toLocaleString("en")} answers checked: ${screen.paint(isPerfect(seen) ? "green" : "red", text)}; ` +
    `longest pause a client saw: p50 ${blackoutMs.p50} ms, max ${blackoutMs.max} ms`
  );
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
    figure("move", ({ from, via, to }) => [from, via, to].filter((node) => node !== null).join(" → ")),
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
    figure("… by the agents, ms", ({ pauseMs }) => pauseMs?.toFixed(1) ?? "-"),
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
    `${screen.paint("bold", "Holdfast on Kubernetes")}: kubectl drain, there and back, and a node that is switched off, under the eyes of ${options.sessions.chat} WebSocket and ${options.sessions.echo} TCP clients\n`,
  );
  const shown: Shown = { moves: [], drains: [], off: [] };
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
  const { moves, off } = shown;
  const perfect =
    moves.length === MOVES && off.length === APPLICATIONS.length && [...moves, ...off].every(isPerfect);
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
