/** A cut-off move is settled by the other node's word first and the store second; see also `ownership-model.test.ts`. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import type { OutcomeReply } from "#control/api/migration.ts";
import type { Held, PeerAnswer } from "#control/api/owners.ts";
import {
  decideAtSource,
  decideAtTarget,
  decideLost,
  decideReleasing,
  goBack,
  hasLetGo,
  release,
} from "#control/migration/settle.ts";
import type { Workload } from "#control/workload/workload.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import type { Store } from "#proxy/store/store.ts";

const W = "chat";
const OWN = { workload: W, node: "a", epoch: 1 };
const MOVE = { migration: "m1", peer: "b", epoch: 2, granted: false };
/** what the target answers to one question; null: it does not answer */
type Target = (grant: number | null) => OutcomeReply | null;

let store: MemoryStore;
let recorded: string[];
let forced: boolean;

beforeEach(async () => {
  store = new MemoryStore();
  recorded = [];
  forced = false;
  await store.claim({ workload: W, node: "a" });
  await store.reserve({ ...OWN, migration: "m1", target: "b" });
});

const commit = () => store.commit({ ...OWN, migration: "m1", held: Buffer.alloc(0), ttlMs: 60_000 });

/** A store that is silent; its requests are carried out all the same where `late` says so. */
function silent(late = false): Store {
  const answer = async (step: () => Promise<unknown>): Promise<never> => {
    if (late) await step();
    throw new HoldfastError("no answer", { code: "STORE_UNKNOWN", source: "store", retryable: true });
  };
  return {
    takeBack: (request) => answer(() => store.takeBack(request)),
    ownership: (workload) => answer(() => store.ownership(workload)),
  } as Partial<Store> as Store;
}

function settle(target: Target, asked: Store = store, move = MOVE) {
  const workload = {
    name: W,
    journal: { seen: 2 },
    settling: () => {},
    get isForced() {
      return forced;
    },
    recordMoving: ({ step }: { step: string }) => recorded.push(step),
    throwIfClosed: () => {},
    context: {
      node: "a",
      store: asked,
      log: { warn: () => {} },
      dial: async () => ({
        call: async (_method: string, { grant }: { grant: number | null }) => {
          const result = target(grant);
          if (result === null) throw new Error("no answer");
          return { result };
        },
        close: () => {},
      }),
    },
  };
  return decideAtSource(workload as unknown as Workload, move);
}

describe("the source of a cut-off move", () => {
  test("believes the target, and does not wait for a silent store", async () => {
    await commit();
    const gaveUp = await settle(() => ({ outcome: "gave-up", epoch: 2 }), silent());
    assert.deepEqual(gaveUp, { where: "here", epoch: 3, told: false });
    const released = await settle(() => ({ outcome: "released", epoch: 2 }), silent());
    assert.deepEqual(released, { where: "there", epoch: 2 });
    assert.deepEqual(recorded, []);
  });

  test("takes it back in the store where the target does not answer", async () => {
    await commit();
    assert.deepEqual(await settle(() => null), { where: "here", epoch: 3, told: true });
  });

  test("lets the target have it where the store says that it was released", async () => {
    await commit();
    await store.markReleased({ workload: W, node: "b", epoch: 2 });
    assert.deepEqual(await settle(() => null), { where: "there", epoch: 2 });
  });

  test("gives its word to a target that is unsure: on record first, and above what the store may still give", async () => {
    await commit();
    const told: (number | null)[] = [];
    const settled = await settle((grant) => {
      told.push(grant);
      if (grant === null) return { outcome: "unsure", epoch: 2 };
      assert.deepEqual(recorded, ["granted"], "on record before it is told");
      return { outcome: "released", epoch: grant };
    }, silent(true));
    assert.deepEqual(told, [null, 4]);
    assert.deepEqual(settled, { where: "there", epoch: 4 });
    assert.equal(
      (await store.ownership(W))?.owner,
      "a",
      "the request that nobody got an answer to was carried out",
    );
    const raised = await store.raise({ workload: W, node: "b", epoch: 4 });
    assert.deepEqual([raised.owner, raised.epoch], ["b", 4]);
  });

  test("does not take back what it has given its word for", async () => {
    await commit();
    let asked = 0;
    const target: Target = () => (++asked < 3 ? null : { outcome: "gave-up", epoch: 2 });
    const settled = await settle(target, store, { ...MOVE, granted: true });
    assert.deepEqual(settled, { where: "here", epoch: 3, told: false }, "only the target's word counts");
    assert.equal((await store.ownership(W))?.owner, "b");
  });

  test("learns nothing from a record that a fail-over has thrown back", async () => {
    store = new MemoryStore();
    await store.claim({ workload: W, node: "a" }); // the reservation is lost, and what was decided with it
    let asked = 0;
    const target: Target = () => (++asked < 3 ? null : { outcome: "released", epoch: 2 });
    assert.deepEqual(await settle(target), { where: "there", epoch: 2 });
    assert.equal(asked, 3, "it asked again");
  });

  test("goes on when a person says that the target is gone for good, above whatever it may have had", async () => {
    forced = true;
    assert.deepEqual(await settle(() => null, silent()), { where: "here", epoch: 4, told: false });
  });
});

