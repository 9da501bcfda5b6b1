/**
 * Clients that open, end or reset a connection in each phase of a move, and clients that send without reading: the others
 * notice nothing, and every byte sent by a client that still reads comes back.
 */
import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import type { MoveStage } from "#test/support/move-stage.ts";
import { OddClients } from "#test/support/odd-clients.ts";
import { staged } from "#test/support/staged.ts";

/** Where the move waits while the clients do what they do: an agent stands still, the proxies do not. */
const PHASES = [
  "source:prepare",
  "source:hold",
  "source:dump",
  "source:capture",
  "source:restore",
  "source:commit",
  "source:committed",
  "target:release",
  "target:released",
  "source:retire",
];
/** clients that neither end nor reset: no session of another stays */
const LEFT = ["opens", "stays"];
const SMALL = 3_000;
/** more than both ends' buffers and the proxy's bound together take from a client that does not read */
const LARGE = 24 * 1024 * 1024;
/** less than clients that do not read leave behind, so that the store is not given it */
const HELD_BYTES_MAX = 524_288;
const SENDERS = ["x", "y"];
/** together more than one piece of what is captured, on both legs */
const MANY = Array.from({ length: 12 }, (_, index) => `many${index}`);
const MUCH = 4 * 1024 * 1024;

for (const downstream of ["takeover", "forward"] as const) {
  describe(`clients with a will of their own, ${downstream}`, { timeout: 600_000 }, () => {
    const open = new Set<OddClients>();
    const on = staged({ downstream, load: "tcp" });
    after(async () => {
      for (const clients of open) await clients.close();
    });
    const withClients = (work: (stage: MoveStage, clients: OddClients) => Promise<void>) =>
      on(async (stage) => {
        const clients = new OddClients(stage);
        open.add(clients);
        await work(stage, clients);
        await clients.close();
        open.delete(clients);
      });

    for (const point of PHASES) {
      it(
        `opened, ended and reset at ${point}`,
        withClients(async (stage, clients) => {
          const { other } = stage;
          for (const id of ["ends", "resets", "stays"]) await clients.tell(id, "send", SMALL);
          for (const id of ["ends", "resets", "stays"]) await clients.exact(id);
          const gate = stage.gate(point);
          stage.fault(gate.fault);
          const move = stage.migrate();
          await gate.reached;
          await clients.tell("opens", "send", SMALL);
          await clients.tell("stays", "send", SMALL);
          await clients.tell("ends", "send", SMALL);
          await clients.tell("ends", "end");
          await clients.tell("resets", "reset");
          await clients.tell("opens-and-ends", "send", SMALL);
          await clients.tell("opens-and-ends", "end");
          await clients.tell("opens-and-resets", "open");
          await clients.tell("opens-and-resets", "reset");
          gate.go();
          const { end, reason } = await move;
          assert.equal(end, "moved", reason);
          assert.equal((await clients.exact("opens")).over, null);
          assert.equal((await clients.exact("stays")).over, null);
          for (const id of ["ends", "opens-and-ends"]) {
            await clients.exact(id);
            assert.equal((await clients.tell(id, "until-over")).over, "end", id);
          }
          await clients.tell("opens", "send", SMALL);
          await clients.exact("opens");
          await stage.assertStays(other);
          await stage.until(async () => (await stage.shown(other)).sessions === stage.sessions + LEFT.length);
          for (const id of LEFT) assert.equal((await clients.tell(id, "look")).over, null, id);
        }),
      );
    }

    it(
      "sending much without reading, through a move and back: every byte comes back once they read",
      withClients(async (stage, clients) => {
        const { owner } = stage;
        for (const id of SENDERS) {
          await clients.tell(id, "open");
          await clients.tell(id, "pause");
          await clients.tell(id, "send", LARGE);
        }
        assert.equal((await stage.migrate()).end, "moved");
        await stage.assertStays();
        assert.equal((await stage.migrate()).end, "moved");
        await stage.assertStays(owner);
        for (const id of SENDERS) await clients.tell(id, "resume");
        for (const id of SENDERS) assert.equal((await clients.exact(id)).over, null);
        await stage.assertWell(owner);
      }),
    );

    it(
      "sending much without reading, into a move that is rolled back",
      withClients(async (stage, clients) => {
        const { owner } = stage;
        for (const id of SENDERS) {
          await clients.tell(id, "open");
          await clients.tell(id, "pause");
          await clients.tell(id, "send", LARGE);
        }
        stage.fault("fail@source:committed");
        assert.equal((await stage.migrate()).end, "rolled-back");
        for (const id of SENDERS) await clients.tell(id, "resume");
        for (const id of SENDERS) assert.equal((await clients.exact(id)).over, null);
        await stage.assertWell(owner);
      }),
    );
  });
}

describe("more held for clients than the store is to keep", { timeout: 600_000 }, () => {
  const on = staged({
    downstream: "takeover",
    load: "tcp",
    workload: { limits: { storedLegsBytesMax: HELD_BYTES_MAX } },
  });
  const withUnread = (work: (stage: MoveStage) => Promise<void>) =>
    on(async (stage) => {
      const clients = new OddClients(stage);
      for (const id of MANY) {
        await clients.tell(id, "open");
        await clients.tell(id, "pause");
        await clients.tell(id, "send", MUCH);
      }
      await work(stage);
      for (const id of MANY) await clients.tell(id, "resume");
      for (const id of MANY) assert.equal((await clients.exact(id)).over, null);
      await clients.close();
    });

  it(
    "moves: the target has it before the commit",
    withUnread(async (stage) => {
      const { other } = stage;
      const { end, reason } = await stage.migrate();
      assert.equal(end, "moved", reason);
      await stage.assertStays(other);
    }),
  );

  it(
    "moves though the source's agent dies after the commit: the target needs no more of it than it has",
    withUnread(async (stage) => {
      const { owner, other } = stage;
      stage.fault("crash@source:committed");
      await stage.migrate();
      await stage.died(owner);
      await stage.until(async () => (await stage.shown(other)).role === "owner");
      await stage.restart(owner);
      await stage.assertStays(other);
    }),
  );

  it(
    "stays where it is, with every byte, when the source's agent dies before the commit",
    withUnread(async (stage) => {
      const { owner } = stage;
      stage.fault("crash@source:commit");
      await stage.migrate();
      await stage.died(owner);
      await stage.restart(owner);
      await stage.assertStays(owner);
    }),
  );
});
