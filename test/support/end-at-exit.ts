/**
 * Loaded into every test file's process. When its tests are over, and everybody has heard of it, the process ends, without the
 * tear-down of Node 26, which may spin for ever (Environment::CleanupHandles waits for a request that it still counts, of a
 * socket destroyed long ago; seen after some thousand resets).
 */
const { reallyExit } = process as unknown as { reallyExit(code: number): never };

const end = (code: number): never => reallyExit.call(process, Number(process.exitCode ?? code));

// the test runner's own listener comes later, and has a report to write
process.on("exit", end);
process.on("newListener", (event, listener) => {
  if (event !== "exit" || listener === end) return;
  process.nextTick(() => process.off("exit", end).on("exit", end));
});
