/**
 * `npm run bench:profile -- NAME`: where the proxy's CPU time goes under one load, closed loop: V8's own CPU profile, a flame
 * graph of it, and the functions that took the most. The profiler costs a few per cent itself: figures are for shares, not for
 * rates. V8 gives all calls that koffi makes one name (that of the first, such as `poll`): whoever calls tells which it is.
 *
 * `cutover` is no load of the proxy's: it shows where the time of a move goes (profile/cutover.ts).
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { startEcho } from "./applications.ts";
import { table, thousands, wholeNumber } from "./figures.ts";
import { Backend } from "./load/backend.ts";
import type { Load, LoadReport } from "./load/load.ts";
import { Program } from "./load/program.ts";
import { describeMachine } from "./machine.ts";
import { type HoldfastKind, startHoldfast } from "./peers/holdfast.ts";
import { type CpuProfile, callTree, selfTimes } from "./profile/call-tree.ts";
import { type CutoverOptions, profileCutover } from "./profile/cutover.ts";
import { ownerTimes, renderFlamePage, TOP_FUNCTIONS } from "./profile/flame.ts";
import { CpuMeter, Stage } from "./stage.ts";

const CACHE = process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast";
const WARM_SECONDS = 1;
const WRITTEN_MS_MAX = 30_000;
const WRITTEN_CHECK_MS = 20;

interface Profiled {
  kind: HoldfastKind;
  load: Pick<Load, "protocol" | "churn">;
}

const LOADS: Record<string, Profiled> = {
  http: { kind: "http", load: { protocol: "http" } },
  "http-replay": { kind: "replay", load: { protocol: "http" } },
  "http-unobserved": { kind: "tcp", load: { protocol: "http" } },
  churn: { kind: "http", load: { protocol: "http", churn: true } },
  "tcp-echo": { kind: "tcp", load: { protocol: "tcp" } },
  "ws-echo": { kind: "websocket", load: { protocol: "websocket" } },
  "ws-echo-replay": { kind: "replay", load: { protocol: "websocket" } },
};

/** beside the loads: where the time of a move goes */
const CUTOVER = "cutover";

const usage = `Usage: npm run bench:profile -- NAME [OPTION...]

  NAME             ${Object.keys(LOADS).join(", ")}:
                   a flame graph of the proxy under that load; or
                   ${CUTOVER}: a timeline of all processes of a move
  --connections N  of a load                            (32)
  --seconds N      of a load's profile                  (5)
  --sessions N     of a cutover                         (100)
  --moves N        in each mode; the median is shown    (5)
  --out FOLDER     where it goes                        (${CACHE}/bench/profiles/NAME)
  --help           this
`;

interface LoadOptions {
  name: string;
  profiled: Profiled;
  connections: number;
  seconds: number;
  out: string;
}

type Options = { load: LoadOptions } | { cutover: CutoverOptions };

function parse(argv: string[]): Options | "help" {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      connections: { type: "string", default: "32" },
      seconds: { type: "string", default: "5" },
      sessions: { type: "string", default: "100" },
      moves: { type: "string", default: "5" },
      out: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return "help";
  const [name = "", ...more] = positionals;
  const out = resolve(values.out ?? join(CACHE, "bench/profiles", name));
  if (name === CUTOVER && more.length === 0) {
    const sessions = wholeNumber(values.sessions, "sessions", 1, 10_000);
    return { cutover: { sessions, moves: wholeNumber(values.moves, "moves", 1, 100), out } };
  }
  const profiled = Object.hasOwn(LOADS, name) ? LOADS[name] : undefined;
  if (profiled === undefined || more.length > 0)
    throw new TypeError(`which load? There is no ${positionals.join(" ") || "name"}`);
  const connections = wholeNumber(values.connections, "connections", 1, 10_000);
  const seconds = wholeNumber(values.seconds, "seconds", 1, 600);
  return { load: { name, profiled, connections, seconds, out } };
}

