/** Many links of one anchor to one owner, over one connection. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, it, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { encodeTrunk } from "#proxy/link/link-auth.ts";
import { FRAME, frame } from "#proxy/link/link-codec.ts";
import { type Gone, NOBODY, SocketConnection } from "#proxy/link/link-connection.ts";
import { LINK_KEY } from "#test/support/in-process-proxy.ts";
import {
  assertNobodyNoticed,
  idleClients,
  type Linked,
  type LinkedOptions,
  startLinked,
  Talker,
  type TalkerOptions,
} from "#test/support/linked-proxies.ts";
import { type RawEnd, within } from "#test/support/raw-ends.ts";

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
      const all = talk(it, linked, MANY, { chunkBytes: 100, everyMs: 100 });
      await Promise.all(all.map((talker) => talker.receives(100)));
      linked.wire.cut();
      await until("all have gone on", () => linked.anchor.counters.linksContinued === MANY);
      await Promise.all(all.map((talker) => talker.receives(300)));
      for (const talker of all) talker.finish();
      await Promise.all(all.map((talker) => talker.done()));
      assert.equal(linked.wire.connections, 2);
      assert.equal(linked.anchor.counters.linksContinued, MANY);
      assertNobodyNoticed(linked);
    });

  it("that dies without a word is found dead for all of them, idle ones too", async (it) => {
    const linked = await start(it);
    const idle = await idleClients(it, linked.listen, MANY);
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

describe("a trunk ends", { timeout: 60_000 }, () => {
  it("with the proxy that has dialled it: the owner is told of each session", async (it) => {
    const linked = await start(it);
    await idleClients(it, linked.listen, 3);
    assert.deepEqual([linked.anchor.trunks, linked.owner.trunks], [1, 1]);
    linked.anchor.stop();
    assert.equal(linked.anchor.trunks, 0, "it waits for no other link");
    await until("the sessions' end", () => linked.owner.sessions.size === 0);
    await until("the trunk's", () => linked.owner.trunks + linked.anchor.trunks === 0);
    await until("its connection's", () => linked.wire.open === 0);
    assert.equal(linked.owner.counters.linksInterrupted, 0);
  });

  it("with the owner's proxy: the clients are reset, and nobody dials again", async (it) => {
    const linked = await start(it);
    const clients = await idleClients(it, linked.listen, 3);
    linked.owner.stop();
    assert.equal(linked.owner.trunks, 0);
    for (const client of clients) assert.equal(await client.ending(), "ECONNRESET");
    await until("the trunk's end", () => linked.owner.trunks + linked.anchor.trunks === 0);
    assert.deepEqual([linked.wire.connections, linked.anchor.counters.linksInterrupted], [1, 0]);
  });

  it("a while after its last link, and a link that comes before goes over it", async (it) => {
    const linked = await start(it);
    for (let round = 0; round < 3; round++) {
      const [client] = (await idleClients(it, linked.listen, 1)) as [RawEnd];
      client.socket.end();
      await until("its session's end", () => linked.owner.sessions.size === 0);
    }
    assert.deepEqual([linked.wire.connections, linked.anchor.trunks], [1, 1]);
    await until("its end", () => linked.anchor.trunks + linked.owner.trunks === 0);
  });
});

describe("a trunk that has trunkSessionsMax links", { timeout: 60_000 }, () => {
  it("takes no more: the next takes over, after a cut too, and each ends with its last", async (it) => {
    const linked = await start(it, { as: "anchor", limits: { trunkSessionsMax: 3 } });
    const clients = await idleClients(it, linked.listen, 10);
    assert.deepEqual([linked.wire.connections, linked.anchor.trunks, linked.owner.trunks], [4, 4, 4]);
    linked.wire.cut();
    await until("all have gone on", () => linked.anchor.counters.linksContinued === 10);
    assert.deepEqual([linked.wire.connections, linked.anchor.trunks], [8, 4]);
    for (const client of clients) client.socket.write("y");
    await Promise.all(clients.map((client) => client.has(2)));
    assertNobodyNoticed(linked);
    for (const client of clients) client.socket.end();
    await until("the end of those that were full", () => linked.anchor.trunks === 1);
  });
});

/** A trunk in the clear that a test writes on by hand. */
async function trunkByHand({ owner }: Linked): Promise<{ say(bytes: Buffer): void; gone: Promise<Gone> }> {
  const ready = Promise.withResolvers<void>();
  const gone = Promise.withResolvers<Gone>();
  const connection = SocketConnection.dial(owner.linkEndpoint as { address: string; port: number }, {
    ...NOBODY,
    onFrame: (type, payload) => {
      if (type === FRAME.nonce)
        connection.write(frame(FRAME.trunk, encodeTrunk(LINK_KEY, payload, randomBytes(16))));
      else if (type === FRAME.welcome) ready.resolve();
    },
    onGone: gone.resolve,
  });
  await ready.promise;
  connection.greeted();
  connection.carryChannels();
  connection.sink = { ...NOBODY, onGone: gone.resolve };
  return { say: (bytes) => connection.write(bytes), gone: gone.promise };
}

describe("somebody who has the key and keeps no rules", { timeout: 60_000 }, () => {
  /** of OPENs under way, what an owner takes on a trunk */
  const OPENED_MAX = 512;
  /** more of them than an owner lets greet at a time, all trunks together */
  const TRUNKS = 10;

  it("opens all channels there are and never greets: that trunk is closed, and nobody else notices", async (it) => {
    const linked = await start(it, { links: "plain" });
    const { owner } = linked;
    const [talker] = talk(it, linked, 1, { chunkBytes: 500, everyMs: 5 }) as [Talker];
    await talker.receives(1_000);
    const opens = Buffer.alloc(65_536 * 8);
    for (let number = 0; number < 65_536; number++) {
      opens.writeUInt32BE(number, number * 8);
      opens[number * 8 + 4] = FRAME.open;
    }
    for (let round = 1; round <= TRUNKS; round++) {
      const refused = owner.counters.linksRefused;
      const { say, gone } = await trunkByHand(linked);
      say(opens);
      await within("its end", gone);
      assert.equal(owner.counters.linksRefused - refused, OPENED_MAX);
      await until("it is no more", () => owner.trunks === 1);
    }
    await talker.receives(1_000);
    await idleClients(it, linked.listen, 3);
    talker.finish();
    await talker.done();
    assert.match(JSON.stringify(linked.lines), /a connection of many links is closed/);
    assertNobodyNoticed(linked);
  });
});
