import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { type PrecopyRound, PrecopyRounds } from "#control/criu/precopy-rounds.ts";

const MB = 1_000_000;
const SPACE = 10_000 * MB;

/** Rounds as they would be done of an application. */
function done(round: (index: number) => PrecopyRound, spaceBytes = SPACE): PrecopyRounds {
  const rounds = new PrecopyRounds(spaceBytes);
  for (let index = 0; rounds.isAnother(); index++) rounds.add(round(index));
  return rounds;
}

describe("rounds of copies before the hold", () => {
  it("end when little was written", () => {
    const sizes = [100 * MB, 10 * MB, 0.4 * MB];
    assert.equal(done((index) => ({ bytes: sizes[index] ?? 0, ms: 100 })).rounds.length, 3);
  });

  it("go on as long as there is less each time", () => {
    const { rounds } = done((index) => ({ bytes: (400 * MB) / 2 ** index, ms: 400 / 2 ** index }));
    assert.equal(rounds.length, 8);
  });

  it("end when what is written no longer shrinks", () => {
    const sizes = [400 * MB, 20 * MB, 19 * MB];
    assert.equal(done((index) => ({ bytes: sizes[index] ?? 19 * MB, ms: 300 })).rounds.length, 3);
    assert.equal(done(() => ({ bytes: 400 * MB, ms: 300 })).rounds.length, 2);
  });

  it("end before they take longer than the first, if that took long", () => {
    const halved = (index: number): PrecopyRound => ({ bytes: (1_000 * MB) / 2 ** index, ms: 9_000 });
    assert.equal(done(halved).rounds.length, 2);
    assert.equal(done((index) => ({ ...halved(index), ms: 2_400 })).rounds.length, 4);
  });

  it("leave the target the room for what is sent of the frozen tree", () => {
    const { rounds } = done(() => ({ bytes: 400 * MB, ms: 300 }), 1_100 * MB);
    assert.equal(rounds.length, 1);
    fc.assert(
      fc.property(fc.array(fc.nat(4_000), { minLength: 1, maxLength: 12 }), (sizes) => {
        const all = done((index) => ({ bytes: (sizes[index] ?? 0) * MB, ms: 10 }), 5_000 * MB);
        const before = all.rounds.slice(0, -1);
        const used = before.reduce((total, { bytes }) => total + bytes, 0);
        // a round was begun only if one like the last, and the same again, would have fitted
        if (before.length > 0) assert.ok(used + 2 * (before.at(-1)?.bytes ?? 0) <= 5_000 * MB);
        assert.ok(all.rounds.length <= 8);
      }),
    );
  });

  it("are one more after a wait, where the target has room", () => {
    const after = (ms: number, idleMs: number, spaceBytes = SPACE): boolean => {
      const rounds = new PrecopyRounds(spaceBytes);
      rounds.add({ bytes: 100 * MB, ms });
      return rounds.isLate(idleMs);
    };
    assert.equal(new PrecopyRounds(SPACE).isLate(1_000), false);
    assert.equal(after(10, 150), false);
    assert.equal(after(10, 250), true);
    assert.equal(after(2_000, 1_500), false);
    assert.equal(after(2_000, 2_500), true);
    assert.equal(after(10, 250, 250 * MB), false);
  });

  it("tell how fast memory is written", () => {
    const rounds = new PrecopyRounds(SPACE);
    rounds.add({ bytes: 100 * MB, ms: 500 });
    assert.equal(rounds.dirtyBytesPerSecond, null);
    rounds.add({ bytes: 10 * MB, ms: 50 });
    assert.equal(rounds.dirtyBytesPerSecond, 20 * MB);
    assert.equal(rounds.bytes, 110 * MB);
    // … since the round before began
    rounds.add({ bytes: 10 * MB, ms: 50 }, 950);
    assert.equal(rounds.dirtyBytesPerSecond, 10 * MB);
  });
});
