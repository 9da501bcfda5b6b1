/** Whoever holds clients' sockets has to reach the target: where a firewall or a NetworkPolicy is in the way, nobody is held, and nobody moves. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { agentPort } from "#test/lab/lab.ts";
import { staged } from "#test/support/staged.ts";

describe("a target that does not get the links of", { timeout: 600_000 }, () => {
  for (const [downstream, who, place, holder] of [
    ["gateway", "a gateway", "g", "gateway:g"],
    ["forward", "the node that holds its clients", "a", "a"],
  ] as const) {
    const on = staged({ downstream });

    it(
      `${who}: refused before anybody is held`,
      on(async (stage) => {
        const { owner, other, lab } = stage;
        assert.equal(owner, "a");
        lab.cutOff(place, other, agentPort);
        try {
          const { end, reason, phases } = await stage.migrate();
          assert.equal(end, "rolled-back", reason);
          assert.match(
            reason,
            new RegExp(`^${holder}: no connection to [\\d.]+:\\d+, where b takes the links`),
          );
          assert.ok(!phases.includes("hold"), "no client was held");
        } finally {
          lab.heal(place);
        }
        await stage.assertWell(owner); // which moves it
      }),
    );
  }
});
