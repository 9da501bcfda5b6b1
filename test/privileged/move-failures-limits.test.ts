/** Too little space, too little time, somebody who changes his mind, somebody who asks twice, and a node that stands still. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { staged } from "#test/support/staged.ts";

/** less than the application's memory, more than nothing */
const FEW_MB = 8;
const FILL = "dd if=/dev/zero of=$RUN/fill bs=1M || true";
/** of the tmpfs, which has twice this: more than the application needs, and soon full */
const IMAGES_MB = 192;

describe("no space for the memory images", { timeout: 600_000 }, () => {
  const on = staged({ downstream: "takeover", workload: { limits: { imagesMbMax: IMAGES_MB } } });

  it(
    "by the target's limit: refused before anybody is held",
    on(async (stage) => {
      const { owner, other } = stage;
      await stage.restartWith(other, { limits: { imagesMbMax: FEW_MB } });
      const { end, reason, phases } = await stage.migrate();
      assert.equal(end, "rolled-back", reason);
      assert.match(
        reason,
        /node [ab]: no space for images: \d+ MB needed, limit 9 MB: raise limits.imagesMbMax/,
      );
      assert.ok(!phases.includes("hold"), "no client was held");
      await stage.restartWith(other, {});
      await stage.assertWell(owner);
    }),
  );

  it(
    "at the source, found out in the dump",
    on(async (stage) => {
      const { owner } = stage;
      stage.fault(`exec@source:hold=${stage.enter(owner)}\n${FILL}`);
      const { end, reason } = await stage.migrate();
      assert.equal(end, "rolled-back", reason);
      assert.match(reason, /^CRIU cannot dump the application: .|no space/i);
      await stage.assertStays(owner);
      stage.shell(`${stage.enter(owner)}\nrm $RUN/fill`);
      await stage.assertWell(owner);
    }),
  );

  it(
    "at the target, found out while they arrive",
    on(async (stage) => {
      const { owner, other } = stage;
      stage.fault(`exec@source:hold=${stage.enter(other)}\n${FILL}`);
      const { end, reason } = await stage.migrate();
      assert.equal(end, "rolled-back", reason);
      assert.match(reason, /no space for the memory images/);
      await stage.assertWell(owner);
    }),
  );
});

/** Of the agent that runs this: nothing can be opened, for two seconds. prlimit(1) */
const FEW_DESCRIPTORS = `
  set -e
  before=$(prlimit --pid $PPID --nofile --output SOFT --noheadings)
  prlimit --pid $PPID --nofile=8:
  (sleep 2 && prlimit --pid $PPID --nofile=$before:) < /dev/null > /dev/null 2>&1 &`;

describe("a source that is short of descriptors", { timeout: 600_000 }, () => {
  const on = staged({ downstream: "takeover" });
  for (const step of ["restore", "commit"])
    it(
      `at ${step} and while it goes back: every session and the application go on`,
      on(async (stage) => {
        const { owner } = stage;
        stage.fault(`exec@source:${step}=${FEW_DESCRIPTORS}`, `fail@source:${step}`);
        const { end, reason } = await stage.migrate();
        assert.equal(end, "rolled-back");
        assert.match(reason, /EMFILE/);
        await stage.assertWell(owner);
      }),
    );
});

describe("a target that is short of descriptors", { timeout: 600_000 }, () => {
  const on = staged({ downstream: "takeover" });
  for (const step of ["prepare", "adopt", "restore", "audit", "watches", "release", "released"])
    it(
      `at ${step}: every session and the application go on, here or there`,
      on(async (stage) => {
        const { owner, other } = stage;
        const said = stage.agent(other).stderr.length;
        stage.fault(`exec@target:${step}=${FEW_DESCRIPTORS}`);
        const { end, reason } = await stage.migrate();
        assert.match(`${reason}\n${stage.agent(other).stderr.slice(said)}`, /EMFILE/);
        await stage.assertWell(end === "moved" ? other : owner);
      }),
    );
});

