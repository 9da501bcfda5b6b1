import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { after, before, describe, test } from "node:test";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import { openStore } from "#proxy/store/open.ts";
import type { Ownership, Store } from "#proxy/store/store.ts";
import { freePort, type RedisServer, startRedis } from "#test/support/redis.ts";

let number = 0;
const fresh = () => `chat-${++number}`;
const HELD = Buffer.from([0, 255, 10, 13, 0xc3, 0x28]);
const TTL_MS = 60_000;

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const lateMs = performance.now() + 15_000;
  while (!(await holds())) {
    assert.ok(performance.now() < lateMs, what);
    await sleep(20);
  }
}

/** What every store must do. */
function behaves(name: string, get: () => Store): void {
  describe(`store: ${name}`, () => {
    const reserved = async (store: Store, workload: string) => {
      await store.claim({ workload, node: "a" });
      return store.reserve({ workload, node: "a", epoch: 1, migration: "m1", target: "b" });
    };
    const committed = async (store: Store, workload: string) => {
      await reserved(store, workload);
      return store.commit({ workload, node: "a", epoch: 1, migration: "m1", held: HELD, ttlMs: TTL_MS });
    };

    test("the first claim creates, later ones see it", async () => {
      const store = get();
      const workload = fresh();
      assert.equal(await store.ownership(workload), null);
      const mine = { owner: "a", epoch: 1, state: "released", previous: null, migration: null };
      assert.deepEqual(await store.claim({ workload, node: "a" }), mine);
      assert.deepEqual(await store.claim({ workload, node: "b" }), mine);
      assert.deepEqual(await store.ownership(workload), mine);
      await store.ping();
    });

    test("a move: reserve, commit, release, and every step may be repeated", async () => {
      const store = get();
      const workload = fresh();
      const first = await reserved(store, workload);
      assert.deepEqual(first.migration, { id: "m1", target: "b", epoch: 2 });
      assert.deepEqual(await reserved(store, workload), first);
      const decided = await committed(store, workload);
      assert.deepEqual(decided, {
        owner: "b",
        epoch: 2,
        state: "committed",
        previous: "a",
        migration: { id: "m1", target: "b", epoch: 2 },
      });
      const again = {
        workload,
        node: "a",
        epoch: 1,
        migration: "m1",
        held: Buffer.from("other"),
        ttlMs: TTL_MS,
      };
      assert.deepEqual(await store.commit(again), decided);
      assert.deepEqual(await store.held({ workload, epoch: 2 }), HELD);
      const released = await store.markReleased({ workload, node: "b", epoch: 2 });
      assert.deepEqual(released, { owner: "b", epoch: 2, state: "released", previous: "a", migration: null });
      assert.deepEqual(await store.markReleased({ workload, node: "b", epoch: 2 }), released);
      assert.deepEqual(await store.commit(again), released);
      assert.deepEqual(await store.cancel({ workload, migration: "m1" }), released);
      assert.equal(await store.held({ workload, epoch: 2 }), null, "nobody needs them any more");
    });

    test("a second migration is refused while one runs", async () => {
      const store = get();
      const workload = fresh();
      await reserved(store, workload);
      for (const other of [
        { migration: "m2", target: "b" },
        { migration: "m1", target: "c" },
      ]) {
        await assert.rejects(store.reserve({ workload, node: "a", epoch: 1, ...other }), {
          code: "STORE_BUSY",
          retryable: true,
          message: /migration m1 to b/,
        });
      }
    });

    test("where the owner takes links: told by the owner alone, and those who watch hear of what is new", async () => {
      const store = get();
      const workload = fresh();
      const heard: (string | null)[] = [];
      const watch = store.watchLinks((of) => {
        if (of === null || of === workload) heard.push(of);
      });
      try {
        await until("whoever begins to watch looks at all", () => heard.includes(null));
        heard.length = 0;
        const record = { node: "a", epoch: 1, link: { address: "10.0.0.1", port: 40_000 }, ports: [80, 443] };
        const put = (node: string, epoch: number, changed: object = {}) =>
          store.putLink({ workload, node, epoch, record: { ...record, node, epoch, ...changed } });
        await assert.rejects(put("a", 1), { code: "STORE_ABSENT" });
        assert.equal(await store.link(workload), null);
        await store.claim({ workload, node: "a" });
        await assert.rejects(put("b", 1), { code: "STORE_FENCED" });
        await put("a", 1);
        assert.deepEqual(await store.link(workload), record);
        await until("a first record is told", () => heard.length === 1);
        await put("a", 1);
        const six = { link: { address: "fd00::1", port: 40_001 } };
        await put("a", 1, six);
        assert.deepEqual(await store.link(workload), { ...record, ...six });
        await until("another is told", () => heard.length === 2);
        await store.reserve({ workload, node: "a", epoch: 1, migration: "m1", target: "b" });
        await store.commit({ workload, node: "a", epoch: 1, migration: "m1", held: HELD, ttlMs: TTL_MS });
        await assert.rejects(put("a", 1), { code: "STORE_FENCED" });
        await put("b", 2);
        await store.markReleased({ workload, node: "b", epoch: 2 });
        await store.stop({ workload, node: "b", epoch: 2 });
        assert.equal(await store.link(workload), null, "nobody has it");
        await until("its end is told", () => heard.length === 4);
        await assert.rejects(put("b", 2), { code: "STORE_FENCED" });
        assert.deepEqual(heard, [workload, workload, workload, workload], "what is not new is not told");
      } finally {
        watch.close();
      }
    });

    test("whoever is not the owner at the right epoch is fenced", async () => {
      const store = get();
      const workload = fresh();
      const fenced = { code: "STORE_FENCED", retryable: false };
      const at = (node: string, epoch: number) => ({ workload, node, epoch });
      const absent = { code: "STORE_ABSENT", retryable: false };
      await assert.rejects(store.reserve({ ...at("a", 1), migration: "m1", target: "b" }), absent);
      await assert.rejects(store.takeBack({ workload, node: "a", migration: "m1" }), absent);
      await reserved(store, workload);
      await assert.rejects(store.reserve({ ...at("b", 1), migration: "m2", target: "a" }), fenced);
      await assert.rejects(store.reserve({ ...at("a", 2), migration: "m2", target: "b" }), fenced);
      for (const wrong of [at("c", 1), at("a", 2)]) {
        await assert.rejects(store.commit({ ...wrong, migration: "m1", held: HELD, ttlMs: TTL_MS }), fenced);
        await assert.rejects(store.markReleased(wrong), fenced);
        await assert.rejects(
          store.putSessions({ ...wrong, sessions: [], gone: [], anew: true, ttlMs: TTL_MS }),
          fenced,
        );
        await assert.rejects(store.stop(wrong), fenced);
      }
      await assert.rejects(
        store.commit({ ...at("a", 1), migration: "m9", held: HELD, ttlMs: TTL_MS }),
        fenced,
      );
      await committed(store, workload);
      await assert.rejects(store.reserve({ ...at("b", 2), migration: "m2", target: "a" }), fenced);
    });

    test("a cancelled migration can never commit, and its epoch is not given out again", async () => {
      const store = get();
      const workload = fresh();
      await reserved(store, workload);
      const cancelled = await store.cancel({ workload, migration: "m1" });
      assert.deepEqual([cancelled.owner, cancelled.epoch, cancelled.migration], ["a", 1, null]);
      const own = { workload, node: "a", epoch: 1 };
      const fenced = { code: "STORE_FENCED" };
      await assert.rejects(store.commit({ ...own, migration: "m1", held: HELD, ttlMs: TTL_MS }), fenced);
      await assert.rejects(store.reserve({ ...own, migration: "m1", target: "b" }), fenced);
      const next = await store.reserve({ ...own, migration: "m2", target: "b" });
      assert.equal(next.migration?.epoch, 3);
      // A cancel that overtakes its reserve.
      await store.cancel({ workload, migration: "m2" });
      await store.cancel({ workload, migration: "m3" });
      await assert.rejects(store.reserve({ ...own, migration: "m3", target: "b" }), fenced);
    });

    test("the source takes back what was committed and not released, once", async () => {
      const store = get();
      const workload = fresh();
      await committed(store, workload);
      const taken = await store.takeBack({ workload, node: "a", migration: "m1" });
      assert.deepEqual(taken, { owner: "a", epoch: 3, state: "released", previous: "b", migration: null });
      assert.deepEqual(await store.takeBack({ workload, node: "a", migration: "m1" }), taken);
      assert.equal(await store.held({ workload, epoch: 2 }), null);
      const fenced = { code: "STORE_FENCED" };
      await assert.rejects(store.markReleased({ workload, node: "b", epoch: 2 }), fenced);
      await assert.rejects(
        store.commit({ workload, node: "a", epoch: 1, migration: "m1", held: HELD, ttlMs: TTL_MS }),
        fenced,
      );
    });

    test("what the target has released cannot be taken back", async () => {
      const store = get();
      const workload = fresh();
      await committed(store, workload);
      await assert.rejects(store.takeBack({ workload, node: "b", migration: "m1" }), {
        code: "STORE_FENCED",
      });
      await store.markReleased({ workload, node: "b", epoch: 2 });
      await assert.rejects(store.takeBack({ workload, node: "a", migration: "m1" }), {
        code: "STORE_FENCED",
      });
    });

    test("taking back before the commit raises the epoch past the reserved one", async () => {
      const store = get();
      for (const cancelFirst of [false, true]) {
        const workload = fresh();
        await reserved(store, workload);
        if (cancelFirst) await store.cancel({ workload, migration: "m1" });
        const taken = await store.takeBack({ workload, node: "a", migration: "m1" });
        assert.deepEqual(taken, { owner: "a", epoch: 3, state: "released", previous: null, migration: null });
        await assert.rejects(
          store.commit({ workload, node: "a", epoch: 3, migration: "m1", held: HELD, ttlMs: TTL_MS }),
          { code: "STORE_FENCED" },
        );
      }
    });

    test("held bytes expire", async () => {
      const store = get();
      const workload = fresh();
      await reserved(store, workload);
      await store.commit({ workload, node: "a", epoch: 1, migration: "m1", held: HELD, ttlMs: 20 });
      await sleep(40);
      assert.equal(await store.held({ workload, epoch: 2 }), null);
    });

    test("the registry is told by its owner what has changed, and expires", async () => {
      const store = get();
      const workload = fresh();
      await store.claim({ workload, node: "a" });
      assert.deepEqual(await store.sessions(workload), []);
      const sessions = Array.from({ length: 1000 }, (_, n) => ({
        id: `s${n}`,
        client: "10.0.0.1:1",
        bytesIn: n,
      }));
      await store.putSessions({
        workload,
        node: "a",
        epoch: 1,
        sessions,
        gone: [],
        anew: true,
        ttlMs: TTL_MS,
      });
      assert.deepEqual(new Set(await store.sessions(workload)), new Set(sessions));
      const change = { workload, node: "a", epoch: 1, anew: false, ttlMs: TTL_MS };
      const other = { id: "s7", client: "ü" };
      await store.putSessions({ ...change, sessions: [other, { id: "new" }], gone: ["s8", "s8", "?"] });
      const expected = [...sessions.filter(({ id }) => id !== "s7" && id !== "s8"), other, { id: "new" }];
      assert.deepEqual(new Set(await store.sessions(workload)), new Set(expected));
      await store.putSessions({ ...change, anew: true, sessions: [{ id: "only" }], gone: [] });
      assert.deepEqual(await store.sessions(workload), [{ id: "only" }]);
      await store.putSessions({ ...change, sessions: [], gone: [], ttlMs: 20 });
      await sleep(40);
      assert.deepEqual(await store.sessions(workload), []);
    });

    test("names are kept for a while after they were last seen, also across moves, and only the owner writes them", async () => {
      const store = get();
      const workload = fresh();
      const at = (node: string, epoch: number) => ({ workload, node, epoch, ttlMs: TTL_MS, namesMax: 100 });
      const names = ["42", 'a "quoted" \u0000 näme 🙂', "x".repeat(200)];
      assert.equal(await store.lookup({ workload, name: "42" }), null, "no such workload");
      await assert.rejects(store.putNames({ ...at("a", 1), names }), { code: "STORE_ABSENT" });
      await store.claim({ workload, node: "a" });
      await assert.rejects(store.putNames({ ...at("b", 1), names }), { code: "STORE_FENCED" });
      await assert.rejects(store.putNames({ ...at("a", 2), names }), { code: "STORE_FENCED" });
      assert.equal(await store.lookup({ workload, name: "42" }), null);
      await store.putNames({ ...at("a", 1), names: [] });
      await store.putNames({ ...at("a", 1), names });
      await store.putSessions({
        workload,
        node: "a",
        epoch: 1,
        sessions: [],
        gone: [],
        anew: true,
        ttlMs: TTL_MS,
      });
      for (const name of names)
        assert.equal((await store.lookup({ workload, name }))?.owner, "a", JSON.stringify(name));
      assert.equal(await store.lookup({ workload, name: "4" }), null);
      await store.reserve({ workload, node: "a", epoch: 1, migration: "m1", target: "b" });
      await store.commit({ workload, node: "a", epoch: 1, migration: "m1", held: HELD, ttlMs: TTL_MS });
      await store.markReleased({ workload, node: "b", epoch: 2 });
      assert.deepEqual(
        await store.lookup({ workload, name: "42" }),
        await store.ownership(workload),
        "its new place",
      );
      await assert.rejects(store.putNames({ ...at("a", 1), names: ["late"] }), { code: "STORE_FENCED" });
      await store.stop({ workload, node: "b", epoch: 2 });
      await store.claim({ workload, node: "b" });
      assert.equal(await store.lookup({ workload, name: "42" }), null, "forgotten with its workload");
    });

    test("names expire one by one", async () => {
      const store = get();
      const workload = fresh();
      await store.claim({ workload, node: "a" });
      const put = (names: string[], ttlMs: number) =>
        store.putNames({ workload, node: "a", epoch: 1, names, ttlMs, namesMax: 100 });
      const known = async (name: string) => (await store.lookup({ workload, name })) !== null;
      await put(["long", "again"], TTL_MS);
      await put(["short", "again"], 20);
      assert.deepEqual([await known("long"), await known("again"), await known("short")], [true, true, true]);
      await sleep(40);
      assert.deepEqual(
        [await known("long"), await known("again"), await known("short")],
        [true, false, false],
        "what counts is the last time",
      );
      await put(["other"], TTL_MS);
      assert.equal(await known("other"), true);
    });

    test("of too many names those seen longest ago are forgotten", async () => {
      const store = get();
      const workload = fresh();
      await store.claim({ workload, node: "a" });
      const batch = (from: number) =>
        Array.from({ length: 1_000 }, (_, index) => `s${String(from + index).padStart(5, "0")}`);
      for (const from of [0, 1_000, 2_000, 0, 3_000]) {
        const names = batch(from);
        await store.putNames({ workload, node: "a", epoch: 1, names, ttlMs: TTL_MS, namesMax: 3_000 });
        await sleep(2); // so that no two batches have the same time
      }
      for (const [name, isKnown] of [
        ["s00000", true],
        ["s00999", true],
        ["s01000", false],
        ["s01999", false],
        ["s02000", true],
        ["s03999", true],
      ] as const)
        assert.equal((await store.lookup({ workload, name })) !== null, isKnown, name);
    });

    test("names nobody may have are the caller's mistake", async () => {
      const store = get();
      const workload = fresh();
      await store.claim({ workload, node: "a" });
      for (const names of [[""], ["x".repeat(201)], ["\ud800"], Array(1_001).fill("x")]) {
        const request = { workload, node: "a", epoch: 1, names, ttlMs: TTL_MS, namesMax: 10 };
        await assert.rejects(store.putNames(request), { name: "AssertionError" });
      }
    });

    test("a claim of what is committed to the claimant says so and changes nothing", async () => {
      const store = get();
      const workload = fresh();
      const decided = await committed(store, workload);
      assert.equal(decided.state, "committed");
      assert.deepEqual(await store.claim({ workload, node: "b" }), decided);
      assert.equal((await store.takeBack({ workload, node: "a", migration: "m1" })).owner, "a");
    });

    test("held bytes of many megabytes, and only those that were committed", async () => {
      const store = get();
      const workload = fresh();
      const held = randomBytes(48 << 20);
      await reserved(store, workload);
      const request = { workload, node: "a", epoch: 1, migration: "m1", held, ttlMs: TTL_MS };
      await assert.rejects(store.commit({ ...request, migration: "m9" }), { code: "STORE_FENCED" });
      await store.commit(request);
      await store.commit({ ...request, held: randomBytes(1 << 20) });
      assert.ok((await store.held({ workload, epoch: 2 }))?.equals(held));
      await store.takeBack({ workload, node: "a", migration: "m1" });
      assert.equal(await store.held({ workload, epoch: 2 }), null);
    });

    test("a workload is stopped, but not under a migration; its epoch stays, and the next claim is above it", async () => {
      const store = get();
      const workload = fresh();
      const own = { workload, node: "a", epoch: 1 };
      await reserved(store, workload);
      await assert.rejects(store.stop(own), { code: "STORE_BUSY" });
      await store.cancel({ workload, migration: "m1" });
      await store.putSessions({ ...own, sessions: [{ id: "s" }], gone: [], anew: true, ttlMs: TTL_MS });
      for (let n = 0; n < 2; n++) assert.equal((await store.stop(own)).state, "stopped");
      assert.deepEqual(await store.sessions(workload), []);
      const fenced = { code: "STORE_FENCED" };
      await assert.rejects(store.reserve({ ...own, migration: "m2", target: "b" }), fenced);
      await assert.rejects(store.markReleased(own), fenced);
      await assert.rejects(store.raise(own), fenced);
      await assert.rejects(
        store.putSessions({ ...own, sessions: [], gone: [], anew: true, ttlMs: TTL_MS }),
        fenced,
      );
      const next = await store.claim({ workload, node: "b" });
      assert.deepEqual([next.owner, next.epoch, next.state], ["b", 3, "released"], "2 was given out");
      await assert.rejects(store.stop(own), fenced);
    });

    test("a claim is above all that the claimant has seen, and what a node has seen is not given out again", async () => {
      const store = get();
      const workload = fresh();
      const claimed = await store.claim({ workload, node: "a", epoch: 7 });
      assert.equal(claimed.epoch, 7);
      const own = { workload, node: "a", epoch: 7 };
      const next = await store.reserve({ ...own, migration: "m1", target: "b", epochMin: 12 });
      assert.equal(next.migration?.epoch, 12);
      const back = await store.takeBack({ workload, node: "a", migration: "m1" });
      assert.equal(back.epoch, 13);
    });

    test("an owner raises a record that a fail-over has thrown back, and nobody lowers one", async () => {
      const store = get();
      const fenced = { code: "STORE_FENCED" };
      for (const prepare of [reserved, committed]) {
        const workload = fresh();
        await prepare(store, workload);
        const raised = await store.raise({ workload, node: "b", epoch: 4 });
        assert.deepEqual([raised.owner, raised.epoch, raised.state], ["b", 4, "released"]);
        assert.equal(raised.migration, null);
        assert.equal(await store.held({ workload, epoch: 2 }), null);
        assert.deepEqual(await store.raise({ workload, node: "b", epoch: 3 }), raised, "its own is higher");
        for (const epoch of [3, 4])
          await assert.rejects(store.raise({ workload, node: "a", epoch }), fenced, `${epoch}`);
        await assert.rejects(store.takeBack({ workload, node: "a", migration: "m1" }), fenced);
        const own = { workload, node: "a", epoch: 1, migration: "m1" };
        await assert.rejects(store.commit({ ...own, held: HELD, ttlMs: TTL_MS }), fenced);
        const next = await store.reserve({ workload, node: "b", epoch: 4, migration: "m2", target: "a" });
        assert.equal(next.migration?.epoch, 5);
        assert.deepEqual(await store.raise({ workload, node: "b", epoch: 4 }), next, "it has that epoch");
      }
      const workload = fresh();
      const lost = await store.raise({ workload, node: "a", epoch: 9 });
      assert.deepEqual([lost.owner, lost.epoch, lost.state], ["a", 9, "released"], "no record at all");
    });

    test("a raise by the target of what is committed to it is its release", async () => {
      const store = get();
      const workload = fresh();
      await committed(store, workload);
      const raised = await store.raise({ workload, node: "b", epoch: 2 });
      assert.deepEqual(raised, { owner: "b", epoch: 2, state: "released", previous: "a", migration: null });
      await assert.rejects(store.takeBack({ workload, node: "a", migration: "m1" }), {
        code: "STORE_FENCED",
      });
    });
  });
}

