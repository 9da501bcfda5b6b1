/** What ends on this node ends, whatever fails on the way: a workload that has left, and one that is being stopped. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { pino } from "pino";
import type { WorkloadConfig } from "#control/config/config.ts";
import type { Moving } from "#control/migration/moving.ts";
import type { Vip } from "#control/network/vip.ts";
import { identify } from "#control/runtime/processes.ts";
import type { AgentContext } from "#control/workload/context.ts";
import { readJournal } from "#control/workload/journal.ts";
import { Workload } from "#control/workload/workload.ts";
import { until } from "#test/support/moved-program.ts";

const CONTAINER = { id: "c", runDir: "/nonexistent", init: { pid: 4_194_305, startTicks: "1" }, tmpfs: [] };
const MOVING: Moving = {
  ...{ side: "source", id: "m1", peer: "b", epoch: 2, step: "committing" },
  ...{ criu: null, stopped: [], ran: false, watches: [], link: null, anchors: [] },
};
const OWNER = { node: "b", link: { address: "", port: 0 } };

describe("a workload on this node", { timeout: 20_000 }, () => {
  let stateDir: string;
  let workload: Workload;
  /** of the container's end */
  let failures: string[];
  let destroyed: number;

  beforeEach(() => {
    stateDir = mkdtempSync(join(tmpdir(), "holdfast-ends-"));
    failures = [];
    destroyed = 0;
    const destroy = async (): Promise<void> => {
      const failure = failures.shift();
      if (failure !== undefined) throw new Error(failure);
      destroyed++;
    };
    workload = new Workload({ name: "chat", downstream: "takeover" } as WorkloadConfig, {
      ...({ node: "a", stateDir, log: pino({ level: "silent" }) } as AgentContext),
      runtime: { supervisor: "agent", find: () => ({ destroy }) } as unknown as AgentContext["runtime"],
    });
    workload.record({ role: "owner", epoch: 1, container: CONTAINER, moving: MOVING });
  });
  afterEach(() => {
    workload.close();
    rmSync(stateDir, { recursive: true, force: true });
  });

  it("is on record as retired, its address gone, though its proxy and its address do not end at once", async (t) => {
    const child = spawn("sleep", ["600"], { stdio: "ignore" });
    t.after(() => child.kill("SIGKILL"));
    const sleeping = await identify(child.pid ?? -1);
    assert.ok(sleeping !== null);
    workload.record({ proxy: { process: sleeping, socketPath: "/nonexistent", isSidecar: false } });
    const kill = process.kill.bind(process);
    let refused = 0;
    t.mock.method(process, "kill", (pid: number, signal: NodeJS.Signals) => {
      refused++;
      kill(pid, signal);
      throw Object.assign(new Error("kill EPERM"), { code: "EPERM" });
    });
    let busy = 2;
    const remove = (): boolean => {
      assert.notEqual(workload.journal.moving, null, "the next agent has to take the address off, too");
      if (busy-- > 0) throw new Error("ENOBUFS");
      return true;
    };
    workload.vip = { remove, close: () => {} } as unknown as Vip;
    await workload.retire(2, OWNER);
    const { role, epoch, moving, container, proxy } = readJournal(join(workload.folder, "journal.json"));
    assert.deepEqual([role, epoch, moving, container, proxy], ["none", 2, null, null, null]);
    assert.deepEqual([busy, destroyed, refused], [-1, 1, 1]);
    assert.equal(workload.isMoving, false);
  });

  it("has its container removed in the end, and a move is over before", async () => {
    failures = ["EBUSY", "EBUSY", "EIO"];
    await workload.retire(2, OWNER);
    assert.deepEqual([workload.isMoving, destroyed], [false, 0]);
    await until("it is removed", () => destroyed === 1);
  });

  it("is neither restarted nor started while it is being ended", async () => {
    workload.record({ moving: null });
    const ended = Promise.withResolvers<void>();
    const ending = workload.ending(() => ended.promise);
    const busy = { code: "MIGRATION_BUSY", message: "chat is being ended on this node" };
    await assert.rejects(
      workload.restart(0, () => {}),
      busy,
    );
    await assert.rejects(workload.start(false), busy);
    ended.resolve();
    await ending;
    await assert.rejects(workload.start(false), { code: "ALREADY_THERE" });
  });
});
