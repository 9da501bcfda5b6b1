import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";

const { NODE_TEST_CONTEXT: _, ...env } = process.env;
/** what hangs is ended long before; a run that is not over by then has no status */
const OVER_MS_MAX = 300_000;
const folder = mkdtempSync(join(tmpdir(), "holdfast-runner-"));

function run(source: string, ...args: string[]): { status: number | null; output: string } {
  const file = join(folder, "some.test.ts");
  writeFileSync(file, `import { test } from "node:test";\n${source}`);
  const { status, stdout, stderr } = spawnSync(process.execPath, ["scripts/test.ts", ...args, file], {
    env,
    encoding: "utf8",
    maxBuffer: 64 << 20,
    timeout: OVER_MS_MAX,
    killSignal: "SIGKILL",
  });
  return { status, output: stdout + stderr };
}

describe("the test runner", () => {
  after(() => rmSync(folder, { recursive: true }));

  test("counts every result of a file that reports much and ends at once", () => {
    const { status, output } = run(
      'for (let i = 0; i < 3000; i++) test(i + " x".repeat(100), () => undefined);',
    );
    assert.match(output, /^ℹ tests 3000$/m);
    assert.equal(status, 0);
  });

  test("fails a run in which a file's process ended before its report, and names the file", () => {
    const { status, output } = run(
      `const { reallyExit } = process;
       test("one", () => undefined);
       test("two", () => reallyExit.call(process, 0));
       test("three", () => undefined);`,
    );
    assert.match(output, /some\.test\.ts: its report is not complete/);
    assert.equal(status, 1);
  });

  test("fails a run in which a test fails, and passes one in which none does", () => {
    assert.equal(run('test("one", () => { throw new Error("on purpose"); });').status, 1);
    assert.equal(run('test("one", () => undefined);').status, 0);
  });

  test("ends a file whose thread is blocked, SIGTERM listener or not, and names it", () => {
    const { status, output } = run(
      `process.on("SIGTERM", () => undefined);
       test("one", () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0));`,
      "--test-timeout",
      "2000",
    );
    assert.match(output, /some\.test\.ts: ended, it said nothing for 7 s/);
    assert.match(output, /some\.test\.ts: its report is not complete/);
    assert.equal(status, 1);
  });

  test("does not wait for what a file left with its output", () => {
    const { status, output } = run(
      `const { spawn } = await import("node:child_process");
       test("one", () => {
         const { pid } = spawn("sleep", ["1000"], { stdio: "inherit", detached: true });
         console.log("left", pid);
       });`,
    );
    process.kill(Number(/left (\d+)/.exec(output)?.[1]));
    assert.match(output, /some\.test\.ts: ended, a process that it left holds its output/);
    assert.equal(status, 1);
  });

  test("ends a blocked file when it is told to end itself, and names it", async () => {
    const file = join(folder, "blocked.test.ts");
    writeFileSync(
      file,
      `import { test } from "node:test";
       process.on("SIGTERM", () => undefined);
       test("one", () => {
         process.stderr.write("blocked\\n");
         Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
       });`,
    );
    const runner = spawn(process.execPath, ["scripts/test.ts", file], {
      env,
      timeout: OVER_MS_MAX,
      killSignal: "SIGKILL",
    });
    let output = "";
    runner.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      if (/blocked$/m.test(text)) runner.kill("SIGTERM");
    });
    const [status] = await once(runner, "close");
    assert.match(output, /blocked\.test\.ts: ended, it did not end when told to/);
    assert.equal(status, 1);
  });

  test("fails a file that awaits at its top level after its first test: what comes after is not run", () => {
    const late = run(
      `test("one", () => undefined);
       await new Promise((done) => setTimeout(done, 100));
       test("two", () => { throw new Error("on purpose"); });`,
    );
    assert.match(late.output, /the file awaits something at its top level/);
    assert.equal(late.status, 1);
    const early = run('await new Promise((done) => setTimeout(done, 100)); test("one", () => undefined);');
    assert.equal(early.status, 0);
  });

  test("says that no test matches a pattern, and fails; one that matches in one file passes", () => {
    const source = 'test("one", () => undefined); test("two", () => { throw new Error("on purpose"); });';
    const none = run(source, "--test-name-pattern", "three");
    assert.match(none.output, /no test matches .*three/);
    assert.equal(none.status, 2);
    const other = join(folder, "other.test.ts");
    writeFileSync(other, 'import { test } from "node:test";\ntest("another", () => undefined);');
    assert.equal(run(source, "--test-name-pattern", "^one$", other).status, 0);
    assert.equal(run(source, "--test-name-pattern", "two").status, 1);
  });
});
