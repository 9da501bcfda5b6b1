/** A hold over many links of anchors: how long it takes is what is tested, so this file has the machine for itself. */
import { describe, it } from "node:test";
import { CountedClient } from "#test/support/counted-client.ts";
import { ProxyLab } from "#test/support/proxy-lab.ts";

const LINKS = 300;

describe("many links of anchors", { timeout: 120_000 }, () => {
  it("have the time that they need: a bound meant for a few fails no move of many", async () => {
    const limits = { holdMsMax: 1 };
    const lab = await ProxyLab.start({ nodes: ["a", "b", "c"], downstream: "forward", limits });
    const clients: CountedClient[] = [];
    try {
      await lab.serve("a");
      for (let seed = 0; seed < LINKS; seed++) clients.push(new CountedClient(lab.client("a"), { seed }));
      const answered = async (): Promise<void> => {
        for (const client of clients) client.send(1_000);
        await Promise.all(clients.map((client) => client.settled()));
      };
      await answered();
      await lab.move("a", "b");
      await answered();
      // now every session of b is a link
      await lab.move("b", "c");
      await answered();
      for (const client of clients) client.socket.destroy();
    } finally {
      await lab.stop();
    }
  });
});
