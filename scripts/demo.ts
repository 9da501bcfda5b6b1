/**
 * `npm run demo`: the main job, to watch. In a laboratory of two nodes a stateful WebSocket application is moved from
 * node to node and back under load, once with its address moving along (takeover) and once with the address staying
 * (forward), and every client checks every answer; or behind a gateway, from node to node to node, with the first one switched off on the
 * way. Nothing in it is mocked.
 *
 * Exit status: 0 no message was lost or repeated and no connection reset in any move; 1 one was, or a move did not
 * happen; 2 wrong arguments; 130 interrupted.
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type BareRun, runBareCriu } from "../bench/bare-criu.ts";
import { table as alignedTable } from "../bench/figures.ts";
import {
  type AgentConfig,
  createLab,
  type Lab,
  type LabAgent,
  nodeBinary,
  projectRoot,
} from "../test/lab/lab.ts";
import type { Blackout } from "../test/load/gaps.ts";
import { type Load, startLoad } from "../test/load/load.ts";
import { demoReplay, isPerfectRestart, type RestartRow, restartTable } from "./demo-replay.ts";
import { follow, type PhaseEvent, untilAppAnswers } from "./follow.ts";
import { Screen } from "./screen.ts";

const usage = `Usage: npm run demo [-- OPTION...]

Moves a live WebSocket application between two nodes under load, and shows what its clients notice; or, with the replay
tier, restarts an application behind its HTTP and WebSocket clients.

  --tier TIER     transplant: moves; replay: restarts           (transplant)
  --sessions N    clients, each sending 40 messages a second    (100)
  --moves N       moves in each mode: a→b, b→a, …; restarts     (2)
  --app-mb N      MiB of memory the application keeps           (0)
  --mode MODE     takeover, forward, both or gateway; not with replay   (both)
  --json          one JSON object on stdout and nothing else there (with: npm run -s demo -- --json)
  --help          this

Exit status: 0 nothing lost, repeated or reset; 1 something was, or a move failed; 2 wrong arguments.
`;

type Mode = "takeover" | "forward" | "gateway";

/** One entry of `moves` in the JSON; field for field what the command promises. */
interface Move {
  from: string;
  to: string;
  downstream: Mode;
  sessions: number;
  messages: number;
  lost: number;
  repeated: number;
  resets: number;
  blackoutMs: Blackout;
  phasesMs: Record<string, number>;
  criuMs: { dump: number; restore: number };
}

/** What CRIU alone takes, and what clients see of it. */
interface Bare extends BareRun {
  blackoutMs: Blackout;
}

interface MigrationResult {
  phasesMs?: Record<string, number>;
  criuMs?: { dump: number; restore: number };
  outcome: "moved" | "rolled-back";
  reason?: string | null;
}

interface DemoOptions {
  tier: "transplant" | "replay";
  sessions: number;
  moves: number;
  appMb: number;
  modes: Mode[];
}

const port = 8080;
const vip = "10.99.0.50";
const intervalMs = 25;
const beforeMoveMs = 400;
const afterMoveMs = 800;

class UsageError extends Error {}

