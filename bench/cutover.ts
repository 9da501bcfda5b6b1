/**
 * `npm run bench:cutover`: what a move costs beside bare CRIU, in one run.
 *
 * For each number of sessions the same application, with the same clients, is dumped and restored by bare CRIU in place,
 * moved by takeover and moved by relay, in turn, several rounds. Then many moves in a row, looking at growth. Figures
 * are medians of the rounds; machines are noisy, so read the ratios.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import type { MoveResult } from "#control/migration/move.ts";
import { createLab, type Lab, nodeBinary, projectRoot } from "#test/lab/lab.ts";
import { startLoad } from "#test/load/load.ts";
import type { LoadReport } from "#test/load/protocol.ts";
import { type BareRun, runBareCriu } from "./bare-criu.ts";
import { median, table, wholeNumber } from "./figures.ts";

const usage = `Usage: npm run bench:cutover [-- OPTION...]

  --sessions N,N,…  numbers of clients                              (100,1000)
  --rounds N        rounds of bare, takeover, relay for each        (3)
  --row N           moves in a row for the growth figures, 0: none  (20)
  --app-mb N        MiB of memory the application keeps             (0)
  --json FILE       writes everything measured to FILE
  --help            this
`;

type Mode = "takeover" | "relay";

interface Sample {
  sessions: number;
  mode: "bare" | Mode;
  /** what clients saw, the interval of their sending taken off: the pause itself */
  pauseMs: { p50: number; max: number };
  lost: number;
  repeated: number;
  resets: number;
  bare: BareRun | null;
  move: MoveResult | null;
}

interface Growth {
  mode: Mode;
  moves: number;
  /** medians of the first and the last five moves */
  holdMs: { first: number; last: number };
  /** of both agents and proxies together, after the second move and after the last */
  rssMb: { first: number; last: number };
  descriptors: { first: number; last: number };
}

const VIP = "10.99.0.50";
/** every client sends this often, so that many clients do not need more than these machines have */
const intervalMsFor = (sessions: number): number => Math.max(25, Math.ceil(sessions / 8));
const warmMs = 700;
const afterMs = 600;

const workloads = [
  { name: "bare", listen: 8081, upstream: 9001, host: "0.0.0.0", vip: false },
  { name: "takeover", listen: 8082, upstream: 9002, host: "127.0.0.1", vip: true },
  { name: "relay", listen: 8083, upstream: 9003, host: "127.0.0.1", vip: false },
];

