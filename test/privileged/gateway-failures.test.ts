/** Agents that are killed in a move behind a gateway. What they left is settled, by the next agent or without one; no client notices more than a pause. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { staged } from "#test/support/staged.ts";

/** Which node has the workload at the end; null: whoever asks the store first. */
const SOURCE: Record<string, "source" | "target" | null> = {
  capture: "source",
  committed: null,
  retire: "target",
};
const TARGET = ["restored", "release"];

describe("an agent killed in a move behind a gateway", { timeout: 600_000 }, () => {
  const on = staged({ downstream: "gateway" });

  for (const [step, winner] of Object.entries(SOURCE))
    it(
      `the source's, at ${step}, and started again at once`,
      on(async (stage) => {
        const { owner, other } = stage;
        stage.fault(`crash@source:${step}`);
        assert.equal((await stage.migrate()).end, "cut");
        await stage.restart(owner);
        await stage.assertWell(winner === null ? undefined : winner === "source" ? owner : other);
      }),
    );

  it(
    "the source's, after the commit: its sessions go on at the target before there is a next one",
    on(async (stage) => {
      const { owner, other } = stage;
      stage.fault("crash@source:committed");
      await stage.migrate();
      await stage.died(owner);
      await stage.until(async () => (await stage.shown(other)).role === "owner");
      await stage.assertSessions();
      await stage.restart(owner);
      await stage.assertWell(other);
    }),
  );

  for (const step of TARGET)
    it(
      `the target's, at ${step}, and started again at once`,
      on(async (stage) => {
        const { owner, other } = stage;
        stage.fault(`crash@target:${step}`);
        const move = stage.migrate();
        await stage.restart(other);
        const { end, reason } = await move;
        assert.equal(end === "moved" || end === "rolled-back", true, `${end}: ${reason}`);
        await stage.assertWell(end === "moved" ? other : owner);
      }),
    );
});
