/** What a pod's container is sent stays with its init, which only waits, until the agent has taken it. */
import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
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
    assert.ok(await holdSignals(pid));
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
      assert.equal(await holdSignals(pid), false);
    });
});

describe("the init of a container that has just been started", () => {
  let folder: string;
  const started: ChildProcess[] = [];
  const start = async (program: string, ...args: string[]): Promise<ChildProcess & { pid: number }> => {
    const child = spawn(program, args, { stdio: "ignore" });
    started.push(child);
    await once(child, "spawn"); // it has been executed, no more
    return child as ChildProcess & { pid: number };
  };
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "hf-init-"));
  });
  afterEach(() => {
    for (const child of started.splice(0)) child.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  });

  it("is waited for until it waits for signals", async () => {
    for (let time = 0; time < 20; time++) {
      const { pid } = await start("catatonit", "-P");
      assert.equal(await holdSignals(pid), true);
      process.kill(pid, "SIGTERM");
      process.kill(pid, "SIGHUP");
      assert.deepEqual(heldSignals(pid), [SIGHUP, SIGTERM]);
    }
  });

  it("is not waited for where it is another one", async () => {
    const other = await start("sleep", "60");
    await until("it sleeps", () => /\) S /.test(readFileSync(`/proc/${other.pid}/stat`, "latin1")));
    const { pid, executed } = await startRuntime();
    const waitedFor = holdSignals(pid).then(() => "waited for");
    assert.equal(await Promise.race([holdSignals(other.pid), waitedFor]), false);
    await executed();
    await waitedFor;
  });

  it("may be its container runtime's process still, which waits", async () => {
    const { pid, executed } = await startRuntime();
    const held = holdSignals(pid);
    await executed();
    assert.equal(await held, true);
  });

  /** "runc:[2:INIT]" opens a FIFO, and is the init when that has been read from. */
  async function startRuntime(): Promise<{ pid: number; executed(): Promise<void> }> {
    const [runtime, fifo] = [join(folder, "runc"), join(folder, "exec.fifo")];
    writeFileSync(runtime, `#!/bin/sh\nread -r _ <"${fifo}"\nexec catatonit -P\n`, { mode: 0o755 });
    execFileSync("mkfifo", [fifo]);
    const { pid } = await start(runtime);
    await until("it waits", () => /\(runc\) S /.test(readFileSync(`/proc/${pid}/stat`, "latin1")));
    return { pid, executed: () => writeFile(fifo, "\n") };
  }
});