describe("the next agent of a target that may have marked itself released", () => {
  const says = (peer: string, has: Held["has"], epoch: number): PeerAnswer => ({
    peer,
    held: { workload: W, has, epoch, seen: epoch, link: null },
  });
  const silentPeer: PeerAnswer = { peer: "a", silent: "no answer" };

  /** @param rounds what the peers say, one time after the other; the last one for good */
  function recover(rounds: PeerAnswer[][], granted = false): Promise<"mine" | "not-mine"> {
    const ask = async (): Promise<PeerAnswer[]> => (rounds.length > 1 ? rounds.shift() : rounds[0]) ?? [];
    const workload = {
      name: W,
      isGranted: granted,
      settling: () => {},
      throwIfClosed: () => {},
      context: { node: "b", store, owners: { ask } },
    };
    const move = { migration: "m1", peer: "a", epoch: 2 };
    return decideReleasing(workload as unknown as Workload, move);
  }

  test("goes on where the store has it so, and not where it was taken back", async () => {
    await commit();
    assert.equal(await recover([]), "mine");
    await store.takeBack({ workload: W, node: "a", migration: "m1" });
    assert.equal(await recover([]), "not-mine");
  });

  test("of a store that was emptied or thrown back learns nothing: the source is asked until it answers", async () => {
    for (const lost of [new MemoryStore(), store]) {
      store = lost;
      assert.equal(await recover([[silentPeer], [says("a", "moving", 1)], [says("a", "no", 2)]]), "mine");
      assert.equal(await recover([[silentPeer], [says("a", "owner", 3)]]), "not-mine");
      assert.equal(await recover([[silentPeer, says("c", "owner", 5)]]), "not-mine");
    }
  });

  test("where nothing is left that could go on, begins anew only what nobody else may have", async () => {
    const lost = (rounds: PeerAnswer[][], given = false): Promise<"mine" | "not-mine"> => {
      const ask = async (): Promise<PeerAnswer[]> => (rounds.length > 1 ? rounds.shift() : rounds[0]) ?? [];
      const workload = {
        name: W,
        settling: () => {},
        throwIfClosed: () => {},
        context: { node: "b", store, owners: { ask } },
      };
      return decideLost(
        workload as unknown as Workload,
        { migration: "m1", peer: "a", epoch: 2 },
        () => given,
      );
    };
    await commit();
    assert.equal(await lost([[]]), "not-mine", "the source has it");
    await store.markReleased({ workload: W, node: "b", epoch: 2 });
    assert.equal(await lost([[]]), "mine", "nobody can take it back");
    store = new MemoryStore(); // it was emptied
    assert.equal(await lost([[silentPeer], [says("a", "moving", 1)], [says("a", "no", 2)]]), "mine");
    assert.equal(await lost([[silentPeer]], true), "not-mine");
  });

  test("goes on by the source's word", async () => {
    assert.equal(await recover([[silentPeer]], true), "mine");
  });
});