type Op =
  | { op: "reserve"; node: string; epoch: number; migration: string; target: string }
  | {
      op: "commit" | "markReleased" | "stop" | "raise" | "putNames";
      node: string;
      epoch: number;
      migration: string;
    }
  | { op: "cancel" | "takeBack" | "claim"; node: string; migration: string };

async function perform(store: Store, workload: string, step: Op): Promise<Ownership | string | null> {
  try {
    switch (step.op) {
      case "reserve":
        return await store.reserve({ workload, ...step });
      case "commit":
        return await store.commit({ workload, ...step, held: HELD, ttlMs: TTL_MS });
      case "markReleased":
        return await store.markReleased({ workload, ...step });
      case "putNames":
        await store.putNames({ workload, ...step, names: [step.migration], ttlMs: TTL_MS, namesMax: 10 });
        return null;
      case "stop":
        return await store.stop({ workload, ...step });
      case "raise":
        return await store.raise({ workload, ...step });
      case "cancel":
        return await store.cancel({ workload, migration: step.migration });
      case "takeBack":
        return await store.takeBack({ workload, ...step });
      case "claim":
        return await store.claim({ workload, ...step });
    }
  } catch (error) {
    assert.ok(error instanceof HoldfastError, String(error));
    return `${error.code}: ${error.message.replaceAll(workload, "W")}`;
  }
}

