/** Links that break, stall or are slow in mid-stream: their sessions go on at the byte where they were. */
import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LINK_WINDOW_BYTES } from "#proxy/link/link-flow.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { LiveSession } from "#proxy/workload/live-session.ts";
import {
  assertNobodyNoticed,
  type Linked,
  type LinkedOptions,
  patternAt,
  startLinked,
  Talker,
  type TalkerOptions,
} from "#test/support/linked-proxies.ts";
import { RawEnd, within } from "#test/support/raw-ends.ts";

const MB = 1024 * 1024;
const NONCE_AND_WELCOME_BYTES = 20 + 36;

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

async function until(what: string, done: () => boolean): Promise<void> {
  const look = async (): Promise<void> => {
    while (!done()) await delay(1);
  };
  await within(what, look(), 5_000);
}

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

  it("of one connection among many: that one is found dead by what it was given", async (it) => {
    const linked = await start(it, { limits: { trunkSessionsMax: 0 } });
    const idle = await Promise.all(Array.from({ length: 30 }, () => RawEnd.dial(linked.listen)));
    it.after(() => {
      for (const client of idle) client.destroy();
    });
    const hasLink = ({ upstream }: LiveSession): boolean => upstream instanceof LinkLeg;
    await until("they have links", () => [...linked.anchor.sessions.values()].filter(hasLink).length === 30);
    const [talker] = talk(it, linked, 1, { chunkBytes: 500, everyMs: 20 }) as [Talker];
    const carried = new Map<number, number>();
    linked.wire.tap = (bytes, _, connection) => {
      carried.set(connection, (carried.get(connection) ?? 0) + bytes.length);
      return bytes;
    };
    // more than any greeting has
    await talker.receives(10_000);
    const [busiest] = [...carried].sort(([, a], [, b]) => b - a)[0] as [number, number];
    linked.wire.tap = (bytes, _, connection) => (connection === busiest ? Buffer.alloc(0) : bytes);
    // a process that is kept from running for long finds others silent, too
    await until("it goes on over another", () => linked.anchor.counters.linksContinued >= 1);
    await talker.receives(2_000, 5_000);
    await allDone([talker]);
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

function isInterrupted({ upstream }: LiveSession): boolean {
  return upstream instanceof LinkLeg && !upstream.isConnected;
}

describe("a session whose link has no connection", { timeout: 60_000, concurrency: true }, () => {
  it("takes no more of its client than the client's queue and one window", async (it) => {
    const linked = await start(it);
    const [talker] = talk(it, linked, 1, {}) as [Talker];
    await talker.receives(MB);
    linked.wire.stall();
    linked.wire.cut();
    await until("it has none", () => [...linked.anchor.sessions.values()].every(isInterrupted));
    await delay(500);
    for (const proxy of [linked.anchor, linked.owner])
      for (const { inbound, outbound } of proxy.sessions.values())
        assert.ok(Math.max(inbound.pendingBytes, outbound.pendingBytes) <= 2 * LINK_WINDOW_BYTES);
    linked.wire.heal();
    await allDone([talker]);
    assertNobodyNoticed(linked);
  });

  it("is ended by its owner after linkResumeMsMax, and the client is reset when its link would go on", async (it) => {
    const linked = await start(it, { limits: { linkResumeMsMax: 300 } });
    const [talker] = talk(it, linked, 1, { everyMs: 20 }) as [Talker];
    await talker.receives(1_000);
    linked.wire.stall();
    linked.wire.cut();
    await until("its end there", () => linked.owner.sessions.size === 0);
    assert.equal(linked.owner.counters.linksLate, 1);
    linked.wire.heal();
    await assert.rejects(talker.done(), /ECONNRESET/);
  });

  it("goes without a word where its session has moved on, home to the client's own node", async (it) => {
    const linked = await start(it, { limits: { linkResumeMsMax: 300 } });
    const [talker] = talk(it, linked, 1, { everyMs: 20 }) as [Talker];
    await talker.receives(1_000);
    const [session] = linked.owner.sessions.values();
    const link = session?.downstream;
    assert.ok(session !== undefined && link instanceof LinkLeg);
    // as `retire` has it
    session.forget();
    linked.owner.ownerLinks.releaseLater(link);
    linked.wire.stall();
    linked.wire.cut();
    await until("its end there", () => !link.isOpen);
    assert.equal(linked.owner.counters.linksLate, 0);
    assert.doesNotMatch(JSON.stringify(linked.lines), /a link has not come back/);
    talker.done().catch(() => {});
  });

  it("whose client resets meanwhile is ended at the owner as soon as there is a connection", async (it) => {
    const linked = await start(it, { limits: { linkResumeMsMax: 15_000 } });
    // it says nothing meanwhile: who does is not read, and a reset is found behind what was said
    const client = await RawEnd.dial(linked.listen);
    client.socket.write("x");
    await client.has(1);
    linked.wire.stall();
    linked.wire.cut();
    await until("it has none", () => [...linked.anchor.sessions.values()].every(isInterrupted));
    client.socket.resetAndDestroy();
    await until("its end here", () => linked.anchor.sessions.size === 0);
    linked.wire.heal();
    await until("its end there", () => linked.owner.sessions.size === 0);
    assert.equal(linked.owner.counters.linksLate, 0);
  });

  it("whose link broke with the owner's first word begins once, and loses nothing of what the application said first", async (it) => {
    let begun = 0;
    const banner = patternAt(0, 100);
    const linked = await start(it, {
      links: "plain",
      limits: { trunkSessionsMax: 0 },
      serve: (socket) => {
        begun++;
        socket.write(banner);
      },
    });
    let passed = 0;
    linked.wire.tap = (bytes, direction, connection) => {
      if (direction === "up" || connection > 1) return bytes;
      const room = Math.max(0, NONCE_AND_WELCOME_BYTES - passed);
      passed += bytes.length;
      // until the application has spoken, too
      if (passed > NONCE_AND_WELCOME_BYTES + banner.length) setImmediate(() => linked.wire.cut());
      return bytes.subarray(0, room);
    };
    const client = await RawEnd.dial(linked.listen);
    it.after(() => client.destroy());
    await client.has(banner.length);
    assert.ok(client.received.equals(banner));
    assert.deepEqual([begun, linked.wire.connections], [1, 2]);
  });

  for (const [how, trunkSessionsMax] of [
    ["its own connection", 0],
    ["a trunk", 65_536],
  ] as const)
    for (const code of [RST_CODE.moved, RST_CODE.broken])
      it(`whose link on ${how} is closed with RST ${code} as the owner says ACTIVE goes on over the next, from the first byte`, async (it) => {
        let begun = 0;
        const banner = patternAt(0, 100);
        const linked = await start(it, {
          limits: { trunkSessionsMax },
          serve: (socket) => {
            begun++;
            socket.write(banner);
            socket.pipe(socket);
          },
        });
        const { anchor, owner } = linked;
        const { ownerLinks } = owner;
        const { take } = ownerLinks;
        ownerLinks.take = (link) => {
          ownerLinks.take = take;
          void (async () => {
            const [session] = anchor.sessions.values();
            await until("it is prepared", () => session?.nextLink?.isReady === true);
            session?.nextLink?.close(code);
            (session as LiveSession).nextLink = null;
            // that is not heard of before the next turn
            ownerLinks.take(link);
          })();
        };
        const client = await RawEnd.dial(linked.listen);
        it.after(() => client.destroy());
        await until("the owner has heard of it", () => owner.counters.linksInterrupted === 1);
        await until("the application speaks", () => begun === 1);
        assert.equal(owner.sessions.size, 1);
        for (const session of anchor.sessions.values()) anchor.start(session);
        await client.has(banner.length);
        client.socket.write("x");
        await client.has(banner.length + 1);
        assert.ok(client.received.subarray(0, banner.length).equals(banner));
        assert.equal(begun, 1);
        assertNobodyNoticed(linked);
      });
});
