/**
 * The source's agent is killed at each step of a move. The proxies are processes of their own, so the sessions wait for
 * the next agent, which settles the move with the store or the target before it does anything else.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { staged } from "#test/support/staged.ts";

/** Which node has the workload at the end; null: whoever asks the store first. */
const STEPS: Record<string, "source" | "target" | null> = {
  reserved: "source",
  prepare: "source",
  hold: "source",
  dump: "source",
  capture: "source",
  restore: "source",
  memory: "source",
  commit: "source",
  committed: null,
  retire: "target",
};

/** The steps in which links and anchors have a part; the others are the same in both. */
const OF_RELAY = new Set(["hold", "capture", "committed", "retire"]);

for (const downstream of ["takeover", "forward"] as const) {
  describe(`source agent killed, ${downstream}`, { timeout: 600_000 }, () => {
    const on = staged({ downstream });
    for (const [step, winner] of Object.entries(STEPS)) {
      if (downstream === "forward" && !OF_RELAY.has(step)) continue;
      it(
        `at ${step}, and started again at once`,
        on(async (stage) => {
          const { owner, other } = stage;
          stage.fault(`crash@source:${step}`);
          assert.equal((await stage.migrate()).end, "cut");
          await stage.restart(owner);
          await stage.assertWell(winner === null ? undefined : winner === "source" ? owner : other);
        }),
      );
    }

    it(
      "after the commit, and started again when the target has gone on without it",
      on(async (stage) => {
        const { owner, other } = stage;
        stage.fault("crash@source:committed");
        await stage.migrate();
        await stage.died(owner);
        await stage.until(async () => (await stage.shown(other)).role === "owner");
        if (downstream === "takeover") await stage.assertSessions();
        await stage.restart(owner);
        await stage.assertWell(other);
      }),
    );

    it(
      "after the commit, together with the target's before its release",
      on(async (stage) => {
        const { owner, other } = stage;
        stage.fault("crash@source:committed", "crash@target:release");
        assert.equal((await stage.migrate()).end, "cut");
        await stage.died(owner);
        await stage.died(other);
        await stage.startAgent(owner);
        await stage.startAgent(other);
        await stage.assertWell();
      }),
    );
  });
}
