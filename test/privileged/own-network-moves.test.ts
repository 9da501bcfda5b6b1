/** Moves of a container that has a network of its own, with clients at work: those that go well, and those that do not. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, it } from "node:test";
import { readJournal } from "#control/workload/journal.ts";
import { nodeBinary, projectRoot } from "#test/lab/lab.ts";
import { type MoveStage, WORKLOAD } from "#test/support/move-stage.ts";
import { staged } from "#test/support/staged.ts";

const container = {
  command: [nodeBinary, "server.js"],
  cwd: `${projectRoot}/test/apps/chat`,
  env: { PORT: "9000" },
  rootfs: "host",
  network: "own",
};

for (const downstream of ["takeover", "forward"] as const) {
  describe(`a network of its own, ${downstream}`, { timeout: 300_000 }, () => {
    const on = staged({ downstream, workload: { container } });

    it(
      "a move that fails when everything is restored goes on where it was",
      on(async (stage) => {
        const { owner } = stage;
        stage.fault("fail@target:restored");
        assert.equal((await stage.migrate()).end, "rolled-back");
        await stage.assertStays(owner);
      }),
    );

    it(
      "an agent killed in a move: its next one goes on, or leaves nothing",
      on(async (stage) => {
        const { owner, other } = stage;
        const [node, fault] =
          downstream === "takeover" ? [owner, "crash@source:capture"] : [other, "crash@target:restored"];
        stage.fault(fault);
        await stage.migrate();
        await stage.restart(node);
        await stage.assertStays(owner);
      }),
    );

    it(
      "sessions go there and back, byte for byte",
      on(async (stage) => {
        const { owner } = stage;
        await stage.assertWell();
        await stage.assertWell(stage.owner);
        assert.equal(stage.owner, owner);
      }),
    );

    it(
      "a proxy that was killed has a successor that serves",
      on(async (stage) => {
        await killProxy(stage);
        stage.spend(stage.sessions);
        await stage.until(async () => await serves(stage));
      }),
    );
  });
}

async function killProxy(stage: MoveStage): Promise<void> {
  const { proxy } = readJournal(join(stage.lab.stateDir(stage.owner), "workloads", WORKLOAD, "journal.json"));
  assert.ok(proxy !== null);
  process.kill(proxy.process.pid, "SIGKILL");
}

/** Asks the application for something, from where its clients are. */
async function serves({ lab, target }: MoveStage): Promise<boolean> {
  const ask = `import urllib.request; print(urllib.request.urlopen("http://${target.address}:${target.port}/", timeout=2).status)`;
  const { stdout, stderr } = await lab.run("client", ["python3", "-c", ask]);
  return /^\d+$/m.test(stdout) || /HTTP Error \d+/.test(stderr);
}
