/**
 * Moves that end the connections to the application and make them anew (`moveBy: replay`), cut off at each step that matters to what
 * the clients had sent: it travels with the sessions, in takeover through the store too, and no agent's death loses it.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { staged } from "#test/support/staged.ts";

const replay = {
  listen: 8080,
  upstream: "127.0.0.1:9000",
  continuity: "replay",
  moveBy: "replay",
  delivery: "atLeastOnce",
};

for (const downstream of ["takeover", "forward"] as const) {
  describe(`a move by replay, ${downstream}`, { timeout: 600_000 }, () => {
    // A POST the frozen application had got is refused, as it has to be: only what may be repeated is asked.
    const on = staged({
      downstream,
      load: "lives",
      workload: { ports: [replay] },
      loadOptions: { postEvery: 0 },
    });
    for (const step of ["adopt", "restored", "adopted", "release", "released"]) {
      if (downstream === "forward" && step === "adopted") continue; // nothing is adopted after the commit
      it(
        `goes on when the target's agent is killed at ${step}`,
        on(async (stage) => {
          const { owner, other } = stage;
          stage.fault(`crash@target:${step}`);
          const move = stage.migrate();
          await stage.restart(other);
          const { end, reason } = await move;
          assert.ok(end === "moved" || end === "rolled-back", `${end}: ${reason}`);
          await stage.assertWell(end === "moved" ? other : owner);
        }),
      );
    }

    for (const step of ["capture", "commit", "committed"]) {
      it(
        `goes on when the source's agent is killed at ${step}`,
        on(async (stage) => {
          const { owner } = stage;
          stage.fault(`crash@source:${step}`);
          const move = stage.migrate();
          await stage.restart(owner);
          await move;
          await stage.assertWell();
        }),
      );
    }
  });
}