async function record(
  stage: Stage,
  options: LoadOptions,
): Promise<{ report: LoadReport; busy: number; profile: CpuProfile }> {
  const { kind, load } = options.profiled;
  const file = join(stage.directory, "profile");
  const recorder = pathToFileURL(join(import.meta.dirname, "profile/recorder.ts"));
  recorder.searchParams.set("into", file);
  const application =
    load.protocol === "http" ? await Backend.start(stage) : await startEcho(stage, load.protocol);
  const { proxy, ports } = await startHoldfast(stage, {
    name: "profiled",
    ports: [
      {
        to: application.port,
        protocol: kind === "replay" ? load.protocol : kind,
        continuity: kind === "replay" ? "replay" : "transplant",
      },
    ],
    nodeOptions: `--import=${recorder.href}`,
  });
  const generator = await Program.start<Load, LoadReport>(stage, `${import.meta.dirname}/load/generator.ts`, {
    cpu: stage.cpus.load,
  });
  const { connections, seconds } = options;
  const ask = { ...load, port: ports[0] as number, connections, perSecond: null };
  await generator.ask({ ...ask, seconds: WARM_SECONDS });
  const pid = proxy.process.pid as number;
  process.kill(pid, "SIGUSR2");
  // Answered in a later turn of its event loop than the signal's.
  await proxy.status();
  const cpu = new CpuMeter(pid);
  const report = await generator.ask({ ...ask, seconds });
  const { busy } = cpu.read();
  process.kill(pid, "SIGUSR2");
  const deadlineMs = performance.now() + WRITTEN_MS_MAX;
  while (!existsSync(file)) {
    if (performance.now() > deadlineMs) throw new Error("the proxy has not written its profile");
    await delay(WRITTEN_CHECK_MS);
  }
  return { report, busy, profile: JSON.parse(readFileSync(file, "utf8")) };
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
    process.stderr.write(`bench:profile: ${(error as Error).message}\n\n${usage}`);
    return 2;
  }
  if ("load" in options) return await profileLoad(options.load);
  process.stdout.write(`${(await profileCutover(options.cutover)).join("\n")}\n`);
  return 0;
}

/** @returns the exit status */
async function profileLoad(options: LoadOptions): Promise<number> {
  const stage = new Stage();
  let interrupted = 0;
  stage.closeOnSignals((status) => {
    interrupted ||= status;
  });
  try {
    const { report, busy, profile } = await record(stage, options);
    const { name, connections, seconds, out } = options;
    const tree = callTree(profile, resolve(import.meta.dirname, ".."));
    const machine = describeMachine();
    const facts: [string, string][] = [
      [
        "load",
        `${name}, ${connections} connections, closed loop, ${seconds} s: ${thousands(report.perSecond)}/s while profiled, ${report.errors} errors`,
      ],
      ["proxy", `${Math.round(busy * 100)} % of its CPU`],
      [
        "machine",
        `${machine.cores} × ${machine.cpu}, ${machine.kernel}, ${machine.node}, commit ${machine.commit}`,
      ],
      ["date", new Date().toISOString()],
    ];
    mkdirSync(out, { recursive: true });
    writeFileSync(join(out, "profile.cpuprofile"), JSON.stringify(profile));
    writeFileSync(join(out, "flame.html"), renderFlamePage(`Holdfast's proxy under ${name}`, tree, facts));
    const share = (us: number): string => `${((us / tree.totalUs) * 100).toFixed(1)} %`;
    process.stdout.write(
      `${[
        ...facts.map(([fact, value]) => `${fact}: ${value}`),
        ownerTimes(tree)
          .map(([owner, us]) => `${owner} ${share(us)}`)
          .join(", "),
        "",
        ...table([
          ["function", "self", "ms"],
          ...selfTimes(tree)
            .slice(0, TOP_FUNCTIONS)
            .map((each) => [
              `${each.name} ${each.place}`,
              share(each.selfUs),
              (each.selfUs / 1000).toFixed(0),
            ]),
        ]),
        "",
        join(out, "flame.html"),
      ].join("\n")}\n`,
    );
    return report.errors > 0 ? 1 : 0;
  } catch (error) {
    // What the end of its processes breaks is not worth a word.
    if (interrupted === 0) throw error;
    return interrupted;
  } finally {
    await stage.close();
  }
}

process.exitCode = await main();
