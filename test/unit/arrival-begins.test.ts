/** An arrival that cannot begin is over before the next one comes, and touches nothing of it later. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { pino } from "pino";
import type { PrepareCall } from "#control/api/migration.ts";
import { Arrival } from "#control/migration/arrival/arrival.ts";
import type { MigrationHost } from "#control/migration/host.ts";
import type { Moving } from "#control/migration/moving.ts";
import type { Sandbox } from "#control/runtime/runtime.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import { until } from "../support/moved-program.ts";

const PREPARE = {
  workload: "chat",
  migration: "m1",
  from: "a",
  epoch: 7,
  anchors: [],
} as never as PrepareCall;

/** Node b, whose container cannot be made until there is one to be had. */
class Target {
  readonly deeds: string[] = [];
  readonly source = Promise.withResolvers<void>();
  journal = { epoch: 0, seen: 0, moving: null as Moving | null };
  made: () => Promise<Sandbox> = () => Promise.reject(new Error("no room"));
  discarded: () => Promise<void> = async () => {};
  readonly arrival: Arrival;

  constructor() {
    const channel = { isOpen: true, closed: this.source.promise, on() {} };
    const own = {
      name: "chat",
      context: { node: "b", store: new MemoryStore(), log: pino({ level: "silent" }), faults: { at() {} } },
      vip: { remove: () => this.#did("address off") },
      record: (patch: { moving?: Moving | null }) => {
        this.#did(patch.moving == null ? "forgotten" : `recorded ${patch.moving.id}`);
        this.journal = { ...this.journal, ...patch } as typeof this.journal;
      },
      recordMoving: ({ step }: Partial<Moving>) => this.#did(`recorded ${step}`),
      createContainer: () => this.made(),
      endLeftConnections: () => {},
      keeper: {
        discard: () => {
          this.#did("proxy discarded");
          return this.discarded();
        },
      },
      settling: () => {},
      throwIfClosed: () => {},
    };
    const host = Object.defineProperties(own, { journal: { get: () => this.journal } });
    this.arrival = new Arrival(host as never as MigrationHost, channel as never, PREPARE);
  }

  #did(deed: string): void {
    this.deeds.push(deed);
  }
}

describe("an arrival that cannot begin", { timeout: 10_000 }, () => {
  test("is not over before what it had begun has gone, however often that fails", async () => {
    const target = new Target();
    const reasons = [new Error("EMFILE"), new Error("EIO")];
    target.discarded = async () => {
      const reason = reasons.pop();
      if (reason !== undefined) throw reason;
    };
    await assert.rejects(target.arrival.begin(), /^Error: no room$/);
    assert.equal(target.arrival.ended, false);
    await until("it is over", () => target.arrival.ended);
    const discarded = Array(3).fill("proxy discarded");
    assert.deepEqual(target.deeds, [
      ...["recorded m1", "recorded gave-up", "address off", ...discarded, "forgotten"],
    ]);
  });

  test("does nothing any more when its source goes", async () => {
    const target = new Target();
    await assert.rejects(target.arrival.begin(), /no room/);
    await until("it is over", () => target.arrival.ended);
    target.deeds.length = 0;
    target.source.resolve();
    assert.deepEqual(await target.arrival.abort(null), { outcome: "gave-up", epoch: 7 });
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(target.deeds, []);
  });

  test("makes nothing where its source has gone before", async () => {
    const target = new Target();
    target.made = () => assert.fail("a container is made for nobody");
    target.source.resolve();
    await until("it is over", () => target.arrival.ended);
    target.deeds.length = 0;
    await assert.rejects(target.arrival.begin(), { code: "MIGRATION_ABORTED" });
    assert.deepEqual(target.deeds, []);
  });

  test("is refused no sooner than what its source's going has begun is over", async () => {
    const target = new Target();
    const discarding = Promise.withResolvers<void>();
    target.discarded = () => discarding.promise;
    target.source.resolve();
    await until("it is given up", () => target.deeds.includes("proxy discarded"));
    target.arrival.dismiss();
    assert.equal(target.arrival.ended, false);
    discarding.resolve();
    await until("it is over", () => target.arrival.ended);
  });
});
