/** What a pod's container is sent stays with its init, which only waits, until the agent has taken it. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { afterEach, beforeEach, describe, it } from "node:test";
import { dropSignals, endInit, heldSignals, holdSignals } from "#control/runtime/cri/init-signals.ts";
import { until } from "#test/support/moved-program.ts";

const { SIGHUP, SIGTERM, SIGUSR1 } = constants.signals;

describe("the init of a container", () => {
  let parent: ChildProcess;
  let ended: Promise<unknown[]>;
  let pid = 0;

  beforeEach(async () => {
    parent = spawn("unshare", ["--pid", "--fork", "--kill-child", "catatonit", "-P"]);
    ended = once(parent, "exit");
    await until("it runs", () => {
      const children = readFileSync(`/proc/${parent.pid}/task/${parent.pid}/children`, "utf8").trim();
      pid = Number(children);
      return children !== "" && readFileSync(`/proc/${pid}/comm`, "utf8") === "catatonit\n";
    });
    await until("it waits for signals", () => holdSignals(pid));
  });
  afterEach(async () => {
    parent.kill("SIGKILL");
    await ended;
  });

  it("does not end at SIGTERM, which is seen", async () => {
    process.kill(pid, "SIGTERM");
    assert.deepEqual(heldSignals(pid), [SIGTERM]);
    await dropSignals(pid, [SIGTERM]);
    assert.deepEqual(heldSignals(pid), [SIGTERM], "it cannot be dropped without ending it");
  });

  it("is rid of other signals when they have been taken, and sees the next ones", async () => {
    for (const _ of [1, 2]) {
      process.kill(pid, "SIGHUP");
      process.kill(pid, "SIGUSR1");
      assert.deepEqual(heldSignals(pid), [SIGHUP, SIGUSR1]);
      await dropSignals(pid, [SIGHUP, SIGUSR1]);
      assert.deepEqual(heldSignals(pid), []);
    }
  });

  it("still waits for what is left to it", async () => {
    const inside = ["--target", String(pid), "--pid", "--", "setsid", "--fork", "true"];
    await once(spawn("nsenter", inside), "exit");
    await until("nothing is left of it", () => {
      return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim() === "";
    });
  });

  for (const [when, sent] of [
    ["", []],
    [", also when it was asked to before", ["SIGTERM"]],
  ] as const)
    it(`ends well when its application has${when}`, async () => {
      for (const signal of sent) process.kill(pid, signal);
      endInit(pid);
      assert.deepEqual(await ended, [0, null]);
      assert.deepEqual(heldSignals(pid), []);
      assert.equal(holdSignals(pid), false);
    });
});
