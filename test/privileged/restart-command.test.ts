/** `holdfast restart`: with the configuration as it is now, one at a time, and to its end whoever dies over it. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { Client } from "undici";
import { parse, stringify } from "yaml";
import { type CliResult, nodeBinary } from "#test/lab/lab.ts";
import { MoveStage, WORKLOAD } from "#test/support/move-stage.ts";

interface Journal {
  container: { id: string };
  proxy: { process: { pid: number } };
  application: { pid: number } | null;
  restarting: { step: string } | null;
  moving: unknown;
}

interface Result {
  outcome: string;
  pauseMs: number;
  phasesMs: Record<string, number>;
  reason: string | null;
}

const on =
  (run: (stage: MoveStage) => Promise<void>, limits: object = {}) =>
  async () => {
    await using stage = await MoveStage.open({ downstream: "takeover", load: "none", workload: { limits } });
    await run(stage);
  };

function journal(stage: MoveStage): Journal {
  const file = join(stage.lab.stateDir("a"), "workloads", WORKLOAD, "journal.json");
  return JSON.parse(readFileSync(file, "utf8")) as Journal;
}

function restart(stage: MoveStage, ...options: string[]): Promise<CliResult> {
  return stage.lab.cli("a", ["restart", WORKLOAD, "--json", ...options]);
}

/** Changes the workload in the agent's file, as an editor would. */
// biome-ignore lint/suspicious/noExplicitAny: whatever is in the file may be changed.
function edit(stage: MoveStage, change: (workload: any) => void): void {
  const { configFile } = stage.agent("a");
  const config = parse(readFileSync(configFile, "utf8"));
  change(config.workloads[0]);
  writeFileSync(configFile, stringify(config));
}

function fault(stage: MoveStage, text: string): void {
  writeFileSync(join(stage.lab.dir, "a.fault"), text);
}

/** Asked over the socket: no time passes for starting a command. */
async function assertRefused(stage: MoveStage, what: string, code: string): Promise<void> {
  const body = what === "migrate" ? { to: "b" } : {};
  const client = new Client("http://agent", { socketPath: stage.agent("a").socketPath });
  try {
    const path = `/v1/workloads/${WORKLOAD}/${what}`;
    const response = await client.request({ method: "POST", path, body: JSON.stringify(body) });
    const { error } = (await response.body.json()) as { error: { code: string } };
    assert.deepEqual([response.statusCode, error.code], [409, code]);
  } finally {
    await client.close();
  }
}

async function answer(stage: MoveStage): Promise<{ pid: number; ballastMb: number }> {
  const { address, port } = stage.target;
  const { json, stderr } = await stage.lab.run("client", [
    "curl",
    "-sS",
    "--max-time",
    "5",
    `http://${address}:${port}/`,
  ]);
  assert.ok(json !== undefined, `${stderr}\n${stage.logs()}`);
  return json as { pid: number; ballastMb: number };
}

