import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";

const { NODE_TEST_CONTEXT: _, ...env } = process.env;
const folder = mkdtempSync(join(tmpdir(), "holdfast-runner-"));

function run(source: string): { status: number | null; output: string } {
  const file = join(folder, "some.test.ts");
  writeFileSync(file, `import { test } from "node:test";\n${source}`);
  const { status, stdout, stderr } = spawnSync(process.execPath, ["scripts/test.ts", file], {
    env,
    encoding: "utf8",
    maxBuffer: 64 << 20,
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
});
