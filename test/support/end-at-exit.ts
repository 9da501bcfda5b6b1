/**
 * Loaded into every test file's process. When its event loop has ended by itself, and everybody has heard of it, the process ends,
 * without the tear-down of Node 26, which may spin for ever (Environment::CleanupHandles waits for a request that it still
 * counts, of a socket destroyed long ago; seen after some thousand resets).
 */
const { reallyExit } = process as unknown as { reallyExit(code: number): never };

process.once("beforeExit", () => {
  process.on("exit", (code) => reallyExit.call(process, Number(process.exitCode ?? code)));
});