/** Mostly plausible steps, so that runs get far; the epoch is taken near the one that is true at that time. */
const steps = fc.array(
  fc.record({
    op: fc.constantFrom(
      "reserve",
      "reserve",
      "commit",
      "commit",
      "markReleased",
      "cancel",
      "takeBack",
      "claim",
      "raise",
      "stop",
      "putNames",
    ),
    node: fc.constantFrom("a", "b"),
    skew: fc.constantFrom(0, 0, 0, 0, -1, 1),
    migration: fc.constantFrom("current", "current", "m1", "m2", "m3"),
  }),
  { minLength: 5, maxLength: 40 },
);

function agree(name: string, getRedis: () => Store): void {
  test(`${name} and memory agree on any interleaving, and never give two owners for one epoch`, async () => {
    const memory = new MemoryStore();
    await fc.assert(
      fc.asyncProperty(steps, async (sequence) => {
        const workload = fresh();
        const owners = new Map<number, string>();
        let highest = 0;
        for (const { op, node, skew, migration } of sequence) {
          const now = await memory.ownership(workload);
          const other = node === "a" ? "b" : "a";
          const step = {
            op,
            node,
            target: other,
            epoch: Math.max(1, (now?.epoch ?? 1) + skew),
            migration: migration === "current" ? (now?.migration?.id ?? "m4") : migration,
          } as Op;
          const results = [await perform(memory, workload, step), await perform(getRedis(), workload, step)];
          assert.deepEqual(results[1], results[0], JSON.stringify(step));
          const after = await memory.ownership(workload);
          assert.deepEqual(await getRedis().ownership(workload), after);
          if (after === null) continue;
          assert.ok(after.epoch >= highest, "epochs only rise");
          highest = after.epoch;
          assert.equal(owners.get(after.epoch) ?? after.owner, after.owner, "one owner per epoch");
          owners.set(after.epoch, after.owner);
          if (after.migration !== null && after.state === "released")
            assert.ok(after.migration.epoch > after.epoch);
          const [mine, theirs] = await Promise.all(
            [memory, getRedis()].map((store) => store.held({ workload, epoch: after.epoch })),
          );
          assert.deepEqual(theirs, mine);
          const name = step.migration;
          assert.deepEqual(
            await getRedis().lookup({ workload, name }),
            await memory.lookup({ workload, name }),
            "whose name it is",
          );
        }
      }),
      { numRuns: 60 },
    );
  });
}

