/**
 * `npm test`: every test file, or those named. Files run two at a time, those in test/privileged one at a time after
 * them (they share the kernel and measure time), and both are reported as one run with one summary at its end.
 *
 *   npm test [-- [--test-name-pattern PATTERN] [--test-timeout MS] [FILE|FOLDER ...]]
 *
 * Exit status: 0 all passed, 1 a test failed, 2 wrong arguments or no such tests.
 */
import { globSync, statSync } from "node:fs";
import { relative, resolve } from "node:path";
import { PassThrough } from "node:stream";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { parseArgs } from "node:util";

interface TestEvent {
  type: string;
  data: {
    message?: string;
    nesting?: number;
    file?: string;
    counts?: Record<string, number>;
    success?: boolean;
  };
}

const concurrency = 2;
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

function privileged(file: string): boolean {
  return relative("test", file).startsWith("privileged/");
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      "test-name-pattern": { type: "string", multiple: true },
      "test-timeout": { type: "string" },
    },
  });
  const files = filesOf(positionals);
  const timeout = values["test-timeout"] === undefined ? undefined : Number(values["test-timeout"]);
  const patterns = values["test-name-pattern"]?.map((pattern) => new RegExp(pattern));

  const stopping = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => stopping.abort());

  const events = new PassThrough({ objectMode: true });
  const report = events.compose(spec);
  report.pipe(process.stdout);
  const figures = new Map<string, number>();
  let passed = true;
  for (const part of [
    { files: files.filter((file) => !privileged(file)), concurrency },
    { files: files.filter(privileged), concurrency: 1 },
  ]) {
    if (part.files.length === 0 || stopping.signal.aborted) continue;
    const stream = run({
      ...part,
      execArgv: ["--import", resolve("test/support/end-at-exit.ts")],
      signal: stopping.signal,
      ...(timeout === undefined ? {} : { timeout }),
      ...(patterns === undefined ? {} : { testNamePatterns: patterns }),
    });
    for await (const event of stream as AsyncIterable<TestEvent>) {
      if (event.type === "test:summary" && event.data.file === undefined) {
        passed &&= event.data.success === true;
        continue;
      }
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
  for (const [name, value] of figures)
    events.write({ type: "test:diagnostic", data: { nesting: 0, message: `${name} ${value}` } });
  events.end();
  await new Promise((done) => report.once("end", done));
  process.exitCode = passed && !stopping.signal.aborted ? 0 : 1;
}

main().catch((error: unknown) => {
  console.error(`test: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 2;
});
