/** Links that break, stall or are slow in mid-stream: their sessions go on at the byte where they were. */
import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import {
  assertNobodyNoticed,
  type Linked,
  type LinkedOptions,
  startLinked,
  Talker,
  type TalkerOptions,
} from "#test/support/linked-proxies.ts";

const MB = 1024 * 1024;

/** @param it ends with it */
async function start(it: TestContext, options?: LinkedOptions): Promise<Linked> {
  const linked = await startLinked(options);
  it.after(() => linked.stop());
  return linked;
}

function talk(it: TestContext, { listen }: Linked, count: number, options: TalkerOptions): Talker[] {
  const made = Array.from({ length: count }, () => new Talker(listen, options));
  it.after(() => {
    for (const talker of made) talker.destroy();
  });
  return made;
}

describe("a link that is cut in mid-stream", { timeout: 60_000 }, () => {
  for (const links of ["encrypted", "plain"] as const)
    it(`goes on, ${links}: under load, cut again and again, no byte is lost or repeated`, async (it) => {
      const linked = await start(it, { links });
      const { wire, anchor } = linked;
      let nextCut = MB;
      wire.tap = (bytes) => {
        if (wire.passed.up + wire.passed.down > nextCut) {
          nextCut += 8 * MB;
          setImmediate(() => wire.cut());
        }
        return bytes;
      };
      await Promise.all(talk(it, linked, 10, { totalBytes: 2 * MB }).map((talker) => talker.done()));
      assert.ok(anchor.counters.linksContinued >= 10, `${anchor.counters.linksContinued} went on`);
      assertNobodyNoticed(linked);
    });
});

/** Both ways, in small pieces and in large ones. */
function talkAll(it: TestContext, linked: Linked): Talker[] {
  const few = talk(it, linked, 6, { chunkBytes: 500, everyMs: 20 });
  return [...few, ...talk(it, linked, 2, { chunkBytes: 16_384, everyMs: 20 })];
}

async function allDone(all: Talker[]): Promise<void> {
  for (const talker of all) talker.finish();
  await Promise.all(all.map((talker) => talker.done()));
}

describe("a wire that lets nothing pass for a while", { timeout: 120_000, concurrency: true }, () => {
  for (const [rttMs, stallMs] of [
    [0, 100],
    [40, 100],
    [40, 2_000],
    [0, 10_000],
  ] as const)
    it(`for ${stallMs} ms, at a round trip of ${rttMs} ms: nothing is lost or repeated, and it goes on at once`, async (it) => {
      const linked = await start(it, { limits: { linkResumeMsMax: 15_000 } });
      linked.wire.delayMs = rttMs / 2;
      const all = talkAll(it, linked);
      await Promise.all(all.map((talker) => talker.receives(5_000)));
      linked.wire.stall();
      await delay(stallMs);
      linked.wire.heal();
      await Promise.all(all.map((talker) => talker.receives(5_000, 10_000)));
      await allDone(all);
      assertNobodyNoticed(linked);
    });

  for (const rttMs of [0, 40])
    it(`and drops the connections without a word, at ${rttMs} ms: they are found dead, and others dialled beside them`, async (it) => {
      const linked = await start(it);
      linked.wire.delayMs = rttMs / 2;
      const all = talkAll(it, linked);
      await Promise.all(all.map((talker) => talker.receives(5_000)));
      linked.wire.stall();
      await delay(1_500);
      linked.wire.heal({ drop: true });
      await Promise.all(all.map((talker) => talker.receives(5_000, 10_000)));
      assert.ok(linked.anchor.counters.linksContinued >= all.length);
      await allDone(all);
      assertNobodyNoticed(linked);
    });

  it("for longer than linkResumeMsMax: the clients are reset, which is counted and said", async (it) => {
    const linked = await start(it, { as: "anchor", limits: { linkResumeMsMax: 500 } });
    const [talker] = talk(it, linked, 1, { chunkBytes: 500, everyMs: 20 }) as [Talker];
    await talker.receives(1_000);
    linked.wire.stall();
    await assert.rejects(talker.done(), /ECONNRESET/);
    assert.equal(linked.anchor.counters.linksLate, 1);
    assert.match(JSON.stringify(linked.lines), /a link has not come back/);
    linked.wire.heal();
  });
});
