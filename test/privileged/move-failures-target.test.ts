/**
 * The target's agent is killed at each step of a move: the source goes on, or the next agent finishes. And a target that is told to give up
 * while its proxy starts.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { staged } from "#test/support/staged.ts";

const STEPS = [
  "prepare",
  "standby",
  "adopt",
  "restore",
  "memory",
  "restored",
  "adopted",
  "release",
  "released",
];
/** The steps in which links and anchors have a part; the others are the same in both. */
const OF_RELAY = new Set(["adopt", "restored", "release", "released"]);
const GONE = /^(connection to agent [ab] (is closed|lost)|cannot reach node [ab])/;
/** Steps after which the store says that the target has it. */
const DECIDED = new Set(["released"]);

for (const downstream of ["takeover", "forward"] as const) {
  describe(`target agent killed, ${downstream}`, { timeout: 600_000 }, () => {
    const on = staged({ downstream });
    for (const step of STEPS) {
      if (downstream === "forward" && !OF_RELAY.has(step)) continue;
      it(
        `at ${step}, and started again at once`,
        on(async (stage) => {
          const { owner, other } = stage;
          stage.fault(`crash@target:${step}`);
          const move = stage.migrate();
          await stage.restart(other);
          const { end, reason } = await move;
          assert.equal(end === "moved" || end === "rolled-back", true, `${end}: ${reason}`);
          assert.match(reason, GONE);
          await stage.assertWell(end === "moved" ? other : owner);
        }),
      );
    }

    for (const step of ["standby", "restored", "release", "released"]) {
      if (downstream === "forward" && !OF_RELAY.has(step)) continue;
      it(
        `at ${step}, and started again when the source has settled`,
        on(async (stage) => {
          const { owner, other } = stage;
          stage.fault(`crash@target:${step}`);
          const { end, reason } = await stage.migrate();
          assert.match(reason, GONE);
          assert.equal(end, DECIDED.has(step) ? "moved" : "rolled-back");
          if (end === "rolled-back") await stage.assertSessions();
          await stage.restart(other);
          await stage.assertWell(end === "moved" ? other : owner);
        }),
      );
    }
  });
}

for (const downstream of ["takeover", "forward"] as const) {
  describe(`target told to give up while its proxy starts, ${downstream}`, { timeout: 600_000 }, () => {
    const on = staged({ downstream });
    it(
      "leaves no proxy, and says so when it has ended",
      on(async (stage) => {
        const { owner, other, lab } = stage;
        const stands = join(lab.dir, "stands");
        const of = join(lab.stateDir(other), "workloads", "chat", "[p]roxy.sock");
        // a process that has not come so far as to listen (SIGSTOP), for as long as the move is asked about
        const stop = `(until pid=$(pgrep -f ${of})\ndo sleep 0.002\ndone\nkill -STOP $pid && touch ${stands})`;
        stage.fault(`exec@target:standby=${stop} < /dev/null > /dev/null 2>&1 &`);
        const move = stage.migrate();
        await stage.until(() => existsSync(stands));
        await stage.cancel();
        const { end, reason } = await move;
        assert.deepEqual([end, reason], ["rolled-back", "cancelled"]);
        const proxies = lab.leftovers().processes.filter(({ command }) => command.includes("proxy/main.ts"));
        assert.equal(proxies.length, 1, JSON.stringify(proxies));
        await stage.assertWell(owner);
      }),
    );
  });
}
