/** Thousands of sessions that share a connection. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { assertNobodyNoticed, idleClients, startLinked } from "#test/support/linked-proxies.ts";
import type { RawEnd } from "#test/support/raw-ends.ts";

/** four sockets of each are in this process */
const THOUSANDS = 3_000;
/** fewer than may wait for an owner */
const AT_A_TIME = 80;

describe("thousands of sessions over one trunk", { timeout: 120_000 }, () => {
  it("go on after it is cut: all within linkResumeMsMax, and nobody is reset", async (it) => {
    const linked = await startLinked({ limits: { linkResumeMsMax: 15_000 } });
    it.after(() => linked.stop());
    const { anchor, owner, wire, listen } = linked;
    const clients: RawEnd[] = [];
    while (clients.length < THOUSANDS)
      clients.push(...(await idleClients(it, listen, Math.min(AT_A_TIME, THOUSANDS - clients.length))));
    assert.deepEqual([anchor.sessions.size, wire.connections], [THOUSANDS, 1]);
    wire.cut();
    while (anchor.counters.linksContinued < THOUSANDS) {
      assert.equal(anchor.counters.linksLate + owner.counters.linksLate, 0);
      await delay(5);
    }
    for (const client of clients) client.socket.write("y");
    await Promise.all(clients.map((client) => client.has(2)));
    assert.equal(wire.connections, 2);
    assert.equal(owner.sessions.size, THOUSANDS);
    assertNobodyNoticed(linked);
  });
});