behaves("memory", () => memoryStore);
const memoryStore = new MemoryStore();

describe("redis", () => {
  let server: RedisServer;
  let store: Store;
  before(async () => {
    server = await startRedis();
    store = openStore(`${server.url}/2`, { callMs: 500 });
  });
  after(async () => {
    await store.close();
    await server.kill();
  });
  behaves("redis", () => store);
  agree("redis", () => store);

  test("two racing nodes: one reserves", async () => {
    const other = openStore(`${server.url}/2`);
    const workload = fresh();
    await store.claim({ workload, node: "a" });
    const outcomes = await Promise.allSettled(
      [store, other].flatMap((one, n) =>
        [0, 1, 2].map((i) =>
          one.reserve({ workload, node: "a", epoch: 1, migration: `m${n}-${i}`, target: "b" }),
        ),
      ),
    );
    assert.equal(outcomes.filter(({ status }) => status === "fulfilled").length, 1);
    await other.close();
  });

  test("what Redis holds is not trusted: STORE_CORRUPT names the key", async () => {
    const workload = fresh();
    const key = `hf:{${workload}}:owner`;
    const check = async (...command: string[]) => {
      server.cli("-n", "2", "del", key);
      server.cli("-n", "2", ...command);
      for (const call of [
        () => store.ownership(workload),
        () => store.claim({ workload, node: "a" }),
        () => store.reserve({ workload, node: "a", epoch: 1, migration: "m1", target: "b" }),
      ]) {
        await assert.rejects(call(), (error: HoldfastError) => {
          assert.equal(error.code, "STORE_CORRUPT", error.message);
          assert.ok(error.message.includes(key));
          return true;
        });
      }
    };
    await check("set", key, "x");
    await check("hset", key, "owner", "a");
    const good = ["owner", "a", "epoch", "1", "state", "released", "top", "1"];
    await check("hset", key, ...good, "epoch", "1e9");
    await check("hset", key, ...good, "epoch", "-1");
    await check("hset", key, ...good, "top", "0");
    await check("hset", key, ...good, "state", "mine");
    await check("hset", key, ...good, "state", "committed");
    await check("hset", key, ...good, "owner", "../a");
    await check("hset", key, ...good, "mid", "m1");
    const sessions = `hf:{${workload}}:registry`;
    for (const value of ["{", "{}", "1", '{"id":""}']) {
      server.cli("-n", "2", "hset", sessions, "s", value);
      await assert.rejects(store.sessions(workload), {
        code: "STORE_CORRUPT",
        message: new RegExp(workload),
      });
    }
  });

  test("the first mark stays, until Redis is emptied", async () => {
    assert.equal(await store.mark(), null);
    assert.equal(await store.setMark("one"), "one");
    assert.equal(await store.setMark("two"), "one");
    server.cli("-n", "2", "del", "hf:mark");
    assert.equal(await store.mark(), null);
    server.cli("-n", "2", "set", "hf:mark", "no mark\n");
    await assert.rejects(store.mark(), { code: "STORE_CORRUPT" });
    server.cli("-n", "2", "del", "hf:mark");
  });

  test("a script that Redis forgot is sent again", async () => {
    const workload = fresh();
    await store.claim({ workload, node: "a" });
    server.cli("script", "flush");
    assert.equal((await store.ownership(workload))?.owner, "a");
  });
});

