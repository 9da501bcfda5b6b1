/** Of a workload's sessions the store is told what has changed. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { RegistryChanges } from "#control/workload/session-registry-changes.ts";
import type { SessionInfo } from "#proxy/contract/commands.ts";

const AGAIN_MS = 1_000;

function session(id: string, more: Partial<SessionInfo> = {}): SessionInfo {
  return {
    id,
    port: 0,
    client: "10.0.0.1:1",
    anchor: "a",
    place: "here",
    state: "open",
    bytesIn: 0,
    bytesOut: 0,
    ageMs: 5,
    protocol: "tcp",
    continuity: "transplant",
    name: null,
    requestsInFlight: 0,
    requests: 0,
    ...more,
  };
}

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
    assert.deepEqual(round(changes, [[session("a"), session("b")], [session("c")]], 0).put, ["a", "b", "c"]);
    const busy = { bytesIn: 7, bytesOut: 7, requests: 1, requestsInFlight: 1, ageMs: 900 };
    assert.deepEqual(round(changes, [[session("a", busy), session("b"), session("c", busy)]], 900).put, []);
    const held = session("b", { state: "held" });
    assert.deepEqual(round(changes, [[session("a"), held, session("c")]], 950).put, ["b"]);
    assert.deepEqual(round(changes, [[session("a"), held, session("c")]], 1_000).put, ["a", "c"]);
  });

  it("tells once that a session is gone, and that another of that id is new", () => {
    const changes = new RegistryChanges(AGAIN_MS);
    round(changes, [[session("a"), session("b")]], 0);
    assert.deepEqual(round(changes, [[session("b")], []], 1), { put: [], gone: ["a"] });
    assert.deepEqual(round(changes, [[session("b")]], 2), { put: [], gone: [] });
    assert.deepEqual(round(changes, [[session("a"), session("b")]], 3), { put: ["a"], gone: [] });
  });

  it("tells again what the store has not taken", () => {
    const changes = new RegistryChanges(AGAIN_MS);
    changes.begin();
    assert.equal(changes.ofPage([session("a")], 0).length, 1);
    assert.equal(changes.ofPage([session("a")], 1).length, 1);
    changes.tell(changes.ofPage([session("a")], 2), 2);
    changes.begin();
    assert.deepEqual([changes.gone(), changes.gone()], [["a"], ["a"]]);
    changes.forget();
    assert.deepEqual(round(changes, [[session("a")]], 3), { put: ["a"], gone: [] });
  });
});
