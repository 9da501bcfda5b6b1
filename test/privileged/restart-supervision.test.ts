/** An application that ends by itself is started again, where it was and behind the proxy it had. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { nodeBinary, projectRoot } from "#test/lab/lab.ts";
import { MoveStage, type StageOptions, WORKLOAD } from "#test/support/move-stage.ts";

interface Journal {
  container: { id: string; init: { pid: number } };
  proxy: { process: { pid: number } };
  application: { pid: number } | null;
  restarting: unknown;
}

/** It looks every 50 ms; a machine that is busy with other work lets it wait for its turn. */
const NOTICE_MS_MAX = 1_000;

function journal(stage: MoveStage): Journal {
  const file = join(stage.lab.stateDir("a"), "workloads", WORKLOAD, "journal.json");
  return JSON.parse(readFileSync(file, "utf8")) as Journal;
}

async function state(stage: MoveStage): Promise<string> {
  return (await stage.shown("a")).state;
}

const on = (options: Partial<StageOptions>, run: (stage: MoveStage) => Promise<void>) => async () => {
  await using stage = await MoveStage.open({ downstream: "takeover", load: "none", ...options });
  await run(stage);
};

/** Runs again, as another process. */
async function isBack(stage: MoveStage, oldPid: number): Promise<void> {
  await stage.until(async () => {
    const now = journal(stage).application?.pid;
    return now !== undefined && now !== oldPid && (await state(stage)) === "running";
  });
}

async function metric(stage: MoveStage, reason: string): Promise<number> {
  const { stdout } = await stage.lab.run("a", [
    "curl",
    "-s",
    "--unix-socket",
    stage.agent("a").socketPath,
    "http://agent/metrics",
  ]);
  const line = `holdfast_application_restarts_total{workload="${WORKLOAD}",reason="${reason}"} `;
  return Number(stdout.split(line)[1]?.split("\n")[0] ?? 0);
}

async function answeringPid(stage: MoveStage): Promise<number> {
  const { address, port } = stage.target;
  const answer = await stage.lab.run("client", [
    "curl",
    "-s",
    "--max-time",
    "5",
    `http://${address}:${port}/`,
  ]);
  return (answer.json as { pid?: number } | undefined)?.pid ?? -1;
}

const chat = { cwd: `${projectRoot}/test/apps/chat`, env: { PORT: "9000" }, rootfs: "host" };

