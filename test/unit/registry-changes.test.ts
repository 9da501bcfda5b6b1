/** Of a workload's sessions the store is told what has changed. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { RegistryChanges } from "#control/workload/session-registry-changes.ts";
import type { SessionInfo } from "#proxy/contract/commands.ts";
import { sessionInfo } from "../support/session-info.ts";

const AGAIN_MS = 1_000;

/** One round, with a store that takes all of it. */
function round(
  changes: RegistryChanges,
  pages: SessionInfo[][],
  nowMs: number,
): { put: string[]; gone: string[] } {
  changes.begin();
  const put = pages.flatMap((page) => {
    const records = changes.ofPage(page, nowMs);
    changes.tell(records, nowMs);
    return records.map(({ id }) => id);
  });
  const gone = changes.gone();
  changes.untell(gone);
  return { put, gone };
}

describe("the registry", () => {
  it("tells each session once, again when it is not what it was, and once more after a while", () => {
    const changes = new RegistryChanges(AGAIN_MS);
    assert.deepEqual(round(changes, [[sessionInfo("a"), sessionInfo("b")], [sessionInfo("c")]], 0).put, [
      "a",
      "b",
      "c",
    ]);
    const busy = { bytesIn: 7, bytesOut: 7, requests: 1, requestsInFlight: 1, ageMs: 900 };
    assert.deepEqual(
      round(changes, [[sessionInfo("a", busy), sessionInfo("b"), sessionInfo("c", busy)]], 900).put,
      [],
    );
    const held = sessionInfo("b", { state: "held" });
    assert.deepEqual(round(changes, [[sessionInfo("a"), held, sessionInfo("c")]], 950).put, ["b"]);
    assert.deepEqual(round(changes, [[sessionInfo("a"), held, sessionInfo("c")]], 1_000).put, ["a", "c"]);
  });

  it("tells once that a session is gone, and that another of that id is new", () => {
    const changes = new RegistryChanges(AGAIN_MS);
    round(changes, [[sessionInfo("a"), sessionInfo("b")]], 0);
    assert.deepEqual(round(changes, [[sessionInfo("b")], []], 1), { put: [], gone: ["a"] });
    assert.deepEqual(round(changes, [[sessionInfo("b")]], 2), { put: [], gone: [] });
    assert.deepEqual(round(changes, [[sessionInfo("a"), sessionInfo("b")]], 3), { put: ["a"], gone: [] });
  });

  it("tells again what the store has not taken", () => {
    const changes = new RegistryChanges(AGAIN_MS);
    changes.begin();
    assert.equal(changes.ofPage([sessionInfo("a")], 0).length, 1);
    assert.equal(changes.ofPage([sessionInfo("a")], 1).length, 1);
    changes.tell(changes.ofPage([sessionInfo("a")], 2), 2);
    changes.begin();
    assert.deepEqual([changes.gone(), changes.gone()], [["a"], ["a"]]);
    changes.forget();
    assert.deepEqual(round(changes, [[sessionInfo("a")]], 3), { put: ["a"], gone: [] });
  });
});
