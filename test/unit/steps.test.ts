/** Steps of a way back: one that fails for a moment's want of descriptors is taken all the same. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { takeEach, untilDone } from "#control/migration/steps.ts";

const shortage = (code: string): Error => Object.assign(new Error(code), { code });

test("a step that lacks descriptors or memory is tried again, and those after it wait for it", async () => {
  const taken: string[] = [];
  const reasons = [
    shortage("EMFILE"),
    new Error("wrapped", { cause: shortage("ENFILE") }),
    shortage("ENOMEM"),
  ];
  const steps = {
    first: () => {
      const reason = reasons.shift();
      if (reason !== undefined) throw reason;
      taken.push("first");
    },
    second: () => void taken.push("second"),
  };
  await takeEach(steps, (what) => taken.push(`${what} failed`));
  assert.deepEqual(taken, ["first", "second"]);
});

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

test("what has to come about is tried until it does, and each reason is told once", async () => {
  const reasons = ["a", "a", "b", "a"];
  const told: string[] = [];
  const done = await untilDone(
    () => {
      const reason = reasons.shift();
      if (reason !== undefined) throw new Error(reason);
      return "done";
    },
    (error) => told.push((error as Error).message),
    () => {},
  );
  assert.deepEqual([done, told], ["done", ["a", "b"]]);
});

test("… or until it is over", async () => {
  const over = (): never => {
    throw new Error("over");
  };
  await assert.rejects(
    untilDone(
      () => {
        throw new Error("never");
      },
      () => {},
      over,
    ),
    /^Error: over$/,
  );
});