/** times its bound that a call may take: whoever has other work to do lets it wait for its turn */
const BUSY_MACHINE = 8;
/** until a server that goes on is connected again */
const WAIT_MS_MAX = 20_000;

describe("redis in trouble", () => {
  test("a Redis that hangs: every call is over in time, changes are UNKNOWN, and it comes back", async () => {
    const server = await startRedis();
    const lines: string[] = [];
    const callMsMax = 200;
    const store = openStore(server.url, { callMs: callMsMax, onDown: (line) => lines.push(line) });
    const workload = fresh();
    await store.claim({ workload, node: "a" });
    const reserve = { workload, node: "a", epoch: 1, migration: "m1", target: "b" };
    await store.reserve(reserve);
    server.process.kill("SIGSTOP");
    const startedMs = performance.now();
    const { migration, epoch, node } = reserve;
    const commit = () => store.commit({ workload, node, epoch, migration, held: HELD, ttlMs: TTL_MS });
    await Promise.all([
      assert.rejects(commit(), { code: "STORE_UNKNOWN", retryable: true, source: "store" }),
      assert.rejects(store.ownership(workload), { code: "STORE_UNREACHABLE", retryable: true }),
    ]);
    for (let n = 0; n < 3; n++) {
      const callMs = performance.now();
      await assert.rejects(commit(), (error: HoldfastError) => /^STORE_UN/.test(error.code));
      assert.ok(performance.now() - callMs < callMsMax * BUSY_MACHINE);
    }
    assert.ok(performance.now() - startedMs < 4 * callMsMax * BUSY_MACHINE);
    server.process.kill("SIGCONT");
    let after: Ownership | null = null;
    const late = performance.now() + WAIT_MS_MAX;
    while (after === null && performance.now() < late) {
      await sleep(10); // a call that finds no connection is over at once
      after = await store.cancel({ workload, migration }).catch(() => null);
    }
    // The commit that was waiting in the socket may have been carried out or not; now nobody can doubt which.
    assert.ok(after?.owner === "b" ? after.epoch === 2 : after?.migration === null, JSON.stringify(after));
    await store.close();
    await server.kill();
  });

  test("a Redis that comes back: whoever watches links looks at all again, and hears of changes", async () => {
    const server = await startRedis();
    const store = openStore(server.url);
    const heard: (string | null)[] = [];
    const watch = store.watchLinks((workload) => heard.push(workload));
    await until("it watches", () => heard.includes(null));
    heard.length = 0;
    await server.kill();
    const next = await startRedis({ port: server.port });
    await until("it watches again", () => heard.includes(null));
    const workload = fresh();
    await until("the store is back", () =>
      store.claim({ workload, node: "a" }).then(
        () => true,
        () => false,
      ),
    );
    const record = { node: "a", epoch: 1, link: { address: "10.0.0.1", port: 1 }, ports: [80] };
    await store.putLink({ workload, node: "a", epoch: 1, record });
    await until("a change is told", () => heard.includes(workload));
    watch.close();
    await store.close();
    await next.kill();
  });

  test("an account that may not publish tells of links all the same: others look now and then", async () => {
    const server = await startRedis();
    server.cli("acl", "setuser", "quiet", "on", ">secret", "~*", "+@all", "resetchannels");
    const store = openStore(server.url.replace("//", "//quiet:secret@"));
    const workload = fresh();
    await store.claim({ workload, node: "a" });
    const record = { node: "a", epoch: 1, link: { address: "10.0.0.1", port: 1 }, ports: [80] };
    await store.putLink({ workload, node: "a", epoch: 1, record });
    assert.deepEqual(await store.link(workload), record);
    await store.close();
    await server.kill();
  });

  test("a Redis killed in mid-call: UNKNOWN at once, then UNREACHABLE, then back by itself", async () => {
    const server = await startRedis();
    const lines: string[] = [];
    let ups = 0;
    const store = openStore(server.url, {
      callMs: 300,
      onDown: (line) => lines.push(line),
      onUp: () => ups++,
    });
    const workload = fresh();
    await store.claim({ workload, node: "a" });
    server.process.kill("SIGSTOP");
    const call = store.reserve({ workload, node: "a", epoch: 1, migration: "m1", target: "b" });
    const killed = sleep(20).then(() => server.kill());
    await assert.rejects(call, { code: "STORE_UNKNOWN" });
    await killed;
    await assert.rejects(store.claim({ workload, node: "a" }), {
      code: "STORE_UNREACHABLE",
      retryable: true,
    });
    await assert.rejects(store.ping(), { code: "STORE_UNREACHABLE" });
    assert.equal(lines.length, 1, JSON.stringify(lines));
    const next = await startRedis({ port: server.port });
    for (let n = 0; n < 20; n++)
      if (
        await store.ping().then(
          () => true,
          () => false,
        )
      )
        break;
    assert.equal((await store.claim({ workload, node: "b" })).owner, "b");
    assert.equal(ups, 1);
    await store.close();
    await next.kill();
  });

  test("a Redis that was never there, one that wants a password, and something that is no Redis", async () => {
    const port = await freePort();
    const absent = openStore(`redis://127.0.0.1:${port}`, { callMs: 100 });
    await assert.rejects(absent.ping(), { code: "STORE_UNREACHABLE", message: /ECONNREFUSED/ });
    await absent.close();

    const server = await startRedis();
    server.cli("config", "set", "requirepass", "s3cret:/@");
    const without = openStore(server.url, { callMs: 200 });
    await assert.rejects(without.ping(), { code: "STORE_UNREACHABLE", message: /NOAUTH/ });
    const wrong = openStore(`redis://default:guess@127.0.0.1:${server.port}`, { callMs: 200 });
    await assert.rejects(wrong.ping(), { code: "STORE_UNREACHABLE", message: /WRONGPASS/ });
    const right = openStore(`redis://default:${encodeURIComponent("s3cret:/@")}@127.0.0.1:${server.port}/1`);
    await right.ping();
    await Promise.all([without.close(), wrong.close(), right.close()]);
    await server.kill();

    const other = createServer((socket) => {
      socket.on("error", () => {});
      socket.write(randomBytes(200));
    }).listen(port, "127.0.0.1");
    const garbage = openStore(`redis://127.0.0.1:${port}`, { callMs: 100 });
    await assert.rejects(garbage.ping(), { code: "STORE_UNREACHABLE" });
    await garbage.close();
    other.close();
  });
});

