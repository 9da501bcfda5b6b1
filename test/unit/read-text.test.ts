/** Files of /proc: what cannot be read is empty, but for want of descriptors nothing is known. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { isShortage, listNames, readBeginning, readText } from "#control/runtime/read-text.ts";

test("what has gone, or may not be read, is empty", () => {
  assert.equal(readText("/proc/self/nothing"), "");
  assert.deepEqual(listNames("/proc/self/nothing"), []);
  assert.equal(readBeginning("/proc/self/nothing", 10).length, 0);
});

test("a file that has no end is read as far as asked", () => {
  assert.deepEqual(readBeginning("/dev/zero", 100_001), Buffer.alloc(100_001));
  assert.equal(readBeginning("/proc/self/comm", 100_000).toString(), readText("/proc/self/comm"));
});

test("without a descriptor left nothing counts as empty", () => {
  const program = `
    import { openSync } from "node:fs";
    import { isShortage, listNames, readBeginning, readText } from "#control/runtime/read-text.ts";
    try { for (;;) openSync("/dev/null", "r"); } catch {}
    const ask = [() => readText("/proc/self/stat"), () => listNames("/proc/self/task"), () => readBeginning("/proc/self/cmdline", 9)];
    const said = ask.map((one) => { try { return one().length; } catch (error) { return isShortage(error); } });
    process.stdout.write(said.join());
  `;
  const argv = [process.execPath, ...process.execArgv, "--input-type=module", "-e", program];
  const { stdout, stderr } = spawnSync("sh", ["-c", 'ulimit -n 64 && exec "$@"', "sh", ...argv], {
    encoding: "utf8",
  });
  assert.equal(stdout, "true,true,true", stderr);
});

test("a shortage is known below other reasons", () => {
  const cause = Object.assign(new Error("none left"), { code: "ENFILE" });
  assert.equal(isShortage(new Error("failed", { cause: new Error("so", { cause }) })), true);
  assert.equal(isShortage(new Error("failed", { cause: new Error("so") })), false);
});