describe("an application that ends by itself", { timeout: 600_000 }, () => {
  it(
    "by a signal: it is noticed at once, starts in the same container, and transplanted sessions are reset",
    on({ load: "tcp", app: "echo" }, async (stage) => {
      await stage.load?.mark();
      const before = journal(stage);
      const pid = stage.appPid();
      assert.equal(before.application?.pid, pid);
      const killedMs = Date.now();
      process.kill(pid, "SIGKILL");
      await isBack(stage, pid);
      const after = journal(stage);
      assert.deepEqual(
        [after.container.id, after.proxy.process.pid, after.restarting],
        [before.container.id, before.proxy.process.pid, null],
      );
      const line = stage
        .agent("a")
        .stderr.split("\n")
        .find((text) => /has ended; starting it again/.test(text));
      const { time, end } = JSON.parse(line ?? "{}") as { time: number; end: string };
      assert.equal(end, "ended by signal 9");
      assert.ok(time - killedMs <= NOTICE_MS_MAX, `noticed after ${time - killedMs} ms`);
      assert.equal(await metric(stage, "signal"), 1);
      const { alive, resets } = (await stage.load?.report()) ?? {};
      assert.deepEqual({ alive, resets }, { alive: 0, resets: stage.sessions });
    }),
  );

  it(
    "with status 0, restart: on-failure: it stays down until it is told to start",
    on({}, async (stage) => {
      const pid = stage.appPid();
      process.kill(pid, "SIGTERM");
      await stage.until(() => /ended with status 0.*and stays so/.test(stage.agent("a").stderr));
      assert.equal(await state(stage), "down");
      assert.equal(await metric(stage, "status"), 0);
      const { status, stdout } = await stage.lab.cli("a", ["restart", WORKLOAD, "--json"]);
      assert.equal(status, 0, stdout);
      assert.equal(await state(stage), "running");
      assert.notEqual(stage.appPid(), pid);
    }),
  );

  it(
    "with status 0, restart: always: it is started again",
    on({ workload: { restart: "always" } }, async (stage) => {
      const pid = stage.appPid();
      process.kill(pid, "SIGTERM");
      await isBack(stage, pid);
      assert.equal(await metric(stage, "status"), 1);
    }),
  );

  it(
    "by a signal, restart: never: it stays down",
    on({ workload: { restart: "never" } }, async (stage) => {
      process.kill(stage.appPid(), "SIGKILL");
      await stage.until(() => /ended by signal 9.*and stays so/.test(stage.agent("a").stderr));
      assert.equal(await state(stage), "down");
    }),
  );

  it(
    "and leaves a child that has its port: the child is ended first",
    on(
      {
        workload: {
          container: { ...chat, command: ["/bin/sh", "-c", `setsid ${nodeBinary} server.js & wait`] },
        },
      },
      async (stage) => {
        const child = stage.appPid();
        const root = journal(stage).application?.pid ?? -1;
        assert.notEqual(child, root);
        process.kill(root, "SIGKILL");
        await isBack(stage, root);
        assert.notEqual(stage.appPid(), child);
        assert.ok((await answeringPid(stage)) > 0);
      },
    ),
  );

  it(
    "with its container's init: another container is made behind the same proxy",
    on({}, async (stage) => {
      const before = journal(stage);
      process.kill(before.container.init.pid, "SIGKILL");
      await isBack(stage, before.application?.pid ?? -1);
      const after = journal(stage);
      assert.notEqual(after.container.id, before.container.id);
      assert.equal(after.proxy.process.pid, before.proxy.process.pid);
      await stage.assertWell("a");
    }),
  );

  it(
    "while no agent is there: the next one starts it in the same container",
    on({}, async (stage) => {
      const before = journal(stage);
      const agent = stage.agent("a");
      await agent.stop("SIGKILL");
      process.kill(stage.appPid(), "SIGKILL");
      await stage.startAgent("a");
      await isBack(stage, before.application?.pid ?? -1);
      const after = journal(stage);
      assert.deepEqual(
        [after.container.id, after.proxy.process.pid],
        [before.container.id, before.proxy.process.pid],
      );
      assert.equal(await metric(stage, "unknown"), 1);
      await stage.assertWell("a");
    }),
  );

  it(
    "at the node it has been moved to: that one starts it again, with its own configuration",
    on({}, async (stage) => {
      assert.equal((await stage.migrate()).end, "moved");
      const pid = stage.appPid();
      await stage.until(async () => (await stage.shown("b")).state === "running");
      process.kill(pid, "SIGKILL");
      await stage.until(async () => {
        const { processes } = stage.lab.leftovers();
        const apps = processes.filter(({ command }) => / server\.js$/.test(command));
        return apps.length === 1 && apps[0]?.pid !== pid && (await stage.shown("b")).state === "running";
      });
      assert.ok((await answeringPid(stage)) > 0);
    }),
  );

  it(
    "again and again: with a growing delay, until it is stopped",
    on({}, async (stage) => {
      const agent = stage.agent("a");
      await agent.stop("SIGTERM");
      const failing = { ...chat, command: ["/bin/sh", "-c", "echo no luck today; sleep 0.1; exit 3"] };
      // it runs still, and is to be started like this from now on
      await stage.startAgent("a", { container: failing });
      process.kill(stage.appPid(), "SIGKILL");
      await stage.until(() => (stage.agent("a").stderr.match(/did not start/g)?.length ?? 0) >= 4);
      assert.equal(await state(stage), "restarting");
      const failures = stage
        .agent("a")
        .stderr.split("\n")
        .filter((line) => line.includes("did not start"))
        .map((line) => JSON.parse(line) as { time: number; problem: string });
      assert.match(failures[0]?.problem ?? "", /^ended with status 3: no luck today$/);
      const gapsMs = failures.slice(1).map(({ time }, index) => time - (failures[index]?.time ?? 0));
      for (const [index, least] of [100, 200, 400].entries())
        assert.ok((gapsMs[index] ?? 0) >= least, `waited ${gapsMs.join(", ")} ms`);
      assert.equal((await stage.lab.cli("a", ["migrate", WORKLOAD, "--to", "b"])).status, 4);
      assert.equal((await stage.lab.cli("a", ["stop", WORKLOAD])).status, 0);
      assert.equal(await state(stage), "stopped");
    }),
  );
});