describe("holdfast restart", { timeout: 400_000 }, () => {
  it(
    "starts it with the command and environment the file says now, in the same container",
    on(async (stage) => {
      const before = journal(stage);
      const pid = stage.appPid();
      edit(stage, (workload) => {
        workload.container.env.APP_MB = "3";
      });
      const { status, json, stderr } = await restart(stage, "--drain", "50");
      assert.equal(status, 0, stderr);
      const result = json as Result;
      assert.equal(result.outcome, "restarted");
      assert.deepEqual(Object.keys(result.phasesMs), ["pause", "stop", "start", "resume"]);
      const phases = Object.values(result.phasesMs).reduce((sum, ms) => sum + ms, 0);
      assert.ok(result.pauseMs >= phases - 1 && phases > 0, JSON.stringify(result));
      assert.equal((await answer(stage)).ballastMb, 3);
      const after = journal(stage);
      assert.notEqual(stage.appPid(), pid);
      assert.deepEqual(
        [after.container.id, after.proxy.process.pid, after.restarting],
        [before.container.id, before.proxy.process.pid, null],
      );
      // and it can be moved like any other
      await stage.assertWell("a");
    }),
  );

  it(
    "is refused with one line by a file that is wrong, before anything has happened",
    on(async (stage) => {
      const pid = stage.appPid();
      edit(stage, (workload) => {
        workload.container.command = [];
      });
      const wrong = await restart(stage);
      assert.equal(wrong.status, 2);
      assert.match(wrong.stderr, /container\.command: expected a command as a list of words/);
      edit(stage, (workload) => {
        workload.container.command = [nodeBinary, "server.js"];
        workload.name = "other";
      });
      assert.match((await restart(stage)).stderr, /does not have workload chat any more/);
      assert.equal(stage.appPid(), pid);
      assert.equal(journal(stage).restarting, null);
      assert.ok(!stage.agent("a").stderr.includes("clients wait"));
    }),
  );

  it(
    "and a move exclude each other, and so do two restarts; neither harms the one under way",
    on(async (stage) => {
      // what takes its time is an application that does not end at once, so the agent can answer meanwhile
      edit(stage, (workload) => {
        workload.stopSignal = "SIGWINCH";
        workload.stopMsMax = 4_000;
      });
      const first = restart(stage);
      await stage.until(async () => (await stage.shown("a")).state === "restarting");
      await assertRefused(stage, "restart", "RESTART_BUSY");
      await assertRefused(stage, "migrate", "RESTART_BUSY");
      await assertRefused(stage, "stop", "RESTART_BUSY");
      assert.equal((await first).status, 0);
      fault(stage, "exec@source:transfer=sleep 2");
      const move = stage.migrate();
      await stage.until(() => journal(stage).moving !== null);
      await assertRefused(stage, "restart", "MIGRATION_BUSY");
      assert.equal((await move).end, "moved");
    }),
  );

  it(
    "of an application that does not end kills it after stopMsMax, with what it had started",
    on(async (stage) => {
      const deaf = `trap "" TERM INT; setsid sleep 1000 & ${nodeBinary} -e 'process.on("SIGTERM", () => {}); require("node:http").createServer((q, s) => s.end(JSON.stringify({pid: process.pid, ballastMb: 7}))).listen(9000, "127.0.0.1")'`;
      edit(stage, (workload) => {
        workload.container.command = ["/bin/sh", "-c", deaf];
        workload.stopMsMax = 300;
      });
      assert.equal((await restart(stage)).status, 0);
      assert.equal((await answer(stage)).ballastMb, 7);
      const sleeping = () =>
        stage.lab.leftovers().processes.filter(({ command }) => /^sleep 1000/.test(command));
      const [left] = sleeping();
      assert.ok(left !== undefined);
      edit(stage, (workload) => {
        workload.container.command = [nodeBinary, "server.js"];
      });
      const { json, status } = await restart(stage);
      assert.equal(status, 0);
      assert.ok(((json as Result).phasesMs.stop ?? 0) >= 300);
      assert.match(stage.agent("a").stderr, /does not end; it is killed/);
      assert.deepEqual(sleeping(), []);
      assert.equal((await answer(stage)).ballastMb, 0);
    }),
  );

  it(
    "to something that does not come up says what it said last; the next restart repairs it",
    on(
      async (stage) => {
        edit(stage, (workload) => {
          workload.container.command = ["/bin/sh", "-c", "echo no such database; sleep 0.05; exit 1"];
        });
        const { status, stderr } = await restart(stage);
        assert.equal(status, 1);
        assert.match(stderr, /chat did not come up: (ended with status 1|it has ended): no such database/);
        await stage.until(async () => (await stage.shown("a")).state === "restarting");
        edit(stage, (workload) => {
          workload.container.command = [nodeBinary, "server.js"];
        });
        const repaired = await restart(stage);
        assert.equal(repaired.status, 0, repaired.stderr);
        assert.ok((await answer(stage)).pid > 0);
        await stage.assertWell("a");
      },
      { unavailableMsMax: 1_500 },
    ),
  );

  it(
    "is refused where the workload is not",
    on(async (stage) => {
      const { status, stderr } = await stage.lab.cli("b", ["restart", WORKLOAD]);
      assert.equal(status, 4);
      assert.match(stderr, /chat is not on node b: ask the agent of node a/);
    }),
  );

  for (const step of ["pause", "stop", "start", "resume"]) {
    it(
      `the agent is killed at ${step}: the next one finishes`,
      on(async (stage) => {
        const before = journal(stage);
        const pid = stage.appPid();
        fault(stage, `crash@restart:${step}`);
        const asked = restart(stage);
        const agent = stage.agent("a");
        if (!agent.exited) await once(agent.child, "exit");
        assert.equal(agent.child.signalCode, "SIGKILL");
        assert.equal((await asked).status, 3);
        assert.notEqual(journal(stage).restarting, null);
        await stage.startAgent("a");
        await stage.until(async () => (await stage.shown("a")).state === "running");
        const after = journal(stage);
        // up to there nothing had happened to it
        assert.equal(stage.appPid() === pid, step === "pause");
        assert.deepEqual(
          [after.container.id, after.proxy.process.pid, after.restarting],
          [before.container.id, before.proxy.process.pid, null],
        );
        assert.ok((await answer(stage)).pid > 0);
        await stage.assertWell("a");
      }),
    );
  }
});
