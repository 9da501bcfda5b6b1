/** Logs on a disk that is full: lines are lost, and nothing else. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

const program = `
  import { pino } from "pino";
  import { logDestination } from "#proxy/contract/log-destination.ts";
  const log = pino({}, logDestination());
  for (let n = 0; n < 100; n++) log.warn("x".repeat(100));
  setTimeout(() => { log.error("later"); process.stdout.write("lives"); }, 50);
`;

test("who logs goes on where nothing can be written", () => {
  const argv = [process.execPath, ...process.execArgv, "--input-type=module", "-e", program];
  const { stdout } = spawnSync("sh", ["-c", 'exec "$@" 2>/dev/full', "sh", ...argv], { encoding: "utf8" });
  assert.equal(stdout, "lives");
});

test("what is logged is written", () => {
  const argv = [...process.execArgv, "--input-type=module", "-e", program];
  const { stdout, stderr } = spawnSync(process.execPath, argv, { encoding: "utf8" });
  assert.equal(stdout, "lives");
  assert.equal(stderr.trim().split("\n").length, 101);
});
