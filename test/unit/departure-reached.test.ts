/** How far a departure has come decides what a rollback undoes and whom it asks. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { CriuWorker } from "#control/criu/worker.ts";
import { departedAt, NO_LINK, Reached, type Step } from "#control/migration/departure/reached.ts";
import { Stop } from "#control/migration/departure/stop.ts";
import type { Channel } from "#proxy/contract/channel.ts";

const channel = {} as Channel;
const worker = {} as CriuWorker;
const EPOCH = 7;

const forward: [Step["at"], (reached: Reached) => void][] = [
  ["dialled", (reached) => reached.dialled(channel)],
  ["reserving", (reached) => reached.reserving()],
  ["reserved", (reached) => reached.reserved(EPOCH)],
  ["held", (reached) => reached.held(worker, NO_LINK)],
  ["committing", (reached) => reached.committing()],
  ["granted", (reached) => reached.granted()],
];

function reachedTo(at: Step["at"]): Reached {
  const reached = new Reached();
  for (const [step, go] of forward) {
    if (reached.step.at === at) break;
    go(reached);
    assert.equal(reached.step.at, step);
  }
  assert.equal(reached.step.at, at);
  return reached;
}

describe("a departure", () => {
  test("tells a rollback from each step what there is to undo", () => {
    const none = { epoch: 0, reserveTried: false, held: false, commitTried: false, granted: false };
    const expected: Record<Step["at"], ReturnType<typeof departedAt>> = {
      undialled: none,
      dialled: none,
      reserving: { ...none, reserveTried: true },
      reserved: { ...none, reserveTried: true, epoch: EPOCH },
      held: { ...none, reserveTried: true, epoch: EPOCH, held: true },
      committing: { ...none, reserveTried: true, epoch: EPOCH, held: true, commitTried: true },
      granted: { epoch: EPOCH, reserveTried: true, held: true, commitTried: true, granted: true },
    };
    for (const [at, departed] of Object.entries(expected))
      assert.deepEqual(departedAt(reachedTo(at as Step["at"]).step), departed, at);
  });

  test("keeps what each step knew", () => {
    assert.deepEqual(reachedTo("granted").step, {
      at: "granted",
      channel,
      epoch: EPOCH,
      worker,
      link: NO_LINK,
    });
  });

  test("takes no step twice and leaves none out", () => {
    for (const [index, [at]] of forward.entries())
      for (const [other, [step, go]] of forward.entries())
        if (other !== index + 1 && step !== "granted")
          assert.throws(() => go(reachedTo(at)), /goes forward/, `${at} → ${step}`);
  });

  test("gives its word only between the commit and going back", () => {
    for (const at of ["undialled", "dialled", "reserving", "reserved", "held"] as const)
      assert.throws(() => reachedTo(at).granted(), { code: "MIGRATION_UNKNOWN" }, at);
    const asked = reachedTo("committing");
    asked.granted();
    asked.granted(); // the answer to the first was lost
    assert.equal(asked.goBack().at, "granted");
    assert.throws(() => asked.granted(), { code: "MIGRATION_UNKNOWN" });
    const gone = reachedTo("committing");
    assert.equal(gone.goBack().at, "committing");
    assert.throws(() => gone.granted(), { code: "MIGRATION_UNKNOWN" });
    assert.equal(gone.goBack().at, "committing", "and may go back again");
  });
});

describe("a move that is to stop", { timeout: 5_000 }, () => {
  const never = new Promise<never>(() => {});

  test("no longer waits when its deadline passes, and says so from then on", async () => {
    const stop = new Stop(new AbortController().signal, 1);
    stop.throwIfStopped();
    const waiting = stop.untilStopped(never);
    stop.startDeadline();
    await assert.rejects(waiting, { code: "DEADLINE" });
    assert.throws(() => stop.throwIfStopped(), { code: "DEADLINE" });
    await assert.rejects(stop.untilStopped(never), { code: "DEADLINE" });
  });

  test("no longer waits when somebody cancels it, and is told why", async () => {
    const cancel = new AbortController();
    const stop = new Stop(cancel.signal, 60_000);
    const waiting = stop.untilStopped(never);
    const reason = new Error("cancelled");
    cancel.abort(reason);
    await assert.rejects(waiting, reason);
    assert.throws(() => stop.throwIfStopped(), reason);
  });

  test("hears what it waited for where nothing stops it", async () => {
    const stop = new Stop(new AbortController().signal, 60_000);
    stop.startDeadline();
    assert.equal(await stop.untilStopped(Promise.resolve(1)), 1);
    await assert.rejects(stop.untilStopped(Promise.reject(new Error("no"))), /no/);
    stop.endDeadline();
  });
});
