/** Whole handovers between proxies, legs and links and all; the application is stopped and unplugged instead of dumped. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { CountedClient } from "#test/support/counted-client.ts";
import { type NodeName, ProxyLab } from "#test/support/proxy-lab.ts";

for (const downstream of ["relay", "takeover"] as const) {
  describe(`a handover by ${downstream}`, { timeout: 60_000 }, () => {
    let lab: ProxyLab;
    const clients: CountedClient[] = [];

    before(async () => {
      lab = await ProxyLab.start({ nodes: ["a", "b"], downstream });
      await lab.serve("a");
    });
    after(async () => {
      for (const client of clients) client.socket.destroy();
      await lab.stop();
    });

    function connect(node: NodeName): CountedClient {
      const client = new CountedClient(lab.client(downstream === "takeover" ? null : node), {
        seed: clients.length,
      });
      clients.push(client);
      return client;
    }

    it("keeps every byte from a to b and back under load", async () => {
      for (let i = 0; i < 10; i++) connect("a");
      await Promise.all(clients.map((client) => client.progress()));
      await lab.move("a", "b");
      await Promise.all(clients.map((client) => client.progress()));
      connect("a");
      await Promise.all(clients.map((client) => client.progress()));
      await lab.move("b", "a");
      await Promise.all(clients.map((client) => client.progress()));
      await Promise.all(clients.map((client) => client.settled()));
      assert.deepEqual(
        clients.map(({ over, corruptAt }) => ({ over, corruptAt })),
        clients.map(() => ({ over: null, corruptAt: -1 })),
      );
      const { counters } = await lab.proxy("a").status();
      assert.equal(counters.sessionsReset, 0);
      assert.equal(counters.linkMismatches, 0);
    });
  });
}
