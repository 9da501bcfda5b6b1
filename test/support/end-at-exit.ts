/**
 * Loaded into every test file's process.
 *
 * - What the file reports is written at once, however slowly the runner reads: `--test-force-exit` ends the process when the
 *   last result has been given to stdout, and what a full pipe had not taken by then was lost without a word (36 passed tests
 *   of 2,190, once; a failed one would have been as silent).
 * - When its tests are over, and everybody has heard of it, the process ends, without the tear-down of Node 26, which may spin
 *   for ever (Environment::CleanupHandles waits for a request that it still counts, of a socket destroyed long ago; seen after
 *   some thousand resets).
 * - A file that awaits something at its top level, after its first test, fails: the process ends with the tests that are known by then,
 *   and those after the `await` were never run, without a word.
 */
import { pathToFileURL } from "node:url";
import { isMainThread } from "node:worker_threads";

const { reallyExit } = process as unknown as { reallyExit(code: number): never };
const { _handle: output } = process.stdout as unknown as {
  _handle?: { setBlocking?(blocking: boolean): number };
};
output?.setBlocking?.(true);

const [, file] = process.argv;
let evaluated = file === undefined || !isMainThread;
const settled = (): void => {
  evaluated = true;
};
// the same module that node is about to run: it is evaluated once, and what it throws is reported there
if (!evaluated) import(pathToFileURL(file as string).href).then(settled, settled);

/** node's own, for what it runs to its end itself */
const unsettledTopLevelAwait = 13;
const end = (code: number): never => {
  if (!evaluated)
    process.stderr.write("the file awaits something at its top level: the tests after that were not run\n");
  return reallyExit.call(process, evaluated ? Number(process.exitCode ?? code) : unsettledTopLevelAwait);
};

// the test runner's own listener comes later, and has a report to write
process.on("exit", end);
process.on("newListener", (event, listener) => {
  if (event !== "exit" || listener === end) return;
  process.nextTick(() => process.off("exit", end).on("exit", end));
});
