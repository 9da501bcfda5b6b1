/**
 * `npm run bench:kube`: what Holdfast costs in a Kubernetes cluster of this machine, beside what it is to cost: the webhook, a Migration beside a
 * move in our own runtime, kubectl drain, and the controller with thousands of pods. Everything shares the machine's processors, the
 * control plane and kubelets too.
 *
 * Exit status: 0 all measured, 1 with problems (they are in the report), 2 wrong arguments, 130 and 143 cut off.
 */
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { wholeNumber } from "./figures.ts";
import { controllerPiece } from "./kube/controller.ts";
import { drainPiece } from "./kube/drain.ts";
import { SharedLab } from "./kube/laboratory.ts";
import { movePiece } from "./kube/move.ts";
import { webhookPiece } from "./kube/webhook.ts";
import type { BenchPiece } from "./piece.ts";
import { judge } from "./report/goals.ts";
import { KUBE_COMMAND } from "./report/kube-goals.ts";
import { newRunFolder, RUNS, run, summaryOf } from "./run.ts";

const NAMES = ["webhook", "move", "drain", "controller"] as const;

const usage = `Usage: npm run bench:kube [-- OPTION...]

  --quick         one round, 5 s of admissions, 500 pods: no more than an impression
  --only NAME,…   of ${NAMES.join(", ")}
  --rounds N      of everything but the controller, which is in the last       (3; --quick: 1)
  --seconds N     of admissions of each kind, 50 a second                      (30; --quick: 5)
  --pods N        that the controller watches, of kwok                         (5000; --quick: 500)
  --out FOLDER    where the report goes                      (${RUNS}/DATE)
  --json          results.json, with the goals, on stdout and nothing else there
  --help          this
`;

interface Options {
  only: string[];
  quick: boolean;
  rounds: number;
  seconds: number;
  pods: number;
  out: string;
  json: boolean;
}

function parse(args: string[]): Options | "help" {
  const { values } = parseArgs({
    args,
    options: {
      quick: { type: "boolean", default: false },
      only: { type: "string" },
      rounds: { type: "string" },
      seconds: { type: "string" },
      pods: { type: "string" },
      out: { type: "string" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return "help";
  const { quick, json } = values;
  const only = values.only?.split(",") ?? [...NAMES];
  const unknown = only.find((name) => !NAMES.some((known) => known === name));
  if (unknown !== undefined) throw new TypeError(`--only: there is no ${unknown}`);
  return {
    ...{ only, quick, json },
    rounds: wholeNumber(values.rounds ?? (quick ? "1" : "3"), "rounds", 1, 100),
    seconds: wholeNumber(values.seconds ?? (quick ? "5" : "30"), "seconds", 1, 600),
    pods: wholeNumber(values.pods ?? (quick ? "500" : "5000"), "pods", 50, 50_000),
    out: resolve(values.out ?? newRunFolder()),
  };
}

async function main(): Promise<number> {
  const argv = process.argv.slice(2);
  let options: Options | "help";
  try {
    options = parse(argv);
  } catch (error) {
    process.stderr.write(`bench:kube: ${(error as Error).message}\n\n${usage}`);
    return 2;
  }
  if (options === "help") {
    process.stdout.write(usage);
    return 0;
  }
  const { only, json, out } = options;
  const shared = new SharedLab();
  const all: Record<(typeof NAMES)[number], BenchPiece> = {
    webhook: webhookPiece(shared),
    move: movePiece(shared),
    drain: drainPiece(shared),
    controller: controllerPiece(shared, options.pods),
  };
  const pieces = NAMES.filter((name) => only.includes(name)).map((name) => all[name]);
  const { status, results } = await run(
    { ...options, command: KUBE_COMMAND, pieces, peers: [], cutOff: null, staysBusy: true },
    argv,
  );
  if (json) process.stdout.write(`${JSON.stringify({ ...results, goals: judge(results) })}\n`);
  else process.stdout.write(`${summaryOf(results, out).join("\n")}\n`);
  return status;
}

process.exitCode = await main();
