/** Starting an application again: when attempts end. With real processes: `test/privileged/restart-*.test.ts`. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import { parseWorkload } from "#control/config/config.ts";
import { Faults } from "#control/migration/faults.ts";
import { EMPTY_JOURNAL, type Journal } from "#control/workload/journal.ts";
import { type SupervisedWorkload, Supervisor } from "#control/workload/supervisor.ts";

/** One that cannot be started: its container is no more, and no other can be made. */
class GoneWorkload implements SupervisedWorkload {
  readonly name = "chat";
  readonly logFile = "/nonexistent";
  readonly config = parseWorkload(
    {
      name: "chat",
      pod: { name: "chat", container: "app" },
      ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }],
      limits: { unavailableMsMax: 50 },
    },
    "192.0.2.1",
    "test",
  );
  readonly context = {
    ...{ node: "a", criu: {} as never, runtime: {} as never },
    metrics: { restarted: () => {} } as never,
    faults: new Faults(undefined),
    log: pino({ level: "silent" }),
  };
  journal: Journal = { ...EMPTY_JOURNAL, role: "owner", epoch: 3 };
  readonly sandbox = null;
  readonly runtime = {} as never;
  readonly isAtRest = true;
  isLeavingDown = false;
  readonly keeper = { handNetwork: async () => {} };
  get container(): never {
    throw new Error("there is none");
  }
  get proxy(): never {
    throw new Error("there is none");
  }
  record(patch: Partial<Journal>): void {
    this.journal = { ...this.journal, ...patch };
  }
  createContainer(): Promise<never> {
    return Promise.reject(new Error("its pod has gone"));
  }
  useConfig(): void {}
}

describe("a restart that comes to nothing", () => {
  for (const isLeavingDown of [false, true])
    it(`is ${isLeavingDown ? "not tried any more where its pod has gone meanwhile" : "tried again"}`, async () => {
      const workload = new GoneWorkload();
      const supervisor = new Supervisor(workload);
      const { config } = workload;
      const report = (): void => {
        workload.isLeavingDown = isLeavingDown;
      };
      await assert.rejects(supervisor.restart({ drainMs: 0, config, report }), /its pod has gone/);
      assert.equal(supervisor.isBusy, !isLeavingDown);
      await supervisor.interrupt();
      supervisor.close();
      assert.equal(supervisor.isBusy, false);
    });
});