for (const downstream of ["takeover", "forward"] as const) {
  describe(`a move that must end, ${downstream}`, { timeout: 600_000 }, () => {
    const on = staged({ downstream });
    /** What links and anchors have no part in is tried once. */
    const either = (name: string, test: () => Promise<void>): void => {
      if (downstream === "takeover") it(name, test);
    };

    it(
      "a deadline that its memory alone cannot keep: nobody is held",
      on(async (stage) => {
        const { owner } = stage;
        const { end, reason, phases } = await stage.migrate({ deadlineMs: 1 });
        assert.equal(end, "rolled-back", reason);
        assert.match(reason, /\d+ MB of memory.* and the deadline is 1 ms: raise limits\./);
        assert.ok(!phases.includes("hold"), "no client was held");
        await stage.assertWell(owner);
      }),
    );

    either(
      "a source that is too slow",
      on(async (stage) => {
        const { owner } = stage;
        stage.fault("exec@source:restore=sleep 0.5");
        const { end, reason } = await stage.migrate({ deadlineMs: 300 });
        assert.equal(end, "rolled-back", reason);
        assert.match(reason, /the deadline of 300 ms has passed/);
        await stage.assertWell(owner);
      }),
    );

    either(
      "a target that stands still before the commit: the sessions go on without it",
      on(async (stage) => {
        const { owner, other } = stage;
        const target = stage.agent(other);
        stage.fault("exec@target:restore=kill -STOP $PPID");
        const { end, reason } = await stage.migrate({ deadlineMs: 3_000 });
        assert.equal(end, "rolled-back", reason);
        assert.match(reason, /the deadline of 3000 ms has passed/);
        await stage.assertSessions();
        target.child.kill("SIGCONT");
        await stage.assertWell(owner);
      }),
    );

    it(
      "a target that stands still after the commit: taken back, and it can no longer come alive",
      on(async (stage) => {
        const { owner, other } = stage;
        const target = stage.agent(other);
        stage.fault("exec@target:release=kill -STOP $PPID");
        const { end } = await stage.migrate({ deadlineMs: 3_000 });
        assert.equal(end, "rolled-back");
        await stage.assertSessions();
        target.child.kill("SIGCONT");
        await stage.assertWell(owner);
      }),
    );

    it(
      "a target whose cable is pulled after the commit: taken back, and it can no longer come alive",
      on(async (stage) => {
        const { owner, other } = stage;
        // with forward the clients' sockets are at node a: pulled at the source, the cable would be the clients' own
        const gate = stage.gate("target:release");
        stage.fault(gate.fault);
        const move = stage.migrate({ deadlineMs: 3_000 });
        await gate.reached;
        stage.lab.setLink(other, "down");
        gate.go();
        const { end } = await move;
        if (downstream === "takeover" || owner === "a") assert.equal(end, "rolled-back");
        stage.lab.setLink(other, "up");
        await stage.assertWell();
      }),
    );

    either(
      "cancelled while the target restores",
      on(async (stage) => {
        const { owner } = stage;
        const gate = stage.gate("target:restore");
        stage.fault(gate.fault);
        const move = stage.migrate();
        await gate.reached;
        await stage.cancel();
        gate.go();
        const { end, reason } = await move;
        assert.equal(end, "rolled-back", reason);
        assert.match(reason, /cancelled/);
        await stage.assertWell(owner);
      }),
    );

    it(
      "asked for twice: the second is refused, the first is not harmed",
      on(async (stage) => {
        const { other } = stage;
        const gate = stage.gate("target:standby");
        stage.fault(gate.fault);
        const move = stage.migrate();
        await gate.reached;
        const second = await stage.migrate();
        assert.deepEqual([second.end, second.code], ["refused", "MIGRATION_BUSY"]);
        gate.go();
        assert.equal((await move).end, "moved");
        await stage.assertWell(other);
      }),
    );
  });
}