function parseOptions(argv: string[]): DemoOptions & { json: boolean; help: boolean } {
  let values: Record<string, string | boolean | undefined>;
  try {
    values = parseArgs({
      args: argv,
      options: {
        tier: { type: "string", default: "transplant" },
        sessions: { type: "string", default: "100" },
        moves: { type: "string", default: "2" },
        "app-mb": { type: "string", default: "0" },
        mode: { type: "string", default: "both" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
  const integer = (name: string, min: number, max: number): number => {
    const text = String(values[name]);
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < min || value > max) {
      throw new UsageError(`--${name}: expected a whole number from ${min} to ${max}, got ${text}`);
    }
    return value;
  };
  const mode = String(values.mode);
  if (mode !== "both" && mode !== "takeover" && mode !== "forward" && mode !== "gateway") {
    throw new UsageError(`--mode: expected takeover, forward, both or gateway, got ${mode}`);
  }
  const tier = String(values.tier);
  if (tier !== "transplant" && tier !== "replay") {
    throw new UsageError(`--tier: expected transplant or replay, got ${tier}`);
  }
  return {
    tier,
    sessions: integer("sessions", 1, 20_000),
    moves: integer("moves", 1, 1_000),
    appMb: integer("app-mb", 0, 65_536),
    modes: mode === "both" ? ["takeover", "forward"] : [mode],
    json: values.json === true,
    help: values.help === true,
  };
}

function workload(mode: Mode, appMb: number, start: boolean): AgentConfig {
  return {
    name: "chat",
    start,
    container: {
      command: [nodeBinary, "server.js"],
      cwd: join(projectRoot, "test/apps/chat"),
      env: { PORT: "9000", APP_MB: String(appMb) },
      rootfs: "host",
    },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
    // Bare CRIU ends it for a moment, which is not for the agent to mend.
    restart: "never",
    ...(mode === "takeover" ? { vip: { address: `${vip}/24`, device: "eth0" } } : {}),
    ...(mode === "gateway" ? { downstream: "gateway" } : {}),
  };
}

const nodesOf: Record<Mode, string[]> = {
  takeover: ["a", "b"],
  forward: ["a", "b"],
  gateway: ["a", "b", "c"],
};

/** There and back; behind a gateway, where the first node is switched off, on to a third and back. */
function routeOf(mode: Mode, index: number): { from: string; to: string } {
  const there = index % 2 === 0;
  if (mode !== "gateway") return there ? { from: "a", to: "b" } : { from: "b", to: "a" };
  if (index === 0) return { from: "a", to: "b" };
  return there ? { from: "c", to: "b" } : { from: "b", to: "c" };
}

function addressOf(mode: Mode, lab: Lab): string {
  if (mode === "takeover") return vip;
  return lab.place(mode === "gateway" ? "g" : "a").address;
}

const explained: Record<Mode, string> = {
  takeover: `the address ${vip} moves with the application`,
  forward: "the address stays on node a, which forwards",
  gateway: "clients connect to a gateway; node a is switched off when the application has left it",
};

/** Posts the migration to the node that owns the workload and follows it to its result. */
async function migrate(
  agent: LabAgent,
  to: string,
  onPhase: (event: PhaseEvent) => void,
): Promise<MigrationResult> {
  const { move } = await follow<{ move: MigrationResult }>(
    agent,
    "/v1/workloads/chat/migrate",
    { to },
    onPhase,
  );
  return move;
}

async function demoMode(
  mode: Mode,
  options: DemoOptions,
  screen: Screen,
  moves: Move[],
  bare: Bare[],
): Promise<void> {
  const startedMs = performance.now();
  const nodes = nodesOf[mode];
  const lab = await createLab({ nodes, gateways: mode === "gateway" ? ["g"] : [], prefix: "hfdemo" });
  try {
    const address = addressOf(mode, lab);
    screen.line(`${screen.paint("bold", mode)}: ${explained[mode]}`);
    screen.live(`  starting Redis, ${nodes.length} nodes and their agents`);
    if (mode === "gateway")
      await lab.startGateway("g", { listen: [{ address: `${address}:${port}`, workload: "chat" }] });
    const agents = new Map<string, LabAgent>();
    for (const node of nodes) {
      agents.set(
        node,
        await lab.startAgent(node, { workloads: [workload(mode, options.appMb, node === "a")] }),
      );
    }
    screen.live("  waiting for the application");
    await untilAppAnswers(lab, `http://${address}:${port}/`);
    const load = await startLoad(lab, "ws", {
      target: { address, port },
      sessions: options.sessions,
      intervalMs,
    });
    screen.line(
      `  Redis, nodes ${nodes.slice(0, -1).join(", ")} and ${nodes.at(-1)}, the application and ${options.sessions} clients are up ${screen.paint("dim", `(${((performance.now() - startedMs) / 1000).toFixed(1)} s)`)}`,
    );
    for (let index = 0; index < options.moves; index++) {
      const { from, to } = routeOf(mode, index);
      const agent = agents.get(from);
      if (agent === undefined) throw new Error("unreachable");
      const afterwards = mode === "gateway" && index === 0 ? () => lab.killNode(from, true) : () => {};
      moves.push(await demoMove({ mode, from, to, agent, load, screen, afterwards }));
    }
    const last = routeOf(mode, options.moves - 1).to;
    bare.push(await demoBare(lab.stateDir(last), load, screen));
    await load.stop();
  } catch (error) {
    for (const agent of lab.agents.values()) {
      if (lab.closing) break;
      const last = `${agent.stdout}${agent.stderr}`.trim().split("\n").slice(-5).join("\n    ");
      if (last !== "") process.stderr.write(`  agent ${agent.node}, last lines:\n    ${last}\n`);
    }
    throw error;
  } finally {
    await lab.close();
  }
  screen.line();
}

async function demoMove(input: {
  mode: Mode;
  from: string;
  to: string;
  agent: LabAgent;
  load: Load;
  screen: Screen;
  /** as soon as it is done; what clients see of that counts for the move */
  afterwards(): void;
}): Promise<Move> {
  const { mode, from, to, agent, load, screen, afterwards } = input;
  let doing = "messages flow";
  const startMessages = load.messages;
  const show = () => {
    const answered = (load.messages - startMessages).toLocaleString("en");
    screen.live(`    ${doing.padEnd(24)} ${answered} answers, ${load.alive} clients connected`);
  };
  load.onProgress(show);
  screen.line(`  ${screen.paint("cyan", `${from} → ${to}`)}`);
  await load.mark();
  await sleep(beforeMoveMs);
  const phasesMs: Record<string, number> = {};
  const result = await migrate(agent, to, (event) => {
    if (event.state === "start") {
      doing = event.phase;
      show();
      return;
    }
    phasesMs[event.phase] = event.ms ?? 0;
    screen.line(
      `    ${screen.paint("green", "✔")} ${event.phase.padEnd(22)} ${milliseconds(event.ms ?? 0).padStart(9)} ms`,
    );
  });
  if (result.outcome === "moved") afterwards();
  doing = "messages flow";
  await sleep(afterMoveMs);
  const report = await load.report();
  load.onProgress(() => {});
  const move: Move = {
    from,
    to,
    downstream: mode,
    sessions: report.sessions,
    messages: report.messages,
    lost: report.lost + report.corrupt,
    repeated: report.repeated,
    resets: report.resets,
    blackoutMs: report.blackoutMs,
    phasesMs: result.phasesMs ?? phasesMs,
    criuMs: result.criuMs ?? { dump: 0, restore: 0 },
  };
  screen.line(
    `    ${report.messages.toLocaleString("en")} answers checked: ${verdict(screen, move)}; longest pause a client saw: ` +
      `p50 ${report.blackoutMs.p50} ms, max ${report.blackoutMs.max} ms`,
  );
  for (const problem of report.problems) process.stderr.write(`    ${problem}\n`);
  if (result.outcome !== "moved")
    throw new Error(`${from} → ${to}: ${result.outcome}: ${result.reason ?? "no reason given"}`);
  return move;
}

/** The same application with the same clients, dumped and restored in place by CRIU alone: the least it can cost. */
async function demoBare(stateDir: string, load: Load, screen: Screen): Promise<Bare> {
  screen.line(`  ${screen.paint("cyan", "bare CRIU, in place")}`);
  await load.mark();
  await sleep(beforeMoveMs);
  const { wallMs, dumpMs, restoreMs } = await runBareCriu(stateDir, "chat");
  await sleep(afterMoveMs);
  const { blackoutMs } = await load.report();
  screen.line(
    `    criu dump and criu restore, ${milliseconds(wallMs)} ms; longest pause a client saw: p50 ${blackoutMs.p50} ms, max ${blackoutMs.max} ms`,
  );
  return { wallMs, dumpMs, restoreMs, blackoutMs };
}

function isPerfect({ lost, repeated, resets }: Move): boolean {
  return lost === 0 && repeated === 0 && resets === 0;
}

function verdict(screen: Screen, move: Move): string {
  const text = `${move.lost} lost, ${move.repeated} repeated, ${move.resets} resets`;
  return screen.paint(isPerfect(move) ? "green" : "red", text);
}

function milliseconds(ms: number): string {
  return ms.toFixed(1);
}

/** A column for each move and each run of bare CRIU; a row for each figure. */
function table(moves: Move[], bare: Bare[]): string[] {
  const phases = [...new Set(moves.flatMap(({ phasesMs }) => Object.keys(phasesMs)))];
  const figure = (
    name: string,
    of: (move: Move) => string | number,
    ofBare: (run: Bare) => string | number = () => "",
  ) => [name, ...moves.map((move) => String(of(move))), ...bare.map((run) => String(ofBare(run)))];
  const phase = (name: string) =>
    figure(`  ${name}`, ({ phasesMs }) => (name in phasesMs ? milliseconds(phasesMs[name] ?? 0) : "-"));
  const rows = [
    figure(
      "move",
      ({ from, to }) => `${from} → ${to}`,
      () => "bare CRIU",
    ),
    figure("downstream", ({ downstream }) => downstream),
    figure("sessions", ({ sessions }) => sessions),
    figure("messages", ({ messages }) => messages),
    figure("lost", ({ lost }) => lost),
    figure("repeated", ({ repeated }) => repeated),
    figure("resets", ({ resets }) => resets),
    figure(
      "blackout p50 ms",
      ({ blackoutMs }) => milliseconds(blackoutMs.p50),
      ({ blackoutMs }) => milliseconds(blackoutMs.p50),
    ),
    figure(
      "blackout p99 ms",
      ({ blackoutMs }) => milliseconds(blackoutMs.p99),
      ({ blackoutMs }) => milliseconds(blackoutMs.p99),
    ),
    figure(
      "blackout max ms",
      ({ blackoutMs }) => milliseconds(blackoutMs.max),
      ({ blackoutMs }) => milliseconds(blackoutMs.max),
    ),
    figure("phases, ms", () => ""),
    ...phases.map(phase),
    figure("CRIU's own part, ms", () => ""),
    figure(
      "  dump",
      ({ criuMs }) => milliseconds(criuMs.dump),
      ({ dumpMs }) => milliseconds(dumpMs),
    ),
    figure(
      "  restore",
      ({ criuMs }) => milliseconds(criuMs.restore),
      ({ restoreMs }) => milliseconds(restoreMs),
    ),
  ];
  return alignedTable(rows);
}

async function main(): Promise<number> {
  const options = parseOptions(process.argv.slice(2));
  if (options.help) {
    process.stdout.write(usage);
    return 0;
  }
  const screen = new Screen(options.json);
  // The laboratory clears itself away on a signal; what breaks meanwhile needs no telling.
  const interruption = { seen: false };
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      interruption.seen = true;
      screen.line();
      process.stderr.write("demo: stopping\n");
    });
  }
  const perfect =
    options.tier === "replay"
      ? await mainReplay(options, screen, interruption)
      : await mainTransplant(options, screen, interruption);
  if (interruption.seen) return 130;
  return perfect ? 0 : 1;
}

async function mainReplay(
  options: DemoOptions & { json: boolean },
  screen: Screen,
  interruption: { seen: boolean },
): Promise<boolean> {
  screen.line(
    `${screen.paint("bold", "Holdfast")}: ${options.sessions} HTTP and WebSocket clients, one application that is restarted ${options.moves} times\n`,
  );
  const restarts: RestartRow[] = [];
  try {
    await demoReplay({ sessions: options.sessions, restarts: options.moves, intervalMs }, screen, restarts);
  } catch (error) {
    if (interruption.seen) return false;
    screen.line();
    process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  }
  const perfect = restarts.length === options.moves && restarts.every(isPerfectRestart);
  if (options.json) process.stdout.write(`${JSON.stringify({ restarts })}\n`);
  else if (restarts.length > 0) {
    for (const line of restartTable(restarts)) screen.line(line);
    screen.line();
    const summary = perfect
      ? "Every client kept its connection; no request failed, no message was lost or repeated."
      : `${restarts.filter(isPerfectRestart).length} of ${options.moves} restarts went without anybody noticing.`;
    screen.line(screen.paint(perfect ? "green" : "red", summary));
  }
  return perfect;
}

async function mainTransplant(
  options: DemoOptions & { json: boolean },
  screen: Screen,
  interruption: { seen: boolean },
): Promise<boolean> {
  const moves: Move[] = [];
  const bare: Bare[] = [];
  const expected = options.moves * options.modes.length;
  screen.line(
    `${screen.paint("bold", "Holdfast")}: ${options.sessions} WebSocket clients, one application that keeps their state in memory, ${expected} moves\n`,
  );
  try {
    for (const mode of options.modes) await demoMode(mode, options, screen, moves, bare);
  } catch (error) {
    if (interruption.seen) return false;
    screen.line();
    process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  }
  const perfect = moves.length === expected && moves.every(isPerfect);
  if (options.json) {
    process.stdout.write(`${JSON.stringify({ moves })}\n`);
  } else if (moves.length > 0) {
    for (const line of table(moves, bare)) screen.line(line);
    screen.line();
    const summary = perfect
      ? "Every client kept its connection; nothing lost, nothing repeated."
      : `${moves.filter(isPerfect).length} of ${expected} moves went without anybody noticing.`;
    screen.line(screen.paint(perfect ? "green" : "red", summary));
  }
  return perfect;
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  if (error instanceof UsageError) process.stderr.write("try: npm run demo -- --help\n");
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