/** What the two ends of a move do with a decision: what is on record, owed to the store and gone on with, in order. */
function host(more: object = {}) {
  const done: string[] = [];
  const workload = {
    name: W,
    journal: { epoch: 1, seen: 2 },
    isForced: false,
    settling: () => {},
    recordMoving: () => {},
    throwIfClosed: () => {},
    record: (patch: object) => done.push(`record ${JSON.stringify(patch)}`),
    goOnHere: async (epoch: number) => done.push(`go on at ${epoch}`),
    outbox: { put: ({ kind, epoch }: { kind: string; epoch: number }) => done.push(`owe ${kind} ${epoch}`) },
    context: { node: "a", store, log: { warn: () => {} }, owners: { ask: async () => [] } },
    ...more,
  };
  return { done, workload: workload as unknown as Workload };
}

describe("going back", () => {
  const departed = { ...MOVE, reserveTried: true, held: true, commitTried: false };

  test("before anybody was held only the reservation is undone", async () => {
    const { done, workload } = host();
    assert.deepEqual(await goBack(workload, { ...departed, held: false }), { where: "here" });
    assert.deepEqual(done, ['record {"epoch":1,"moving":null}', "owe cancelled 1"]);
  });

  test("after the hold the application goes on above the target's epoch, once what was at work has ended", async () => {
    const { done, workload } = host();
    await goBack(workload, departed, null, async () => done.push("CRIU has ended"));
    assert.deepEqual(done, [
      "CRIU has ended",
      "go on at 3",
      'record {"epoch":3,"moving":null}',
      "owe taken-back 3",
    ]);
  });

  test("is on record as soon as there is room on the disk, and what the store is owed", async () => {
    let full = 2;
    const { done, workload } = host({
      record: (patch: object) => {
        if (full-- > 0) throw new Error("ENOSPC: no space left on device");
        done.push(`record ${JSON.stringify(patch)}`);
      },
      context: { node: "a", store, log: { error: (_: object, line: string) => done.push(line) } },
    });
    assert.deepEqual(await goBack(workload, departed), { where: "here" });
    assert.deepEqual(done, [
      "go on at 3",
      "how a move ends is not on record yet",
      'record {"epoch":3,"moving":null}',
      "owe taken-back 3",
    ]);
  });

  test("after a commit the target's word counts, and nothing is done here where it has released", async () => {
    const { done, workload } = host();
    const tried = { ...departed, commitTried: true };
    assert.deepEqual(await goBack(workload, tried, { outcome: "released", epoch: 2 }), {
      where: "there",
      epoch: 2,
    });
    assert.deepEqual(done, []);
    assert.deepEqual(await goBack(workload, tried, { outcome: "gave-up", epoch: 2 }), { where: "here" });
    assert.equal(done[0], "go on at 3");
  });
});

/** Of a Redis whose password was changed. */
const refusing = new HoldfastError("it answers NOAUTH Authentication required", {
  code: "STORE_UNREACHABLE",
  source: "store",
  retryable: false,
});

