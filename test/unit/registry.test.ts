/** What the store knows of a workload's sessions, by a clock of the test's. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it, mock } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { Registry } from "#control/workload/session-registry.ts";
import type { Workload } from "#control/workload/workload.ts";
import type { SessionInfo } from "#proxy/contract/commands.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import { SESSIONS_BATCH_MAX } from "#proxy/store/store.ts";
import { sessionInfo } from "../support/session-info.ts";

const LOOK_MS = 2_000;
const TURNS = 20;

describe("a workload's registry", () => {
  let nowMs = 0;
  let pages: SessionInfo[][] = [];
  let store: MemoryStore;
  let registry: Registry;

  beforeEach(async () => {
    nowMs = 1_000_000;
    mock.timers.enable({ apis: ["setInterval"] });
    mock.method(performance, "now", () => nowMs);
    store = new MemoryStore();
    await store.claim({ workload: "w", node: "a" });
    registry = new Registry({
      name: "w",
      context: { node: "a", store, log: { debug: (_: object, line: string) => assert.fail(line) } },
      journal: { role: "owner", moving: null, epoch: 1 },
      keeper: {
        sessionPages: async function* () {
          yield* pages;
        },
      },
    } as unknown as Workload);
    registry.keep();
  });
  afterEach(() => {
    registry.close();
    mock.timers.reset();
    mock.restoreAll();
  });

  async function look(afterMs = LOOK_MS): Promise<string[]> {
    nowMs += afterMs;
    mock.timers.tick(LOOK_MS);
    for (let left = TURNS; left > 0; left--) await turn();
    return (await store.sessions("w")).map(({ id }) => id).sort();
  }

  it("is all there where a proxy gives more sessions at once than the store takes, and what has gone goes", async () => {
    const all = Array.from({ length: 2 * SESSIONS_BATCH_MAX + 1 }, (_, index) => `${10_000 + index}`);
    pages = [all.map((id) => sessionInfo(id))];
    assert.deepEqual(await look(), all);
    pages = [[sessionInfo("10007")]];
    assert.deepEqual(await look(), ["10007"]);
  });

  it("is all there again at once where nothing was written until the store had forgotten it", async () => {
    pages = [[sessionInfo("a"), sessionInfo("b")]];
    assert.deepEqual(await look(), ["a", "b"]);
    nowMs += 20_000;
    assert.deepEqual(await store.sessions("w"), []);
    assert.deepEqual(await look(0), ["a", "b"]);
  });

  it("does not expire while nothing changes, and none is left when there are none", async () => {
    pages = [[sessionInfo("a")]];
    for (let looks = 0; looks < 10; looks++) assert.deepEqual(await look(), ["a"]);
    pages = [[]];
    assert.deepEqual(await look(), []);
  });
});
