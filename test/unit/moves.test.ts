/** A workload's moves: each is counted, whoever asked for it; a rehearsal is none. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import { AgentMetrics } from "#control/agent/metrics.ts";
import { Opened } from "#control/migration/departure/move.ts";
import { Progress } from "#control/migration/departure/progress.ts";
import { Moves, type MovingWorkload } from "#control/workload/moves.ts";
import { fail } from "#proxy/contract/error-codes.ts";

/** Nothing of it runs, so a move of it is taken back where it begins. */
function workloadThatIsDown(metrics: AgentMetrics): MovingWorkload {
  const workload = {
    name: "chat",
    downstream: "forward",
    context: { node: "a", log: pino({ level: "silent" }), metrics },
    limits: { deadlineMs: 1_000 },
    journal: { epoch: 1, moving: null, owed: null },
    supervisor: { isBusy: false },
    isLaunching: false,
    isEnding: false,
    async requireOwner() {},
    throwIfDamaged() {},
    outbox: { async flushed() {} },
    container: {
      applicationRoot: async () => null,
      hostPath: (name: string) => `/nonexistent/holdfast/${name}`,
    },
    record() {},
  };
  return workload as unknown as MovingWorkload;
}

describe("moves of a workload", () => {
  it("have no outcome where the journal is damaged: the workload may have come to run here", async () => {
    const damage = fail("JOURNAL_INVALID", "it is damaged");
    const workload = Object.assign(workloadThatIsDown(new AgentMetrics(new Map())), {
      throwIfDamaged: () => {
        throw damage;
      },
    });
    await assert.rejects(
      new Moves(workload).outcome({ workload: "chat", migration: "m1", epoch: 2, grant: null }),
      damage,
    );
  });

  it("are counted with their phases, and rehearsals are not", async () => {
    const metrics = new AgentMetrics(new Map());
    const moves = new Moves(workloadThatIsDown(metrics));
    const request = { to: "b", report: () => {} };
    for (const ask of ["rehearse", "migrate"] as const)
      assert.equal((await moves[ask](request)).outcome, "rolled-back", ask);
    const text = await metrics.registry.metrics();
    assert.match(text, /^holdfast_agent_moves_total\{outcome="rolled-back",downstream="forward"\} 1$/m);
    assert.match(text, /^holdfast_agent_phase_seconds_count\{phase="rollback"\} 1$/m);
  });

  it("are refused while it is being ended here, also where that began while the move was asked for", async () => {
    const workload = Object.assign(workloadThatIsDown(new AgentMetrics(new Map())), { isEnding: true });
    const moves = new Moves(workload);
    const busy = { code: "MIGRATION_BUSY", message: "chat is being ended on this node" };
    const request = { to: "b", report: () => {} };
    await assert.rejects(moves.migrate(request), busy);
    await assert.rejects(moves.rehearse(request), busy);
    await assert.rejects(moves.arrive({} as never, {} as never), busy);
    assert.equal(moves.busyWith, "ended");
    workload.isEnding = false;
    workload.requireOwner = async () => {
      workload.isEnding = true;
    };
    await assert.rejects(moves.migrate(request), busy);
  });

  it("have an outcome where the container has gone", async () => {
    const workload = workloadThatIsDown(new AgentMetrics(new Map()));
    Object.defineProperty(workload, "container", {
      get: () => {
        throw fail("WORKLOAD_DOWN", "chat is not running on node a");
      },
    });
    const { outcome, reason } = await new Moves(workload).migrate({ to: "b", report: () => {} });
    assert.deepEqual([outcome, reason], ["rolled-back", "chat is not running on node a"]);
  });

  it("close all that they have opened, the last first, whatever becomes of the others", async () => {
    const opened = new Opened();
    const closed: string[] = [];
    const close = (what: string, fails: boolean) => async () => {
      closed.push(what);
      if (fails) throw new Error(what);
    };
    for (const [what, fails] of [
      ["a", false],
      ["b", true],
      ["c", true],
    ] as const) {
      opened.add(close(what, fails));
      opened.addReader(close(`reader ${what}`, fails));
    }
    const failed: string[] = [];
    const onFailure = (error: unknown): unknown => failed.push((error as Error).message);
    await opened.stopReading(onFailure);
    await opened.close(onFailure);
    assert.deepEqual(closed, ["reader a", "reader b", "reader c", "c", "b", "a"]);
    assert.deepEqual(failed, ["reader b", "reader c", "c", "b"]);
  });

  it("say what was copied before the hold, how fast it was written, and how long clients were likely to wait", async () => {
    const metrics = new AgentMetrics(new Map());
    const { result } = new Progress(
      { workload: "chat", from: "a", to: "b", downstream: "forward" },
      () => {},
    );
    const pauseMs = { low: 60, likely: 100, high: 200 };
    const precopyRounds = [
      { bytes: 9_000_000, ms: 90 },
      { bytes: 1_000_000, ms: 10 },
    ];
    const copied = { precopyBytes: 10_000_000, precopyRounds, dirtyBytesPerSecond: 11_000_000 };
    metrics.moved({ ...result, ...copied, outcome: "moved", prediction: { pauseMs, parts: [] } });
    const text = await metrics.registry.metrics();
    assert.match(text, /^holdfast_agent_precopy_bytes_total\{workload="chat"\} 10000000$/m);
    assert.match(text, /^holdfast_agent_dirty_bytes_per_second\{workload="chat"\} 11000000$/m);
    assert.match(text, /^holdfast_agent_predicted_pause_seconds\{workload="chat"\} 0.1$/m);
    assert.match(text, /^holdfast_agent_precopy_rounds_sum 2$/m);
  });
});
