/**
 * Redis is killed (what it held is gone) or stands still (SIGSTOP), before, at and after the commit of a move, and comes
 * back later. Clients never wait for it longer than one of its calls: where it is silent the nodes' words to each other
 * decide, and it is told afterwards.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { MoveStage } from "#test/support/move-stage.ts";
import { staged } from "#test/support/staged.ts";

const STORE = /Redis at|no record of it/;

const FAILURES: Record<string, { signal: string; back(stage: MoveStage): Promise<void> }> = {
  killed: {
    signal: "KILL",
    back: async (stage) => {
      await stage.lab.redis.start();
    },
  },
  "standing still": {
    signal: "STOP",
    back: async (stage) => stage.lab.redis.resume(),
  },
};

/** Where it fails → how the move ends. */
const POINTS: Record<string, "moved" | "rolled-back"> = {
  "source:prepare": "rolled-back",
  "source:capture": "rolled-back",
  "source:commit": "rolled-back",
  "source:committed": "moved",
  "target:release": "moved",
};

for (const downstream of ["takeover", "forward"] as const) {
  describe(`store gone in a move, ${downstream}`, { timeout: 600_000 }, () => {
    const on = staged({ downstream });
    for (const [failure, { signal, back }] of Object.entries(FAILURES)) {
      const stop = (stage: MoveStage): string => `kill -${signal} ${stage.lab.redis.pid}`;

      it(
        `${failure} before the move: refused, and the next one goes`,
        on(async (stage) => {
          const { owner } = stage;
          process.kill(stage.lab.redis.pid ?? 0, `SIG${signal}`);
          const { end, reason } = await stage.migrate();
          assert.equal(end, "rolled-back");
          assert.match(reason, STORE);
          await stage.assertSessions();
          await back(stage);
          await stage.assertWell(owner);
        }),
      );

      for (const [point, expected] of Object.entries(POINTS)) {
        // the store's part is the same in both: forward shows what its links make of it, at and after the commit
        if (downstream === "forward" && !["source:commit", "target:release"].includes(point)) continue;
        it(
          `${failure} at ${point}: ${expected}`,
          on(async (stage) => {
            const { owner, other } = stage;
            stage.fault(`exec@${point}=${stop(stage)}`);
            const { end, reason } = await stage.migrate();
            assert.equal(end, expected, `${reason}\n${stage.logs()}`);
            if (end === "rolled-back") assert.match(reason, STORE);
            await stage.assertSessions(); // without any store
            await back(stage);
            await stage.assertWell(end === "moved" ? other : owner);
          }),
        );
      }
    }

    it(
      "killed after the commit, with the source's agent: the next one asks the target",
      on(async (stage) => {
        const { owner } = stage;
        stage.fault(`exec@source:committed=kill -KILL ${stage.lab.redis.pid}`, "crash@source:committed");
        assert.equal((await stage.migrate()).end, "cut");
        await stage.restart(owner);
        await stage.until(async () => (await stage.shown(owner)).moving === null);
        await stage.assertSessions();
        await stage.lab.redis.start();
        await stage.assertWell(owner);
      }),
    );

    it(
      "killed after the commit, with the target's agent: the source asks the next one",
      on(async (stage) => {
        const { owner, other } = stage;
        stage.fault(`exec@source:committed=kill -KILL ${stage.lab.redis.pid}`, "crash@target:release");
        const move = stage.migrate();
        await stage.restart(other);
        assert.equal((await move).end, "rolled-back");
        await stage.assertSessions();
        await stage.lab.redis.start();
        await stage.assertWell(owner);
      }),
    );

    it(
      "killed after the commit, with both agents: the nodes settle it between them",
      on(async (stage) => {
        const { owner, other } = stage;
        stage.fault(
          `exec@source:committed=kill -KILL ${stage.lab.redis.pid}`,
          "crash@source:committed",
          "crash@target:restored",
        );
        // the target's fault comes first and rolls the move back; nothing was committed
        const move = stage.migrate();
        await stage.restart(other);
        assert.equal((await move).end, "rolled-back");
        stage.fault(`exec@source:committed=kill -KILL ${stage.lab.redis.pid}`, "crash@source:committed");
        assert.equal((await stage.migrate()).end, "cut");
        await stage.agent(other).stop("SIGKILL");
        await stage.died(owner);
        await Promise.all([stage.startAgent(owner), stage.startAgent(other)]);
        await stage.until(async () => (await stage.shown(owner)).moving === null);
        await stage.assertSessions();
        await stage.lab.redis.start();
        await stage.assertWell(owner);
      }),
    );

    it(
      "emptied while nothing moves: the owner says again that it is the owner, and an agent that starts believes it",
      on(async (stage) => {
        const { owner, other } = stage;
        await stage.lab.redis.stop();
        await stage.lab.redis.start();
        await stage.agent(other).stop("SIGKILL");
        await stage.startAgent(other); // start: true on one of the two
        await stage.until(() => stage.record().owner === owner);
        await stage.assertWell(owner);
      }),
    );
  });
}