describe("redis with a replica", () => {
  test("a change of ownership that the replica does not have is UNKNOWN, and counts when it has it or has left", async () => {
    const master = await startRedis({ args: ["--repl-diskless-sync-delay", "0"] });
    const replica = await startRedis({ args: ["--replicaof", "127.0.0.1", `${master.port}`] });
    const store = openStore(master.url, { callMs: 200 });
    const workload = fresh();
    try {
      await until("the replica is there", () => /state=online/.test(master.cli("info", "replication")));
      // one that has just come may still be loading what it was sent
      await until("claimed", () => store.claim({ workload, node: "a" }).then(Boolean, () => false));
      assert.match(replica.cli("hget", `hf:{${workload}}:owner`, "owner"), /^a/);
      replica.process.kill("SIGSTOP");
      const reserve = { workload, node: "a", epoch: 1, migration: "m1", target: "b" };
      await assert.rejects(store.reserve(reserve), { code: "STORE_UNKNOWN", retryable: true });
      await assert.rejects(store.reserve(reserve), { code: "STORE_UNKNOWN" }, "repeated, it is no better");
      assert.equal((await store.ownership(workload))?.owner, "a", "looking does not wait");
      replica.process.kill("SIGCONT");
      await until("it counts", () => store.reserve(reserve).then(Boolean, () => false));
      await replica.kill();
      await until("alone", () => store.cancel({ workload, migration: "m1" }).then(Boolean, () => false));
    } finally {
      await store.close();
      await Promise.all([master.kill(), replica.kill()]);
    }
  });
});

