import assert from "node:assert/strict";
import { test } from "node:test";
import { takeEach } from "#control/migration/steps.ts";

test("every step is taken, in order, whether those before threw, rejected or took their time", async () => {
  const taken: string[] = [];
  const failed: string[] = [];
  const step = (name: string, fail?: "throws" | "rejects") => (): Promise<void> => {
    taken.push(name);
    if (fail === "throws") throw new Error(name);
    return fail === "rejects"
      ? Promise.reject(new Error(name))
      : new Promise((resolve) => setImmediate(resolve));
  };
  const steps = { a: step("a", "throws"), b: step("b"), c: step("c", "rejects"), d: step("d") };
  await takeEach(steps, (what, error) => failed.push(`${what}: ${(error as Error).message}`));
  assert.deepEqual(taken, ["a", "b", "c", "d"]);
  assert.deepEqual(failed, ["a: a", "c: c"]);
});