class Bench {
  readonly #lab: Lab;
  readonly #place = new Map<string, "a" | "b">([
    ["takeover", "a"],
    ["relay", "a"],
  ]);

  private constructor(lab: Lab) {
    this.#lab = lab;
  }

  static async open(appMb: number): Promise<Bench> {
    const lab = await createLab({ nodes: ["a", "b"] });
    const configured = (node: string): object[] =>
      workloads
        .filter(({ name }) => name !== "bare" || node === "a")
        .map(({ name, listen, upstream, host, vip }) => ({
          name,
          start: node === "a",
          container: {
            command: [nodeBinary, "server.js"],
            cwd: `${projectRoot}/test/apps/chat`,
            env: { PORT: String(upstream), HOST: host, APP_MB: String(appMb) },
            rootfs: "host",
          },
          ports: [{ listen, upstream: `127.0.0.1:${upstream}` }],
          limits: { deadlineMs: 60_000 },
          ...(vip ? { vip: { address: `${VIP}/24`, device: "eth0" } } : {}),
        }));
    try {
      for (const node of ["b", "a"])
        await lab.startAgent(node, { workloads: configured(node) }, { timeoutMs: 60_000 });
    } catch (error) {
      await lab.close();
      throw error;
    }
    return new Bench(lab);
  }

  close(): Promise<void> {
    return this.#lab.close();
  }

  /** One move (or one bare dump and restore) under load. */
  async sample(mode: Sample["mode"], sessions: number): Promise<Sample> {
    const a = this.#lab.place("a").address;
    const target = {
      bare: { address: a, port: 9001 },
      takeover: { address: VIP, port: 8082 },
      relay: { address: a, port: 8083 },
    }[mode];
    const intervalMs = intervalMsFor(sessions);
    const load = await startLoad(this.#lab, "ws", { target, sessions, intervalMs, drainMsMax: 20_000 });
    try {
      await pause(warmMs);
      await load.mark();
      await pause(afterMs / 2);
      const bare = mode === "bare" ? await runBareCriu(this.#lab.stateDir("a"), "bare") : null;
      const move = mode === "bare" ? null : await this.#move(mode);
      await pause(afterMs);
      const report = await load.report();
      return { sessions, mode, ...seen(report, intervalMs), bare, move };
    } finally {
      await load.stop();
    }
  }

  /** Many moves of one workload with the same clients. */
  async growth(mode: Mode, moves: number, sessions: number): Promise<Growth> {
    const target =
      mode === "takeover"
        ? { address: VIP, port: 8082 }
        : { address: this.#lab.place("a").address, port: 8083 };
    const load = await startLoad(this.#lab, "ws", { target, sessions, intervalMs: intervalMsFor(sessions) });
    const holds: number[] = [];
    let first = { rssMb: 0, descriptors: 0 };
    try {
      for (let i = 1; i <= moves; i++) {
        holds.push((await this.#move(mode)).holdMs);
        if (i === 2) first = this.#resources();
      }
      const last = this.#resources();
      const report = await load.report();
      if (report.lost + report.repeated + report.resets > 0)
        throw new Error(`clients lost something: ${report.problems.join("; ")}`);
      return {
        mode,
        moves,
        holdMs: { first: median(holds.slice(0, 5)), last: median(holds.slice(-5)) },
        rssMb: { first: first.rssMb, last: last.rssMb },
        descriptors: { first: first.descriptors, last: last.descriptors },
      };
    } finally {
      await load.stop();
    }
  }

  async #move(workload: Mode): Promise<MoveResult> {
    const from = this.#place.get(workload) ?? "a";
    const to = from === "a" ? "b" : "a";
    const { json, stderr } = await this.#lab.cli(from, ["migrate", workload, "--to", to, "--json"]);
    const move = json as MoveResult | undefined;
    if (move?.outcome !== "moved")
      throw new Error(`${workload} did not move to ${to}: ${move?.reason ?? stderr}`);
    this.#place.set(workload, to);
    return move;
  }

  /** Agents and proxies of this laboratory: everything of ours that lives longer than a move. */
  #resources(): { rssMb: number; descriptors: number } {
    let rssKb = 0;
    let descriptors = 0;
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
      try {
        const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
        if (!command.includes(this.#lab.dir) || !/proxy\/main\.ts|cli\/main\.ts agent/.test(command))
          continue;
        rssKb += Number(/^VmRSS:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
        descriptors += readdirSync(`/proc/${pid}/fd`).length;
      } catch {
        // it ended meanwhile
      }
    }
    return { rssMb: Math.round(rssKb / 1024), descriptors };
  }
}

function seen(
  report: LoadReport,
  intervalMs: number,
): Pick<Sample, "pauseMs" | "lost" | "repeated" | "resets"> {
  const { blackoutMs, lost, repeated, resets } = report;
  return {
    pauseMs: { p50: Math.max(0, blackoutMs.p50 - intervalMs), max: Math.max(0, blackoutMs.max - intervalMs) },
    lost: lost + report.corrupt,
    repeated,
    resets,
  };
}

function render(samples: Sample[], growths: Growth[]): string {
  const lines: string[] = [];
  for (const sessions of new Set(samples.map((sample) => sample.sessions))) {
    const of = (mode: Sample["mode"]): Sample[] =>
      samples.filter((sample) => sample.mode === mode && sample.sessions === sessions);
    const bareWall = median(of("bare").map((sample) => sample.bare?.wallMs ?? 0));
    const bareSeen = median(of("bare").map((sample) => sample.pauseMs.p50));
    lines.push(
      "",
      `${sessions} sessions, a message each ${intervalMsFor(sessions)} ms (medians of ${of("bare").length} rounds)`,
      "",
    );
    const rows: string[][] = [["ms", "bare CRIU", "takeover", "relay"]];
    const row = (name: string, pick: (sample: Sample) => number | null, digits = 1): void => {
      const cell = (mode: Sample["mode"]): string => {
        const values = of(mode)
          .map(pick)
          .filter((value) => value !== null);
        return values.length === 0 ? "-" : median(values).toFixed(digits);
      };
      rows.push([name, cell("bare"), cell("takeover"), cell("relay")]);
    };
    row("pause seen, p50", (sample) => sample.pauseMs.p50);
    row("pause seen, max", (sample) => sample.pauseMs.max);
    row("… p50 beside bare, ratio", (sample) => (bareSeen === 0 ? null : sample.pauseMs.p50 / bareSeen), 2);
    row("dump + restore, or hold to release", (sample) => sample.bare?.wallMs ?? sample.move?.holdMs ?? null);
    row("… added to bare", (sample) => (sample.move === null ? null : sample.move.holdMs - bareWall));
    row("CRIU dump", (sample) => sample.bare?.dumpMs ?? sample.move?.criuMs.dump ?? null);
    row("CRIU restore", (sample) => sample.bare?.restoreMs ?? sample.move?.criuMs.restore ?? null);
    for (const phase of ["hold", "capture", "dump", "transfer", "restore", "commit", "release"] as const) {
      row(`  ${phase}`, (sample) => sample.move?.phasesMs[phase] ?? null);
    }
    row("capture a leg, µs", (sample) => sample.move?.legUs.capture ?? null);
    row("adopt a leg, µs", (sample) => sample.move?.legUs.adopt ?? null);
    row("images, MB", (sample) => (sample.move === null ? null : sample.move.imageBytes / 1e6));
    rows.push([
      "lost / repeated / reset",
      ...(["bare", "takeover", "relay"] as const).map((mode) => sum(of(mode))),
    ]);
    lines.push(...table(rows));
  }
  for (const growth of growths) {
    lines.push(
      "",
      `${growth.moves} moves in a row by ${growth.mode}: hold ${growth.holdMs.first.toFixed(1)} → ${growth.holdMs.last.toFixed(1)} ms, ` +
        `memory ${growth.rssMb.first} → ${growth.rssMb.last} MB, descriptors ${growth.descriptors.first} → ${growth.descriptors.last}`,
    );
  }
  return `${lines.join("\n")}\n`;
}

function sum(samples: Sample[]): string {
  const total = (field: "lost" | "repeated" | "resets"): number =>
    samples.reduce((all, sample) => all + sample[field], 0);
  return `${total("lost")} / ${total("repeated")} / ${total("resets")}`;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function main(): Promise<number> {
  let options: { sessions: number[]; rounds: number; row: number; appMb: number; json: string | undefined };
  try {
    const { values } = parseArgs({
      options: {
        sessions: { type: "string", default: "100,1000" },
        rounds: { type: "string", default: "3" },
        row: { type: "string", default: "20" },
        "app-mb": { type: "string", default: "0" },
        json: { type: "string" },
        help: { type: "boolean", short: "h", default: false },
      },
    });
    if (values.help) {
      process.stdout.write(usage);
      return 0;
    }
    options = {
      sessions: values.sessions.split(",").map((text) => wholeNumber(text, "sessions", 1, 10_000)),
      rounds: wholeNumber(values.rounds, "rounds", 1, 100),
      row: wholeNumber(values.row, "row", 0, 1_000),
      appMb: wholeNumber(values["app-mb"], "app-mb", 0, 16_384),
      json: values.json,
    };
  } catch (error) {
    process.stderr.write(`bench:cutover: ${(error as Error).message}\n\n${usage}`);
    return 2;
  }
  const samples: Sample[] = [];
  const growths: Growth[] = [];
  process.stdout.write(
    `Cutover beside bare CRIU. ${cpus().length} × ${cpus()[0]?.model ?? "?"}, application of ${options.appMb} MiB.\n`,
  );
  const bench = await Bench.open(options.appMb);
  try {
    for (const sessions of options.sessions) {
      for (let round = 1; round <= options.rounds; round++) {
        for (const mode of ["bare", "takeover", "relay"] as const) {
          const sample = await bench.sample(mode, sessions);
          samples.push(sample);
          process.stderr.write(
            `${sessions} sessions, round ${round}/${options.rounds}, ${mode}: pause p50 ${sample.pauseMs.p50.toFixed(0)} ms\n`,
          );
        }
      }
    }
    if (options.row > 0) {
      for (const mode of ["takeover", "relay"] as const)
        growths.push(await bench.growth(mode, options.row, 100));
    }
  } finally {
    await bench.close();
  }
  process.stdout.write(render(samples, growths));
  if (options.json !== undefined)
    writeFileSync(options.json, `${JSON.stringify({ options, samples, growths }, null, 2)}\n`);
  return samples.some((sample) => sample.lost + sample.repeated + sample.resets > 0) ? 1 : 0;
}

process.exitCode = await main();
