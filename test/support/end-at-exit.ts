/**
 * Loaded into every test file's process.
 *
 * - What the file reports is written at once, however slowly the runner reads: `--test-force-exit` ends the process when the
 *   last result has been given to stdout, and what a full pipe had not taken by then was lost without a word (36 passed tests
 *   of 2,190, once; a failed one would have been as silent).
 * - When its tests are over, and everybody has heard of it, the process ends, without the tear-down of Node 26, which may spin
 *   for ever (Environment::CleanupHandles waits for a request that it still counts, of a socket destroyed long ago; seen after
 *   some thousand resets).
 */
const { reallyExit } = process as unknown as { reallyExit(code: number): never };
const { _handle: output } = process.stdout as unknown as {
  _handle?: { setBlocking?(blocking: boolean): number };
};
output?.setBlocking?.(true);

const end = (code: number): never => reallyExit.call(process, Number(process.exitCode ?? code));

// the test runner's own listener comes later, and has a report to write
process.on("exit", end);
process.on("newListener", (event, listener) => {
  if (event !== "exit" || listener === end) return;
  process.nextTick(() => process.off("exit", end).on("exit", end));
});
