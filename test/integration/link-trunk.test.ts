/** Many links of one anchor to one owner, over one connection. */
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
import { RawEnd, within } from "#test/support/raw-ends.ts";

const MB = 1024 * 1024;
/** more than are dialled again at a time, and than a trunk greets at a time */
const MANY = 300;

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

async function until(what: string, done: () => boolean): Promise<void> {
  const look = async (): Promise<void> => {
    while (!done()) await delay(1);
  };
  await within(what, look(), 20_000);
}

describe("links of one anchor to one owner", { timeout: 60_000 }, () => {
  for (const as of ["gateway", "anchor"] as const)
    for (const links of ["encrypted", "plain"] as const)
      it(`share a connection: from ${as === "anchor" ? "an anchor" : "a gateway"}, ${links}`, async (it) => {
        const linked = await start(it, { as, links });
        await Promise.all(talk(it, linked, 20, { totalBytes: MB / 8 }).map((talker) => talker.done()));
        assert.equal(linked.wire.connections, 1);
        assertNobodyNoticed(linked);
      });

  it("have a connection each where the owner takes no trunks", async (it) => {
    const linked = await start(it, { limits: { trunkSessionsMax: 0 } });
    await Promise.all(talk(it, linked, 5, { totalBytes: MB / 4 }).map((talker) => talker.done()));
    assert.equal(linked.wire.connections, 5);
    assertNobodyNoticed(linked);
  });
});

describe("a trunk with many links", { timeout: 60_000 }, () => {
  for (const links of ["encrypted", "plain"] as const)
    it(`that is cut in mid-stream is followed by one, for all of them: ${links}`, async (it) => {
      const linked = await start(it, { links });
      const all = talk(it, linked, MANY, { chunkBytes: 100, everyMs: 50 });
      await Promise.all(all.map((talker) => talker.receives(100)));
      linked.wire.cut();
      await until("all have gone on", () => linked.anchor.counters.linksContinued === MANY);
      await Promise.all(all.map((talker) => talker.receives(1_000)));
      for (const talker of all) talker.finish();
      await Promise.all(all.map((talker) => talker.done()));
      assert.equal(linked.wire.connections, 2);
      assert.equal(linked.anchor.counters.linksContinued, MANY);
      assertNobodyNoticed(linked);
    });

  it("that dies without a word is found dead for all of them, idle ones too", async (it) => {
    const linked = await start(it);
    const idle = await Promise.all(Array.from({ length: MANY }, () => RawEnd.dial(linked.listen)));
    it.after(() => {
      for (const client of idle) client.destroy();
    });
    for (const client of idle) client.socket.write("x");
    await Promise.all(idle.map((client) => client.has(1)));
    const [busy] = talk(it, linked, 1, { chunkBytes: 500, everyMs: 20 }) as [Talker];
    await busy.receives(1_000);
    linked.wire.stall();
    await until("another connection", () => linked.wire.connections > 1);
    linked.wire.heal({ drop: true });
    await busy.receives(5_000, 10_000);
    await until("all have gone on", () => linked.anchor.counters.linksContinued === MANY + 1);
    for (const client of idle) client.socket.write("y");
    await Promise.all(idle.map((client) => client.has(2)));
    busy.finish();
    await busy.done();
    assertNobodyNoticed(linked);
  });
});
