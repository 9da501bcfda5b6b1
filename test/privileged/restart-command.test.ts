/** `holdfast restart`: with the configuration as it is now, one at a time, and to its end whoever dies over it. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { parse, stringify } from "yaml";
import { type CliResult, nodeBinary } from "#test/lab/lab.ts";
import { MoveStage, WORKLOAD } from "#test/support/move-stage.ts";

interface Journal {
  container: { id: string };
  proxy: { process: { pid: number } };
  application: { pid: number } | null;
  restarting: { step: string } | null;
}

interface Result {
  outcome: string;
  pauseMs: number;
  phasesMs: Record<string, number>;
  reason: string | null;
}

const GATE_POLL_MS = 5;

const on = (run: (stage: MoveStage) => Promise<void>) => async () => {
  await using stage = await MoveStage.open({ downstream: "takeover", load: "none" });
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

/** Stops the agent at a step. `reached` resolves there; then call `go`. */
function gate(stage: MoveStage, step: string): { reached: Promise<void>; go(): void } {
  const dir = mkdtempSync(join(stage.lab.dir, "gate-"));
  const here = join(dir, "here");
  const go = join(dir, "go");
  fault(stage, `exec@restart:${step}=touch ${here}\nwhile [ ! -e ${go} ]\ndo sleep 0.005\ndone`);
  const reached = (async () => {
    while (!existsSync(here)) await sleep(GATE_POLL_MS);
  })();
  return { reached, go: () => writeFileSync(go, "") };
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

describe("holdfast restart", { timeout: 240_000 }, () => {
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
      const during = gate(stage, "start");
      const first = restart(stage);
      await during.reached;
      // the agent stands still in the gate: what it is asked meanwhile it answers afterwards, or in the middle of the start
      const others = [restart(stage), stage.lab.cli("a", ["migrate", WORKLOAD, "--to", "b", "--json"])];
      during.go();
      assert.equal((await first).status, 0);
      for (const { status, stderr, json } of await Promise.all(others)) {
        const { code } = (json as { error?: { code: string } }).error ?? {};
        if (status !== 0) assert.deepEqual([status, code], [4, "RESTART_BUSY"], stderr);
      }
      const held = stage.gate("source:transfer");
      stage.fault(held.fault);
      const move = stage.migrate();
      await held.reached;
      const refused = restart(stage);
      held.go();
      assert.equal((await move).end === "moved" || (await move).end === "refused", true);
      assert.equal((await refused).status, 4);
    }),
  );

  it(
    "is cancelled as long as the application has not been told to end",
    on(async (stage) => {
      const pid = stage.appPid();
      const before = gate(stage, "pause");
      const asked = restart(stage);
      await before.reached;
      const cancel = stage.cancel();
      before.go();
      await cancel;
      const { json, status } = await asked;
      const { outcome } = json as Result;
      if (outcome === "cancelled") {
        assert.equal(status, 1);
        assert.equal(stage.appPid(), pid);
      } else assert.notEqual(stage.appPid(), pid);
      assert.equal((await stage.shown("a")).state, "running");
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
    on(async (stage) => {
      await stage.restartWith("a", { limits: { holdMsMax: 1_500 } });
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
    }),
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
