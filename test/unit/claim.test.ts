/** Whether a workload may be started here, from what the store, the other nodes and the journal say. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Held, PeerAnswer } from "#control/api/owners.ts";
import { decideClaim, decideForced, type Known } from "#control/workload/claim.ts";
import type { Ownership } from "#proxy/store/store.ts";

const says = (peer: string, held: Partial<Held> = {}): PeerAnswer => ({
  peer,
  held: { workload: "chat", has: "no", epoch: 0, seen: 0, link: null, ...held },
});
const silent = (peer: string): PeerAnswer => ({ peer, silent: "connection refused" });
const record = (owner: string, epoch: number, more: Partial<Ownership> = {}): Ownership => ({
  owner,
  epoch,
  state: "released",
  previous: null,
  migration: null,
  ...more,
});
const known = (more: Partial<Known> = {}): Known => ({
  workload: "chat",
  node: "a",
  record: null,
  peers: [says("b")],
  journal: { epoch: 0, seen: 0 },
  storeIsKnown: false,
  ...more,
});

describe("a workload without a record is claimed", () => {
  test("where every peer says that it does not have it, and where there is none", () => {
    assert.deepEqual(decideClaim(known()), { kind: "claim", epoch: 1 });
    assert.deepEqual(decideClaim(known({ peers: [] })), { kind: "claim", epoch: 1 });
    assert.deepEqual(decideClaim(known({ peers: [{ peer: "b", held: null }] })), { kind: "claim", epoch: 1 });
  });

  test("not where one cannot be asked; that is told with the cure", () => {
    const decision = decideClaim(known({ peers: [says("b"), silent("c")] }));
    assert.equal(decision.kind, "wait");
    const { what, cure } = "problem" in decision ? decision.problem : { what: "", cure: "" };
    assert.match(what, /no record of it, and node c cannot be asked .*connection refused/);
    assert.match(cure, /`holdfast start chat --force`/);
  });

  test("where one cannot be asked, nobody has heard of it, and the store is the one that has always known all", () => {
    const decision = decideClaim(known({ peers: [silent("b")], storeIsKnown: true }));
    assert.deepEqual(decision, { kind: "claim", epoch: 1 });
    const had = { peers: [silent("b")], storeIsKnown: true, journal: { epoch: 0, seen: 1 } };
    assert.equal(decideClaim(known(had)).kind, "wait", "it has existed: its record was lost");
  });

  test("not where a peer has it, or may soon", () => {
    const owned = decideClaim(known({ peers: [says("b", { has: "owner", epoch: 2 })], storeIsKnown: true }));
    assert.deepEqual([owned.kind, "owner" in owned && owned.owner], ["other", "b"]);
    assert.equal(decideClaim(known({ peers: [says("b", { has: "moving" })] })).kind, "wait");
  });

  test("above every epoch that anybody knows of", () => {
    const peers = [says("b", { epoch: 3, seen: 8 }), says("c", { seen: 5 })];
    assert.deepEqual(decideClaim(known({ peers })), { kind: "claim", epoch: 9 });
    assert.deepEqual(decideClaim(known({ peers, journal: { epoch: 2, seen: 11 } })), {
      kind: "claim",
      epoch: 12,
    });
  });
});

describe("a record", () => {
  test("of this node is resumed, also where numbers above it were only given out", () => {
    const peers = [silent("b")];
    const journal = { epoch: 3, seen: 9 };
    assert.deepEqual(decideClaim(known({ record: record("a", 3), peers, journal })), {
      kind: "resume",
      epoch: 3,
    });
  });

  test("of this node that a fail-over has brought back is no permission", () => {
    const stale = { record: record("a", 1), journal: { epoch: 2, seen: 2 }, storeIsKnown: true };
    const waits = decideClaim(known({ ...stale, peers: [silent("b")] }));
    assert.match("problem" in waits ? waits.problem.what : "", /older than epoch 2/);
    const told = decideClaim(known({ record: record("a", 1), peers: [says("b", { epoch: 4, seen: 4 })] }));
    assert.deepEqual(told, { kind: "raise", epoch: 5 }, "all were asked, and nobody has it");
    const has = decideClaim(known({ ...stale, peers: [says("b", { has: "owner", epoch: 2 })] }));
    assert.equal(has.kind, "other");
  });

  test("of this node is above an owner who has not heard of it", () => {
    const peers = [says("b", { has: "owner", epoch: 2 })];
    assert.equal(decideClaim(known({ record: record("a", 5), peers })).kind, "wait");
  });

  test("that is only committed to this node waits for the source", () => {
    const committed = record("a", 2, {
      state: "committed",
      previous: "b",
      migration: { id: "m", target: "a", epoch: 2 },
    });
    assert.equal(decideClaim(known({ record: committed })).kind, "wait");
  });

  test("of another node is that node's, also where it cannot be asked", () => {
    const decision = decideClaim(known({ record: record("b", 1), peers: [silent("b")] }));
    assert.deepEqual([decision.kind, "owner" in decision && decision.owner], ["other", "b"]);
  });

  test("of a workload that was stopped is claimed above its epoch", () => {
    const stopped = record("b", 4, { state: "stopped" });
    assert.deepEqual(decideClaim(known({ record: stopped, peers: [silent("b")] })), {
      kind: "claim",
      epoch: 5,
    });
    assert.equal(
      decideClaim(known({ record: stopped, peers: [says("b", { has: "owner", epoch: 6 })] })).kind,
      "other",
    );
  });
});

describe("a forced start", () => {
  test("is above whatever an owner that could tell nobody may have taken", () => {
    const moving = record("b", 4, { migration: { id: "m", target: "c", epoch: 5 } });
    const peers = [silent("b"), says("c", { seen: 3 })];
    assert.deepEqual(decideForced(known({ record: moving, peers })), { kind: "raise", epoch: 7 });
  });

  test("is refused where a node answers that it has it", () => {
    const owned = decideForced(known({ peers: [says("b", { has: "owner", epoch: 1 })] }));
    assert.match("problem" in owned ? owned.problem.cure : "", /holdfast migrate chat/);
    assert.equal(decideForced(known({ peers: [says("b", { has: "moving" })] })).kind, "wait");
  });
});