describe("redis: behind an address that follows the master", () => {
  /** Answers as Redis 6 does when a command of a script is refused. */
  function asRedis6(answer: Buffer): string {
    return answer
      .toString("latin1")
      .replace(
        /^-READONLY ([^\r]*)/gm,
        "-ERR Error running script (call to f_0): @user_script:5: @user_script: 5: -READONLY $1",
      );
  }

  for (const release of ["6", "7"]) {
    test(`a master that has become a replica is left for the new one, as Redis ${release} says it`, async () => {
      const first = await startRedis({ args: ["--repl-diskless-sync-delay", "0"] });
      const second = await startRedis();
      second.cli("replicaof", "127.0.0.1", `${first.port}`);
      let leadsTo = first.port;
      const links = new Set<Socket>();
      const front = createServer((client) => {
        const server = connect(leadsTo, "127.0.0.1");
        for (const each of [client, server]) {
          links.add(each);
          each
            .on("error", () => {})
            .on("close", () => {
              client.destroy();
              server.destroy();
            });
        }
        client.pipe(server);
        server.on("data", (data: Buffer) => client.write(release === "6" ? asRedis6(data) : data, "latin1"));
      }).listen(0, "127.0.0.1");
      await once(front, "listening");
      const { port } = front.address() as AddressInfo;
      const store = openStore(`redis://127.0.0.1:${port}`, { callMs: 500 });
      const workload = fresh();
      try {
        await store.claim({ workload, node: "a" });
        const key = `hf:{${workload}}:owner`;
        while (!second.cli("exists", key).startsWith("1")) await sleep(10);
        second.cli("replicaof", "no", "one");
        first.cli("replicaof", "127.0.0.1", `${second.port}`);
        leadsTo = second.port;
        const request = { workload, node: "a", epoch: 1, migration: "m1", target: "b" };
        // the old connection stays open: only an answer tells that its server is no master any more
        await assert.rejects(store.reserve(request), { code: "STORE_UNREACHABLE", message: /READONLY/ });
        const deadlineMs = performance.now() + 10_000;
        let reserved: Ownership | null = null;
        while (reserved === null && performance.now() < deadlineMs) {
          await nextTurn(); // the client's events have theirs
          reserved = await store.reserve(request).catch((error: HoldfastError) => {
            assert.equal(error.code, "STORE_UNREACHABLE");
            return null;
          });
        }
        assert.equal(reserved?.migration?.id, "m1");
      } finally {
        await store.close();
        front.close();
        for (const link of links) link.destroy();
        await Promise.all([first.kill(), second.kill()]);
      }
    });
  }
});

