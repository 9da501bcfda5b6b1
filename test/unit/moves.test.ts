/** A workload's moves: each is counted, whoever asked for it; a rehearsal is none. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import { AgentMetrics } from "#control/agent/metrics.ts";
import { Moves, type MovingWorkload } from "#control/workload/moves.ts";

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
    async requireOwner() {},
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
});