describe("a target whose source is gone", () => {
  /** @param answers what the store says, one time after the other */
  const decide = (answers: (HoldfastError | { owner: string; epoch: number })[]) => {
    const cancel = async () => {
      const answer = answers.shift();
      if (answer instanceof HoldfastError) throw answer;
      return answer;
    };
    const { workload } = host({ context: { node: "b", store: { cancel }, log: { error: () => {} } } });
    return decideAtTarget(workload, "m1", 2, () => false);
  };
  const fenced = new HoldfastError("no", { code: "STORE_FENCED", source: "store" });

  test("is not told by a store that refuses its node: it asks again until it may", async () => {
    assert.equal(await decide([refusing, { owner: "b", epoch: 2 }]), "mine");
    assert.equal(await decide([refusing, { owner: "a", epoch: 1 }]), "not-mine");
    assert.equal(await decide([refusing, fenced]), "not-mine");
  });

  test("does not take a record that is damaged for one that says no", async () => {
    const corrupt = new HoldfastError("another type of key", { code: "STORE_CORRUPT", source: "store" });
    assert.equal(await decide([corrupt, { owner: "b", epoch: 2 }]), "mine");
  });
});

describe("a target that may not have been heard by the store", () => {
  const noAnswer = new HoldfastError("no answer", {
    code: "STORE_UNKNOWN",
    source: "store",
    retryable: true,
  });
  const releasing = { migration: "m1", epoch: 2, word: () => null, grants: async () => false };

  test("asks again until the store answers", async () => {
    const { done, workload } = host();
    let asked = 0;
    const mark = async (): Promise<void> => {
      if (++asked < 3) throw noAnswer;
    };
    assert.equal(await release(workload, { ...releasing, mark }), 2);
    assert.deepEqual([asked, done], [3, []]);
  });

  test("goes on without the store where the source lets go, and owes it", async () => {
    const { done, workload } = host();
    const silent = { ...releasing, mark: () => Promise.reject(noAnswer) };
    assert.equal(await release(workload, { ...silent, grants: async () => true }), 2);
    assert.equal(await release(workload, { ...silent, word: () => 7 }), 7);
    assert.deepEqual(done, ["owe released 2", "owe released 7"]);
    const noted: object[] = [];
    const again = host({ recordMoving: (patch: object) => noted.push(patch) });
    await release(again.workload, { ...silent, word: () => 7 });
    assert.deepEqual(noted, [{ step: "released", epoch: 7 }]);
  });

  test("goes on by its source's word where the store refuses its node", async () => {
    const { done, workload } = host();
    const mark = () => Promise.reject(refusing);
    assert.equal(await release(workload, { ...releasing, mark, grants: async () => true }), 2);
    assert.deepEqual(done, ["owe released 2"]);
  });

  test("does not go on against a store that has decided otherwise", async () => {
    const fenced = new HoldfastError("no", { code: "STORE_FENCED", source: "store" });
    const { done, workload } = host();
    await assert.rejects(release(workload, { ...releasing, mark: () => Promise.reject(fenced) }), fenced);
    assert.deepEqual(done, []);
  });

  test("takes the source for gone only when it has retired for this epoch, and every agent knows of none above", async () => {
    const of = { peer: "b", epoch: 2 };
    const says = (has: string, epoch: number, seen = epoch, peer = "b"): PeerAnswer =>
      ({ peer, held: { workload: W, has, epoch, seen, link: null } }) as PeerAnswer;
    const ask = (...answers: PeerAnswer[]) =>
      hasLetGo(host({ context: { owners: { ask: async () => answers } } }).workload, of);
    assert.equal(await ask(says("no", 2)), true);
    assert.equal(await ask(says("no", 2), says("no", 0, 1, "c")), true);
    assert.equal(await ask(says("moving", 2)), false, "it has not ended");
    assert.equal(await ask(says("no", 1)), false, "it has never had to do with this epoch");
    assert.equal(await ask(says("no", 3)), false, "it took the workload back, and stopped it since");
    assert.equal(await ask(says("no", 2, 3)), false, "it knows of a higher one");
    assert.equal(await ask({ peer: "b", silent: "refused" }), false);
    assert.equal(await ask(says("no", 2), { peer: "c", silent: "refused" }), false, "it may have it");
    assert.equal(await ask(says("no", 2), says("moving", 0, 3, "c")), false, "it is about to have it");
    assert.equal(await ask(says("no", 2), says("owner", 3, 3, "c")), false);
  });
});