describe("redis: Sentinel", () => {
  test("finds the master, and the new one after a fail-over", { timeout: 30_000 }, async () => {
    const master = await startRedis();
    const replica = await startRedis({
      args: ["--replicaof", "127.0.0.1", `${master.port}`, "--repl-diskless-sync-delay", "0"],
    });
    const sentinels = await Promise.all(
      [1, 2].map(() =>
        startRedis({
          sentinelConfig: `sentinel monitor main 127.0.0.1 ${master.port} 1\nsentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n`,
        }),
      ),
    );
    const hosts = sentinels.map(({ port }) => `127.0.0.1:${port}`).join(",");
    const store = openStore(`redis+sentinel://${hosts}/main`, { callMs: 500 });
    const workload = fresh();
    try {
      await until("claimed", () => store.claim({ workload, node: "a" }).then(Boolean, () => false));
      const one = sentinels[0] as RedisServer;
      for (let n = 0; n < 200; n++) {
        const known = one.cli("sentinel", "replicas", "main").includes(`${replica.port}`);
        if (known && replica.cli("exists", `hf:{${workload}}:owner`).startsWith("1")) break;
        await sleep(25);
      }
      await sleep(300);
      await master.kill();
      let after: Ownership | null = null;
      const startedMs = performance.now();
      while (after === null && performance.now() - startedMs < 20_000) {
        after = await store
          .reserve({ workload, node: "a", epoch: 1, migration: "m1", target: "b" })
          .catch((error: HoldfastError) => {
            assert.match(error.code, /^STORE_UN/);
            return null;
          });
        await sleep(50);
      }
      assert.equal(after?.migration?.id, "m1");
    } finally {
      await store.close();
      await Promise.all([replica, ...sentinels].map((server) => server.kill()));
      await master.kill();
    }
  });
});

describe("redis: Cluster", () => {
  let servers: RedisServer[];
  let store: Store;
  before(async () => {
    servers = await Promise.all(
      [1, 2, 3].map(async () => {
        // The cluster's bus listens on port + 10000.
        let port = await freePort();
        while (port > 55_000) port = await freePort();
        return startRedis({ port, args: ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"] });
      }),
    );
    const nodes = servers.map(({ port }) => `127.0.0.1:${port}`);
    execFileSync("redis-cli", ["--cluster", "create", ...nodes, "--cluster-yes"], { stdio: "ignore" });
    for (let n = 0; n < 200; n++) {
      if (servers.every((server) => server.cli("cluster", "info").includes("cluster_state:ok"))) break;
      await sleep(25);
    }
    store = openStore(`redis+cluster://${nodes.slice(0, 2).join(",")}`, { callMs: 2000 });
  });
  after(async () => {
    await store.close();
    await Promise.all(servers.map((server) => server.kill()));
  });
  behaves("redis cluster", () => store);

  test("a master that is gone: errors in time, other workloads go on", async () => {
    const names = Array.from({ length: 12 }, fresh);
    for (const workload of names) await store.claim({ workload, node: "a" });
    const [victim] = servers as [RedisServer];
    const callMsMax = 400;
    const quick = openStore(`redis+cluster://127.0.0.1:${servers[1]?.port}`, { callMs: callMsMax });
    await quick.ping();
    victim.cli("config", "set", "cluster-require-full-coverage", "no");
    for (const server of servers) server.cli("config", "set", "cluster-require-full-coverage", "no");
    await victim.kill();
    const startedMs = performance.now();
    const outcomes = await Promise.allSettled(
      names.map((workload) => quick.reserve({ workload, node: "a", epoch: 1, migration: "m1", target: "b" })),
    );
    assert.ok(performance.now() - startedMs < callMsMax * BUSY_MACHINE);
    assert.ok(outcomes.some(({ status }) => status === "fulfilled"));
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") assert.match((outcome.reason as HoldfastError).code, /^STORE_UN/);
    }
    await quick.close();
  });
});
