/**
 * `npm test`: every test file, or those named. Files run two at a time, the slow kinds first; after
 * them, one at a time, those that measure time ({@link ALONE}). All are reported as one run with one summary at its end.
 *
 *   npm test [-- [--test-name-pattern PATTERN] [--test-timeout MS] [FILE|FOLDER ...]]
 *
 * MS is what one test may take; a file that says nothing for longer is ended.
 * Exit status: 0 all passed, 1 a test failed, 2 wrong arguments or no such tests.
 */
import { globSync, statSync } from "node:fs";
import { relative, resolve } from "node:path";
import { PassThrough } from "node:stream";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { parseArgs } from "node:util";
import { labPrefixes, sweepDeadLabs } from "#test/lab/sweep.ts";
import { FileProcesses } from "./file-processes.ts";

interface TestEvent {
  type: string;
  data: {
    message?: string;
    details?: { duration_ms?: number };
    nesting?: number;
    file?: string;
    counts?: Record<string, number>;
    success?: boolean;
  };
}

/** Three are no quicker on two CPUs: each takes 1.67 times as long (a median over 179 tests). */
const concurrency = 2;
/**
 * What has to have the machine for itself, and why. A laboratory has namespaces, addresses, containers and files of its own and
 * looks for leftovers by its own name: it disturbs no other. What two of them share is the CPU.
 */
const ALONE: Record<string, string> = {
  "integration/malformed-slow.test.ts":
    "answers within a second while 600 clients drip, and CPU ticks at rest",
  "integration/proxy-stream.test.ts": "holds that do not wait for a delayed acknowledgement (40 ms)",
  "integration/store.test.ts": "calls that are over in time",
  "privileged/lab.test.ts": "how long a pause the load sees",
  "privileged/many-links.test.ts": "300 links that answer in 301 ms",
};
/** the slow ones first: what is short fills up the end, when there is nothing left for the other place */
const KINDS = ["kube", "envoy", "privileged", "integration", "unit"];
/** of files, named at the end of a run */
const SLOWEST_COUNT = 12;
/**
 * One test, and the silence of a file: what hangs is named, and ended, long before the whole run is given up. The slowest file takes
 * three minutes.
 */
const TEST_MS_MAX = 15 * 60_000;
/** Most processes of a test live a second or two: half of it is compiling, which one can do for all. */
const compileCache = resolve("node_modules/.cache/holdfast-test-compile");
/** The lines node ends a run with, one per figure; they are added up over both parts. */
const figure = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) ([\d.]+)$/;

function filesOf(names: string[]): string[] {
  const files = new Set<string>();
  for (const name of names.length > 0 ? names : ["test"]) {
    const stat = statSync(name, { throwIfNoEntry: false });
    const found = stat?.isDirectory()
      ? globSync("**/*.test.ts", { cwd: name }).map((file) => resolve(name, file))
      : globSync(name).map((file) => resolve(file));
    if (found.length === 0) throw new Error(`no tests in ${name}`);
    for (const file of found) files.add(file);
  }
  return [...files].sort();
}

const nameOf = (file: string): string => relative("test", file);
const isAlone = (file: string): boolean => Object.hasOwn(ALONE, nameOf(file));
const rankOf = (file: string): number => {
  const rank = KINDS.indexOf(nameOf(file).split("/", 1)[0] ?? "");
  return rank < 0 ? KINDS.length : rank;
};

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      "test-name-pattern": { type: "string", multiple: true },
      "test-timeout": { type: "string" },
    },
  });
  const files = filesOf(positionals).sort((one, other) => rankOf(one) - rankOf(other));
  process.env.NODE_COMPILE_CACHE ??= compileCache;
  // V8 has four helpers a process otherwise: two tests at a time are thirty processes on two CPUs
  process.env.NODE_OPTIONS ??= "--v8-pool-size=1";
  const timeout = Number(values["test-timeout"] ?? TEST_MS_MAX);
  const patterns = values["test-name-pattern"]?.map((pattern) => new RegExp(pattern));

  const stopping = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => stopping.abort());
  const processes = new FileProcesses(files, timeout, stopping.signal);

  const events = new PassThrough({ objectMode: true });
  const report = events.compose(spec);
  report.pipe(process.stdout);
  const figures = new Map<string, number>();
  const tookMs = new Map<string, number>();
  /** not heard to their end: a file's own summary is the last thing it says, and what came before may have been lost with it */
  const unheard = new Set(files);
  let passed = true;
  /** of files' own tests: one that has none, or none that match, is a test by itself to node */
  let testCount = 0;
  for (const part of [
    { files: files.filter((file) => !isAlone(file)), concurrency },
    { files: files.filter(isAlone), concurrency: 1 },
  ]) {
    if (part.files.length === 0 || stopping.signal.aborted) continue;
    const stream = run({
      ...part,
      // a test that failed may have left something open that would keep its file's process for ever
      execArgv: ["--test-force-exit", "--import", resolve("test/support/end-at-exit.ts")],
      signal: stopping.signal,
      timeout,
      ...(patterns === undefined ? {} : { testNamePatterns: patterns }),
    });
    for await (const event of stream as AsyncIterable<TestEvent>) {
      if (event.type === "test:summary") {
        if (event.data.file !== undefined) {
          unheard.delete(event.data.file);
          testCount += event.data.counts?.tests ?? 0;
        } else {
          passed &&= event.data.success === true;
          continue;
        }
      }
      const { file, nesting, details } = event.data;
      if (/^test:(pass|fail)$/.test(event.type) && file !== undefined && nesting === 0)
        tookMs.set(file, (tookMs.get(file) ?? 0) + (details?.duration_ms ?? 0));
      const [, name, value] =
        (event.type === "test:diagnostic" &&
          event.data.nesting === 0 &&
          figure.exec(event.data.message ?? "")) ||
        [];
      if (name !== undefined && value !== undefined)
        figures.set(name, (figures.get(name) ?? 0) + Number(value));
      else if (!events.write(event)) await new Promise((done) => events.once("drain", done));
    }
  }
  await processes.over();
  const say = (message: string): void => {
    events.write({ type: "test:diagnostic", data: { nesting: 0, message } });
  };
  for (const [file, why] of processes.ended)
    say(`${nameOf(file)}: ended, ${why}; what it started itself may still be there`);
  // its owner was killed; a laboratory that has one is its owner's
  if (stopping.signal.aborted || processes.ended.size > 0)
    for (const id of Object.values(labPrefixes).flatMap(sweepDeadLabs))
      say(`${id}: what the interrupted laboratory left is removed`);
  const slowest = [...tookMs].sort(([, one], [, other]) => other - one).slice(0, SLOWEST_COUNT);
  if (tookMs.size > 1) for (const [file, ms] of slowest) say(`${(ms / 1000).toFixed(1)} s ${nameOf(file)}`);
  for (const file of unheard) say(`${nameOf(file)}: its report is not complete`);
  for (const [name, value] of figures) say(`${name} ${value}`);
  events.end();
  await new Promise((done) => report.once("end", done));
  const whole = unheard.size === 0 && processes.ended.size === 0 && !stopping.signal.aborted;
  process.exitCode = passed && whole ? 0 : 1;
  if (process.exitCode === 0 && patterns !== undefined && testCount === 0)
    throw new Error(`no test matches ${patterns.join(" or ")}`);
}

main().catch((error: unknown) => {
  console.error(`test: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 2;
});
