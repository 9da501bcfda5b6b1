/** How far an arrival has come decides what the source may ask for, and what a source that asks is told. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import type { Fingerprint } from "#control/audit/fingerprint.ts";
import { Release } from "#control/migration/arrival/release.ts";
import type { RestoringCriu } from "#control/migration/arrival/restoring-criu.ts";
import { type Application, ArrivalState, type State } from "#control/migration/arrival/state.ts";
import type { MigrationHost } from "#control/migration/host.ts";
import type { Sandbox } from "#control/runtime/runtime.ts";
import type { Channel } from "#proxy/contract/channel.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

const container = {} as Sandbox;
const criu = {} as RestoringCriu;
const before = {} as Fingerprint;
const application = { root: 42 } as Application;
const release = {} as Release;
const EPOCH = 7;

const forward: [State["at"], (state: ArrivalState) => void][] = [
  ["standby", (state) => state.standby({ container, criu })],
  ["informed", (state) => state.informed(before)],
  ["restored", (state) => state.restored(application)],
  ["releasing", (state) => state.releasing(release)],
  ["released", (state) => state.released(EPOCH)],
];

function broughtTo(at: State["at"]): ArrivalState {
  const state = new ArrivalState();
  for (const [name, go] of forward) {
    if (state.now.at === at) break;
    go(state);
    assert.equal(state.now.at, name);
  }
  assert.equal(state.now.at, at);
  return state;
}

describe("an arrival", { timeout: 5_000 }, () => {
  test("has in each state what it needs there, and no more", () => {
    assert.deepEqual(broughtTo("informed").now, { at: "informed", container, criu, before });
    assert.deepEqual(broughtTo("releasing").now, { at: "releasing", container, criu, application, release });
    assert.deepEqual(broughtTo("released").now, { at: "released", epoch: EPOCH });
  });

  test("takes no step twice and leaves none out, whatever order the source asks for", () => {
    const states = ["preparing", ...forward.map(([at]) => at)] as const;
    for (const [index, at] of states.entries())
      for (const [other, [step, go]] of forward.entries()) {
        if (other === index || (step === "informed" && at === "informed")) continue;
        const from = step === "informed" ? "standby" : states[other];
        assert.throws(
          () => go(broughtTo(at)),
          { code: "MIGRATION_ORDER", message: `the target is ${at}, not ${from}` },
          `${at} → ${step}`,
        );
      }
  });

  test("that is given up goes on with nothing, however far its steps have come", async () => {
    for (const [at] of forward.slice(0, -1)) {
      const state = broughtTo(at);
      const waiting = state.untilGivenUp(new Promise<never>(() => {}));
      const forgetting = Promise.resolve();
      state.giveUp(forgetting);
      await assert.rejects(waiting, { code: "MIGRATION_ABORTED" }, at);
      assert.throws(() => state.throwIfGivenUp(), { code: "MIGRATION_ABORTED" });
      for (const [step, go] of forward) assert.throws(() => go(state), { code: "MIGRATION_ORDER" }, step);
      assert.deepEqual(state.now, { at: "gave-up", forgetting });
      state.forgotten();
      assert.equal(state.isGivenUp, true);
      assert.throws(() => state.throwIfGivenUp(), { code: "MIGRATION_ABORTED" });
    }
  });

  test("hears what it waited for where it is not given up", async () => {
    const state = broughtTo("informed");
    state.throwIfGivenUp();
    assert.equal(await state.untilGivenUp(Promise.resolve(1)), 1);
    await assert.rejects(state.untilGivenUp(Promise.reject(new Error("no"))), /no/);
  });
});

describe("a release that is being asked for", { timeout: 10_000 }, () => {
  const noAnswer = (): HoldfastError =>
    new HoldfastError("no answer", { code: "STORE_UNKNOWN", source: "store", retryable: true });
  const fenced = (): HoldfastError =>
    new HoldfastError("fenced", { code: "STORE_FENCED", source: "store", retryable: false });

  interface Asked {
    mark(): Promise<unknown>;
    grants?: () => Promise<unknown>;
  }

  /** the agent ends: nothing asks after a test */
  let isClosed = false;
  beforeEach(() => {
    isClosed = false;
  });
  afterEach(() => {
    isClosed = true;
  });

  function ask({ mark, grants = () => Promise.reject(new Error("gone")) }: Asked) {
    const put: unknown[] = [];
    const host = {
      name: "chat",
      recordMoving: (patch: unknown) => put.push(patch),
      context: { node: "b", store: { markReleased: mark } },
      outbox: { put: (entry: unknown) => put.push(entry) },
      get isClosed() {
        return isClosed;
      },
      throwIfClosed: () => {
        if (isClosed) throw new Error("closing");
      },
    } as unknown as MigrationHost;
    const channel = { isOpen: true, call: grants } as unknown as Channel;
    return { put, asked: new Release(host, channel, { migration: "m1", epoch: EPOCH }) };
  }

  test("tells a source that asks what the store has decided", async () => {
    const { asked, put } = ask({ mark: async () => {} });
    assert.equal(await asked.decided, EPOCH);
    assert.deepEqual(await asked.outcome(null), { outcome: "released", epoch: EPOCH });
    assert.deepEqual(put, [], "the store knows");
  });

  test("says nothing for this node where the store has decided against it", async () => {
    const { asked } = ask({ mark: () => Promise.reject(fenced()) });
    await assert.rejects(asked.decided, { code: "STORE_FENCED" });
    assert.equal(await asked.outcome(null), null);
    assert.equal(asked.isLeftOpen, false);
  });

  test("is unsure as long as nobody answers, and goes by the source's word", async () => {
    const { asked, put } = ask({ mark: () => Promise.reject(noAnswer()) });
    assert.deepEqual(await asked.outcome(null), { outcome: "unsure", epoch: EPOCH });
    assert.deepEqual(await asked.outcome(EPOCH + 2), { outcome: "released", epoch: EPOCH + 2 });
    assert.equal(await asked.decided, EPOCH + 2);
    assert.deepEqual(put, [
      { step: "released", epoch: EPOCH + 2 }, // first: the next agent goes on there, too
      { kind: "released", migration: "m1", epoch: EPOCH + 2 },
    ]);
  });

  test("asks the source where the store does not answer", async () => {
    const calls: unknown[] = [];
    const { asked } = ask({
      mark: () => Promise.reject(noAnswer()),
      grants: async (...call: unknown[]) => calls.push(call.slice(0, 2)),
    });
    assert.equal(await asked.decided, EPOCH);
    assert.deepEqual(calls, [["grantRelease", { migration: "m1" }]]);
  });

  test("is left to the next agent where this one ends first", async () => {
    const { asked } = ask({ mark: () => Promise.reject(noAnswer()) });
    isClosed = true;
    await assert.rejects(asked.decided, /closing/);
    assert.equal(asked.isLeftOpen, true);
    assert.deepEqual(await asked.outcome(null), { outcome: "unsure", epoch: EPOCH });
  });
});
